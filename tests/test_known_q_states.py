"""A small problem whose Q* is known: every algorithm, its regulariser off, learns that Q on states for each task; and a
regulariser pushes the way its paper says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.transitions import TransitionDataset, empty_columns
from tests.line import LINE, PLACES, move, observe
from train.actor_critic import ActorCriticConfig
from train.sac import SAC, SACConfig
from train.state_run import ALGORITHMS, build
from train.td3 import TD3, TD3Config

DISCOUNT, UPDATES, FEW = 0.8, 500, 200
OPTIONS = {
    "rules": ("all",),
    "seeds": (0,),
    "steps": UPDATES,
    "per_task": 48,
    "hidden_sizes": (64, 64),
    "critic_lr": 3e-3,
    "actor_lr": 3e-3,
    "target_update_rate": 0.05,
    "discount": DISCOUNT,
    "normalise": False,
}
UNREGULARISED = {
    "cql": {"num_sampled_actions": 1, "conservative_weight": 0.0},
    "brac": {"divergence_weight": 0.0, "bc_steps": 0, "warm_start_steps": 0, "share_after": 0},
    "iql": {"expectile": 0.99, "value_lr": 3e-3},
    "td3-bc": {"q_weight": 1e3, "policy_noise": 0.0},
}


def dataset(sides=(-1, 1)):
    """Every place with actions to these sides, equally many of each, half of them of each task."""
    count = 600
    rng, columns = np.random.default_rng(0), empty_columns(LINE, count)
    place = np.arange(count) % PLACES
    action = rng.choice(sides, count) * rng.uniform(0, 1, count)
    columns["observation"][:] = observe(place)
    columns["action"][:, 0] = action
    columns["quantity/place"][:] = move(place, action)
    columns["next_observation"][:] = observe(move(place, action))
    columns["task"][:] = np.arange(count) % 2
    columns["episode_end"][:] = True
    return TransitionDataset(benchmark=LINE, columns=columns, metadata={})


def known_q():
    """[task, place, action to the left or right], by value iteration."""
    q, moved = np.zeros((2, PLACES, 2)), np.stack([move(np.arange(PLACES), side) for side in (-1, 1)], -1)
    goal = np.array([2, 0])[:, None, None]
    for _ in range(50):
        value = q.max(-1)
        q = np.where(moved == goal, 1.0, DISCOUNT * value[:, moved])
    return q


def test_the_known_q_is_that_of_the_goals_ends():
    assert known_q()[0].round(3).tolist() == [[0.64, 0.8], [0.64, 1.0], [0.8, 1.0]]
    assert np.array_equal(known_q()[1], known_q()[0][::-1, ::-1])


@pytest.mark.parametrize("name", UNREGULARISED)
def test_the_learned_q_is_the_known_one(name):
    learned = learn(name, **UNREGULARISED[name])
    assert np.abs(q_of(learned) - known_q()).max() < 0.05


@pytest.mark.parametrize(("kind", "config"), [(SAC, SACConfig()), (TD3, TD3Config(policy_noise=0.0))])
def test_online_learners_find_it_in_the_same_data(kind, config):
    torch.manual_seed(0)
    settings = {"hidden_sizes": (64, 64), "lr": 3e-3, "target_update_rate": 0.05, "discount": DISCOUNT}
    learner, data, rng = kind(replace(config, **settings), LINE, 2), dataset(), np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    if kind is SAC:
        learner.log_alpha.data.fill_(-6.0)
    for update in range(UPDATES):
        for optimizer in learner.optimizers:
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - update / UPDATES)
        rows, task = rng.integers(len(data), size=(2, 48)), np.array([[0], [1]])
        columns = {name: data.columns[name][rows] for name in ("observation", "action", "next_observation")}
        columns |= {"reward": data.rewards[rows, task], "done": data.done[rows, task]}
        learner.update({name: torch.from_numpy(np.float32(each)) for name, each in columns.items()}, generator)
    place, side = (torch.from_numpy(each.ravel()) for each in np.indices((PLACES, 2)))
    state, action = torch.eye(PLACES)[place].expand(2, -1, -1), (side * 1.0 - 0.5)[None, :, None, None]
    with torch.no_grad():
        found = learner.target(state, action.expand(2, -1, -1, -1)).amin(0).view(2, PLACES, 2).numpy()
    assert np.abs(found - known_q()).max() < 0.05


def test_every_algorithm_with_a_q_function_is_here():
    with_q = {entry.make for entry in ALGORITHMS.values() if issubclass(entry.config, ActorCriticConfig)}
    assert with_q == {ALGORITHMS[name].make for name in UNREGULARISED}


def test_cql_lowers_what_the_data_lack():
    """Only actions to the right: Q of the left, by which task left is one step from its goal, falls with the weight."""
    left = [
        q_of(learn("cql", dataset(sides=(1,)), FEW, num_sampled_actions=5, conservative_weight=weight))[1, 1, 0]
        for weight in (0.0, 0.3, 1.0)
    ]
    assert left[2] < left[1] - 1 < left[0] - 2


@pytest.mark.parametrize(("weight", "likes_left"), [(0.0, True), (10.0, False)])
def test_brac_keeps_the_policy_at_the_data(weight, likes_left):
    """Actions to the right, one in ten to the left, where the goal of task left is."""
    options = {**UNREGULARISED["brac"], "bc_steps": 100, "divergence_weight": weight}
    learned = learn("brac", dataset(sides=(1,) * 9 + (-1,)), FEW, **options)
    assert (mean_action(learned, task=1, place=1) < 0) == likes_left


@pytest.mark.parametrize(("expectile", "nearly"), [(0.5, 0.5), (0.9, 0.9)])
def test_iqls_value_is_the_expectile_of_the_datas(expectile, nearly):
    """At the place beside the goal, in episodes of one step: half of the actions are worth 1, half 0."""
    learned = learn("iql", updates=FEW, discount=0.0, **{**UNREGULARISED["iql"], "expectile": expectile})
    state = learned.conditioner(torch.eye(PLACES)[None, [1]], torch.tensor([[0]]))
    assert abs(learned.value(state).item() - nearly) < 0.1


@pytest.mark.parametrize(("beta", "least", "most"), [(0.0, -0.2, 0.2), (10.0, 0.4, 1.0)])
def test_iqls_policy_clones_what_is_better(beta, least, most):
    """At the place beside the goal: right is worth 1, left 0.64."""
    learned = learn("iql", updates=FEW, **UNREGULARISED["iql"], inverse_temperature=beta)
    assert least < mean_action(learned, task=0, place=1) < most


@pytest.mark.parametrize(("gain", "likes_left"), [(2.5, True), (0.0, False)])
def test_td3_bc_leaves_the_data_for_q_by_its_weight(gain, likes_left):
    options = {**UNREGULARISED["td3-bc"], "q_weight": gain}
    learned = learn("td3-bc", dataset(sides=(1,) * 9 + (-1,)), FEW, **options)
    assert (mean_action(learned, task=1, place=1) < 0) == likes_left


def learn(name, data=None, updates=UPDATES, **options):
    torch.manual_seed(0)
    algorithm = build(name, ALGORITHMS[name].config(**{**OPTIONS, **options}), data or dataset())
    algorithm.shared.start("cpu")
    if name == "cql":
        algorithm.log_alpha.data.fill_(-6.0)  # hardly any entropy: the policy maximises Q
    for update in range(updates):
        for optimizer in algorithm.optimizers:
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - update / updates)
        algorithm.update()
    return algorithm


@torch.no_grad()
def q_of(algorithm):
    """[task, place, action to the left or right]"""
    task, place, side = (torch.from_numpy(each.reshape(1, -1)) for each in np.indices((2, PLACES, 2)))
    state = algorithm.conditioner(torch.eye(PLACES)[place], task)
    return algorithm.target(state, (side * 1.0 - 0.5)[..., None, None]).amin(0).view(2, PLACES, 2).numpy()


@torch.no_grad()
def mean_action(algorithm, task, place):
    return algorithm.policies()(torch.eye(PLACES)[None, [place]], torch.tensor([[task]]))[0].tanh().item()
