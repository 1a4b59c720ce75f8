"""`python -m eval.perception --checkpoint runs/x/last.ckpt --data datasets/x`: what a small network makes of frames.

Of the task's object, or fixture, within reach: how far the network's landmark lies from where it is, in the plane. Of
the steps of successes: how much of the variance of the motion the clone explains (R2), and how often its likeliest
command is the data's. Beside the training data, give it others (`python -m data collect --seed 1`): the difference is
what was learned by heart.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from data.batches import Batch, Sampler, SamplerConfig
from data.replay import Replay
from data.sharing import RULES
from eval.policy import CEMPolicy
from models.acting import crop
from models.checkpoint import CheckpointError
from models.qnetwork import bounds
from models.small_network import SmallQNetwork
from sim.landmarks import OFFSET_UNIT_M, OWN_LANDMARK
from sim.options import Parser, add_options, check_least, check_seed, from_options, option, run_command
from sim.tasks import TASK_NAMES

WITHIN_M = 0.12  # of the gripper
BATCH = 50  # of each task


@dataclass(frozen=True, kw_only=True)
class PerceptionConfig:
    """Every option of `python -m eval.perception`."""

    checkpoint: str = field(metadata={"help": "of a small network with a clone"})
    data: str = field(metadata={"help": "dataset whose frames it sees"})
    batches: int = option(8, f"of {BATCH} steps of each task")
    seed: int = option(0, "of the steps")

    def __post_init__(self) -> None:
        check_least(self, 1, "batches")
        check_seed(self, "seed")


@dataclass(frozen=True, kw_only=True)
class Perception:
    """Of one task; what cannot be said of it is nan."""

    task: str
    median_cm: float
    worst_tenth_cm: float
    r2: tuple[float, ...]  # of x, y, z, yaw
    command: float


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.perception", description=__doc__)
    add_options(parser, PerceptionConfig)
    options = vars(parser.parse_args(arguments))
    return run_command(lambda: print_table(perceive(from_options(PerceptionConfig, options))))


def perceive(config: PerceptionConfig) -> list[Perception]:
    """One row a task of the dataset that the network was trained for, then the mean of all rows."""
    policy, replay = CEMPolicy.load(config.checkpoint), Replay(config.data)
    network = policy.network
    if not isinstance(network, SmallQNetwork) or not network.config.prior:
        raise CheckpointError(f"{config.checkpoint}: no small network with a clone")
    replay.require(network.config.image_size, policy.about["renderer"])
    held = set(replay.episode_task.tolist())
    tasks = tuple(k for k, name in enumerate(TASK_NAMES) if name in policy.about["trained_tasks"] and k in held)
    sampler = Sampler(replay, tasks, RULES["none"], SamplerConfig(per_task=BATCH))
    rng = np.random.default_rng(config.seed)
    parts = [_look(network, sampler.load(*sampler.draw(rng))) for _ in range(config.batches)]
    table = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    rows = []
    for task in tasks:
        own = table["task"] == task
        rows.append(_row(TASK_NAMES[task], {key: column[own] for key, column in table.items()}))
    values = [[row.median_cm, row.worst_tenth_cm, *row.r2, row.command] for row in rows]
    median, tenth, *r2, command = np.nanmean(values, axis=0).tolist()
    return [*rows, Perception(task="mean", median_cm=median, worst_tenth_cm=tenth, r2=tuple(r2), command=command)]


@torch.no_grad()
def _look(network: SmallQNetwork, batch: Batch) -> dict[str, Tensor]:
    """Columns of numbers, a row a step."""
    seen = network.look(crop(batch.image, network.config.image_size), batch.gripper)
    mean, command = network.propose(seen.features, batch.gripper, batch.task_index)
    own = torch.tensor(OWN_LANDMARK)[batch.task_index]
    row = torch.arange(len(batch))
    true, found = batch.landmark[row, own, :3], seen.landmark[row, own, :3]
    return {
        "task": batch.task_index,
        "error_cm": 100 * OFFSET_UNIT_M * (found - true)[:, :2].norm(dim=1),
        "near": batch.point_present[row, own] & (true.norm(dim=1) * OFFSET_UNIT_M < WITHIN_M),
        "won": batch.success > 0,
        "motion": batch.action[:, :4] / bounds(batch.action.device),
        "cloned": mean,
        "right": (command.argmax(-1) == batch.action[:, 4].long()).float(),
    }


def _row(task: str, of: dict[str, Tensor]) -> Perception:
    error, won = of["error_cm"][of["near"]], of["won"]
    motion, cloned = of["motion"][won], of["cloned"][won]
    r2 = 1 - (motion - cloned).square().mean(0) / motion.var(0, correction=0).clamp(min=1e-9)
    median, tenth = (float(error.quantile(q)) if len(error) else float("nan") for q in (0.5, 0.9))
    return Perception(
        task=task, median_cm=median, worst_tenth_cm=tenth, r2=tuple(r2.tolist()), command=float(of["right"][won].mean())
    )


def print_table(rows: list[Perception]) -> None:
    print(f"{'task':<22}{'median':>9}{'90%':>9}{'R2 of x':>10}{'y':>7}{'z':>7}{'yaw':>7}{'command':>10}")
    for row in rows:
        motion = "".join(f"{value:>7.2f}" for value in row.r2)
        print(f"{row.task:<22}{row.median_cm:>6.1f} cm{row.worst_tenth_cm:>6.1f} cm{'':>3}{motion}{row.command:>10.1%}")


if __name__ == "__main__":
    sys.exit(main())
