"""The first value that is not finite ends a training, and reaches no checkpoint."""

from __future__ import annotations

import pytest
import torch

from eval.policy import CEMPolicy
from models.checkpoint import CheckpointError, read_plain
from models.image_checkpoint import read_checkpoint
from models.policy_files import load_policies
from train.finite import FiniteCheck, NotFiniteError, check_weights
from train.online_states import learn
from train.qtopt_config import QTOptConfig
from train.qtopt_run import train
from train.sac import SAC, SACConfig

NAN, INF = float("nan"), float("inf")


def test_the_first_step_its_first_term_and_all_groups_of_it_are_named():
    finite = FiniteCheck("tasks", ("a", "b", "c"), every=1)
    finite.add(1, {"target": torch.ones(3), "loss": torch.zeros(3)})
    with pytest.raises(NotFiniteError, match=r"^step 2: target of a, c is NaN or infinite$"):
        finite.add(2, {"target": torch.tensor([NAN, 1.0, -INF]), "loss": torch.full((3,), NAN)})
    with pytest.raises(NotFiniteError, match=r"^step 3: loss of all tasks is NaN or infinite$"):
        finite.add(3, {"target": torch.ones(3)}, scalars={"loss": torch.tensor(INF)})


def test_rows_are_summed_by_their_group():
    finite = FiniteCheck("tasks", ("a", "b", "c"), every=1)
    with pytest.raises(NotFiniteError, match=r"step 7: Q of b is"):
        finite.add(7, {"Q": torch.tensor([1.0, NAN, 2.0, 3.0])}, torch.tensor([0, 1, 1, 2]))


def test_a_device_that_is_not_waited_for_is_asked_every_few_steps_and_before_a_save(monkeypatch):
    finite = FiniteCheck("tasks", ("a", "b", "c"), every=3)
    bad = torch.tensor([1.0, NAN, 1.0])
    monkeypatch.setattr("train.finite.is_asynchronous", lambda values: True)
    finite.add(1, {"Q": torch.ones(3)})
    finite.add(2, {"Q": bad})
    with pytest.raises(NotFiniteError, match="step 2: Q of b"):
        finite.add(3, {"Q": torch.ones(3)})
    finite.add(4, {"Q": bad})
    with pytest.raises(NotFiniteError, match="step 4: Q of b"):
        finite.check()


def test_a_weight_that_is_not_finite_is_named():
    network = torch.nn.Linear(2, 1)
    check_weights(3, network=network, lagged=None)
    network.bias.data[0] = INF
    with pytest.raises(NotFiniteError, match="step 3: weight bias of the network is NaN or infinite"):
        check_weights(3, network=network)


@pytest.mark.parametrize("learner", ["qtopt", "bc"])
def test_a_training_on_images_that_diverges_keeps_its_last_finite_checkpoint(tiny_training, tmp_path, learner):
    options = {**tiny_training, "learner": learner, "landmark_weight": 1.0, "rule": "none", "steps": 30}
    message = rf"{tmp_path}: step \d+: .* is NaN or infinite; {tmp_path}/last.ckpt keeps .*a lower --lr"
    with pytest.raises(NotFiniteError, match=message):
        train(QTOptConfig(out=str(tmp_path), **{**options, "lr": 1e25}))
    weights = read_checkpoint(tmp_path / "last.ckpt")["state_dict"]
    assert all(value.isfinite().all() for key, value in weights.items() if not key.startswith("router."))


def test_a_target_of_one_task_that_is_not_finite_names_the_task(tiny_training, tmp_path, monkeypatch):
    def target(module, batch, image, generator):
        values = torch.zeros(len(batch))
        values[(batch.task_index == 7) & (module.global_step == 2)] = NAN
        return values

    monkeypatch.setattr("train.qtopt.QTOpt._td_target", target)
    with pytest.raises(NotFiniteError, match=r"step 3: target of place-bowl is NaN or infinite; \S+last.ckpt keeps"):
        train(QTOptConfig(out=str(tmp_path / "run"), **tiny_training))
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["switchyard"]["steps"] == 2


def test_a_policy_whose_training_diverged_is_refused(run, tmp_path):
    checkpoint = read_checkpoint(run / "last.ckpt")
    checkpoint["state_dict"]["target.task_attention"][0] = NAN
    torch.save(checkpoint, run / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: its training diverged: weight task_attention is NaN"):
        CEMPolicy.load(run / "last.ckpt")
    policies = read_plain("models/trained/walker2d-medium.pt")
    next(iter(policies["state_dict"].values())).view(-1)[0] = INF
    torch.save(policies, tmp_path / "policies.pt")
    with pytest.raises(CheckpointError, match="its training diverged"):
        load_policies(tmp_path / "policies.pt")


def test_sac_that_diverges_stops_and_keeps_its_last_finite_checkpoint(tmp_path):
    pytest.importorskip("mujoco")
    options = {"steps": 60, "start_steps": 40, "checkpoint_every": 30, "batch_size": 8, "hidden_sizes": (16, 16)}
    options["keep_every"] = 1
    with pytest.raises(NotFiniteError, match=rf"{tmp_path}: step \d+: .* is NaN or infinite; .*last.ckpt keeps"):
        learn("SAC", SACConfig(out=str(tmp_path), tasks=("jump",), lr=1e30, **options), SAC, "--lr")
    saved = read_plain(tmp_path / "last.ckpt")
    assert saved["buffer"]["reward"].shape[1] == 30
    assert all(value.isfinite().all() for network in saved["networks"].values() for value in network.values())
    policies = sorted(tmp_path.glob("policy-*.pt"))
    assert 30 < len(policies) < 60
    assert all(load_policies(path) for path in policies)
