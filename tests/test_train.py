"""A training step, and what a run logs, on the tiny dataset."""

from __future__ import annotations

import copy
import json
import shutil
import signal
import types
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation

from bench.step import Step, synthetic_batch
from data.replay import Replay
from data.sampler import BatchStream, Drawn, Sampler, SamplerConfig
from data.sharing import RULES
from eval.curves import read_curves
from eval.policy import CEMPolicy
from eval.rollout import EpisodeOutcome
from models.image_checkpoint import read_checkpoint
from models.images import Augmentation, change_colours, crop, crop_corner, in_crop
from models.qnetwork import bounds
from sim.files import DatasetError
from sim.landmarks import landmarks
from sim.state import SceneState
from sim.tasks import SKILLS, TASK_NAMES, TASKS
from train.callbacks.validation import Validation
from train.image_bc import CLONED_WEIGHT, BehaviourCloning, cloned_weight
from train.qtopt import QTOpt
from train.qtopt_config import CLONED, PRESETS, REFERENCE_OVER, QTOptConfig
from train.qtopt_run import LEARNERS, train
from train.seeding import RandomStream


def test_the_target_is_the_lower_of_two_values_of_the_action_that_the_first_one_chooses():
    module = Step(replace(PRESETS["online"], tasks=("lift-can",), batch_size=8, lagged_target_steps=5))
    batch = synthetic_batch(module.config, torch.Generator().manual_seed(0))
    batch = replace(batch, reward=torch.zeros(8), done=torch.zeros(8))
    module.begin(batch)
    image, _ = module.preprocess(batch.next_image, RandomStream.NEXT_IMAGE)

    def target():
        return module._td_target(batch, image, torch.Generator().manual_seed(1))

    def logit(value):
        return (value / module.config.discount).logit()

    first = target()  # both are the same yet
    with torch.no_grad():
        module.network.head3.bias -= 3.0  # it is not asked
        assert torch.equal(target(), first)
        module.lagged.head3.bias -= 1.0
        assert torch.allclose(logit(target()), logit(first) - 1.0, atol=1e-4)
        module.lagged.head3.bias += 2.0
        assert torch.allclose(target(), first, atol=1e-6)


def test_half_of_the_unseen_actions_lie_near_the_datas_and_mostly_keep_its_command():
    config = replace(PRESETS["online"], num_unseen_actions=32, nearby_fraction=0.5, nearby_std=0.1)
    action = torch.tensor([[0.0, 0.03, -0.03, 0.0, 2.0]]).expand(500, 5)
    unseen = Step(config)._unseen_actions(action, torch.Generator().manual_seed(0))
    limit = bounds(torch.device("cpu"))
    near, anywhere = ((part[..., :4] - action[:, None, :4]) / limit for part in (unseen[:, :16], unseen[:, 16:]))
    assert (unseen[..., :4].abs() <= limit).all()
    assert near.std(dim=(0, 1)).tolist() == pytest.approx([0.1] * 4, abs=0.005)
    assert anywhere.std(dim=(0, 1)).tolist() == pytest.approx([3**-0.5] * 4, abs=0.02)
    same = (unseen[..., 4] == 2.0).float()
    assert same[:, :16].mean().item() == pytest.approx(0.7 + 0.3 / 4, abs=0.02)
    assert same[:, 16:].mean().item() == pytest.approx(1 / 4, abs=0.02)


@pytest.mark.parametrize("preset", ["online", "vision-472"])
def test_a_step_in_bfloat16_is_the_step_in_float32_but_for_rounding(preset):
    config = replace(
        PRESETS[preset], tasks=("lift-can",), batch_size=4, image_size=220 if preset == "vision-472" else 48
    )
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        module = Step(config)
        adam = module.configure_optimizers()["optimizer"]
        batch = synthetic_batch(config, torch.Generator().manual_seed(0))
        losses.append(float(module.update(batch, adam, precision)))
        assert all(p.isfinite().all() for p in module.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_a_decaying_learning_rate_ends_at_a_fiftieth():
    falling = Step(replace(PRESETS["demo"], steps=10, lr=1e-2)).configure_optimizers()
    rates = []
    for _ in range(11):
        rates.append(falling["optimizer"].param_groups[0]["lr"])
        falling["optimizer"].step()
        falling["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([1e-2 * (1 - 0.098 * k) for k in range(11)])


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
    train(QTOptConfig(**{**options, "steps": 2}))
    shutil.copy(folder / "last.ckpt", tmp_path / "second.ckpt")
    train(QTOptConfig(**{**options, "steps": 3}))
    shutil.copy(folder / "last.ckpt", folder / "validating.ckpt")  # a kill left that of step 3
    shutil.copy(tmp_path / "second.ckpt", folder / "last.ckpt")
    train(QTOptConfig(**{**options, "steps": 4}))
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
        QTOptConfig(
            **{**tiny_training, "steps": 1, "evaluate_every": 1, "evaluate_episodes": 1, "out": str(tmp_path / "run")}
        )
    )
    found = json.loads((tmp_path / "run" / "validation.json").read_text())
    assert found.keys() == {"1"}
    assert set(found["1"].values()) <= {0.0, 1.0}


def test_an_evaluation_while_training_does_not_keep_a_stop_waiting(tiny_training, tmp_path, monkeypatch):
    """A batch queue kills a minute and a half after it asks to stop."""
    played = []

    def episodes(policy, checkpoint, world, jobs, workers):
        for job in jobs:
            signal.raise_signal(signal.SIGUSR1)
            played.append(job)
            yield EpisodeOutcome(task=job.task, number=job.number, success=True, steps=1, wall_time_s=0.0, film=())

    monkeypatch.setattr("train.callbacks.validation.rollout", episodes)
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as end:
            train(QTOptConfig(out=str(tmp_path), **{**tiny_training, "steps": 90}, evaluate_every=2))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert end.value.code == 128 + signal.SIGUSR1
    assert len(played) == 1
    assert not (tmp_path / "validation.json").exists()
    assert read_checkpoint(tmp_path / "last.ckpt")["switchyard"]["steps"] == 3
    assert not list(tmp_path.glob(".*.tmp"))

    steps = []

    def play(self, checkpoint):
        steps.append(read_checkpoint(checkpoint)["switchyard"]["steps"])
        return {"lift-can": 0.5}

    monkeypatch.setattr(Validation, "_play", play)
    config = QTOptConfig(out=str(tmp_path), **tiny_training, evaluate_every=2)
    train(config)
    assert steps == [2, 4]  # the one that was stopped, of the state it was begun with
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "validating.ckpt")
    train(config)  # trained already: only the evaluation was stopped
    assert steps == [2, 4, 4]
    assert not (tmp_path / "validating.ckpt").exists()


def test_a_step_has_one_gradient_on_any_number_of_threads(tiny_training):
    """A sum whose order threads decide, as in the gradient of indexing, differs from run to run."""
    torch.set_num_threads(2)
    try:
        config = replace(PRESETS["online"], tasks=("lift-can",))
        batch = synthetic_batch(config, torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        module = Step(config)
        state, gradients = copy.deepcopy(module.state_dict()), []
        for _ in range(4):
            module.load_state_dict(state)
            module.zero_grad()
            module.training_step(batch, 0).backward()
            gradients.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})
        assert all(torch.equal(gradients[0][name], other[name]) for other in gradients[1:] for name in other)
    finally:
        torch.set_num_threads(1)


def test_throughput_counts_waiting_and_computing_and_nothing_in_between(tiny_training, tmp_path, monkeypatch):
    """By a clock that stands still but where a batch is loaded, a step computes, and a callback comes after it."""
    now_s = 0.0

    def takes(seconds, call):
        def slow(*arguments, **options):
            nonlocal now_s
            now_s += seconds
            return call(*arguments, **options)

        return slow

    class Between(Callback):
        on_train_batch_end = takes(16.0, lambda *arguments: None)

    clock = types.SimpleNamespace(perf_counter=lambda: now_s)
    monkeypatch.setattr("train.callbacks.throughput.time", clock)
    monkeypatch.setattr("data.loader.time", clock)
    monkeypatch.setattr("train.callbacks.throughput._cached_ceiling", lambda *arguments: 1e9)
    monkeypatch.setattr(Sampler, "load", takes(0.25, Sampler.load))
    monkeypatch.setattr(QTOpt, "training_step", takes(0.75, QTOpt.training_step))
    monkeypatch.setattr("train.qtopt.QMaps", lambda *arguments: Between())
    train(QTOptConfig(**{**tiny_training, "steps": 3, "out": str(tmp_path / "run")}))
    accumulated = EventAccumulator(str(tmp_path / "run" / "log"))
    accumulated.Reload()
    seen = {tag: [event.value for event in accumulated.Scalars(f"time/{tag}")] for tag in TIMES}
    assert seen.pop("ceiling_share")[0] > 0
    assert seen == {"data_ms": [250.0] * 2, "compute_ms": [750.0] * 2, "images_per_s": [16.0] * 2}


def test_q_over_the_image_is_drawn_for_a_success_of_each_task(tiny_training, tmp_path):
    options = {"rule": "cds", "sharing": "weight", "granularity": "transition", "steps": 2, "q_maps_every": 2}
    train(QTOptConfig(**{**tiny_training, **options, "out": str(tmp_path / "run")}))
    accumulated = EventAccumulator(str(tmp_path / "run" / "log"))
    accumulated.Reload()
    replay = Replay(tiny_training["data"])
    successes = {
        t for t in tiny_training["tasks"] if replay.success[replay.episode_task == TASKS[t].index, TASKS[t].index].any()
    }
    assert successes
    assert set(accumulated.Tags()["images"]) == {f"q_maps/{task}" for task in successes} | {"routing/weights"}
    image = accumulated.Images(f"q_maps/{min(successes)}")[0]
    assert (image.step, image.width, image.height) == (2, 640, 338)
    steps = accumulated.Scalars(f"routing/effective_steps/{min(successes)}")[0]
    own = replay.steps_of_tasks(len(TASK_NAMES))[TASKS[min(successes)].index]
    assert steps.step == 2
    assert own < steps.value < replay.num_steps


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
        train(QTOptConfig(out=str(tmp_path / "run"), **options))


def test_the_network_learns_to_localise_landmarks(tiny_training, tmp_path):
    """Trained on six episodes with random crops, asked at the centre crop: a wrong axis or corner would miss."""
    options = {**tiny_training, "steps": 250, "batch_size": 16, "landmark_weight": 1.0, "random_crop": True}
    options |= {"checkpoint_every": 250, "lr": 3e-3, "target_update_rate": 0.1}
    network = CEMPolicy.load(train(QTOptConfig(out=str(tmp_path / "run"), **options))).network
    replay = Replay(tiny_training["data"])
    stored = range(replay.num_steps + replay.num_episodes)
    frames = torch.from_numpy(replay.images(stored)).permute(0, 3, 1, 2)
    state = SceneState(np.stack([frame.state for frame in replay.read(stored)]))
    gripper = np.stack([state["gripper_closed"], state["gripper_position"][:, 2]], axis=1)
    marks = landmarks(state)
    with torch.no_grad():
        attention = network.perceive(crop(frames, 48), torch.from_numpy(gripper)).attention
    cells = attention.shape[-1]
    best = attention.flatten(2).argmax(-1)
    found = (torch.stack([best % cells, best // cells], dim=-1) + 0.5) / cells
    point = in_crop(torch.from_numpy(marks.point), frames, crop_corner(frames, 48), 48)
    visible = torch.from_numpy(marks.point_present) & (point > 0).all(-1) & (point < 1).all(-1)
    near = ((found - point).abs().amax(-1) < 1.5 / cells)[visible]
    assert near.float().mean() > 0.95


TIMES = ("data_ms", "compute_ms", "images_per_s", "ceiling_share")


def batch_of(config, seed=0):
    replay = Replay(config.data)
    tasks = tuple(TASKS[name].index for name in config.tasks)
    sampler = Sampler(replay, tasks, RULES[config.rule], SamplerConfig(per_task=config.batch_size // len(tasks)))
    return sampler.load(Drawn(*sampler.draw(np.random.default_rng(seed))))


def test_the_network_overfits_one_batch(tiny_training):
    config = QTOptConfig(**{**tiny_training, "batch_size": 16, "rule": "all"})
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


BY_Q = [rule for rule in RULES if RULES[rule].uses_q]


@pytest.mark.parametrize(
    ("rule", "granularity", "sharing"),
    [(rule, "episode", "sample") for rule in RULES]
    + [(rule, "transition", "weight") for rule in BY_Q]
    + [("hipi", "transition", "sample"), ("cds-basic", "transition", "sample"), ("cds-basic", "episode", "weight")],
)
def test_every_sharing_rule_trains_and_reports_what_it_routed(
    tiny_training, tmp_path, monkeypatch, rule, granularity, sharing
):
    monkeypatch.setattr("train.image_router.DRAWN_AHEAD", 1)  # scores count within these steps
    options = {**tiny_training, "rule": rule, "granularity": granularity, "sharing": sharing, "snapshot_every": 2}
    options |= {"steps": 7, "score_fraction": 0.5, "candidates_per_shared": 2}
    about = read_checkpoint(train(QTOptConfig(out=str(tmp_path / "run"), **options)))["switchyard"]
    banana, bowl = (TASKS[name].index for name in tiny_training["tasks"])
    weights = about["sharing"]["weights"]
    assert weights[banana][banana] == pytest.approx(1.0)
    if RULES[rule].sources(SKILLS)[banana, bowl]:
        assert 0 <= weights[banana][bowl] <= 1
        assert 0 <= about["sharing"]["shared"][banana] <= 0.5
    else:
        assert weights[banana][bowl] is None
    assert about["sharing"]["rule"] == rule
    assert sum(about["sharing"]["steps"]) == Replay(tiny_training["data"]).num_steps


@pytest.mark.parametrize("rule", ["cds", "cds-basic", "hipi"])
def test_the_network_learns_from_the_candidates_that_were_chosen(tiny_training, tmp_path, rule):
    options = {**tiny_training, "rule": rule, "granularity": "transition", "candidates_per_shared": 3, "workers": 1}
    seen = []

    class Watched(QTOpt):
        def _choose(self, batch):
            chosen, weight = super()._choose(batch)
            assert (weight == 1).all()
            seen.append((len(batch), len(chosen), int(batch.is_shared.sum())))
            assert chosen.task_index.tolist() == sorted(chosen.task_index.tolist())
            return chosen, weight

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LEARNERS, "qtopt", Watched)
        train(QTOptConfig(out=str(tmp_path / "run"), **options))
    per_task = QTOptConfig(**options).per_task
    shared = 2 * round(per_task / 2)
    assert set(seen) == {(2 * per_task + 3 * shared, 2 * per_task, 3 * shared)}


def test_an_episode_is_scored_by_the_acting_network_for_every_trained_task(tiny_training):
    config = QTOptConfig(**{**tiny_training, "score_fraction": 0.5})
    replay = Replay(config.data)
    module = QTOpt(config, replay)
    tasks = tuple(TASKS[name].index for name in config.tasks)
    mix = SamplerConfig(per_task=config.per_task, by_episode=True, scored=config.scored_steps)
    stream = BatchStream(Sampler(replay, tasks, RULES[config.rule], mix), 0, episodes=module.router.episodes)
    batch = next(iter(stream))
    module.training_step(batch, 0)
    image = crop(batch.score_image, config.image_size)
    visits = module.router.episodes.scores.visits[0, 0]
    for task in range(len(TASK_NAMES)):
        found = visits[task, batch.score_episode]
        if task not in tasks:
            assert found.isnan().all()
            continue
        with torch.no_grad():
            index = torch.full((len(image),), task)
            q = module.target(image, batch.score_gripper, batch.score_action, index).sigmoid()
        assert torch.allclose(found, q, atol=1e-5)


@pytest.mark.parametrize("over", REFERENCE_OVER)
def test_the_reference_is_over_batches_or_over_data(tiny_training, over):
    config = QTOptConfig(**{**tiny_training, "reference": "mean", "reference_over": over, "success_fraction": 0.25})
    replay = Replay(config.data)
    module = QTOpt(config, replay)
    score = torch.rand(1, len(TASK_NAMES), replay.num_episodes, generator=torch.Generator().manual_seed(0))
    module.router.episodes.scores.versions[1] = score
    task = TASKS["lift-banana"].index
    own, success = replay.episode_task == task, replay.success[:, task]
    weight = replay.episode_length.astype(float)
    if over == "batches":
        steps = [weight[own & (success == won)].sum() for won in (False, True)]
        if min(steps):
            weight *= np.where(success, 0.25 / steps[1], 0.75 / steps[0])
    expected = (weight * score[0, task].numpy())[own].sum() / weight[own].sum()
    assert module.router.reference()[0, task].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("cloned", "expected"),
    [("effective", [1, 1, 1, 1]), ("successes", [1, 0, 1, 1]), ("accepted", [1, 0, 1, 0])],
)
def test_the_behaviour_policy_clones_the_steps_that_are_asked_for(cloned, expected):
    """An own success, an own failure, a shared success, a shared failure."""
    rows = types.SimpleNamespace(
        success=torch.tensor([1.0, 0, 1, 0]),
        task_index=torch.tensor([3, 3, 3, 3]),
        source_task_index=torch.tensor([3, 3, 5, 5]),
    )
    assert cloned_weight(cloned, rows).tolist() == expected
    assert cloned_weight(cloned, rows, chosen=False).tolist() == [*expected[:2], 0, 0]
    assert set(CLONED_WEIGHT) == set(CLONED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cloned": "accept"}, "Did you mean 'accepted'"),
        ({"learner": "bc", "rule": "cds"}, "rule cds weighs by Q-values, and learner bc learns none: try --rule none"),
        ({"balance_shared": True}, "balance_shared and sharing sample by rule cds-hard both choose what is shared"),
        ({"score_fraction": 0.0}, "granularity episode scores episodes beside the batches: score_fraction is above 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tiny_training, options, message):
    with pytest.raises(ValueError, match=message):
        QTOptConfig(**{**tiny_training, **options})


BY_WEIGHT = {"sharing": "weight", "granularity": "transition"}


def test_the_heuristic_shares_nothing_before_its_first_snapshot_and_by_the_snapshot_after_it(tiny_training):
    config = QTOptConfig(
        **{**tiny_training, "rule": "heuristic", "snapshot_every": 2, "percentile": 100.0, **BY_WEIGHT}
    )
    torch.manual_seed(0)
    module, batch = Step(config), batch_of(config)
    optimizer = module.configure_optimizers()["optimizer"]
    seen = []
    real = module._route
    module._route = lambda *given: seen.append(real(*given)) or seen[-1]
    for _ in range(3):
        module.update(batch, optimizer)
    assert (seen[1][batch.is_shared] == 0).all()
    assert (seen[2][batch.is_shared] > 0).any()  # above the least of the own ones
    assert (seen[2][~batch.is_shared] == 1).all()


def test_behaviour_cloning_trains_no_q_and_acts_by_its_mean_and_most_probable_command(tiny_training, tmp_path, observe):
    options = {**tiny_training, "learner": "bc", "rule": "none", "landmark_weight": 1.0}
    path = train(QTOptConfig(out=str(tmp_path / "bc"), **options))
    first = train(QTOptConfig(out=str(tmp_path / "first"), **{**options, "steps": 1}))
    one, four = (read_checkpoint(each)["state_dict"] for each in (first, path))
    learned = {name for name in one if name.startswith("network.") and not torch.equal(one[name], four[name])}
    assert any("policy" in name for name in learned)
    assert not any("head" in name for name in learned)
    policy = CEMPolicy.load(path)
    observation = observe(np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), dtype=np.uint8))
    actions = [policy.act(observation, np.array([0, 7]), np.random.default_rng(seed)) for seed in (0, 1)]
    assert np.array_equal(*actions)
    image = crop(torch.from_numpy(observation["image"]).permute(0, 3, 1, 2), 48)
    gripper = torch.tensor([[0.0, 0.2]] * 2)
    with torch.no_grad():
        features = policy.network.encode(image, gripper)
        mean, command = policy.network.behaviour_policy(features, gripper, torch.tensor([0, 7]))
    assert np.allclose(actions[0][:, :4], mean.clamp(-1, 1) * bounds(torch.device("cpu")))
    assert np.array_equal(actions[0][:, 4], command.argmax(-1))


@pytest.mark.parametrize("landmark_weight", [0.0, 1.0])
def test_behaviour_cloning_leaves_no_trained_parameter_without_a_gradient(tiny_training, landmark_weight):
    """Several processes would wait for it."""
    config = QTOptConfig(**{**tiny_training, "learner": "bc", "rule": "none", "landmark_weight": landmark_weight})
    module = BehaviourCloning(config)
    module.training_step(batch_of(config), 0).backward()
    assert all((p.grad is not None) == p.requires_grad for p in module.network.parameters())


@pytest.mark.parametrize(("successes", "learner"), [((), "bc"), ((), "qtopt"), (("lift-banana",), "bc")])
def test_behaviour_cloning_needs_a_success(
    tiny_training, tmp_path, make_episode, write_dataset, capsys, successes, learner
):
    episodes = [make_episode(task, 2, successes, number=n, side=48) for n, task in enumerate(tiny_training["tasks"])]
    folder = write_dataset(tmp_path / "set", [episodes], side=48)
    options = {**tiny_training, "data": str(folder), "learner": learner, "rule": "none", "out": str(tmp_path / "run")}
    if learner == "bc" and not successes:
        with pytest.raises(
            ValueError, match=f"{folder}: holds no success of lift-banana, place-bowl: .*nothing to clone"
        ):
            train(QTOptConfig(**options))
    else:
        train(QTOptConfig(**options))
        without = "place-bowl" if successes else "lift-banana, place-bowl"
        assert f"{folder}: holds no success of {without} to clone" in capsys.readouterr().out


def photometric(image, seed):
    return Augmentation.draw(image, 8, seed, False, True).apply((255 * image).byte(), 8)


def test_the_crop_of_an_image_says_nothing_of_its_colours():
    frames = torch.zeros(4, 3, 72, 72, dtype=torch.uint8)
    drawn = [Augmentation.draw(frames, 64, seed, True, True) for seed in range(300)]
    numbers = torch.stack([torch.cat([each.corner.float(), each.factors], 1) for each in drawn]).flatten(1)
    assert torch.corrcoef(numbers.T).fill_diagonal_(0).abs().max() < 0.25


def test_photometric_augmentation_depends_on_the_seed_alone_and_differs_between_images():
    image = torch.rand(1, 3, 8, 8).expand(16, -1, -1, -1)
    torch.manual_seed(5)
    first = photometric(image, 3)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(first, photometric(image, 3))
    assert not torch.equal(first, photometric(image, 4))
    assert len({image.numpy().tobytes() for image in first}) == 16
    assert 0 <= first.min() <= first.max() <= 1
    assert 0.02 < (first - image).abs().mean() < 0.5


def test_photometric_augmentation_is_as_exact_in_bfloat16_training():
    image = torch.rand(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = photometric(image, 3)
    assert torch.equal(mixed, photometric(image, 3))


NOTHING = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}


def changed_colours(image, **factors):
    return change_colours(image, *(torch.full((len(image),), value) for value in (NOTHING | factors).values()))


def test_colour_changes_have_the_values_worked_out_by_hand():
    def pixel(colour, **factors):
        return changed_colours(torch.tensor(colour).view(1, 3, 1, 1), **factors).flatten().tolist()

    assert pixel([0.2, 0.4, 0.6]) == pytest.approx([0.2, 0.4, 0.6])
    assert pixel([0.2, 0.4, 0.6], brightness=0.5) == pytest.approx([0.1, 0.2, 0.3])
    assert pixel([0.2, 0.4, 0.9], brightness=2.0) == pytest.approx([0.4, 0.8, 1.0])  # clipped
    assert pixel([1.0, 0.0, 0.0], saturation=0.0) == pytest.approx([0.299] * 3)
    assert pixel([1.0, 0.0, 0.0], saturation=0.5) == pytest.approx([0.6495, 0.1495, 0.1495])
    assert pixel([0.9, 0.2, 0.1], hue=1 / 3) == pytest.approx([0.1, 0.9, 0.2])  # red becomes green
    assert pixel([0.5, 0.5, 0.5], hue=0.2, saturation=1.5) == pytest.approx([0.5] * 3)
    two = torch.tensor([0.2, 0.6]).view(1, 1, 1, 2).expand(1, 3, 1, 2)  # a mean luma of 0.4
    assert changed_colours(two, contrast=0.5)[0, 0].flatten().tolist() == pytest.approx([0.3, 0.5])
    assert changed_colours(two, contrast=0.5, brightness=0.5)[0, 0].flatten().tolist() == pytest.approx([0.15, 0.25])


@pytest.mark.parametrize(
    ("name", "factor", "reference"),
    [
        ("brightness", 0.9, adjust_brightness),
        ("contrast", 0.6, adjust_contrast),
        ("contrast", 1.4, adjust_contrast),
        ("saturation", 0.6, adjust_saturation),
        ("saturation", 1.4, adjust_saturation),
        ("hue", 1 / 3, adjust_hue),
    ],
)
def test_colour_changes_are_torchvisions(name, factor, reference):
    image = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    image = image.contiguous(memory_format=torch.channels_last)
    assert changed_colours(image, **{name: factor}) == pytest.approx(reference(image, factor), abs=2e-4)


def test_each_step_moves_the_target_towards_the_network_and_the_lagged_target_copies_it(tiny_training, tmp_path):
    options = {**tiny_training, "out": str(tmp_path / "run"), "target_update_rate": 0.25, "lagged_target_steps": 2}
    one = read_checkpoint(train(QTOptConfig(**{**options, "steps": 1})))["state_dict"]
    two = read_checkpoint(train(QTOptConfig(**{**options, "steps": 2})))["state_dict"]
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


def test_a_policy_acts_with_the_averaged_weights(tiny_checkpoint):
    acting, stored = (
        CEMPolicy.load(tiny_checkpoint).network.state_dict(),
        read_checkpoint(tiny_checkpoint)["state_dict"],
    )
    assert all(torch.equal(value, stored[f"target.{key}"]) for key, value in acting.items())
    assert not all(torch.equal(value, stored[f"network.{key}"]) for key, value in acting.items())
