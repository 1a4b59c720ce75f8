"""`python -m eval.perception --checkpoint runs/x/last.ckpt --data datasets/x`: perception error and memorisation.

For the task's object or fixture within reach: the error of the predicted landmark, in the table plane, and how often
another one is nearer to the prediction: a mistaken identity, not an imprecise position. For all objects: the accuracy
of the predicted presence (threshold 0.5; none of checkpoints before format 5). For steps of successes: R2 of the
behaviour policy's motion, and the accuracy of its command. Run it on the training data and on unseen data
(`python -m data collect --seed 1`): the gap is memorisation.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from data.batches import Batch
from data.replay import Replay
from data.sampler import Drawn, Sampler, SamplerConfig
from data.sharing import RULES
from eval.policy import CEMPolicy
from models.checkpoint import CheckpointError
from models.images import crop
from models.qnetwork import bounds
from models.small_network import SmallQNetwork
from sim.landmarks import OFFSET_UNIT_M, OWN_LANDMARK, PRESENCE
from sim.options import Parser, add_options, check_least, check_seed, from_options, option, run_command
from sim.state import O
from sim.tasks import TASK_NAMES

WITHIN_M = 0.12  # distance from the gripper that counts as within reach
BATCH = 50  # steps per task


@dataclass(frozen=True, kw_only=True)
class PerceptionConfig:
    """Every option of `python -m eval.perception`."""

    checkpoint: str = field(metadata={"help": "of a small network with a behaviour policy"})
    data: str = field(metadata={"help": "dataset to measure on"})
    batches: int = option(8, f"number of batches of {BATCH} steps per task")
    seed: int = option(0, "of the sampled steps")

    def __post_init__(self) -> None:
        check_least(self, 1, "batches")
        check_seed(self, "seed")


@dataclass(frozen=True, kw_only=True)
class PerceptionMetrics:
    """Perception metrics of one task; NaN where undefined."""

    task: str
    median_cm: float
    p90_cm: float
    other_nearer: float  # fraction of predictions to which another object, or fixture, is nearer
    r2: tuple[float, ...]  # of x, y, z, yaw
    command_accuracy: float
    presence_accuracy: float  # NaN for a network without presence


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.perception", description=__doc__)
    add_options(parser, PerceptionConfig)
    options = vars(parser.parse_args(arguments))
    return run_command(lambda: print_table(measure(from_options(PerceptionConfig, options))))


def measure(config: PerceptionConfig) -> list[PerceptionMetrics]:
    """Metrics of each task of the dataset that the network was trained for, then their mean."""
    policy, replay = CEMPolicy.load(config.checkpoint), Replay(config.data)
    network = policy.network
    if not isinstance(network, SmallQNetwork) or not network.config.behaviour_policy:
        raise CheckpointError(f"{config.checkpoint}: no small network with a behaviour policy")
    replay.require(network.config.image_size, policy.metadata["renderer"])
    held = set(replay.episode_task.tolist())
    tasks = tuple(k for k, name in enumerate(TASK_NAMES) if name in policy.metadata["trained_tasks"] and k in held)
    sampler = Sampler(replay, tasks, RULES["none"], SamplerConfig(per_task=BATCH))
    rng = np.random.default_rng(config.seed)
    parts = [_measure(network, sampler.load(Drawn(*sampler.draw(rng)))) for _ in range(config.batches)]
    table = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    rows = []
    for task in tasks:
        own = table["task"] == task
        rows.append(_row(TASK_NAMES[task], {key: column[own] for key, column in table.items()}))
    values = [
        [row.median_cm, row.p90_cm, row.other_nearer, *row.r2, row.command_accuracy, row.presence_accuracy]
        for row in rows
    ]
    median, p90, other, *r2, command, presence = (_mean(column) for column in zip(*values, strict=True))
    mean = PerceptionMetrics(
        task="mean",
        median_cm=median,
        p90_cm=p90,
        other_nearer=other,
        r2=tuple(r2),
        command_accuracy=command,
        presence_accuracy=presence,
    )
    return [*rows, mean]


def _mean(values: tuple[float, ...]) -> float:
    """Mean over the tasks for which the metric is defined; NaN if there is none."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


@torch.no_grad()
def _measure(network: SmallQNetwork, batch: Batch) -> dict[str, Tensor]:
    """Columns of a table with one row per step."""
    perception = network.perceive(crop(batch.image, network.config.image_size), batch.gripper)
    mean, command = network.behaviour_policy(perception.features, batch.gripper, batch.task_index)
    own = torch.tensor(OWN_LANDMARK)[batch.task_index]
    row = torch.arange(len(batch))
    true, predicted = batch.landmark[row, own, :3], perception.landmark[row, own, :3]
    presence = perception.landmark[:, :O, PRESENCE:]  # [B, O, 1], or [B, O, 0] of a network without presence
    return {
        "task": batch.task_index,
        "error_cm": 100 * OFFSET_UNIT_M * (predicted - true)[:, :2].norm(dim=1),
        "near": batch.point_present[row, own] & (true.norm(dim=1) * OFFSET_UNIT_M < WITHIN_M),
        "other_nearer": other_is_nearer(predicted, batch.landmark, batch.point_present, own).float(),
        "presence_correct": ((presence > 0.5) == (batch.landmark[:, :O, PRESENCE:] > 0.5)).float().mean((1, 2)),
        "success": batch.success > 0,
        "motion": batch.action[:, :4] / bounds(batch.action.device),
        "predicted_motion": mean,
        "command_correct": (command.argmax(-1) == batch.action[:, 4].long()).float(),
    }


def other_is_nearer(predicted: Tensor, landmark: Tensor, present: Tensor, own: Tensor) -> Tensor:
    """Whether another landmark of the kind of the `own` one, int64 [B], is nearer in the table plane to its predicted
    offset [B, 3], bool [B]. `landmark` [B, L, 6] and `present` [B, L or more]: true ones."""
    count = landmark.shape[1]
    same_kind = (torch.arange(count) < O) == (own < O)[:, None]
    distance = (predicted[:, None, :2] - landmark[..., :2]).norm(dim=-1)
    return distance.masked_fill(~(same_kind & present[:, :count]), torch.inf).argmin(1) != own


def _row(task: str, column: dict[str, Tensor]) -> PerceptionMetrics:
    error, success = column["error_cm"][column["near"]], column["success"]
    motion, predicted = column["motion"][success], column["predicted_motion"][success]
    r2 = 1 - (motion - predicted).square().mean(0) / motion.var(0, correction=0).clamp(min=1e-9)
    median, p90 = (float(error.quantile(q)) if len(error) else float("nan") for q in (0.5, 0.9))
    return PerceptionMetrics(
        task=task,
        median_cm=median,
        p90_cm=p90,
        other_nearer=float(column["other_nearer"][column["near"]].mean()),
        r2=tuple(r2.tolist()),
        command_accuracy=float(column["command_correct"][success].mean()),
        presence_accuracy=float(column["presence_correct"].mean()),
    )


def print_table(rows: list[PerceptionMetrics]) -> None:
    motion = f"{'R2 of x':>10}{'y':>7}{'z':>7}{'yaw':>7}"
    print(f"{'task':<22}{'median':>9}{'90%':>9}{'other':>8}{motion}{'command':>10}{'presence':>11}")
    for row in rows:
        motion = "".join(f"{value:>7.2f}" for value in row.r2)
        print(
            f"{row.task:<22}{row.median_cm:>6.1f} cm{row.p90_cm:>6.1f} cm{row.other_nearer:>8.1%}{'':>3}{motion}"
            f"{row.command_accuracy:>10.1%}{row.presence_accuracy:>11.1%}"
        )


if __name__ == "__main__":
    sys.exit(main())
