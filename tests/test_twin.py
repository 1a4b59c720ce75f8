"""The kinematic twin: its world and detectors by hand, that it trains on the project's batches and routes, learns and
repeats itself."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import tensor

from bench.twin import Learner, N, TwinNetwork, load, main, run
from bench.twin_config import TwinConfig
from bench.twin_world import LIFTS, SOURCES, ToyWorld, collect, observe
from data.sampler import BatchStream, Drawn, Sampler, SamplerConfig
from data.sharing import RULES
from models.small_network import SmallQNetwork
from sim import actions
from sim.landmarks import LANDMARK_SIZE, OFFSET_UNIT_M, PRESENCE, landmarks
from sim.options import run_command
from train.qtopt_config import PRESETS

TINY = {"steps": 4, "batch_size": 28, "evaluate_episodes": 2}
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
    present = exact[..., PRESENCE] > 0
    assert present.sum() == 6000
    assert (error[~present] == 0).all()
    assert (error[..., 3:] == 0).all()
    assert error[present][:, :3].std() * OFFSET_UNIT_M == pytest.approx(0.008, rel=0.02)
    assert (features[..., LANDMARK_SIZE:] == 0).all()
    assert gripper[:, 0].sum() == 0
    assert (gripper[:, 1] >= 0.15).all()


def test_sources_are_as_good_as_they_are_meant_to_be():
    data = collect(
        {"lift-banana": ("aimless", 600), "lift-milk": ("crude", 600), "lift-can": ("scripted", 600)},
        0.0,
        np.random.default_rng(4),
    )
    aimless, crude, scripted = (data.success[data.episode_task == lift] for lift in (0, 3, 5))
    assert 0.3 < aimless.any(1).mean() < 0.5
    assert (aimless.mean(0) < 0.1).all()
    assert 0.3 < crude[:, 3].mean() < 0.6
    assert scripted[:, 5].mean() > 0.95
    assert len(data.action) == (data.episode_length + 1).sum()


# ---------------------------------------------------------------- batches


def batches_of(data, count=20, **options):
    """Batches that the project's sampler draws from toy episodes, without a rule's scores."""
    sampler = Sampler(data, LIFTS, RULES["all"], SamplerConfig(**options))
    drawn = (Drawn(*sampler.draw(np.random.default_rng([6, k]))) for k in range(count))
    return [load(data, each) for each in drawn]


def test_rows_are_steps_of_their_episodes_and_done_at_the_last(data):
    (batch,) = batches_of(data, 1, per_task=16)
    first = np.cumsum(data.episode_length + 1) - data.episode_length - 1
    episode = batch.episode.numpy()
    step = batch.frame.numpy() - first[episode]
    assert ((step >= 0) & (step < data.episode_length[episode])).all()
    assert (batch.done.numpy() == (step == data.episode_length[episode] - 1)).all()
    assert (batch.success.numpy() == data.success[episode, batch.task_index]).all()
    assert (batch.is_shared.numpy() == (data.episode_task[episode] != batch.task_index.numpy())).all()


def test_shared_rows_are_drawn_evenly_or_balanced_if_asked(data):
    task = 4
    accepted = data.success[:, task] & (data.episode_task != task)
    assert 0 < accepted.sum() < 20
    for balanced, low, high in ((False, 0.0, 0.2), (True, 0.45, 0.55)):
        batches = batches_of(data, per_task=64, balance_shared=balanced)
        mine = torch.cat([b.success[(b.task_index == task) & b.is_shared] for b in batches])
        assert len(mine) == 640
        assert low < mine.mean() < high


# ---------------------------------------------------------------- learning


def test_a_batch_in_blocks_has_the_scores_of_the_projects_network(data):
    torch.manual_seed(0)
    network = TwinNetwork(PRESETS["vision-64"].network)
    task = tensor(LIFTS).repeat_interleave(3)
    features, gripper = data.features[:21], data.gripper[:21]
    action = data.action[:84].view(21, 4, 5)
    expected = SmallQNetwork.score(network, features, gripper, action, task)
    assert torch.allclose(network.score(features, gripper, action, task), expected, atol=1e-6)
    mixed = torch.arange(21).flip(0)[:20]
    found = network.score(features[mixed], gripper[mixed], action[mixed], task[mixed])
    assert torch.allclose(found, expected[mixed], atol=1e-6)


def test_the_learner_overfits_a_batch(data):
    config = TwinConfig(rule="all", steps=60, batch_size=28, cloned="accepted")
    (batch,) = batches_of(data, 1, per_task=4, balance_shared=True)
    learner = Learner(config, data)
    for _ in range(config.steps):
        learner.step(batch)
    features, gripper, action = data.frames(batch.frame)
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


@pytest.mark.parametrize(
    "options",
    [{"rule": "cds", "sharing": "weight", "granularity": "transition"}, {"rule": "hipi", "score_fraction": 1.0}],
    ids=["weight", "sample"],
)
def test_a_run_repeats_itself(data, options):
    config = TwinConfig(**TINY, **options)
    first, second = ({k: v for k, v in run(config, data).items() if k != "seconds"} for _ in range(2))
    assert first == second
    assert set(first["success"]) == set(SOURCES)
    assert 0 <= first["average"] <= 100


def stream_of(learner, data, **options):
    mix = SamplerConfig(per_task=4, by_episode=True, **options)
    return BatchStream(Sampler(data, LIFTS, learner.router.rule, mix), 0, episodes=learner.router.episodes).draws()


def test_episodes_are_scored_by_q_of_the_steps_beside_a_batch_and_routed_from_the_next_pass_on(data):
    learner = Learner(TwinConfig(**TINY, score_fraction=1.0), data)
    stream, episodes = stream_of(learner, data), learner.router.episodes
    passes = -(-data.num_episodes // 28)
    for number in range(passes):
        drawn = next(stream)
        assert not learner.router.chooses(number)
        learner.score_episodes(drawn, number)
    e, step = drawn.scored_episodes[0], drawn.scored_steps[0]
    features, gripper, action = data.frames(torch.tensor([step + e]))
    q = [learner.target.score(features, gripper, action[:, None], tensor([k])).sigmoid().item() for k in LIFTS]
    assert episodes.scores.versions[1, 0, :N, e].tolist() == pytest.approx(q, abs=1e-6)
    batch = load(data, next(stream))
    assert learner.router.chooses(passes)
    passing = episodes.weights(passes)[0]
    assert batch.is_shared.any()
    assert (passing[batch.task_index, batch.episode][batch.is_shared] == 1).all()


def test_before_the_first_scores_any_episode_is_shared(data):
    learner = Learner(TwinConfig(**TINY), data)
    assert load(data, next(stream_of(learner, data))).is_shared.view(N, 4).sum(1).tolist() == [2] * N
    assert not learner.router.chooses(0)


def test_options_mean_what_they_mean_in_training():
    training = TwinConfig().training
    expected = PRESETS["vision-64"]
    assert training.router == replace(expected.router, share_after=0)
    assert (training.cloned, training.reference_over, training.lr) == (
        expected.cloned,
        expected.reference_over,
        expected.lr,
    )
    assert TwinConfig(reference="percentile", percentile=10.0).training.router.percentile == 10.0


def test_wrong_options_are_told_in_one_line(monkeypatch, capsys):
    with pytest.raises(ValueError, match="the twin has no rule uds"):
        TwinConfig(rule="uds")
    with pytest.raises(ValueError, match="Did you mean 'sample'"):
        TwinConfig(sharing="sampel")
    with pytest.raises(ValueError, match="draws no candidates"):
        TwinConfig(granularity="transition")
    monkeypatch.setattr(sys, "argv", ["bench.twin", "--granularity", "transition"])
    assert run_command(main) == 2
    assert capsys.readouterr().err.startswith("error: the twin draws no candidates")


def test_the_command_adds_a_line_to_its_log_and_tables_it(monkeypatch, capsys, tmp_path):
    log = tmp_path / "runs.jsonl"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    for seed in ("0", "1"):
        monkeypatch.setattr(sys, "argv", ["bench.twin", *options, "--rule", "all", "--log", str(log), "--seed", seed])
        assert run_command(main) == 0
    results = [json.loads(line) for line in log.read_text().splitlines()]
    assert log.read_text() == capsys.readouterr().out
    assert [result["routing"]["shared"] for result in results] == [0.5, 0.5]
    monkeypatch.setattr(sys, "argv", ["bench.twin", "--table", str(log)])
    assert run_command(main) == 0
    head, _, row = capsys.readouterr().out.splitlines()
    assert head.startswith("| arm | success, % (seed) | mean | shared |")
    averages = [result["average"] for result in results]
    assert row.startswith("| all ")
    assert f"| {averages[0]} (0), {averages[1]} (1) | {np.mean(averages):.1f} | 0.50 |" in row
