"""BRAC, TD3+BC and IQL on states: their terms by hand, and whole updates beside their papers' equations in numpy."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import tensor

from data.sharing import RULES
from models.distributions import gaussian_kl, log_prob, sample_with_log_prob, sampled_kl
from models.policy_files import Member, PolicyFile, load_policies, pack_policies
from models.state_losses import advantage_weight, expectile_loss, smoothed_action
from models.state_policies import DeterministicPolicy
from sim.benchmarks.table import BENCHMARKS
from tests.conftest import small_state_config
from train import state_run
from train.brac import BRACConfig
from train.iql import IQLConfig
from train.td3_bc import TD3BCConfig

NAMES = ("brac", "td3-bc", "iql")
NO_PHASES = {"bc_steps": 0, "warm_start_steps": 0, "share_after": 0}
DISCOUNT, CDS = 0.9, {"rules": ("cds",), "seeds": (0, 1), "discount": 0.9}


def learner(transitions, name, **options):
    algorithm = state_run.build(name, small_state_config(name, **options), transitions)
    algorithm.shared.start("cpu")
    return algorithm


def test_the_expectile_loss_weighs_errors_by_their_sign():
    assert expectile_loss(tensor([2.0, -2.0, 0.0]), 0.7).tolist() == pytest.approx([0.7 * 4, 0.3 * 4, 0.0])


def test_the_weight_of_an_advantage_is_its_exponential_up_to_a_bound():
    found = advantage_weight(tensor([0.0, 1.0, -1.0, 50.0]), 3.0, 100.0)
    assert found.tolist() == pytest.approx([1.0, math.exp(3), math.exp(-3), 100.0])


def test_the_smoothing_of_a_target_action_is_clipped_and_so_is_the_action():
    found = smoothed_action(tensor([0.0, 0.0, 0.9, -0.9]), tensor([1.0, -4.0, 4.0, -1.0]), 0.2, 0.5)
    assert found.tolist() == pytest.approx([0.2, -0.5, 1.0, -1.0])


def test_the_sampled_kl_is_the_mean_difference_of_log_densities_and_on_average_the_closed_form():
    rng = torch.Generator().manual_seed(0)
    p, q = ((torch.randn(1, 3, 2, generator=rng), torch.rand(1, 3, 2, generator=rng) + 0.5) for _ in range(2))
    noise = torch.randn(1, 3, 4, 2, generator=rng)
    action, log_p = sample_with_log_prob(p, noise)
    log_q = torch.stack([log_prob(q, action[:, :, k]) for k in range(4)], -1)
    assert torch.allclose(sampled_kl(p, q, noise), (log_p - log_q).mean(-1), atol=1e-3)
    many = torch.randn(1, 3, 200_000, 2, generator=rng)
    assert torch.allclose(sampled_kl(p, q, many), gaussian_kl(p, q), rtol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_trains(transitions, name):
    options = NO_PHASES if name == "brac" else {}
    module = learner(transitions, name, rules=tuple(RULES), snapshot_every=1, **options)
    for _ in range(4):
        info = module.update()
    assert all(torch.isfinite(value).all() for value in info.values())
    for rule, report in zip(RULES, module.shared.report(), strict=True):
        assert (report["weights"][0][1] is None) == (RULES[rule].sources(("a", "b", "c"))[0, 1] == 0)


# ---------------------------------------------------------------------- updates in numpy


class Watched:
    """An update, with the batch, the weights and the normal numbers that it used, and its networks before it."""

    def __init__(self, module, monkeypatch):
        self.before, self.normal = copy.deepcopy(module), []
        module.begin()
        normal, sample = module.random.normal, module.sample_batch
        monkeypatch.setattr(
            module.random, "normal", lambda *shape: self.normal.append(normal(*shape)) or self.normal[-1]
        )

        def sample_batch():
            self.batch, self.weight = sample()
            self.normal.clear()  # what scored is not of the loss
            return self.batch, self.weight

        module.sample_batch = sample_batch
        self.info = {name: value.numpy().copy() for name, value in module.update().items()}
        self.after = module
        self.noise = [each.double().numpy() for each in self.normal]
        self.w = self.weight.double().numpy()

    def state(self, observation):
        return self.before.conditioner(observation, self.batch.task_index).double().numpy()

    def mean(self, each):
        """Weighted mean over the batch."""
        return (self.w * each).sum(-1) / self.w.sum(-1)


def mlp(network, x):
    """[E, B, in] -> [E, B, out], in float64."""
    weights = [
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()) for layer in network.layers
    ]
    for k, (weight, bias) in enumerate(weights):
        x = x @ weight + bias
        x = np.maximum(x, 0) if k + 1 < len(weights) else x
    return x


def gaussian(policy, state):
    mean, log_std = np.split(mlp(policy.mlp, state), 2, -1)
    return mean, np.exp(np.clip(log_std, -5, 2))


def twin_q(q, state, action):
    """[2, E, B]"""
    x = np.concatenate([state, action], -1)
    return mlp(q.mlp, np.concatenate([x, x]))[..., 0].reshape(2, *x.shape[:2])


def density(policy, state, before):
    """log pi(tanh(before) | s), [E, B]; `before` [E, B, A]."""
    mean, std = gaussian(policy, state)
    normal = -0.5 * ((before - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    return (normal - np.log(1 - np.tanh(before) ** 2 + 1e-300)).sum(-1)


def close(found, expected):
    assert found == pytest.approx(expected, rel=2e-4, abs=2e-4)


@pytest.mark.parametrize("phase", ["behaviour", "warm start", "all"])
def test_an_update_of_brac_is_the_papers(transitions, monkeypatch, phase):
    steps = {"behaviour": (1, 1), "warm start": (0, 1), "all": (0, 0)}[phase]
    options = {"bc_steps": steps[0], "warm_start_steps": steps[1], "share_after": 2 * steps[0]}
    options["divergence_weight"] = 0.3
    seen = Watched(learner(transitions, "brac", **options, **CDS), monkeypatch)
    before, batch = seen.before, seen.batch
    state, next_state = seen.state(batch.observation), seen.state(batch.next_observation)
    action = batch.action.double().numpy()
    close(
        seen.info["cloning"],
        -seen.mean(density(before.behaviour, state, np.arctanh(np.clip(action, -1, 1) * (1 - 1e-9)))),
    )
    if phase == "behaviour":
        assert set(seen.info) == {"weight", "cloning"}
        assert all(torch.equal(a, b) for a, b in zip(before.q.parameters(), seen.after.q.parameters(), strict=True))
        return

    def kl(state, noise):
        mean, std = gaussian(before.policy, state)
        each = []
        for k in range(noise.shape[2]):
            x = mean + std * noise[:, :, k]
            each.append(density(before.policy, state, x) - density(seen.after.behaviour, state, x))
        return np.mean(each, 0)

    mean, std = gaussian(before.policy, next_state)
    next_q = twin_q(before.target, next_state, np.tanh(mean + std * seen.noise[0][:, :, 0])).min(0)
    next_q -= 0.3 * kl(next_state, seen.noise[1])
    target = batch.reward.double().numpy() + DISCOUNT * (1 - batch.done.double().numpy()) * next_q
    close(seen.info["bellman"], seen.mean((twin_q(before.q, state, action) - target) ** 2).sum(0))
    penalty = 0.3 * kl(state, seen.noise[2])
    close(seen.info["divergence"], penalty.mean(-1) / 0.3)
    gain = 0.0
    if phase == "all":
        mean, std = gaussian(before.policy, state)
        gain = twin_q(seen.after.q, state, np.tanh(mean + std * seen.noise[3][:, :, 0])).min(0)
    close(seen.info["actor"], seen.mean(penalty - gain))


def test_without_samples_bracs_kl_is_in_closed_form(transitions):
    module = learner(transitions, "brac", divergence_samples=0, **NO_PHASES)
    module.begin()
    state = torch.randn(1, 5, 20, generator=torch.Generator().manual_seed(0))
    p, q = (torch.distributions.Normal(*policy(state)) for policy in (module.policy, module.behaviour))
    assert torch.allclose(module.divergence(state), torch.distributions.kl_divergence(p, q).sum(-1), rtol=1e-4)


def test_brac_shares_by_q_without_its_divergence(transitions):
    """CDS, app. D.1: Q - alpha KL(pi, pi_beta), for every rule's scores."""
    module = learner(transitions, "brac", **NO_PHASES, divergence_weight=0.3, rules=("cds-basic", "hipi"))
    module.update()
    batch = module.shared.sample(module.config.random("cpu", 100))
    scorer = module.score(batch, module.config.random("cpu", 101))
    state = module.conditioner(batch.observation, batch.task_index)
    kl = gaussian_kl(module.policy(state), module.behaviour(state))
    q = module.q(state, batch.action[:, :, None])[..., 0].amin(0)
    assert kl.min() > 0
    assert torch.allclose(scorer.q(), q - 0.3 * kl, atol=1e-5)
    assert torch.allclose(scorer.q_tasks().gather(-1, batch.task_index[..., None])[..., 0], q - 0.3 * kl, atol=1e-5)
    assert torch.allclose(scorer.q_by(module.conservative_q(module.q)), q - 0.3 * kl, atol=1e-5)
    assert torch.allclose(scorer.q_policy(), scorer.q_actions.amin(0).mean(-1) - 0.3 * kl, atol=1e-5)


def test_an_update_of_iql_is_the_papers(transitions, monkeypatch):
    module = learner(transitions, "iql", max_advantage_weight=1.05, **CDS)
    module.log_std.data.fill_(math.log(0.5))
    module.value.layers[-1].bias.data -= 0.3  # so that some advantages are above the bound, some below
    seen = Watched(module, monkeypatch)
    before, after, batch = seen.before, seen.after, seen.batch
    state, next_state = seen.state(batch.observation), seen.state(batch.next_observation)
    action = batch.action.double().numpy()
    q_data, value = twin_q(before.target, state, action).min(0), mlp(before.value, state)[..., 0]
    error = q_data - value
    close(seen.info["value"], seen.mean(np.where(error < 0, 0.3, 0.7) * error**2))
    target = batch.reward.double().numpy()
    target = target + DISCOUNT * (1 - batch.done.double().numpy()) * mlp(after.value, next_state)[..., 0]
    close(seen.info["bellman"], seen.mean((twin_q(before.q, state, action) - target) ** 2).sum(0))
    cloned = np.exp(3 * (q_data - mlp(after.value, state)[..., 0]))
    assert (cloned > 1.05).any()
    assert (cloned < 1.05).any()
    noise = (action - np.tanh(mlp(before.policy.mlp, state))) / 0.5
    likely = (-0.5 * noise**2 - np.log(0.5) - 0.5 * np.log(2 * np.pi)).sum(-1)
    close(seen.info["actor"], -seen.mean(np.minimum(cloned, 1.05) * likely))


@pytest.mark.parametrize("update", [1, 2])
def test_an_update_of_td3_bc_is_the_papers(transitions, monkeypatch, update):
    module = learner(transitions, "td3-bc", policy_noise=0.8, **CDS)
    for _ in range(update - 1):
        module.update()
    seen = Watched(module, monkeypatch)
    before, after, batch = seen.before, seen.after, seen.batch
    state, next_state = seen.state(batch.observation), seen.state(batch.next_observation)
    action = batch.action.double().numpy()
    next_action = np.tanh(mlp(before.target_policy.mlp, next_state)) + np.clip(0.8 * seen.noise[0], -0.5, 0.5)
    next_q = twin_q(before.target, next_state, np.clip(next_action, -1, 1)).min(0)
    target = batch.reward.double().numpy() + DISCOUNT * (1 - batch.done.double().numpy()) * next_q
    close(seen.info["bellman"], seen.mean((twin_q(before.q, state, action) - target) ** 2).sum(0))
    moved = not torch.equal(before.policy.mlp.layers[0].weight, after.policy.mlp.layers[0].weight)
    assert moved == ("actor" in seen.info) == (update == 2)
    assert moved != torch.equal(before.target.mlp.layers[0].weight, after.target.mlp.layers[0].weight)
    if moved:
        own = np.tanh(mlp(before.policy.mlp, state))
        q = twin_q(after.q, state, own)[0]
        scale = 2.5 / seen.mean(np.abs(q))
        close(seen.info["actor"], seen.mean(((own - action) ** 2).mean(-1)) - scale * seen.mean(q))


# ---------------------------------------------------------------------- options and files


def test_a_deterministic_policy_is_kept_as_such(transitions, tmp_path):
    module = learner(transitions, "td3-bc", rules=("none",), seeds=(0, 1))
    members = tuple(Member(name=str(k), tasks=("jump",), seed=k) for k in range(2))
    policy = PolicyFile(policy=module.policies(), benchmark=BENCHMARKS["walker2d"], members=members, metadata={})
    (tmp_path / "policy.pt").write_bytes(pack_policies(policy))
    found = load_policies(tmp_path / "policy.pt")
    assert type(found.policy.network) is DeterministicPolicy
    observation, task = np.zeros((2, 5, 17), np.float32), np.zeros((2, 5), np.int64)
    assert np.array_equal(found.policy.act(observation, task), policy.policy.act(observation, task))
    noisy = found.policy.explore(observation, task, torch.Generator().manual_seed(0))
    assert 0 < np.abs(noisy - found.policy.act(observation, task)).max() < 0.6


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (BRACConfig, {"divergence_weight": -1.0}, "divergence_weight"),
        (BRACConfig, {"bc_steps": -1}, "bc_steps"),
        (BRACConfig, {"bc_steps": 15_000}, "share_after 15000: rule cds would share by a Q-function that has not"),
        (BRACConfig, {"rules": ("heuristic",), "snapshot_every": 10_000}, "snapshot_every 10000: rule heuristic"),
        (IQLConfig, {"expectile": 1.5}, "expectile"),
        (IQLConfig, {"max_advantage_weight": 0.5}, "max_advantage_weight"),
        (TD3BCConfig, {"policy_delay": 0}, "policy_delay"),
        (TD3BCConfig, {"noise_clip": -0.1}, "noise_clip"),
    ],
)
def test_options_that_make_no_sense_are_refused(config, options, words):
    with pytest.raises(ValueError, match=words):
        config(**options)
