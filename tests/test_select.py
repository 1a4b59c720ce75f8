"""Selections: the episodes that each condition keeps, on a hand-made dataset of six episodes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from data.__main__ import main
from data.check import Report, check
from data.manifest import episodes_of, merge, read_manifest, write_manifest
from data.replay import Replay
from data.select import CONDITIONS, holding, select
from data.view import view
from sim.files import DatasetError
from sim.tasks import TASK_NAMES

EPISODES = [  # (task, number, steps, succeeds at); the first three scripted, the others crude
    ("lift-can", 0, 2, ("lift-can",)),
    ("lift-can", 1, 5, ()),
    ("place-bowl", 0, 3, ("place-bowl",)),
    ("lift-milk", 0, 4, ("lift-can",)),
    ("place-bowl", 1, 6, ("lift-can", "place-bowl")),
    ("lift-can", 2, 7, ("lift-can",)),
]
ALL = set(range(6))


@pytest.fixture
def folder(tmp_path, make_episode, write_dataset):
    made = [make_episode(task, steps, accepted, number=number) for task, number, steps, accepted in EPISODES]
    folder = write_dataset(tmp_path / "set", [made[:3], made[3:]])
    manifest = read_manifest(folder)
    first, second = manifest.shards
    write_manifest(folder, replace(manifest, shards=(first, replace(second, policy="crude"))))
    return folder


def held(folder):
    """Position in EPISODES of each episode of the dataset."""
    known = [(task, number) for task, number, *_ in EPISODES]
    return [
        known.index((TASK_NAMES[task], number))
        for entry in read_manifest(folder).shards
        for task, number in zip(entry.task, entry.number, strict=True)
    ]


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("success", {0, 2, 4, 5}),
        ("failure", {1, 3}),
        ("task=lift-can", {0, 1, 5}),
        ("task=lift-can|lift-milk", {0, 1, 3, 5}),
        ("skill=lift", {0, 1, 3, 5}),
        ("skill=place", {2, 4}),
        ("policy=scripted", {0, 1, 2}),
        ("policy=crude|scripted", ALL),
        ("solves=lift-can", {0, 3, 4, 5}),
        ("solves=place-bowl|lift-milk", {2, 4}),
        ("length<=4", {0, 2, 3}),
        ("length<4", {0, 2}),
        ("length>5", {4, 5}),
        ("length>=5", {1, 4, 5}),
        ("length=5|7", {1, 5}),
        ("length=3:6", {1, 2, 3}),
        ("number=0", {0, 2, 3}),
        ("number=1:3", {1, 4, 5}),
        ("number=2:", {5}),
        ("episodes=0:2|4", {0, 1, 4}),
        ("episodes=:3", {0, 1, 2}),
        ("episodes>3", {4, 5}),
        ("success|failure", ALL),
        ("failure|length>6", {1, 3, 5}),
        ("task=lift-can, success", {0, 5}),
        ("task=lift-can,length>=5,length<7", {1}),
        (" task = lift-can | lift-milk , length <= 4 , episodes = 0 : 4 | 5 ", {0, 3}),
    ],
)
def test_selecting_keeps_those_for_which_all_hold_and_dropping_the_others(folder, tmp_path, where, kept):
    assert select(folder, tmp_path / "kept", where) == 6
    assert held(tmp_path / "kept") == sorted(kept)
    if kept != ALL:
        select(folder, tmp_path / "rest", where, drop=True)
        assert held(tmp_path / "rest") == sorted(ALL - kept)


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_is_used_as_in_its_example(folder, name):
    example = CONDITIONS[name].example
    assert re.match(r"\w+", example)[0] == name
    assert holding(episodes_of(read_manifest(folder)), example).shape == (6,)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("sucess", "unknown condition 'sucess'.*Did you mean 'success'"),
        ("lenght<=3", "unknown condition 'lenght'.*Did you mean 'length'"),
        ("", "unknown condition ''"),
        ("success,", "unknown condition ''"),
        ("task=lift-cann", "unknown task 'lift-cann'.*Did you mean 'lift-can'"),
        ("task=lift-can|lift", "unknown task 'lift'"),
        ("task==lift-can", "unknown task '=lift-can'.*Did you mean 'lift-can'"),
        ("solves=place", "unknown task 'place'"),
        ("skill=lifts", "unknown skill 'lifts'.*Did you mean 'lift'"),
        ("policy=crud", "unknown policy 'crud'.*Did you mean 'crude'"),
        ("task", "'task': write it as in task=lift-can"),
        ("task<lift-can", "'task<lift-can': write it as in task="),
        ("success=1", "'success=1': write it as in success"),
        ("length", "'length': write it as in length<=20"),
        ("length<=x", "'x' is neither a whole number nor a range A:B; write it as in length<=20"),
        ("length<=1:3", "'1:3' is neither"),
        ("number=-1", "'-1' is neither"),
        ("episodes=1.5", "'1.5' is neither"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(folder, tmp_path, where, message):
    with pytest.raises(ValueError, match=message):
        select(folder, tmp_path / "out", where)
    assert not (tmp_path / "out").exists()


def test_at_most_so_many_of_each_task_the_first_ones(folder, tmp_path):
    select(folder, tmp_path / "one", None, per_task=1)
    assert held(tmp_path / "one") == [0, 2, 3]
    select(folder, tmp_path / "two", "length>2", per_task=2)
    assert held(tmp_path / "two") == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="per-task is at least 1, got 0"):
        select(folder, tmp_path / "none", "success", per_task=0)
    with pytest.raises(ValueError, match="nothing to select by"):
        select(folder, tmp_path / "none", None)


def test_a_selection_copies_nothing_and_is_whole(folder, tmp_path):
    select(folder, tmp_path / "kept", "success")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["manifest.json"]
    kept, whole = Replay(tmp_path / "kept"), Replay(folder)
    assert kept.read(kept.frames_of(2))[0].image == whole.read(whole.frames_of(4))[0].image
    assert [entry.name for entry in read_manifest(tmp_path / "kept").shards] == [
        "../set/shard-00000.h5",
        "../set/shard-00001.h5",
    ]


def test_selections_are_selected_from_merged_and_checked(tmp_path, make_episode, write_dataset):
    made = [make_episode(task, steps, accepted, number=number) for task, number, steps, accepted in EPISODES]
    parts = [write_dataset(tmp_path / name, [part]) for name, part in (("a", made[:4]), ("b", made[4:]))]
    merge(tmp_path / "both", parts)
    select(tmp_path / "both", tmp_path / "cans", "task=lift-can")
    assert held(tmp_path / "cans") == [0, 1, 5]
    select(tmp_path / "cans", tmp_path / "late", "episodes=1:")  # positions are those of the selection
    assert held(tmp_path / "late") == [1, 5]
    select(tmp_path / "both", tmp_path / "others", "task=lift-can", drop=True)
    merge(tmp_path / "again", [tmp_path / "others", tmp_path / "cans"])
    assert sorted(held(tmp_path / "again")) == sorted(ALL)
    frames = sum(steps + 1 for _, _, steps, _ in EPISODES)
    assert check(tmp_path / "again") == Report(frames=frames, wrong=(), unfinished=())


def test_episodes_have_the_positions_that_the_page_shows(folder, tmp_path):
    view(Replay(folder), tmp_path / "view.html", 40, TASK_NAMES, "failure")
    text = (tmp_path / "view.html").read_text(encoding="utf-8")
    shown = json.loads(re.search(r"const page = (\{.*\});\n", text)[1])["episodes"]
    select(folder, tmp_path / "kept", "episodes=" + "|".join(str(episode["number"]) for episode in shown))
    assert held(tmp_path / "kept") == [1, 3]


@pytest.mark.parametrize(
    ("where", "drop", "message"),
    [
        ("task=place-plate", False, "set: nothing is left, of its 6 episodes none fulfil 'task=place-plate'"),
        ("length>1", True, "set: nothing is left, of its 6 episodes all fulfil 'length>1'"),
    ],
)
def test_a_selection_of_nothing_is_refused(folder, tmp_path, where, drop, message):
    with pytest.raises(DatasetError, match=message):
        select(folder, tmp_path / "out", where, drop=drop)
    assert not (tmp_path / "out").exists()


def test_a_selection_needs_a_new_folder_and_all_shards(folder, tmp_path):
    with pytest.raises(DatasetError, match="set: not empty"):
        select(folder, folder, "success")
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="file: a file; name a new folder"):
        select(folder, tmp_path / "file", "success")
    (folder / "shard-00001.h5").unlink()
    with pytest.raises(DatasetError, match=r"shard-00001\.h5: missing, 1 of 2"):
        select(folder, tmp_path / "out", "success")
    assert not (tmp_path / "out").exists()


def test_the_commands_print_what_they_kept(folder, tmp_path, capsys):
    kept, rest = tmp_path / "kept", tmp_path / "rest"
    assert main(["select", str(folder), str(kept), "--where", "success, length<=6", "--per-task", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"{kept}: 2 episodes, 5 steps, 1 shards" in printed
    assert f"2 of the 6 episodes of {folder}" in printed
    assert main(["drop", str(folder), str(rest), "--where", "success"]) == 0
    assert f"2 of the 6 episodes of {folder}" in capsys.readouterr().out
    assert held(rest) == [1, 3]


def test_a_file_of_transitions_is_no_dataset_of_episodes(tmp_path, capsys):
    (tmp_path / "walker2d.h5").touch()
    assert main(["select", str(tmp_path / "walker2d.h5"), str(tmp_path / "out"), "--where", "success"]) == 2
    assert "walker2d.h5: a file; this works on datasets of episodes" in capsys.readouterr().err
