"""`python -m eval.export --checkpoint runs/demo/last.ckpt --out exported`: export the network as torch.export programs.

`trunk.pt2`: (image float32 [1, 3, H, H] in [0, 1], gripper [1, 2]) -> features, once per image. `head.pt2`:
(features, gripper, actions [1, K, 5], task int64 [1]) -> Q logits [1, K]. `behaviour_policy.pt2`, where it exists:
(features, gripper, task) -> mean motion in units of its bounds [1, 4], command logits [1, 4]. `metadata.json`: sizes,
bounds, tasks, action selection. Any program with torch loads them by `torch.export.load`, without this package. Loading
may unpickle, so load only files that you trust.

`--format checkpoint` writes an inference-only checkpoint: a quarter of the size, and no training state.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.manifest import atomic_folder
from eval.policy import CEMPolicy
from models.cem import sample_uniform
from models.checkpoint import CheckpointFile, to_bytes
from models.image_checkpoint import ACTING, read_checkpoint
from models.qnetwork import QNetwork, bounds
from models.small_network import SmallQNetwork
from sim.actions import BOUNDS, COMMANDS
from sim.files import write_atomic
from sim.options import Parser, add_options, check_choice, from_options, option, run_command
from sim.tasks import TASK_NAMES

FORMATS = ("programs", "checkpoint")
TOLERANCE = 1e-3
TRIALS = 5


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Every option of `python -m eval.export`."""

    checkpoint: str = field(metadata={"help": "checkpoint to export"})
    out: str = field(metadata={"help": "a new folder; for a checkpoint, the file"})
    format: str = option("programs", f"of {', '.join(FORMATS)}")
    half: bool = option(False, "of a checkpoint: weights of 16 bits")

    def __post_init__(self) -> None:
        check_choice("format", self.format, FORMATS)


class _Part(nn.Module):
    """Part of the network with its own `forward`."""

    def __init__(self, network: QNetwork) -> None:
        super().__init__()
        self.network = network


INPUTS = {
    "image": "float32 [1, 3, image_size, image_size] in [0, 1]: the centre of a frame of frame_size px, RGB",
    "gripper": "float32 [1, 2]: closed (0 or 1), height above the table (m)",
    "features": "output of trunk",
    "task": "int64 [1]: index into tasks",
    "action": "float32 [1, K, 5]: x, y, z (m), yaw (rad), within bounds; index into commands",
}
CHOICES = {
    "cem": "head gives logits of Q [1, K]; the action is found by the cross-entropy method over them",
    "emaq": "behaviour_policy gives the mean motion [1, 4] in units of bounds and logits of the command [1, 4]; of "
    "candidates from it, half with the mean motion itself, half with the spread acting.behaviour_policy_std, take "
    "that of the highest log sigmoid(head) + acting.bc_log_prob_weight * log density",
    "behaviour_policy": "behaviour_policy gives the mean motion [1, 4] in units of bounds and logits of the command "
    "[1, 4]: take the mean motion and the most probable command",
}


class Trunk(_Part):
    def forward(self, image: Tensor, gripper: Tensor) -> Tensor:
        return self.network.encode(image, gripper)


class Head(_Part):
    def forward(self, features: Tensor, gripper: Tensor, action: Tensor, task: Tensor) -> Tensor:
        return self.network.score(features, gripper, action, task)


class BehaviourPolicy(_Part):
    def forward(self, features: Tensor, gripper: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.network, SmallQNetwork)
        return self.network.behaviour_policy(features, gripper, task)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.export", description=__doc__)
    add_options(parser, ExportConfig)
    options = vars(parser.parse_args(arguments))

    def command() -> None:
        config = from_options(ExportConfig, options)
        (export if config.format == "programs" else slim)(config)

    return run_command(command)


def slim(config: ExportConfig) -> None:
    """Write an inference-only checkpoint, with the averaged weights, which act. ValueError if the file exists."""
    file, out = CheckpointFile.of(config.checkpoint), Path(config.out)
    CEMPolicy.load(file)  # CheckpointError where it cannot be used
    checkpoint = read_checkpoint(file)
    if out.exists():
        raise ValueError(f"{out}: is there already; choose another --out")
    weights = {key: value for key, value in checkpoint["state_dict"].items() if key.startswith(ACTING)}
    if config.half:
        weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, to_bytes({"state_dict": weights, "switchyard": checkpoint["switchyard"]}))
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@torch.no_grad()
def export(config: ExportConfig) -> None:
    """Write the programs, read them back, and compare them with the network: ValueError where they differ. The folder
    appears only if all succeeds."""
    policy, out = CEMPolicy.load(config.checkpoint), Path(config.out)
    parts: dict[str, _Part] = {"trunk": Trunk(policy.network), "head": Head(policy.network)}
    if policy.network.config.behaviour_policy:
        parts["behaviour_policy"] = BehaviourPolicy(policy.network)
    programs = {}
    with atomic_folder(out) as making:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch")  # about weights that two programs share
            for name, part in parts.items():
                inputs = _inputs(policy, name, torch.Generator().manual_seed(0))
                content = io.BytesIO()  # on a full disk torch would end the process
                torch.export.save(torch.export.export(part.eval(), inputs), content)
                write_atomic(making / f"{name}.pt2", content.getvalue())
                programs[name] = torch.export.load(making / f"{name}.pt2").module()
        worst, times_s = _compare(policy, parts, programs)
        if not worst <= TOLERANCE:
            raise ValueError(f"{out}: the programs differ from the network by {worst:.2g}, more than {TOLERANCE:g}")
        metadata = {
            "checkpoint": policy.metadata,
            "image_size": policy.network.config.image_size,
            "frame_size": policy.frame_size,
            "candidates": policy.acting.cem.samples,
            "acting": asdict(policy.acting),
            "tasks": list(TASK_NAMES),
            "commands": list(COMMANDS),
            "inputs": INPUTS,
            "choice": CHOICES[policy.acting.by],
            "bounds": BOUNDS.tolist(),
        }
        write_atomic(making / "metadata.json", json.dumps(metadata, indent=1).encode())
    print(f"{out}: {', '.join(f'{name}.pt2' for name in parts)}; at most {worst:.1e} from the network")
    for name, each in times_s.items():
        print(f"{name:<16}{1000 * statistics.median(each):>8.1f} ms")


def _compare(
    policy: CEMPolicy, parts: dict[str, _Part], programs: dict[str, Any]
) -> tuple[float, dict[str, list[float]]]:
    """Maximum absolute difference on random inputs, and the seconds of each part and each program."""
    generator = torch.Generator().manual_seed(1)
    worst, times_s = 0.0, dict[str, list[float]]()
    for _ in range(TRIALS):
        for name, part in parts.items():
            inputs = _inputs(policy, name, generator)
            expected = _timed(part, inputs, times_s.setdefault(name, []))
            exported = _timed(programs[name], inputs, times_s.setdefault(f"{name} exported", []))
            worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(expected, exported, strict=True)))
    return worst, times_s


def _inputs(policy: CEMPolicy, name: str, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random inputs of a part, with the shapes used for acting."""
    side = policy.network.config.image_size
    image = torch.rand(1, 3, side, side, generator=generator)
    gripper = torch.rand(1, 2, generator=generator) * torch.tensor([1.0, 0.3])
    if name == "trunk":
        return image, gripper
    features = policy.network.encode(image, gripper)
    task = torch.randint(len(TASK_NAMES), (1,), generator=generator)
    if name == "behaviour_policy":
        return features, gripper, task
    action = sample_uniform((1, policy.acting.cem.samples), bounds(image.device), generator)
    return features, gripper, action, task


def _timed(call: Callable[..., Any], inputs: tuple[Tensor, ...], times_s: list[float]) -> tuple[Tensor, ...]:
    begin = time.perf_counter()
    result = call(*inputs)
    times_s.append(time.perf_counter() - begin)
    return result if isinstance(result, tuple) else (result,)


if __name__ == "__main__":
    sys.exit(main())
