"""`python -m train cql --data datasets/walker2d.h5 --rules none,cds --seeds 0,1,2`: a run of CQL with data sharing.

All rules and seeds train side by side. Stopped anywhere, the same command goes on from the last checkpoint. In the end
each member's returns are written to returns.json: of its policies' mean actions, per task. Beside them stand KL(pi ||
pi_beta_eff) and the returns of pi_beta_eff, the clone of what the sharing rule leaves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from data.transitions import read_transitions
from eval.returns import task_returns
from models.checkpoint import read_plain
from models.stacked import TanhGaussian
from sim.files import write_atomic
from sim.options import Parser, add_options, from_options
from train.callbacks.checkpointing import SaveAtEnd, write_tensors
from train.callbacks.progress import Progress, quiet_lightning
from train.callbacks.router_report import RouterReport
from train.cql import CQL
from train.cql_config import CQLConfig
from train.divergence import clone_effective, divergence
from train.finite import NotFiniteError
from train.launch import fit, join_launch
from train.precision import resolve_precision
from train.process_settings import prepare_process
from train.run_dir import LAST, LOG, lock_run, open_run

EVALUATION_SEED = 1  # of the episodes that every member of every run plays
FREE_TO_CHANGE = (
    "out",
    "data",  # bound by what it holds, not by where it lies
    "steps",
    "updates_per_step",
    "log_every",
    "checkpoint_every",
    "episodes",
    "precision",
    "behaviour_steps",
)


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m train cql", description=__doc__)
    add_options(parser, CQLConfig)
    train(from_options(CQLConfig, vars(parser.parse_args(arguments))))


def train(config: CQLConfig) -> Path:
    """Train, or go on, until `config.steps`; the path of the returns."""
    transitions = read_transitions(config.data)
    out = Path(config.out)
    with lock_run(out):
        resume = open_run(out, config, FREE_TO_CHANGE)
        quiet_lightning()
        prepare_process()
        torch.manual_seed(config.seed)
        module = CQL(config, transitions)
        precision = config.precision
        if resume is not None:
            kept = module.restore(read_plain(resume), resume)
            precision = kept if precision == "auto" else precision
            done = module.updates >= config.steps
            print(f"{out}: {'trained to' if done else 'going on from'} update {module.updates}")
        trainer = lightning.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=1,
            precision=resolve_precision(precision),  # type: ignore[arg-type]
            plugins=[join_launch(1, 1)[0]],
            default_root_dir=out,
            logger=TensorBoardLogger(out, name="", version=LOG, purge_step=module.updates + 1 if resume else None),
            log_every_n_steps=max(1, config.log_every // config.updates_per_step),
            callbacks=[
                Progress(config.steps),
                SaveEvery(out / LAST, config.checkpoint_every),
                SaveAtEnd(out / LAST, 1, save),
                RouterReport(config.checkpoint_every),
            ],
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        if module.updates < config.steps:
            left = range(-(-(config.steps - module.updates) // config.updates_per_step))
            loader: Any = DataLoader(list(left), batch_size=None)  # type: ignore[arg-type]
            fit(trainer, module, loader, out, "--critic-rate or --policy-rate")
        return _evaluate(config, module, out)


class SaveEvery(Callback):
    """Writes the checkpoint every so many updates."""

    def __init__(self, path: Path, every: int) -> None:
        self._path, self._every, self._saved = path, every, 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._saved = pl_module.updates

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *arguments: Any
    ) -> None:
        if pl_module.updates // self._every > self._saved // self._every:
            save(trainer, pl_module, self._path)
            self._saved = pl_module.updates


def save(trainer: lightning.Trainer, module: lightning.LightningModule, path: Path) -> None:
    """What `CQL.restore` reads, which is less than Lightning would write."""
    write_tensors(path, module.checkpoint())


def _evaluate(config: CQLConfig, module: CQL, out: Path) -> Path:
    """Of every member: rule, seed, the returns of each task's episodes, KL(pi || pi_beta_eff) of each task, and the
    returns of pi_beta_eff."""
    body = module.transitions.body
    tasks = tuple(body.task_names[k] for k in module.tasks)
    found: dict[str, Any] = {}

    def returns_of(policy: TanhGaussian) -> Any:
        deployed = module.deployable(policy)
        return task_returns(deployed, len(config.members), body, tasks, config.episodes, EVALUATION_SEED).tolist()

    try:
        found["returns"] = returns_of(module.policy)
    except ValueError as error:
        print(f"{out / LAST}: trained, not evaluated: {error}; the same command evaluates it where that is")
        return out / LAST
    for k, (rule, seed) in enumerate(config.members):
        means = ", ".join(f"{task} {np.mean(each):.1f}" for task, each in zip(tasks, found["returns"][k], strict=True))
        print(f"{rule}, seed {seed}: {means}")
    path = out / "returns.json"
    if config.behaviour_steps:
        module.to("cuda" if torch.cuda.is_available() else "cpu")  # where Lightning had it
        module.setup("evaluate")
        try:
            behaved = clone_effective(module, config.behaviour_steps)
        except NotFiniteError as error:
            _write(path, config, module, tasks, found)
            raise NotFiniteError(f"{out}: the clone of the effective data: {error}; {path} has the returns") from error
        found["divergence"] = divergence(module, module.policy, behaved).tolist()
        found["cloned"] = returns_of(behaved)
    _write(path, config, module, tasks, found)
    print(f"{path}: {module.updates} updates; beside the paper's: python -m eval.tables {path}")
    return path


def _write(path: Path, config: CQLConfig, module: CQL, tasks: tuple[str, ...], found: dict[str, Any]) -> None:
    """Of what was `found`, by name: [member][task]."""
    rows: list[dict[str, Any]] = []
    for k, (rule, seed) in enumerate(config.members):
        by_task = {name: dict(zip(tasks, values[k], strict=True)) for name, values in found.items()}
        rows.append({"rule": rule, "seed": seed, "updates": module.updates, **by_task})
    write_atomic(path, json.dumps({"members": rows, "routing": module.routing()}, indent=1).encode())
