"""The sampler and the stream of batches, on six hand-made episodes that succeed at other tasks than their own."""

from __future__ import annotations

import dataclasses
import shutil
from collections import deque
from itertools import islice

import numpy as np
import pytest
import torch

from data import codec
from data.episode_router import EpisodeRouter
from data.episode_scores import Episodes, EpisodeScores, ScoringSchedule
from data.loader import HELD, PREFETCH, ImageSlots, Loader
from data.replay import Replay
from data.router_config import RouterConfig
from data.sampler import BatchStream, Drawn, Sampler, SamplerConfig, drawn_as_often
from data.sharing import RULES
from sim.files import DatasetError
from sim.landmarks import landmarks
from sim.state import SceneState
from sim.tasks import SKILLS, TASKS

BANANA, CAN, BOWL = (TASKS[name].index for name in ("lift-banana", "lift-can", "place-bowl"))
TASKS_USED = (BANANA, CAN, BOWL)
EPISODES = [  # (collected for, succeeds at); 2 steps and 3 frames each
    ("lift-banana", ("lift-banana",)),
    ("lift-banana", ("lift-can",)),
    ("lift-can", ("lift-can",)),
    ("lift-can", ()),
    ("place-bowl", ("place-bowl",)),
    ("place-bowl", ("lift-banana",)),
]


@pytest.fixture(scope="module")
def replay(tmp_path_factory, make_episode, write_dataset):
    """Frame number n of the dataset is uniformly grey, of level 12 n."""
    rng = np.random.default_rng(0)
    episodes = [
        make_episode(task, 2, accepted, [12 * (3 * n + k) for k in range(3)], rng)
        for n, (task, accepted) in enumerate(EPISODES)
    ]
    return Replay(write_dataset(tmp_path_factory.mktemp("batches"), [episodes[:3], episodes[3:]]))


def sampler_of(replay, rule="all", tasks=TASKS_USED, **options):
    return Sampler(replay, tasks, RULES[rule], SamplerConfig(**{"per_task": 8, **options}))


def drawn(sampler, number=50):
    """(source episode, target task), each [number, B], of many draws."""
    rng = np.random.default_rng(1)
    draws = [sampler.draw(rng) for _ in range(number)]
    return np.array([steps // 2 for steps, _ in draws]), np.array([targets for _, targets in draws])


def same(first, second):
    return all(torch.equal(getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(first))


@pytest.mark.parametrize("rule", list(RULES))
def test_a_batch_holds_equally_many_transitions_of_each_task_grouped(replay, rule):
    _, targets = drawn(sampler_of(replay, rule))
    assert (targets == np.repeat(TASKS_USED, 8)).all()


@pytest.mark.parametrize(("shared", "num_shared"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_the_shared_fraction_is_exactly_as_configured(replay, shared, num_shared):
    episode, target = drawn(sampler_of(replay, shared_fraction=shared))
    is_shared = replay.episode_task[episode] != target
    for task in TASKS_USED:
        assert (is_shared[:, target[0] == task].sum(axis=1) == num_shared).all()


@pytest.mark.parametrize("processes", [1, 2])
def test_each_shared_transition_has_several_candidates_beside_own_ones_for_every_place(replay, processes):
    """Each process has the same number for every task, whatever fraction is configured."""
    sampler = sampler_of(replay, "cds", per_task=4, shared_fraction=0.4, candidates_per_shared=3, processes=processes)
    for rank in range(processes):
        drawn = next(BatchStream(sampler, 0, rank=rank).draws())
        own = replay.episode_task[replay.episode_of(drawn.steps)] == drawn.targets
        assert drawn.targets.tolist() == np.repeat(TASKS_USED, 4 + 3 * 2).tolist()
        assert own.tolist() == ([True] * 4 + [False] * 6) * len(TASKS_USED)
    assert sampler.images_shape[0] == 2 * 10 * len(TASKS_USED)


def test_shared_steps_are_drawn_from_the_episodes_that_the_rule_chose_by_their_weight(replay):
    """The banana may share the episodes 2 to 5: three times as much of 4 as of 2, nothing of 3 and 5."""
    sampler, weights = sampler_of(replay, "cds-hard", by_episode=True), np.zeros((10, 6))
    weights[BANANA] = [1, 1, 0.25, 0, 0.75, 0]
    weights[CAN, 5] = 1.0
    pools, rng = sampler.pools_of(weights), np.random.default_rng(0)
    drawn = [sampler.draw(rng, pools) for _ in range(1500)]
    episodes = np.array([steps // 2 for steps, _ in drawn])[:, :24].reshape(-1, 3, 8)
    shared = (replay.episode_task[episodes] != np.array(TASKS_USED)[:, None]) * 1
    assert (shared.sum(-1) == [2, 1, 0]).all()  # as many as there are episodes: own ones take the other places
    counts = np.bincount(episodes[:, 0][shared[:, 0] == 1], minlength=6)
    assert counts[[0, 1, 3, 5]].tolist() == [0] * 4
    single = sampler_of(replay, "cds-hard", by_episode=True, per_task=2)
    first = np.array([single.draw(rng, pools)[0][:2] // 2 for _ in range(3000)]).ravel()
    others = first[np.isin(first, (2, 4))]
    assert (others == 4).mean() == pytest.approx(0.75, abs=0.03)
    steps = np.concatenate([steps for steps, _ in drawn])
    assert set(steps[np.isin(steps // 2, (4,))].tolist()) == {8, 9}


def test_before_an_episode_is_scored_shared_steps_are_drawn_evenly(replay):
    sampler, rng = sampler_of(replay, "cds-hard", by_episode=True), np.random.default_rng(0)
    steps, targets = zip(*(sampler.draw(rng) for _ in range(300)), strict=True)
    shared = replay.episode_task[np.array(steps) // 2] != np.array(targets)
    assert (shared.reshape(300, 3, 8).sum(-1) == 4).all()
    banana = np.array(steps)[:, :8][shared[:, :8]] // 2
    assert np.bincount(banana, minlength=6)[2:].tolist() == pytest.approx([300] * 4, abs=40)


def test_a_rule_that_compares_with_own_transitions_finds_one_of_each_task_in_every_batch(replay):
    rng = np.random.default_rng(0)
    for per_task, shared in ((2, 0.75), (3, 0.9), (2, 1.0)):
        sampler = sampler_of(replay, "cds", per_task=per_task, shared_fraction=shared)
        draws = [sampler.draw(rng) for _ in range(100)]
        own = np.stack([replay.episode_task[replay.episode_of(steps)] == target for steps, target in draws])
        assert own.reshape(100, len(TASKS_USED), per_task).any(-1).all()


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize(("fraction", "num_successes"), [(0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)])
def test_the_success_fraction_is_exact_among_own_and_if_asked_among_shared(replay, fraction, num_successes, balance):
    """Among shared ones only if others' episodes both succeed and fail at the task."""
    episode, target = drawn(sampler_of(replay, success_fraction=fraction, balance_shared=balance))
    own, success = replay.episode_task[episode] == target, replay.success[episode, target]
    for task in TASKS_USED:
        mine = target[0] == task
        others = replay.success[replay.episode_task != task, task]
        assert (own[:, mine].sum(axis=1) == 4).all()
        assert ((own & success)[:, mine].sum(axis=1) == num_successes).all()
        if balance:
            assert ((~own & success)[:, mine].sum(axis=1) == (num_successes if others.any() else 0)).all()
    assert any(replay.success[replay.episode_task != task, task].any() for task in TASKS_USED)


def test_shared_transitions_succeed_as_often_as_others_data_do(replay):
    rng = np.random.default_rng(0)
    sampler = sampler_of(replay)
    draws = [sampler.draw(rng) for _ in range(2000)]
    episode, target = replay.episode_of(np.stack([steps for steps, _ in draws])), draws[0][1]
    own, success = replay.episode_task[episode] == target, replay.success[episode, target]
    steps = np.asarray(replay.episode_length)
    for task in TASKS_USED:
        mine = target == task
        others = np.isin(replay.episode_task, TASKS_USED) & (replay.episode_task != task)
        fraction = (steps * others * replay.success[:, task]).sum() / (steps * others).sum()
        assert success[:, mine][~own[:, mine]].mean() == pytest.approx(fraction, abs=0.02)
        assert (own & success)[:, mine].sum(axis=1).tolist() == [2] * len(success)


def test_own_outcomes_are_drawn_as_often_as_the_fraction_says(replay):
    """Half of the banana's own steps succeed: a batch with a quarter holds half as many, and failures by half more."""
    assert drawn_as_often(replay, 0.25)[BANANA] == pytest.approx([1.5, 0.5])
    assert drawn_as_often(replay, 1.0)[BANANA].tolist() == [0.0, 2.0]
    assert drawn_as_often(replay, 0.25)[1].tolist() == [1.0, 1.0]  # a task without episodes


def test_steps_to_be_scored_come_with_every_batch_and_are_split_among_processes(replay):
    episodes = Episodes(task=replay.episode_task, length=replay.episode_length)
    config = RouterConfig(granularity="episode")
    scores = EpisodeScores(ScoringSchedule(episodes, 4, 2, seed=3), 1, 10, lag=0)
    router = EpisodeRouter(config, scores, RULES["cds"].other_sources(SKILLS, TASKS_USED))
    sampler = sampler_of(replay, "cds", per_task=4, processes=2, scored=2)
    wanted = scores.schedule.steps(1)
    found = [list(islice(BatchStream(sampler, 7, rank=rank, episodes=router).draws(), 2))[1] for rank in (0, 1)]
    assert [drawn.scored_episodes.tolist() for drawn in found] == [wanted[0][rank::2].tolist() for rank in (0, 1)]
    for decode in (True, False):
        sampler = sampler_of(replay, "cds", per_task=4, processes=2, scored=2, decode=decode)
        batch = sampler.load(found[1]).to("cpu")
        frames = found[1].scored_steps + found[1].scored_episodes
        assert batch.score_episode.tolist() == wanted[0][1::2].tolist()
        level = batch.score_image.float().mean((1, 2, 3))
        assert level.tolist() == pytest.approx((12.0 * frames).tolist(), abs=2)
        stored = replay.read(frames)
        assert np.array_equal(batch.score_action, np.stack([frame.action for frame in stored]))
        assert np.array_equal(batch.score_gripper[:, 0], [SceneState(f.state)["gripper_closed"] for f in stored])
        assert batch.image.shape[0] == batch.next_image.shape[0] == 12
    assert sampler.images_shape[0] == 26


def test_the_stream_draws_by_the_scores_that_count_for_a_batch(replay):
    episodes = Episodes(task=replay.episode_task, length=replay.episode_length)
    config = RouterConfig(rule="cds-hard", sharing="sample", granularity="episode")
    scores = EpisodeScores(ScoringSchedule(episodes, 6, 1, seed=3), 1, 10, lag=3)
    router = EpisodeRouter(config, scores, RULES["cds-hard"].other_sources(SKILLS, TASKS_USED))
    draws = BatchStream(sampler_of(replay, "cds-hard", by_episode=True), 7, episodes=router).draws()
    score = torch.zeros(1, 6, 10)
    score[:, :2, BANANA] = 0.5  # own
    score[:, 4, BANANA] = 1.0
    score[..., CAN] = score[..., BOWL] = torch.arange(6.0)[None] % 2
    shared = []
    for number in range(6):
        drawn = next(draws)
        mine = drawn.targets == BANANA
        others = replay.episode_task[drawn.steps[mine] // 2] != BANANA
        shared.append(set((drawn.steps[mine] // 2)[others].tolist()))
        router.add(number, torch.arange(6), score)
    assert shared == [{2, 3, 4, 5}] * 4 + [{4}] * 2


def test_small_batches_keep_the_fractions_on_average(replay):
    """The paper's preset draws three transitions per task: neither fraction is a whole number of them."""
    rng = np.random.default_rng(0)
    sampler = sampler_of(replay, per_task=3)
    draws = [sampler.draw(rng) for _ in range(2000)]
    episode = replay.episode_of(np.stack([steps for steps, _ in draws]))
    target = draws[0][1]
    own = replay.episode_task[episode] == target
    success = own & replay.success[episode, target]
    assert own.mean() == pytest.approx(0.5, abs=0.02)
    assert success.sum() / own.sum() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("rule", "sources"),
    [
        ("none", {BANANA: {BANANA}, CAN: {CAN}, BOWL: {BOWL}}),
        ("skill", {BANANA: {BANANA, CAN}, CAN: {BANANA, CAN}, BOWL: {BOWL}}),
        ("all", {task: set(TASKS_USED) for task in TASKS_USED}),
        ("cds", {task: set(TASKS_USED) for task in TASKS_USED}),
    ],
)
def test_a_task_draws_from_the_sources_its_rule_allows(replay, rule, sources):
    episode, target = drawn(sampler_of(replay, rule))
    for task in TASKS_USED:
        assert set(replay.episode_task[episode[target == task]]) == sources[task]


def test_uds_keeps_the_success_of_shared_transitions_unknown(replay):
    sampler, rng = sampler_of(replay, "uds"), np.random.default_rng(0)
    drawn = [np.concatenate(parts) for parts in zip(*(sampler.draw(rng) for _ in range(20)), strict=True)]
    batch, relabelled = sampler.load(Drawn(*drawn)), sampler_of(replay, "all").load(Drawn(*drawn))
    shared = batch.is_shared
    assert (relabelled.success[shared] > 0).any()
    assert (relabelled.reward[shared] > 0).any()
    assert (batch.success[shared] == 0).all()
    assert (batch.reward[shared] == 0).all()
    assert torch.equal(batch.reward[~shared], relabelled.reward[~shared])
    assert (batch.reward[~shared] > 0).any()


def test_tasks_that_are_not_trained_are_no_source(replay):
    episode, _ = drawn(sampler_of(replay, tasks=(BANANA, CAN)))
    assert set(replay.episode_task[episode.ravel()]) == {BANANA, CAN}


def test_every_step_of_every_pool_is_drawn(replay):
    rng = np.random.default_rng(2)
    steps = np.concatenate([sampler_of(replay).draw(rng)[0] for _ in range(50)])
    assert set(steps) == set(range(12))


def test_a_task_without_own_success_draws_its_failures(replay, tmp_path, make_episode, write_dataset):
    failures = Replay(write_dataset(tmp_path / "set", [[make_episode("lift-banana"), make_episode("lift-banana")]]))
    steps, _ = sampler_of(failures, "none", (BANANA,)).draw(np.random.default_rng(0))
    assert len(steps) == 8


def test_a_task_without_episodes_is_refused(replay):
    with pytest.raises(ValueError, match=rf"{replay.folder}.*no episode of task lift-bottle"):
        sampler_of(replay, tasks=(BANANA, 1))


def test_the_reward_is_that_of_the_target_task_not_of_the_source(replay):
    """Steps 2 and 3 were collected for the banana, and their episode ends with a lifted can."""
    batch = sampler_of(replay).load(Drawn(np.array([2, 3, 2, 3]), np.array([BANANA, BANANA, CAN, CAN])))
    assert batch.reward.tolist() == [0, 0, 0, 1]
    assert batch.is_shared.tolist() == [False, False, True, True]


def test_reward_done_and_source_of_every_step_for_every_target(replay):
    steps = np.tile(np.arange(12), 3)
    targets = np.repeat(TASKS_USED, 12)
    batch = sampler_of(replay).load(Drawn(steps, targets))
    names = {BANANA: "lift-banana", CAN: "lift-can", BOWL: "place-bowl"}
    for row, (step, target) in enumerate(zip(steps, targets, strict=True)):
        task, accepted = EPISODES[step // 2]
        last, success = step % 2 == 1, names[target] in accepted
        assert batch.done[row] == last
        assert batch.success[row] == success
        assert batch.reward[row] == (last and success)
        assert batch.task_index[row] == target
        assert batch.source_task_index[row] == TASKS[task].index
        assert batch.is_shared[row] == (names[target] != task)
    assert batch.reward.sum() == 5
    stored = replay.read(steps + steps // 2)
    assert np.array_equal(batch.action, np.stack([frame.action for frame in stored]))


def test_image_and_next_image_are_frames_t_and_t_plus_one_of_one_episode(replay):
    batch = sampler_of(replay).load(Drawn(np.arange(12), np.full(12, BANANA)))
    first = np.array([3 * episode + k for episode in range(6) for k in range(2)])
    assert batch.image.shape == batch.next_image.shape == (12, 3, 16, 16)
    for images, frame in ((batch.image, first), (batch.next_image, first + 1)):
        levels = images.float().flatten(1)
        assert (levels - torch.tensor(12.0 * frame)[:, None]).abs().max() <= 2
    for gripper, frame in ((batch.gripper, first), (batch.next_gripper, first + 1)):
        state = SceneState(np.stack([stored.state for stored in replay.read(frame)]))
        assert np.array_equal(gripper[:, 0], state["gripper_closed"])
        assert np.array_equal(gripper[:, 1], state["gripper_position"][:, 2])
    marks = landmarks(SceneState(np.stack([stored.state for stored in replay.read(first)])))
    assert np.array_equal(batch.landmark, marks.value)
    assert np.array_equal(batch.point, marks.point)
    assert np.array_equal(batch.point_present, marks.point_present)


def test_with_three_steps_the_next_image_is_three_on_or_the_last(tmp_path, make_episode, write_dataset):
    episodes = [
        make_episode("lift-can", 4, ("lift-can",), [20, 40, 60, 80, 100]),
        make_episode("lift-can", 1, (), [120, 140]),
    ]
    replay = Replay(write_dataset(tmp_path / "set", [episodes]))
    batch = sampler_of(replay, tasks=(CAN,), n_step=3).load(Drawn(np.arange(5), np.full(5, CAN)))
    assert batch.image.float().mean(dim=(1, 2, 3)).tolist() == pytest.approx([20, 40, 60, 80, 120], abs=2)
    assert batch.next_image.float().mean(dim=(1, 2, 3)).tolist() == pytest.approx([80, 100, 100, 100, 140], abs=2)
    assert batch.n_step.tolist() == [3, 3, 2, 1, 1]
    assert batch.done.tolist() == [0, 1, 1, 1, 1]
    assert batch.reward.tolist() == [0, 1, 1, 1, 0]


def test_images_that_are_decoded_later_are_the_same(replay):
    draw = sampler_of(replay).draw(np.random.default_rng(0))
    now, later = (sampler_of(replay, decode=decode).load(Drawn(*draw)) for decode in (True, False))
    assert later.image.numel() == 0
    assert same(now.to("cpu"), later.to("cpu"))
    assert torch.equal(now.image, later.to("cpu").image)


def test_a_batch_in_which_one_frame_is_lossless_is_decoded_as_it_is_loaded(tmp_path, make_episode, write_dataset):
    episode = make_episode("lift-can", 2, (), [10, 20, 30])
    lossless = codec.encode(codec.decode(episode.frames[1]), "zstd")
    mixed = dataclasses.replace(episode, frames=(episode.frames[0], lossless, episode.frames[2]))
    sampler = sampler_of(Replay(write_dataset(tmp_path / "set", [[mixed]])), tasks=(CAN,), decode=False)
    batch = sampler.load(Drawn(np.arange(2), np.full(2, CAN)))
    assert len(batch.encoded_size) == 0
    assert batch.to("cpu").image.float().mean(dim=(1, 2, 3)).tolist() == pytest.approx([10, 20], abs=2)


def test_a_cache_changes_nothing_and_keeps_to_its_limit(replay):
    cached = Replay(replay.folder, cache_bytes=15_000)
    plain, second = sampler_of(replay), sampler_of(cached)
    for seed in range(5):
        draw = plain.draw(np.random.default_rng(seed))
        assert same(plain.load(Drawn(*draw)), second.load(Drawn(*draw)))
        assert 0 < cached.cached_bytes <= 15_000


def test_frames_in_the_cache_are_not_read_again(replay, tmp_path):
    copied = shutil.copytree(replay.folder, tmp_path / "copied")
    cached = Replay(copied, cache_bytes=10**6)
    frames = cached.read(range(6))
    shutil.rmtree(copied)
    assert cached.read([5, 0]) == [frames[5], frames[0]]
    with pytest.raises(DatasetError, match="missing"):
        cached.read([9])


def test_a_stream_resumed_at_batch_n_goes_on_as_if_it_had_never_stopped(replay):
    straight = list(islice(BatchStream(sampler_of(replay), 7), 6))
    resumed = list(islice(BatchStream(sampler_of(replay), 7, first=4), 2))
    assert same(resumed[0], straight[4])
    assert same(resumed[1], straight[5])
    assert not same(straight[4], straight[5])


def test_seeds_and_ranks_give_other_batches(replay):
    first, seed, rank = (
        next(iter(BatchStream(sampler_of(replay, per_task=4, processes=2), seed, rank=rank)))
        for seed, rank in ((7, 0), (8, 0), (7, 1))
    )
    assert not same(first, seed)
    assert not same(first, rank)


def test_the_stream_does_not_depend_on_the_number_of_loader_processes(replay):
    alone, together = (list(islice(Loader(BatchStream(sampler_of(replay), 7, 3), n), 30)) for n in (0, 2))
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


def test_memory_of_images_is_used_again_only_when_nobody_holds_a_tensor_on_it(replay, monkeypatch):
    """A view is held until after the next batch, and then let go."""
    taken = []
    take = ImageSlots.take
    monkeypatch.setattr(ImageSlots, "take", lambda self, sent, slot: (taken.append(slot), take(self, sent, slot))[1])
    straight = list(islice(BatchStream(sampler_of(replay), 7), 40))
    held = deque(maxlen=1)
    for number, batch in enumerate(islice(Loader(BatchStream(sampler_of(replay), 7), 1), 40)):
        assert taken[-1] not in [slot for _, slot, _ in held]
        held.append((number, taken[-1], batch.next_image[5:6]))
        assert all(torch.equal(view, straight[n].next_image[5:6]) for n, _, view in held)
    assert len(taken) == 40
    assert len(set(taken)) <= PREFETCH + HELD


def test_batches_that_are_all_kept_stay_what_they_are(replay):
    straight = list(islice(BatchStream(sampler_of(replay), 7), 20))
    kept = list(islice(Loader(BatchStream(sampler_of(replay), 7), 2), 20))
    assert all(same(a, b) for a, b in zip(kept, straight, strict=True))


@pytest.mark.parametrize("name", codec.CODECS)
@pytest.mark.parametrize("decode", [True, False])
def test_lossless_and_undecoded_frames_pass_through_a_worker(tmp_path, make_episode, write_dataset, name, decode):
    episode = make_episode("lift-can", 2, (), [10, 20, 30])
    frames = tuple(codec.encode(codec.decode(frame), name) for frame in episode.frames)
    folder = write_dataset(tmp_path / "set", [[dataclasses.replace(episode, frames=frames)]])
    stream = BatchStream(sampler_of(Replay(folder), tasks=(CAN,), decode=decode), 7)
    assert same(next(iter(Loader(stream, 1))).to("cpu"), next(iter(stream)).to("cpu"))
