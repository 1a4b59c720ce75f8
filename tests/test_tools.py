"""Tools for datasets: merge, split, view, export."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data import codec
from data.__main__ import main
from data.check import Report, check
from data.export import EXPORTS
from data.manifest import merge, read_manifest, split, write_manifest
from data.replay import Replay
from data.view import choose_episodes, view
from sim.files import DatasetError
from sim.tasks import TASK_NAMES, TASKS


@pytest.fixture
def two(tmp_path, make_episode, write_dataset):
    """Two datasets of three and two episodes; each frame has its own grey level."""

    def episode(number, task, accepted):
        return make_episode(task, 2, accepted, [40 * number + 8 * k for k in range(3)], number=number, side=32)

    first = [[episode(0, "lift-can", ("lift-can",)), episode(1, "lift-can", ())], [episode(2, "place-bowl", ())]]
    second = [[episode(3, "lift-can", ("lift-can",)), episode(4, "place-bowl", ("place-bowl",))]]
    return write_dataset(tmp_path / "a", first, 32), write_dataset(tmp_path / "b", second, 32)


def greys(replay):
    return [int(replay.images([replay.frames_of(e)[0]]).mean().round()) for e in range(replay.num_episodes)]


def rewrite(folder, **changes):
    write_manifest(folder, replace(read_manifest(folder), **changes))


def test_merging_lists_all_episodes_and_copies_no_shard(two, tmp_path):
    merge(tmp_path / "both", two)
    both = Replay(tmp_path / "both")
    assert greys(both) == [0, 40, 80, 120, 160]
    assert both.episode_task.tolist() == [TASKS[n].index for n in ("lift-can", "lift-can", "place-bowl") * 2][:3] + [
        TASKS["lift-can"].index,
        TASKS["place-bowl"].index,
    ]
    assert [path.name for path in (tmp_path / "both").iterdir()] == ["manifest.json"]
    assert check(tmp_path / "both") == Report(frames=15, wrong=(), unfinished=())


def test_a_merged_dataset_may_be_moved_together_with_its_parts(two, tmp_path):
    merge(tmp_path / "both", two)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("a", "b", "both"):
        shutil.move(tmp_path / name, moved / name)
    assert greys(Replay(moved / "both")) == [0, 40, 80, 120, 160]


def test_merging_joins_what_was_randomised(two, tmp_path):
    rewrite(two[0], randomise=("look", "size"))
    rewrite(two[1], randomise=("light", "size"))
    assert merge(tmp_path / "both", two).randomise == ("light", "look", "size")


@pytest.mark.parametrize(("key", "value"), [("size", 24), ("renderer", "egl"), ("split", "test")])
def test_datasets_that_do_not_fit_are_not_merged(two, tmp_path, key, value):
    rewrite(two[1], **{key: value})
    with pytest.raises(DatasetError, match=f"cannot merge: {key} differs.*{value}"):
        merge(tmp_path / "both", two)
    assert not (tmp_path / "both").exists()


def test_an_episode_is_not_merged_twice(two, tmp_path):
    merge(tmp_path / "both", two)
    shutil.copytree(two[0], tmp_path / "copied")
    for again in (two[0], tmp_path / "copied"):
        with pytest.raises(DatasetError, match=r"both hold episode 0 of lift-can \(seed 0, .*another --seed"):
            merge(tmp_path / "again", [tmp_path / "both", again])
    assert not (tmp_path / "again").exists()


def test_a_merged_dataset_with_its_shards_copied_stands_alone(two, tmp_path):
    """Two selections of one file included."""
    split(two[0], tmp_path / "x", tmp_path / "y", 0.5, seed=0)
    merge(tmp_path / "alone", [tmp_path / "x", tmp_path / "y", two[1]], copy=True)
    for folder in two:
        shutil.rmtree(folder)
    alone = shutil.move(tmp_path / "alone", tmp_path / "moved")
    assert sorted(greys(Replay(alone))) == [0, 40, 80, 120, 160]
    assert len(list(alone.glob("*.h5"))) == 3
    assert check(alone) == Report(frames=15, wrong=(), unfinished=())


def test_a_copy_that_stopped_is_made_again_and_copies_nothing_damaged(two, tmp_path):
    shard = two[1] / "shard-00000.h5"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-30] + bytes(30))
    with pytest.raises(DatasetError, match=rf"{shard}: damaged shard"):
        merge(tmp_path / "alone", two, copy=True)
    assert not (tmp_path / "alone").exists()
    shard.write_bytes(whole)
    merge(tmp_path / "alone", two, copy=True)
    assert greys(Replay(tmp_path / "alone")) == [0, 40, 80, 120, 160]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "alone"}


def test_a_dataset_that_lacks_shards_is_neither_merged_nor_split(two, tmp_path):
    (two[0] / "shard-00001.h5").unlink()
    with pytest.raises(DatasetError, match=r"shard-00001\.h5: missing, 1 of 2"):
        merge(tmp_path / "both", two)
    with pytest.raises(DatasetError, match=r"shard-00001\.h5: missing, 1 of 2"):
        split(two[0], tmp_path / "x", tmp_path / "y", 0.5, seed=0)
    assert not {"both", "x", "y"} & {path.name for path in tmp_path.iterdir()}


def test_a_folder_with_something_in_it_is_left_alone(two, tmp_path):
    with pytest.raises(DatasetError, match="not empty"):
        merge(two[1], [two[0]])
    assert greys(Replay(two[1])) == [120, 160]


def test_a_split_is_stratified_by_task_and_outcome(tmp_path, make_episode, write_dataset):
    kinds = [("lift-can", ("lift-can",), 20), ("lift-can", (), 10), ("place-bowl", (), 10)]
    chosen = [(task, accepted) for task, accepted, count in kinds for _ in range(count)]
    episodes = [make_episode(task, 1, accepted, number=number) for number, (task, accepted) in enumerate(chosen)]
    write_dataset(tmp_path / "set", [episodes[n : n + 7] for n in range(0, 40, 7)])
    halves = split(tmp_path / "set", tmp_path / "first", tmp_path / "second", 0.8, seed=1)
    parts = [Replay(tmp_path / name) for name in ("first", "second")]
    can = TASKS["lift-can"].index
    for part, counts in zip(parts, ((16, 8, 8), (4, 2, 2)), strict=True):
        own = part.episode_task == can
        assert ((own & part.success[:, can]).sum(), (own & ~part.success[:, can]).sum(), (~own).sum()) == counts
    held = [(Path(entry.name).name, first) for half in halves for entry in half.shards for first in entry.first]
    assert sorted(held) == [(e.name, first) for e in read_manifest(tmp_path / "set").shards for first in e.first]
    assert [check(tmp_path / name) for name in ("first", "second")] == [
        Report(frames=2 * count, wrong=(), unfinished=()) for count in (32, 8)
    ]
    assert split(tmp_path / "set", tmp_path / "again", tmp_path / "rest", 0.8, seed=1) == halves
    assert split(tmp_path / "set", tmp_path / "other", tmp_path / "others", 0.8, seed=2) != halves


def test_two_halves_do_not_share_a_folder(two, tmp_path):
    with pytest.raises(DatasetError, match="both halves in one folder"):
        split(two[0], tmp_path / "half", tmp_path / "half", 0.5, seed=0)


def test_a_half_is_split_again(two, tmp_path):
    split(two[0], tmp_path / "first", tmp_path / "rest", 0.5, seed=0)
    merge(tmp_path / "both", [tmp_path / "first", two[1]])
    split(tmp_path / "both", tmp_path / "a1", tmp_path / "a2", 0.5, seed=0)
    parts = [Replay(tmp_path / name) for name in ("a1", "a2", "rest")]
    assert sorted(grey for part in parts for grey in greys(part)) == [0, 40, 80, 120, 160]


def test_the_page_shows_every_kind_first(two, tmp_path):
    merge(tmp_path / "both", two)
    replay = Replay(tmp_path / "both")
    assert choose_episodes(replay, 4, TASK_NAMES, "all") == [0, 1, 2, 4]
    assert choose_episodes(replay, 9, TASK_NAMES, "success") == [0, 3, 4]
    assert choose_episodes(replay, 9, ("place-bowl",), "failure") == [2]
    with pytest.raises(ValueError, match="no episode of outcome all among lift-milk"):
        view(replay, tmp_path / "view.html", 9, ("lift-milk",), "all")


def test_the_page_holds_its_frames_and_nothing_that_is_fetched(two, tmp_path):
    assert view(Replay(two[0]), tmp_path / "view.html", 40, TASK_NAMES, "all") == 3
    text = (tmp_path / "view.html").read_text()
    page = json.loads(re.search(r"const page = (\{.*\});\n", text)[1])
    assert len(page["episodes"][0]["frames"]) == 3
    assert page["episodes"][0]["success"] is True
    assert not re.search(r"(src|href)=\"|https?://|@import|fetch\(", text.replace('src="data:', ""))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here")
def test_the_page_filters_and_scrubs_in_a_browser(two, tmp_path):
    view(Replay(two[0]), tmp_path / "view.html", 40, TASK_NAMES, "all")
    steps = """<script>
      const seen = [$("list").children.length];
      $("outcome").value = "failure"; $("outcome").onchange(); seen.push($("list").children.length);
      $("list").children[1].click(); seen.push($("what").textContent);
      const first = $("frame").src; $("step").value = 2; $("step").oninput();
      seen.push($("frame").src !== first, $("now").textContent);
      document.body.replaceChildren(JSON.stringify(seen));
    </script></html>"""
    page = tmp_path / "driven.html"
    page.write_text((tmp_path / "view.html").read_text().replace("</html>", steps))
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    out = subprocess.run(browser, capture_output=True, text=True, timeout=60).stdout
    shown = json.loads(re.search(r"<body>(\[.*\])\s*</body>", out)[1])
    assert shown == [3, 2, "episode 2, place-bowl, by scripted: failure", True, "frame 2 of 2, the last"]


def test_minari_reads_the_export(two, tmp_path):
    minari = pytest.importorskip("minari")
    replay = Replay(two[0])
    EXPORTS["minari"](replay, tmp_path / "out")
    dataset = minari.MinariDataset(tmp_path / "out" / "data")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 6)
    for number, episode in enumerate(dataset):
        stored = replay.read(replay.frames_of(number))
        images = replay.images(replay.frames_of(number)).astype(int)
        assert np.abs(episode.observations["image"].astype(int) - images).max() <= 3  # two decoders
        assert np.array_equal(episode.actions["translation"], [frame.action[:3] for frame in stored[:-1]])
        assert np.array_equal(episode.infos["state"], [frame.state for frame in stored])
        assert dataset.action_space["translation"].contains(episode.actions["translation"][0])
        assert dataset.observation_space["image"].contains(episode.observations["image"][0])
    assert [float(episode.rewards.sum()) for episode in dataset] == [1, 0, 0]


def test_the_lerobot_export_has_lerobots_files(two, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    EXPORTS["lerobot"](Replay(two[0]), tmp_path / "out")
    table = parquet.read_table(tmp_path / "out" / "data" / "chunk-000" / "file-000.parquet")
    data = table.to_pydict()
    assert (data["episode_index"], data["frame_index"]) == ([0, 0, 1, 1, 2, 2], [0, 1] * 3)
    assert data["next.success"] == [False, True] + [False] * 4
    info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"]) == ("v3.0", 3, 6)
    assert info["features"].keys() == data.keys()
    features = info["features"].items()
    stored = {key: table.schema.field(key).type for key in data}
    assert {
        key: str(getattr(stored[key], "value_type", stored[key])) for key, feature in features if "image" not in key
    } == {key: feature["dtype"].replace("float32", "float") for key, feature in features if "image" not in key}


def test_lerobot_reads_the_export(two, tmp_path):
    pytest.importorskip("pyarrow")
    replay = Replay(two[0])
    EXPORTS["lerobot"](replay, tmp_path / "out")
    datasets = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    dataset = datasets.LeRobotDataset("switchyard/pick-place", root=tmp_path / "out")
    assert (dataset.num_episodes, dataset.num_frames) == (3, 6)
    row = dataset[3]  # the last step of the second episode
    image = codec.decode(replay.read([4])[0].image) / 255
    assert np.abs(row["observation.image"].permute(1, 2, 0).numpy() - image).max() <= 3 / 255
    assert np.allclose(row["action"], replay.read([4])[0].action)
    assert (row["task"], bool(row["next.done"])) == ("lift-can", True)


def test_the_commands_print_what_they_did(two, tmp_path, capsys):
    a, b = map(str, two)
    both = str(tmp_path / "both")
    assert main(["merge", both, a, b]) == 0
    assert "5 episodes, 10 steps, 3 shards" in capsys.readouterr().out
    assert main(["check", both, "--workers", "1"]) == 0
    assert f"{both}: all 15 frames are as they were written" in capsys.readouterr().out
    assert main(["split", both, str(tmp_path / "x"), str(tmp_path / "y"), "--fraction", "0.5"]) == 0
    assert main(["view", both]) == 0
    assert main(["info", both]) == 0
    assert "100,000 episodes of 25 steps" in capsys.readouterr().out
    shard = two[0] / "shard-00000.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["check", both, "--workers", "1"]) == 1
    assert f"{shard.name}: " in capsys.readouterr().out


def test_a_reader_that_has_had_enough_is_no_error(two):
    line = f"{{ sleep 0.5; {sys.executable} -m data info {two[0]}; }} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("info nowhere", "nowhere: no dataset here"),
        ("view nowhere --outcome maybe", "unknown outcome 'maybe'"),
        ("merge out nowhere", "nowhere: no dataset here"),
        ("export nowhere out --format csv", "unknown format 'csv': choose from lerobot, minari"),
        ("split nowhere a b --fraction 2", "fraction is between 0 and 1"),
    ],
)
def test_the_commands_refuse_in_one_line(line, message, capsys):
    assert main(line.split()) == 2
    assert message in capsys.readouterr().err


def test_nothing_in_the_package_unpickles_a_dataset():
    for path in (Path(__file__).parents[1] / "data").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert "pickle" not in {name.name for name in node.names}, path
            if isinstance(node, ast.Attribute) and node.attr == "load":
                assert ast.unparse(node) not in ("np.load", "torch.load"), path
