"""The loop of collecting and learning: two tiny rounds, stopped and gone on with."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data.check import check
from data.claim import hold
from data.replay import Replay
from data.shards import read_shard
from models.checkpoint import CheckpointError
from sim.tasks import TASKS
from train import config, online
from train.config import TrainConfig
from train.online import OnlineConfig, learn


@pytest.fixture
def options(tiny_training, monkeypatch):
    """Options of two rounds of seconds; `out` is left to choose."""
    tiny = {**tiny_training, "tasks": ("lift-banana",), "rule": "none", "shared_part": 0.0}
    monkeypatch.setitem(config.PRESETS, "tiny", TrainConfig(**tiny))
    return {
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


def test_two_rounds_fill_a_buffer_and_going_on_changes_nothing(options, tmp_path):
    straight = learn(OnlineConfig(out=str(tmp_path / "straight"), **options))
    learn(OnlineConfig(out=str(tmp_path / "stopped"), **{**options, "rounds": 1}))
    resumed = learn(OnlineConfig(out=str(tmp_path / "stopped"), **options))
    for rounds in (straight, resumed):
        assert [r["episodes"] for r in rounds] == [4, 6]
        assert [r["steps"] for r in rounds] == [2, 4]
    plain = [[{k: v for k, v in r.items() if not k.endswith("_s")} for r in rounds] for rounds in (straight, resumed)]
    assert plain[0] == plain[1]
    buffers = [Replay(tmp_path / name / "buffer") for name in ("straight", "stopped")]
    assert buffers[0].num_episodes == 6
    assert (buffers[0].episode_task == TASKS["lift-banana"].index).all()
    frames = [[frame.picture for frame in b.read(range(b.num_steps + b.num_episodes))] for b in buffers]
    assert frames[0] == frames[1]
    assert check(tmp_path / "straight" / "buffer").wrong == ()


@pytest.mark.parametrize("stage", ["collect", "train", "rollout"])
def test_a_loop_that_was_stopped_within_a_round_goes_on_as_if_it_had_not(options, tmp_path, monkeypatch, stage):
    straight = learn(OnlineConfig(out=str(tmp_path / "straight"), **options))
    real, calls = getattr(online, stage), []

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == 2:  # in the second round
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(online, stage, stopping)
    with pytest.raises(KeyboardInterrupt):
        learn(OnlineConfig(out=str(tmp_path / "stopped"), **options))
    resumed = learn(OnlineConfig(out=str(tmp_path / "stopped"), **options))
    plain = [[{k: v for k, v in r.items() if not k.endswith("_s")} for r in rounds] for rounds in (straight, resumed)]
    assert plain[0] == plain[1]
    pictures = [Replay(tmp_path / name / "buffer").pictures(range(12)) for name in ("straight", "stopped")]
    assert np.array_equal(*pictures)


def test_two_loops_do_not_share_a_folder(options, tmp_path):
    folder = tmp_path / "loop"
    with (
        hold(folder / "online.lock", "no"),
        pytest.raises(ValueError, match="another loop is at work in this folder"),
    ):
        learn(OnlineConfig(out=str(folder), **options))


def test_later_rounds_are_collected_by_the_policy_of_the_round_before(options, tmp_path):
    folder = tmp_path / "loop"
    learn(OnlineConfig(out=str(folder), **options))
    policies = [read_shard(folder / f"round-{n:03d}" / "lift-banana-0-000000.h5")[2] for n in range(2)]
    assert [p["policy"] for p in policies] == ["crude", "checkpoint"]
    assert policies[1]["noise"] == 0.2
    assert policies[1]["checkpoint"].endswith("round-000.ckpt")


def test_a_success_that_passes_the_threshold_ends_the_loop(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(online, "THRESHOLDS", {"lift": 0.0})
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
