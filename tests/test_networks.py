"""The Q-networks: QT-Opt's plan at 472 px, candidates scored together or alone, heads, sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from eval.policy import CEMPolicy
from models.acting import ActingConfig
from models.images import crop, crop_corner, in_crop
from models.networks import build_network
from models.norm import BatchNorm
from models.qnetwork import NetworkConfig, action_features
from models.qtopt_network import QTOptNetwork
from models.scoring import q_of_tasks

SIZES = [48, 64, 96, 128, 224]  # the last is QT-Opt's network at its cheapest


def network_of(image_size, num_tasks=3, **options):
    """A network whose random weights are large enough that every input matters."""
    network = build_network(NetworkConfig(image_size=image_size, num_tasks=num_tasks, **options)).eval()
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
    for name, weight in network.named_parameters():
        if name.startswith(("head", "policy")) and name.endswith("weight") and weight.ndim == 3:
            weight.data = torch.randn(weight.shape, generator=generator) * weight.shape[1] ** -0.5
    return network


def inputs(size, states, candidates, num_tasks=3):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(states, 3, size, size, generator=generator)
    gripper = torch.rand(states, 2, generator=generator)
    motion = (torch.rand(states, candidates, 4, generator=generator) - 0.5) * 0.1
    command = torch.randint(4, (states, candidates, 1), generator=generator)
    task = torch.arange(states) % num_tasks
    return image, gripper, torch.cat([motion, command.float()], dim=-1), task


def test_qtopts_maps_have_the_published_sizes_at_472():
    network = build_network(NetworkConfig(image_size=472, num_tasks=10)).eval()
    seen = []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
            module.register_forward_hook(lambda _module, _given, out: seen.append(tuple(out.shape[1:])))
    image, gripper, action, task = inputs(472, 1, 1)
    network(image, gripper, action[:, 0], task)
    sizes = [236, 79, *[79] * 6, 27, *[27] * 6, 14, 12, 10, 8]
    assert seen == [(64, size, size) for size in sizes]
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 16


def test_qtopts_network_has_its_1_24_million_weights_with_one_head():
    network = build_network(NetworkConfig(image_size=472, num_tasks=10, conditioning="one_hot"))
    trunk = 6 * 6 * 3 * 64 + 6 * (5 * 5 * 64 * 64)
    merge = (8 + 2 + 10) * 256 + 256 * 64
    after_merge = 9 * (3 * 3 * 64 * 64)
    head = (8 * 8 * 64 * 64 + 64) + (64 * 64 + 64) + (64 + 1)
    shifts = 16 * 64 + 256 + 64 + 64 + 64  # of the batch norms; they have no scale
    assert trunk + merge + after_merge + head + shifts == 1_242_497
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 1_242_497


def test_ten_heads_have_ten_times_the_weights_of_one_head():
    one, ten = (
        build_network(NetworkConfig(image_size=472, num_tasks=10, conditioning=name)) for name in ("one_hot", "heads")
    )
    for name in ("head1", "head2", "head3"):
        counts = [sum(p.numel() for p in getattr(network, name).parameters()) for network in (one, ten)]
        assert counts[1] == 10 * counts[0]


def test_the_action_enters_as_translation_in_bounds_sine_cosine_and_three_flags():
    """Terminate without its motion."""
    action = torch.tensor(
        [[0.06, -0.03, 0.0, 0.6, 0.0], [0.0, 0.0, 0.015, -0.3, 1.0], [0.0] * 4 + [2.0], [0.06, 0.0, 0.03, 0.3, 3.0]]
    )
    expected = torch.tensor(
        [
            [1.0, -0.5, 0.0, np.sin(0.6), np.cos(0.6), 0, 0, 0],
            [0.0, 0.0, 0.25, -np.sin(0.3), np.cos(0.3), 1, 0, 0],
            [0.0, 0.0, 0.0, 0.0, 1.0, 0, 1, 0],
            [0.0, 0.0, 0.0, 0.0, 1.0, 0, 0, 1],
        ]
    )
    assert torch.allclose(action_features(action), expected.float(), atol=1e-6)


@pytest.mark.parametrize("conditioning", ["heads", "one_hot"])
@pytest.mark.parametrize("size", SIZES)
def test_candidates_scored_together_get_the_logits_of_each_alone(size, conditioning):
    network = network_of(size, conditioning=conditioning)
    network.max_states_at_once = 6  # QT-Opt's network scores these 3 x 4 candidates in two pieces
    image, gripper, action, task = inputs(size, 3, 4)
    with torch.no_grad():
        together = network.score(network.encode(image, gripper), gripper, action, task)
        for b in range(3):
            for k in range(4):
                alone = network(image[b : b + 1], gripper[b : b + 1], action[b : b + 1, k], task[b : b + 1])
                assert alone.item() == pytest.approx(together[b, k].item(), abs=1e-3)
    assert together.std(dim=1).min() > 0.01  # the action matters
    assert together.std(dim=0).min() > 0.01  # so do image and task


@pytest.mark.parametrize("conditioning", ["heads", "one_hot"])
@pytest.mark.parametrize("size", [64, 224])
def test_tasks_scored_together_get_the_logits_of_each_alone(size, conditioning):
    network = network_of(size, conditioning=conditioning)
    image, gripper, action, _ = inputs(size, 4, 1)
    with torch.no_grad():
        features = network.encode(image, gripper)
        together = network.score_tasks(features, gripper, action[:, 0], torch.tensor([2, 0]))
        alone = [network.score(features, gripper, action, torch.full((4,), task))[:, 0] for task in (2, 0)]
        found = q_of_tasks(network, features, gripper, action[:, 0], torch.tensor([2, 0]))
    assert torch.allclose(together, torch.stack(alone, 1), atol=1e-4)
    assert (together[:, 0] - together[:, 1]).abs().min() > 1e-3
    assert torch.allclose(found[:, [2, 0]], together.sigmoid(), atol=1e-5)
    assert found[:, 1].isinf().all()


@pytest.mark.parametrize("side", [14, 27])
def test_the_merged_map_is_convolved_as_if_it_had_been_made(side):
    network = build_network(NetworkConfig(image_size=472, num_tasks=3))
    _unlike_at_the_start(network)
    features, vector = torch.randn(2, 64, side, side), torch.randn(2, 5, 64)
    merged = (features[:, None] + vector[..., None, None]).flatten(0, 1)
    for training in (True, False):
        network.train(training)
        expected = network.join_norm(network.join(merged))
        assert torch.allclose(network._merge(network._prepare(features), vector), expected, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(network._merge(network._prepare(features), vector), expected, atol=1e-5)


def _unlike_at_the_start(network):
    """Averages, scales and shifts of the normalisations that change something."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(generator=generator)
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)


@pytest.mark.parametrize("size", [64, 224])
def test_normalisation_within_the_convolutions_changes_nothing(size):
    network = network_of(size)
    _unlike_at_the_start(network)
    image, gripper, action, task = inputs(size, 3, 2)
    with_gradient = network.score(network.encode(image, gripper), gripper, action, task)
    with torch.no_grad():
        folded = network.score(network.encode(image, gripper), gripper, action, task)
    assert not torch.equal(folded, with_gradient)  # other roundings: they are not the same operations
    assert (folded - with_gradient).abs().max() < 1e-4 * with_gradient.abs().max()


def test_a_pool_before_the_relu_is_a_pool_after_it():
    block = QTOptNetwork(NetworkConfig(image_size=224, num_tasks=1)).trunk[0]
    conv, norm, pool, relu = block
    x = torch.randn(2, 3, 24, 24)
    first, second = block(x), pool(relu(norm(conv(x))))
    assert torch.equal(first, second)
    gradients = [torch.autograd.grad(y.square().sum(), conv.weight)[0] for y in (first, second)]
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("size", [64, 224])
def test_a_tasks_output_depends_on_its_own_head_alone(size):
    network = network_of(size)
    image, gripper, action, _ = inputs(size, 3, 2)
    task = torch.tensor([1, 0, 1])  # ungrouped
    with torch.no_grad():
        before = network.score(network.encode(image, gripper), gripper, action, task)
        for head in (network.head1, network.head2, network.head3):
            head.weight[0] += 0.3
            head.bias[0] += 0.3
            head.weight[2] += 0.3
        after = network.score(network.encode(image, gripper), gripper, action, task)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert (before[1] - after[1]).abs().min() > 0.01


@pytest.mark.parametrize("size", [64, 224])
def test_a_tasks_gradient_reaches_its_own_head_alone(size):
    network = network_of(size)
    image, gripper, action, _ = inputs(size, 2, 2)
    network.score(network.encode(image, gripper), gripper, action, torch.tensor([2, 2])).sum().backward()
    for head in (network.head1, network.head2, network.head3):
        assert head.weight.grad[:2].abs().max() == 0
        assert head.weight.grad[2].abs().max() > 0


@pytest.mark.parametrize("size", [64, 224])
def test_one_hot_conditioning_distinguishes_tasks_with_one_head(size):
    network = network_of(size, conditioning="one_hot")
    image, gripper, action, _ = inputs(size, 1, 2)
    with torch.no_grad():
        first, second = (
            network.score(network.encode(image, gripper), gripper, action, torch.tensor([t])) for t in (0, 1)
        )
    assert network.num_heads == 1
    assert (first - second).abs().min() > 1e-3


def test_the_behaviour_policy_has_a_head_per_task():
    network = network_of(64, behaviour_policy=True)
    image, gripper, _, _ = inputs(64, 3, 1)
    task = torch.tensor([0, 1, 0])
    with torch.no_grad():
        features = network.encode(image, gripper)
        mean, command = network.behaviour_policy(features, gripper, task)
        network.policy3.weight[1] += 0.3
        mean_after, command_after = network.behaviour_policy(features, gripper, task)
    assert mean.shape == command.shape == (3, 4)
    assert torch.equal(mean[[0, 2]], mean_after[[0, 2]])
    assert torch.equal(command[[0, 2]], command_after[[0, 2]])
    assert (mean[1] - mean_after[1]).abs().max() > 0.01


def test_a_task_first_attends_to_its_own_landmark():
    network = build_network(NetworkConfig(image_size=64, num_tasks=10))
    landmarks = torch.eye(10)[None].expand(10, -1, -1)  # a landmark each
    attended = network._task_landmark(landmarks.flatten(1), torch.arange(10))
    assert attended.argmax(-1).tolist() == list(range(10))
    assert (attended.amax(-1) > 0.5).all()


def test_the_behaviour_policy_sees_only_the_landmark_its_task_attends_to():
    network = network_of(64, behaviour_policy=True)
    _, gripper, action, _ = inputs(64, 1, 2)
    task = torch.tensor([1])
    seen = torch.randn(1, 10, 38, generator=torch.Generator().manual_seed(0))
    one, other, described = seen.clone(), seen.clone(), seen.clone()
    one[0, 4, 5] += 1.0  # presence
    other[0, 3] += 1.0
    described[0, 4, 6:] += 1.0
    with torch.no_grad():
        network.task_attention[1, 4] = 100.0
        network.merge_landmarks.weight.zero_()
        before, *after = (
            [*network.behaviour_policy(x.flatten(1), gripper, task)] for x in (seen, one, other, described)
        )
        q_before, *q_after = (network.score(x.flatten(1), gripper, action, task) for x in (seen, one, other, described))
    moved = [(mean - before[0]).abs().max() > 1e-3 for mean, _ in after]
    assert moved == [True, False, False]  # by whether the object is there, not by its descriptor
    assert [not torch.equal(q, q_before) for q in q_after] == [True, False, True]


@pytest.mark.parametrize(("stride", "cells"), [(2, 32), (4, 16)])
def test_attention_on_one_cell_reads_that_cell_alone(stride, cells):
    network = network_of(64, attention_stride=stride)
    image, gripper, _, _ = inputs(64, 1, 1)
    row, column = 5, 9
    spike = torch.zeros(cells, cells)
    spike[row, column] = 1e4
    network.attend.register_forward_hook(lambda _m, _given, out: out * 0 + spike)
    seen = {}
    with torch.no_grad():
        for name, (y, x) in {"none": (None, None), "here": (row, column), "beside": (row, column + 1)}.items():
            hook = network.trunk.register_forward_hook(lambda _m, _given, out, y=y, x=x: changed_at(out, y, x))
            seen[name] = network.perceive(image, gripper).landmark
            hook.remove()
    assert torch.equal(seen["none"], seen["beside"])
    assert (seen["none"] - seen["here"]).abs().min(dim=-1).values.min() > 0


def changed_at(features, row, column):
    out = features.clone()
    if row is not None:
        out[:, :, row, column] += 3.0
    return out


def test_a_landmark_needs_the_gripper_reading_as_well_as_the_image():
    network = network_of(64)
    image, gripper, _, _ = inputs(64, 2, 1)
    with torch.no_grad():
        sight = network.perceive(image, gripper)
        raised = network.perceive(image, gripper + torch.tensor([0.0, 0.1]))
    assert sight.attention.shape == (2, 11, 16, 16)
    assert sight.landmark.shape == (2, 10, 6)
    assert torch.equal(sight.features.unflatten(1, (10, -1))[..., :6], sight.landmark)
    assert torch.equal(sight.attention, raised.attention)
    assert (sight.landmark - raised.landmark).abs().min(dim=-1).values.min() > 0


@pytest.mark.parametrize("size", [224, 253, 255])
def test_qtopts_network_takes_odd_sizes_too(size):
    network = build_network(NetworkConfig(image_size=size, num_tasks=3)).eval()
    image, gripper, action, task = inputs(size, 1, 1)
    with torch.no_grad():
        assert network(image, gripper, action[:, 0], task).shape == (1,)


@pytest.mark.parametrize("size", [44, 66, 132, 219])
def test_image_sizes_that_no_network_takes_are_refused(size):
    with pytest.raises(ValueError, match=f"no network sees {size} px"):
        NetworkConfig(image_size=size, num_tasks=10)


def test_an_unknown_stride_of_the_attention_maps_is_refused():
    with pytest.raises(ValueError, match="cells of 2 or 4 px, got 8"):
        NetworkConfig(image_size=64, num_tasks=10, attention_stride=8)


def test_an_unknown_conditioning_is_refused():
    with pytest.raises(ValueError, match=r"unknown conditioning 'head'.*Did you mean 'heads'"):
        NetworkConfig(image_size=64, num_tasks=10, conditioning="head")


@pytest.mark.parametrize("behaviour_policy", [False, True])
def test_the_image_trunk_runs_once_per_state_however_many_candidates_are_scored(behaviour_policy, observe):
    network = network_of(48, behaviour_policy=behaviour_policy)
    seen = []
    network.trunk.register_forward_hook(lambda _m, given, _out: seen.append(len(given[0])))
    policy = CEMPolicy(network, ActingConfig(by="emaq" if behaviour_policy else "cem"), {})
    frames = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), dtype=np.uint8)
    observation = observe(frames)
    action = policy.act(observation, np.array([0, 2]), np.random.default_rng(0))
    assert seen == [2]
    assert action.shape == (2, 5)
    assert (np.abs(action[:, :4]) <= [0.06 + 1e-6] * 3 + [0.6 + 1e-6]).all()
    assert set(action[:, 4]) <= {0.0, 1.0, 2.0, 3.0}


def test_a_crop_is_the_centre_without_a_corner_and_starts_at_its_corner_with_one():
    frame = torch.arange(8 * 8).view(1, 1, 8, 8).expand(2, 3, 8, 8).to(torch.uint8)
    assert torch.equal((crop(frame, 4) * 255).round()[0, 0], frame[0, 0, 2:6, 2:6].float())
    cut = (crop(frame, 4, torch.tensor([[0, 4], [3, 1]])) * 255).round()  # left, top
    assert cut[:, 1, 0, 0].tolist() == [8 * 4 + 0, 8 * 1 + 3]
    assert cut[1, 2].tolist() == [[8 * y + x for x in range(3, 7)] for y in range(1, 5)]


def test_corners_are_central_without_a_generator_and_anywhere_in_the_frame_with_one():
    frame = torch.zeros(400, 3, 8, 10, dtype=torch.uint8)
    assert crop_corner(frame, 4).unique(dim=0).tolist() == [[3, 2]]
    drawn = crop_corner(frame, 4, torch.Generator().manual_seed(0)).unique(dim=0).tolist()
    assert drawn == [[x, y] for x in range(7) for y in range(5)]


def test_points_move_with_the_crop():
    """8 px cut to 4 px at (3, 1): pixel (5, 2) of the frame is (2, 1) of the crop, half and a quarter of a side."""
    point = torch.tensor([[[5 / 8, 2 / 8]]])
    moved = in_crop(point, torch.zeros(1, 3, 8, 8), torch.tensor([[3, 1]]), 4)
    assert moved.tolist() == [[[0.5, 0.25]]]


def test_a_frame_smaller_than_the_crop_is_refused():
    with pytest.raises(ValueError, match="8x8 px cannot be cropped to 9"):
        crop_corner(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 9)
