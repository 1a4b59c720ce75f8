"""Batches of image transitions, and the sampler that stratifies them by task, source and outcome.

Each batch holds the same number of transitions for every trained task: some are the task's own, the others are shared
from the tasks that the sharing rule allows and relabelled with the target task's reward. A constant fraction of both
comes from episodes that succeed at the target task (the rebalancing of MT-Opt, arXiv:2104.08212).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data import codec
from data.replay import Replay
from data.shards import Frame
from data.sharing import SharingRule
from sim.files import DatasetError
from sim.landmarks import landmarks
from sim.state import SceneState
from sim.tasks import SKILLS, TASK_NAMES

TRIES = 20  # to find an episode that is not in the batch yet
NO_IMAGES = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
NO_BYTES, NO_SIZES = torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)


@dataclass
class Batch:
    """B n-step transitions (s, a, r_i, s'), relabelled for target task i = `task_index`; collected for source task
    j = `source_task_index`."""

    image: Tensor  # uint8 [B, 3, H, W], stored size: not yet cropped
    next_image: Tensor  # uint8 [B, 3, H, W]
    gripper: Tensor  # float32 [B, 2]: closed (0/1), height (m)
    next_gripper: Tensor  # float32 [B, 2]
    action: Tensor  # float32 [B, 5], sim/actions.py
    reward: Tensor  # float32 [B], of the target task: 1 if s' ends an episode that succeeds at it
    done: Tensor  # float32 [B], 1 if s' ends the episode: its success is decided there, so no bootstrapping
    n_step: Tensor  # float32 [B], steps from s to s': the configured n, fewer where the episode ends before
    steps_to_go: Tensor  # float32 [B], steps from s to the end of the episode
    success: Tensor  # float32 [B], episode succeeds at the target task; 0 if shared and the rule does not relabel
    landmark: Tensor  # float32 [B, L, 6], privileged: poses and presence (sim/landmarks.py)
    point: Tensor  # float32 [B, P, 2], privileged: landmarks in the stored frame, as fractions of its side
    point_present: Tensor  # bool [B, P]
    task_index: Tensor  # int64 [B]
    source_task_index: Tensor  # int64 [B]
    episode: Tensor  # int64 [B], index in the dataset
    is_shared: Tensor  # bool [B], collected for another task
    encoded: Tensor = NO_BYTES  # uint8 [sum]: JPEG files of `image` and then of `next_image`, if `to` decodes them
    encoded_size: Tensor = NO_SIZES  # int64 [2 B]: bytes of each file

    def to(self, device: torch.device | str) -> Batch:
        """Move the batch to a device, where images that are still encoded are decoded."""
        rest = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("encoded")}
        if len(self.encoded_size):
            images = decode_on(device, self.encoded, self.encoded_size)
            rest |= {"image": images[: len(self)], "next_image": images[len(self) :]}
        moved = {name: value.to(device, non_blocking=True) for name, value in rest.items()}
        return Batch(**moved)

    def pin_memory(self) -> Batch:
        """Copy the batch to pinned memory; PyTorch's loader calls it too."""
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    def select(self, index: Tensor) -> Batch:
        """Rows of a batch whose images are decoded."""
        chosen = {f.name: getattr(self, f.name)[index] for f in fields(self) if not f.name.startswith("encoded")}
        return Batch(**chosen)

    def arrays(self, images: bool) -> dict[str, NDArray[Any]]:
        """All fields as arrays, with or without the decoded images."""
        names = (f.name for f in fields(self) if images or f.name not in ("image", "next_image"))
        return {name: getattr(self, name).numpy() for name in names}

    def __len__(self) -> int:
        return len(self.task_index)


def decode_on(device: torch.device | str, encoded: Tensor, size: Tensor) -> Tensor:
    """Decode JPEG files to images uint8 [B, 3, H, W]: by nvJPEG (torchcodec) on a GPU, else one by one on the CPU."""
    files = encoded.split(size.tolist())
    if torch.device(device).type == "cuda":
        from torchcodec.decoders import decode_jpeg

        return torch.stack(decode_jpeg(list(files), device=device))
    frames = np.stack([codec.decode(file.numpy().tobytes()) for file in files])
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def can_decode_on_gpu() -> bool:
    """Whether there is a GPU and a torchcodec that decodes JPEG."""
    if not torch.cuda.is_available():
        return False
    try:
        from torchcodec.decoders import decode_jpeg  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Stratification of a batch: `per_task` transitions for each task in each of the `processes`.

    `shared_fraction`: shared from other tasks. `success_fraction`: from episodes that succeed at the target task, among
    own transitions, and with `balance_successes` among shared ones, which are else drawn uniformly.
    `candidates_per_shared`: candidates for each shared transition, resampled by the router.
    `n_step`: n of n-step returns. `decode`: images are decoded as they are loaded; else `Batch.to` decodes JPEGs.
    """

    per_task: int
    processes: int = 1
    shared_fraction: float = 0.5
    success_fraction: float = 0.5
    balance_successes: bool = True
    candidates_per_shared: int = 1
    n_step: int = 1
    decode: bool = True


class _Pool:
    """A set of episodes whose steps are drawn uniformly."""

    def __init__(self, replay: Replay, member: NDArray[np.bool_]) -> None:
        self._episode = np.flatnonzero(member)
        self._end = np.cumsum(replay.episode_length[self._episode])
        self._last_step = replay.last_step[self._episode]

    def __len__(self) -> int:
        """Number of steps."""
        return int(self._end[-1]) if len(self._end) else 0

    def draw(self, count: int, rng: np.random.Generator, seen: set[int]) -> NDArray[np.int64]:
        """Draw steps of `count` episodes not in `seen` and add these to it; after TRIES tries, episodes repeat."""
        steps = np.empty(count, np.int64)
        remaining = np.arange(count)
        for last_try in (*[False] * (TRIES - 1), True):
            number = rng.integers(self._end[-1], size=len(remaining))
            member = np.searchsorted(self._end, number, side="right")
            steps[remaining] = self._last_step[member] - (self._end[member] - 1 - number)
            again = []
            for place, episode in zip(remaining.tolist(), self._episode[member].tolist(), strict=True):
                if episode in seen and not last_try:
                    again.append(place)
                seen.add(episode)
            if not again:
                break
            remaining = np.array(again)
        return steps


class Sampler:
    """Stratified sampler: draws the steps and target tasks of a batch by the given generator alone, and loads them."""

    def __init__(self, replay: Replay, tasks: tuple[int, ...], rule: SharingRule, config: SamplerConfig) -> None:
        self._replay, self._tasks, self._config = replay, tasks, config
        self.decodes, self.processes = config.decode, config.processes
        self._least_own = config.processes if rule.uses_q else 0  # of each task: a Q-based rule compares with them
        self._relabel_rewards = rule.reward
        allowed = rule.sources(SKILLS)
        source = replay.episode_task
        self._pools: list[tuple[tuple[_Pool, _Pool], tuple[_Pool, _Pool]]] = []  # for each task: own, shared
        for task in tasks:
            own = source == task
            success = replay.success[:, task] & (own | rule.reward)
            if not own.any():
                raise ValueError(f"{replay.folder}: holds no episode of task {TASK_NAMES[task]}; train without it")
            others = np.isin(source, [j for j in tasks if j != task and allowed[task, j]])
            both = [(_Pool(replay, member & success), _Pool(replay, member & ~success)) for member in (own, others)]
            self._pools.append((both[0], both[1]))

    @property
    def without_success(self) -> tuple[int, ...]:
        """Tasks for which no transition is drawn from an episode labelled as a success."""
        successes = [(own[0], others[0]) if self._config.shared_fraction else (own[0],) for own, others in self._pools]
        return tuple(task for task, pools in zip(self._tasks, successes, strict=True) if not any(pools))

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw a batch: (steps [B], target tasks [B]), grouped by task; no episode repeats if there are enough."""
        steps, targets = [], []
        seen = set[int]()
        size, candidates = self._config.per_task * self._config.processes, self._config.candidates_per_shared
        for task, (own, others) in zip(self._tasks, self._pools, strict=True):
            num_shared = min(self._num_shared(size, rng), size - self._least_own) if any(others) else 0
            fraction = self._config.success_fraction
            among_shared = (
                fraction if self._config.balance_successes else len(others[0]) / max(1, sum(map(len, others)))
            )
            groups = (own, size - num_shared, fraction), (others, candidates * num_shared, among_shared)
            for (successes, failures), count, success_fraction in groups:
                num_successes = _fraction_of(count, success_fraction, rng)
                if not successes or not failures:
                    num_successes = count if successes else 0
                for pool, number in ((successes, num_successes), (failures, count - num_successes)):
                    if number:
                        steps.append(pool.draw(number, rng, seen))
            targets.append(np.full(size + (candidates - 1) * num_shared, task, np.int64))
        return np.concatenate(steps), np.concatenate(targets)

    def _num_shared(self, size: int, rng: np.random.Generator) -> int:
        """Number of shared transitions among a task's `size` in the batch of all processes; equal in each process if
        there are several candidates."""
        if self._config.candidates_per_shared == 1:
            return _fraction_of(size, self._config.shared_fraction, rng)
        return round(self._config.per_task * self._config.shared_fraction) * self._config.processes

    @property
    def images_shape(self) -> tuple[int, ...]:
        """Shape [2 B, H, W, 3] of the decoded images in a process's batch."""
        steps, _ = self.draw(np.random.default_rng(0))  # every draw has the same size
        side = self._replay.frame_size
        return 2 * len(steps) // self.processes, side, side, 3

    def load(self, steps: NDArray[np.int64], targets: NDArray[np.int64], memory: Tensor | None = None) -> Batch:
        """Read and decode the transitions of these steps, relabelled with the reward of the target task.

        `memory`: uint8 buffer of `images_shape`, for images that are decoded here."""
        replay, size = self._replay, len(steps)
        episode = replay.episode_of(steps)
        steps_to_go = replay.steps_to_go(steps)
        n_step = np.minimum(steps_to_go, self._config.n_step)
        frames = replay.read(np.concatenate([steps + episode, steps + episode + n_step]))
        encoded, encoded_size, images = NO_BYTES, NO_SIZES, NO_IMAGES
        if self._config.decode or not all(codec.is_jpeg(frame.image) for frame in frames):
            images = self._decode(frames, memory)
        else:
            encoded = torch.frombuffer(bytearray(b"".join(frame.image for frame in frames)), dtype=torch.uint8)
            encoded_size = torch.tensor([len(frame.image) for frame in frames])
        state = SceneState(np.stack([frame.state for frame in frames]))
        gripper = np.stack([state["gripper_closed"], state["gripper_position"][:, 2]], axis=1)
        marks = landmarks(SceneState(state.vector[:size]))
        done = n_step == steps_to_go
        source = replay.episode_task[episode]
        success = replay.success[episode, targets] & (self._relabel_rewards | (source == targets))

        def tensor(array: NDArray[Any], kind: Any = np.float32) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, kind))

        return Batch(
            image=images[:size],
            next_image=images[size:],
            encoded=encoded,
            encoded_size=encoded_size,
            gripper=tensor(gripper[:size]),
            next_gripper=tensor(gripper[size:]),
            action=tensor(np.stack([frame.action for frame in frames[:size]])),
            reward=tensor(done & success),
            done=tensor(done),
            n_step=tensor(n_step),
            steps_to_go=tensor(steps_to_go),
            success=tensor(success),
            landmark=tensor(marks.value),
            point=tensor(marks.point),
            point_present=tensor(marks.point_present, np.bool_),
            task_index=tensor(targets, np.int64),
            source_task_index=tensor(source, np.int64),
            episode=tensor(episode, np.int64),
            is_shared=tensor(source != targets, np.bool_),
        )

    def _decode(self, frames: list[Frame], memory: Tensor | None) -> Tensor:
        """Decode frames to images uint8 [P, 3, H, W], in `memory` if given; DatasetError if one cannot be decoded."""
        side = self._replay.frame_size
        images = torch.empty((len(frames), side, side, 3), dtype=torch.uint8) if memory is None else memory
        for frame, out in zip(frames, images.numpy(), strict=True):
            try:
                codec.decode(frame.image, out)
            except ValueError as error:
                raise DatasetError(f"{self._replay.folder}: a frame cannot be decoded: {error}") from error
        return images.permute(0, 3, 1, 2)


def _fraction_of(size: int, fraction: float, rng: np.random.Generator) -> int:
    """`fraction` of `size`, rounded at random so that small batches keep it in expectation."""
    return int(size * fraction + rng.random())


class BatchStream:
    """Endless stream of batches; batch n depends on (seed, n) alone, so a resumed run continues it without saved state.

    With several processes, each takes its slice of every task's transitions; together they form the batch of a single
    process, without repeated episodes."""

    def __init__(self, sampler: Sampler, seed: int, first: int = 0, rank: int = 0) -> None:
        self.sampler, self._seed, self._rank, self._first = sampler, seed, rank, first

    def draws(self, worker: int = 0, workers: int = 1) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(steps, target tasks) of every batch, or of every `workers`-th for loader process `worker`."""
        for number in itertools.count(self._first + worker, workers):
            drawn = self.sampler.draw(np.random.default_rng([self._seed, number]))
            steps, targets = (rows.reshape(-1, self.sampler.processes)[:, self._rank] for rows in drawn)
            yield steps, targets

    def __iter__(self) -> Iterator[Batch]:
        return (self.sampler.load(*drawn) for drawn in self.draws())
