"""Collection with real worker processes: exact numbers, the same data however it was made, safe to interrupt."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.collect import CollectConfig, collect
from data.replay import Replay
from data.shards import DatasetError, Shard
from sim.tasks import TASKS

ROOT = Path(__file__).parents[1]


def content(folder):
    """Everything the shards hold, apart from where and by how many workers they were made."""
    out = {}
    for path in sorted(folder.glob("shard-*.h5")):
        shard = Shard(path)
        out[path.name] = {key: table.tobytes() for key, table in shard.tables.items()}
        out[path.name]["frames"] = [shard.frame_bytes(i).tobytes() for i in range(len(shard.tables["frame/crc32"]))]
    return out


@pytest.fixture
def copied(tiny_dataset, tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(tiny_dataset, folder)
    return folder


def test_exactly_the_asked_episodes_are_collected_task_by_task(tiny_dataset):
    replay = Replay(tiny_dataset)
    banana, bowl = TASKS["lift-banana"].index, TASKS["place-bowl"].index
    assert replay.num_episodes == 6
    assert replay.episode_task.tolist() == [banana, bowl] * 3
    assert replay.renderer == "tiny"
    assert replay.size == 48
    assert (replay.episode_length <= 25).all()
    assert replay.frames([0, 10]).shape == (2, 56, 56, 3)
    assert sorted(path.name for path in tiny_dataset.iterdir()) == [
        "collect.json",
        "manifest.json",
        "shard-00000.h5",
        "shard-00001.h5",
        "shard-00002.h5",
    ]


def test_an_episode_ends_by_terminate_or_at_the_horizon(tiny_dataset):
    for path in tiny_dataset.glob("shard-*.h5"):
        tables = Shard(path).tables
        last = np.cumsum(tables["episode/length"]) - 1
        assert np.array_equal(tables["episode/terminated"], tables["action"][last, 4] == 3)
        assert (tables["episode/length"][~tables["episode/terminated"]] == 25).all()


def test_the_dataset_does_not_depend_on_the_number_of_workers(tiny_dataset, tiny_collection, tmp_path):
    collect(CollectConfig(out=str(tmp_path / "one"), **{**tiny_collection, "workers": 1}))
    assert content(tmp_path / "one") == content(tiny_dataset)


def test_a_deleted_shard_is_made_again_as_it_was(copied, tiny_dataset, tiny_collection):
    (copied / "shard-00001.h5").unlink()
    (copied / ".shard-00001.h5.123.tmp").write_bytes(b"left behind by a killed worker")
    untouched = (copied / "shard-00000.h5").stat().st_mtime_ns
    collect(CollectConfig(out=str(copied), **tiny_collection))
    assert content(copied) == content(tiny_dataset)
    assert (copied / "shard-00000.h5").stat().st_mtime_ns == untouched
    assert not list(copied.glob(".*.tmp"))
    assert Replay(copied).num_episodes == 6


def test_more_episodes_keep_the_shards_that_are_there(copied, tiny_dataset, tiny_collection):
    old = {path.name: path.stat().st_mtime_ns for path in copied.glob("shard-*.h5")}
    manifest = collect(CollectConfig(out=str(copied), **{**tiny_collection, "episodes": 7}))
    assert manifest["episodes"] == Replay(copied).num_episodes == 7
    assert {name: (copied / name).stat().st_mtime_ns for name in old} == old
    assert len(content(copied)) == 4
    collect(CollectConfig(out=str(copied), **{**tiny_collection, "episodes": 8}))  # fills the last shard up
    assert Replay(copied).num_episodes == 8
    assert {name: (copied / name).stat().st_mtime_ns for name in old} == old


def test_a_finished_collection_is_left_as_it_is(copied, tiny_collection):
    before = {path.name: path.read_bytes() for path in copied.glob("shard-*.h5")}
    assert collect(CollectConfig(out=str(copied), **tiny_collection))["episodes"] == 6
    assert {path.name: path.read_bytes() for path in copied.glob("shard-*.h5")} == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 4}, r"other options: seed 3 \(now 4\)"),
        ({"noise": 0.25}, r"other options: noise 1\.0 \(now 0\.25\)"),
        ({"size": 64}, r"other options: size 48 \(now 64\)"),
        ({"tasks": ("lift-can",)}, "other options: tasks"),
        ({"renderer": "egl"}, "rendered by tiny, asked for egl"),
        ({"randomise": "none"}, r"other options: randomise 'all' \(now 'none'\)"),
        ({"split": "test"}, r"other options: split 'train' \(now 'test'\)"),
        ({"episodes": 5}, "already holds 6 episodes, asked for 5"),
    ],
)
def test_a_dataset_collected_otherwise_is_refused_and_left_as_it_is(copied, tiny_collection, other, message):
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    with pytest.raises(DatasetError, match=f"{copied}.*{message}"):
        collect(CollectConfig(out=str(copied), **{**tiny_collection, **other}))
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_a_folder_that_holds_something_else_is_refused(tmp_path, tiny_collection):
    (tmp_path / "thesis.tex").write_text("hello")
    with pytest.raises(DatasetError, match=f"{tmp_path}: not empty and not a Switchyard dataset"):
        collect(CollectConfig(out=str(tmp_path), **tiny_collection))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_shard_is_named_when_collection_goes_on(copied, tiny_collection, damage):
    path = copied / "shard-00001.h5"
    whole = path.read_bytes()
    table = Shard(path).tables["action"].tobytes()
    at = whole.index(table)
    path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else whole[:at] + b"\xff" + whole[at + 1 :])
    with pytest.raises(DatasetError, match=r"shard-00001\.h5"):
        collect(CollectConfig(out=str(copied), **tiny_collection))


def test_a_damaged_list_of_options_is_refused_by_name(copied, tiny_collection):
    (copied / "collect.json").write_text("{")
    with pytest.raises(DatasetError, match=r"collect\.json"):
        collect(CollectConfig(out=str(copied), **tiny_collection))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"episodes": 0}, "episodes is at least 1, got 0"),
        ({"workers": 0}, "workers is at least 1, got 0"),
        ({"episodes_per_shard": 0}, "episodes_per_shard is at least 1"),
        ({"quality": 101}, "quality is 1 to 100, got 101"),
        ({"tasks": ("lift-cann",)}, "unknown task 'lift-cann'.*Did you mean 'lift-can'"),
        ({"renderer": "tinny"}, "unknown renderer 'tinny'.*Did you mean 'tiny'"),
        ({"policy": "crud"}, "unknown policy 'crud'.*Did you mean 'crude'"),
        ({"size": 20}, "no network sees 20 px"),
        ({"seed": -1}, "seed is 0 or more"),
        ({"noise": -1.0}, "noise"),
        ({"tasks": ()}, "task"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(tmp_path, tiny_collection, wrong, message):
    with pytest.raises(ValueError, match=message):
        collect(CollectConfig(out=str(tmp_path / "new"), **{**tiny_collection, **wrong}))
    assert not (tmp_path / "new").exists()


def command(folder, episodes):
    values = {
        "out": folder,
        "episodes": episodes,
        "size": 48,
        "workers": 2,
        "renderer": "tiny",
        "episodes_per_shard": 4,
    }
    return [sys.executable, "-m", "data", "collect", *(str(v) for key in values for v in (f"--{key}", values[key]))]


def wait_until(happened, seconds):
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.05)
    return happened()


def group_has_ended(group):
    """Whether no process of the group runs (what has ended but was not waited for does not count)."""
    states = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        states += [fields[0]] if int(fields[2]) == group else []
    return all(state in "ZX" for state in states)


def test_a_killed_collection_leaves_no_worker_behind_and_the_same_command_completes_it(tmp_path):
    """The parent gets SIGKILL, so it can tell its workers nothing."""
    folder = tmp_path / "killed"
    killed = subprocess.Popen(
        command(folder, 4000), cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert wait_until(lambda: len(list(folder.glob("shard-*.h5"))) >= 2, 60)
        killed.kill()
        killed.wait()
        workers_ended = wait_until(lambda: group_has_ended(killed.pid), 10)
    finally:
        if not group_has_ended(killed.pid):
            os.killpg(killed.pid, signal.SIGKILL)
    finished = [path.name for path in folder.glob("shard-*.h5")]
    options = json.loads((folder / "collect.json").read_text())
    (folder / "collect.json").write_text(json.dumps({**options, "episodes": 4 * len(finished) + 3}))
    (folder / "manifest.json").unlink(missing_ok=True)
    again = subprocess.run(command(folder, 4 * len(finished) + 3), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert Replay(folder).num_episodes == 4 * len(finished) + 3
    assert workers_ended, "workers went on collecting after their parent was killed"
