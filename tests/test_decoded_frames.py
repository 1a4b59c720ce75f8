"""Frames that are decoded once and kept on the device give the batches that a loader gives."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from data import decoded_frames
from data.batches import Batch
from data.decoded_frames import DecodedFrames
from data.loader import DeviceLoader, Loader
from data.replay import Replay
from data.sampler import BatchStream, Sampler, SamplerConfig
from data.sharing import RULES
from models.image_checkpoint import read_checkpoint
from sim.tasks import task_by_name
from tests.conftest import TINY_TASKS
from train.qtopt_config import QTOptConfig
from train.qtopt_run import train

CPU = torch.device("cpu")


@pytest.fixture
def stream(tiny_dataset):
    replay = Replay(tiny_dataset)
    tasks = tuple(task_by_name(name).index for name in TINY_TASKS)
    sampler = Sampler(replay, tasks, RULES["all"], SamplerConfig(per_task=6, n_step=2, scored=3))
    drawn = BatchStream(sampler, seed=1).draws
    scored = BatchStream(sampler, seed=1)

    def draws():  # with further steps to be scored
        for each in drawn():
            yield type(each)(each.steps, each.targets, each.steps[:3], replay.episode_of(each.steps[:3]))

    scored.draws = draws
    return replay, scored


def test_batches_are_the_same_ones(stream, monkeypatch):
    replay, batches = stream
    monkeypatch.setattr(decoded_frames, "CHUNK", 7)  # of which there are several
    kept = iter(DeviceLoader(batches, DecodedFrames(replay, CPU)))
    for _, loaded, gathered in zip(range(5), Loader(batches, workers=0), kept, strict=False):
        assert len(loaded.score_image) == 3
        for field in fields(Batch):
            one, other = getattr(loaded, field.name), getattr(gathered, field.name)
            assert one.dtype == other.dtype, field.name
            assert torch.equal(one, other), field.name


def test_a_training_is_the_same_one(tiny_training, tmp_path, capsys):
    weights = []
    for frames in ("encoded", "device"):
        path = train(QTOptConfig(out=str(tmp_path / frames), frames=frames, **tiny_training))
        weights.append(read_checkpoint(path)["state_dict"])
    for key, value in weights[0].items():
        assert np.array_equal(value.numpy(), weights[1][key].numpy(), equal_nan=True), key
    assert capsys.readouterr().err.count("decode: 100%") == 1


def test_what_does_not_fit_is_refused_with_the_sizes(tiny_training, tiny_dataset, tmp_path, monkeypatch):
    replay = Replay(tiny_dataset)
    size = (replay.num_steps + replay.num_episodes) * (3 * replay.frame_size**2 + 1000)
    monkeypatch.setattr(decoded_frames, "free_bytes", lambda device: int(size / 0.59))
    assert decoded_frames.fits(replay, CPU)
    monkeypatch.setattr(decoded_frames, "free_bytes", lambda device: int(size / 0.61))
    with pytest.raises(ValueError, match=r"decoded it is 0\.0 GiB, more than 60% of the 0\.0 GiB .* --frames encoded"):
        train(QTOptConfig(out=str(tmp_path / "run"), frames="device", **tiny_training))
    train(QTOptConfig(out=str(tmp_path / "run"), **tiny_training))  # auto, on a CPU
