"""Launching and ending the processes of a training, one or several.

A launcher's variables (SLURM_PROCID, LOCAL_RANK, ...) count only where it launched as many processes as this training
has: a sweep under `srun`, one training a task, is many trainings of one process each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.utilities import rank_zero_only

from train.finite import NotFiniteError, diverged
from train.run_dir import LOG

LAUNCHERS: tuple[tuple[type[ClusterEnvironment], str], ...] = (  # and the variable with the number of processes
    (TorchElasticEnvironment, "WORLD_SIZE"),
    (SLURMEnvironment, "SLURM_NTASKS"),
    (LSFEnvironment, "JSM_NAMESPACE_SIZE"),
)
LOOK_EVERY_S = 0.2
GRACE_S = 10.0  # for a failed process to end, once it no longer answers


def join_launch(devices: int, nodes: int) -> tuple[ClusterEnvironment, bool]:
    """Lightning's cluster environment for `devices` x `nodes` processes, and whether this process is the first of them.
    Without a launcher, the first process of each machine starts the others there. Jobs are never requeued from here."""
    processes = devices * nodes
    environment: ClusterEnvironment = LightningEnvironment()
    for kind, variable in LAUNCHERS if processes > 1 else ():
        if kind.detect() and os.environ.get(variable) == str(processes):
            environment = _under_slurm(devices) if kind is SLURMEnvironment else kind()
            first = environment.global_rank() == 0
            break
    else:
        if processes == 1 or os.environ.get("WORLD_SIZE") != str(processes):  # else the first process started this one
            for variable in ("LOCAL_RANK", *(("NODE_RANK", "GROUP_RANK") if nodes == 1 else ())):
                os.environ.pop(variable, None)
        first = environment.local_rank() == environment.node_rank() == 0
    rank_zero_only.rank = 0 if first else 1  # until there is a trainer; Lightning takes it from a launcher
    return environment, first


def _under_slurm(devices: int) -> SLURMEnvironment:
    if "SLURM_STEP_NUM_TASKS" not in os.environ and os.environ["SLURM_PROCID"] == "0":  # a batch script without srun
        print(f"waiting for the {os.environ['SLURM_NTASKS']} tasks of SLURM, which srun starts", file=sys.stderr)
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))  # which Lightning asks for
    return SLURMEnvironment(auto_requeue=False)


def fit(
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    loader: Any,
    out: Path,
    rates: str,
    resume: Path | None = None,
) -> None:
    """Train, resuming from the checkpoint `resume` if given. Errors that a user can fix become one line. `rates`: the
    options to lower where training diverges."""
    trainer.callbacks.insert(0, EndTogether(trainer))  # type: ignore[attr-defined]
    try:
        trainer.fit(module, loader, ckpt_path=None if resume is None else str(resume), weights_only=True)
    except NotFiniteError as error:
        raise diverged(error, out, rates) from error
    except OSError as error:
        places = [place.filename for place in traceback.extract_tb(error.__traceback__)]
        if error.filename is None and any("tensorboard" in place for place in places):
            raise OSError(error.errno, error.strerror, str(out / LOG)) from error
        raise
    except RuntimeError as error:
        if str(error).startswith("DataLoader worker"):
            raise ValueError(f"a loader process died (out of memory?): fewer --workers need less; {error}") from error
        raise
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning turns it into status 1 before the first step
            raise end.__context__ from None
        raise


class EndTogether(Callback):
    """Ends all processes of a training when one fails: the first process kills the others, or exits with the status of
    the one that failed, which has printed its error. Watches from construction on: one may fail before it joins.

    Lightning would check every five seconds, and kill the first process."""

    def __init__(self, trainer: lightning.Trainer) -> None:
        subprocess_script._launch_process_observer = lambda processes: None  # type: ignore[assignment]
        self._launcher, self._over = trainer.strategy.launcher, False
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    @property
    def _others(self) -> list[subprocess.Popen[Any]]:
        return list(getattr(self._launcher, "procs", ()))

    def _watch(self) -> None:
        while self._launcher is not None and not self._over:
            if status := next(filter(None, (other.poll() for other in self._others)), 0):
                self._kill()
                sys.stdout.flush()
                os._exit(status if status > 0 else 128 - status)
            time.sleep(LOOK_EVERY_S)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._over = True  # the others may end before this process from now on

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, RuntimeError):  # e.g. where another process does not answer
            self._watching.join(GRACE_S if self._others else 0)
        if not self._over:
            self._kill()

    def _kill(self) -> None:
        self._over = True
        for other in self._others:
            other.kill()
