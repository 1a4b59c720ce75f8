"""Checkpoints describe themselves; foreign, damaged and malicious ones are refused by name."""

from __future__ import annotations

import pytest
import torch

from eval.policy import CEMPolicy
from models.checkpoint import CheckpointError
from models.image_checkpoint import read_checkpoint
from sim.scenes import FACTORS
from sim.state import SIM_VERSION
from sim.tasks import TASK_NAMES, TASKS
from train.qtopt_config import QTOptConfig
from train.qtopt_run import train


def edited(path, change):
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint["switchyard"])
    torch.save(checkpoint, path)


def test_a_checkpoint_describes_itself(tiny_checkpoint):
    metadata = read_checkpoint(tiny_checkpoint)["switchyard"]
    assert metadata["tasks"] == list(TASK_NAMES)
    assert metadata["trained_tasks"] == ["lift-banana", "place-bowl"]
    assert metadata["renderer"] == "tiny"
    assert metadata["randomise"] == list(FACTORS)
    assert metadata["split"] == "train"
    options = CEMPolicy.load(tiny_checkpoint).env_options
    assert options == {"image_size": 56, "renderer": "tiny", "randomise": tuple(FACTORS), "split": "train"}
    assert metadata["network"]["image_size"] == 48
    assert metadata["sharing"]["rule"] == "cds-hard"
    weight = metadata["sharing"]["weights"][TASKS["lift-banana"].index]
    assert weight[TASKS["lift-banana"].index] == pytest.approx(1.0)
    assert 0 <= weight[TASKS["place-bowl"].index] <= 1
    assert weight[TASKS["lift-can"].index] is None


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_by_name(run, tiny_training, keep):
    path = run / "last.ckpt"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(CheckpointError, match=r"last\.ckpt: not a checkpoint, or a damaged one"):
        train(QTOptConfig(out=str(run), **{**tiny_training, "steps": 6}))
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        CEMPolicy.load(path)


def test_a_checkpoint_of_other_layers_is_refused_by_name(run, tiny_training):
    checkpoint = read_checkpoint(run / "last.ckpt")
    checkpoint["state_dict"] = {key.replace("merge1", "merge9"): v for key, v in checkpoint["state_dict"].items()}
    torch.save(checkpoint, run / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: its weights do not fit this version's network"):
        train(QTOptConfig(out=str(run), **{**tiny_training, "steps": 6}))


def test_a_checkpoint_with_a_damaged_weight_is_refused_by_name(run):
    path = run / "last.ckpt"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = bytes(255 - value for value in content[middle : middle + 4])
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: damaged checkpoint, the checksum of \S+ does not match"):
        CEMPolicy.load(path)


@pytest.mark.parametrize("stranger", [{"state_dict": {}}, [1, 2], {"switchyard": {}}, {"switchyard": 3}])
def test_another_programs_checkpoint_is_refused_by_name(run, tiny_training, stranger):
    torch.save(stranger, run / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: a checkpoint, but not of a policy that sees pictures"):
        train(QTOptConfig(out=str(run), **{**tiny_training, "steps": 6}))


class Trap:
    """What a malicious checkpoint would hold: a pickle that writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_never_runs_code(tmp_path):
    torch.save({"switchyard": Trap(tmp_path / "sprung")}, tmp_path / "trap.ckpt")
    with pytest.raises(CheckpointError, match=r"trap\.ckpt: not a checkpoint, or a damaged one"):
        read_checkpoint(tmp_path / "trap.ckpt")
    assert not (tmp_path / "sprung").exists()


def test_a_missing_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.ckpt: no such checkpoint"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_a_checkpoint_of_another_world_is_refused(run):
    edited(run / "last.ckpt", lambda metadata: metadata.update(sim_version=1))
    with pytest.raises(CheckpointError, match=f"trained in world 1, this version has {SIM_VERSION}"):
        CEMPolicy.load(run / "last.ckpt")


def test_a_checkpoint_of_world_5_acts(tiny_checkpoint, tmp_path):
    path = tmp_path / "old.ckpt"
    path.write_bytes(tiny_checkpoint.read_bytes())
    edited(path, lambda metadata: metadata.update(sim_version=5))
    assert CEMPolicy.load(path).metadata["sim_version"] == 5


def test_a_checkpoint_of_another_renderer_is_refused_naming_both(run, tiny_training):
    edited(run / "last.ckpt", lambda metadata: metadata.update(renderer="egl"))
    with pytest.raises(CheckpointError, match=r"trained on egl images, .* holds tiny"):
        train(QTOptConfig(out=str(run), **{**tiny_training, "steps": 6}))
    with pytest.raises(CheckpointError, match="renderer egl, asked to act on tiny"):
        CEMPolicy.load(run / "last.ckpt", renderer="tiny")


def test_a_checkpoint_of_another_task_list_is_refused_naming_both(run, tiny_training):
    edited(run / "last.ckpt", lambda metadata: metadata.update(tasks=[*TASK_NAMES[1:], "lift-hammer"]))
    with pytest.raises(CheckpointError, match=r"lift-hammer.*this version has .*lift-banana"):
        train(QTOptConfig(out=str(run), **{**tiny_training, "steps": 6}))
    with pytest.raises(CheckpointError, match="lift-hammer"):
        CEMPolicy.load(run / "last.ckpt")


def test_a_policy_of_another_image_size_is_refused_naming_both(tiny_checkpoint):
    with pytest.raises(CheckpointError, match="trained at 48 px, asked to act at 64 px"):
        CEMPolicy.load(tiny_checkpoint, image_size=64)
