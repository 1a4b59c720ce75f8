"""Scores of whole episodes: their schedule and versions, and the weights that a rule gives episodes, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import tensor

from data.episode_router import EpisodeRouter, area_under_roc
from data.episode_scores import Episodes, EpisodeScores, ScoringSchedule, move_episodes
from data.router import Router
from data.router_config import RouterConfig
from tests.test_router import rows, sigmoid

NAN = float("nan")
LENGTH = np.array([4, 9, 1, 12, 6, 5, 7])


def schedule_of(per_batch=3, visits=4, seed=0, length=LENGTH, task=None, start=0):
    task = np.zeros(len(length), np.int64) if task is None else np.array(task)
    return ScoringSchedule(Episodes(task=task, length=np.array(length)), per_batch, visits, seed, start)


def test_a_pass_visits_every_episode_and_its_step_lies_in_it():
    schedule = schedule_of()
    assert schedule.batches == 3
    first = schedule.episodes.first_step
    assert first.tolist() == [0, 4, 13, 14, 26, 32, 37]
    for passed in range(3):
        visited = set()
        for number in range(3 * passed, 3 * passed + 3):
            episode, step = schedule.steps(number)
            assert len(episode) == 3
            assert ((step >= first[episode]) & (step < first[episode] + LENGTH[episode])).all()
            assert schedule.pass_of(number) == (passed, number % 3 == 2)
            visited |= set(episode.tolist())
        assert visited == set(range(7))


def test_successive_visits_of_an_episode_lie_in_different_parts_of_it():
    schedule = schedule_of(per_batch=7, length=[40] * 7)
    parts = np.zeros((7, 4), int)
    for number in range(4):
        episode, step = schedule.steps(number)
        parts[episode, number] = (step - 40 * episode) // 10
    assert (np.sort(parts, axis=1) == np.arange(4)).all()


def test_a_batch_is_scored_by_its_number_alone():
    again = schedule_of()
    for number in (11, 2, 5, 11):
        for column, same in zip(again.steps(number), schedule_of().steps(number), strict=True):
            assert np.array_equal(column, same)
    assert not np.array_equal(schedule_of(seed=1).steps(0)[0], schedule_of().steps(0)[0])
    later = schedule_of(start=5)
    assert later.pass_of(7) == (0, True)


def test_a_score_is_the_mean_of_the_last_visits_and_counts_from_a_lag_on():
    scores = EpisodeScores(schedule_of(per_batch=2, visits=2, length=[3, 3, 3]), 1, 1, lag=4)
    values = iter([0.1, 0.3, 0.5, 0.7, 0.9, 1.1])
    finished = []
    for number in range(6):
        episode, _ = scores.schedule.steps(number)
        assert scores.version_of(number) is None
        if scores.add(number, torch.from_numpy(episode), torch.full((1, 2, 1), next(values))):
            finished.append((number, scores.since.tolist()))
    assert finished == [(1, [-1, 6])]  # until batch 6 the first version waits, so there is no other
    assert scores.version_of(5) is None
    assert scores.version_of(6) == (1, 6)
    last = {}
    for number in (0, 1):
        for episode in scores.schedule.steps(number)[0].tolist():
            last[episode] = 0.1 if number == 0 else 0.3
    assert scores.versions[1, 0, 0].tolist() == pytest.approx([last[k] for k in range(3)])


def test_the_version_before_counts_until_the_later_one_does():
    scores = EpisodeScores(schedule_of(per_batch=3, visits=2, length=[3, 3, 3]), 1, 1, lag=2)
    for number in range(6):
        scores.add(number, torch.arange(3), torch.full((1, 3, 1), float(number)))
    # finished with batches 0, 3: they count from 3 and 6; those of 1, 2, 4, 5 would have hidden one that did not yet
    assert scores.since.tolist() == [3, 6]
    assert [scores.version_of(number) for number in (2, 3, 5, 6)] == [None, (0, 3), (0, 3), (1, 6)]
    again = EpisodeScores(scores.schedule, 1, 1, lag=2)
    assert again.version_of(9) is None
    again.load_state_dict(scores.state_dict())
    assert again.version_of(9) == (1, 6)
    assert scores.versions[:, 0, 0, 0].tolist() == [0.0, 2.5]


def router_of(score, task, sources=None, length=None, **options):
    """A router of whole episodes with these scores [N, K]."""
    config = RouterConfig(granularity="episode", **options)
    scores = EpisodeScores(schedule_of(length=length or [10] * len(task), task=task), 1, len(score), lag=0)
    scores.publish(tensor([score]), 0)
    count = len(score)
    sources = ~np.eye(count, dtype=bool) if sources is None else np.array(sources, bool)
    return EpisodeRouter(config, scores, sources)


SCORE = [[0.2, 0.6, 0.5, 0.3], [0.9, 0.1, 0.4, 0.8]]  # two tasks, four episodes
TASK = [0, 0, 1, 1]


def test_algorithm_1_takes_the_episodes_at_or_above_the_own_median():
    router = router_of(SCORE, TASK, rule="cds-hard")
    assert router.reference()[0].tolist() == pytest.approx([0.4, 0.6])
    assert router.weights(0)[0].tolist() == [[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]]


def test_the_reference_counts_an_episode_by_its_length():
    router = router_of(SCORE, TASK, rule="cds-hard", reference="mean", length=[30, 10, 10, 10])
    assert router.reference()[0].tolist() == pytest.approx([0.3, 0.6])
    assert router.weights(0)[0, 0].tolist() == [0.0, 1.0, 1.0, 1.0]


def test_the_reference_may_count_own_episodes_as_batches_hold_them():
    """Own scores 0.2 and 0.6; the second, a success, is drawn three times as often."""
    config = RouterConfig(rule="cds-hard", granularity="episode", reference="mean")
    scores = EpisodeScores(schedule_of(length=[10] * 4, task=TASK), 1, 2, lag=0)
    scores.publish(tensor([SCORE]), 0)
    router = EpisodeRouter(config, scores, ~np.eye(2, dtype=bool), own_weight=np.array([0.5, 1.5, 1.0, 1.0]))
    assert router.reference()[0].tolist() == pytest.approx([0.5, 0.6])


def test_before_it_is_time_no_episode_is_shared():
    router = router_of(SCORE, TASK, rule="cds-hard", share_after=3)
    assert router.weights(2) is None
    assert router.weights(3) is not None


def test_soft_weights_of_episodes():
    router = router_of(SCORE, TASK, rule="cds", temperature="0.1")
    expected = [sigmoid(d / 0.1) for d in (-0.2, 0.2, 0.1, -0.1)]
    assert router.weights(0)[0, 0].tolist() == pytest.approx(expected)
    own, shared = (0.2 + 0.2) / 2, (0.1 + 0.1) / 2
    assert router_of(SCORE, TASK, rule="cds").temperature()[0, 0].item() == pytest.approx((own + shared) / 2)
    signed = router_of(SCORE, TASK, rule="cds", temperature="signed", tau_low=0.01)
    delta = (0.9 - 0.6 + 0.1 - 0.6) / 2
    assert signed.temperature()[0].tolist() == pytest.approx([0.01, max(0.01, delta)])


def test_hipi_gives_an_episode_to_the_task_of_its_highest_score():
    assert router_of(SCORE, TASK, rule="hipi").weights(0)[0].tolist() == [[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]]


def test_what_is_not_scored_or_not_allowed_weighs_nothing():
    score = [[0.2, 0.6, NAN, 0.9], [NAN] * 4]  # the second task is not trained
    router = router_of(score, TASK, sources=[[0, 1], [0, 0]], rule="cds-hard")
    assert router.weights(0)[0].tolist() == [[0.0, 1.0, 0.0, 1.0], [0.0] * 4]
    assert router_of(SCORE, TASK, sources=[[0, 0], [1, 0]], rule="cds-hard").weights(0)[0, 0].tolist() == [0, 1, 0, 0]


def test_weights_are_looked_up_for_the_rows_of_a_batch_that_was_drawn_evenly():
    episodes = router_of(SCORE, TASK, rule="cds-hard")
    router = Router(episodes.config, 2, episodes=episodes)
    batch = rows([0, 0, 0, 1, 1], [0, 1, 1, 0, 0], episode=[0, 2, 3, 0, 1])
    assert router.weigh(batch, number=0).tolist() == [1.0, 1.0, 0.0, 1.0, 0.0]
    episodes.scores.publish(episodes.scores.versions[1], 5)
    episodes.scores.publish(episodes.scores.versions[1], 6)
    before = Router(episodes.config, 2, episodes=episodes)
    assert before.weigh(batch, number=0).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_rows_that_the_rule_drew_count_in_full():
    episodes = router_of(SCORE, TASK, rule="cds", sharing="sample")
    router = Router(episodes.config, 2, episodes=episodes)
    assert router.weigh(rows([0, 0, 1], [0, 1, 0], episode=[0, 3, 1]), number=0).tolist() == [1.0] * 3


def test_the_report_has_weights_of_the_whole_dataset_what_was_drawn_and_the_area_under_the_roc():
    episodes = router_of(SCORE, TASK, rule="cds-hard", sharing="sample", length=[10, 30, 10, 10])
    router = Router(episodes.config, 2, episodes=episodes)
    router.weigh(rows([0, 0, 0, 0], [0, 0, 1, 1], success=[1.0, 0.0, 1.0, 0.0]), number=0)
    accepted = np.array([[1, 1], [0, 0], [1, 0], [0, 1]], bool)
    report = router.report(np.ones((2, 2, 2), np.int64), accepted=accepted)
    assert report["weights"] == [[1.0, 0.5], [pytest.approx(10 / 40), 1.0]]  # references 0.4 and 0.6
    assert report["shared"] == [0.5, None]
    assert report["success"] == [0.5, None]
    assert report["auc"] == [1.0, 1.0]


def test_area_under_the_roc_by_hand():
    assert area_under_roc(np.array([0.5, 0.9]), np.array([0.1, 0.5, 0.7])) == pytest.approx((1.5 + 3) / 6)
    assert np.isnan(area_under_roc(np.array([0.5]), np.array([])))


def test_scores_move_with_their_episodes():
    moved = move_episodes(torch.arange(6.0).view(1, 2, 3), np.array([7, -3, 9]), np.array([-3, 4, 9, 7]))
    expected = np.array([[[1.0, NAN, 2.0, 0.0], [4.0, NAN, 5.0, 3.0]]])
    assert np.array_equal(moved.numpy(), expected, equal_nan=True)


def test_another_q_function_begins_with_no_visits():
    scores = EpisodeScores(schedule_of(per_batch=7, visits=2), 1, 1, lag=0)
    scores.add(0, torch.arange(7), torch.ones(1, 7, 1))
    scores.forget()
    scores.add(1, torch.arange(7), torch.zeros(1, 7, 1))
    assert scores.versions[1].sum() == 0


def test_a_pass_that_another_q_function_began_in_its_middle_is_no_version():
    scores = EpisodeScores(schedule_of(per_batch=2, visits=2, length=[3, 3, 3, 3]), 1, 1, lag=0)
    finished = []
    for number in range(6):
        episode = torch.from_numpy(scores.schedule.steps(number)[0])
        finished.append(scores.add(number, episode, torch.full((1, 2, 1), float(number))))
        if number == 2:
            scores.forget()
    assert finished == [False, True, False, False, False, True]  # batch 3 ends a pass whose first half was dropped
    assert not scores.versions[1].isnan().any()
    assert scores.versions[1].min() == 3.5  # batch 3 and, of the next pass, 4 or 5
