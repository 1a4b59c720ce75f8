"""Starting a run: initial weights, and the configurations and datasets that are refused."""

from __future__ import annotations

import pytest
import torch

from models.checkpoint import CheckpointError
from models.image_checkpoint import acting_weights, read_checkpoint
from sim.files import DatasetError
from sim.tasks import TASK_NAMES
from train.qtopt_config import QTOptConfig
from train.qtopt_run import train


def test_a_run_may_begin_with_the_network_of_another(tiny_checkpoint, tiny_training, tmp_path):
    options = {**tiny_training, "steps": 1, "lr": 0.0, "weight_decay": 0.0, "seed": 5}
    path = train(QTOptConfig(out=str(tmp_path / "run"), **options, start_from=str(tiny_checkpoint)))
    began, acts = (read_checkpoint(each)["state_dict"] for each in (path, tiny_checkpoint))
    for name, value in began.items():
        part, _, key = name.partition(".")
        if part in ("network", "target", "lagged") and "running" not in key and "num_batches" not in key:
            assert torch.equal(value, acts[f"target.{key}"]), name
    other = QTOptConfig(out=str(tmp_path / "2"), **options, start_from=str(tiny_checkpoint), conditioning="one_hot")
    with pytest.raises(
        CheckpointError, match=r"another network than this run trains: conditioning 'heads' \(now 'one_hot'\)"
    ):
        train(other)


def test_a_run_may_begin_with_the_perception_of_another(tiny_training, tiny_checkpoint, tmp_path):
    """A first step without learning leaves perception as it was and the rest as it began."""
    options = {**tiny_training, "steps": 1, "lr": 0.0, "weight_decay": 0.0}
    paths = [
        train(QTOptConfig(out=str(tmp_path / name), **options, **more))
        for name, more in (("new", {}), ("seeing", {"start_from": str(tiny_checkpoint), "start_with": "perception"}))
    ]
    new, seeing, old = (acting_weights(read_checkpoint(path)) for path in (*paths, tiny_checkpoint))
    changed = {key for key in new if not torch.equal(new[key], seeing[key])}
    assert {key.split(".")[0] for key in changed} == {
        "trunk",
        "attend",
        "describe",
        "point1",
        "tip1",
        "landmark_bias1",
        "point2",
        "point3",
    }
    assert all(torch.allclose(seeing[key], old[key]) for key in changed if "running" not in key and "num_b" not in key)


def test_a_dataset_of_another_image_size_is_refused(tiny_training, tmp_path):
    with pytest.raises(ValueError, match="frames for 48 px, but the network sees 64 px"):
        train(QTOptConfig(out=str(tmp_path / "run"), **{**tiny_training, "image_size": 64}))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="may decode on a GPU")
def test_decoding_on_a_gpu_is_refused_where_there_is_none(tiny_training, tmp_path):
    with pytest.raises(ValueError, match="decode gpu needs a GPU and torchcodec or torchvision"):
        train(QTOptConfig(**{**tiny_training, "out": str(tmp_path / "run"), "decode": "gpu"}))


def test_a_missing_dataset_is_refused(tiny_training, tmp_path):
    with pytest.raises(DatasetError, match="no dataset here"):
        train(QTOptConfig(out=str(tmp_path / "run"), **{**tiny_training, "data": str(tmp_path)}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ()}, "at least one task"),
        ({"tasks": ("lift-cann",)}, "unknown task 'lift-cann'.*Did you mean 'lift-can'"),
        ({"rule": "cbs"}, "unknown sharing rule 'cbs'.*Did you mean 'cds'"),
        ({"conditioning": "none"}, "unknown conditioning"),
        ({"precision": "64"}, "unknown precision"),
        ({"batch_size": 1}, "a batch of 1 cannot hold 2 tasks"),
        ({"shared_fraction": 1.5}, "shared_fraction is between 0 and 1"),
        ({"percentile": 200.0}, "percentile is 0 to 100"),
        ({"cem_elites": 9}, "CEM needs"),
        ({"image_size": 200, "behaviour_policy": False}, "no network sees 200 px"),
        ({"image_size": 472}, "need the small network"),
        ({"steps": 0}, "steps"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"log_every": 0}, "log_every"),
        ({"num_unseen_actions": -1}, "num_unseen_actions"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(tiny_training, wrong, message):
    with pytest.raises(ValueError, match=message):
        QTOptConfig(**{**tiny_training, **wrong})


def test_without_a_choice_of_tasks_those_of_the_dataset_are_trained(tiny_training, tmp_path, capsys):
    options = {**tiny_training, "tasks": TASK_NAMES, "batch_size": 20, "steps": 1}
    metadata = read_checkpoint(train(QTOptConfig(out=str(tmp_path / "run"), **options)))["switchyard"]
    assert metadata["trained_tasks"] == ["lift-banana", "place-bowl"]
    assert "holds episodes of 2 tasks" in capsys.readouterr().out


def test_a_task_asked_for_by_name_is_never_dropped(tiny_training, tmp_path):
    with pytest.raises(ValueError, match="holds no episode of task lift-can"):
        train(QTOptConfig(out=str(tmp_path / "run"), **{**tiny_training, "tasks": ("lift-banana", "lift-can")}))
