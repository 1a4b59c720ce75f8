"""QT-Opt with conservative data sharing, as one Lightning module.

Order: a step's loss and its parts, target networks, logging, checkpoints; what is common to learners that see images is
in train/image_learner.py. Shapes: `B` transitions, `K` candidate actions.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from data.batches import Batch
from data.distributed import ddp_correction
from data.episode_scores import Episodes
from data.replay import Replay
from data.scoring import scores_for
from models.acting import best_action
from models.cem import sample_uniform
from models.image_losses import bellman_loss, bellman_target, conservative_loss
from models.networks import build_network
from models.qnetwork import QNetwork, bounds
from models.scoring import ImageScorer
from models.small_network import SmallQNetwork
from sim.tasks import TASK_NAMES, TASKS
from train.callbacks.q_maps import QMaps
from train.callbacks.router_report import RouterReport
from train.diagnostics import acting_diagnostics, loss_diagnostics
from train.finite import check_weights
from train.image_bc import behaviour_loss, cloned_weight, landmark_losses
from train.image_learner import Computed, ImageLearner
from train.image_router import build_router, restore_schedule, score_for_tasks
from train.qtopt_config import QTOptConfig
from train.seeding import RandomStream

SAME_COMMAND = 0.7  # fraction of the unseen actions near the data's that keep its command


class QTOpt(ImageLearner):
    """`network` learns; `target`, its running average, gives Bellman targets and acts; `lagged` is a copy of `target`
    every `lagged_target_steps`, for the minimum; `snapshot` one every `snapshot_every`, for rules that share by it."""

    augmented = (RandomStream.NEXT_IMAGE, RandomStream.IMAGE)
    _trained: Tensor  # int64, the tasks that are trained

    def __init__(self, config: QTOptConfig, replay: Replay | None = None, episodes: Episodes | None = None) -> None:
        """`replay`: the dataset, recorded in checkpoints; it or its `episodes` are needed where episodes are scored."""
        super().__init__(config, replay)
        self.network = build_network(config.network)
        self.target = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.lagged = copy.deepcopy(self.target) if config.lagged_target_steps else None
        tasks = tuple(TASKS[name].index for name in config.tasks)
        self.register_buffer("_trained", torch.tensor(tasks), persistent=False)
        self.router = build_router(config, tasks, replay, episodes)
        self.snapshot = copy.deepcopy(self.target) if self.router.rule.snapshot else None
        self.history: dict[int, Any] = {}  # step -> mean weights by target and source task

    # ------------------------------------------------------------------ a step

    def begin(self, batch: Batch) -> Hashable:
        step, episodes, known = self.global_step, self.router.episodes, False
        phase = super().begin(batch)
        if episodes is not None:
            known = episodes.held_weights(step) is not None
            visit = torch.full_like(batch.score_episode, episodes.scores.schedule.visit_of(step))
            self._visit = self._inputs("visit", visit)
        return phase, known, self._taken, step >= self.config.share_after

    @property
    def _taken(self) -> bool:
        """Whether there is a snapshot of the Q-function."""
        return self.snapshot is not None and self.global_step >= self.config.snapshot_every

    @property
    def _scores(self) -> bool:
        """Whether episodes are scored in this step."""
        return self.router.episodes is not None and (self._taken or self.snapshot is None)

    def compute(self) -> Computed:
        config, batch = self.config, self.batch
        generator, weight = self.random.generator(RandomStream.ACTIONS), None
        self._score_episodes(batch, generator)
        if config.router.draws_candidates:
            batch, weight = self._choose(batch)
        next_image, _ = self.preprocess(batch.next_image, RandomStream.NEXT_IMAGE)
        target = self._td_target(batch, next_image, generator)
        image, corner = self.preprocess(batch.image, RandomStream.IMAGE)
        perception = None
        if config.landmark_weight:
            assert isinstance(self.network, SmallQNetwork)
            perception = self.network.perceive(image, batch.gripper)
        features = self.network.encode(image, batch.gripper) if perception is None else perception.features
        unseen = self._unseen_actions(batch.action, generator)
        candidates = torch.cat([batch.action[:, None], unseen], dim=1)
        logits = self.network.score(features, batch.gripper, candidates, batch.task_index).float()

        if weight is None:
            weight = self._route(batch, image, self.network, features.detach(), logits.detach())
        bellman, info = bellman_loss(logits[:, 0], target, weight)
        conservative, more = conservative_loss(logits[:, 1:], weight)
        loss = ddp_correction(weight) * (bellman + config.conservative_weight * conservative)
        info |= more | {"bellman": bellman.detach(), "conservative": conservative.detach()}
        losses = {"Bellman loss": bellman.detach(), "conservative loss": conservative.detach()}
        if config.behaviour_policy:
            assert isinstance(self.network, SmallQNetwork)
            cloned = weight * cloned_weight(config.cloned, batch, self.router.chooses(self.global_step))
            cloning, more = behaviour_loss(self.network, batch, features, cloned)
            loss, info, losses["cloning loss"] = loss + cloning, info | more, cloning.detach()
        if perception is not None:
            auxiliary, more = landmark_losses(batch, perception, corner, config.image_size)
            loss, info = loss + config.landmark_weight * auxiliary, info | more
            losses["landmark loss"] = auxiliary.detach()
        rows = {"target": target, "Q": logits.detach().sum(1), "weight": weight}
        seen = {"logits": logits.detach(), "weight": weight, "image": image}
        return Computed(loss=loss, info=info, rows=rows, losses=losses, batch=batch, seen=seen)

    @torch.no_grad()
    def _score_episodes(self, batch: Batch, generator: torch.Generator) -> None:
        """Score the steps that came beside the batch, by the acting network, or by the snapshot of a rule with one."""
        episodes = self.router.episodes
        if episodes is None or not self._scores:
            return
        unseen = self._unseen_actions(batch.score_action, generator)
        network = self.target if self.snapshot is None else self.snapshot
        score = score_for_tasks(self.router.rule, network, batch, unseen, self._trained)
        episodes.write(self._visit, batch.score_episode, score)

    @torch.no_grad()
    def _choose(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The rows of a batch of candidates that are learned from, by the target network's Q, and their weights."""
        config, generator = self.config, self.random.generator(RandomStream.RESAMPLING)
        image, _ = self.preprocess(batch.image, RandomStream.IMAGE)
        features = self.target.encode(image, batch.gripper)
        candidates = torch.cat([batch.action[:, None], self._unseen_actions(batch.action, generator)], dim=1)
        logits = self.target.score(features, batch.gripper, candidates, batch.task_index).float()
        weight = self._route(batch, image, self.target, features, logits)
        num_shared = round(config.per_task * config.shared_fraction)
        uniform = torch.rand(1, len(TASK_NAMES), generator=generator, device=self.device)
        index, weight = self.router.choose(batch, weight, self._trained, config.per_task, num_shared, uniform)
        return batch.select(index), weight

    @torch.no_grad()
    def _route(self, batch: Batch, image: Tensor, network: QNetwork, features: Tensor, logits: Tensor) -> Tensor:
        """Sharing weights [B] by the rule, from the Q logits [B, 1 + K] of the data's and of unseen actions, and from
        the network's features for rules that need other Q-values."""
        scores = None
        if self.router.episodes is None:
            scorer = ImageScorer(
                network=network,
                image=image,
                features=features,
                gripper=batch.gripper,
                action=batch.action,
                task_index=batch.task_index,
                tasks=self._trained,
                logits=logits,
            )
            (scores,) = scores_for([self.router.rule], scorer, self.snapshot if self._taken else None)
        learned = not self.config.router.draws_candidates
        return self.router.weigh(batch, scores, self.random.uniform, self.global_step, learned)

    @torch.no_grad()
    def _td_target(self, batch: Batch, image: Tensor, generator: torch.Generator) -> Tensor:
        """Bellman target r + gamma min(Q_target, Q_lagged)(s', a'), a' = argmax of Q_target (QT-Opt, sec. 4.2). [B]"""
        config = self.config
        features = self.target.encode(image, batch.next_gripper)
        action, value = best_action(
            self.target, features, batch.next_gripper, batch.task_index, config.acting, generator
        )
        if self.lagged is not None:
            lagged = self.lagged.encode(image, batch.next_gripper)
            logit = self.lagged.score(lagged, batch.next_gripper, action[:, None], batch.task_index)
            value = torch.minimum(value, logit[:, 0].float().sigmoid())
        return bellman_target(batch.reward, batch.done, batch.n_step, value, config.discount)

    def _unseen_actions(self, action: Tensor, generator: torch.Generator) -> Tensor:
        """Unseen actions for the conservative term [B, K, 5]: uniform, and a fraction near the data's action, where a
        flat Q would hide its imprecision."""
        config = self.config
        bound = bounds(self.device)
        count = round(config.num_unseen_actions * config.nearby_fraction)
        unseen = sample_uniform((len(action), config.num_unseen_actions), bound, generator)
        if count:
            noise = torch.randn(len(action), count, 4, device=self.device, generator=generator)
            near = action[:, None, :4] + config.nearby_std * bound * noise
            unseen[:, :count, :4] = near.clamp(-bound, bound)
            keep = torch.rand(len(action), count, device=self.device, generator=generator) < SAME_COMMAND
            unseen[:, :count, 4] = torch.where(keep, action[:, 4:5], unseen[:, :count, 4])
        return unseen

    @torch.no_grad()
    def finish(self, step: int) -> None:
        """Scores of episodes that are complete count from some batch on; target networks are copied when it is time."""
        if self._scores:
            assert self.router.episodes is not None
            self.router.episodes.scores.finish(step - 1)
        if self.lagged is not None and step % self.config.lagged_target_steps == 0:
            self.lagged.load_state_dict(self.target.state_dict())
        if self.snapshot is not None and step % self.config.snapshot_every == 0:
            self.snapshot.load_state_dict(self.target.state_dict())
            self.router.forget()

    # ------------------------------------------------------------------ logging

    def diagnostics(self, computed: Computed) -> dict[str, Tensor]:
        config, batch, seen = self.config, computed.batch, computed.seen
        generator = torch.Generator(self.device).manual_seed(self.random.seed(RandomStream.DIAGNOSTICS))
        return {
            **loss_diagnostics(batch, seen["logits"], seen["weight"]),
            **acting_diagnostics(self.target, batch, seen["image"], config.acting, config.discount, generator),
        }

    def configure_callbacks(self) -> list[Callback]:
        assert self.replay is not None
        return [QMaps(self.replay, self.config), RouterReport(self.config.q_maps_every)]

    def routing(self) -> dict[str, dict[str, Any]]:
        """The router's report (train/callbacks/router_report.py)."""
        count, replay = len(TASK_NAMES), self.replay
        steps = np.ones((2, count, count), np.int64) if replay is None else replay.steps_by_outcome(count)
        accepted = None if replay is None else replay.success
        return {"": {**self.router.report(steps, accepted=accepted), "tasks": TASK_NAMES}}

    # ------------------------------------------------------------------ checkpoints

    def sharing(self) -> dict[str, Any]:
        """The router's report and options, with the mean weights at this and earlier checkpoints."""
        report = self.routing()[""] | {"tasks": list(TASK_NAMES), "config": dataclasses.asdict(self.config.router)}
        self.history[self.global_step] = report["weights"]
        return {**report, "history": [[step, weights] for step, weights in sorted(self.history.items())]}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Move the scores of episodes to their places in a dataset that has grown."""
        self.history = dict(checkpoint["switchyard"]["sharing"].get("history", []))
        if self.router.episodes is not None and self.replay is not None:
            known = checkpoint["episodes"].numpy(), self.replay.episode_key
            restore_schedule(self.router.episodes, checkpoint["state_dict"], *known, checkpoint["global_step"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        check_weights(self.global_step, lagged=self.lagged, snapshot=self.snapshot)
