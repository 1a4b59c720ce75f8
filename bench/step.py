"""One training step without trainer and loader, timed and counted in the process that calls `measure`.

The step is `train.qtopt.QTOpt`'s own: crop, target by CEM, losses, backward, Adam, running average.
"""

from __future__ import annotations

import resource
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from data.batches import Batch
from models.cem import sample_uniform
from models.networks import bounds
from sim.landmarks import LANDMARK_SIZE, LANDMARKS, POINTS
from sim.tasks import TASK_NAMES
from sim.views import frame_size
from train.config import TrainConfig
from train.pace import ceiling_flops_per_s
from train.qtopt import QTOpt

NUM_THREADS = 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: a training configuration, its precision (32-true or bf16-mixed) and how often the step is timed."""

    name: str
    config: TrainConfig
    precision: str
    num_steps: int
    target_steps_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    step_s: float
    flops_per_step: int
    ceiling_flops_per_s: float
    peak_gib: float
    batch: int


class Step(QTOpt):
    """The module without a trainer: it counts its own steps and logs nowhere."""

    steps_done = 0

    @property
    def global_step(self) -> int:
        return self.steps_done

    def log(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        pass


def measure(case: Case) -> Measurement:
    torch.set_num_threads(NUM_THREADS)
    torch.manual_seed(0)
    kind = torch.bfloat16 if case.precision == "bf16-mixed" else torch.float32
    module = Step(case.config)
    optimizer = module.configure_optimizers()["optimizer"]
    batch = synthetic_batch(case.config, torch.Generator().manual_seed(0))
    before = ceiling_flops_per_s.__wrapped__(kind, "cpu")
    with FlopCounterMode(display=False) as counter:
        _step(module, optimizer, batch, case.precision)  # the warm-up too
    times_s = []
    for _ in range(case.num_steps):
        begin = time.perf_counter()
        _step(module, optimizer, batch, case.precision)
        times_s.append(time.perf_counter() - begin)
    return Measurement(
        step_s=statistics.median(times_s),
        flops_per_step=counter.get_total_flops(),
        ceiling_flops_per_s=max(before, ceiling_flops_per_s.__wrapped__(kind, "cpu")),
        peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        batch=len(batch),
    )


def _step(module: Step, optimizer: torch.optim.Optimizer, batch: Batch, precision: str) -> None:
    """What Lightning does in one step of automatic optimisation."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = module.training_step(batch, module.steps_done)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    module.steps_done += 1
    module._update_targets(module.steps_done)


def synthetic_batch(config: TrainConfig, generator: torch.Generator) -> Batch:
    """Random transitions as the loader makes them: grouped by task, a part shared, half of the own ones successful."""
    per_task = max(1, round(config.batch_size / len(config.tasks)))
    size = per_task * len(config.tasks)
    place = torch.arange(size) % per_task
    shared = place >= per_task - round(per_task * config.shared_part)
    task = torch.arange(len(config.tasks)).repeat_interleave(per_task)
    side_px = frame_size(config.image_size)
    pictures = torch.randint(256, (2, size, 3, side_px, side_px), dtype=torch.uint8, generator=generator)
    success = (place % 2 == 0).float()
    done = (torch.rand(size, generator=generator) < 0.08).float()
    gripper = torch.rand(2, size, 2, generator=generator)
    return Batch(
        image=pictures[0],
        next_image=pictures[1],
        gripper=gripper[0],
        next_gripper=gripper[1],
        action=sample_uniform((size,), bounds(torch.device("cpu")), generator),
        reward=done * success,
        done=done,
        span=torch.ones(size),
        left=torch.ones(size),
        success=success,
        landmark=torch.randn(size, LANDMARKS, LANDMARK_SIZE, generator=generator),
        landmark_present=torch.ones(size, LANDMARKS, dtype=torch.bool),
        point=torch.rand(size, POINTS, 2, generator=generator),
        point_present=torch.ones(size, POINTS, dtype=torch.bool),
        task_index=task,
        source_task_index=torch.where(shared, (task + 1) % len(TASK_NAMES), task),
        is_shared=shared,
    )
