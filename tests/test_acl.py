"""Attentive contrastive learning: its loss and masks by hand, its windows, and a run with what uses its encoder."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import tensor

from data.transitions import write_transitions
from models.checkpoint import CheckpointError, read_plain
from models.conditioning import FrozenEncoder
from models.contrastive import ContrastiveModel, Masking, contrastive_loss, mask
from sim.files import DatasetError
from tests.conftest import small_state_config
from train import acl, state_run
from train.acl import ACLConfig, Windows, pretrain

SMALL = {"batch_size": 16, "layer_sizes": (16, 16), "log_every": 2, "precision": "32-true"}


@pytest.fixture(scope="module")
def drifting(transitions):
    """Episodes of 20 steps whose observations move on from a place of their own."""
    count = len(transitions.columns["task"])
    rng, episode = np.random.default_rng(0), np.arange(count) // 20
    place = rng.normal(size=(episode[-1] + 1, 17))[episode]
    drift = 0.05 * (np.arange(count) % 20)[:, None]
    columns = transitions.columns | {"observation": (place + drift).astype(np.float32)}
    columns |= {"next_observation": (place + drift + 0.05).astype(np.float32)}
    return dataclasses.replace(transitions, columns=columns | {"episode_end": np.arange(count) % 20 == 19})


def test_the_loss_is_minus_the_log_probability_of_the_own_target_among_those_that_count():
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    counts = np.array([True, False, True, True, False])
    energy = (predicted @ target.T)[counts][:, counts]
    each = np.log(np.exp(energy).sum(1)) - np.diag(energy)
    loss, accuracy = contrastive_loss(*(torch.from_numpy(x) for x in (predicted, target, counts)))
    assert loss.item() == pytest.approx(each.mean(), rel=1e-5)
    assert accuracy.item() == pytest.approx((energy.argmax(1) == np.arange(3)).mean())


def test_what_does_not_count_has_no_gradient():
    predicted, target = (torch.randn(3, 2, generator=torch.Generator().manual_seed(k)).requires_grad_() for k in (0, 1))
    contrastive_loss(predicted, target, tensor([True, True, False]))[0].backward()
    assert predicted.grad[2].tolist() == target.grad[2].tolist() == [0, 0]
    assert (predicted.grad[:2] != 0).all()


def test_nothing_that_counts_is_a_loss_of_nothing():
    loss, accuracy = contrastive_loss(torch.ones(3, 2), torch.ones(3, 2), torch.zeros(3, dtype=torch.bool))
    assert (loss.item(), accuracy.item()) == (0, 0)


def test_a_mask_drops_switches_and_keeps():
    """One step a window. In turn: nothing, dropped, switched with the next window's, kept, switched with a dropped."""
    values, missing = tensor([[[1.0]], [[2.0]], [[3.0]], [[4.0]], [[5.0]]]), tensor([-1.0])
    uniform = torch.ones(3, 5, 1)
    uniform[0, 1] = uniform[1, 2] = uniform[2, 3] = uniform[1, 0] = 0
    found, counts = mask(values, missing, uniform, Masking())
    assert found.flatten().tolist() == [-1, -1, 4, 4, 5]
    assert counts.flatten().tolist() == [True, True, True, True, False]


def test_masks_have_the_fractions_that_acls_code_makes():
    """Of values 0 with 1 for a dropped one: 17.6% have another window's, 35.3% are dropped alone, 7.1% kept alone."""
    rows = 100_000
    uniform = torch.rand(3, rows, 1, generator=torch.Generator().manual_seed(0))
    values = torch.arange(rows, dtype=torch.float64).view(rows, 1, 1)
    found, predicted = (each.flatten() for each in mask(values, -torch.ones(1).double(), uniform, Masking()))
    own = found == values.flatten()
    switched = uniform[1].flatten() < Masking().probabilities[1]
    assert switched.float().mean().item() == pytest.approx(0.15 / 0.85, abs=0.005)
    assert (~own & ~switched).float().mean().item() == pytest.approx(0.3 / 0.85, abs=0.005)
    assert (own & predicted).float().mean().item() == pytest.approx(0.0706, abs=0.005)
    assert predicted.float().mean().item() == pytest.approx(0.6, abs=0.005)


def test_a_step_is_predicted_from_itself_and_later_ones():
    torch.manual_seed(0)
    model = ContrastiveModel(
        *(FrozenEncoder(1, 17, 3, (16, 16)) for _ in range(2)), 6, 8, Masking(dropped=0.0, switched=0.0)
    ).eval()
    observation, action, reward = torch.randn(2, 8, 17), torch.randn(2, 8, 6), torch.randn(2, 8)
    before = model(observation, action, reward)[0].view(2, 8, -1)
    observation[:, 3] += 1
    changed = (model(observation, action, reward)[0].view(2, 8, -1) != before).any(-1)
    assert changed.tolist() == [[True] * 4 + [False] * 4] * 2


def test_windows_lie_in_one_episode(drifting):
    torch.manual_seed(0)
    windows = Windows(drifting, 8, torch.device("cpu"))
    observation, action, reward = windows.draw(500)
    assert (observation.shape, action.shape, reward.shape) == ((500, 8, 17), (500, 8, 6), (500, 8))
    step = observation.diff(dim=1)
    assert torch.allclose(step, torch.full_like(step, 0.05), atol=1e-5)
    assert len(windows._first) == 120 * 13  # of 120 episodes of 20 steps
    row = (drifting.columns["observation"] == observation[0, 3].numpy()).all(1).argmax()
    assert reward[0, 3] == drifting.rewards[row, drifting.columns["task"][row]]
    assert np.array_equal(action[0, 3], drifting.columns["action"][row])


def test_an_encoder_fits_the_assignment_that_it_was_trained_with(drifting, tmp_path, monkeypatch):
    """As a maze's file has it; the digest of a dataset tells the tasks of its episodes."""
    write_transitions(tmp_path / "states.h5", drifting)
    swapped = dataclasses.replace(drifting, columns=drifting.columns | {"task": 2 - drifting.columns["task"]})
    monkeypatch.setattr(acl, "assign_tasks", lambda dataset, name: swapped if name == "directed" else dataset)
    options = {**SMALL, "data": str(tmp_path / "states.h5"), "steps": 2, "out": str(tmp_path / "acl")}
    encoder = str(pretrain(ACLConfig(**options, assignment="directed")))
    config = small_state_config("cql", rules=("none",), conditioning="encoder", encoder=encoder)
    state_run.build("cql", config, swapped)
    with pytest.raises(CheckpointError, match="pretrained on another dataset"):
        state_run.build("cql", config, drifting)


def test_episodes_shorter_than_a_window_are_refused(drifting):
    short = dataclasses.replace(drifting, columns=drifting.columns | {"episode_end": np.ones(len(drifting), np.bool_)})
    with pytest.raises(DatasetError, match="no episode of the dataset has 8 steps"):
        Windows(short, 8, torch.device("cpu"))


def test_every_weight_learns(drifting):
    torch.manual_seed(0)
    encoders = [FrozenEncoder(1, 17, 3, (16, 16)) for _ in range(2)]
    model = ContrastiveModel(*encoders, 6, 8, Masking())
    contrastive_loss(*model(*Windows(drifting, 8, torch.device("cpu")).draw(32)))[0].backward()
    still = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert still == []


def test_a_run_learns_and_goes_on_bit_for_bit(drifting, tmp_path, monkeypatch):
    write_transitions(tmp_path / "states.h5", drifting)
    options = {**SMALL, "data": str(tmp_path / "states.h5"), "lr": 3e-3}
    seen = []
    real = acl.contrastive_loss
    monkeypatch.setattr(acl, "contrastive_loss", lambda *given: seen.append(real(*given)) or seen[-1])
    straight = pretrain(ACLConfig(**options, out=str(tmp_path / "straight"), steps=120))
    losses = [loss.item() for loss, _ in seen]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.5
    for steps in (50, 120):
        resumed = pretrain(ACLConfig(**options, out=str(tmp_path / "resumed"), steps=steps))
    assert resumed.read_bytes() == straight.read_bytes()
    one, other = (read_plain(path.parent / "last.ckpt")["state_dict"] for path in (straight, resumed))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    with pytest.raises(CheckpointError, match="other options: window 8"):
        pretrain(ACLConfig(**options, out=str(tmp_path / "resumed"), steps=130, window=4))

    given = {"data": options["data"], "out": str(tmp_path / "run"), "conditioning": "encoder", "encoder": str(straight)}
    config = small_state_config("cql", **given, rules=("none",))
    algorithm = state_run.build("cql", config, drifting)
    algorithm.shared.start("cpu")
    before = [weight.clone() for weight in algorithm.conditioner.parameters()]
    algorithm.update()
    assert all(torch.equal(a, b) for a, b in zip(before, algorithm.conditioner.parameters(), strict=True))
    trained = [value for name, value in one.items() if name.startswith("encoder.")]
    assert all(torch.equal(a, b) for a, b in zip(before, trained, strict=True))
    with pytest.raises(ValueError, match="it reads normalised observations"):
        small_state_config("cql", **given, normalise=False)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"window": 1}, "window is at least 2"),
        ({"layer_sizes": (16, 6)}, "multiple of 4"),
        ({"dropped": 0.9, "kept": 0.2}, "below 1"),
        ({"dropped": 0.0, "switched": 0.0, "kept": 0.0}, "above 0"),
        ({"steps": 0}, "steps"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        ACLConfig(**wrong)
