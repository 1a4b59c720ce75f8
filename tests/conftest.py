"""Shared fixtures: hand-made datasets, an environment without randomisation, a tiny dataset and a tiny checkpoint.

On a machine that only trains, tests that need more than torch, torchvision, lightning, numpy and h5py are skipped, by
the name of what is missing."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from data import codec
from data.manifest import Manifest, write_manifest
from data.shards import Episode, write_shard
from data.transitions import TransitionDataset, tables
from sim.actions import TERMINATE
from sim.benchmarks.table import BENCHMARKS
from sim.state import STATE_SIZE, SceneState
from sim.tasks import TASK_NAMES, TASKS, detect_successes
from train.state_run import ALGORITHMS

# Tests are of the CPU, whose results are the same everywhere; `make bench-gpu` compares a GPU's captured steps.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# Read when torch is first imported, which is later, and by every process that a test starts: networks this small run
# slower on several threads, and much slower where these have to share the cores with other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

OPTIONAL = ("pybullet", "pybullet_data", "gymnasium", "mujoco", "moderngl", "trimesh", "simplejpeg", "zstandard")
_MISSING = re.compile(rf"ModuleNotFoundError: No module named '({'|'.join(OPTIONAL)})\b")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.failed and (found := _MISSING.search(str(report.longrepr))):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: needs {found[1]}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and (found := _MISSING.search(str(report.longrepr))):
        report.outcome, report.longrepr = "skipped", (str(item.path), item.location[1], f"Skipped: needs {found[1]}")
    return report


TINY_TASKS = ("lift-banana", "place-bowl")


def _final_state(accepted):
    """A state in which exactly the `accepted` tasks succeed. A placed object is the carrot."""
    state = SceneState.empty()
    for name in accepted:
        target = TASKS[name].target
        if TASKS[name].skill == "lift":
            state["object_present"][target] = 1
            state["object_on_finger"][target] = 1
            state["gripper_closed"][...], state["finger_width"][...] = 1, 0.03
            state["object_bottom"][target] = 0.10
        else:
            state["object_present"][6] = 1
            state["object_on_fixture"][6, target] = 1
            state["fixture_present"][target] = 1
    assert {TASK_NAMES[i] for i in np.flatnonzero(detect_successes(state))} == set(accepted)
    return state


def _make_episode(task="lift-banana", steps=2, accepted=(), levels=None, rng=None, number=0, side=16):
    """An episode of grey frames, one level each, whose last state succeeds at the `accepted` tasks."""
    rng = rng or np.random.default_rng(0)
    levels = list(range(0, 20 * (steps + 1), 20)) if levels is None else levels
    state = np.stack([SceneState.empty().vector] * steps + [_final_state(accepted).vector])
    SceneState(state)["gripper_position"][:, 2] = rng.uniform(0.02, 0.3, steps + 1)
    SceneState(state)["gripper_closed"][:-1] = rng.integers(0, 2, steps)
    action = rng.uniform(-0.05, 0.05, (steps, 5)).astype(np.float32)
    action[:, 4] = [0] * (steps - 1) + [TERMINATE]
    return Episode(
        task_index=TASKS[task].index,
        number=number,
        terminated=True,
        noise=0.5,
        action=action,
        state=state,
        verdict=detect_successes(SceneState(state)),
        frames=tuple(codec.encode(np.full((side, side, 3), level, np.uint8)) for level in levels),
    )


ATTRIBUTES = {"policy": "scripted", "renderer": "tiny", "seed": 0, "source": 0, "checkpoint_sha256": ""}
ATTRIBUTES |= {"randomise": "none", "split": "train"}


def _write_dataset(folder, shards, side=16):
    """Write shards, each a list of episodes with frames of `side` px, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    attributes = {**ATTRIBUTES, "size": side}
    entries = [write_shard(folder / f"shard-{n:05d}.h5", episodes, attributes) for n, episodes in enumerate(shards)]
    metadata = {"size": side, "frame_size": side, "renderer": "tiny", "randomise": (), "split": "train"}
    write_manifest(folder, Manifest(**metadata, shards=tuple(entries)))
    return folder


@pytest.fixture(scope="module")
def still_env():
    """An environment without randomisation: no noise, no delay."""
    from sim.env import PickPlaceEnv

    env = PickPlaceEnv(image_size=48, renderer="tiny", randomise="none")
    yield env
    env.close()


@pytest.fixture(scope="session")
def observe():
    """Makes the observation of a policy from frames [B, H, H, 3], with an open gripper at 20 cm."""
    from sim.policies import Observation

    return lambda frames: Observation(
        image=frames,
        gripper_closed=np.zeros(len(frames), np.float32),
        gripper_height=np.full(len(frames), 0.2, np.float32),
        state=np.zeros((len(frames), STATE_SIZE), np.float32),
    )


@pytest.fixture(scope="session")
def make_episode():
    return _make_episode


@pytest.fixture(scope="session")
def write_dataset():
    return _write_dataset


@pytest.fixture(scope="session")
def tiny_collection():
    """Options of the tiny dataset, without `out`."""
    return {
        "episodes": 6,
        "size": 48,
        "workers": 2,
        "tasks": TINY_TASKS,
        "renderer": "tiny",
        "episodes_per_shard": 2,
        "seed": 3,
    }


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory, tiny_collection):
    """Six episodes of two tasks in three shards, collected by two workers. Read it or copy it, never change it."""
    from data.collect import collect
    from data.plan import CollectConfig

    folder = tmp_path_factory.mktemp("datasets") / "tiny"
    collect(CollectConfig(out=str(folder), **tiny_collection))
    return folder


@pytest.fixture(scope="session")
def tiny_training(tiny_dataset):
    """Options of a training run of seconds, without `out`."""
    return {
        "data": str(tiny_dataset),
        "image_size": 48,
        "tasks": TINY_TASKS,
        "steps": 4,
        "batch_size": 8,
        "lr": 1e-3,
        "target_update_rate": 0.1,
        "lagged_target_steps": 3,
        "num_unseen_actions": 4,
        "nearby_fraction": 0.5,
        "behaviour_policy": True,
        "cem_samples": 8,
        "cem_elites": 3,
        "workers": 0,
        "precision": "32-true",
        "checkpoint_every": 1,
        "log_every": 1,
    }


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, tiny_training):
    """The checkpoint of an uninterrupted run of four steps. Read it or copy it, never change it."""
    from train.qtopt_config import QTOptConfig
    from train.qtopt_run import train

    return train(QTOptConfig(out=str(tmp_path_factory.mktemp("runs") / "tiny"), **tiny_training))


@pytest.fixture
def run(tiny_checkpoint, tmp_path):
    """A copy of the finished tiny run (four steps), to be resumed or damaged."""
    folder = tmp_path / "run"
    shutil.copytree(Path(tiny_checkpoint).parent, folder)
    return folder


SMALL_STATE_RUN = {
    "per_task": 8,
    "hidden_sizes": (16, 16),
    "num_sampled_actions": 3,
    "steps": 4,
    "updates_per_step": 2,
    "log_every": 2,
    "episodes": 1,
    "workers": 1,
    "divergence_steps": 3,
}


def small_state_config(algorithm, **options):
    """The configuration of an algorithm on states: of SMALL_STATE_RUN what it has, and `options`."""
    kind = ALGORITHMS[algorithm].config
    known = {key: value for key, value in SMALL_STATE_RUN.items() if key in kind.__dataclass_fields__}
    return kind(**{**known, **options})


@pytest.fixture(scope="session")
def transitions():
    """Steps that go nowhere, half of which end their episode by a fall; an action pays off by its first number, forward
    and backward."""
    rng = np.random.default_rng(0)
    count = 2400
    action = rng.uniform(-1, 1, (count, 6)).astype(np.float32)
    columns = {
        "observation": rng.normal(size=(count, 17)),
        "action": action,
        "next_observation": rng.normal(size=(count, 17)),
        "quantity/x_velocity_m_s": action[:, 0],
        "quantity/height_above_start_m": np.zeros(count),
        "terminated": np.arange(count) % 2,
        "episode_end": np.ones(count),
        "task": np.arange(count) // 800,
    }
    typed = {name: np.asarray(columns[name], kind) for name, (kind, _) in tables(BENCHMARKS["walker2d"]).items()}
    return TransitionDataset(benchmark=BENCHMARKS["walker2d"], columns=typed, metadata={})
