"""The kinematic twin: its world and detectors by hand, its routing by hand, and that it learns and repeats itself."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from torch import tensor

from bench.twin import Learner, TwinNetwork, area_under_curve, main, run
from bench.twin_sharing import CLONES, N, TwinConfig, TwinSampler, balanced_window, episode_weights
from bench.twin_world import LIFTS, SOURCES, ToyWorld, collect, observe
from models.small_network import SmallQNetwork
from sim import actions
from sim.landmarks import LANDMARK_SIZE, OFFSET_UNIT_M, landmarks
from sim.options import run_command
from train.qtopt_config import PRESETS

TINY = {"steps": 4, "per_task": 4, "episodes": 2, "warm_up": 1, "score_every": 2}
SOME = {name: (policy, min(count, 20)) for name, (policy, count) in SOURCES.items()}


def world_of(distance_m, target=2):
    """One scene whose gripper is `distance_m` beside an object and as low, with that object's index."""
    world = ToyWorld(np.array([target]), np.random.default_rng(0))
    world.state["gripper_position"][0] = world.state["object_position"][0, target] + [distance_m, 0, 0]
    return world


def act(world, z=0.0, command=actions.NONE):
    world.step(np.array([[0, 0, z, 0, command]] * len(world.done), np.float32))


@pytest.fixture(scope="module")
def data():
    return collect(SOME, 0.008, np.random.default_rng(0))


# ---------------------------------------------------------------- the world


def test_an_object_that_is_grasped_and_lifted_counts_for_its_own_lift_alone():
    world = world_of(0.019)
    act(world, command=actions.CLOSE)
    act(world, z=0.055)
    assert not world.success().any()  # 5.5 cm: the detector wants 6
    act(world, z=0.01)
    assert world.success()[0].tolist() == [k == 2 for k in range(N)]
    act(world, command=actions.TERMINATE)
    act(world, command=actions.OPEN)  # comes too late
    assert world.success()[0, 2]
    assert world.done[0]
    assert world.length[0] == 4


def test_fingers_that_close_beside_an_object_hold_nothing():
    world = world_of(0.021)
    act(world, command=actions.CLOSE)
    act(world, z=0.06)
    act(world, z=0.06)
    assert world.state["held"][0] == -1
    assert not world.success().any()
    assert world.state["object_position"][0, 2, 2] == pytest.approx(0.02)


def test_an_object_that_is_dropped_is_not_lifted():
    world = world_of(0.0)
    act(world, command=actions.CLOSE)
    act(world, z=0.06)
    act(world, z=0.06)
    assert world.success()[0, 2]
    act(world, command=actions.OPEN)
    assert not world.success().any()
    assert world.state["object_on_table"][0, 2] == 1


def test_motion_is_bounded_and_an_episode_ends_after_25_steps():
    world = world_of(0.0)
    act(world, z=1.0)
    assert world.state["gripper_position"][0, 2] == pytest.approx(0.02 + actions.MAX_TRANSLATION_M)
    for _ in range(30):
        act(world)
    assert world.done[0]
    assert world.length[0] == 25


def test_three_objects_lie_apart_and_a_target_is_among_them():
    world = ToyWorld(np.repeat(np.arange(N), 50), np.random.default_rng(1))
    present = world.state["object_present"] > 0
    assert (present.sum(1) == 3).all()
    assert present[np.arange(350), np.repeat(np.arange(N), 50)].all()
    for row, here in zip(world.state["object_position"], present, strict=True):
        a, b, c = row[here]
        assert min(np.linalg.norm(a - b), np.linalg.norm(a - c), np.linalg.norm(b - c)) >= 0.08 - 1e-6


def test_observations_are_the_projects_landmarks_with_noise_on_the_offsets_of_what_is_present():
    world = ToyWorld(np.full(2000, -1), np.random.default_rng(2))
    exact = landmarks(world.state).value
    features, gripper = observe(world.state, 0.008, np.random.default_rng(3))
    error = features.numpy()[..., :LANDMARK_SIZE] - exact
    present = np.abs(exact).sum(-1) > 0
    assert present.sum() == 6000
    assert (error[~present] == 0).all()
    assert (error[..., 3:] == 0).all()
    assert error[present][:, :3].std() * OFFSET_UNIT_M == pytest.approx(0.008, rel=0.02)
    assert (features[..., LANDMARK_SIZE:] == 0).all()
    assert np.allclose(np.linalg.norm(exact[present][:, 3:5], axis=1), 2)  # tells it from an absent one: none stands
    assert gripper[:, 0].sum() == 0
    assert (gripper[:, 1] >= 0.15).all()


def test_sources_are_as_good_as_they_are_meant_to_be():
    data = collect(
        {"lift-banana": ("aimless", 600), "lift-milk": ("crude", 600), "lift-can": ("scripted", 600)},
        0.0,
        np.random.default_rng(4),
    )
    aimless, crude, scripted = (data.success[data.task == lift] for lift in (0, 3, 5))
    assert 0.3 < aimless.any(1).mean() < 0.5
    assert (aimless.mean(0) < 0.1).all()
    assert 0.3 < crude[:, 3].mean() < 0.6
    assert scripted[:, 5].mean() > 0.95
    assert (np.diff(data.first) == data.length[:-1] + 1).all()
    assert len(data.action) == (data.length + 1).sum()


# ---------------------------------------------------------------- sharing

# Two tasks, of which task 0 has the first three of six episodes.
SCORE = tensor([[0.2, 0.4, 0.9, 0.3, 0.5, 0.45], [0.1, 0.5, 0.2, 0.6, 0.4, 0.7]])
OWN = tensor([[True] * 3 + [False] * 3, [False] * 3 + [True] * 3])


SUCCESS = tensor([[False, False, True] * 2] * 2)


def weights_of(**options):
    return episode_weights(SCORE, OWN, SUCCESS, TwinConfig(mode="sample", **options)).tolist()


def test_hard_rules_compare_episodes_with_the_own_median_or_mean():
    hard = {"rule": "cds-hard"}
    assert weights_of(**hard, percentile=50.0) == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]]  # 0.4 and 0.6
    assert weights_of(**hard, reference="mean") == [[0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]]  # 0.5 and 0.567
    assert weights_of(**hard, percentile=100.0) == [[0, 0, 0, 1, 1, 1], [0, 1, 0, 0, 0, 0]]  # 0.2 and 0.4


def test_in_a_balanced_reference_successes_count_as_much_as_failures():
    window = balanced_window(SCORE.double(), OWN, SUCCESS)
    assert window.mean(1).tolist() == pytest.approx([0.5 * 0.3 + 0.5 * 0.9, 0.5 * 0.5 + 0.5 * 0.7])
    assert window[0].unique(return_counts=True)[1].tolist() == [250, 250, 500]  # of 0.2, 0.4 and 0.9
    assert weights_of(rule="cds-hard", reference="mean", balance_reference=True)[0] == [0] * 6  # 0.6


def test_soft_weights_are_of_the_mean_gap_or_of_a_fixed_temperature():
    tau = (0.1 + 0.1 + 0.05) / 3
    expected = 1 / (1 + np.exp(-np.array([-0.1, 0.1, 0.05]) / tau))
    assert weights_of(percentile=50.0)[0] == pytest.approx([0, 0, 0, *expected])
    expected = 1 / (1 + np.exp(-np.array([-0.1, 0.1, 0.05]) / 0.5))
    assert weights_of(percentile=50.0, sharing_temperature=0.5)[0] == pytest.approx([0, 0, 0, *expected])


def test_hipi_gives_an_episode_to_the_task_that_scores_it_highest():
    assert weights_of(rule="hipi") == [[0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0]]


def test_the_top_tenth_is_of_the_shared_episodes():
    score, own = torch.rand(1, 120, generator=torch.Generator().manual_seed(0)), torch.arange(120)[None] >= 100
    weight = episode_weights(score, own, own, TwinConfig(mode="top-tenth", rule="cds"))
    assert weight.sum() == 10
    assert (
        weight[0].bool().tolist() == (score >= score[~own].sort().values[90])[0].where(~own[0], tensor(False)).tolist()
    )


def test_shared_rows_come_from_episodes_that_pass_and_own_rows_fill_the_rest(data):
    sampler = TwinSampler(data, TwinConfig(rule="cds-hard", mode="sample", per_task=8))
    rng = np.random.default_rng(5)
    assert not (sampler.draw(rng).task_index != sampler.draw(rng).source_task_index).any()  # before the first scores
    weight = np.zeros((N, len(data.task)))
    passing = np.flatnonzero(data.task != 0)[:2]
    weight[0, passing] = 1
    sampler.route(weight, fill=True)
    batch = sampler.draw(rng)
    shared = (batch.task_index != batch.source_task_index).numpy()
    assert shared.reshape(N, 8).sum(1).tolist() == [2, 0, 0, 0, 0, 0, 0]
    assert set(batch.episode.numpy()[shared]) <= set(passing.tolist())
    sampler.route(weight, fill=False)
    assert (sampler.draw(rng).task_index != sampler.draw(rng).source_task_index).view(N, 8).sum(1)[0] == 4


def test_shared_rows_are_drawn_by_weight_times_length_and_balanced_if_asked(data):
    task = 4
    accepted = data.success[:, task] & (data.task != task)
    assert 0 < accepted.sum() < 20
    for balanced, low, high in ((False, 0.0, 0.2), (True, 0.45, 0.55)):
        sampler = TwinSampler(data, TwinConfig(rule="all", balance_successes=balanced, per_task=64))
        rng = np.random.default_rng(6)
        batches = [sampler.draw(rng) for _ in range(20)]
        mine = torch.cat([b.success[(b.task_index == task) & (b.source_task_index != task)] for b in batches])
        assert len(mine) == 640
        assert low < mine.mean() < high
        own = torch.cat([b.success[(b.task_index == task) & (b.source_task_index == task)] for b in batches])
        assert (len(own) == 640 and 0.4 < own.mean() < 0.6) or not data.success[data.task == task, task].any()


def test_rows_are_steps_of_their_episodes_and_done_at_the_last(data):
    batch = TwinSampler(data, TwinConfig(rule="all")).draw(np.random.default_rng(7))
    episode = batch.episode.numpy()
    step = batch.rows - data.first[episode]
    assert (data.episode[batch.rows] == episode).all()
    assert ((step >= 0) & (step < data.length[episode])).all()
    assert (batch.done.numpy() == (step == data.length[episode] - 1)).all()


def test_what_each_clone_follows():
    success, own = tensor([1.0, 0.0, 1.0, 0.0]), tensor([True, True, False, False])
    found = {name: clone(success, own).tolist() for name, clone in CLONES.items()}
    assert found == {"accepted": [1, 0, 1, 0], "effective": [1, 1, 1, 1], "own-accepted": [1, 0, 1, 1]}


def test_area_under_the_curve_by_hand():
    assert area_under_curve(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 0.75
    assert area_under_curve(np.array([0.5, 0.5]), np.array([False, True])) == 0.5
    assert np.isnan(area_under_curve(np.array([0.5]), np.array([True])))


# ---------------------------------------------------------------- learning


def test_a_batch_in_blocks_has_the_scores_of_the_projects_network(data):
    torch.manual_seed(0)
    network = TwinNetwork(PRESETS["vision-64"].network)
    task = tensor(LIFTS).repeat_interleave(3)
    features, gripper = data.features[:21].flatten(1), data.gripper[:21]
    action = data.action[:84].view(21, 4, 5)
    expected = SmallQNetwork.score(network, features, gripper, action, task)
    assert torch.allclose(network.score(features, gripper, action, task), expected, atol=1e-6)
    mixed = torch.arange(21).flip(0)[:20]
    found = network.score(features[mixed], gripper[mixed], action[mixed], task[mixed])
    assert torch.allclose(found, expected[mixed], atol=1e-6)


def test_the_learner_overfits_a_batch(data):
    config = TwinConfig(rule="all", steps=60, per_task=4)
    learner, batch = Learner(config, data), TwinSampler(data, config).draw(np.random.default_rng(8))
    for _ in range(config.steps):
        learner.step(batch)
    now = torch.from_numpy(batch.rows)
    features, gripper, action = data.features[now].flatten(1), data.gripper[now], data.action[now]
    with torch.no_grad():
        q = learner.network.score(features, gripper, action[:, None], batch.task_index)[:, 0].sigmoid()
        _mean, command = learner.network.behaviour_policy(features, gripper, batch.task_index)
    won, lost = batch.done * batch.success > 0, batch.done * (1 - batch.success) > 0
    assert won.any()
    assert q[won].min() > 0.8
    assert q[lost].max() < 0.3
    right = command.argmax(-1) == action[:, 4]
    assert right[batch.success > 0].all()
    assert not right.all()


@pytest.mark.parametrize("options", [{"rule": "cds"}, {"rule": "hipi", "mode": "sample"}], ids=["weight", "sample"])
def test_a_run_repeats_itself(data, options):
    config = TwinConfig(**TINY, **options)
    first, second = ({k: v for k, v in run(config, data).items() if k != "seconds"} for _ in range(2))
    assert first == second
    assert set(first["success"]) == set(SOURCES)
    assert 0 <= first["average"] <= 100


def test_scores_of_episodes_are_the_mean_q_of_their_frames(data):
    config = TwinConfig(rule="hipi", score_frames=2)
    learner = Learner(config, data)
    score, e = learner.score_episodes(), 3
    assert score.shape == (N, len(data.task))
    frames = data.first[e] + np.array([0.25, 0.75]) * data.length[e]
    now = torch.from_numpy(frames.astype(np.int64))
    q = [
        learner.target.score(
            data.features[now].flatten(1), data.gripper[now], data.action[now][:, None], torch.full((2,), lift)
        )
        for lift in LIFTS
    ]
    assert torch.allclose(score[:, e], torch.stack(q).sigmoid().mean((1, 2)), atol=1e-6)


def test_wrong_options_are_told_in_one_line(monkeypatch, capsys):
    with pytest.raises(ValueError, match="the twin does not have rule uds"):
        TwinConfig(rule="uds")
    with pytest.raises(ValueError, match="Did you mean 'sample'"):
        TwinConfig(mode="sampel")
    monkeypatch.setattr(sys, "argv", ["bench.twin", "--rule", "cds", "--reference", "mean"])
    assert run_command(main) == 2
    assert capsys.readouterr().err.startswith("error: mode weight is the project's router")


def test_the_command_adds_a_line_to_its_log_and_tables_it(monkeypatch, capsys, tmp_path):
    log = tmp_path / "runs.jsonl"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    for seed in ("0", "1"):
        monkeypatch.setattr(sys, "argv", ["bench.twin", *options, "--rule", "all", "--log", str(log), "--seed", seed])
        assert run_command(main) == 0
    results = [json.loads(line) for line in log.read_text().splitlines()]
    assert log.read_text() == capsys.readouterr().out
    assert [result["shared_rows"] for result in results] == [0.5, 0.5]
    monkeypatch.setattr(sys, "argv", ["bench.twin", "--table", str(log)])
    assert run_command(main) == 0
    head, _, row = capsys.readouterr().out.splitlines()
    assert head.startswith("| arm | success, % (seed) | shared_rows |")
    averages = [result["average"] for result in results]
    assert row.startswith("| all ")
    assert f"| {averages[0]} (0), {averages[1]} (1) | 0.50 |" in row
