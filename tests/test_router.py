"""The router: its temperature over two steps, its weights and its report, by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import tensor

from data.batches import Batch
from data.router import Router, RouterConfig


def batch_of(target, source):
    """A batch in which only the tasks matter: everything else is zero."""
    empty = {field.name: torch.zeros(len(target)) for field in dataclasses.fields(Batch)}
    tasks = {"task_index": tensor(target), "source_task_index": tensor(source)}
    return Batch(**{**empty, **tasks, "is_shared": tensor(target) != tensor(source)})


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


ONE_TASK = ([0, 0, 0, 0], [0, 0, 1, 2])  # two own transitions, two shared ones


def test_the_temperature_is_the_running_average_of_the_absolute_advantage():
    router = Router(RouterConfig(percentile=0.0, decay=0.9), 3)  # compares with the best own transition, 0.4
    first = router.weigh(batch_of(*ONE_TASK), tensor([0.2, 0.4, 0.5, 0.1]))  # Delta 0.1 and -0.3
    assert router.tau.tolist() == pytest.approx([0.2, 0.0, 0.0])
    assert first.tolist() == pytest.approx([1.0, 1.0, sigmoid(0.5), sigmoid(-1.5)])
    second = router.weigh(batch_of(*ONE_TASK), tensor([0.4, 0.2, 0.9, 0.3]))  # Delta 0.5 and -0.1
    assert router.tau.tolist() == pytest.approx([0.9 * 0.2 + 0.1 * 0.3, 0.0, 0.0])
    assert second.tolist() == pytest.approx([1.0, 1.0, sigmoid(0.5 / 0.21), sigmoid(-0.1 / 0.21)])


def test_every_task_compares_with_its_own_transitions_and_keeps_its_own_temperature():
    router = Router(RouterConfig(percentile=0.0), 2)
    weight = router.weigh(batch_of([0, 0, 1, 1], [0, 1, 1, 0]), tensor([0.2, 0.3, 0.9, 0.5]))
    assert router.tau.tolist() == pytest.approx([0.1, 0.4])
    assert weight.tolist() == pytest.approx([1.0, sigmoid(1), 1.0, sigmoid(-1)])


def test_the_temperature_is_clipped_from_below_and_above():
    q = tensor([0.4, 0.4, 0.5, 0.3])  # the average of |Delta| is 0.1
    low = Router(RouterConfig(percentile=0.0, tau_low=0.2), 3).weigh(batch_of(*ONE_TASK), q)
    high = Router(RouterConfig(percentile=0.0, tau_high=0.05), 3).weigh(batch_of(*ONE_TASK), q)
    assert low[2].item() == pytest.approx(sigmoid(0.1 / 0.2))
    assert high[2].item() == pytest.approx(sigmoid(0.1 / 0.05))


def test_a_flat_q_function_gives_weights_of_one_half():
    router = Router(RouterConfig(), 3)
    for _ in range(2):
        weight = router.weigh(batch_of(*ONE_TASK), tensor([0.4, 0.4, 0.4, 0.4]))
    assert weight.tolist() == [1.0, 1.0, 0.5, 0.5]


def test_without_an_own_transition_nothing_is_known_of_shared_ones():
    router = Router(RouterConfig(), 3)
    assert router.weigh(batch_of([0, 1, 1], [0, 0, 2]), tensor([0.2, 0.4, 0.5])).tolist() == [1.0, 0.0, 0.0]
    assert router.tau.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("rule", ["none", "all", "skill"])
def test_other_rules_weigh_everything_one_and_need_no_q(rule):
    assert Router(RouterConfig(rule=rule), 3).weigh(batch_of(*ONE_TASK), None).tolist() == [1.0] * 4


def test_the_report_is_the_running_mean_weight_of_each_source_for_each_target():
    router = Router(RouterConfig(percentile=0.0, decay=0.9), 3)
    router.weigh(batch_of(*ONE_TASK), tensor([0.2, 0.4, 0.5, 0.1]))
    router.weigh(batch_of(*ONE_TASK), tensor([0.4, 0.2, 0.9, 0.3]))
    report = router.report()
    old, new = sigmoid(0.5), sigmoid(0.5 / 0.21)
    assert report[0][0] == pytest.approx(1.0)
    assert report[0][1] == pytest.approx((0.999 * old + new) / 1.999)
    assert report[1] == [None, None, None]


def test_temperature_and_report_travel_with_the_state_dict():
    router, copy = Router(RouterConfig(percentile=0.0), 3), Router(RouterConfig(percentile=0.0), 3)
    router.weigh(batch_of(*ONE_TASK), tensor([0.2, 0.4, 0.5, 0.1]))
    copy.load_state_dict(router.state_dict())
    q = tensor([0.1, 0.3, 0.8, 0.2])
    assert torch.equal(copy.weigh(batch_of(*ONE_TASK), q), router.weigh(batch_of(*ONE_TASK), q))
    assert copy.report() == router.report()


def test_unknown_rules_and_impossible_percentiles_are_refused():
    with pytest.raises(ValueError, match=r"unknown sharing rule 'cdss'.*Did you mean 'cds'"):
        RouterConfig(rule="cdss")
    with pytest.raises(ValueError, match="percentile is 0 to 100"):
        RouterConfig(percentile=101.0)
