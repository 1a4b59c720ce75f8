"""Training on the tiny dataset: resumed runs are the same run, foreign and damaged files are refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bench.step import Step, synthetic_batch
from data import codec
from data.batches import Sampler, SamplerConfig
from data.replay import Replay
from data.shards import DatasetError
from data.sharing import RULES
from eval.policy import CEMPolicy
from eval.report import read_curves
from models.acting import crop, crop_corner, in_crop
from models.augment import photometric
from models.checkpoint import CheckpointError, read_checkpoint
from models.networks import bounds
from sim.landmarks import landmarks
from sim.options import from_options
from sim.scenes import FACTORS
from sim.state import SIM_VERSION, SceneState
from sim.tasks import TASK_NAMES, TASKS
from train.config import PRESETS, TrainConfig
from train.qtopt import QTOpt
from train.run import train
from train.validation import Validation

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tiny_checkpoint, tmp_path):
    """A copy of the finished tiny run (four steps), to be continued or spoilt."""
    folder = tmp_path / "run"
    shutil.copytree(Path(tiny_checkpoint).parent, folder)
    return folder


def weights(path):
    return read_checkpoint(path)["state_dict"]


def equal(first, second):
    """Whether two nested structures of tensors and plain values are bit for bit the same."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(equal(a, b) for a, b in zip(first, second, strict=True))
    return first == second


def edited(path, change):
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint["switchyard"])
    torch.save(checkpoint, path)


def changes(old, new):
    return [key for key in old if not torch.equal(old[key], new[key])]


@pytest.mark.parametrize("rule", ["cds", "none"])
def test_two_steps_and_two_more_equal_four_straight(tiny_training, tmp_path, rule):
    options = {**tiny_training, "rule": rule, "landmark_weight": 1.0, "photometric": True, "n_step": 2}
    straight = train(TrainConfig(out=str(tmp_path / "straight"), **options))
    train(TrainConfig(out=str(tmp_path / "resumed"), **{**options, "steps": 2}))
    halfway = weights(tmp_path / "resumed" / "last.ckpt")
    resumed = train(TrainConfig(out=str(tmp_path / "resumed"), **options))
    first, second = read_checkpoint(straight), read_checkpoint(resumed)
    assert first["switchyard"]["steps"] == second["switchyard"]["steps"] == 4
    assert changes(first["state_dict"], second["state_dict"]) == []
    assert equal(first["optimizer_states"], second["optimizer_states"])
    assert changes(halfway, second["state_dict"])


def command(options):
    values = {key: ",".join(value) if isinstance(value, tuple) else str(value) for key, value in options.items()}
    return [
        sys.executable,
        "-m",
        "train",
        "--preset",
        "demo",
        *(text for k, v in values.items() for text in (f"--{k}", v)),
    ]


def train_until_stopped(options, number):
    """Runs the training command and stops it by a signal after its first checkpoint; (last step saved, its output)."""
    last = Path(options["out"]) / "last.ckpt"
    running = subprocess.Popen(command(options), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not last.is_file() and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(number)
    output = running.communicate(timeout=60)[0]
    assert last.is_file(), output
    return read_checkpoint(last)["switchyard"]["steps"], output


@pytest.fixture
def demo_training(tiny_training):
    """The demo's options, with a learning rate that falls over the run, in 100 steps."""
    return {**tiny_training, "steps": 100, "checkpoint_every": 5, "learning_rate_decay": True, "landmark_weight": 1.0}


def test_a_killed_run_goes_on_to_the_weights_of_one_that_was_not(demo_training, tmp_path):
    options = {**demo_training, "out": str(tmp_path / "killed")}
    assert 5 <= train_until_stopped(options, signal.SIGKILL)[0] < 100
    config = from_options(TrainConfig, options, **vars(PRESETS["demo"]))
    resumed = read_checkpoint(train(config))
    straight = read_checkpoint(train(dataclasses.replace(config, out=str(tmp_path / "straight"))))
    assert resumed["switchyard"]["steps"] == straight["switchyard"]["steps"] == 100
    assert changes(straight["state_dict"], resumed["state_dict"]) == []
    assert equal(straight["optimizer_states"], resumed["optimizer_states"])


def losses(folder):
    return read_curves(folder / "log")["train/loss"]


def test_a_killed_run_goes_on_with_the_losses_of_one_that_was_not(demo_training, tmp_path):
    options = {**demo_training, "out": str(tmp_path / "killed"), "random_crop": True, "photometric": True}
    saved, _ = train_until_stopped(options, signal.SIGKILL)
    config = from_options(TrainConfig, options, **vars(PRESETS["demo"]))
    for name in ("killed", "straight"):
        train(dataclasses.replace(config, out=str(tmp_path / name)))
    resumed, straight = losses(tmp_path / "killed"), losses(tmp_path / "straight")
    assert np.array_equal(resumed[-(100 - saved) :], straight[saved:])


def test_the_best_checkpoint_is_the_first_with_the_highest_mean_success(tiny_training, tmp_path, monkeypatch):
    """Also after a kill between two evaluations: those beyond the last checkpoint are done again."""
    rates = [(0.25, 0.5), (0.5, 0.5), (0.25, 0.75), (0.25, 0.25)]
    played = []

    def play(self, checkpoint):
        played.append(read_checkpoint(checkpoint)["switchyard"]["steps"])
        return dict(zip(self._config.tasks, rates[played[-1] - 1], strict=True))

    monkeypatch.setattr(Validation, "_play", play)
    folder = tmp_path / "run"
    options = {**tiny_training, "evaluate_every": 1, "out": str(folder)}
    train(TrainConfig(**{**options, "steps": 2}))
    shutil.copy(folder / "last.ckpt", tmp_path / "second.ckpt")
    train(TrainConfig(**{**options, "steps": 3}))
    (folder / ".validated.tmp").write_bytes(b"a kill left it")
    shutil.copy(tmp_path / "second.ckpt", folder / "last.ckpt")
    train(TrainConfig(**{**options, "steps": 4}))
    assert played == [1, 2, 3, 3, 4]
    assert read_checkpoint(folder / "best.ckpt")["switchyard"]["steps"] == 2
    found = json.loads((folder / "validation.json").read_text())
    assert [tuple(found[str(step)].values()) for step in (1, 2, 3, 4)] == rates
    assert {tuple(row) for row in read_curves(folder / "log")["eval/success_rate"].round(4)} == {
        (k + 1, np.float32(np.mean(r)).astype(float).round(4)) for k, r in enumerate(rates)
    }
    assert not list(folder.glob(".*"))


def test_an_evaluation_while_training_plays_in_the_simulator(tiny_training, tmp_path):
    train(
        TrainConfig(
            **{**tiny_training, "steps": 1, "evaluate_every": 1, "evaluate_episodes": 1, "out": str(tmp_path / "run")}
        )
    )
    found = json.loads((tmp_path / "run" / "validation.json").read_text())
    assert found.keys() == {"1"}
    assert set(found["1"].values()) <= {0.0, 1.0}


def test_a_step_has_one_gradient_on_any_number_of_threads(tiny_training):
    """A sum whose order threads decide, as in the gradient of indexing, differs from run to run."""
    torch.set_num_threads(2)
    try:
        config = dataclasses.replace(PRESETS["online"], tasks=("lift-can",))
        batch = synthetic_batch(config, torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        module = Step(config)
        state, gradients = copy.deepcopy(module.state_dict()), []
        for _ in range(4):
            module.load_state_dict(state)
            module.zero_grad()
            module.training_step(batch, 0).backward()
            gradients.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})
        assert all(equal(gradients[0], other) for other in gradients[1:])
    finally:
        torch.set_num_threads(1)


def test_the_pace_counts_waiting_and_computing_and_nothing_in_between(tiny_training, tmp_path, monkeypatch):
    class Slow(Callback):
        def on_train_batch_end(self, *arguments):
            time.sleep(0.5)

    monkeypatch.setattr("train.run.Landscape", lambda *arguments: Slow())
    train(TrainConfig(**{**tiny_training, "steps": 3, "out": str(tmp_path / "run")}))
    accumulated = EventAccumulator(str(tmp_path / "run" / "log"))
    accumulated.Reload()
    seen = {tag: [event.value for event in accumulated.Scalars(f"time/{tag}")] for tag in ("data_ms", "compute_ms")}
    assert max(seen["data_ms"] + seen["compute_ms"]) < 450
    assert len(accumulated.Scalars("time/ceiling_share")) == 2


def test_q_over_the_image_is_drawn_for_a_success_of_each_task(tiny_training, tmp_path):
    train(TrainConfig(**{**tiny_training, "steps": 2, "landscape_every": 2, "out": str(tmp_path / "run")}))
    accumulated = EventAccumulator(str(tmp_path / "run" / "log"))
    accumulated.Reload()
    replay = Replay(tiny_training["data"])
    won = {
        t for t in tiny_training["tasks"] if replay.success[replay.episode_task == TASKS[t].index, TASKS[t].index].any()
    }
    assert won
    assert set(accumulated.Tags()["images"]) == {f"landscape/{task}" for task in won}
    picture = accumulated.Images(f"landscape/{min(won)}")[0]
    assert (picture.step, picture.width, picture.height) == (2, 640, 338)


def test_an_interrupted_run_saves_where_it_is_and_goes_on(demo_training, tmp_path):
    options = {**demo_training, "steps": 5000, "learning_rate_decay": False, "out": str(tmp_path / "run")}
    step, output = train_until_stopped(options, signal.SIGINT)
    assert 5 <= step < 5000
    assert f"last.ckpt holds step {step}; the same command goes on from there" in output
    assert "Traceback" not in output
    path = train(from_options(TrainConfig, {**options, "steps": step + 3}, **vars(PRESETS["demo"])))
    again = {**options, "steps": step + 3, "out": str(tmp_path / "straight")}
    straight = train(from_options(TrainConfig, again, **vars(PRESETS["demo"])))
    assert read_checkpoint(path)["switchyard"]["steps"] == step + 3
    assert changes(weights(straight), weights(path)) == []


def test_options_that_never_trained_bind_nobody(tiny_training, tmp_path):
    with pytest.raises(ValueError, match="no episode of task lift-can"):
        train(TrainConfig(out=str(tmp_path / "run"), **{**tiny_training, "tasks": ("lift-banana", "lift-can")}))
    assert train(TrainConfig(out=str(tmp_path / "run"), **{**tiny_training, "steps": 1})).is_file()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_frame_found_damaged_in_training_is_named_in_one_line(tiny_training, tmp_path, workers):
    folder = tmp_path / "set"
    shutil.copytree(tiny_training["data"], folder)
    for path in folder.glob("*.h5"):
        content = bytearray(path.read_bytes())
        with h5py.File(path) as file:
            begin, size = file["frame/image"].id.get_offset(), file["frame/image"].shape[0]
        content[begin : begin + size : 50] = b"x" * len(content[begin : begin + size : 50])
        path.write_bytes(content)
    options = {**tiny_training, "data": str(folder), "workers": workers}
    with pytest.raises(DatasetError, match=r"^\S+\.h5: damaged shard, the checksum of frame \d+ does not match$"):
        train(TrainConfig(out=str(tmp_path / "run"), **options))


def test_the_network_learns_to_point_at_things(tiny_training, tmp_path):
    """Trained on six episodes with random crops, asked at the centre crop: a wrong axis or corner would miss."""
    options = {**tiny_training, "steps": 250, "batch_size": 16, "landmark_weight": 1.0, "random_crop": True}
    options |= {"checkpoint_every": 250, "learning_rate": 3e-3, "target_decay": 0.9}
    network = CEMPolicy.load(train(TrainConfig(out=str(tmp_path / "run"), **options))).network
    replay = Replay(tiny_training["data"])
    stored = range(replay.num_steps + replay.num_episodes)
    frames = torch.from_numpy(replay.pictures(stored)).permute(0, 3, 1, 2)
    state = SceneState(np.stack([frame.state for frame in replay.read(stored)]))
    gripper = np.stack([state["gripper_closed"], state["gripper_position"][:, 2]], axis=1)
    marks = landmarks(state)
    with torch.no_grad():
        attention = network.look(crop(frames, 48), torch.from_numpy(gripper)).attention
    cells = attention.shape[-1]
    best = attention.flatten(2).argmax(-1)
    found = (torch.stack([best % cells, best // cells], dim=-1) + 0.5) / cells
    point = in_crop(torch.from_numpy(marks.point), frames, crop_corner(frames, 48), 48)
    visible = torch.from_numpy(marks.point_present) & (point > 0).all(-1) & (point < 1).all(-1)
    near = ((found - point).abs().amax(-1) < 1.5 / cells)[visible]
    assert near.float().mean() > 0.95


def test_another_number_of_steps_is_refused_where_the_learning_rate_falls_over_them(tiny_training, tmp_path):
    options = {**tiny_training, "out": str(tmp_path / "run"), "learning_rate_decay": True}
    train(TrainConfig(**{**options, "steps": 1}))
    with pytest.raises(CheckpointError, match=r"steps 1 \(now 4\)"):
        train(TrainConfig(**options))


def test_the_loader_processes_do_not_change_the_weights(tiny_checkpoint, tiny_training, tmp_path):
    path = train(TrainConfig(out=str(tmp_path / "run"), **{**tiny_training, "workers": 2}))
    assert changes(weights(tiny_checkpoint), weights(path)) == []


def test_equal_runs_in_two_folders_write_equal_bytes(tiny_checkpoint, tiny_training, tmp_path):
    """Collection records a checkpoint by its SHA-256."""
    path = train(TrainConfig(out=str(tmp_path / "run"), **tiny_training))
    assert path.read_bytes() == tiny_checkpoint.read_bytes()


def test_another_seed_trains_other_weights(tiny_checkpoint, tiny_training, tmp_path):
    path = train(TrainConfig(out=str(tmp_path / "run"), **tiny_training, seed=1))
    assert changes(weights(tiny_checkpoint), weights(path))


def test_qtopts_network_trains_and_resumes_too(tiny_training, tmp_path, make_episode, write_dataset):
    """Two steps of the 472 network's plan at its cheapest size, on hand-made frames."""
    episodes = [make_episode(task, 2, (task,)) for task in tiny_training["tasks"]]
    rng = np.random.default_rng(0)
    for episode in episodes:
        frames = rng.integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
        object.__setattr__(episode, "frames", tuple(codec.encode(frame, quality=90) for frame in frames))
    folder = write_dataset(tmp_path / "set", [episodes], side=224)
    options = {**tiny_training, "data": str(folder), "image_size": 224, "batch_size": 2, "prior": False, "steps": 2}
    straight = train(TrainConfig(out=str(tmp_path / "straight"), **options))
    train(TrainConfig(out=str(tmp_path / "resumed"), **{**options, "steps": 1}))
    resumed = train(TrainConfig(out=str(tmp_path / "resumed"), **options))
    assert changes(weights(straight), weights(resumed)) == []


def test_a_finished_run_is_left_as_it_is(run, tiny_training, capsys):
    before = (run / "last.ckpt").read_bytes()
    assert train(TrainConfig(out=str(run), **tiny_training)) == run / "last.ckpt"
    assert "already trained for 4 steps" in capsys.readouterr().out
    assert (run / "last.ckpt").read_bytes() == before


def test_a_checkpoint_describes_itself(tiny_checkpoint):
    about = read_checkpoint(tiny_checkpoint)["switchyard"]
    assert about["tasks"] == list(TASK_NAMES)
    assert about["trained_tasks"] == ["lift-banana", "place-bowl"]
    assert about["renderer"] == "tiny"
    assert about["randomise"] == list(FACTORS)
    assert about["split"] == "train"
    world = CEMPolicy.load(tiny_checkpoint).world
    assert world == {"image_size": 56, "renderer": "tiny", "randomise": tuple(FACTORS)}
    assert about["network"]["image_size"] == 48
    assert about["sharing"]["rule"] == "cds"
    weight = about["sharing"]["weights"][TASKS["lift-banana"].index]
    assert weight[TASKS["lift-banana"].index] == pytest.approx(1.0)
    assert 0 < weight[TASKS["place-bowl"].index] < 1
    assert weight[TASKS["lift-can"].index] is None


def batch_of(config, seed=0):
    replay = Replay(config.data)
    tasks = tuple(TASKS[name].index for name in config.tasks)
    sampler = Sampler(replay, tasks, RULES[config.rule], SamplerConfig(per_task=config.batch_size // len(tasks)))
    return sampler.load(*sampler.draw(np.random.default_rng(seed)))


def test_the_loss_of_one_batch_falls_when_it_is_learned_by_heart(tiny_training):
    config = TrainConfig(**{**tiny_training, "batch_size": 16})
    torch.manual_seed(0)
    module, batch = QTOpt(config), batch_of(config)
    optimizer = module.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(60):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_the_clone_trains_alone_and_acts_by_its_mean_and_likeliest_command(tiny_training, tmp_path):
    options = {**tiny_training, "learner": "clone", "landmark_weight": 1.0}
    path = train(TrainConfig(out=str(tmp_path / "clone"), **options))
    policy, other = CEMPolicy.load(path), weights(train(TrainConfig(out=str(tmp_path / "more"), **options, seed=1)))
    learned = changes(weights(path), other)
    assert any("prior" in name for name in learned)
    observation = {
        "image": np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), dtype=np.uint8),
        "gripper_closed": np.zeros(2, np.float32),
        "gripper_height": np.full(2, 0.2, np.float32),
        "state": np.zeros((2, 1), np.float32),
    }
    actions = [policy.act(observation, np.array([0, 7]), np.random.default_rng(seed)) for seed in (0, 1)]
    assert np.array_equal(*actions)
    image = crop(torch.from_numpy(observation["image"]).permute(0, 3, 1, 2), 48)
    gripper = torch.tensor([[0.0, 0.2]] * 2)
    with torch.no_grad():
        features = policy.network.encode(image, gripper)
        mean, command = policy.network.propose(features, gripper, torch.tensor([0, 7]))
    assert np.allclose(actions[0][:, :4], mean.clamp(-1, 1) * bounds(torch.device("cpu")))
    assert np.array_equal(actions[0][:, 4], command.argmax(-1))


def test_photometric_variation_is_that_of_its_seed_and_of_each_eighth_picture():
    image = torch.rand(1, 3, 8, 8).expand(16, -1, -1, -1)
    torch.manual_seed(5)
    first = photometric(image, 3)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(first, photometric(image, 3))
    assert not torch.equal(first, photometric(image, 4))
    assert torch.equal(first[:8], first[8:])
    assert len({picture.numpy().tobytes() for picture in first}) == 8
    assert 0 <= first.min() <= first.max() <= 1
    assert 0.02 < (first - image).abs().mean() < 0.5


def test_each_step_moves_the_target_towards_the_network_and_the_lagged_target_copies_it(tiny_training, tmp_path):
    options = {**tiny_training, "out": str(tmp_path / "run"), "target_decay": 0.75, "lagged_target_steps": 2}
    one = weights(train(TrainConfig(**{**options, "steps": 1})))
    two = weights(train(TrainConfig(**{**options, "steps": 2})))
    names = [name.removeprefix("network.") for name in one if name.startswith("network.")]
    for name in names:
        if name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(two[f"target.{name}"], two[f"network.{name}"])
        else:
            average = 0.75 * one[f"target.{name}"] + 0.25 * two[f"network.{name}"]
            assert torch.allclose(two[f"target.{name}"], average, atol=1e-6)
        assert torch.equal(two[f"lagged.{name}"], two[f"target.{name}"])
    assert any(not torch.equal(one[f"network.{name}"], two[f"network.{name}"]) for name in names)
    assert any(not torch.equal(one[f"lagged.{name}"], one[f"target.{name}"]) for name in names)


def test_a_dataset_of_another_image_size_is_refused(tiny_training, tmp_path):
    with pytest.raises(ValueError, match="frames for 48 px, but the network sees 64 px"):
        train(TrainConfig(out=str(tmp_path / "run"), **{**tiny_training, "image_size": 64}))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="may decode on a GPU")
def test_decoding_on_a_gpu_is_refused_where_there_is_none(tiny_training, tmp_path):
    with pytest.raises(ValueError, match="decode gpu needs a GPU and torchcodec"):
        train(TrainConfig(**{**tiny_training, "out": str(tmp_path / "run"), "decode": "gpu"}))


def test_a_missing_dataset_is_refused(tiny_training, tmp_path):
    with pytest.raises(DatasetError, match="no dataset here"):
        train(TrainConfig(out=str(tmp_path / "run"), **{**tiny_training, "data": str(tmp_path)}))


@pytest.mark.parametrize("other", [{"learning_rate": 0.5}, {"rule": "all"}, {"seed": 3}, {"prior": False}])
def test_a_run_with_other_options_is_refused(run, tiny_training, other):
    with pytest.raises(CheckpointError, match=f"{run}: already holds a run with other options: {next(iter(other))} "):
        train(TrainConfig(out=str(run), **{**tiny_training, **other}))


def test_a_folder_that_holds_something_else_is_refused(tiny_training, tmp_path):
    (tmp_path / "thesis.tex").write_text("hello")
    with pytest.raises(CheckpointError, match="not empty and not a Switchyard run"):
        train(TrainConfig(out=str(tmp_path), **tiny_training))


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_by_name(run, tiny_training, keep):
    path = run / "last.ckpt"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(CheckpointError, match=r"last\.ckpt: not a checkpoint, or a damaged one"):
        train(TrainConfig(out=str(run), **{**tiny_training, "steps": 6}))
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        CEMPolicy.load(path)


def test_a_checkpoint_with_a_damaged_weight_is_refused_by_name(run):
    path = run / "last.ckpt"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = bytes(255 - value for value in content[middle : middle + 4])
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: damaged checkpoint, the checksum of \S+ does not match"):
        CEMPolicy.load(path)


@pytest.mark.parametrize("stranger", [{"state_dict": {}}, [1, 2], {"switchyard": {}}, {"switchyard": 3}])
def test_another_programs_checkpoint_is_refused_by_name(run, tiny_training, stranger):
    torch.save(stranger, run / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: a checkpoint, but not one of Switchyard's"):
        train(TrainConfig(out=str(run), **{**tiny_training, "steps": 6}))


class Trap:
    """What a malicious checkpoint would hold: a pickle that writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_never_runs_code(tmp_path):
    torch.save({"switchyard": Trap(tmp_path / "sprung")}, tmp_path / "trap.ckpt")
    with pytest.raises(CheckpointError, match=r"trap\.ckpt: not a checkpoint, or a damaged one"):
        read_checkpoint(tmp_path / "trap.ckpt")
    assert not (tmp_path / "sprung").exists()


def test_a_missing_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.ckpt: no such checkpoint"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_a_checkpoint_of_another_world_is_refused(run):
    edited(run / "last.ckpt", lambda about: about.update(sim_version=1))
    with pytest.raises(CheckpointError, match=f"trained in world 1, this version has {SIM_VERSION}"):
        CEMPolicy.load(run / "last.ckpt")


def test_a_checkpoint_of_another_renderer_is_refused_naming_both(run, tiny_training):
    edited(run / "last.ckpt", lambda about: about.update(renderer="egl"))
    with pytest.raises(CheckpointError, match=r"trained on egl images, .* holds tiny"):
        train(TrainConfig(out=str(run), **{**tiny_training, "steps": 6}))
    with pytest.raises(CheckpointError, match="renderer egl, asked to act on tiny"):
        CEMPolicy.load(run / "last.ckpt", renderer="tiny")


def test_a_checkpoint_of_another_task_list_is_refused_naming_both(run, tiny_training):
    edited(run / "last.ckpt", lambda about: about.update(tasks=[*TASK_NAMES[1:], "lift-hammer"]))
    with pytest.raises(CheckpointError, match=r"lift-hammer.*this version has .*lift-banana"):
        train(TrainConfig(out=str(run), **{**tiny_training, "steps": 6}))
    with pytest.raises(CheckpointError, match="lift-hammer"):
        CEMPolicy.load(run / "last.ckpt")


def test_a_policy_of_another_image_size_is_refused_naming_both(tiny_checkpoint):
    with pytest.raises(CheckpointError, match="trained at 48 px, asked to act at 64 px"):
        CEMPolicy.load(tiny_checkpoint, image_size=64)


def test_a_policy_acts_with_the_averaged_weights(tiny_checkpoint):
    policy, stored = CEMPolicy.load(tiny_checkpoint), weights(tiny_checkpoint)
    for key, value in policy.network.state_dict().items():
        assert torch.equal(value, stored[f"target.{key}"])
    assert changes(policy.network.state_dict(), {key: stored[f"network.{key}"] for key in policy.network.state_dict()})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ()}, "at least one task"),
        ({"tasks": ("lift-cann",)}, "unknown task 'lift-cann'.*Did you mean 'lift-can'"),
        ({"rule": "cbs"}, "unknown sharing rule 'cbs'.*Did you mean 'cds'"),
        ({"conditioning": "none"}, "unknown conditioning"),
        ({"precision": "64"}, "unknown precision"),
        ({"batch_size": 1}, "a batch of 1 cannot hold 2 tasks"),
        ({"shared_part": 1.5}, "shared_part is between 0 and 1"),
        ({"percentile": 200.0}, "percentile is 0 to 100"),
        ({"cem_elites": 9}, "CEM needs"),
        ({"image_size": 200, "prior": False}, "no network sees 200 px"),
        ({"image_size": 472}, "need the small network"),
        ({"steps": 0}, "steps"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"log_every": 0}, "log_every"),
        ({"unseen_actions": -1}, "unseen_actions"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(tiny_training, wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{**tiny_training, **wrong})


def test_without_a_choice_of_tasks_those_of_the_dataset_are_trained(tiny_training, tmp_path, capsys):
    options = {**tiny_training, "tasks": TASK_NAMES, "batch_size": 10, "steps": 1}
    about = read_checkpoint(train(TrainConfig(out=str(tmp_path / "run"), **options)))["switchyard"]
    assert about["trained_tasks"] == ["lift-banana", "place-bowl"]
    assert "holds episodes of 2 tasks" in capsys.readouterr().out


def test_a_task_asked_for_by_name_is_never_dropped(tiny_training, tmp_path):
    with pytest.raises(ValueError, match="holds no episode of task lift-can"):
        train(TrainConfig(out=str(tmp_path / "run"), **{**tiny_training, "tasks": ("lift-banana", "lift-can")}))
