"""A small problem whose Q* is known: CQL without its conservative term learns that Q on states, for each task."""

from __future__ import annotations

import numpy as np
import torch

from data.transitions import TransitionDataset, empty_columns
from tests.line import LINE, PLACES, move, observe
from train.cql import CQLConfig
from train.state_run import build

DISCOUNT, UPDATES = 0.8, 500
CONFIG = CQLConfig(
    rules=("all",),
    seeds=(0,),
    steps=UPDATES,
    per_task=48,
    hidden_sizes=(64, 64),
    num_sampled_actions=1,
    conservative_weight=0.0,
    critic_lr=3e-3,
    actor_lr=3e-3,
    target_update_rate=0.05,
    discount=DISCOUNT,
    normalise=False,
)


def dataset():
    """Every place with actions to both sides, half of them of each task."""
    count = 600
    rng, columns = np.random.default_rng(0), empty_columns(LINE, count)
    place = np.arange(count) % PLACES
    action = rng.uniform(-1, 1, count)
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


def test_the_learned_q_is_the_known_one():
    torch.manual_seed(0)
    cql = build("cql", CONFIG, dataset())
    cql.shared.start("cpu")
    cql.log_alpha.data.fill_(-6.0)  # hardly any entropy: the policy maximises Q
    for update in range(UPDATES):
        for optimizer in cql.optimizers:
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - update / UPDATES)
        cql.update()
    task, place, side = (torch.from_numpy(each.reshape(1, -1)) for each in np.indices((2, PLACES, 2)))
    state = cql.conditioner(torch.eye(PLACES)[place], task)
    with torch.no_grad():
        q = cql.target(state, (side * 1.0 - 0.5)[..., None, None]).amin(0).view(2, PLACES, 2).numpy()
    assert np.abs(q - known_q()).max() < 0.05
