"""Every registered benchmark and task: the record is true of the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from data.state_collection import Behaviour, EpisodeSource, play_part
from data.transitions import TransitionDataset, read_transitions, write_transitions
from sim.benchmarks.desk import compiled_desk
from sim.benchmarks.dmc_walker import compiled_walker
from sim.benchmarks.simulator import _warn, package_folder
from sim.benchmarks.spec import Benchmark, MissingSimulatorError, StateTask
from sim.benchmarks.table import BENCHMARKS, benchmark_by_name

TASKS = [(name, task) for name, benchmark in BENCHMARKS.items() for task in benchmark.task_names]
STEPS = 30


@pytest.fixture(params=list(BENCHMARKS))
def benchmark(request):
    pytest.importorskip("mujoco")
    return BENCHMARKS[request.param]


def random_steps(benchmark, task, seed, count=STEPS):
    """The first observation, then actions and steps until the episode ends."""
    env, rng = benchmark.make_env(), np.random.default_rng(seed)
    first, found = env.reset(task, seed), []
    for _ in range(count):
        action = rng.uniform(-1, 1, benchmark.action_size).astype(np.float32)
        found.append((action, env.step(action)))
        if found[-1][1].terminated or found[-1][1].truncated:
            break
    env.close()
    return first, found


def test_sizes_and_quantities_are_those_of_the_record(benchmark):
    first, steps = random_steps(benchmark, benchmark.task_names[0], 0)
    assert (first.shape, first.dtype) == ((benchmark.observation_size,), np.float32)
    for _, step in steps:
        assert (step.observation.shape, step.observation.dtype) == (first.shape, np.float32)
        assert {name: value.shape for name, value in step.quantities.items()} == benchmark.quantities
        values = [step.observation, *step.quantities.values()]
        assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in values)
        assert isinstance(step.terminated, bool)
        assert isinstance(step.truncated, bool)


def test_an_episode_is_determined_by_its_seed(benchmark):
    task = benchmark.task_names[-1]
    (first, steps), (again, same), (other, _) = (random_steps(benchmark, task, seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert all(np.array_equal(a.observation, b.observation) for (_, a), (_, b) in zip(steps, same, strict=True))
    assert not np.array_equal(first, other)


def test_an_episode_ends_at_the_horizon_at_the_latest(benchmark):
    _, steps = random_steps(benchmark, benchmark.task_names[0], 0, benchmark.horizon + 1)
    last = steps[-1][1]
    assert len(steps) <= benchmark.horizon
    assert last.terminated or (last.truncated and len(steps) == benchmark.horizon)
    assert not any(step.terminated or step.truncated for _, step in steps[:-1])


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_rewards_from_disk_are_the_live_ones(name, task, tmp_path):
    pytest.importorskip("mujoco")
    benchmark = replace(BENCHMARKS[name], horizon=STEPS)
    steps = []

    def act(observation, rng):
        return rng.uniform(-1, 1, (len(observation), benchmark.action_size)).astype(np.float32)

    class Recorded:
        """The environment, cut short."""

        def __init__(self):
            self.env, self.reset = (env := benchmark.collecting_env()), env.reset

        def step(self, action):
            step = self.env.step(action)
            steps.append((action, step))
            return step._replace(truncated=len(steps) == STEPS)

    behaviour = Behaviour(benchmark=name, task=task, file="", content=None, noise=0.0)
    source = EpisodeSource(behaviour=behaviour, steps=STEPS, without_falls=False, seed_numbers=(5,))
    columns = play_part(benchmark, source, act, [Recorded()], 0)
    write_transitions(tmp_path / "x.h5", TransitionDataset(benchmark=BENCHMARKS[name], columns=columns, metadata={}))
    dataset = read_transitions(tmp_path / "x.h5")
    assert len(dataset) == len(steps)
    for row, (action, step) in enumerate(steps):
        assert np.array_equal(dataset.columns["next_observation"][row], step.observation)
        assert np.array_equal(dataset.rewards[row], benchmark.rewards(step.quantities, action))
        assert np.array_equal(dataset.successes[row], benchmark.successes(step.quantities))
        ends = benchmark.terminals(step.quantities) | step.terminated
        assert np.array_equal(dataset.done[row], ends)
    assert (dataset.columns["task"] == benchmark.task_index(task)).all()


def test_rewards_are_finite_numbers_of_every_task_for_any_leading_shape(benchmark):
    rng = np.random.default_rng(0)
    quantities = {
        name: rng.normal(size=(4, 3, *shape)).astype(np.float32) for name, shape in benchmark.quantities.items()
    }
    action = rng.uniform(-1, 1, (4, 3, benchmark.action_size)).astype(np.float32)
    rewards = benchmark.rewards(quantities, action)
    assert (rewards.shape, rewards.dtype) == ((4, 3, len(benchmark.tasks)), np.float32)
    assert np.isfinite(rewards).all()
    one = {name: value[2, 1] for name, value in quantities.items()}
    assert np.array_equal(rewards[2, 1], benchmark.rewards(one, action[2, 1]))
    assert benchmark.successes(quantities).shape == benchmark.terminals(quantities).shape == rewards.shape


def quantities_of(velocity, height, contact=None):
    found = {"x_velocity_m_s": np.float32(velocity), "height_above_start_m": np.float32(height)}
    return found if contact is None else {**found, "contact_force_squared": np.float32(contact)}


def test_the_rewards_of_walker2d_are_the_papers():
    effort = 0.006
    expected = [[2 - effort, -2 - effort, -2 - effort + 1], [-1.5 - effort, 1.5 - effort, -1.5 - effort - 2]]
    found = BENCHMARKS["walker2d"].rewards(quantities_of([2.0, -1.5], [0.1, -0.2]), np.ones((2, 6), np.float32))
    assert found == pytest.approx(np.array(expected))


def test_the_rewards_of_halfcheetah_pay_for_at_most_3_m_s():
    found = BENCHMARKS["halfcheetah"].rewards(quantities_of([4.0, -1.5], [0.1, -0.2]), np.ones((2, 6), np.float32))
    assert found == pytest.approx(np.array([[3 - 0.6, -4 - 0.6, 1.5 - 0.6], [-1.5 - 0.6, 1.5 - 0.6, -3 - 0.6]]))


def test_the_rewards_of_ant_are_the_papers():
    found = BENCHMARKS["ant"].rewards(quantities_of([2.0], [0.5], [4.0]), np.full((1, 8), 0.5, np.float32))
    cost = 0.5 * 2 + 0.005 * 4
    assert found == pytest.approx(np.array([[2 - cost, -2 - cost, -2 - cost + 5]]))


@pytest.mark.parametrize(("name", "start"), [("walker2d", 1.25), ("halfcheetah", 0.0), ("ant", 0.75)])
def test_the_height_is_that_above_the_nominal_start(name, start):
    pytest.importorskip("mujoco")
    _, ((_, step), *_) = random_steps(BENCHMARKS[name], "jump", 0, 1)
    assert step.quantities["height_above_start_m"] == pytest.approx(step.observation[0] - start, abs=1e-6)


def test_a_walker_falls_and_the_others_go_on():
    pytest.importorskip("mujoco")
    for name, falls in (("walker2d", True), ("halfcheetah", False), ("ant", False)):
        assert random_steps(BENCHMARKS[name], "jump", 0, 400)[1][-1][1].terminated == falls


def test_mujoco_warns_on_the_terminal_and_leaves_no_file_in_the_working_folder(
    benchmark, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    _warn.cache_clear()
    env = benchmark.make_env()
    env.reset(benchmark.task_names[0], 0)
    for _ in range(2):
        env.step(np.full(benchmark.action_size, np.nan, np.float32))
    lines = capsys.readouterr().err.splitlines()
    assert lines == list(dict.fromkeys(lines))
    assert all(line.startswith("MuJoCo: ") for line in lines)
    assert lines
    assert not any(tmp_path.iterdir())


def test_unknown_benchmarks_and_tasks_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'walker2d'"):
        benchmark_by_name("walker2")
    with pytest.raises(ValueError, match="Did you mean 'jump'"):
        BENCHMARKS["ant"].task_index("jmp")


def test_a_record_whose_metric_is_success_needs_successes():
    with pytest.raises(AssertionError, match="a task lacks success"):
        Benchmark(
            name="x",
            observation_size=1,
            action_size=1,
            horizon=1,
            quantities={"x": ()},
            tasks=(StateTask(name="a", reward=lambda q, a: q["x"]),),
            make_env=lambda: None,
            metric="success",
        )


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_missing_simulator_is_said_in_a_line_with_the_remedy(name, monkeypatch):
    mujoco = pytest.importorskip("mujoco")
    monkeypatch.setattr(mujoco, "__version__", "4.0.1")
    pytest.importorskip({"dmc-walker": "dm_control", "desk": "metaworld"}.get(name, "mujoco"))
    for compiled in (compiled_walker, compiled_desk):
        compiled.cache_clear()
    with pytest.raises(MissingSimulatorError, match=r"needs MuJoCo 3\.3 to 3, found 4\.0\.1: pip install"):
        BENCHMARKS[name].make_env()
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(MissingSimulatorError, match=r"needs MuJoCo: pip install -e '\.\[lowdim\]'"):
        BENCHMARKS[name].make_env()


def test_an_opengl_that_is_not_there_is_said_in_a_line():
    """MuJoCo loads it when it is imported."""
    pytest.importorskip("mujoco")
    code = "from sim.benchmarks.simulator import load_mujoco; load_mujoco('walker2d')"
    environment = {**os.environ, "MUJOCO_GL": "cardboard"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "MissingSimulatorError: walker2d: MuJoCo does not load with MUJOCO_GL=cardboard: unset it" in last


def test_a_package_that_has_a_model_is_named_where_it_is_missing():
    with pytest.raises(MissingSimulatorError, match=r"desk needs no_such_package for its model: pip install"):
        package_folder("desk", "no_such_package")
