"""The router of a training on images, and scores of whole episodes for it.

Shapes: `P` scored steps, `N` tasks, `K` episodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.batches import Batch
from data.episode_router import EpisodeRouter
from data.episode_scores import Episodes, EpisodeScores, ScoringSchedule, move_episodes
from data.loader import DRAWN_AHEAD
from data.replay import Replay
from data.router import Router
from data.sampler import drawn_as_often
from data.sharing import RULES, Scores, SharingRule
from models.images import crop
from models.qnetwork import QNetwork
from models.scoring import q_of_tasks, q_policy_of_tasks
from sim.tasks import SKILLS, TASK_NAMES
from train.qtopt_config import QTOptConfig

SCORES = "router.episodes.scores."  # in a checkpoint


def build_router(
    config: QTOptConfig, tasks: tuple[int, ...], replay: Replay | None, listed: Episodes | None = None
) -> Router:
    """The router of a run on a dataset, or on `listed` episodes; one that scores no episodes needs neither."""
    episodes = None
    if config.router.by_episode:
        if listed is None:
            assert replay is not None, "scores of episodes need a dataset"
            listed = Episodes(task=replay.episode_task, length=replay.episode_length)
        count = config.scored_steps * config.devices * config.nodes
        schedule = ScoringSchedule(listed, count, config.score_visits, config.seed)
        scores = EpisodeScores(schedule, 1, len(TASK_NAMES), DRAWN_AHEAD)
        own_weight = None
        if replay is not None and config.reference_over == "batches":
            often = drawn_as_often(replay, config.success_fraction)
            own_weight = often[replay.episode_task, replay.own_success.astype(int)]
        episodes = EpisodeRouter(config.router, scores, RULES[config.rule].other_sources(SKILLS, tasks), own_weight)
    weight = None
    if replay is not None and config.reference_over == "data":
        often = drawn_as_often(replay, config.success_fraction)
        weight = np.divide(1.0, often, out=np.zeros_like(often), where=often > 0)
    return Router(config.router, len(TASK_NAMES), episodes=episodes, outcome_weight=weight)


@torch.no_grad()
def score_for_tasks(rule: SharingRule, network: QNetwork, batch: Batch, unseen: Tensor, tasks: Tensor) -> Tensor:
    """The rule's scores [1, P, N] of the steps that came beside a batch for every task, NaN for those not among `tasks`
    (int64). `unseen` actions [P, K, 5] estimate the policy's Q."""
    image = crop(batch.score_image, network.config.image_size).to(batch.score_gripper.dtype)
    features = network.encode(image, batch.score_gripper)
    q = q_of_tasks(network, features, batch.score_gripper, batch.score_action, tasks)
    q_policy = None
    if rule.needs == "q_policy":
        q_policy = q_policy_of_tasks(network, features, batch.score_gripper, unseen, tasks)
    assert rule.score is not None
    return rule.score(Scores(q=q, q_policy=q_policy)).masked_fill(q.isinf(), torch.nan)[None]


def restore_schedule(
    episodes: EpisodeRouter,
    weights: dict[str, Any],
    known: NDArray[np.int64],
    now: NDArray[np.int64],
    done_steps: int,
) -> None:
    """Prepare a checkpoint's `weights` for episodes with keys `now` instead of `known`: scores move with their
    episodes, and where there are more, which makes passes longer, a pass begins anew."""
    if not np.array_equal(known, now):
        for name in ("visits", "versions"):
            weights[SCORES + name] = move_episodes(weights[SCORES + name], known, now)
        if len(now) > len(known):
            weights[SCORES + "start"] = torch.tensor(done_steps)
    episodes.scores.schedule.start = int(weights[SCORES + "start"])
