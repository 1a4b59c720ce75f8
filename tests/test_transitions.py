"""Datasets of transitions: files of both schemas, relabelling, stratified batches."""

from __future__ import annotations

from dataclasses import fields

import h5py
import numpy as np
import pytest
import torch

from data.member_random import MemberRandom
from data.router import RoutableBatch
from data.state_batches import Draws, StateBatch, StateSampler, TransitionTensors
from data.transitions import TransitionDataset, read_benchmark, read_transitions, tables, write_transitions
from sim.benchmarks.spec import Benchmark, StateTask
from sim.benchmarks.table import BENCHMARKS
from sim.files import DatasetError
from train.state_config import StateConfig

WALKER2D = BENCHMARKS["walker2d"]
EVERYWHERE = np.ones((3, 3), np.bool_)


@pytest.fixture
def transitions():
    """Ten steps of each task, two episodes each; velocity and height number the steps."""
    rng = np.random.default_rng(0)
    count = 30
    columns = {
        "observation": rng.normal(size=(count, 17)),
        "action": rng.uniform(-1, 1, (count, 6)),
        "next_observation": rng.normal(size=(count, 17)),
        "quantity/x_velocity_m_s": np.arange(count) / 10,
        "quantity/height_above_start_m": np.arange(count) / 100,
        "terminated": np.arange(count) % 10 == 4,
        "episode_end": np.arange(count) % 5 == 4,
        "task": np.arange(count) // 10,
    }
    typed = {name: np.asarray(columns[name], kind) for name, (kind, _) in tables(WALKER2D).items()}
    return TransitionDataset(benchmark=WALKER2D, columns=typed, metadata={"run-forward": {"kind": "replay"}})


def batch_of(sampler, *seeds):
    return sampler.sample(sampler.draw(MemberRandom(seeds, 1, "cpu")))


def test_a_dataset_is_read_as_it_was_written(transitions, tmp_path):
    path = tmp_path / "walker2d.h5"
    write_transitions(path, transitions)
    found = read_transitions(path)
    assert found.benchmark is WALKER2D
    assert found.metadata == transitions.metadata
    assert all(np.array_equal(found.columns[name], column) for name, column in transitions.columns.items())
    assert found.episode.tolist() == [k // 5 for k in range(30)]
    assert [each.name for each in tmp_path.iterdir()] == ["walker2d.h5"]


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_damaged_dataset_is_refused_by_name(transitions, tmp_path, place):
    path = tmp_path / "walker2d.h5"
    rng = np.random.default_rng(0)
    many = {name: np.repeat(column, 200, axis=0) for name, column in transitions.columns.items()}
    many["observation"] = rng.normal(size=many["observation"].shape).astype(np.float32)
    write_transitions(path, TransitionDataset(benchmark=WALKER2D, columns=many, metadata={}))
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"walker2d\.h5"):
        read_transitions(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"walker2d\.h5"):
        read_transitions(path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("observation", np.nan, "not finite"),
        ("task", 3, "a task that walker2d lacks"),
        ("episode_end", False, "does not end an episode"),
    ],
)
def test_a_dataset_that_makes_no_sense_is_refused(transitions, tmp_path, column, value, message):
    transitions.columns[column][-1] = value
    write_transitions(tmp_path / "x.h5", transitions)
    with pytest.raises(DatasetError, match=message):
        read_transitions(tmp_path / "x.h5")


def test_no_dataset_is_said_to_be_missing(tmp_path):
    with pytest.raises(DatasetError, match="no such dataset"):
        read_transitions(tmp_path / "none.h5")


def test_a_file_of_schema_1_is_the_same_dataset(transitions, tmp_path):
    """As walker2d's files were written before there were other benchmarks."""
    names = {
        "quantity/x_velocity_m_s": "velocity",
        "quantity/height_above_start_m": "rise",
        "terminated": "fell",
        "episode_end": "last",
    }
    with h5py.File(tmp_path / "old.h5", "w") as file:
        for name, column in transitions.columns.items():
            file.create_dataset(names.get(name, name), data=column)
        file.attrs.update(schema=1, body="walker2d", tasks='["run-forward", "run-backward", "jump"]')
        file.attrs["about"] = '{"run-forward": {"kind": "replay"}}'
    found = read_transitions(tmp_path / "old.h5")
    assert (found.digest, found.metadata) == (transitions.digest, transitions.metadata)
    assert read_benchmark(tmp_path / "old.h5") is WALKER2D


def test_an_end_and_a_success_are_those_of_the_target_task(transitions):
    """A goal ends an episode for the task that has it and for no other; a terminated step ends all."""
    tasks = tuple(
        StateTask(
            name=name,
            reward=lambda q, action: q["x"],
            success=lambda q, at=at: q["x"] > at,
            terminal=(lambda q, at=at: q["x"] > at) if at < 9 else None,
        )
        for name, at in (("near", 1.0), ("far", 2.0), ("endless", 9.0))
    )
    line = Benchmark(
        name="line",
        observation_size=17,
        action_size=6,
        horizon=9,
        quantities={"x": ()},
        tasks=tasks,
        make_env=lambda: None,
        metric="success",
    )
    columns = {name: column for name, column in transitions.columns.items() if not name.startswith("quantity/")}
    columns["quantity/x"] = np.arange(30, dtype=np.float32) / 10  # "near" is reached from 11 on, "far" from 21 on
    columns["terminated"] = np.arange(30) == 3
    dataset = TransitionDataset(benchmark=line, columns=columns, metadata={})
    near, far, endless = dataset.done.T
    assert np.flatnonzero(near).tolist() == [3, *range(11, 30)]
    assert np.flatnonzero(far).tolist() == [3, *range(21, 30)]
    assert np.flatnonzero(endless).tolist() == [3]
    batch = batch_of(StateSampler(TransitionTensors(dataset), EVERYWHERE, (0, 1, 2), per_task=64), 0)
    step = (batch.reward[0] * 10).round().long().numpy()
    target = batch.task_index[0].numpy()
    assert np.array_equal(batch.done[0].numpy() > 0, dataset.done[step, target])
    assert np.array_equal(batch.success[0].numpy() > 0, dataset.successes[step, target])
    assert (batch.done[0][batch.task_index[0] == 0].sum() > batch.done[0][batch.task_index[0] == 1].sum()).item()


def test_on_a_cpu_observations_and_actions_are_held_once(transitions):
    tensors, row = TransitionTensors(transitions), torch.arange(30)[None]
    batch = tensors.batch(row, torch.ones_like(row))
    for name, held in tensors._seen.items():
        assert np.array_equal(getattr(batch, name)[0].numpy(), transitions.columns[name])
        assert np.shares_memory(transitions.columns[name], held.numpy())


def test_a_batch_is_stratified_and_carries_the_reward_of_its_target(transitions):
    batch = batch_of(
        StateSampler(TransitionTensors(transitions), EVERYWHERE, (0, 1, 2), per_task=8, shared_fraction=0.5), 0, 1
    )
    assert batch.observation.shape == (2, 24, 17)
    assert batch.task_index[0].tolist() == [0] * 8 + [1] * 8 + [2] * 8
    shared = batch.task_index != batch.source_task_index
    assert shared.view(2, 3, 8).sum(-1).tolist() == [[4] * 3] * 2
    assert not torch.equal(batch.observation[0], batch.observation[1])
    rewards = transitions.rewards
    for row in range(24):
        step = np.flatnonzero((transitions.columns["observation"] == batch.observation[0, row].numpy()).all(1)).item()
        assert batch.source_task_index[0, row] == step // 10
        assert batch.reward[0, row] == rewards[step, batch.task_index[0, row]]
        assert batch.done[0, row] == (step % 10 == 4)
        assert batch.episode[0, row] == step // 5


def test_uniform_numbers_choose_rows_of_the_pools(transitions):
    """Ten own rows and twenty of the others, for the second task."""
    sampler = StateSampler(TransitionTensors(transitions), EVERYWHERE, (0, 1, 2), per_task=4)
    u = torch.tensor([[0.0, 1 - 2**-53, 0.5, 0.5, 0.05, 0.999]] * 3, dtype=torch.float64)[None]
    found = sampler.sample(Draws(u)).observation[0, 4:8].numpy()
    wanted = transitions.columns["observation"][[10, 19, 1, 29]]  # the first and last own; floor(0.05 x 20), the last
    assert np.array_equal(found, wanted)


def test_without_sources_all_is_own_and_without_the_reward_shared_ones_carry_none(transitions):
    tensors = TransitionTensors(transitions)
    own = batch_of(StateSampler(tensors, np.eye(3, dtype=np.bool_), (0, 1, 2), per_task=8), 0)
    assert torch.equal(own.task_index, own.source_task_index)
    not_relabelled = batch_of(StateSampler(tensors, EVERYWHERE, (0, 1, 2), per_task=8, relabel_rewards=False), 1)
    shared = not_relabelled.task_index != not_relabelled.source_task_index
    assert (not_relabelled.reward[shared] == 0).all()
    assert (not_relabelled.reward[~shared] != 0).any()


def test_tasks_that_are_not_trained_are_neither_targets_nor_sources(transitions):
    batch = batch_of(StateSampler(TransitionTensors(transitions), EVERYWHERE, (0, 2), per_task=8), 0)
    assert batch.task_index[0].tolist() == [0] * 8 + [2] * 8
    assert set(batch.source_task_index[0].tolist()) == {0, 2}


def test_a_state_batch_is_what_the_router_asks_for():
    assert set(RoutableBatch.__annotations__) <= {field.name for field in fields(StateBatch)}


def test_a_task_without_data_is_named(transitions):
    transitions.columns["task"][:10] = 1
    with pytest.raises(DatasetError, match="no step of task run-forward"):
        StateSampler(TransitionTensors(transitions), EVERYWHERE, (0, 1, 2))


def test_rewards_are_learned_from_as_the_options_scale_and_shift_them(transitions):
    """UDS gives shared transitions what a reward of 0 becomes."""
    plain, scaled = TransitionTensors(transitions), TransitionTensors(transitions, scale=10.0, shift=-5.0)
    row, task = torch.arange(30)[None], torch.arange(30)[None] % 3
    assert torch.allclose(scaled.batch(row, task).reward, 10 * plain.batch(row, task).reward - 5)
    assert np.array_equal(plain.batch(row, task).reward[0], transitions.rewards[row[0], task[0]])
    options = {"per_task": 16, "shared_fraction": 0.5, "relabel_rewards": False}
    batch = batch_of(StateSampler(scaled, EVERYWHERE, (0, 1, 2), **options), 0)
    own = batch_of(StateSampler(plain, EVERYWHERE, (0, 1, 2), **options), 0)
    shared = batch.task_index != batch.source_task_index
    assert (batch.reward[shared] == -5).all()
    assert torch.allclose(batch.reward[~shared], 10 * own.reward[~shared] - 5)
    assert shared.any()
    config = StateConfig(reward_scale=10.0, reward_shift=-5.0)
    assert (config.reward_scale, config.reward_shift) == (10.0, -5.0)
