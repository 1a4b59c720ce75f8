"""The sharing rules: hand-computed weights, and from where each rule may draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import tensor

from data.sharing import RULES, RuleContext, Scores, advantage_over_policy, mean, q_value, top_quantile

OWN = torch.linspace(0, 1, 11)[None]  # of one task; its 90th percentile is 0.9
Q_TASKS = tensor([[0.2, 0.5, 0.1], [0.9, 0.5, 0.1], [0.3, 0.3, 0.6]])  # three transitions, three tasks


def weigh(name, score, reference=0.0, temperature=1.0, target=None, q_tasks=None):
    score = tensor(score)
    context = RuleContext(
        reference=torch.full_like(score, reference),
        temperature=torch.full_like(score, temperature),
        target=tensor(target or [0] * len(score)),
        q_tasks=q_tasks,
    )
    return RULES[name].weight(score, context).tolist()


def test_cds_is_the_sigmoid_of_the_advantage_over_the_temperature():
    weight = weigh("cds", [0.9, 1.0, 0.5], reference=0.9, temperature=0.1)
    assert weight == pytest.approx([0.5, 0.7310586, 0.0179862], abs=1e-6)


def test_hard_cds_takes_what_reaches_the_quantile():
    assert weigh("cds-hard", [0.9, 1.0, 0.5], reference=0.9) == [1.0, 1.0, 0.0]
    assert RULES["heuristic"].weight is RULES["cds-hard"].weight


def test_basic_cds_compares_the_regularisation_terms():
    """Eq. 18 by hand: own terms 0.3 and 0.1; of the shared ones 0.5 (Delta -0.3) and 0.0 (Delta 0.2)."""
    rule = RULES["cds-basic"]
    own = rule.score(Scores(q=tensor([0.2, 0.4]), q_policy=tensor([0.5, 0.5])))
    shared = rule.score(Scores(q=tensor([0.1, 0.6]), q_policy=tensor([0.6, 0.6])))
    reference = rule.reference(own[None], torch.ones(1, 2), 10.0).item()
    delta = [0.2 - 0.5, 0.2 - 0.0]
    weight = weigh("cds-basic", shared.tolist(), reference=reference, temperature=0.1)
    assert weight == pytest.approx([1 / (1 + math.exp(-d / 0.1)) for d in delta])
    assert rule.needs == "q_policy"


def test_hipi_routes_a_transition_to_the_task_of_its_highest_q():
    assert weigh("hipi", [0.2, 0.9, 0.3], target=[0, 0, 0], q_tasks=Q_TASKS) == [0.0, 1.0, 0.0]
    assert weigh("hipi", [0.5, 0.5, 0.6], target=[1, 1, 2], q_tasks=Q_TASKS) == [1.0, 0.0, 1.0]


def test_hipi_with_its_partition_function_divides_by_what_a_task_gives_to_the_whole_batch():
    tau = 0.5
    share = np.exp(Q_TASKS.numpy() / tau)
    share /= share.sum(0)
    share /= share.sum(1, keepdims=True)
    target = [0, 1, 2]
    weight = weigh("hipi-partition", [0.0] * 3, temperature=tau, target=target, q_tasks=Q_TASKS)
    assert weight == pytest.approx([share[b, i] for b, i in enumerate(target)], abs=1e-6)


def test_a_task_that_is_not_trained_takes_nothing_from_the_others():
    q_tasks = Q_TASKS.clone()
    q_tasks[:, 0] = -torch.inf
    two = weigh("hipi-partition", [0.0] * 3, target=[1, 1, 2], q_tasks=q_tasks)
    assert two == pytest.approx(weigh("hipi-partition", [0.0] * 3, target=[0, 0, 1], q_tasks=Q_TASKS[:, 1:]))
    assert weigh("hipi", [0.5], target=[1], q_tasks=q_tasks[1:2]) == [1.0]


@pytest.mark.parametrize(("percentile", "quantile"), [(0.0, 1.0), (10.0, 0.9), (50.0, 0.5), (100.0, 0.0), (25.0, 0.75)])
def test_the_percentile_counts_from_the_top(percentile, quantile):
    assert top_quantile(OWN, torch.ones_like(OWN), percentile).tolist() == pytest.approx([quantile])


def test_references_pass_over_what_is_not_filled_yet():
    window = torch.cat([OWN, torch.full_like(OWN, torch.nan)], dim=1)
    equal = torch.ones_like(window)
    assert top_quantile(window, equal, 25.0).tolist() == pytest.approx([0.75])
    assert mean(window, equal, 25.0).tolist() == pytest.approx([0.5])
    nothing = torch.full((1, 3), torch.nan)
    assert top_quantile(nothing, torch.ones(1, 3), 25.0).isnan().all()
    assert mean(nothing, torch.ones(1, 3), 25.0).isnan().all()


def test_references_count_scores_by_their_weights():
    """Places of 1, 2, 3 with weights 1, 1, 2: (W_n - w_1 / 2 - w_n / 2) / 2.5 = 0, 0.4, 1."""
    scores, weight = tensor([[3.0, 1.0, 2.0]]), tensor([[2.0, 1.0, 1.0]])
    assert top_quantile(scores, weight, 50.0).tolist() == pytest.approx([2 + 0.1 / 0.6])
    assert mean(scores, weight, 50.0).tolist() == pytest.approx([9 / 4])
    many = torch.rand(500, generator=torch.Generator().manual_seed(0))
    often = torch.randint(1, 5, (500,), generator=torch.Generator().manual_seed(1))
    exact = np.quantile(np.repeat(many.numpy(), often.numpy()), 0.7)
    assert top_quantile(many, often.float(), 30.0).item() == pytest.approx(exact, abs=2e-3)


def test_scores_are_q_and_its_advantage_over_the_policy():
    scores = Scores(q=tensor([0.2, 0.7]), q_policy=tensor([0.5, 0.6]))
    assert q_value(scores).tolist() == pytest.approx([0.2, 0.7])
    assert advantage_over_policy(scores).tolist() == pytest.approx([-0.3, 0.1])


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.score])
def test_weights_stay_finite_and_within_zero_and_one(name):
    q_tasks = tensor([[-500.0, 500.0, 0.0], [500.0, -500.0, -torch.inf]])
    weight = weigh(name, [-500.0, 500.0], temperature=1e-3, target=[0, 0], q_tasks=q_tasks)
    assert weight == [0.0, 1.0]


@pytest.mark.parametrize("name", ["none", "all", "skill", "uds"])
def test_rules_without_q_values_count_in_full(name):
    assert not RULES[name].uses_q
    assert weigh(name, [-1.0, 0.3]) == [1.0, 1.0]


def test_only_uds_leaves_the_reward_of_the_target_task_out():
    assert [name for name, rule in RULES.items() if not rule.reward] == ["uds"]


def test_each_rule_draws_from_the_sources_it_names():
    skills = ("lift", "place", "lift")
    assert np.array_equal(RULES["none"].sources(skills), np.eye(3, dtype=bool))
    assert np.array_equal(RULES["skill"].sources(skills), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    for name in set(RULES) - {"none", "skill"}:
        assert RULES[name].sources(skills).all()
