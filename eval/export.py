"""`python -m eval.export --checkpoint runs/demo/last.ckpt --out exported`: the network as programs of torch.export.

`trunk.pt2`: (image float32 [1, 3, H, H] in [0, 1], gripper [1, 2]) -> features, once per picture. `head.pt2`:
(features, gripper, actions [1, K, 5], task int64 [1]) -> Q logits [1, K]. `prior.pt2`, where a clone proposes:
(features, gripper, task) -> motion in units of its bounds [1, 4], command logits [1, 4]. `about.json` tells sizes,
bounds, tasks and how actions are chosen. Any program with torch loads them, without this package, by
`torch.export.load`; that may unpickle, so load only what comes from somebody trusted.

`--format checkpoint` writes a checkpoint that acts and no more: a quarter of the size, nothing to go on training from.
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
from models.checkpoint import ACTING, CheckpointFile, read_checkpoint, to_bytes
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

    checkpoint: str = field(metadata={"help": "what to export"})
    out: str = field(metadata={"help": "a new folder; of a checkpoint, the file"})
    format: str = option("programs", f"of {', '.join(FORMATS)}")

    def __post_init__(self) -> None:
        check_choice("format", self.format, FORMATS)


class _Part(nn.Module):
    """A part of the network with a `forward` of its own."""

    def __init__(self, network: QNetwork) -> None:
        super().__init__()
        self.network = network


INPUTS = {
    "image": "float32 [1, 3, image_size, image_size] in [0, 1]: the centre of a frame of frame_size px, RGB",
    "gripper": "float32 [1, 2]: closed (0 or 1), height above the table (m)",
    "features": "what trunk gives",
    "task": "int64 [1]: place in tasks",
    "action": "float32 [1, K, 5]: x, y, z (m), yaw (rad), within bounds; place in commands",
}
CHOICES = {
    "cem": "head gives logits of Q [1, K]; the action is found by the cross-entropy method over them",
    "proposals": "prior gives the mean motion [1, 4] in units of bounds and logits of the command [1, 4]; of "
    "candidates from it, half with the mean motion itself, half with the spread acting.prior_std, take that of the "
    "highest log sigmoid(head) + acting.prior_loyalty * log density",
    "clone": "prior gives the mean motion [1, 4] in units of bounds and logits of the command [1, 4]: the likeliest",
}


class Trunk(_Part):
    def forward(self, image: Tensor, gripper: Tensor) -> Tensor:
        return self.network.encode(image, gripper)


class Head(_Part):
    def forward(self, features: Tensor, gripper: Tensor, action: Tensor, task: Tensor) -> Tensor:
        return self.network.score(features, gripper, action, task)


class Prior(_Part):
    def forward(self, features: Tensor, gripper: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.network, SmallQNetwork)
        return self.network.propose(features, gripper, task)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.export", description=__doc__)
    add_options(parser, ExportConfig)
    options = vars(parser.parse_args(arguments))

    def command() -> None:
        config = from_options(ExportConfig, options)
        (export if config.format == "programs" else slim)(config)

    return run_command(command)


def slim(config: ExportConfig) -> None:
    """Write the checkpoint with the averaged weights alone, which are those that act. ValueError for a file that is
    there."""
    file, out = CheckpointFile.of(config.checkpoint), Path(config.out)
    CEMPolicy.load(file)  # says what is wrong with it
    checkpoint = read_checkpoint(file)
    if out.exists():
        raise ValueError(f"{out}: is there already; choose another --out")
    weights = {key: value for key, value in checkpoint["state_dict"].items() if key.startswith(ACTING)}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, to_bytes({"state_dict": weights, "switchyard": checkpoint["switchyard"]}))
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@torch.no_grad()
def export(config: ExportConfig) -> None:
    """Write the programs, read them back, and compare them with the network: ValueError where they differ. The folder
    appears when all is well."""
    policy, out = CEMPolicy.load(config.checkpoint), Path(config.out)
    parts: dict[str, _Part] = {"trunk": Trunk(policy.network), "head": Head(policy.network)}
    if policy.network.config.prior:
        parts["prior"] = Prior(policy.network)
    programs = {}
    with atomic_folder(out) as making:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch")  # of how it shares what is the same in two places
            for name, part in parts.items():
                inputs = _inputs(policy, name, torch.Generator().manual_seed(0))
                content = io.BytesIO()  # on a full disk torch would end the process
                torch.export.save(torch.export.export(part.eval(), inputs), content)
                write_atomic(making / f"{name}.pt2", content.getvalue())
                programs[name] = torch.export.load(making / f"{name}.pt2").module()
        worst, times_s = _compare(policy, parts, programs)
        if not worst <= TOLERANCE:
            raise ValueError(f"{out}: the programs differ from the network by {worst:.2g}, more than {TOLERANCE:g}")
        about = {
            "checkpoint": policy.about,
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
        write_atomic(making / "about.json", json.dumps(about, indent=1).encode())
    print(f"{out}: {', '.join(f'{name}.pt2' for name in parts)}; at most {worst:.1e} from the network")
    for name, each in times_s.items():
        print(f"{name:<16}{1000 * statistics.median(each):>8.1f} ms")


def _compare(
    policy: CEMPolicy, parts: dict[str, _Part], programs: dict[str, Any]
) -> tuple[float, dict[str, list[float]]]:
    """The greatest difference on random inputs, and the seconds that each part and each program took."""
    generator = torch.Generator().manual_seed(1)
    worst, times_s = 0.0, dict[str, list[float]]()
    for _ in range(TRIALS):
        for name, part in parts.items():
            inputs = _inputs(policy, name, generator)
            mine = _timed(part, inputs, times_s.setdefault(name, []))
            its = _timed(programs[name], inputs, times_s.setdefault(f"{name} exported", []))
            worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(mine, its, strict=True)))
    return worst, times_s


def _inputs(policy: CEMPolicy, name: str, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random inputs of a part, as large as in use."""
    side = policy.network.config.image_size
    image = torch.rand(1, 3, side, side, generator=generator)
    gripper = torch.rand(1, 2, generator=generator) * torch.tensor([1.0, 0.3])
    if name == "trunk":
        return image, gripper
    features = policy.network.encode(image, gripper)
    task = torch.randint(len(TASK_NAMES), (1,), generator=generator)
    if name == "prior":
        return features, gripper, task
    action = sample_uniform((1, policy.acting.cem.samples), bounds(image.device), generator)
    return features, gripper, action, task


def _timed(call: Callable[..., Any], inputs: tuple[Tensor, ...], times_s: list[float]) -> tuple[Tensor, ...]:
    begin = time.perf_counter()
    found = call(*inputs)
    times_s.append(time.perf_counter() - begin)
    return found if isinstance(found, tuple) else (found,)


if __name__ == "__main__":
    sys.exit(main())
