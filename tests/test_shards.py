"""Shards on disk: round trip, and any damage is refused by file name."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import zlib
from dataclasses import replace

import h5py
import numpy as np
import pytest

from data import codec
from data.check import Report, check
from data.manifest import read_manifest, write_manifest
from data.replay import Replay
from data.shards import MAGIC, TRAILER, Episode, read_shard, write_shard
from sim.files import DatasetError
from sim.state import STATE_SIZE, SceneState
from sim.tasks import detect_successes

ATTRIBUTES = {"policy": "crude", "renderer": "tiny", "seed": 5, "source": 0, "checkpoint_sha256": ""}
ATTRIBUTES |= {"size": 16, "split": "train", "randomise": "none"}


def random_episode(task, steps, number, codec_name="jpeg"):
    """Random states, actions and images, with the verdicts of the detectors; the last command terminates."""
    rng = np.random.default_rng(number)
    state = rng.normal(size=(steps + 1, STATE_SIZE)).astype(np.float32)
    frames = rng.integers(0, 256, (steps + 1, 16, 16, 3), dtype=np.uint8)
    action = rng.uniform(-0.06, 0.06, (steps, 5)).astype(np.float32)
    action[:, 4] = [0] * (steps - 1) + [3]
    return Episode(
        task_index=task,
        number=number,
        terminated=True,
        noise=number / 8,
        action=action,
        state=state,
        verdict=detect_successes(SceneState(state)),
        frames=tuple(codec.encode(frame, codec_name) for frame in frames),
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


@contextlib.contextmanager
def edited(path):
    """The HDF5 file of a shard, to be changed; its checksum will be right."""
    payload = path.with_suffix(".payload")
    payload.write_bytes(path.read_bytes()[: -TRAILER.size])
    with h5py.File(payload, "r+") as file:
        yield file
    content = payload.read_bytes()
    path.write_bytes(content + TRAILER.pack(MAGIC, zlib.crc32(content)))
    payload.unlink()


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


def stored(episode):
    """Frames as they should be read: image, action (zeros at the last), state, verdict."""
    action = np.concatenate([episode.action, np.zeros((1, 5), np.float32)])
    return [
        (image, *(row.tobytes() for row in rows))
        for image, *rows in zip(episode.frames, action, episode.state, episode.verdict, strict=True)
    ]


def content(frames):
    return [(f.image, f.action.tobytes(), f.state.tobytes(), f.verdict.tobytes()) for f in frames]


def test_a_dataset_is_read_as_it_was_written(dataset):
    replay = Replay(dataset)
    assert (replay.num_episodes, replay.num_steps, replay.size, replay.renderer) == (3, 7, 16, "tiny")
    assert replay.episode_task.tolist() == [3, 7, 0]
    assert replay.episode_length.tolist() == [2, 4, 1]
    assert replay.episode_of(np.arange(7)).tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert replay.steps_to_go(np.arange(7)).tolist() == [2, 1, 4, 3, 2, 1, 1]
    assert [list(replay.frames_of(n)) for n in range(3)] == [[0, 1, 2], [3, 4, 5, 6, 7], [8, 9]]
    assert np.array_equal(replay.success, [e.verdict[-1] for e in EPISODES])
    entry, tables, attributes = read_shard(dataset / FIRST)
    assert tables["episode/terminated"].tolist() == [True, True]
    assert tables["episode/number"].tolist() == [0, 1]
    assert tables["episode/noise"].tolist() == [0.0, 0.125]
    assert (attributes["seed"], attributes["policy"]) == (0, "scripted")
    assert entry == read_manifest(dataset).shards[0]


def test_every_frame_is_read_under_its_own_number(dataset):
    expected = [frame for episode in EPISODES for frame in stored(episode)]
    replay = Replay(dataset)
    assert content(replay.read(range(10))) == expected
    order = [9, 0, 8, 7, 3, 3]
    assert content(replay.read(order)) == [expected[n] for n in order]
    assert np.array_equal(replay.images(order), np.stack([codec.decode(expected[n][0]) for n in order]))


def test_equal_episodes_make_equal_bytes(tmp_path):
    for name in ("one.h5", "another.h5"):
        write_shard(tmp_path / name, EPISODES, ATTRIBUTES)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "another.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another.h5", "one.h5"]


def test_the_tables_can_be_read_by_any_hdf5_program(dataset):
    with h5py.File(dataset / FIRST) as file:
        assert np.array_equal(file["frame/state"], np.concatenate([e.state for e in EPISODES[:2]]))
        begin, end = file["frame/offset"][4:6]
        assert file["frame/image"][begin:end].tobytes() == EPISODES[1].frames[1]


def test_lossless_frames_lose_nothing_and_are_read_like_jpeg(tmp_path, write_dataset):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(codec.decode(codec.encode(image, "zstd")), image)
    both = write_dataset(tmp_path / "set", [[random_episode(3, 2, 0, "zstd")], [random_episode(3, 2, 1, "jpeg")]])
    assert Replay(both).images([0, 3]).shape == (2, 16, 16, 3)
    assert check(both) == Report(frames=6, wrong=(), unfinished=())


def test_an_image_of_another_size_is_refused():
    data = codec.encode(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"16.*expected"):
        codec.decode(data, np.empty((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="neither a JPEG nor a Zstandard"):
        codec.decode(b"hello")


def refused(dataset, message):
    """Whether reading every frame, and a check, both say so."""
    replay = Replay(dataset)
    with pytest.raises(DatasetError, match=message):
        replay.read(range(10))
    assert re.search(message, "\n".join(check(dataset).wrong))
    return True


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_shard_is_refused_by_name(dataset, keep):
    path = dataset / FIRST
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert refused(dataset, f"{FIRST}: .*manifest says {len(content)}: damaged, or another shard")
    with pytest.raises(DatasetError, match=FIRST):
        read_shard(path)


def test_a_flipped_byte_in_a_frame_is_refused_when_the_frame_is_read(dataset):
    frame = EPISODES[1].frames[2]  # frame 5 of the dataset
    change_bytes(dataset / FIRST, frame, flipped(frame))
    replay = Replay(dataset)
    with pytest.raises(DatasetError, match=f"{FIRST}.*checksum of frame 5"):
        replay.read([5])
    assert len(replay.read([4, 6])) == 2
    assert f"{dataset / FIRST}: damaged shard, the checksum of the file does not match" in check(dataset).wrong[0]


@pytest.mark.parametrize("key", ["action", "state", "verdict"])
def test_a_flipped_byte_in_a_table_is_refused_when_its_frame_is_read(dataset, key):
    path = dataset / FIRST
    table = getattr(EPISODES[1], key)[1].tobytes()  # of frame 4
    with h5py.File(path) as file:
        begin = file[f"frame/{key}"].id.get_offset() + 4 * len(table)
    content = path.read_bytes()
    path.write_bytes(content[:begin] + flipped(table) + content[begin + len(table) :])
    replay = Replay(dataset)
    with pytest.raises(DatasetError, match=f"{FIRST}.*checksum of frame 4"):
        replay.read([4])


def test_a_shard_in_anothers_place_is_refused(tmp_path, write_dataset):
    dataset = write_dataset(tmp_path / "set", [[random_episode(3, 2, n)] for n in (0, 1)])
    one, two = dataset / "shard-00000.h5", dataset / "shard-00001.h5"
    first, second = one.read_bytes(), two.read_bytes()
    longer = max(len(first), len(second))
    for path, data in ((one, second), (two, first)):
        path.write_bytes(data.ljust(longer, b"\0"))
    manifest = read_manifest(dataset)  # as if both had the same length
    write_manifest(dataset, replace(manifest, shards=tuple(replace(entry, bytes=longer) for entry in manifest.shards)))
    with pytest.raises(DatasetError, match=r"shard-00000.h5: damaged shard, the checksum of its index"):
        Replay(dataset).read([0])


def test_a_shard_without_one_of_its_tables_is_refused(dataset):
    with edited(dataset / FIRST) as file:
        del file["frame/crc32"]
    with pytest.raises(DatasetError, match=f"{FIRST}.*not a readable.*crc32"):
        read_shard(dataset / FIRST)


def test_tables_that_disagree_are_refused(tmp_path):
    longer = random_episode(0, 3, 4)
    object.__setattr__(longer, "frames", longer.frames[:-1])
    object.__setattr__(longer, "state", longer.state[:-1])
    object.__setattr__(longer, "verdict", longer.verdict[:-1])
    object.__setattr__(longer, "action", longer.action[:-1])
    write_shard(tmp_path / "whole.h5", [longer], ATTRIBUTES)
    with edited(tmp_path / "whole.h5") as file:
        file["episode/length"][0] = 3
    with pytest.raises(DatasetError, match=r"whole.h5.*disagree"):
        read_shard(tmp_path / "whole.h5")


def test_another_programs_hdf5_file_is_refused(dataset):
    with h5py.File(dataset / FIRST, "w") as file:
        file["data"] = np.arange(5)
    with pytest.raises(DatasetError, match=f"{FIRST}.*not a Switchyard shard"):
        read_shard(dataset / FIRST)


def test_no_damaged_byte_reaches_the_hdf5_library(dataset, monkeypatch):
    """A flipped bit of HDF5's own tables may crash or hang it."""
    content = (dataset / FIRST).read_bytes()
    monkeypatch.setattr(h5py, "File", None)
    for place in range(0, len(content), 97):
        data = bytearray(content)
        data[place] ^= 1 << place % 8
        (dataset / FIRST).write_bytes(data)
        with pytest.raises(DatasetError, match=f"{FIRST}: damaged"):
            read_shard(dataset / FIRST)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n" + b"\x00" * 300])
def test_a_file_that_is_not_hdf5_is_refused(dataset, content):
    (dataset / FIRST).write_bytes(content)
    with pytest.raises(DatasetError, match=FIRST):
        read_shard(dataset / FIRST)


def test_a_missing_shard_is_refused_by_name(dataset):
    opened = Replay(dataset)
    (dataset / FIRST).unlink()
    with pytest.raises(DatasetError, match=f"{FIRST}: missing, 1 of 2 shards are"):
        Replay(dataset)
    with pytest.raises(DatasetError, match=f"{FIRST}.*is missing"):
        opened.read(range(10))
    assert f"{FIRST}: the manifest lists this shard but it is missing" in "\n".join(check(dataset).wrong)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", 1, "schema 1, this version reads schema 3"),
        ("state_version", 9, "state_version 9, this version reads state_version 2"),
        ("tasks", json.dumps(["lift-banana"]), "recorded for the tasks"),
        ("tasks", "not JSON", "not a readable"),
    ],
)
def test_a_shard_of_another_version_or_task_list_is_refused(dataset, key, value, message):
    with edited(dataset / FIRST) as file:
        file.attrs[key] = value
    with pytest.raises(DatasetError, match=f"{FIRST}.*{message}"):
        read_shard(dataset / FIRST)


def test_a_dataset_of_more_shards_than_a_process_may_open_is_read(tmp_path, make_episode, write_dataset):
    replay = Replay(write_dataset(tmp_path / "set", [[make_episode(accepted=())] for _ in range(40)]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 10, hard))
    try:
        frames = replay.read([replay.frames_of(episode)[0] for episode in range(40)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(frames) == 40


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: e.verdict.__setitem__((1, 0), ~e.verdict[1, 0]), "1 frames whose verdicts are others"),
        (lambda e: e.state.__setitem__((0, 3), np.nan), "a state that is not finite"),
        (lambda e: e.action.__setitem__((0, 0), 0.07), "an action out of bounds"),
        (lambda e: e.action.__setitem__((0, 4), 5), "a command that is none"),
        (lambda e: e.action.__setitem__((-1, 4), 0), "ends otherwise than it says"),
        (lambda e: object.__setattr__(e, "task_index", 10), "an episode of no known task"),
        (lambda e: object.__setattr__(e, "frames", (b"\xff\xd8\xff", *e.frames[1:])), "frame 0: "),
    ],
)
def test_what_a_shard_was_written_with_is_checked_too(tmp_path, write_dataset, spoil, message):
    episode = random_episode(3, 2, 0)
    spoil(episode)
    dataset = write_dataset(tmp_path / "set", [[episode]])
    assert any(message in text for text in check(dataset).wrong)


def test_an_episode_that_occurs_twice_is_found(tmp_path, write_dataset):
    dataset = write_dataset(tmp_path / "set", [[EPISODES[0]], [EPISODES[1], EPISODES[0]]])
    assert check(dataset).wrong == (f"{dataset}/shard-00001.h5: holds episode 0 of lift-milk, as shard-00000.h5 does",)


def test_a_dataset_as_it_was_written_has_no_findings(dataset):
    assert check(dataset) == Report(frames=10, wrong=(), unfinished=())


def test_a_folder_without_a_manifest_is_refused_and_told_how_to_make_one(tmp_path):
    with pytest.raises(DatasetError, match=f"{tmp_path}.*no dataset here.*python -m data collect"):
        Replay(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"schema": 1, "shards": []}', '{"schema": 2}', "\udcff\udcfe"]
)
def test_an_invalid_manifest_is_refused_by_name(dataset, text):
    (dataset / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        Replay(dataset)


@pytest.mark.parametrize(("old", "new"), [("tiny", "tinx"), ('"size": 16', '"size": 17'), ('"task": [3', '"task": [4')])
def test_a_changed_manifest_is_refused(dataset, old, new):
    path = dataset / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DatasetError, match=r"manifest\.json: damaged manifest"):
        Replay(dataset)


@pytest.mark.parametrize("missing", ["size", "renderer", "randomise", "split"])
def test_a_manifest_that_lacks_an_entry_is_refused_by_name(dataset, missing):
    path = dataset / "manifest.json"
    values = json.loads(path.read_text())
    del values[missing], values["crc32"]
    values["crc32"] = zlib.crc32(json.dumps(values, sort_keys=True).encode())
    path.write_text(json.dumps(values))
    with pytest.raises(DatasetError, match=rf"manifest\.json.*{missing}"):
        Replay(dataset)


def test_a_dataset_without_a_finished_shard_is_refused(tmp_path, write_dataset):
    with pytest.raises(DatasetError, match="no finished shard"):
        Replay(write_dataset(tmp_path / "set", []))
