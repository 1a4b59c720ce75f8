"""Networks for states, several side by side: each is what it would be alone."""

from __future__ import annotations

import pytest
import torch
from torch import tensor

from models.distributions import gaussian_kl
from models.reductions import weighted_mean
from models.stacked import StackedMLP, TwinQ
from models.state_policies import LOG_STD, TanhGaussianPolicy


def test_means_are_weighted_member_by_member():
    each, weight = tensor([[1.0, 3.0], [5.0, 7.0]]), tensor([[1.0, 1.0], [0.5, 0.0]])
    assert weighted_mean(each, weight).tolist() == pytest.approx([2.0, 5.0])


def test_stacked_layers_are_those_of_each_member():
    torch.manual_seed(0)
    stacked, x = StackedMLP(3, 5, (7, 6), 2), torch.randn(3, 4, 5)
    for member in range(3):
        alone = StackedMLP(1, 5, (7, 6), 2)
        alone.load_state_dict({key: value[member : member + 1] for key, value in stacked.state_dict().items()})
        assert torch.allclose(alone(x[member : member + 1])[0], stacked(x)[member], atol=1e-6)


def test_a_twin_q_is_two_networks_of_state_and_action_joined():
    torch.manual_seed(0)
    twin, state, action = TwinQ(2, 5, 3, (7, 6)), torch.randn(2, 4, 5), torch.rand(2, 4, 8, 3)
    q = twin(state, action)
    assert q.shape == (2, 2, 4, 8)
    weights = twin.state_dict()
    for which in range(2):
        for member in range(2):
            row = which * 2 + member
            joined = torch.cat([state[member][:, None].expand(-1, 8, -1), action[member]], -1)
            layer = [(weights[f"mlp.layers.{k}.weight"][row], weights[f"mlp.layers.{k}.bias"][row]) for k in range(3)]
            x = (joined @ layer[0][0] + layer[0][1]).relu()
            x = (x @ layer[1][0] + layer[1][1]).relu()
            x = x @ layer[2][0] + layer[2][1]
            assert torch.allclose(x[..., 0], q[which, member], atol=1e-5)
    assert torch.allclose(twin.values(state, action), q, atol=1e-6)
    assert torch.allclose(twin(state, torch.stack([action, -action]))[0], q[0], atol=1e-6)
    assert torch.allclose(twin(state, torch.stack([-action, action]))[1], q[1], atol=1e-6)


def test_the_density_of_a_squashed_gaussian_is_torchs():
    torch.manual_seed(0)
    policy, state = TanhGaussianPolicy(2, 5, (7,), 3), torch.randn(2, 4, 5)
    action, density = policy.sample(state, torch.randn(2, 4, 6, 3))
    mean, std = policy(state)
    normal = torch.distributions.Normal(mean[:, :, None], std[:, :, None])
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    assert torch.allclose(squashed.log_prob(action).sum(-1), density, atol=1e-4)
    assert torch.allclose(policy.log_prob(state, action[:, :, 0]), density[:, :, 0], atol=1e-4)
    assert (std.log() >= LOG_STD[0]).all()


def test_the_divergence_of_gaussians_is_torchs():
    torch.manual_seed(0)
    mean, other_mean, std, other_std = torch.randn(4, 5, 3).unbind(0)
    std, other_std = std.exp(), other_std.exp()
    known = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std), torch.distributions.Normal(other_mean, other_std)
    )
    assert torch.allclose(gaussian_kl((mean, std), (other_mean, other_std)), known.sum(-1), atol=1e-5)
