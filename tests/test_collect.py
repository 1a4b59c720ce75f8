"""Collection with real worker processes: exact episode counts, determinism, safe to interrupt."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.check import check
from data.collect import collect
from data.manifest import merge, read_manifest, write_manifest
from data.plan import CollectConfig
from data.replay import Replay
from data.shards import read_shard
from sim.files import DatasetError
from sim.tasks import TASKS

ROOT = Path(__file__).parents[1]


def content(folder):
    """The bytes of every file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


BANANA, BOWL = (f"{task}-0-000000.h5" for task in ("lift-banana", "place-bowl"))
SECOND_BANANA = "lift-banana-0-000002.h5"


@pytest.fixture
def copied(tiny_dataset, tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(tiny_dataset, folder)
    return folder


def test_exactly_the_asked_episodes_are_collected_task_by_task(tiny_dataset):
    replay = Replay(tiny_dataset)
    banana, bowl = TASKS["lift-banana"].index, TASKS["place-bowl"].index
    assert replay.num_episodes == 6
    assert sorted(replay.episode_task.tolist()) == [banana] * 3 + [bowl] * 3
    assert replay.renderer == "tiny"
    assert (replay.size, replay.frame_size) == (48, 56)
    assert (replay.episode_length <= 25).all()
    assert replay.images([0, 10]).shape == (2, 56, 56, 3)
    assert sorted(path.name for path in tiny_dataset.iterdir()) == [
        "collect.json",
        "collect.lock",
        "lift-banana-0-000000.h5",
        "lift-banana-0-000002.h5",
        "manifest.json",
        "place-bowl-0-000000.h5",
        "place-bowl-0-000002.h5",
    ]
    assert check(tiny_dataset).wrong == ()


def test_a_shard_records_the_origin_of_its_episodes(tiny_dataset):
    _, tables, attributes = read_shard(tiny_dataset / SECOND_BANANA)
    assert tables["episode/number"].tolist() == [2]
    wanted = {"policy": "crude", "noise": 1.0, "seed": 3, "renderer": "tiny", "size": 48, "randomise": "all"}
    assert {key: attributes[key] for key in wanted} == wanted
    assert re.fullmatch(r"[0-9a-f]{40}\+?|unknown", attributes["commit"])


def test_the_dataset_does_not_depend_on_the_number_of_workers(tiny_dataset, tiny_collection, tmp_path):
    collect(CollectConfig(out=str(tmp_path / "one"), **{**tiny_collection, "workers": 1}))
    assert content(tmp_path / "one") == content(tiny_dataset)


def test_a_deleted_shard_is_made_again_as_it_was(copied, tiny_dataset, tiny_collection):
    (copied / SECOND_BANANA).unlink()
    (copied / f".{SECOND_BANANA}.123.tmp").write_bytes(b"left behind by a killed worker")
    untouched = (copied / BANANA).stat().st_mtime_ns
    collect(CollectConfig(out=str(copied), **tiny_collection))
    assert content(copied) == content(tiny_dataset)
    assert (copied / BANANA).stat().st_mtime_ns == untouched


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_manifest_that_is_gone_is_made_again_from_the_shards(copied, tiny_dataset, tiny_collection, damage):
    path = copied / "manifest.json"
    if damage == "missing":
        path.unlink()
    else:
        path.write_text(path.read_text()[:-9])
    untouched = (copied / BANANA).stat().st_mtime_ns
    collect(CollectConfig(out=str(copied), **tiny_collection))
    assert content(copied) == content(tiny_dataset)
    assert (copied / BANANA).stat().st_mtime_ns == untouched


def test_a_shard_that_is_refused_leaves_the_manifest_as_it_is(copied, tiny_dataset, tiny_collection):
    path, listed = copied / SECOND_BANANA, (copied / "manifest.json").read_bytes()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=f"{SECOND_BANANA}.*delete it, and the same command makes it again"):
        collect(CollectConfig(out=str(copied), **tiny_collection))
    assert (copied / "manifest.json").read_bytes() == listed
    assert len(check(copied).wrong) == 1
    path.unlink()
    collect(CollectConfig(out=str(copied), **tiny_collection))
    assert content(copied) == content(tiny_dataset)


def test_more_episodes_keep_every_shard(copied, tiny_collection, tmp_path):
    """Also those that are not full: another dataset may list them."""
    old = {path.name: path.read_bytes() for path in copied.glob("*.h5")}
    merge(tmp_path / "merged", [copied])
    manifest = collect(CollectConfig(out=str(copied), **{**tiny_collection, "episodes": 9}))
    assert manifest.episodes == Replay(copied).num_episodes == 9
    assert {name: (copied / name).read_bytes() for name in old} == old
    numbers = [read_shard(copied / entry.name)[1]["episode/number"] for entry in manifest.shards]
    assert sorted(np.concatenate(numbers)) == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert check(copied).wrong == check(tmp_path / "merged").wrong == ()


def test_a_growth_that_was_stopped_goes_on_to_the_same_bytes(copied, tiny_collection, tmp_path):
    grown = {**tiny_collection, "episodes": 10}
    stopped = shutil.copytree(copied, tmp_path / "stopped")
    collect(CollectConfig(out=str(copied), **grown))
    shutil.copy(copied / "collect.json", stopped)
    shutil.copy(copied / "lift-banana-0-000003.h5", stopped)
    report = check(stopped)
    assert report.wrong == ()
    assert "6 of the 10 episodes that were asked for" in report.unfinished[0]
    assert "1 shards are not listed yet, lift-banana-0-000003.h5 for one" in report.unfinished[1]
    collect(CollectConfig(out=str(stopped), **grown))
    assert content(stopped) == content(copied)
    assert check(stopped).unfinished == ()


def test_a_check_distinguishes_a_gap_from_damage(copied, tiny_collection):
    for episodes in (10, 18):
        collect(CollectConfig(out=str(copied), **{**tiny_collection, "episodes": episodes}))
    manifest = read_manifest(copied)
    (copied / "lift-banana-0-000003.h5").unlink()
    entries = tuple(entry for entry in manifest.shards if (copied / entry.name).exists())
    write_manifest(copied, replace(manifest, shards=entries))
    report = check(copied)
    assert report.wrong == ()
    assert "16 of the 18 episodes" in report.unfinished[0]
    assert "lift-banana lacks 2 episodes in between" in report.unfinished[1]
    write_manifest(copied, manifest)
    (copied / "lift-banana-0-000005.h5").write_bytes(b"?")
    report = check(copied, workers=2)
    assert len(report.wrong) == 2  # one is gone, one is damaged
    assert report.unfinished == ()


def test_a_shard_of_other_episodes_is_not_adopted(copied, tiny_collection):
    (copied / "manifest.json").unlink()
    shutil.copy(copied / BANANA, copied / SECOND_BANANA)
    with pytest.raises(DatasetError, match=f"{SECOND_BANANA}: holds other episodes than it should .episodes differ"):
        collect(CollectConfig(out=str(copied), **tiny_collection))


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"noise": 0.5},
        {"policy": "scripted"},
        {"size": 64},
        {"split": "test"},
        {"randomise": "none"},
        {"codec": "zstd"},
        {"quality": 80},
    ],
)
def test_a_shard_of_another_collection_is_not_adopted(copied, tiny_collection, tmp_path, other):
    strangers = {**tiny_collection, **other, "tasks": ("lift-banana",), "episodes": 2}
    collect(CollectConfig(out=str(tmp_path / "other"), **strangers))
    (copied / "manifest.json").unlink()
    shutil.copy(tmp_path / "other" / BANANA, copied / BANANA)
    with pytest.raises(
        DatasetError, match=f"{BANANA}: holds other episodes than it should .{next(iter(other))} differ"
    ):
        collect(CollectConfig(out=str(copied), **tiny_collection))


def test_a_finished_collection_is_left_as_it_is(copied, tiny_collection):
    before = content(copied)
    assert collect(CollectConfig(out=str(copied), **tiny_collection)).episodes == 6
    assert content(copied) == before


def test_a_task_stops_early_when_it_succeeds_often_enough(tmp_path, tiny_collection, capfd):
    """Decided by the episodes before the first gap, so the result does not depend on which worker was fastest."""
    options = {**tiny_collection, "episodes": 40, "policy": "scripted", "noise": 0.0, "until": 0.9, "window": 4}
    for name, workers in (("one", 1), ("two", 2)):
        folder = tmp_path / name
        manifest = collect(CollectConfig(out=str(folder), **{**options, "workers": workers}))
        assert {entry.name for entry in manifest.shards} == {path.name for path in folder.glob("*.h5")}
        assert 4 <= manifest.episodes // 2 < 20
        assert re.search(
            r"lift-banana: ended after \d+ of 20 episodes, 100% of its last 4 succeed", capfd.readouterr().err
        )
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_task_that_stopped_early_is_not_collected_further(tmp_path, tiny_collection):
    """The other task never stops early, so all of it is collected; two shards ahead may have been begun."""
    mix = tmp_path / "mix.toml"
    mix.write_text(
        """
        [[source]]
        tasks = ["lift-banana"]
        policy = "scripted"
        noise = 0.0
        episodes = 30
        [[source]]
        tasks = ["place-bowl"]
        noise = 9.0
        episodes = 30
        """
    )
    options = {key: value for key, value in tiny_collection.items() if key not in ("tasks", "episodes")}
    folder = tmp_path / "set"
    collect(CollectConfig(out=str(folder), mix=str(mix), **options, until=0.7, window=4))
    bananas = (Replay(folder).episode_task == TASKS["lift-banana"].index).sum()
    assert 4 <= bananas <= 12
    assert Replay(folder).num_episodes == bananas + 30


def test_two_collections_do_not_share_a_folder(copied, tiny_collection):
    with (copied / "collect.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DatasetError, match=f"{copied}: another collection is at work"):
            collect(CollectConfig(out=str(copied), **{**tiny_collection, "episodes": 8}))


def test_a_folder_that_may_not_be_written_is_named(tmp_path, tiny_collection, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*collect\.json'"):
        collect(CollectConfig(out=str(tmp_path / "set"), **tiny_collection))


def test_the_ray_backend_makes_the_same_dataset(tiny_dataset, tiny_collection, tmp_path):
    pytest.importorskip("ray")
    collect(CollectConfig(out=str(tmp_path / "ray"), **tiny_collection, backend="ray"))
    assert content(tmp_path / "ray") == content(tiny_dataset)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 4}, r"other options: seed 3 \(now 4\)"),
        ({"noise": 0.25}, r"other options: noise 1\.0 \(now 0\.25\)"),
        ({"codec": "zstd"}, r"other options: codec 'jpeg' \(now 'zstd'\)"),
        ({"size": 64}, r"other options: size 48 \(now 64\)"),
        ({"tasks": ("lift-can",)}, "other options: tasks"),
        ({"renderer": "egl"}, "rendered by tiny, asked for egl"),
        ({"randomise": "none"}, r"other options: randomise 'all' \(now 'none'\)"),
        ({"split": "test"}, r"other options: split 'train' \(now 'test'\)"),
        ({"episodes": 5}, "was asked for 6 episodes, now for 5"),
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


def test_a_truncated_shard_is_named_when_collection_goes_on(copied, tiny_collection):
    path = copied / SECOND_BANANA
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DatasetError, match=SECOND_BANANA):
        collect(CollectConfig(out=str(copied), **tiny_collection))


@pytest.mark.parametrize(("old", "new"), [("{", ""), ("6", "5"), ('"asked"', '"aske"')])
def test_a_damaged_list_of_options_is_refused_by_name(copied, tiny_collection, old, new):
    path = copied / "collect.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DatasetError, match=r"collect\.json"):
        collect(CollectConfig(out=str(copied), **tiny_collection))
    assert "collect.json" in check(copied).wrong[0]


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
        ({"codec": "gif"}, "unknown codec 'gif'"),
        ({"backend": "slurm"}, "unknown backend 'slurm'"),
        ({"until": 1.5}, "until is a rate"),
        ({"policy": "checkpoint"}, "policy checkpoint and a checkpoint go together"),
        ({"checkpoint": "a.ckpt"}, "policy checkpoint and a checkpoint go together"),
        ({"policy": "checkpoint", "checkpoint": "a.ckpt", "noise": 2.0}, "at most 1 for a checkpoint"),
        ({"policy": "checkpoint", "checkpoint": "a.ckpt"}, "every action of a checkpoint is random"),
        ({"policy": "checkpoint", "checkpoint": "a.ckpt", "noise": 0.1}, "a.ckpt: no such checkpoint"),
        ({"mix": "a.toml"}, "the mix says episodes, tasks|the mix says tasks, episodes"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(tmp_path, tiny_collection, wrong, message):
    with pytest.raises(ValueError, match=message):
        collect(CollectConfig(out=str(tmp_path / "new"), **{**tiny_collection, **wrong}))
    assert not (tmp_path / "new").exists()
