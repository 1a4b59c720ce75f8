"""Episodes of state benchmarks by policies: in parts, in any number of processes, killed and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data import state_collection
from data.mixtures import CollectStateConfig, make
from data.state_collection import Behaviour, EpisodeSource, collect_parts
from data.transitions import read_transitions
from eval.behaviour import behaviour_of, load_behaviour
from eval.returns import evaluate_behaviour
from models.checkpoint import CheckpointError
from models.conditioning import Normaliser, OneHotTask
from models.policy_files import Member, PolicyFile, pack_policies
from models.state_policies import StatePolicy, TanhGaussianPolicy
from sim.benchmarks.table import BENCHMARKS
from sim.files import DatasetError
from tests.line import LINE, LineEnv
from train.cql import CQLConfig

ROOT = Path(__file__).parents[1]
POINT = ("goal-0=controller:3000:0.2", "goal-2=controller:9500:0.2")


class FallingEnv(LineEnv):
    """The body falls at place 0."""

    def step(self, action):
        return super().step(action)._replace(terminated=self.place == 0)


def line_source(monkeypatch, steps, env=FallingEnv, **options):
    monkeypatch.setitem(BENCHMARKS, "line", replace(LINE, make_env=env))
    behaviour = Behaviour(benchmark="line", task="right", file="policy.pt", content=None, noise=0.0)
    return EpisodeSource(
        behaviour=behaviour, steps=steps, **{"without_falls": False, "seed_numbers": (0, 1), **options}
    )


def load_random(behaviour):
    return lambda observation, rng: rng.uniform(-0.5, 1, (len(observation), 1)).astype(np.float32), {}


def load_left(behaviour):
    return lambda observation, rng: np.full((len(observation), 1), -1.0, np.float32), {}


def test_episodes_that_end_in_a_fall_are_left_out_where_a_source_says_so(monkeypatch, tmp_path):
    for name in ("every", "upright"):
        source = line_source(monkeypatch, 60, without_falls=name == "upright")
        (columns,) = collect_parts([source], load_random, tmp_path / name, workers=1)
        assert len(columns["task"]) == 60
        assert columns["terminated"].any() == (name == "every")
        ends = columns["episode_end"][:-1]  # episodes are whole
        assert np.array_equal(columns["observation"][1:][~ends], columns["next_observation"][:-1][~ends])
        if name == "upright":
            assert np.flatnonzero(columns["episode_end"]).tolist() == list(range(LINE.horizon - 1, 60, LINE.horizon))


def test_a_policy_that_always_falls_is_given_up(monkeypatch, tmp_path):
    source = line_source(monkeypatch, 10, without_falls=True)
    monkeypatch.setattr(state_collection, "MAX_WASTE", 6)
    with pytest.raises(DatasetError, match=r"policy\.pt: falls in all of \d+ episodes"):
        collect_parts([source], load_left, tmp_path, workers=1)


def test_a_damaged_part_is_played_again(monkeypatch, tmp_path):
    source = line_source(monkeypatch, 100)
    (columns,) = collect_parts([source], load_random, tmp_path, workers=1)
    part = tmp_path / "0" / "1.h5"
    part.write_bytes(part.read_bytes()[:-100])
    (again,) = collect_parts([source], load_random, tmp_path, workers=1)
    assert all(np.array_equal(columns[name], again[name]) for name in columns)
    monkeypatch.setattr(state_collection, "play_part", None)  # whole ones are not
    collect_parts([source], load_random, tmp_path, workers=1)


def test_a_dataset_does_not_depend_on_the_number_of_processes_or_on_kills(tmp_path):
    pytest.importorskip("mujoco")
    config = CollectStateConfig(benchmark="pointmaze-medium", sources=POINT, out=str(tmp_path / "one.h5"), workers=1)
    whole = make(config, load_behaviour)
    assert np.bincount(whole.columns["task"]).tolist() == [3000, 0, 9500]
    first = whole.columns["observation"][[0, *(np.flatnonzero(whole.columns["episode_end"])[:-1] + 1)]]
    assert len(first) == len(np.unique(first, axis=0)) == 63  # no episode is played twice
    out = tmp_path / "killed.h5"
    command = [sys.executable, "-m", "data", "collect-state", "--benchmark", "pointmaze-medium", "--out", str(out)]
    command += ["--sources", ",".join(POINT), "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    while not list(tmp_path.glob(".killed-*.parts/*/*.h5")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert read_transitions(out).digest == whole.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.h5", "one.h5"]


def test_random_actions_become_fewer_part_by_part(monkeypatch, tmp_path):
    source = line_source(monkeypatch, 60 * LINE.horizon, LineEnv, random_actions=0.25)
    assert [source.probability_of_random_actions(part) for part in (0, 3, 9)] == [1.0, 0.7, 0.25]
    (columns,) = collect_parts([source], load_left, tmp_path, workers=1)
    random = columns["action"][:, 0] != -1
    assert random[: 8 * LINE.horizon].all()
    assert random[-8 * LINE.horizon :].mean() == pytest.approx(0.3, abs=0.15)
    unmixed = line_source(monkeypatch, 60, LineEnv)
    assert unmixed.probability_of_random_actions(0) == 0


@pytest.mark.parametrize(
    ("benchmark", "tasks", "policy", "noise"),
    [
        ("walker2d", ("jump", "run-forward"), "walker2d-medium", 0.0),  # sampled
        ("antmaze-medium", ("goal-0", "goal-2"), "ant-direction", 0.2),  # by a controller's commands
        ("desk", ("door-close", "drawer-open"), "controller", 0.1),  # whose environments share a model
    ],
)
def test_a_part_is_the_same_whatever_its_process_has_played(benchmark, tasks, policy, noise, tmp_path, monkeypatch):
    pytest.importorskip("metaworld" if benchmark == "desk" else "mujoco")
    monkeypatch.setattr(state_collection, "MAX_EPISODES", 1)
    file = policy if policy == "controller" else str(ROOT / "models" / "trained" / f"{policy}.pt")
    sources = [
        EpisodeSource(
            behaviour=replace(behaviour_of(BENCHMARKS[benchmark], file, noise), task=task, sampled=not noise),
            steps=1000,
            without_falls=False,
            seed_numbers=(0, number),
        )
        for number, task in enumerate(tasks)
    ]
    jobs = [(0, 0), (1, 0), (0, 1)]
    for name, order in (("forth", jobs), ("back", jobs[::-1])):
        player = state_collection.PartPlayer(sources, load_behaviour, tmp_path / name)
        for job in order:
            player(job)
    for number, part in jobs:
        one, two = (read_transitions(tmp_path / name / str(number) / f"{part}.h5").digest for name in ("forth", "back"))
        assert one == two, (number, part)


def test_a_file_of_many_policies_is_not_played_as_one_but_by_a_member(tmp_path):
    config = CQLConfig(rules=("none", "cds"), hidden_sizes=(8,))
    policy = StatePolicy(
        Normaliser.identity(17), OneHotTask(2, 17, 3), TanhGaussianPolicy(2, 20, config.hidden_sizes, 6)
    )
    members = tuple(Member(name=name, tasks=("jump",)) for name in ("none-0", "cds-0"))
    file = PolicyFile(policy=policy, benchmark=BENCHMARKS["walker2d"], members=members, metadata={"algorithm": "cql"})
    (tmp_path / "policy.pt").write_bytes(pack_policies(file))
    behaviour = replace(behaviour_of(BENCHMARKS["walker2d"], str(tmp_path / "policy.pt"), 0.1), task="jump")
    with pytest.raises(CheckpointError, match=r"holds 2 policies for jump \(none-0, cds-0\), of which to play one"):
        load_behaviour(behaviour)
    seen = np.random.default_rng(0).normal(size=(4, 17)).astype(np.float32)
    everyone = policy.act(np.stack([seen, seen]), np.full((2, 4), 2))
    for number, name in enumerate(("none-0", "cds-0")):
        chosen = behaviour_of(BENCHMARKS["walker2d"], str(tmp_path / "policy.pt"), 0.1, name)
        act = load_behaviour(replace(chosen, task="jump"))[0]
        assert np.allclose(act(seen, np.random.default_rng(0)), everyone[number], atol=1e-5)
    with pytest.raises(ValueError, match=r"unknown member 'cds-1': choose from none-0, cds-0"):
        behaviour_of(BENCHMARKS["walker2d"], str(tmp_path / "policy.pt"), 0.1, "cds-1")


def test_a_controller_is_played_as_policies_are():
    pytest.importorskip("mujoco")
    found = evaluate_behaviour(behaviour_of(BENCHMARKS["pointmaze-medium"], "controller", 0.2), 2, workers=1)
    (row,) = found.members
    assert row["success"] == {task: [True, True] for task in ("goal-0", "goal-1", "goal-2")}
    assert found.header["noise"] == 0.2


def test_benchmarks_without_a_controller_of_their_own_say_so():
    with pytest.raises(CheckpointError, match="walker2d: its controller is not there; give a file of policies"):
        load_behaviour(behaviour_of(BENCHMARKS["walker2d"], "controller", 0.0))
    with pytest.raises(CheckpointError, match="antmaze-large: its controller commands policies of ant-direction"):
        load_behaviour(behaviour_of(BENCHMARKS["antmaze-large"], "controller", 0.0))
    other = str(ROOT / "models/trained/walker2d-expert.pt")
    with pytest.raises(CheckpointError, match="holds policies for walker2d, not for antmaze-large"):
        load_behaviour(behaviour_of(BENCHMARKS["antmaze-large"], other, 0.2))
