"""Weights that a run's sharing rules give to transitions of its dataset, in one file beside its policies (weights.h5).

Shapes: `P` transitions, `E` members whose rules share by Q-values, `N` tasks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from data.hdf5 import hdf5_image
from sim.files import DatasetError, write_atomic

WEIGHTS = "weights.h5"


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    row: NDArray[np.int64]  # [P] of the dataset
    weight: NDArray[np.float16]  # [E, P, N], NaN where a rule could not tell
    members: tuple[str, ...]  # names [E]
    rules: tuple[str, ...]  # [E]
    assignment: str  # of episodes to tasks
    dataset_digest: str  # of the dataset with that assignment

    def of_rule(self, rule: str) -> NDArray[np.float32]:
        """[P, N], the mean over the rule's members: its seeds."""
        chosen = [k for k, name in enumerate(self.rules) if name == rule]
        return self.weight[chosen].astype(np.float32).mean(0)


def write_weights(path: Path, file: WeightFile) -> None:
    attributes = {"members": json.dumps(file.members), "rules": json.dumps(file.rules)}
    attributes |= {"assignment": file.assignment, "dataset_digest": file.dataset_digest}
    write_atomic(path, hdf5_image(path.name, {"row": file.row, "weight": file.weight}, attributes, fletcher32=True))


def read_weights(path: Path) -> WeightFile:
    """DatasetError where there is no such file, or a damaged one."""
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; a run whose rules share by Q-values writes it at its end")
    try:
        with h5py.File(path) as file:
            return WeightFile(
                row=file["row"][:],
                weight=file["weight"][:],
                members=tuple(json.loads(file.attrs["members"])),
                rules=tuple(json.loads(file.attrs["rules"])),
                assignment=str(file.attrs["assignment"]),
                dataset_digest=str(file.attrs["dataset_digest"]),
            )
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DatasetError(f"{path}: not a file of weights, or a damaged one ({error})") from None
