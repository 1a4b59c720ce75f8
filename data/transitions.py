"""Low-dimensional datasets: steps of several tasks' episodes in one HDF5 file, and stratified batches of them.

Datasets of the file, D steps in the order they were made, each under a checksum:

    observation       float32 [D, S]
    action            float32 [D, A]     in [-1, 1]
    next_observation  float32 [D, S]
    velocity, rise    float32 [D]        sim.locomotion.Motion: rewards of all tasks are made of them
    fell              bool    [D]        the episode ended for good: nothing is bootstrapped
    last              bool    [D]        last step kept of its episode, for whatever reason
    task              int64   [D]        that collected it

Attributes: schema, body, tasks, and about each task's data: kind, policy, seed.
Shapes: `N` tasks, `B` transitions of a batch for each, `E` members trained side by side.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.shards import hdf5_image
from sim.files import DatasetError, write_atomic
from sim.locomotion import BODIES, Body, Motion, Step

SCHEMA = 1
STD_EPSILON = 1e-3  # is added to standard deviations (TD3+BC, Fujimoto and Gu 2021, arXiv:2106.06860, sec. 5)
COLUMNS = {
    "observation": np.float32,
    "action": np.float32,
    "next_observation": np.float32,
    "velocity": np.float32,
    "rise": np.float32,
    "fell": np.bool_,
    "last": np.bool_,
    "task": np.int64,
}


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """A dataset in memory; the columns are those of the file. `about`: of each task's data, plain values."""

    body: Body
    columns: dict[str, NDArray[Any]]
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.columns["task"])

    @classmethod
    def empty(cls, body: Body, *shape: int) -> dict[str, NDArray[Any]]:
        """Columns [*shape, ...] of zeros, to be filled by `record`."""
        sizes = {"action": (body.action_size,)}
        sizes |= dict.fromkeys(("observation", "next_observation"), (body.observation_size,))
        return {name: np.zeros((*shape, *sizes.get(name, ())), kind) for name, kind in COLUMNS.items()}

    def normalised(self) -> tuple[Transitions, NDArray[np.float32], NDArray[np.float32]]:
        """The dataset with observations less their mean, in standard deviations; and the two, float32 [S] each, over
        all steps of all tasks."""
        observation = self.columns["observation"]
        mean, std = observation.mean(0), observation.std(0) + np.float32(STD_EPSILON)
        columns = {name: (self.columns[name] - mean) / std for name in ("observation", "next_observation")}
        return replace(self, columns={**self.columns, **columns}), mean, std

    @property
    def digest(self) -> str:
        """Of all that is in the columns, hexadecimal."""
        found = hashlib.blake2b(self.body.name.encode(), digest_size=16)
        for name, kind in COLUMNS.items():
            found.update(np.ascontiguousarray(self.columns[name], kind).data)
        return found.hexdigest()

    @property
    def rewards(self) -> NDArray[np.float32]:
        """[D, N] of every task, whoever collected the step."""
        return self.body.rewards(Motion(*(self.columns[name] for name in ("velocity", "rise", "action"))))

    @property
    def episode(self) -> NDArray[np.int64]:
        """[D] number of each step's episode."""
        last = self.columns["last"]
        return np.cumsum(last) - last


def record(
    columns: dict[str, NDArray[Any]], place: tuple[int, ...], before: NDArray[np.float32], step: Step, task: int
) -> None:
    """Fill the columns at this place with a step of an episode, from the observation `before` it."""
    told: dict[str, Any] = {"observation": before, "action": step.motion.action, "next_observation": step.observation}
    told |= {"velocity": step.motion.velocity, "rise": step.motion.rise, "fell": step.fell, "last": step.ended}
    for name, value in (told | {"task": task}).items():
        columns[name][place] = value


def write_transitions(path: Path, transitions: Transitions) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tables: dict[str, NDArray[Any]] = {
        name: np.ascontiguousarray(transitions.columns[name], kind) for name, kind in COLUMNS.items()
    }
    body, about = transitions.body, json.dumps(transitions.about)
    attributes = {"schema": SCHEMA, "body": body.name, "tasks": json.dumps(body.task_names), "about": about}
    write_atomic(path, hdf5_image(path.name, tables, attributes, fletcher32=True, chunks=True))


def read_transitions(path: str | Path) -> Transitions:
    """DatasetError names the file and what is wrong with it."""
    path = Path(path)
    if path.is_dir():
        raise DatasetError(f"{path}: a folder, not a file of transitions")
    if not path.is_file():
        raise DatasetError(f"{path}: no such dataset; make collect-walker2d makes that of walker2d")
    return parse_transitions(path, path.read_bytes())


def parse_transitions(path: Path, content: bytes) -> Transitions:
    """The transitions in the bytes of the file at `path`."""
    try:
        with h5py.File(io.BytesIO(content)) as file:
            schema, name = int(file.attrs["schema"]), str(file.attrs["body"])
            if schema != SCHEMA:
                raise DatasetError(f"{path}: schema {schema}, this version reads {SCHEMA}")
            if name not in BODIES or tuple(json.loads(file.attrs["tasks"])) != BODIES[name].task_names:
                raise DatasetError(f"{path}: of body {name} with tasks {file.attrs['tasks']}, which this version lacks")
            columns = {key: file[key][:] for key in COLUMNS}
            about = json.loads(file.attrs["about"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: not a dataset of transitions, or a damaged one ({error})") from None
    _check(path, BODIES[name], columns)
    return Transitions(body=BODIES[name], columns=columns, about=about)


def _check(path: Path, body: Body, columns: dict[str, NDArray[Any]]) -> None:
    count = len(columns["task"])
    shapes = {"observation": (count, body.observation_size), "action": (count, body.action_size)}
    shapes["next_observation"] = shapes["observation"]
    for name, kind in COLUMNS.items():
        found, wanted = columns[name], shapes.get(name, (count,))
        if found.shape != wanted or found.dtype != kind:
            raise DatasetError(
                f"{path}: {name} is {found.dtype} {list(found.shape)}, not {np.dtype(kind)} {list(wanted)}"
            )
        if found.dtype == np.float32 and not np.isfinite(found).all():
            raise DatasetError(f"{path}: {name} holds values that are not finite")
    if not count or not columns["last"][-1]:
        raise DatasetError(f"{path}: its last step does not end an episode")
    if not np.isin(columns["task"], range(len(body.tasks))).all():
        raise DatasetError(f"{path}: holds steps of a task that {body.name} lacks")


@dataclass
class StateBatch:
    """Transitions for target tasks, each [E, N * B, ...] and grouped by task; the names are those of data.batches."""

    observation: Tensor  # float32 [..., S]
    next_observation: Tensor  # float32 [..., S]
    action: Tensor  # float32 [..., A]
    reward: Tensor  # float32, of the target task
    done: Tensor  # float32, 1 where nothing is bootstrapped
    success: Tensor  # float32, 0: these tasks have none
    task_index: Tensor  # int64
    source_task_index: Tensor  # int64
    episode: Tensor  # int64

    def of_members(self, members: slice) -> StateBatch:
        return StateBatch(**{field.name: getattr(self, field.name)[members] for field in fields(self)})

    def select(self, index: Tensor) -> StateBatch:
        """Rows [E, C] of each member."""
        member = torch.arange(len(index), device=index.device)[:, None]
        return StateBatch(**{field.name: getattr(self, field.name)[member, index] for field in fields(self)})


class StateSampler:
    """Stratified batches (CDS, app. C.1) from memory on the device: `per_task` transitions of each target task, of
    which the `shared` part comes from other tasks, all their steps alike."""

    def __init__(
        self,
        transitions: Transitions,
        sources: NDArray[np.bool_],
        tasks: tuple[int, ...],
        per_task: int = 128,
        shared: float = 0.5,
        told_reward: bool = True,
        offered: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        """`sources` [N, N]: from which task (column) each (row) may draw, as a sharing rule tells it; `tasks`: that are
        trained, and drawn from. Without `told_reward` shared transitions carry 0. `offered`: transitions in the place
        of each shared one, for the router to choose."""
        self._columns = {
            name: torch.from_numpy(transitions.columns[name]).to(device)
            for name in ("observation", "next_observation", "action", "task")
        }
        self._done = torch.from_numpy(transitions.columns["fell"].astype(np.float32)).to(device)
        self._episode = torch.from_numpy(transitions.episode).to(device)
        self._reward = torch.from_numpy(transitions.rewards).to(device)  # [D, N]
        self._told_reward, self._device = told_reward, device
        task = transitions.columns["task"]
        self._pools: list[list[tuple[Tensor, int]]] = []  # of each task: (steps, how many of them a batch holds)
        for target in tasks:
            own = np.flatnonzero(task == target)
            if not len(own):
                raise DatasetError(f"the dataset holds no step of task {transitions.body.task_names[target]}")
            others = np.flatnonzero(
                np.isin(task, [j for j in np.flatnonzero(sources[target]) if j in tasks and j != target])
            )
            num_shared = round(per_task * shared) if len(others) else 0
            counts = ((own, per_task - num_shared), (others, offered * num_shared))
            self._pools.append([(torch.from_numpy(pool).to(device), count) for pool, count in counts if count])
        size = torch.tensor([sum(count for _, count in pools) for pools in self._pools], device=device)
        self._target = torch.tensor(tasks, device=device).repeat_interleave(size)

    def draw(self, members: int, generator: torch.Generator) -> StateBatch:
        """A batch for each member, another one each."""
        parts = []
        for pools in self._pools:
            for pool, count in pools:
                chosen = torch.randint(len(pool), (members, count), generator=generator, device=generator.device)
                parts.append(pool[chosen.to(self._device)])
        step = torch.cat(parts, dim=1)
        target = self._target.expand(members, -1)
        told = {name: self._columns[name][step] for name in ("observation", "next_observation", "action")}
        source = self._columns["task"][step]
        reward = self._reward[step, target]
        if not self._told_reward:
            reward = torch.where(source == target, reward, 0.0)
        return StateBatch(
            **told,
            reward=reward,
            done=self._done[step],
            success=torch.zeros_like(reward),
            task_index=target,
            source_task_index=source,
            episode=self._episode[step],
        )
