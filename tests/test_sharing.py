"""The sharing rules: hand-computed weights, and from where each rule may draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import tensor

from data.sharing import RULES, RuleContext, advantage

OWN = torch.linspace(0, 1, 11)  # its 90th percentile is 0.9


def test_cds_is_the_sigmoid_of_the_advantage_over_the_temperature():
    context = RuleContext(percentile=10.0, temperature=0.1)
    weight = RULES["cds"].weigh(tensor([0.9, 1.0, 0.5]), OWN, context)
    assert weight.tolist() == pytest.approx([0.5, 0.7310586, 0.0179862], abs=1e-6)


@pytest.mark.parametrize(("percentile", "quantile"), [(0.0, 1.0), (10.0, 0.9), (50.0, 0.5), (100.0, 0.0), (25.0, 0.75)])
def test_the_percentile_counts_from_the_top(percentile, quantile):
    delta = advantage(tensor([0.0]), OWN, RuleContext(percentile=percentile))
    assert delta.item() == pytest.approx(-quantile)


def test_cds_weights_stay_finite_and_within_zero_and_one():
    context = RuleContext(percentile=10.0, temperature=1e-3)
    assert RULES["cds"].weigh(tensor([-50.0, 50.0]), OWN, context).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", ["none", "all", "skill"])
def test_rules_without_q_values_count_in_full(name):
    assert not RULES[name].uses_q
    assert RULES[name].weigh(tensor([-1.0, 0.3]), OWN, RuleContext()).tolist() == [1.0, 1.0]


def test_only_cds_asks_for_q_values():
    assert [name for name, rule in RULES.items() if rule.uses_q] == ["cds"]


def test_each_rule_draws_from_the_sources_it_names():
    skills = ("lift", "place", "lift")
    assert np.array_equal(RULES["none"].sources(skills), np.eye(3, dtype=bool))
    assert np.array_equal(RULES["skill"].sources(skills), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert RULES["all"].sources(skills).all()
    assert RULES["cds"].sources(skills).all()
