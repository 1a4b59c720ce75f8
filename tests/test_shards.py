"""Shards on disk: what is written is read, and every damage is refused by the name of the file."""

from __future__ import annotations

import json
import os
import resource

import h5py
import numpy as np
import pytest

from data import jpeg
from data.replay import Replay
from data.shards import DatasetError, Episode, Shard, describe, write_shard
from sim.state import STATE_SIZE, SceneState
from sim.tasks import verdicts


def random_episode(task, steps, seed):
    """Random states, actions and pictures, with the verdicts that the detectors give."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(steps + 1, STATE_SIZE)).astype(np.float32)
    frames = rng.integers(0, 256, (steps + 1, 16, 16, 3), dtype=np.uint8)
    return Episode(
        task_index=task,
        terminated=bool(seed % 2),
        noise=seed / 8,
        action=rng.normal(size=(steps, 5)).astype(np.float32),
        state=state,
        verdict=verdicts(SceneState(state)),
        frames=tuple(jpeg.encode(frame, 95) for frame in frames),
    )


EPISODES = [random_episode(3, 2, 0), random_episode(7, 4, 1), random_episode(0, 1, 2)]


@pytest.fixture
def dataset(tmp_path, write_dataset):
    """Two shards: two episodes (2 + 4 steps, 8 frames) and one (1 step, 2 frames)."""
    return write_dataset(tmp_path / "set", [EPISODES[:2], EPISODES[2:]])


FIRST = "shard-00000.h5"


def change_bytes(path, old, new):
    """Overwrite the one place where `old` lies in the file."""
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


def test_what_is_written_is_read(dataset):
    replay = Replay(dataset)
    assert (replay.num_episodes, replay.num_steps, replay.size, replay.renderer) == (3, 7, 16, "tiny")
    assert replay.episode_task.tolist() == [3, 7, 0]
    assert replay.episode_length.tolist() == [2, 4, 1]
    assert replay.step_episode.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert np.flatnonzero(replay.step_is_last).tolist() == [1, 5, 6]
    assert np.array_equal(replay.action, np.concatenate([e.action for e in EPISODES]))
    assert np.array_equal(replay.success, [e.verdict[-1] for e in EPISODES])
    state = SceneState(np.concatenate([e.state for e in EPISODES]))
    assert np.array_equal(replay.gripper[:, 0], state["gripper_closed"])
    assert np.array_equal(replay.gripper[:, 1], state["gripper_position"][:, 2])
    tables = Shard(dataset / FIRST).tables
    assert tables["episode/terminated"].tolist() == [False, True]
    assert tables["episode/noise"].tolist() == [0.0, 0.125]
    assert np.array_equal(tables["state"], state.vector[:8])


def test_every_frame_is_read_under_its_own_number(dataset):
    stored = [frame for episode in EPISODES for frame in episode.frames]
    replay = Replay(dataset)
    frames = [shard.frame_bytes(i).tobytes() for shard in replay.shards for i in range(len(shard.tables["verdict"]))]
    assert frames == stored
    order = [9, 0, 8, 7, 3, 3]
    expected = np.stack([jpeg.decode(np.frombuffer(stored[i], np.uint8)) for i in order])
    assert np.array_equal(replay.frames(order), expected)


def test_writing_leaves_the_shard_alone_in_the_folder_and_describes_it(tmp_path):
    row = write_shard(tmp_path / "a.h5", EPISODES, {"seed": 5})
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    assert row == describe(tmp_path / "a.h5")
    assert (row["name"], row["episodes"], row["steps"]) == ("a.h5", 3, 7)
    assert row["bytes"] == (tmp_path / "a.h5").stat().st_size
    assert Shard(tmp_path / "a.h5").attributes["seed"] == 5


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_shard_is_refused_by_name(dataset, keep):
    path = dataset / FIRST
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DatasetError, match=f"{FIRST}.*damaged.*manifest says {len(content)}"):
        Replay(dataset)
    with pytest.raises(DatasetError, match=FIRST):
        Shard(path)


def test_a_flipped_byte_in_a_frame_is_refused_when_the_frame_is_read(dataset):
    frame = EPISODES[1].frames[2]  # frame 5 of the dataset
    change_bytes(dataset / FIRST, frame, flipped(frame))
    replay = Replay(dataset)
    with pytest.raises(DatasetError, match=f"{FIRST}.*checksum of frame 5"):
        replay.frames([5])
    assert replay.frames([4, 6]).shape == (2, 16, 16, 3)


@pytest.mark.parametrize("key", ["action", "state"])
def test_a_flipped_byte_in_a_table_is_refused_when_the_dataset_is_opened(dataset, key):
    table = np.concatenate([getattr(episode, key) for episode in EPISODES[:2]]).tobytes()
    change_bytes(dataset / FIRST, table, flipped(table))
    with pytest.raises(DatasetError, match=f"{FIRST}.*checksum of {key}"):
        Replay(dataset)


def test_a_shard_without_one_of_its_tables_is_refused(dataset):
    with h5py.File(dataset / FIRST, "r+") as file:
        del file["frame/crc32"]
    with pytest.raises(DatasetError, match=f"{FIRST}.*not a readable.*crc32"):
        Shard(dataset / FIRST)


def test_tables_that_disagree_are_refused(tmp_path):
    path = tmp_path / "odd.h5"
    longer = random_episode(0, 3, 4)
    object.__setattr__(longer, "frames", longer.frames[:-1])
    write_shard(tmp_path / "whole.h5", EPISODES, {})
    with pytest.raises(DatasetError, match=r"odd.h5.*disagree"):
        write_shard(path, [longer], {})


def test_another_programs_hdf5_file_is_refused(dataset):
    with h5py.File(dataset / FIRST, "w") as file:
        file["data"] = np.arange(5)
    with pytest.raises(DatasetError, match=f"{FIRST}.*not a Switchyard shard"):
        Shard(dataset / FIRST)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n" + b"\x00" * 300])
def test_a_file_that_is_not_hdf5_is_refused(dataset, content):
    (dataset / FIRST).write_bytes(content)
    with pytest.raises(DatasetError, match=FIRST):
        Shard(dataset / FIRST)


def test_a_missing_shard_is_refused_by_name(dataset):
    (dataset / FIRST).unlink()
    with pytest.raises(DatasetError, match=f"{FIRST}.*missing"):
        Replay(dataset)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", 2, "schema 2, this version reads schema 1"),
        ("state_version", 9, "state_version 9, this version reads state_version 2"),
        ("tasks", json.dumps(["lift-banana"]), "recorded for the tasks"),
        ("tasks", "not JSON", "not a readable"),
    ],
)
def test_a_shard_of_another_version_or_task_list_is_refused(dataset, key, value, message):
    with h5py.File(dataset / FIRST, "r+") as file:
        file.attrs[key] = value
    with pytest.raises(DatasetError, match=f"{FIRST}.*{message}"):
        Shard(dataset / FIRST)


def test_success_is_decided_by_todays_detectors_and_what_changed_is_counted(tmp_path, make_episode, write_dataset):
    episode = make_episode(accepted=("lift-can",))
    episode.verdict[-1, 0] = True
    replay = Replay(write_dataset(tmp_path / "set", [[episode]]))
    assert replay.num_changed_verdicts == 1
    assert not replay.success[0, 0]


def test_a_dataset_of_more_shards_than_a_process_may_open_is_read(tmp_path, make_episode, write_dataset):
    replay = Replay(write_dataset(tmp_path / "set", [[make_episode(accepted=())] for _ in range(40)]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 10, hard))
    try:
        frames = replay.frames(np.flatnonzero(np.diff(replay.step_episode, prepend=-1)) + np.arange(40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(frames) == 40


def test_a_folder_without_a_manifest_is_refused_and_told_how_to_make_one(tmp_path):
    with pytest.raises(DatasetError, match=f"{tmp_path}.*no dataset here.*python -m data collect"):
        Replay(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"schema": 2, "shards": []}', '{"schema": 1}', "\udcff\udcfe"]
)
def test_an_invalid_manifest_is_refused_by_name(dataset, text):
    (dataset / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        Replay(dataset)


@pytest.mark.parametrize("lost", ["size", "renderer", "randomise", "split", "name", "bytes"])
def test_a_manifest_that_lacks_an_entry_is_refused_by_name(dataset, lost):
    path = dataset / "manifest.json"
    manifest = json.loads(path.read_text())
    (manifest if lost in manifest else manifest["shards"][0]).pop(lost)
    path.write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        Replay(dataset)


def test_a_dataset_without_a_finished_shard_is_refused(tmp_path, write_dataset):
    with pytest.raises(DatasetError, match="no finished shard"):
        Replay(write_dataset(tmp_path / "set", []))
