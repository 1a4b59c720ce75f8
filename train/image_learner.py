"""What learners that see images have in common, as a Lightning module: a step, its optimiser, and what is logged.

A step is: decisions on the host (`begin`), one computation on the device (`compute`), and what follows on the host
(`finish`). With one GPU the computation, the gradient, the optimiser's step and the running average are captured as a
CUDA graph (models/captured.py); else Lightning does them one by one. Shapes: `B` transitions.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import lightning
import torch
from torch import Tensor

from data.batches import Batch
from data.replay import Replay
from models.captured import Captured, StaticInputs
from models.qnetwork import QNetwork
from models.updates import update_average
from sim.tasks import TASK_NAMES
from train.finite import FiniteCheck, check_weights
from train.metadata import checkpoint_metadata
from train.optimizer import configure_adam
from train.qtopt_config import QTOptConfig
from train.seeding import RandomStream
from train.step_random import StepRandom


@dataclass(frozen=True, kw_only=True)
class Computed:
    """A step's `loss` [], values [] to log, what must be finite, in causal order: `rows` [B] and `losses` [], the
    `batch` that was learned from, and what was `seen` of it, for diagnostics."""

    loss: Tensor
    info: dict[str, Tensor]
    rows: dict[str, Tensor]
    losses: dict[str, Tensor]
    batch: Batch
    seen: dict[str, Tensor] = field(default_factory=dict)


class ImageLearner(lightning.LightningModule, abc.ABC):
    """`network` learns; `target`, its running average, acts."""

    network: QNetwork
    target: QNetwork
    batch: Batch  # of the step under way
    last_loss: Tensor  # []
    augmented: tuple[RandomStream, ...] = (RandomStream.IMAGE,)  # images that a step changes

    def __init__(self, config: QTOptConfig, replay: Replay | None) -> None:
        super().__init__()
        self.config, self.replay = config, replay
        self.finite = FiniteCheck("tasks", TASK_NAMES, config.log_every)
        self._captured: Captured[Computed] | None = None
        self._random: StepRandom | None = None

    # ------------------------------------------------------------------ a step

    def training_step(self, batch: Batch, batch_index: int) -> Tensor | None:
        phase = self.begin(batch)
        computed = self.compute() if self._captured is None else self._captured(phase)
        self.last_loss = computed.loss.detach()
        self.finite.add(self.global_step + 1, computed.rows, computed.batch.task_index, computed.losses)
        if self.logs_now:
            self._log({"loss": computed.loss.detach(), **computed.info, **self.diagnostics(computed)})
        return computed.loss if self._captured is None else None  # of None Lightning takes no gradient

    @property
    def is_captured(self) -> bool:
        """Whether steps are replayed."""
        return self._captured is not None and self._captured.recorded

    def begin(self, batch: Batch) -> Hashable:
        """What is decided on the host before a step on this batch. Steps with the same answer compute the same."""
        self.random.begin(self.global_step, batch, self.augmented)
        if self._captured is not None:
            names = (f.name for f in fields(batch) if not f.name.startswith("encoded"))
            batch = replace(batch, **{name: self._inputs(name, getattr(batch, name)) for name in names})
        self.batch = batch
        return ()

    @abc.abstractmethod
    def compute(self) -> Computed:
        """The losses of `batch`. It reads no number from the device and copies none to it."""

    def finish(self, step: int) -> None:
        """What is done on the host after the step that makes `step` of them."""

    def diagnostics(self, computed: Computed) -> dict[str, Tensor]:
        """Further values to log."""
        return {}

    @property
    def random(self) -> StepRandom:
        if self._random is None or self._random.device != self.device:
            return self._begin_random(static=False)
        return self._random

    def _begin_random(self, static: bool) -> StepRandom:
        self._inputs = StaticInputs(self.device, static)
        self._random = StepRandom(self.config, self.global_rank, self.device, self._inputs)
        return self._random

    def preprocess(self, frames: Tensor, stream: RandomStream) -> tuple[Tensor, Tensor]:
        """Crop and augment frames uint8 [B, 3, H, H] of the batch, or its first: images float [B, 3, size, size],
        corners of the crops [B, 2]."""
        augmentation = self.random.augmentation(stream, len(frames))
        return augmentation.apply(frames, self.config.image_size), augmentation.corner

    # ------------------------------------------------------------------ optimiser

    def on_fit_start(self) -> None:
        if self.device.type == "cuda" and self.trainer.world_size == 1:
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, torch.optim.Optimizer)
            self.capture(optimizer)

    def capture(self, optimizer: torch.optim.Optimizer, **options: Any) -> None:
        """Capture steps from now on, with the optimiser's. `options` of Captured."""
        random = self._begin_random(static=True)

        def whole_step() -> Computed:
            computed = self.compute()
            with torch.autocast(self.device.type, enabled=False):
                optimizer.zero_grad()
                computed.loss.backward()  # type: ignore[no-untyped-call]
                computed.info["gradient_norm"] = self._gradient_norm()
                optimizer.step()
            self.average()
            return replace(computed, loss=computed.loss.detach())

        self._captured = Captured(whole_step, random, [optimizer], **options)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None, **more: Any
    ) -> None:
        """The step, then the running average: here, because checkpoints are written before `on_train_batch_end`."""
        if self._captured is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure, **more)
            self.average()
        else:
            optimizer_closure()  # the whole step
        self.finish(self.global_step + 1)  # Lightning counts the step when this returns

    def average(self) -> None:
        """The running average, after the optimiser's step."""
        update_average(self.target, self.network, self.config.target_update_rate)

    def configure_optimizers(self) -> Any:
        return configure_adam((p for p in self.network.parameters() if p.requires_grad), self.config)

    # ------------------------------------------------------------------ checkpoints

    @abc.abstractmethod
    def sharing(self) -> dict[str, Any]:
        """What a checkpoint tells of data sharing: the rule, tasks, and mean weights by target and source."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.finite.check()
        check_weights(self.global_step, network=self.network, target=self.target)
        checkpoint["callbacks"] = {}  # nothing to resume from, and the run's path
        if self.replay:
            checkpoint["episodes"] = torch.from_numpy(self.replay.episode_key)
        precision = str(self.trainer.precision)
        metadata = checkpoint_metadata(self.config, self.replay, self.sharing(), self.global_step, precision)
        checkpoint["switchyard"] = metadata

    # ------------------------------------------------------------------ logging

    @property
    def logs_now(self) -> bool:
        """Whether Lightning writes the values of this step."""
        return (self.global_step + 1) % self.config.log_every == 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.logs_now:
            self.log("train/gradient_norm", self._gradient_norm())

    def _gradient_norm(self) -> Tensor:
        return torch.nn.utils.get_total_norm(p.grad for p in self.network.parameters() if p.grad is not None)

    def _log(self, values: dict[str, Tensor]) -> None:
        """Log to TensorBoard, at the number of finished steps, and to the progress bar."""
        self.log_dict({f"train/{key}": value for key, value in values.items()})
        self.log("step", float(self.global_step + 1))
        for name, key in (("loss", "loss"), ("Q_success", "q_success"), ("Q_failure", "q_failure")):
            if key in values:
                self.log(name, values[key], prog_bar=True, logger=False)

    @property
    def done_steps(self) -> int:
        return self.global_step
