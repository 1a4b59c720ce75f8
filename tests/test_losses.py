"""The losses, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from models.image_losses import (
    bellman_loss,
    bellman_target,
    calibration_error,
    cloning_loss,
    conservative_loss,
    landmark_loss,
    point_loss,
)

LN2 = math.log(2)


def test_the_target_is_the_reward_or_the_discounted_next_value():
    one = torch.ones(3)
    target = bellman_target(tensor([1.0, 0.0, 0.0]), tensor([1.0, 1.0, 0.0]), one, tensor([0.5, 0.5, 0.5]), 0.9)
    assert target.tolist() == pytest.approx([1.0, 0.0, 0.45])


def test_the_target_stays_a_probability():
    target = bellman_target(tensor([1.0, 0.0]), tensor([0.0, 0.0]), torch.ones(2), tensor([0.7, -0.2]), 0.9)
    assert target.tolist() == [1.0, 0.0]


def test_over_several_steps_the_last_reward_and_the_bootstrapped_value_are_discounted():
    n_step, value = tensor([3.0, 2.0, 3.0]), tensor([0.5, 0.5, 0.5])
    target = bellman_target(tensor([1.0, 0.0, 0.0]), tensor([1.0, 1.0, 0.0]), n_step, value, 0.9)
    assert target.tolist() == pytest.approx([0.81, 0.0, 0.3645])


def test_the_bellman_loss_is_a_weighted_mean_of_cross_entropies():
    # CE(0, 1) = ln 2; CE(ln 3, 0.5) = ln(1 + 3) - 0.5 ln 3
    loss, info = bellman_loss(tensor([0.0, math.log(3)]), tensor([1.0, 0.5]), tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx((LN2 + 3 * (2 * LN2 - 0.5 * math.log(3))) / 4)
    assert info["q_data"].item() == pytest.approx((0.5 + 0.75) / 2)
    assert info["target"].item() == pytest.approx(0.75)


def test_a_transition_of_weight_zero_changes_neither_loss_nor_gradient():
    logit = tensor([0.0, 5.0], requires_grad=True)
    loss, _ = bellman_loss(logit, tensor([1.0, 0.0]), tensor([1.0, 0.0]))
    loss.backward()
    assert loss.item() == pytest.approx(LN2)
    assert logit.grad.tolist() == pytest.approx([-0.5, 0.0])


def test_weights_of_zero_throughout_give_a_loss_of_zero():
    assert bellman_loss(tensor([3.0]), tensor([0.0]), tensor([0.0]))[0].item() == 0.0


def test_the_conservative_loss_weighs_unseen_actions_by_the_softmax_of_their_logits():
    # softmax(0, ln 3) = (1/4, 3/4); -log(1 - sigmoid(q)) = ln 2 and ln 4
    loss, info = conservative_loss(tensor([[0.0, math.log(3)]]), tensor([1.0]))
    assert loss.item() == pytest.approx(0.25 * LN2 + 0.75 * 2 * LN2)
    assert info["q_unseen"].item() == pytest.approx(0.25 * 0.5 + 0.75 * 0.75)


def test_the_conservative_loss_is_weighted_over_states():
    logits = tensor([[0.0, 0.0], [math.log(3), math.log(3)]])
    assert conservative_loss(logits, tensor([1.0, 3.0]))[0].item() == pytest.approx((LN2 + 3 * 2 * LN2) / 4)


def test_the_conservative_gradient_pushes_down_and_does_not_flow_through_the_softmax():
    logits = tensor([[0.0, math.log(3)]], requires_grad=True)
    conservative_loss(logits, tensor([1.0]))[0].backward()
    assert logits.grad[0].tolist() == pytest.approx([0.25 * 0.5, 0.75 * 0.75])


def test_the_cloning_loss_is_twice_the_squared_error_in_bounds_plus_the_cross_entropy():
    bound = tensor([0.06, 0.06, 0.06, 0.6])
    action = tensor([[0.06, 0.0, 0.0, 0.3, 1.0], [0.0, 0.0, 0.0, 0.0, 2.0]])
    mean = tensor([[0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    command = torch.zeros(2, 4)
    first = 2 * (0.5**2 + 0.5**2) + math.log(4)
    assert cloning_loss(mean, command, action, bound, tensor([1.0, 0.0])).item() == pytest.approx(first)
    both = (first + math.log(4)) / 2
    assert cloning_loss(mean, command, action, bound, tensor([1.0, 1.0])).item() == pytest.approx(both)


def test_the_landmark_loss_sums_over_landmarks_and_averages_over_images():
    predicted, landmark = torch.zeros(2, 2, 6), torch.zeros(2, 2, 6)
    landmark[0, 0, :2] = tensor([1.0, 2.0])
    landmark[0, 1, 0] = 3.0
    landmark[1, 1, 4] = 10.0
    landmark[1, 0, 5] = 1.0  # present
    assert landmark_loss(predicted, landmark).item() == pytest.approx((1 + 4 + 9 + 100 + 1) / 2)


def test_the_point_loss_is_least_where_attention_lies_on_the_four_cells_around_the_point():
    """A 4 x 4 map: (0.5, 0.1875) lies between columns 1 and 2, and a quarter of the way from row 0 to row 1."""
    logits = torch.full((1, 1, 4, 4), -30.0)
    point = tensor([[[0.5, 0.1875]]])  # column 1.5, row 0.25
    for row, column, share in ((0, 1, 0.375), (0, 2, 0.375), (1, 1, 0.125), (1, 2, 0.125)):
        logits[0, 0, row, column] = math.log(share)
    entropy = -(0.75 * math.log(0.375) + 0.25 * math.log(0.125))
    assert point_loss(logits, point, tensor([[True]])).item() == pytest.approx(entropy, abs=1e-5)
    assert point_loss(logits, point.flip(-1), tensor([[True]])).item() > entropy + 1  # rows are not columns


def test_the_point_loss_sums_the_visible_and_averages_over_images():
    logits, point = torch.zeros(2, 3, 4, 4), torch.rand(2, 3, 2)
    visible = tensor([[True, True, False], [True, False, False]])
    assert point_loss(logits, point, visible).item() == pytest.approx(3 * math.log(16) / 2, rel=1e-5)


def test_a_point_on_the_border_falls_on_the_outermost_cell():
    logits = torch.zeros(1, 2, 4, 4)
    logits[0, 0, 3, 3] = logits[0, 1, 0, 0] = 30.0
    assert point_loss(logits, tensor([[[1.0, 1.0], [0.0, 0.0]]]), torch.ones(1, 2) > 0).item() < 1e-5


def test_the_calibration_error_compares_means_within_bins_of_q():
    q = tensor([0.05, 0.15, 0.5, 1.0])  # bins 0, 0, 2, 4
    outcome = tensor([0.0, 1.0, 0.5, 0.8])  # sums of differences: |0.05 - 0.85|, 0, 0.2
    assert calibration_error(q, outcome).item() == pytest.approx((0.8 + 0.0 + 0.2) / 4)
