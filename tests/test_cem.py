"""CEM over hybrid actions, on Q-functions whose best action is known."""

from __future__ import annotations

import pytest
import torch
from torch import tensor

from models.cem import ActionDistribution, CEMConfig, best_sample, maximise
from models.qnetwork import bounds

BOUND = bounds(torch.device("cpu"))
BEST = tensor([0.03, -0.02, 0.01, 0.25])  # within the bounds of 6 cm and 0.6 rad


def q_with_best(command):
    """1 at (BEST, command), falling with the distance in units of the bounds; other commands lose 0.5."""

    def q(action):
        distance = ((action[..., :4] - BEST) / BOUND).square().sum(-1)
        return 1 - distance - 0.5 * (action[..., 4] != command)

    return q


def recorded(q):
    """The same Q-function and the list of the candidates it is shown."""
    rounds = []

    def shown(action):
        rounds.append(action.clone())
        return q(action)

    return shown, rounds


@pytest.mark.parametrize("command", range(4))
def test_the_best_action_is_found_for_every_command(command):
    config = CEMConfig(samples=128, elites=12, iterations=8)
    action, value = maximise(q_with_best(command), 3, BOUND, config, torch.Generator().manual_seed(command))
    assert action[:, 4].tolist() == [command] * 3
    assert ((action[:, :4] - BEST) / BOUND).abs().max() < 0.06
    assert value.min() > 0.99


def test_every_state_of_a_batch_gets_its_own_best_action():
    wanted = tensor([[0.05, 0, 0, 0], [-0.05, 0, 0, 0]])

    def q(action):
        return -((action[..., :4] - wanted[:, None]) / BOUND).square().sum(-1)

    action, _ = maximise(q, 2, BOUND, CEMConfig(samples=128, elites=12, iterations=8), torch.Generator().manual_seed(0))
    assert ((action[:, :4] - wanted) / BOUND).abs().max() < 0.06


def test_the_value_is_that_of_the_action_and_the_highest_of_all_rounds():
    q, rounds = recorded(q_with_best(2))
    action, value = maximise(
        q, 5, BOUND, CEMConfig(samples=16, elites=4, iterations=3), torch.Generator().manual_seed(1)
    )
    assert torch.equal(value, q_with_best(2)(action))
    assert torch.equal(value, torch.cat([q_with_best(2)(candidates) for candidates in rounds], dim=1).max(dim=1)[0])


def test_every_round_holds_every_command_and_stays_within_the_bounds():
    q, rounds = recorded(q_with_best(3))
    maximise(q, 2, BOUND, CEMConfig(samples=8, elites=2, iterations=4), torch.Generator().manual_seed(2))
    assert len(rounds) == 4
    for candidates in rounds:
        assert candidates.shape == (2, 8, 5)
        assert (candidates[..., :4].abs() <= BOUND).all()
        for state in candidates:
            assert set(state[:, 4].tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_the_next_round_is_drawn_around_the_motion_of_the_elites():
    """With 4000 samples the second round's mean and spread are those of the first round's elites, to 3 %."""
    q, rounds = recorded(lambda action: -(action[..., 0] / BOUND[0] - 0.3).abs())
    maximise(q, 1, BOUND, CEMConfig(samples=4000, elites=1000, iterations=2), torch.Generator().manual_seed(3))
    first, second = rounds[0][0, :, :4] / BOUND, rounds[1][0, :, :4] / BOUND
    elites = first[(first[:, 0] - 0.3).abs().argsort()[:1000]]
    assert elites[:, 0].mean().item() == pytest.approx(0.3, abs=0.02)
    assert second[:, 0].mean().item() == pytest.approx(elites[:, 0].mean().item(), abs=0.03)
    assert second[:, 0].std().item() == pytest.approx(elites[:, 0].std().item(), rel=0.05)


def test_the_next_rounds_commands_follow_their_frequency_among_the_elites():
    q, rounds = recorded(lambda action: (action[..., 4] == 2).float() + 0.5 * (action[..., 4] == 1).float())
    maximise(q, 1, BOUND, CEMConfig(samples=400, elites=40, iterations=2), torch.Generator().manual_seed(4))
    assert (rounds[1][0, :, 4] == 2).sum() == 400 - 3  # all elites had command 2; one sample of each is kept


def test_one_seed_gives_one_action():
    config = CEMConfig(samples=16, elites=4, iterations=2)
    first, second = (maximise(q_with_best(0), 2, BOUND, config, torch.Generator().manual_seed(5))[0] for _ in range(2))
    assert torch.equal(first, second)


def distribution_around_best():
    """Two states: all motion close to BEST, commands certain in the first and even between 2 and 3 in the second."""
    command = tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    return ActionDistribution((BEST / BOUND).expand(2, 4), torch.full((2, 4), 0.05), command)


def test_with_log_prob_weight_0_the_highest_valued_sample_is_chosen():
    q, rounds = recorded(q_with_best(2))
    action, value = best_sample(q, distribution_around_best(), 64, 0.0, BOUND, torch.Generator().manual_seed(6))
    assert len(rounds) == 1
    assert ((rounds[0][..., :4] - BEST) / BOUND).abs().max() < 0.3
    assert (rounds[0][:, :32, :4] == BEST).all()
    assert not (rounds[0][:, 32:, :4] == BEST).any()
    assert set(rounds[0][0, :, 4].tolist()) == {1.0}
    assert set(rounds[0][1, :, 4].tolist()) == {2.0, 3.0}
    assert torch.equal(value, q_with_best(2)(rounds[0]).max(dim=1)[0])
    assert torch.equal(value, q_with_best(2)(action[:, None])[:, 0])
    assert action[:, 4].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("log_prob_weight", [0.3, 1.0, 5.0])
def test_the_log_probability_of_the_behaviour_policy_counts_beside_log_q(log_prob_weight):
    q, rounds = recorded(lambda action: 0.05 + 0.9 * (action[..., 0] / BOUND[0]).abs().clamp(max=1))
    behaviour = ActionDistribution(torch.zeros(1, 4), torch.full((1, 4), 0.4), tensor([[0.7, 0.2, 0.1, 0.0]]))
    action, value = best_sample(q, behaviour, 200, log_prob_weight, BOUND, torch.Generator().manual_seed(7))
    (candidates,) = rounds[0]
    motion = torch.distributions.Normal(0.0, 0.4).log_prob(candidates[:, :4] / BOUND).sum(-1)
    command = torch.distributions.Categorical(tensor([0.7, 0.2, 0.1, 0.0])).log_prob(candidates[:, 4])
    chosen = (q(candidates).log() + log_prob_weight * (motion + command)).argmax()
    assert torch.equal(action[0], candidates[chosen])
    assert value[0] == q(action)[0]


@pytest.mark.parametrize("wrong", [{"samples": 3, "elites": 2}, {"elites": 1}, {"elites": 65}, {"iterations": 0}])
def test_a_search_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match="CEM needs at least"):
        CEMConfig(**wrong)
