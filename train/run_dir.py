"""Run folders: one training at a time, always with the same options."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from data.locks import lock_file
from models.checkpoint import RUN_CONFIG, CheckpointError
from models.old_names import current_options
from sim.files import is_nonempty, read_json, remove_temporaries, write_atomic
from sim.options import changed

LOCK = "train.lock"  # held while a run trains
LAST = "last.ckpt"
LOG = "log"  # folder of TensorBoard files


@contextmanager
def lock_run(out: Path, leads: bool = True) -> Iterator[None]:
    """Lock the run folder against other trainings; of the processes of one training only the one that `leads` does.
    CheckpointError where it holds something else, DatasetError where another training is at work."""
    if not (out / RUN_CONFIG).is_file() and is_nonempty(out, LOCK):
        raise CheckpointError(f"{out}: not empty and not a Switchyard run (it has no {RUN_CONFIG})")
    with lock_file(out / LOCK, f"{out}: another training is at work in this folder") if leads else nullcontext():
        yield


def checkpoint_to_resume(out: Path, config: Any, free: Container[str]) -> Path | None:
    """The last checkpoint, or None; CheckpointError as `kept_options`. What it holds may still be refused: the options
    are to be written after that."""
    kept_options(out, config, free)
    return out / LAST if (out / LAST).is_file() else None


def kept_options(out: Path, config: Any, free: Container[str]) -> dict[str, Any]:
    """Options of the run in this folder, under current names; {} where it has no checkpoint yet. CheckpointError where
    they differ from `config` in others than the `free` ones."""
    if not (found := trained_options(out)):
        return {}
    wanted = json.loads(_text(config))
    found = current_options(found, wanted)
    if other := sorted(found.keys() - wanted.keys()):
        raise CheckpointError(f"{out}: holds a run of another kind (with {', '.join(other)}); choose another --out")
    found = _defaults(config) | found  # an option that its version lacked has the meaning of the default
    if differs := changed(found, wanted, free):
        raise CheckpointError(f"{out}: already holds a run with other options: {differs}; choose another --out")
    return found


def trained_options(out: Path) -> dict[str, Any]:
    """Options in config.json of a run that has a checkpoint, as written; {} where it has none."""
    path = out / RUN_CONFIG
    return read_json(path) if path.is_file() and (out / LAST).is_file() else {}


def write_options(out: Path, config: Any) -> None:
    """Write the options of the run that trains here from now on; removes temporary files of an interrupted one."""
    remove_temporaries(out)
    write_atomic(out / RUN_CONFIG, _text(config).encode())


def _defaults(config: Any) -> dict[str, Any]:
    fields = (field for field in dataclasses.fields(config) if field.default is not dataclasses.MISSING)
    found: dict[str, Any] = json.loads(json.dumps({field.name: field.default for field in fields}))
    return found


def _text(config: Any) -> str:
    return json.dumps(dataclasses.asdict(config), indent=1)
