"""A run that goes on is the run that was not stopped; another one is refused."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data import codec
from data.collect import collect
from data.locks import lock_file
from data.manifest import merge
from data.plan import CollectConfig
from data.replay import Replay
from eval.curves import read_curves
from models.checkpoint import CheckpointError
from models.image_checkpoint import read_checkpoint
from sim.files import DatasetError
from sim.options import from_options
from sim.tasks import TASK_NAMES
from train.precision import resolve_precision
from train.qtopt import QTOpt
from train.qtopt_config import PRESETS, QTOptConfig
from train.qtopt_run import train

ROOT = Path(__file__).parents[1]


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


def changes(old, new):
    """Names of the tensors that differ; a score that is not known yet is NaN in both."""
    return [key for key in old if not torch.allclose(old[key], new[key], rtol=0, atol=0, equal_nan=True)]


@pytest.mark.parametrize(
    "sharing",
    [
        {"rule": "none"},
        {"rule": "cds", "weigh_own_probability": 0.5, "sharing": "weight"},
        {"rule": "cds-hard", "granularity": "transition"},
        {"rule": "heuristic", "snapshot_every": 1, "sharing": "weight", "granularity": "transition"},
        {"rule": "hipi"},
    ],
)
def test_two_steps_and_two_more_equal_four_straight(tiny_training, tmp_path, sharing):
    options = {**tiny_training, **sharing, "landmark_weight": 1.0, "photometric": True, "n_step": 2}
    straight = train(QTOptConfig(out=str(tmp_path / "straight"), **options))
    train(QTOptConfig(out=str(tmp_path / "resumed"), **{**options, "steps": 2}))
    halfway = weights(tmp_path / "resumed" / "last.ckpt")
    resumed = train(QTOptConfig(out=str(tmp_path / "resumed"), **options))
    first, second = read_checkpoint(straight), read_checkpoint(resumed)
    assert first["switchyard"]["steps"] == second["switchyard"]["steps"] == 4
    assert [step for step, _ in second["switchyard"]["sharing"]["history"]] == [1, 2, 3, 4]
    assert first["switchyard"]["sharing"] == second["switchyard"]["sharing"]
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


def train_until_stopped(options, number, cwd=ROOT, **variables):
    """Runs the training command and stops it by a signal after its first checkpoint; (last step saved, its output)."""
    last = Path(options["out"]) / "last.ckpt"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    running = subprocess.Popen(
        command(options),
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not last.is_file() and running.poll() is None:
        time.sleep(0.02)
    if options["workers"]:
        os.killpg(running.pid, number)  # to all processes of the job, as batch queues do
    else:
        running.send_signal(number)
    output = running.communicate(timeout=60)[0]
    assert running.returncode == (-number if number == signal.SIGKILL else 128 + number), output
    assert last.is_file(), output
    return read_checkpoint(last)["switchyard"]["steps"], output


@pytest.fixture
def demo_training(tiny_training):
    """The demo's options, with a learning rate that falls over the run, in 60 steps."""
    return {**tiny_training, "steps": 60, "checkpoint_every": 5, "lr_decay": True, "landmark_weight": 1.0}


def losses(folder):
    return read_curves(folder / "log")["train/loss"]


def test_a_killed_run_goes_on_to_the_losses_and_the_weights_of_one_that_was_not(demo_training, tmp_path):
    options = {**demo_training, "out": str(tmp_path / "killed"), "random_crop": True, "photometric": True}
    saved, _ = train_until_stopped(options, signal.SIGKILL)
    assert 5 <= saved < 60
    config = from_options(QTOptConfig, options, **vars(PRESETS["demo"]))
    killed, whole = (train(dataclasses.replace(config, out=str(tmp_path / name))) for name in ("killed", "whole"))
    assert np.array_equal(losses(tmp_path / "killed")[-(60 - saved) :], losses(tmp_path / "whole")[saved:])
    assert changes(weights(whole), weights(killed)) == []
    assert equal(read_checkpoint(whole)["optimizer_states"], read_checkpoint(killed)["optimizer_states"])


SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
SLURM |= {"SLURM_JOB_NAME": "sweep", "SLURM_NODELIST": "node1"}


@pytest.mark.parametrize(
    ("number", "workers", "variables"), [(signal.SIGINT, 0, {}), (signal.SIGTERM, 2, SLURM), (signal.SIGUSR1, 1, SLURM)]
)
def test_an_interrupted_run_saves_where_it_is_and_goes_on(demo_training, tmp_path, number, workers, variables):
    options = {**demo_training, "steps": 5000, "lr_decay": False, "out": str(tmp_path / "run")}
    options["workers"] = workers
    (tmp_path / "working").mkdir()
    step, output = train_until_stopped(options, number, tmp_path / "working", **variables)
    assert not any((tmp_path / "working").iterdir())
    assert 5 <= step < 5000
    assert f"last.ckpt holds step {step}; the same command goes on from there" in output
    assert "Traceback" not in output
    path = train(from_options(QTOptConfig, {**options, "steps": step + 3}, **vars(PRESETS["demo"])))
    again = {**options, "steps": step + 3, "out": str(tmp_path / "straight")}
    straight = train(from_options(QTOptConfig, again, **vars(PRESETS["demo"])))
    assert read_checkpoint(path)["switchyard"]["steps"] == step + 3
    assert changes(weights(straight), weights(path)) == []


def test_two_processes_end_after_the_same_step_where_one_is_interrupted(demo_training, tmp_path):
    options = {**demo_training, "steps": 5000, "lr_decay": False, "devices": 2, "log_every": 10}
    step, output = train_until_stopped({**options, "out": str(tmp_path / "run")}, signal.SIGINT)
    assert output.count(f"last.ckpt holds step {step}; the same command goes on from there") == 1
    assert "Traceback" not in output
    assert step < 5000
    assert step % 10 == 0


def test_a_folder_is_trained_in_by_one(run, tiny_training):
    with (
        lock_file(run / "train.lock", ""),
        pytest.raises(DatasetError, match="another training is at work in this folder"),
    ):
        train(QTOptConfig(out=str(run), **{**tiny_training, "steps": 6}))


def test_a_run_keeps_the_precision_it_began_with(tiny_training, tmp_path, monkeypatch):
    options = {**tiny_training, "out": str(tmp_path / "run"), "precision": "auto"}
    for steps, found in ((1, "32-true"), (2, "bf16-mixed")):
        monkeypatch.setattr("train.precision._auto_precision", lambda on_gpu, found=found: found)
        about = read_checkpoint(train(QTOptConfig(**{**options, "steps": steps})))["switchyard"]
        assert about["precision"] == "32-true"


@pytest.mark.parametrize(("units", "precision"), [({"avx512_bf16": True}, "bf16-mixed"), ({"neon": True}, "32-true")])
def test_precision_is_that_of_the_hardware(units, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert resolve_precision("auto", on_gpu=False) == precision
    assert resolve_precision("32-true", on_gpu=False) == "32-true"


def test_a_run_is_bound_to_what_its_dataset_holds_and_not_to_where_it_lies(
    run, tiny_dataset, tiny_training, tiny_collection, tmp_path
):
    folder = tmp_path / "moved"
    shutil.copytree(tiny_dataset, folder)
    for steps, data in ((5, f"{folder}/"), (6, str(folder))):
        train(QTOptConfig(out=str(run), **{**tiny_training, "data": data, "steps": steps}))
    other = tmp_path / "other"
    collect(CollectConfig(out=str(other), **{**tiny_collection, "seed": 4}))
    with pytest.raises(
        CheckpointError, match=rf"learned from other data than {other} holds: 6 of its 6 episodes are not"
    ):
        train(QTOptConfig(out=str(run), **{**tiny_training, "data": str(other), "steps": 7}))


def test_batches_drawn_by_scores_go_on_after_a_stop(tiny_training, tmp_path, monkeypatch):
    """A version of the scores is finished every other step, and counts from the ninth step after that."""
    monkeypatch.setattr("train.image_router.DRAWN_AHEAD", 8)
    options = {**tiny_training, "rule": "cds-hard", "steps": 24, "score_fraction": 0.5, "checkpoint_every": 100}
    options |= {"workers": 2, "percentile": 100.0}  # whatever reaches the least of the own ones
    straight = read_checkpoint(train(QTOptConfig(out=str(tmp_path / "straight"), **options)))
    for steps in (11, 17, 24):
        path = train(QTOptConfig(out=str(tmp_path / "resumed"), **{**options, "steps": steps}))
    resumed = read_checkpoint(path)["state_dict"]
    assert changes(straight["state_dict"], resumed) == []
    assert max(share or 0 for share in straight["switchyard"]["sharing"]["shared"]) > 0.2
    alone = read_checkpoint(train(QTOptConfig(out=str(tmp_path / "none"), **{**options, "rule": "none"})))
    assert changes(
        {key: value for key, value in alone["state_dict"].items() if key.startswith("network")}, straight["state_dict"]
    )


@pytest.mark.parametrize("granularity", ["transition", "episode"])
def test_a_dataset_that_has_grown_is_said_and_scores_of_episodes_stay_with_them(
    tiny_training, tiny_dataset, tiny_collection, tmp_path, capsys, granularity
):
    folder = tmp_path / "growing"
    shutil.copytree(tiny_dataset, folder)
    options = {**tiny_training, "data": str(folder), "out": str(tmp_path / "run"), "granularity": granularity}
    before = read_checkpoint(train(QTOptConfig(**options)))
    collect(CollectConfig(out=str(folder), **{**tiny_collection, "episodes": 10}))
    capsys.readouterr()
    module = QTOpt(QTOptConfig(**{**options, "steps": 5}), Replay(folder))
    module.on_load_checkpoint(before)
    if granularity == "episode":
        key = "router.episodes.scores.visits"
        known, after = read_checkpoint(tmp_path / "run" / "last.ckpt"), before["state_dict"][key]
        assert after.shape[-1] == 10
        scores = dict(zip(known["episodes"].tolist(), known["state_dict"][key].unbind(-1), strict=True))
        for name, score in zip(Replay(folder).episode_key.tolist(), after.unbind(-1), strict=True):
            expected = scores.get(name, torch.full_like(score, torch.nan))
            assert torch.equal(score.nan_to_num(-1), expected.nan_to_num(-1))
        assert after.isfinite().any()
        assert module.router.episodes.scores.schedule.start == 4  # a pass over all ten begins
    train(QTOptConfig(**{**options, "steps": 5}))
    assert f"{folder}: has grown from 6 to 10 episodes" in capsys.readouterr().out


def test_a_task_that_is_new_in_a_grown_dataset_is_said_and_left_alone(
    tiny_training, tiny_dataset, tiny_collection, tmp_path, capsys
):
    other = tmp_path / "other"
    collect(CollectConfig(out=str(other), **{**tiny_collection, "tasks": ("lift-can",), "episodes": 2}))
    merge(tmp_path / "all", [tiny_dataset])
    options = {**tiny_training, "tasks": TASK_NAMES, "batch_size": 20, "data": str(tmp_path / "all"), "steps": 1}
    train(QTOptConfig(out=str(tmp_path / "run"), **options))
    merge(tmp_path / "all", [tiny_dataset, other], replace_manifest=True)
    capsys.readouterr()
    path = train(QTOptConfig(out=str(tmp_path / "run"), **{**options, "steps": 2}))
    assert f"holds lift-can too, which the run in {tmp_path / 'run'} does not learn" in capsys.readouterr().out
    assert read_checkpoint(path)["switchyard"]["trained_tasks"] == list(tiny_training["tasks"])


def test_a_run_whose_last_checkpoint_is_not_finite_does_not_go_on(run, tiny_training):
    checkpoint = read_checkpoint(run / "last.ckpt")
    checkpoint["state_dict"]["network.task_attention"][0] = torch.nan
    torch.save(checkpoint, run / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: its training diverged: weight task_attention is NaN"):
        train(QTOptConfig(out=str(run), **{**tiny_training, "steps": 6}))


def test_tensorboard_shows_no_step_twice_after_a_kill(demo_training, tmp_path):
    """Values of a step follow its checkpoint, and a kill may come between the two."""
    options = {
        **demo_training,
        "out": str(tmp_path / "run"),
        "checkpoint_every": 20,
        "rule": "cds",
        "q_maps_every": 10,
    }
    saved, _ = train_until_stopped(options, signal.SIGKILL)
    train(from_options(QTOptConfig, options, **vars(PRESETS["demo"])))
    board = EventAccumulator(str(tmp_path / "run" / "log"), size_guidance={"images": 0})
    board.Reload()
    for shown, every in ((board.Scalars("train/loss"), 1), (board.Images("routing/weights"), 10)):
        steps = [event.step for event in shown]
        assert steps in ([k for k in range(every, 61, every) if k != lost] for lost in (None, saved))
    assert saved % 20 == 0


def test_options_that_never_trained_bind_nobody(tiny_training, tmp_path):
    with pytest.raises(ValueError, match="no episode of task lift-can"):
        train(QTOptConfig(out=str(tmp_path / "run"), **{**tiny_training, "tasks": ("lift-banana", "lift-can")}))
    assert train(QTOptConfig(out=str(tmp_path / "run"), **{**tiny_training, "steps": 1})).is_file()


def test_another_number_of_steps_is_refused_where_the_learning_rate_falls_over_them(tiny_training, tmp_path):
    options = {**tiny_training, "out": str(tmp_path / "run"), "lr_decay": True}
    train(QTOptConfig(**{**options, "steps": 1}))
    with pytest.raises(
        CheckpointError, match="falls over 1 steps, not 4; to train on, choose another --out with --start-from"
    ):
        train(QTOptConfig(**options))


def test_the_loader_processes_do_not_change_the_weights(tiny_checkpoint, tiny_training, tmp_path):
    path = train(QTOptConfig(out=str(tmp_path / "run"), **{**tiny_training, "workers": 2}))
    assert changes(weights(tiny_checkpoint), weights(path)) == []


def test_equal_runs_in_two_folders_write_equal_bytes(tiny_checkpoint, tiny_training, tmp_path):
    """Collection records a checkpoint by its SHA-256."""
    path = train(QTOptConfig(out=str(tmp_path / "run"), **tiny_training))
    assert path.read_bytes() == tiny_checkpoint.read_bytes()


def test_another_seed_trains_other_weights(tiny_checkpoint, tiny_training, tmp_path):
    path = train(QTOptConfig(out=str(tmp_path / "run"), **tiny_training, seed=1))
    assert changes(weights(tiny_checkpoint), weights(path))


def test_qtopts_network_trains_and_resumes_too(tiny_training, tmp_path, make_episode, write_dataset):
    """Two steps of the 472 network's plan at its cheapest size, on hand-made frames."""
    episodes = [make_episode(task, 2, (task,)) for task in tiny_training["tasks"]]
    rng = np.random.default_rng(0)
    for episode in episodes:
        frames = rng.integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
        object.__setattr__(episode, "frames", tuple(codec.encode(frame, quality=90) for frame in frames))
    folder = write_dataset(tmp_path / "set", [episodes], side=224)
    options = {
        **tiny_training,
        "data": str(folder),
        "image_size": 224,
        "batch_size": 4,
        "behaviour_policy": False,
        "steps": 2,
    }
    straight = train(QTOptConfig(out=str(tmp_path / "straight"), **options))
    train(QTOptConfig(out=str(tmp_path / "resumed"), **{**options, "steps": 1}))
    resumed = train(QTOptConfig(out=str(tmp_path / "resumed"), **options))
    assert changes(weights(straight), weights(resumed)) == []


def test_a_finished_run_is_left_as_it_is(run, tiny_training, capsys):
    before = (run / "last.ckpt").read_bytes()
    assert train(QTOptConfig(out=str(run), **tiny_training)) == run / "last.ckpt"
    assert "already trained for 4 steps" in capsys.readouterr().out
    assert (run / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("other", [{"lr": 0.5}, {"rule": "all"}, {"seed": 3}, {"behaviour_policy": False}])
def test_a_run_with_other_options_is_refused(run, tiny_training, other):
    with pytest.raises(CheckpointError, match=f"{run}: already holds a run with other options: {next(iter(other))} "):
        train(QTOptConfig(out=str(run), **{**tiny_training, **other}))


def test_a_folder_that_holds_something_else_is_refused(tiny_training, tmp_path):
    (tmp_path / "thesis.tex").write_text("hello")
    with pytest.raises(CheckpointError, match="not empty and not a Switchyard run"):
        train(QTOptConfig(out=str(tmp_path), **tiny_training))
