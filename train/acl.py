"""`python -m train acl --data datasets/desk-published.h5`: attentive contrastive learning (ACL, models/contrastive.py)
of an encoder on the data of all tasks, the offline pretraining of CDS's table 7.

Stopped anywhere, the same command goes on. The run leaves encoder.pt, for any offline algorithm on the same dataset:
`python -m train cql --data ... --rules none --conditioning encoder --encoder runs/desk-published-acl/encoder.pt`.

Shapes: `B` windows of `L` steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data.assignment import ASSIGNMENTS, assign_tasks
from data.devices import to_device
from data.seeding import derive_seed
from data.transitions import TransitionDataset, read_transitions
from models.checkpoint import CheckpointError, load_weights, read_plain
from models.conditioning import FrozenEncoder
from models.contrastive import ContrastiveModel, Masking, contrastive_loss
from models.policy_files import pack_encoder
from models.updates import gradient_step
from sim.files import DatasetError, write_atomic
from sim.options import Parser, add_options, check_choice, check_fraction, check_least, check_seed, from_options, option
from train.callbacks.checkpointing import StopRequest, stopped_at, write_tensors
from train.finite import FiniteCheck, NotFiniteError, check_weights, diverged
from train.precision import PRECISIONS, resolve_precision
from train.process_settings import prepare_process
from train.run_dir import LAST, LOG, checkpoint_to_resume, lock_run, write_options

ENCODER, FORMAT = "encoder.pt", 1
FREE_TO_CHANGE = ("out", "data", "steps", "log_every", "checkpoint_every", "precision")


@dataclass(frozen=True, kw_only=True)
class ACLConfig:
    """Every option of `python -m train acl`; docs/algorithms.md has what differs from ACL's code."""

    data: str = option("datasets/desk-published.h5", "file of transitions")
    assignment: str = option("collected", f"of episodes to tasks: {', '.join(ASSIGNMENTS)} (mazes)")
    out: str = option("", "folder of the run; default runs/DATASET-acl")
    seed: int = option(0, "of everything")
    steps: int = option(200_000, "updates")
    batch_size: int = option(256, "windows")
    window: int = option(8, "consecutive steps of an episode")
    layer_sizes: tuple[int, ...] = option((256, 256, 256), "units of the encoder; the last are the representation")
    lr: float = option(1e-4, "learning rate of Adam")
    dropped: float = option(0.3, "of the states, replaced by a learned vector (how: models/contrastive.py)")
    switched: float = option(0.15, "exchanged with another window's")
    kept: float = option(0.15, "left, and predicted")
    log_every: int = option(100, "updates between values for TensorBoard")
    checkpoint_every: int = option(10_000, "updates between checkpoints")
    precision: str = option("auto", "32-true, bf16-mixed, or auto: what the hardware has")

    def __post_init__(self) -> None:
        check_least(self, 1, "steps", "batch_size", "log_every", "checkpoint_every")
        check_fraction(self, "dropped", "switched", "kept")
        check_seed(self, "seed")
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("assignment", self.assignment, ASSIGNMENTS)
        if self.window < 2:
            raise ValueError(f"window is at least 2 steps, got {self.window}")
        if not self.layer_sizes or min(self.layer_sizes) < 1 or self.layer_sizes[-1] % 4:
            raise ValueError(f"layer_sizes end in a multiple of 4, the heads of attention, got {self.layer_sizes}")
        if not 0 < self.dropped + self.switched + self.kept < 1:
            raise ValueError("dropped, switched and kept are together above 0 and below 1")


class Windows:
    """Draws windows of consecutive steps within an episode: observations [B, L, S], actions [B, L, A], rewards of the
    task that collected them [B, L]."""

    def __init__(self, dataset: TransitionDataset, window: int, device: torch.device) -> None:
        """Observations of `dataset` are normalised already."""
        columns = dataset.columns
        reward = dataset.rewards[np.arange(len(dataset)), columns["task"]]
        arrays = columns["observation"], columns["action"], reward.astype(np.float32)
        self._columns = [to_device(torch.from_numpy(np.ascontiguousarray(each)), device) for each in arrays]
        self._first = to_device(torch.from_numpy(_starts(dataset.episode, window)), device)
        self._steps = torch.arange(window, device=device)
        if not len(self._first):
            raise DatasetError(f"no episode of the dataset has {window} steps, a window")

    def draw(self, count: int) -> tuple[Tensor, ...]:
        """By torch's own generator."""
        chosen = torch.randint(len(self._first), (count,), device=self._first.device)
        rows = self._first[chosen][:, None] + self._steps
        return tuple(column[rows] for column in self._columns)


def _starts(episode: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """Steps from which a window lies in one episode."""
    last = len(episode) - window + 1
    return np.flatnonzero(episode[: max(0, last)] == episode[window - 1 :])


def pretrain(config: ACLConfig) -> Path:
    """Train, or go on, until `config.steps`; the path of the encoder."""
    config = dataclasses.replace(config, out=config.out or f"runs/{Path(config.data).stem}-acl")
    dataset, out = assign_tasks(read_transitions(config.data), config.assignment), Path(config.out)
    prepare_process()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(derive_seed(config.seed))
    benchmark, digest = dataset.benchmark, dataset.digest
    sizes = 1, benchmark.observation_size, len(benchmark.tasks), config.layer_sizes
    encoder, target = FrozenEncoder(*sizes), FrozenEncoder(*sizes)
    masking = Masking(dropped=config.dropped, switched=config.switched, kept=config.kept)
    model = ContrastiveModel(encoder, target, benchmark.action_size, config.window, masking).to(device)
    windows = Windows(dataset.normalise(*dataset.observation_statistics), config.window, device)
    with lock_run(out), StopRequest() as request:
        resume = checkpoint_to_resume(out, config, FREE_TO_CHANGE)
        try:
            _learn(model, windows, config, resume, digest, request)
        except NotFiniteError as error:
            raise diverged(error, out, "--lr") from error
    encoder.cpu().requires_grad_(False)
    write_atomic(out / ENCODER, pack_encoder(encoder, benchmark, digest))
    return out / ENCODER


def _learn(
    model: ContrastiveModel,
    windows: Windows,
    config: ACLConfig,
    resume: Path | None,
    digest: str,
    request: StopRequest,
) -> None:
    out, kind = Path(config.out), next(model.parameters()).device.type
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    done = _restore(resume, model, adam, digest) if resume else 0
    write_options(out, config)
    fast = resolve_precision(config.precision) == "bf16-mixed"
    finite, board = FiniteCheck("windows", ("all",), config.log_every), SummaryWriter(out / LOG, purge_step=done + 1)
    for step in tqdm(range(done + 1, config.steps + 1), initial=done, total=config.steps, smoothing=0.05):
        torch.manual_seed(derive_seed(config.seed, step))  # a resumed run draws the same
        with torch.autocast(kind, torch.bfloat16) if fast else contextlib.nullcontext():
            loss, accuracy = contrastive_loss(*model(*windows.draw(config.batch_size)))
        gradient_step(adam, loss)
        finite.add(step, {"contrastive loss": loss[None]})
        if step % config.log_every == 0:
            board.add_scalar("contrastive", loss, step)
            board.add_scalar("accuracy", accuracy, step)
        if step % config.checkpoint_every == 0 or step == config.steps or request.number:
            finite.check()
            check_weights(step, model=model)
            content = {"format": FORMAT, "algorithm": "ACL", "data": digest, "steps": step}
            content |= {"state_dict": model.state_dict(), "optimizer": adam.state_dict()}
            write_tensors(out / LAST, content)
        if request.number:
            print(stopped_at(out / LAST, step))
            raise SystemExit(128 + request.number)
    board.close()


def _restore(path: Path, model: ContrastiveModel, adam: torch.optim.Adam, digest: str) -> int:
    """The steps that it was trained for."""
    found = read_plain(path)
    if not isinstance(found, dict) or (found.get("algorithm"), found.get("format")) != ("ACL", FORMAT):
        raise CheckpointError(f"{path}: not a checkpoint of ACL, format {FORMAT}")
    if found["data"] != digest:
        raise CheckpointError(f"{path}: learned from another dataset")
    load_weights(model, found["state_dict"], path)
    adam.load_state_dict(found["optimizer"])
    return int(found["steps"])


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m train acl", description=__doc__)
    add_options(parser, ACLConfig)
    print(pretrain(from_options(ACLConfig, vars(parser.parse_args(arguments)))))
