"""Locomotion: rewards by hand, datasets of transitions, stratified batches."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from data import locomotion
from data.locomotion import LocomotionConfig, make
from data.router import RoutableBatch
from data.transitions import COLUMNS, StateBatch, StateSampler, Transitions, read_transitions, write_transitions
from sim.files import DatasetError
from sim.locomotion import BODIES, HORIZON, Motion, Walk, body_by_name

BODY = BODIES["walker2d"]
EVERYWHERE = np.ones((3, 3), np.bool_)


@pytest.fixture
def transitions():
    """Ten steps of each task, two episodes each; velocity and rise tell the step's number."""
    rng = np.random.default_rng(0)
    count = 30
    columns = {
        "observation": rng.normal(size=(count, 17)),
        "action": rng.uniform(-1, 1, (count, 6)),
        "next_observation": rng.normal(size=(count, 17)),
        "velocity": np.arange(count) / 10,
        "rise": np.arange(count) / 100,
        "fell": np.arange(count) % 10 == 4,
        "last": np.arange(count) % 5 == 4,
        "task": np.arange(count) // 10,
    }
    typed = {name: np.asarray(column, COLUMNS[name]) for name, column in columns.items()}
    return Transitions(body=BODY, columns=typed, about={"run-forward": {"kind": "replay"}})


def test_the_rewards_of_walker2d_are_the_papers():
    motion = Motion(np.float32([2.0, -1.5]), np.float32([0.1, -0.2]), np.ones((2, 6), np.float32))
    effort = 0.006
    expected = [[2 - effort, -2 - effort, -2 - effort + 1], [-1.5 - effort, 1.5 - effort, -1.5 - effort - 2]]
    assert BODY.rewards(motion) == pytest.approx(np.array(expected))
    assert BODY.task_names == ("run-forward", "run-backward", "jump")


@pytest.mark.parametrize("name", list(BODIES))
def test_every_body_is_as_its_record_says(name):
    pytest.importorskip("mujoco")
    body, rng = BODIES[name], np.random.default_rng(0)
    walk = Walk(body)
    first = walk.reset(3)
    assert first.shape == (body.observation_size,)
    assert first.dtype == np.float32
    before = None
    for _ in range(HORIZON):
        step = walk.step(rng.uniform(-1, 1, body.action_size).astype(np.float32))
        assert step.observation.shape == first.shape
        if step.ended:
            break
        before = step
    assert step.fell  # a random walker falls
    assert before is not None
    assert not before.fell
    assert np.array_equal(walk.reset(3), first)
    walk.close()


def test_mujoco_warns_on_the_terminal_and_leaves_no_file_in_the_working_folder(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    walk = Walk(BODIES["walker2d"])
    walk.reset(0)
    for _ in range(2):
        walk.step(np.full(6, np.nan, np.float32))
    assert capsys.readouterr().err.count("MuJoCo: ") == 1
    assert not any(tmp_path.iterdir())


def test_unknown_bodies_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'walker2d'"):
        body_by_name("walker2")


def test_a_dataset_is_read_as_it_was_written(transitions, tmp_path):
    path = tmp_path / "walker2d.h5"
    write_transitions(path, transitions)
    found = read_transitions(path)
    assert found.body is BODY
    assert found.about == transitions.about
    assert all(np.array_equal(found.columns[name], column) for name, column in transitions.columns.items())
    assert found.episode.tolist() == [k // 5 for k in range(30)]
    assert [each.name for each in tmp_path.iterdir()] == ["walker2d.h5"]


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_damaged_dataset_is_refused_by_name(transitions, tmp_path, place):
    path = tmp_path / "walker2d.h5"
    rng = np.random.default_rng(0)
    many = {name: np.repeat(column, 200, axis=0) for name, column in transitions.columns.items()}
    many["observation"] = rng.normal(size=many["observation"].shape).astype(np.float32)
    write_transitions(path, Transitions(body=BODY, columns=many, about={}))
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
        ("last", False, "does not end an episode"),
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


@pytest.fixture
def config(transitions, tmp_path, monkeypatch):
    """A dataset of a replay, and of a file of policies whose steps are those of the replay."""
    write_transitions(tmp_path / "replay.h5", transitions)
    (tmp_path / "policy.pt").write_bytes(b"policy")

    def act_out(body, task, act, steps, seed):
        first = 10 * body.task_names.index(task)
        return {name: column[first : first + steps] for name, column in transitions.columns.items()}

    monkeypatch.setattr(locomotion, "act_out", act_out)
    sources = (f"run-forward={tmp_path}/replay.h5:5", f"jump={tmp_path}/policy.pt:10")
    return LocomotionConfig(out=str(tmp_path / "set.h5"), sources=sources)


def load(file, task, seed):
    return None, {"policy_steps": 7}


def not_reached(*_):
    raise AssertionError("simulated")


def test_a_dataset_tells_what_it_is_made_of_and_is_not_made_twice(config, tmp_path, monkeypatch, capsys):
    made = make(config, load)
    replay, policy = (hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("replay.h5", "policy.pt"))
    assert made.about == {
        "run-forward": {"kind": "replay", "file": "replay.h5", "sha256": replay},
        "jump": {"kind": "policy", "file": "policy.pt", "seed": 0, "policy_steps": 7, "sha256": policy},
    }
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(locomotion, "act_out", not_reached)
    written = (tmp_path / "set.h5").stat().st_mtime_ns
    again = make(config, load)
    assert (again.about, again.digest) == (made.about, made.digest)
    assert f"{config.out}: already there, made of these sources" in capsys.readouterr().err
    assert (tmp_path / "set.h5").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, seed=1), r"other sources: jump seed 0 \(now 1\); choose another --out or delete it"),
        (lambda c: replace(c, sources=(c.sources[0], c.sources[1][:-1])), r"jump steps 10 \(now 1\)"),
        (lambda c: replace(c, sources=c.sources[::-1]), r"order \['run-forward', 'jump'\] \(now \['jump', 'run-"),
        (lambda c: replace(c, sources=c.sources[:1]), r"jump kind 'policy' \(now None\)"),
        (lambda c: replace(c, out=c.out.replace("set", "replay")), r"replay\.h5: already there, made of other sources"),
        (lambda c: replace(c, out=c.sources[1].split("=")[1][:-3]), r"policy\.pt: not a dataset.*choose another --out"),
    ],
)
def test_a_file_that_is_another_is_not_written_over(config, tmp_path, monkeypatch, change, message):
    make(config, load)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(locomotion, "act_out", not_reached)
    with pytest.raises(DatasetError, match=message):
        make(change(config), load)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_source_that_has_changed_since_makes_another_dataset(config, tmp_path):
    make(config, load)
    (tmp_path / "policy.pt").write_bytes(b"another")
    with pytest.raises(DatasetError, match="other sources: jump sha256"):
        make(config, load)


def test_a_source_that_changes_while_it_is_read_is_refused(config, tmp_path, monkeypatch):
    def changing(file, task, seed):
        file.write_bytes(b"another")
        return None, {}

    with pytest.raises(DatasetError, match=r"policy\.pt: changed while it was read"):
        make(config, changing)
    assert not (tmp_path / "set.h5").exists()


def test_a_batch_is_stratified_and_carries_the_reward_of_its_target(transitions):
    batch = StateSampler(transitions, EVERYWHERE, (0, 1, 2), per_task=8, shared=0.5).draw(
        2, torch.Generator().manual_seed(0)
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


def test_without_sources_all_is_own_and_without_the_reward_shared_ones_carry_none(transitions):
    generator = torch.Generator().manual_seed(0)
    own = StateSampler(transitions, np.eye(3, dtype=np.bool_), (0, 1, 2), per_task=8).draw(1, generator)
    assert torch.equal(own.task_index, own.source_task_index)
    untold = StateSampler(transitions, EVERYWHERE, (0, 1, 2), per_task=8, told_reward=False).draw(1, generator)
    shared = untold.task_index != untold.source_task_index
    assert (untold.reward[shared] == 0).all()
    assert (untold.reward[~shared] != 0).any()


def test_tasks_that_are_not_trained_are_neither_targets_nor_sources(transitions):
    batch = StateSampler(transitions, EVERYWHERE, (0, 2), per_task=8).draw(1, torch.Generator().manual_seed(0))
    assert batch.task_index[0].tolist() == [0] * 8 + [2] * 8
    assert set(batch.source_task_index[0].tolist()) == {0, 2}


def test_a_state_batch_is_what_the_router_asks_for():
    assert set(RoutableBatch.__annotations__) <= {field.name for field in fields(StateBatch)}


def test_a_task_without_data_is_named(transitions):
    transitions.columns["task"][:10] = 1
    with pytest.raises(DatasetError, match="no step of task run-forward"):
        StateSampler(transitions, EVERYWHERE, (0, 1, 2))
