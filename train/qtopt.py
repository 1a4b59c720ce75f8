"""QT-Opt with conservative data sharing, as one Lightning module.

Order: losses, total loss, update of the targets, configuration. Shapes: `B` transitions, `K` candidate actions.
Randomness of a step comes from (seed, process, step) alone, so a resumed run repeats it exactly.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from data.batches import Batch
from data.distributed import joint_share
from data.replay import Replay
from data.router import Router, move_scores
from data.scoring import scores_for
from models.acting import best_action, crop, crop_corner, in_crop
from models.augment import photometric
from models.cem import sample_uniform
from models.checkpoint import FORMAT
from models.losses import (
    bellman_loss,
    bellman_target,
    calibration_error,
    cloning_loss,
    conservative_loss,
    landmark_loss,
    point_loss,
)
from models.networks import build_network
from models.qnetwork import QNetwork, bounds
from models.scoring import ImageScorer
from models.small_network import Sight, SmallQNetwork
from sim.state import SIM_VERSION
from sim.tasks import TASK_NAMES, TASKS
from train.finite import FiniteCheck, check_weights
from train.qtopt_config import QTOptConfig
from train.seeding import derive_seed

LAST_RATE = 0.02  # of the learning rate, where it falls
SAME_COMMAND = 0.7  # part of the unseen actions near the data's that keep its command


class Chance(enum.IntEnum):
    """The uses of chance in a step."""

    ACTIONS = 0
    NEXT_VIEW = 1
    VIEW = 2
    JUDGING = 3
    ROUTING = 4
    CHOOSING = 5


class QTOpt(lightning.LightningModule):
    """`network` learns; `target` is its running average, which gives targets and acts; `lagged` trails the target.

    `snapshot` is the target of a while ago, by which a rule that asks for one shares."""

    def __init__(self, config: QTOptConfig, replay: Replay | None = None) -> None:
        """`replay`: the dataset, of which checkpoints tell; a router that weighs episodes has a score of each."""
        super().__init__()
        self.config, self.replay = config, replay
        self.network = build_network(config.network)
        self.target = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.lagged = copy.deepcopy(self.target) if config.lagged_target_steps else None
        self.router = Router(config.router, len(TASK_NAMES), num_episodes=replay.num_episodes if replay else 0)
        self.snapshot = copy.deepcopy(self.target) if self.router.rule.snapshot else None
        self._tasks = tuple(TASKS[name].index for name in config.tasks)
        self.history: dict[int, Any] = {}  # step -> mean weights by target and source
        self.finite = FiniteCheck("tasks", TASK_NAMES, config.log_every)

    # ------------------------------------------------------------------ losses

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        config = self.config
        generator = torch.Generator(self.device).manual_seed(self.step_seed(Chance.ACTIONS))
        weight = None
        if config.oversample > 1:
            batch, weight = self._resample(batch)
        next_image, _ = self.view(batch.next_image, Chance.NEXT_VIEW)
        target = self._target(batch, next_image, generator)
        image, corner = self.view(batch.image, Chance.VIEW)
        sight = None
        if config.landmark_weight:
            assert isinstance(self.network, SmallQNetwork)
            sight = self.network.look(image, batch.gripper)
        features = sight.features if sight is not None else self.network.encode(image, batch.gripper)
        unseen = self._unseen_actions(batch.action, generator)
        candidates = torch.cat([batch.action[:, None], unseen], dim=1)
        logits = self.network.score(features, batch.gripper, candidates, batch.task_index).float()

        if weight is None:
            weight = self._route(batch, image, self.network, features.detach(), logits.detach())
        bellman, info = bellman_loss(logits[:, 0], target, weight)
        conservative, more = conservative_loss(logits[:, 1:], weight)
        loss = joint_share(weight) * (bellman + config.conservative_weight * conservative)
        info |= more | {"bellman": bellman.detach(), "conservative": conservative.detach()}
        rows = {"target": target, "Q": logits.sum(1), "weight": weight}
        losses = {"Bellman loss": bellman, "conservative loss": conservative}
        if config.prior:
            cloning, more = self.cloning(batch, features, weight * batch.success)
            loss, info, losses["cloning loss"] = loss + cloning, info | more, cloning
        if sight is not None:
            telling, more = self.telling(batch, sight, corner)
            loss, info, losses["landmark loss"] = loss + config.landmark_weight * telling, info | more, telling
        self.finite.add(self.global_step + 1, rows, batch.task_index, losses)
        if self.logs_now:
            self._log(batch, logits.detach(), weight, {"loss": loss.detach(), **info, **self._judge(batch, image)})
        return loss

    @torch.no_grad()
    def _resample(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The own transitions and one of every `oversample` shared ones, and the weights, by the acting Q-function."""
        generator = torch.Generator(self.device).manual_seed(self.step_seed(Chance.CHOOSING))
        image, _ = self.view(batch.image, Chance.VIEW)
        features = self.target.encode(image, batch.gripper)
        candidates = torch.cat([batch.action[:, None], self._unseen_actions(batch.action, generator)], dim=1)
        logits = self.target.score(features, batch.gripper, candidates, batch.task_index).float()
        weight = self._route(batch, image, self.target, features, logits)
        index, weight = self.router.resample(batch, weight, self.config.oversample, generator)
        return batch.select(index), weight

    @torch.no_grad()
    def _route(self, batch: Batch, image: Tensor, network: QNetwork, features: Tensor, logits: Tensor) -> Tensor:
        """The weights [B], by what the network makes of the image and from the logits [B, 1 + K] of the data's and of
        unseen actions, where these will do."""
        chance = torch.Generator().manual_seed(derive_seed(self.config.seed, self.global_step, Chance.ROUTING))
        scorer = ImageScorer(
            network=network,
            image=image,
            features=features,
            gripper=batch.gripper,
            action=batch.action,
            task_index=batch.task_index,
            tasks=self._tasks,
            logits=logits,
        )
        taken = self.global_step >= self.config.refresh_steps
        (scores,) = scores_for([self.router.rule], scorer, self.snapshot if taken else None)
        return self.router.weigh(batch, scores, chance)

    def step_seed(self, use: Chance) -> int:
        """A number for one of a step's uses of chance, from (seed, process, step) alone."""
        return derive_seed(self.config.seed, self.global_rank, self.global_step, use)

    def view(self, frames: Tensor, use: Chance) -> tuple[Tensor, Tensor]:
        """What the network sees of frames uint8 [B, 3, H, H]: float [B, 3, size, size], and its corner there [B, 2]."""
        config, seed = self.config, self.step_seed(use)
        cutter = torch.Generator().manual_seed(seed) if config.random_crop else None
        corner = crop_corner(frames, config.image_size, cutter)
        image = crop(frames, config.image_size, corner)
        return photometric(image, seed) if config.photometric else image, corner

    def cloning(self, batch: Batch, features: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`weight` [B]: 0 but for steps of successful episodes."""
        assert isinstance(self.network, SmallQNetwork)
        mean, command = self.network.propose(features, batch.gripper, batch.task_index)
        loss = cloning_loss(mean.float(), command.float(), batch.action, bounds(self.device), weight)
        loss = joint_share(weight) * loss
        return loss, {"cloning": loss.detach()}

    def telling(self, batch: Batch, sight: Sight, corner: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Where things are: in the picture, and in space."""
        point = in_crop(batch.point, batch.image, corner.to(self.device), self.config.image_size)
        visible = batch.point_present & (point > 0).all(-1) & (point < 1).all(-1)
        pointing = point_loss(sight.attention.float(), point, visible)
        telling = landmark_loss(sight.landmark.float(), batch.landmark)
        return pointing + telling, {"point": pointing.detach(), "landmark": telling.detach()}

    @torch.no_grad()
    def _target(self, batch: Batch, image: Tensor, generator: torch.Generator) -> Tensor:
        """r + gamma min over the targets of Q(s', a'), a' the best for the first target (QT-Opt, sec. 4.2). [B]"""
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
        """[B, K, 5]: uniform, and for a part near the data's action, where a flat Q would hide its imprecision."""
        config = self.config
        bound = bounds(self.device)
        count = round(config.unseen_actions * config.nearby_share)
        unseen = sample_uniform((len(action), config.unseen_actions), bound, generator)
        if count:
            noise = torch.randn(len(action), count, 4, device=self.device, generator=generator)
            near = action[:, None, :4] + config.nearby_std * bound * noise
            unseen[:, :count, :4] = near.clamp(-bound, bound)
            keep = torch.rand(len(action), count, device=self.device, generator=generator) < SAME_COMMAND
            unseen[:, :count, 4] = torch.where(keep, action[:, 4:5], unseen[:, :count, 4])
        return unseen

    # ------------------------------------------------------------------ targets

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step, then the targets: here, because checkpoints are written before `on_train_batch_end` is called."""
        super().optimizer_step(*args, **kwargs)
        self._update_targets(self.global_step + 1)  # Lightning counts the step when this returns

    @torch.no_grad()
    def _update_targets(self, step: int) -> None:
        mine: list[Tensor] = list(self.target.parameters())
        new: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(mine, new, 1 - self.config.target_decay)
        for old, current in zip(self.target.buffers(), self.network.buffers(), strict=True):
            old.copy_(current)
        if self.lagged is not None and step % self.config.lagged_target_steps == 0:
            self.lagged.load_state_dict(self.target.state_dict())
        if self.snapshot is not None and step % self.config.refresh_steps == 0:
            self.snapshot.load_state_dict(self.target.state_dict())
            self.router.forget()

    def configure_optimizers(self) -> Any:
        config = self.config
        weights = [p for p in self.network.parameters() if p.requires_grad]
        adam = torch.optim.Adam(weights, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
        end = LAST_RATE if config.learning_rate_decay else 1.0
        schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, end, total_iters=config.steps)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ------------------------------------------------------------------ diagnostics

    @property
    def logs_now(self) -> bool:
        """In the step whose values Lightning writes."""
        return (self.global_step + 1) % self.config.log_every == 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.logs_now:
            norm = torch.nn.utils.get_total_norm(p.grad for p in self.network.parameters() if p.grad is not None)
            self.log("train/gradient_norm", norm)

    @torch.no_grad()
    def _judge(self, batch: Batch, image: Tensor) -> dict[str, Tensor]:
        """What the acting Q says of the own transitions: of their action, of the best one, and beside what came of it,
        the discounted success of the data's episode."""
        own = ~batch.is_shared
        if not own.any():
            return {}
        generator = torch.Generator(self.device).manual_seed(self.step_seed(Chance.JUDGING))
        features = self.target.encode(image, batch.gripper)
        logits = self.target.score(features, batch.gripper, batch.action[:, None], batch.task_index)
        _, best = best_action(self.target, features, batch.gripper, batch.task_index, self.config.acting, generator)
        q, best = logits[own, 0].float().sigmoid(), best[own]
        outcome = batch.success[own] * self.config.discount ** (batch.steps_to_go[own] - 1)
        gap, error = (best - q).mean(), calibration_error(q, outcome)
        return {"q_acting": q.mean(), "q_best": best.mean(), "q_gap": gap, "calibration_error": error}

    def _log(self, batch: Batch, logits: Tensor, weight: Tensor, values: dict[str, Tensor]) -> None:
        q = logits[:, 0].sigmoid()
        won, own = batch.success > 0, ~batch.is_shared
        for name, group in (("success", won & own), ("failure", ~won & own)):
            if group.any():
                values[f"q_{name}"] = q[group].mean()
        if (won & own).any() and logits.shape[1] > 1:
            values["data_rank"] = (logits[:, :1] > logits[:, 1:]).float().mean(1)[won & own].mean()
        if batch.is_shared.any():
            values["shared_weight"] = weight[batch.is_shared].mean()
        self.log_values(values)
        for shown, key in (("loss", "loss"), ("Q_won", "q_success"), ("Q_lost", "q_failure")):
            if key in values:
                self.log(shown, values[key], prog_bar=True, logger=False)

    def log_values(self, values: dict[str, Tensor]) -> None:
        """To TensorBoard, by the number of steps that are done, as everything there."""
        self.log_dict({f"train/{key}": value for key, value in values.items()})
        self.log("step", float(self.global_step + 1))

    @property
    def done_steps(self) -> int:
        return self.global_step

    def routing(self) -> dict[str, dict[str, Any]]:
        """The router's report, as train.callbacks.router_report asks for it."""
        count = len(TASK_NAMES)
        steps = np.ones((2, count, count), np.int64) if self.replay is None else self.replay.steps_by_outcome(count)
        return {"": {**self.router.report(steps), "tasks": TASK_NAMES}}

    def _sharing(self) -> dict[str, Any]:
        """The router's report, with the options it comes from, and the mean weights at earlier checkpoints."""
        about = self.routing()[""] | {"tasks": list(TASK_NAMES), "config": dataclasses.asdict(self.config.router)}
        self.history[self.global_step] = about["weights"]
        return {**about, "history": [[step, weights] for step, weights in sorted(self.history.items())]}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Scores of episodes go with them to their numbers in a dataset that has grown."""
        self.history = dict(checkpoint["switchyard"]["sharing"].get("history", []))
        weights, key = checkpoint["state_dict"], "router.episode_score"
        if self.replay and "episodes" in checkpoint and weights[key].shape[-1]:
            weights[key] = move_scores(weights[key], checkpoint["episodes"].numpy(), self.replay.episode_key)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What `Policy.load` needs to act, and what another run needs to refuse a mismatch: plain values only."""
        self.finite.check()
        networks = {"network": self.network, "target": self.target, "lagged": self.lagged, "snapshot": self.snapshot}
        check_weights(self.global_step, **networks)
        checkpoint["callbacks"] = {}  # nothing a run goes on from, but the path of its folder
        if self.replay:
            checkpoint["episodes"] = torch.from_numpy(self.replay.episode_key)
        checkpoint["switchyard"] = {
            "format": FORMAT,
            "network": dataclasses.asdict(self.config.network),
            "acting": dataclasses.asdict(self.config.acting),
            "landmark_weight": self.config.landmark_weight,
            **(self.replay.env_options if self.replay else {}),
            "sim_version": SIM_VERSION,
            "tasks": list(TASK_NAMES),
            "trained_tasks": list(self.config.tasks),
            "sharing": self._sharing(),
            "steps": self.global_step,
            "precision": self.trainer.precision,
        }
