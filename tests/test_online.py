"""The loop of collecting and learning: two tiny rounds, stopped and gone on with."""

from __future__ import annotations

import json
import shutil

import pytest

from data.check import check
from data.locks import lock_file
from data.replay import Replay
from data.shards import read_shard
from models.checkpoint import CheckpointError
from sim.tasks import TASKS
from train import qtopt_config, qtopt_online
from train.qtopt_config import QTOptConfig
from train.qtopt_online import OnlineConfig, learn


@pytest.fixture(scope="module")
def options(tiny_training):
    """Options of two rounds of seconds; `out` is left to choose."""
    tiny = {**tiny_training, "tasks": ("lift-banana",), "rule": "none", "shared_fraction": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(qtopt_config.PRESETS, "tiny", QTOptConfig(**tiny))
        yield {
            "task": "lift-banana",
            "preset": "tiny",
            "rounds": 2,
            "first_episodes": 4,
            "episodes": 2,
            "steps": 2,
            "evaluations": 2,
            "threshold": 1.0,
            "renderer": "tiny",
        }


@pytest.fixture(scope="module")
def straight(options, tmp_path_factory):
    """The folder of two rounds that nothing stopped, and what they returned."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, learn(OnlineConfig(out=str(folder), **options))


@pytest.fixture(scope="module")
def one_round(options, tmp_path_factory):
    """The folder of a loop of which the first round is done."""
    folder = tmp_path_factory.mktemp("one")
    learn(OnlineConfig(out=str(folder), **{**options, "rounds": 1}))
    return folder


def assert_same(straight, folder, rounds):
    """The same rounds, but for their times, and the same buffer."""
    plain = [[{k: v for k, v in r.items() if not k.endswith("_s")} for r in each] for each in (straight[1], rounds)]
    assert plain[0] == plain[1]
    buffers = [Replay(each / "buffer") for each in (straight[0], folder)]
    frames = [[frame.image for frame in b.read(range(b.num_steps + b.num_episodes))] for b in buffers]
    assert frames[0] == frames[1]


def test_two_rounds_fill_a_buffer_and_going_on_changes_nothing(options, straight, one_round, tmp_path):
    shutil.copytree(one_round, tmp_path, dirs_exist_ok=True)
    resumed = learn(OnlineConfig(out=str(tmp_path), **options))
    assert [r["episodes"] for r in resumed] == [4, 6]
    assert [r["steps"] for r in resumed] == [2, 4]
    assert_same(straight, tmp_path, resumed)
    buffer = Replay(tmp_path / "buffer")
    assert buffer.num_episodes == 6
    assert (buffer.episode_task == TASKS["lift-banana"].index).all()
    assert check(tmp_path / "buffer").wrong == ()


@pytest.mark.parametrize("stage", ["collect", "train", "rollout"])
def test_a_loop_that_was_stopped_within_a_round_goes_on_as_if_it_had_not(
    options, straight, one_round, tmp_path, monkeypatch, stage
):
    """In the second one."""
    shutil.copytree(one_round, tmp_path, dirs_exist_ok=True)

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(qtopt_online, stage, stop)
        with pytest.raises(KeyboardInterrupt):
            learn(OnlineConfig(out=str(tmp_path), **options))
    assert_same(straight, tmp_path, learn(OnlineConfig(out=str(tmp_path), **options)))


def test_two_loops_do_not_share_a_folder(options, tmp_path):
    folder = tmp_path / "loop"
    with (
        lock_file(folder / "online.lock", "no"),
        pytest.raises(ValueError, match="another loop is at work in this folder"),
    ):
        learn(OnlineConfig(out=str(folder), **options))


def test_later_rounds_are_collected_by_the_policy_of_the_round_before(straight):
    folder, _ = straight
    policies = [read_shard(folder / f"round-{n:03d}" / "lift-banana-0-000000.h5")[2] for n in range(2)]
    assert [p["policy"] for p in policies] == ["crude", "checkpoint"]
    assert policies[1]["noise"] == 0.2
    assert policies[1]["checkpoint"].endswith("round-000.ckpt")


def test_a_success_that_passes_the_threshold_ends_the_loop(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(qtopt_online, "THRESHOLDS", {"lift": 0.0})
    rounds = learn(OnlineConfig(out=str(tmp_path / "loop"), **{**options, "threshold": 0.0}))
    assert len(rounds) == 1
    assert "passes 0%; its replay buffer is" in capsys.readouterr().out


def test_another_loop_in_the_folder_is_refused(options, tmp_path):
    folder = tmp_path / "loop"
    folder.mkdir()
    (folder / "online.json").write_text(json.dumps({"config": {"task": "lift-can"}, "rounds": []}))
    with pytest.raises(CheckpointError, match=r"other options: task 'lift-can' \(now 'lift-banana'\)"):
        learn(OnlineConfig(out=str(folder), **options))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": "lift-cann"}, "Did you mean 'lift-can'"),
        ({"preset": "onlin"}, "Did you mean 'online'"),
        ({"epsilon": 1.5}, "epsilon is between 0 and 1"),
        ({"rounds": 0}, "rounds is at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        OnlineConfig(**{"task": "lift-can", **wrong})
