"""The router: its window, temperature, weights and report, by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from data.router import Router, effective_steps
from data.router_config import RouterConfig
from data.sharing import RULES, Scores


@dataclass
class Rows:
    task_index: Tensor
    source_task_index: Tensor
    success: Tensor
    episode: Tensor


def rows(target, source, success=None, episode=None):
    target, source = tensor(target), tensor(source)
    success = torch.zeros(target.shape) if success is None else tensor(success)
    return Rows(target, source, success, torch.zeros_like(target) if episode is None else tensor(episode))


def q(*values):
    return Scores(q=tensor(values))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def router_of(num_tasks=3, **options):
    return Router(RouterConfig(**{"percentile": 0.0, **options}), num_tasks)  # compares with the best own transition


ONE_TASK = rows([0, 0, 0, 0], [0, 0, 1, 2])  # two own transitions, two shared ones


def test_the_absolute_temperature_averages_over_own_and_shared_rows():
    router = router_of(decay=0.9)
    first = router.weigh(ONE_TASK, q(0.2, 0.4, 0.5, 0.1))  # Delta -0.2 and 0 of own, 0.1 and -0.3 of shared rows
    assert router.transitions.tau[0].tolist() == pytest.approx([0.15, 0.0, 0.0])
    assert first.tolist() == pytest.approx([1.0, 1.0, sigmoid(0.1 / 0.15), sigmoid(-0.3 / 0.15)])
    second = router.weigh(ONE_TASK, q(0.3, 0.2, 0.9, 0.3))  # the best own one is that of before: -0.1, -0.2, 0.5, -0.1
    tau = 0.9 * 0.15 + 0.1 * 0.225
    assert router.transitions.tau[0].tolist() == pytest.approx([tau, 0.0, 0.0])
    assert second.tolist() == pytest.approx([1.0, 1.0, sigmoid(0.5 / tau), sigmoid(-0.1 / tau)])


def test_the_signed_temperature_averages_delta_of_shared_rows_and_its_clip_binds():
    router = router_of(decay=0.9, temperature="signed", tau_low=0.05)
    weight = router.weigh(ONE_TASK, q(0.2, 0.4, 0.5, 0.1))  # 0.1 and -0.3: the mean is below 0
    assert router.transitions.tau[0].tolist() == pytest.approx([-0.1, 0.0, 0.0])
    assert weight.tolist() == pytest.approx([1.0, 1.0, sigmoid(2), sigmoid(-6)])
    router.weigh(ONE_TASK, q(0.2, 0.4, 2.4, 2.4))  # 2 and 2
    assert router.transitions.tau[0, 0].item() == pytest.approx(0.9 * -0.1 + 0.1 * 2)
    assert router.temperature()[0].tolist() == pytest.approx([0.11, 0.05, 0.05])


def test_before_it_is_time_nothing_is_shared():
    router = router_of(share_after=3)
    assert router.weigh(ONE_TASK, q(0.2, 0.4, 0.5, 0.1), number=2).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert router.weigh(ONE_TASK, q(0.2, 0.4, 0.5, 0.1), number=3)[2] > 0.5
    assert router_of(rule="all", share_after=3).weigh(ONE_TASK, number=2).tolist() == [1.0] * 4


def test_the_reference_is_what_the_options_name():
    values = q(0.1, 0.4, 0.5, 0.1)
    for options, reference in (
        ({"percentile": 50.0}, 0.25),
        ({"reference": "mean"}, 0.25),
        ({"percentile": 0.0}, 0.4),
        ({"rule": "cds-basic", "reference": "percentile", "percentile": 100.0}, -0.4),
        ({"rule": "cds-basic"}, -0.25),
    ):
        router = router_of(**options)
        router.weigh(ONE_TASK, Scores(q=values.q, q_policy=tensor([0.5, 0.5, 0.5, 0.5])))
        assert router.reference()[0, 0].item() == pytest.approx(reference)


def test_statistics_are_those_of_own_data_where_batches_hold_more_successes():
    """Half of the own rows succeed, one step in ten of D_i does: the median is that of the failures."""
    router = Router(RouterConfig(), 1, outcome_weight=np.array([[0.9 / 0.5, 0.1 / 0.5]]))
    success = [1.0] * 4 + [0.0] * 4
    router.weigh(rows([0] * 8, [0] * 8, success=success), q(0.8, 0.8, 0.8, 0.8, 0.1, 0.2, 0.3, 0.4))
    exact = np.quantile([0.1, 0.2, 0.3, 0.4] * 9 + [0.8] * 4, 0.5)  # the rows as often as they count
    assert router.reference()[0, 0].item() == pytest.approx(exact, abs=0.05)
    mean = Router(RouterConfig(reference="mean"), 1, outcome_weight=np.array([[0.9 / 0.5, 0.1 / 0.5]]))
    mean.weigh(rows([0] * 8, [0] * 8, success=success), q(0.8, 0.8, 0.8, 0.8, 0.1, 0.2, 0.3, 0.4))
    assert mean.reference()[0, 0].item() == pytest.approx(0.9 * 0.25 + 0.1 * 0.8)


def test_the_window_keeps_the_last_own_scores_of_each_task():
    router = router_of(2, window=3)
    router.weigh(rows([0, 1, 0, 0, 1], [0, 1, 1, 0, 0]), q(0.1, 0.9, 0.7, 0.2, 0.8))
    window = router.transitions.own[0, :, :3].numpy()
    assert window == pytest.approx(np.array([[0.1, 0.2, 0.0], [0.9, 0.0, 0.0]]))
    router.weigh(rows([0, 0, 1], [0, 0, 1]), q(0.3, 0.4, 0.5))
    assert window == pytest.approx(np.array([[0.4, 0.2, 0.3], [0.9, 0.5, 0.0]]))
    assert router.reference()[0].tolist() == pytest.approx([0.4, 0.9])


@pytest.mark.parametrize("percentile", [5.0, 10.0, 50.0])
def test_the_quantile_of_the_window_is_that_of_all_own_transitions(percentile):
    """8 own ones of each task a step, as in a batch of pictures; Q moves by a tenth of its spread meanwhile."""
    rng = np.random.default_rng(0)
    router = router_of(2, percentile=percentile)
    everything = rng.beta(2, 5, (2, 20_000))
    batch = rows([0] * 8 + [1] * 8, [0] * 8 + [1] * 8)
    for step in range(300):
        drawn = rng.choice(20_000, 8)
        router.weigh(batch, Scores(q=tensor(everything[:, drawn].ravel() + 0.05 * step / 300, dtype=torch.float32)))
    exact = np.quantile(everything + 0.05, 1 - percentile / 100, axis=1)
    assert np.abs(router.reference()[0].numpy() - exact).max() < 0.03


def test_every_task_compares_with_its_own_transitions_and_keeps_its_own_temperature():
    router = router_of(2)
    weight = router.weigh(rows([0, 0, 1, 1], [0, 1, 1, 0]), q(0.2, 0.3, 0.9, 0.5))
    assert router.transitions.tau[0].tolist() == pytest.approx([0.05, 0.2])
    assert weight.tolist() == pytest.approx([1.0, sigmoid(2), 1.0, sigmoid(-2)])


def test_the_order_of_rows_does_not_matter():
    batch, values = rows([0, 0, 1, 1], [0, 1, 1, 0]), tensor([0.2, 0.3, 0.9, 0.5])
    straight, shuffled = router_of(2), router_of(2)
    order = tensor([3, 1, 0, 2])
    weight = straight.weigh(batch, Scores(q=values))
    turned = Rows(*(getattr(batch, field.name)[order] for field in fields(Rows)))
    assert torch.equal(shuffled.weigh(turned, Scores(q=values[order])), weight[order])


def test_the_temperature_is_clipped_from_below_and_above_or_fixed():
    values = q(0.4, 0.4, 0.5, 0.3)  # the average of |Delta| is 0.05
    for options, tau in (({"tau_low": 0.2}, 0.2), ({"tau_high": 0.02}, 0.02), ({"temperature": "0.4"}, 0.4)):
        assert router_of(**options).weigh(ONE_TASK, values)[2].item() == pytest.approx(sigmoid(0.1 / tau))


def test_a_flat_q_function_gives_weights_of_one_half():
    router = router_of()
    for _ in range(2):
        weight = router.weigh(ONE_TASK, q(0.4, 0.4, 0.4, 0.4))
    assert weight.tolist() == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("rule", ["cds", "cds-hard"])
def test_before_an_own_transition_was_seen_nothing_is_known_of_shared_ones(rule):
    router = router_of(rule=rule)
    assert router.weigh(rows([0, 1, 1], [0, 0, 2]), q(0.2, 0.4, 0.5)).tolist() == [1.0, 0.0, 0.0]
    assert router.transitions.tau[0].tolist() == [0.0, 0.0, 0.0]
    router.weigh(rows([1], [1]), q(0.3))
    assert router.weigh(rows([1], [0]), q(0.4)).item() > 0.5


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if not rule.uses_q])
def test_rules_without_q_weigh_everything_one(rule):
    assert router_of(rule=rule).weigh(ONE_TASK).tolist() == [1.0] * 4


def test_hipi_judges_shared_transitions_by_all_tasks_and_keeps_the_own_ones():
    q_tasks = tensor([[0.2, 0.5, 0.1], [0.9, 0.5, 0.1], [0.3, 0.3, 0.6], [0.3, 0.2, 0.1]])
    weight = router_of(rule="hipi").weigh(ONE_TASK, Scores(q=q_tasks[:, 0], q_tasks=q_tasks))
    assert weight.tolist() == [1.0, 1.0, 0.0, 1.0]


def test_own_transitions_are_weighed_too_in_the_given_part_of_the_steps():
    router, generator = router_of(2, weigh_own_probability=0.5, temperature="0.1"), torch.Generator().manual_seed(0)
    batch, values = rows([0, 0, 1, 1], [0, 0, 1, 1]), q(0.4, 0.3, 0.8, 0.7)
    weights = torch.stack([router.weigh(batch, values, torch.rand(1, 2, generator=generator)) for _ in range(200)])
    weighed = weights[:, ::2] < 1  # the best own one has Delta 0
    one = torch.where(weighed[:, :, None], tensor([0.5, sigmoid(-1)]), 1.0)
    assert torch.allclose(weights.view(200, 2, 2), one)
    assert 0.4 < weighed.float().mean() < 0.6
    assert (weighed[:, 0] != weighed[:, 1]).any()


def test_members_side_by_side_are_routers_of_their_own():
    generator = np.random.default_rng(0)
    batches = [rows(*generator.integers(0, 3, (2, 2, 30)).tolist()) for _ in range(3)]
    values = [tensor(generator.random((2, 30)), dtype=torch.float32) for _ in batches]
    for rule in RULES:
        both = Router(RouterConfig(rule=rule), 3, members=2)
        alone = [Router(RouterConfig(rule=rule), 3) for _ in range(2)]
        for batch, value in zip(batches, values, strict=True):
            scores = Scores(
                q=value, q_policy=value.flip(-1), q_tasks=torch.stack([value, value.flip(-1), value**2], -1)
            )
            weight = both.weigh(batch, scores)
            for member, router in enumerate(alone):
                part = Rows(*(getattr(batch, field.name)[member] for field in fields(Rows)))
                scores_of_member = Scores(
                    q=scores.q[member], q_policy=scores.q_policy[member], q_tasks=scores.q_tasks[member]
                )
                assert torch.allclose(router.weigh(part, scores_of_member), weight[member])
        for member, router in enumerate(alone):
            assert torch.allclose(both.sums[:, :, member], router.sums[:, :, 0])


def candidates_of(*shared):
    """For each target, four own rows and its shared candidates: the sources of the latter, one list for each target."""
    target = [task for task, sources in enumerate(shared) for _ in range(4 + len(sources))]
    source = [j for task, sources in enumerate(shared) for j in [task] * 4 + sources]
    return rows(target, source)


def test_candidates_are_drawn_in_proportion_to_their_weight_and_count_in_full():
    """Two of four places are shared; the weights of the six candidates are 0 to 5 of 15."""
    batch, generator = candidates_of([1] * 6), torch.Generator().manual_seed(0)
    weight = tensor([0.5, 1.0, 1.0, 1.0, *range(6)])  # own ones may be weighed too
    router, often = router_of(), torch.zeros(10)
    for _ in range(3000):
        index, counts = router.choose(batch, weight, tensor([0]), 4, 2, torch.rand(1, 3, generator=generator))
        assert index[:2].tolist() == [0, 1]
        assert counts.tolist() == [0.5, 1.0, 1.0, 1.0]
        often.index_add_(0, index, torch.full((4,), 1 / 3000))
    assert often[2:4].tolist() == [0.0, 0.0]
    assert often[4:].tolist() == pytest.approx([2 * w / 15 for w in range(6)], abs=0.03)


def test_where_too_little_passes_own_rows_take_the_places_that_are_left():
    batch, generator = candidates_of([1, 1, 1], [0, 0, 0], []), torch.Generator().manual_seed(0)
    weight = torch.ones(18)
    weight[4:7] = tensor([0.0, 1.0, 0.0])  # one passes for the first target
    weight[11:14] = 0.0  # none for the second; the third has no source
    index, counts = router_of().choose(batch, weight, torch.arange(3), 4, 2, torch.rand(1, 3, generator=generator))
    assert index.tolist() == [0, 1, 5, 3, 7, 8, 9, 10, 14, 15, 16, 17]
    assert counts.tolist() == [1.0] * 12


def test_a_hard_rule_draws_no_row_twice_while_there_are_others():
    batch, generator = candidates_of([1] * 8), torch.Generator().manual_seed(0)
    weight = tensor([1.0] * 4 + [1, 0, 1, 1, 0, 1, 0, 1])
    for _ in range(50):
        index, _ = router_of().choose(batch, weight, tensor([0]), 4, 3, torch.rand(1, 3, generator=generator))
        shared = index[1:].tolist()
        assert len(set(shared)) == 3
        assert set(shared) <= {4, 6, 7, 9, 11}


def test_members_choose_for_themselves():
    target, source = [[0] * 4] * 2, [[0, 0, 1, 1]] * 2
    weight = tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0]])
    router = Router(RouterConfig(), 3, members=2)
    index, counts = router.choose(rows(target, source), weight, tensor([0]), 2, 1, torch.full((2, 3), 0.5))
    assert index.tolist() == [[0, 2], [0, 3]]
    assert counts.tolist() == [[1.0, 1.0]] * 2


def test_a_batch_larger_than_the_window_leaves_its_last_scores():
    router = router_of(1, window=3)
    router.weigh(rows([0] * 5, [0] * 5), q(0.1, 0.2, 0.3, 0.4, 0.5))
    assert sorted(router.transitions.own[0, 0, :3].tolist()) == pytest.approx([0.3, 0.4, 0.5])


def test_another_q_function_begins_with_an_empty_window():
    router = router_of()
    router.weigh(ONE_TASK, q(0.2, 0.4, 0.5, 0.1))
    router.forget()
    assert router.weigh(rows([0], [1]), q(0.9)).item() == 0.0


def test_the_report_tells_weights_successes_temperature_and_reference():
    router = router_of(decay=0.9)
    full = rows([0, 0, 0, 0], [0, 0, 1, 2], success=[1.0, 1.0, 1.0, 0.0])
    router.weigh(full, q(0.2, 0.4, 0.5, 0.1))
    router.weigh(full, q(0.4, 0.2, 0.9, 0.3))
    steps = np.zeros((2, 3, 3), np.int64)
    steps[1, 0] = [50, 30, 0]
    steps[0, 0] = [50, 0, 90]
    report = router.report(steps)
    tau = 0.9 * 0.15 + 0.1 * 0.2
    old, new = sigmoid(0.1 / 0.15), sigmoid(0.5 / tau)
    lost_old, lost_new = sigmoid(-0.3 / 0.15), sigmoid(-0.1 / tau)
    assert report["rule"] == "cds"
    assert report["weights"][0] == pytest.approx(
        [1.0, (0.999 * old + new) / 1.999, (0.999 * lost_old + lost_new) / 1.999]
    )
    assert report["weights"][1] == [None, None, None]
    won_weight, lost_weight = 0.999 * old + new, 0.999 * lost_old + lost_new  # of the rows that were drawn
    assert report["steps"] == [100, 0, 0]
    assert report["success"] == [pytest.approx(won_weight / (won_weight + lost_weight)), None, None]
    assert report["temperature"] == pytest.approx([tau, RouterConfig().tau_low, RouterConfig().tau_low])
    assert report["reference"] == [pytest.approx(0.4), None, None]


def test_means_are_those_of_the_dataset_whatever_the_batches_hold_most_of():
    """Half of the shared rows succeed, in the dataset one step in ten does."""
    router = router_of(temperature="0.1")
    router.weigh(rows([0, 0, 0, 0], [0, 0, 1, 1], success=[1.0, 0.0, 1.0, 0.0]), q(0.5, 0.4, 0.5, 0.4))
    steps = np.zeros((2, 3, 3), np.int64)
    steps[:, 0, :2] = [[60, 90], [40, 10]]
    report = router.report(steps)
    full, low = 0.5, sigmoid(-1.0)
    assert report["weights"][0][1] == pytest.approx(0.1 * full + 0.9 * low)
    assert report["success"][0] == pytest.approx(full / (full + low))  # of what is learned from
    assert report["shared"][0] == pytest.approx((full + low) / (2 + full + low))


def test_a_task_learns_from_so_many_steps_as_its_weights_let_in():
    weights = [[1.0, 0.5, None], [0.1, 1.0, 0.0], [None, None, None]]
    assert effective_steps(weights, [100, 40, 10]) == pytest.approx([120, 50, 0])


def test_all_that_is_remembered_travels_with_the_state_dict():
    router, copy = router_of(), router_of()
    router.weigh(ONE_TASK, q(0.2, 0.4, 0.5, 0.1))
    copy.load_state_dict(router.state_dict())
    values = q(0.1, 0.3, 0.8, 0.2)
    assert torch.equal(copy.weigh(ONE_TASK, values), router.weigh(ONE_TASK, values))
    steps = np.ones((2, 3, 3), np.int64)
    assert copy.report(steps) == router.report(steps)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rule": "cdss"}, r"unknown sharing rule 'cdss'.*Did you mean 'cds'"),
        ({"granularity": "episodes"}, "Did you mean 'episode'"),
        ({"percentile": 101.0}, "percentile is 0 to 100"),
        ({"temperature": "-1"}, "temperature is absolute or signed or a number above 0"),
        ({"temperature": "sined"}, "temperature is absolute or signed or a number above 0"),
        ({"sharing": "weigh"}, "Did you mean 'weight'"),
        ({"reference": "men"}, "Did you mean 'mean'"),
        ({"weigh_own_probability": 1.5}, "weigh_own_probability is between 0 and 1"),
        ({"tau_low": 2.0, "tau_high": 1.0}, "tau_low is above 0 and at most tau_high"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        RouterConfig(**wrong)
