"""Checkpoints and config.json files with the options and weights of earlier versions are read under current names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.policy import CEMPolicy
from models.checkpoint import CheckpointError
from models.networks import build_network
from models.old_names import OPTIONS, WEIGHTS, current_options
from models.qnetwork import NetworkConfig
from train.qtopt_config import PRESETS, QTOptConfig
from train.qtopt_run import train
from train.sac import SACConfig
from train.state_run import ALGORITHMS

TRAINED = Path(__file__).parents[1] / "models" / "trained" / "vision-64.ckpt"
OLD_OPTIONS = {new: old for old, (new, _) in reversed(OPTIONS.items())}
OLD_WEIGHTS = {new: old for old, new in WEIGHTS.items()}
OLD_VALUES = {"emaq": "proposals", "behaviour_policy": "clone", "bc": "clone"}


def old_options(options):
    old = {OLD_OPTIONS.get(key, key): value for key, value in options.items()}
    if "target_decay" in old:
        old["target_decay"] = 1 - old["target_decay"]
    return old | {key: OLD_VALUES.get(old[key], old[key]) for key in ("by", "learner") if key in old}


def old_weight(key):
    return ".".join(OLD_WEIGHTS.get(part, part) for part in key.split("."))


def make_old(run, extra=None):
    """Rewrite the folder of a run as an earlier version would have."""
    path = run / "config.json"
    path.write_text(json.dumps(old_options(json.loads(path.read_text()))))
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    metadata = checkpoint["switchyard"]
    metadata |= {key: old_options(metadata[key]) for key in ("network", "acting")}
    metadata["format"] = 3
    checkpoint["state_dict"] = {old_weight(key): value for key, value in checkpoint["state_dict"].items()}
    checkpoint["state_dict"] |= extra or {}
    torch.save(checkpoint, run / "last.ckpt")
    return metadata, checkpoint["state_dict"]


@pytest.mark.parametrize(
    ("preset", "decay"), [("vision-472", 0.9999), ("vision-64", 0.995), ("demo", 0.98), ("online", 0.99)]
)
def test_the_update_rate_of_a_preset_is_its_former_decay_to_the_bit(preset, decay):
    rate = PRESETS[preset].target_update_rate
    assert current_options({"target_decay": decay}) == {"target_update_rate": rate}
    assert np.float32(1 - decay) == np.float32(rate)


def test_only_options_in_use_are_renamed():
    stored = {"temperature": 0.1, "prior": True}
    assert current_options(stored, {"behaviour_policy", "temperature"}) == {
        "temperature": 0.1,
        "behaviour_policy": True,
    }


def test_an_old_run_does_not_go_on(run, tiny_training):
    metadata, weights = make_old(run)
    assert {"prior", "target_decay", "shared_part", "learning_rate"} <= json.loads(
        (run / "config.json").read_text()
    ).keys()
    assert metadata["network"]["prior"] is True
    assert metadata["acting"]["by"] == "proposals"
    assert "target.prior3.weight" in weights
    assert train(QTOptConfig(out=str(run), **tiny_training)) == run / "last.ckpt"  # it is finished
    with pytest.raises(CheckpointError, match=r"begun by an earlier version.*--start_from"):
        train(QTOptConfig(out=str(run), **{**tiny_training, "steps": 6}))


def test_an_old_run_with_other_options_is_refused_by_their_current_names(run, tiny_training):
    make_old(run)
    with pytest.raises(CheckpointError, match="other options: lr "):
        train(QTOptConfig(out=str(run), **{**tiny_training, "lr": 0.5}))


def test_an_old_checkpoint_acts_as_it_did(run, tiny_checkpoint, observe):
    make_old(run)
    frames = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), dtype=np.uint8)
    policies = [CEMPolicy.load(path) for path in (run / "last.ckpt", tiny_checkpoint)]
    actions = [policy.act(observe(frames), np.array([0, 7]), np.random.default_rng(0)) for policy in policies]
    assert policies[0].acting == policies[1].acting
    assert np.array_equal(*actions)


def test_a_checkpoint_before_presence_acts_with_five_numbers_per_landmark(tiny_checkpoint, observe, tmp_path):
    checkpoint = torch.load(tiny_checkpoint, weights_only=True)
    metadata = checkpoint["switchyard"]
    torch.manual_seed(0)
    network = build_network(NetworkConfig(**{**metadata["network"], "landmark_size": 5})).eval()
    del metadata["network"]["landmark_size"]
    metadata["format"] = 4
    checkpoint["state_dict"] = {f"target.{key}": value for key, value in network.state_dict().items()}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    loaded = CEMPolicy.load(tmp_path / "old.ckpt")
    assert loaded.network.config.landmark_size == 5
    frames = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), dtype=np.uint8)
    policies = (loaded, CEMPolicy(network, loaded.acting, loaded.metadata))
    actions = [policy.act(observe(frames), np.array([0, 7]), np.random.default_rng(0)) for policy in policies]
    assert np.array_equal(*actions)


def test_the_pretrained_policy_has_the_q_values_that_it_had():
    """Values of the version that wrote it, to the rounding of other processors."""
    network = CEMPolicy.load(TRAINED).network
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((4, 3, 64, 64), dtype=np.float32))
    gripper = torch.tensor([[0.0, 0.2], [1.0, 0.1], [0.0, 0.05], [1.0, 0.3]])
    action = torch.from_numpy(rng.uniform(-0.05, 0.05, (4, 6, 5)).astype(np.float32))
    action[..., 4] = torch.arange(6) % 4
    with torch.no_grad():
        q = network(image, gripper, action[:, 0], torch.tensor([0, 3, 5, 8]))
    assert q.tolist() == pytest.approx([-0.527420, -0.603123, -0.727418, -1.188299], abs=1e-3)


@pytest.mark.parametrize("kind", [QTOptConfig, SACConfig, *(entry.config for entry in ALGORITHMS.values())])
def test_no_option_has_the_name_that_another_one_had(kind):
    """It would be read from a kept run as that one."""
    assert [name for name in kind.__dataclass_fields__ if OPTIONS.get(name, (name,))[0] != name] == []
