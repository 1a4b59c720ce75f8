"""Playing state policies: on real MuJoCo against a fresh environment step by step, and on a line by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval import returns
from eval.returns import evaluate, play
from models.conditioning import Normaliser, OneHotTask
from models.policy_files import Member, PolicyFile, pack_policies
from models.state_policies import StatePolicy, TanhGaussianPolicy
from sim.benchmarks.spec import MissingSimulatorError
from sim.benchmarks.table import BENCHMARKS
from tests.line import LINE

WALKER2D = BENCHMARKS["walker2d"]


def policy_file(benchmark, members, tasks=None, seed=0):
    """Random policies, conditioned on the task, of observations that are normalised."""
    torch.manual_seed(seed)
    size, num_tasks = benchmark.observation_size, len(benchmark.tasks)
    rng = np.random.default_rng(seed)
    mean, std = rng.normal(size=size).astype(np.float32), rng.uniform(0.5, 2, size).astype(np.float32)
    network = TanhGaussianPolicy(members, size + num_tasks, (16,), benchmark.action_size)
    policy = StatePolicy(Normaliser(mean, std), OneHotTask(members, size, num_tasks), network)
    tasks = tasks or benchmark.task_names
    names = tuple(Member(name=f"all-{k}", tasks=tasks, rule="all", seed=k) for k in range(members))
    return PolicyFile(
        policy=policy.requires_grad_(False), benchmark=benchmark, members=names, metadata={"algorithm": "x"}
    )


@pytest.mark.parametrize("task", WALKER2D.task_names)
def test_a_scripted_policys_returns_are_those_of_a_fresh_environment(task):
    """Episodes that end at different steps, each recomputed alone."""
    pytest.importorskip("mujoco")

    def act(observation):
        return np.tanh(3 * observation[:, 1:7] + observation[:, 8:14]).astype(np.float32)

    found, _, _ = play(act, WALKER2D, task, 3, seed=7)
    lengths = []
    for number in range(3):
        env = WALKER2D.make_env()
        observation, total, length = env.reset(task, 7 * 10_000 + number), 0.0, 0
        while True:
            action = act(observation[None])[0]
            step = env.step(action)
            total += WALKER2D.rewards(step.quantities, action)[WALKER2D.task_index(task)]
            observation, length = step.observation, length + 1
            if step.terminated or step.truncated:
                break
        env.close()
        assert found[number] == pytest.approx(total, rel=1e-6)
        lengths.append(length)
    assert len(set(lengths)) > 1


def test_each_member_acts_by_the_task_it_is_conditioned_on_and_is_paid_for_it():
    """Members and tasks are not mixed up: every cell is that of its member alone, conditioned on its task alone."""
    pytest.importorskip("mujoco")
    file = policy_file(WALKER2D, 2, tasks=("run-forward", "jump"))
    found = evaluate(file, 2, seed=3, workers=1)
    assert [row["name"] for row in found.members] == ["all-0", "all-1"]
    cells = []
    for k, row in enumerate(found.members):
        assert list(row["returns"]) == ["run-forward", "jump"]
        for task, values in row["returns"].items():
            one_hot = np.eye(3, dtype=np.float32)[[WALKER2D.task_index(task)] * 2]

            def act(observation, k=k, one_hot=one_hot, policy=file.policy):
                seen = (observation - policy.normaliser.mean.numpy()) / policy.normaliser.std.numpy()
                state = torch.from_numpy(np.concatenate([seen, one_hot], 1))
                return policy.network(state.expand(2, -1, -1))[0][k].tanh().numpy()

            alone, _, _ = play(act, WALKER2D, task, 2, seed=3)
            assert values == pytest.approx(alone.tolist(), rel=1e-3)
            cells += values
    assert len({round(value, 3) for value in cells}) == len(cells)


def test_worker_processes_play_as_one_process_does(tmp_path, capsys):
    pytest.importorskip("mujoco")
    file = policy_file(WALKER2D, 2, tasks=("run-backward",))
    assert evaluate(file, 2, workers=2).members == evaluate(file, 2, workers=1).members
    path = tmp_path / "policy.pt"
    path.write_bytes(pack_policies(file))
    (tmp_path / "config.json").write_text("{}")
    assert returns.main(["--policy", str(path), "--episodes", "2", "--workers", "1"]) == 0
    found = json.loads((tmp_path / "policy-played.json").read_text())
    assert (found["benchmark"], found["metric"], found["algorithm"]) == ("walker2d", "return", "x")
    assert found["members"] == evaluate(file, 2, workers=1).members
    assert "all-1: run-backward" in capsys.readouterr().out


def test_success_and_ends_are_those_of_the_task():
    """On the line, going right reaches `right` at once and `left` never, unless the episode begins there."""
    starts = [LINE.make_env().reset("right", 10_000 + k).argmax() for k in range(8)]
    for task, goal in (("right", 2), ("left", 0)):
        found, ever, last = play(lambda seen: np.ones((8, 1), np.float32), LINE, task, 8, seed=1)
        assert ever.tolist() == last.tolist() == [goal == 2] * 8
        assert found.tolist() == [float(goal == 2)] * 8  # it ends there: 1 and no more
    assert len(set(starts)) == 3


def test_results_of_a_success_metric_have_wilsons_interval(monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "line", LINE)
    file = policy_file(LINE, 1)
    file.policy.network.mlp.layers[-1].bias[:, :, 0] = 9.0  # always to the right
    found = evaluate(file, 5, workers=1)
    assert found.members[0]["success"] == {"right": [True] * 5, "left": [False] * 5}
    assert found.table() == "all-0: right 100% (57%-100%), left 0% (0%-43%)"


def test_a_policy_is_not_played_on_another_benchmark(tmp_path, capsys):
    path = tmp_path / "policy.pt"
    path.write_bytes(pack_policies(policy_file(WALKER2D, 1)))
    assert returns.main(["--policy", str(path), "--benchmark", "ant"]) == 2
    assert "holds policies for walker2d, not for ant" in capsys.readouterr().err


def test_a_missing_simulator_is_one_line():
    def missing():
        raise MissingSimulatorError("line needs a simulator")

    file = policy_file(replace(LINE, make_env=missing), 1)
    with pytest.raises(MissingSimulatorError, match="line needs a simulator"):
        evaluate(file, 1, workers=1)
