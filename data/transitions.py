"""Datasets of a state benchmark: the transitions of several tasks' episodes in one HDF5 file.

Tables of the file (schema 2), D transitions in the order they were made, each under a checksum:

    observation       float32 [D, S]
    action            float32 [D, A]          in [-1, 1]
    next_observation  float32 [D, S]
    quantity/NAME     float32 [D, *shape]     the benchmark's named quantities, after the action
    terminated        bool    [D]             absorbing for every task: nothing is bootstrapped
    episode_end       bool    [D]             last transition kept of its episode, terminated or not
    task              int64   [D]             the task it was collected for

Rewards, successes and ends of every task are computed from the quantities on reading, so a transition can be relabelled
for any task of the benchmark.

Attributes: schema, benchmark, tasks, and metadata of each task's data as JSON. Schema 1, which had walker2d alone, is
read too. Shapes: `N` tasks.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data.hdf5 import hdf5_image
from sim.benchmarks.spec import Benchmark, EnvStep, Quantities
from sim.benchmarks.table import BENCHMARKS
from sim.files import DatasetError, write_atomic

SCHEMA = 2
STD_EPSILON = 1e-3  # is added to standard deviations (TD3+BC, Fujimoto and Gu 2021, arXiv:2106.06860, sec. 5)
QUANTITY = "quantity/"
SCHEMA_1 = {  # its names of tables and attributes
    "quantity/x_velocity_m_s": "velocity",
    "quantity/height_above_start_m": "rise",
    "terminated": "fell",
    "episode_end": "last",
    "benchmark": "body",
    "metadata": "about",
}


@dataclass(frozen=True, kw_only=True)
class TransitionDataset:
    """A dataset in memory; the columns are the tables of the file. `metadata`: of each task's data, plain values."""

    benchmark: Benchmark
    columns: dict[str, NDArray[Any]]
    metadata: dict[str, Any]

    def __len__(self) -> int:
        return len(self.columns["task"])

    def select(self, index: NDArray[Any]) -> TransitionDataset:
        """The transitions of an index or mask; it must end where an episode ends."""
        return replace(self, columns={name: column[index] for name, column in self.columns.items()})

    @property
    def observation_statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation, float32 [S] each, over all transitions of all tasks."""
        observation = self.columns["observation"]
        return observation.mean(0), observation.std(0) + np.float32(STD_EPSILON)

    def normalise(self, mean: NDArray[np.float32], std: NDArray[np.float32]) -> TransitionDataset:
        """The dataset with observations (o - mean) / std."""
        columns = {name: (self.columns[name] - mean) / std for name in ("observation", "next_observation")}
        return replace(self, columns={**self.columns, **columns})

    @functools.cached_property
    def digest(self) -> str:
        """Hash of the benchmark's name and all columns, hexadecimal."""
        found = hashlib.blake2b(self.benchmark.name.encode(), digest_size=16)
        for name, (kind, _) in tables(self.benchmark).items():
            found.update(np.ascontiguousarray(self.columns[name], kind).data)
        return found.hexdigest()

    @property
    def quantities(self) -> Quantities:
        return {name: self.columns[QUANTITY + name] for name in self.benchmark.quantities}

    @property
    def rewards(self) -> NDArray[np.float32]:
        """Reward of every task, [D, N], whichever task collected the transition."""
        return self.benchmark.rewards(self.quantities, self.columns["action"])

    @property
    def successes(self) -> NDArray[np.bool_]:
        """Whether the next state is a success of each task, [D, N]."""
        return self.benchmark.successes(self.quantities)

    @property
    def done(self) -> NDArray[np.bool_]:
        """Whether nothing is bootstrapped for each task, [D, N]: the episode terminated, or that task's ended."""
        return self.columns["terminated"][:, None] | self.benchmark.terminals(self.quantities)

    @functools.cached_property
    def steps_by_outcome(self) -> NDArray[np.int64]:
        """Number of transitions [2, N, N] that are no success and that are one of a target (row), by source."""
        num_tasks, task, successes = len(self.benchmark.tasks), self.columns["task"], self.successes
        counts = [
            [np.bincount(task[success == outcome], minlength=num_tasks) for success in successes.T]
            for outcome in (False, True)
        ]
        return np.array(counts, np.int64)

    @functools.cached_property
    def episode(self) -> NDArray[np.int64]:
        """[D] number of each transition's episode."""
        last = self.columns["episode_end"]
        return np.cumsum(last) - last


def tables(benchmark: Benchmark) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Kind and shape of a transition's entry in each table."""
    observation, number = (np.float32, (benchmark.observation_size,)), np.float32
    return {
        "observation": observation,
        "action": (np.float32, (benchmark.action_size,)),
        "next_observation": observation,
        **{QUANTITY + name: (number, shape) for name, shape in benchmark.quantities.items()},
        "terminated": (np.bool_, ()),
        "episode_end": (np.bool_, ()),
        "task": (np.int64, ()),
    }


def empty_columns(benchmark: Benchmark, *lead: int) -> dict[str, NDArray[Any]]:
    """Columns [*lead, ...] of zeros, to be filled by `record`."""
    return {name: np.zeros((*lead, *shape), kind) for name, (kind, shape) in tables(benchmark).items()}


def record(
    columns: dict[str, NDArray[Any]],
    index: tuple[int, ...],
    before: NDArray[np.float32],
    action: NDArray[np.float32],
    step: EnvStep,
    task: int,
) -> None:
    """Fill the columns at this index with one transition, from the observation `before` the action."""
    values: dict[str, Any] = {"observation": before, "action": action, "next_observation": step.observation}
    values |= {QUANTITY + name: value for name, value in step.quantities.items()}
    values |= {"terminated": step.terminated, "episode_end": step.terminated or step.truncated, "task": task}
    for name, value in values.items():
        columns[name][index] = value


def write_transitions(path: Path, dataset: TransitionDataset) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    benchmark = dataset.benchmark
    content = {name: np.ascontiguousarray(dataset.columns[name], kind) for name, (kind, _) in tables(benchmark).items()}
    attributes = {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "tasks": json.dumps(benchmark.task_names),
        "metadata": json.dumps(dataset.metadata),
    }
    write_atomic(path, hdf5_image(path.name, content, attributes, fletcher32=True, chunks=True))


def read_transitions(path: str | Path) -> TransitionDataset:
    """DatasetError names the file and what is wrong with it."""
    _check_is_file(path := Path(path))
    return _read(path, path)


def read_benchmark(path: str | Path) -> Benchmark:
    """The benchmark that a file's transitions are of; DatasetError as for `read_transitions`."""
    _check_is_file(path := Path(path))
    with _open(path, path) as (file, names):
        return _benchmark(path, file, names)


def parse_transitions(path: Path, content: bytes) -> TransitionDataset:
    """The transitions in the bytes of the file at `path`."""
    return _read(path, io.BytesIO(content))


def _read(path: Path, source: Path | io.BytesIO) -> TransitionDataset:
    with _open(path, source) as (file, names):
        benchmark = _benchmark(path, file, names)
        columns = {name: file[names.get(name, name)][:] for name in tables(benchmark)}
        metadata = json.loads(file.attrs[names.get("metadata", "metadata")])
    _check(path, benchmark, columns)
    return TransitionDataset(benchmark=benchmark, columns=columns, metadata=metadata)


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise DatasetError(f"{path}: a folder, not a file of transitions")
    if not path.is_file():
        raise DatasetError(f"{path}: no such dataset; make collect-state makes those of the benchmarks")


@contextlib.contextmanager
def _open(path: Path, source: Path | io.BytesIO) -> Iterator[tuple[h5py.File, Mapping[str, str]]]:
    """The file, and the names that its schema has for tables and attributes of other names today."""
    try:
        with h5py.File(source) as file:
            schema = int(file.attrs["schema"])
            if schema not in (1, SCHEMA):
                raise DatasetError(f"{path}: schema {schema}, this version reads 1 and {SCHEMA}")
            yield file, SCHEMA_1 if schema == 1 else {}
    except DatasetError:
        raise
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DatasetError(f"{path}: not a dataset of transitions, or a damaged one ({error})") from None


def _benchmark(path: Path, file: h5py.File, names: Mapping[str, str]) -> Benchmark:
    name, tasks = str(file.attrs[names.get("benchmark", "benchmark")]), str(file.attrs["tasks"])
    if name not in BENCHMARKS or tuple(json.loads(tasks)) != BENCHMARKS[name].task_names:
        raise DatasetError(f"{path}: of benchmark {name} with tasks {tasks}, which this version lacks")
    return BENCHMARKS[name]


def _check(path: Path, benchmark: Benchmark, columns: dict[str, NDArray[Any]]) -> None:
    count = len(columns["task"])
    for name, (kind, shape) in tables(benchmark).items():
        found, wanted = columns[name], (count, *shape)
        if found.shape != wanted or found.dtype != kind:
            raise DatasetError(
                f"{path}: {name} is {found.dtype} {list(found.shape)}, not {np.dtype(kind)} {list(wanted)}"
            )
        if found.dtype == np.float32 and not np.isfinite(found).all():
            raise DatasetError(f"{path}: {name} holds values that are not finite")
    if not count or not columns["episode_end"][-1]:
        raise DatasetError(f"{path}: its last transition does not end an episode")
    if not np.isin(columns["task"], range(len(benchmark.tasks))).all():
        raise DatasetError(f"{path}: holds transitions of a task that {benchmark.name} lacks")
