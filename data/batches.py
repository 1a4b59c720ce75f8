"""Batches: the tensors of one gradient step, and the sampler that draws them by task, source and outcome.

Each batch holds the same number of transitions for every trained task. A part of them is the task's own, the rest is
drawn from the tasks that the sharing rule allows. Of both a constant share comes from episodes that succeed at the
target task (the rebalancing of MT-Opt, arXiv:2104.08212).
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
NO_PICTURES = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
NO_BYTES, NO_SIZES = torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)


@dataclass
class Batch:
    """B transitions (s, a, r_i, s') for the target task i = `task_index`; j = `source_task_index` collected them.

    s' comes `span` steps after s, or where the episode ends."""

    image: Tensor  # uint8 [B, 3, H, W], stored size: not yet cropped
    next_image: Tensor  # uint8 [B, 3, H, W]
    gripper: Tensor  # float32 [B, 2]: closed (0/1), height (m)
    next_gripper: Tensor  # float32 [B, 2]
    action: Tensor  # float32 [B, 5], sim/actions.py
    reward: Tensor  # float32 [B], of the target task: 1 where s' ends an episode that its detector accepts
    done: Tensor  # float32 [B], 1 where s' is the end: the success is decided there, so nothing is bootstrapped
    span: Tensor  # float32 [B], steps from s to s'
    left: Tensor  # float32 [B], steps from s to the end of the episode
    success: Tensor  # float32 [B], whether the target task's detector accepts the end; 0 where a rule keeps it unknown
    landmark: Tensor  # float32 [B, L, 5], privileged: where things are (sim/landmarks.py)
    point: Tensor  # float32 [B, P, 2], privileged: where the stored frame shows them, in sides of the frame
    point_present: Tensor  # bool [B, P]
    task_index: Tensor  # int64 [B]
    source_task_index: Tensor  # int64 [B]
    episode: Tensor  # int64 [B], its number in the dataset
    is_shared: Tensor  # bool [B], drawn from another task
    encoded: Tensor = NO_BYTES  # uint8 [sum]: the files of `image` and then of `next_image`, where `to` decodes them
    encoded_size: Tensor = NO_SIZES  # int64 [2 B]: bytes of each

    def to(self, device: torch.device | str) -> Batch:
        """The batch there, its pictures decoded there if they were not yet."""
        rest = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("encoded")}
        if len(self.encoded_size):
            pictures = decode_on(device, self.encoded, self.encoded_size)
            rest |= {"image": pictures[: len(self)], "next_image": pictures[len(self) :]}
        moved = {name: value.to(device, non_blocking=True) for name, value in rest.items()}
        return Batch(**moved)

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU reads by itself; PyTorch's loader calls it too."""
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    def select(self, index: Tensor) -> Batch:
        """These rows of a batch whose pictures are decoded."""
        chosen = {f.name: getattr(self, f.name)[index] for f in fields(self) if not f.name.startswith("encoded")}
        return Batch(**chosen)

    def arrays(self, pictures: bool) -> dict[str, NDArray[Any]]:
        """All fields, with or without the decoded pictures."""
        names = (f.name for f in fields(self) if pictures or f.name not in ("image", "next_image"))
        return {name: getattr(self, name).numpy() for name in names}

    def __len__(self) -> int:
        return len(self.task_index)


def decode_on(device: torch.device | str, encoded: Tensor, size: Tensor) -> Tensor:
    """Pictures uint8 [B, 3, H, W] on the device from their files: by nvJPEG (torchcodec) on a GPU, else one by one."""
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
    """`per_task` transitions for each task in each of the `processes`. `shared` is the part drawn from others,
    `success` that of successes: of own ones, and where `balanced` of shared ones, which are drawn evenly elsewhere.
    `offered`: transitions in the place of each shared one, for the router to choose.

    `n_step`: steps from s to s'. `decode`: pictures are decoded as they are loaded; else `Batch.to` decodes those
    that are JPEG.
    """

    per_task: int
    processes: int = 1
    shared: float = 0.5
    success: float = 0.5
    balanced: bool = True
    offered: int = 1
    n_step: int = 1
    decode: bool = True


class _Pool:
    """Some episodes, of which any step is drawn as often as any other."""

    def __init__(self, replay: Replay, member: NDArray[np.bool_]) -> None:
        self._episode = np.flatnonzero(member)
        self._end = np.cumsum(replay.episode_length[self._episode])
        self._last_step = replay.last_step[self._episode]

    def __len__(self) -> int:
        """Steps."""
        return int(self._end[-1]) if len(self._end) else 0

    def draw(self, count: int, rng: np.random.Generator, seen: set[int]) -> NDArray[np.int64]:
        """Steps of `count` episodes, none of which is among those `seen`, to which they are added; where so many are
        not to be found in a few tries, some come again."""
        steps = np.empty(count, np.int64)
        left = np.arange(count)
        for last_try in (*[False] * (TRIES - 1), True):
            number = rng.integers(self._end[-1], size=len(left))
            member = np.searchsorted(self._end, number, side="right")
            steps[left] = self._last_step[member] - (self._end[member] - 1 - number)
            again = []
            for place, episode in zip(left.tolist(), self._episode[member].tolist(), strict=True):
                if episode in seen and not last_try:
                    again.append(place)
                seen.add(episode)
            if not again:
                break
            left = np.array(again)
        return steps


class Sampler:
    """Draws step numbers for whole batches: a pure function of the generator it is given."""

    def __init__(self, replay: Replay, tasks: tuple[int, ...], rule: SharingRule, config: SamplerConfig) -> None:
        self._replay, self._tasks, self._config = replay, tasks, config
        self.decodes, self.processes = config.decode, config.processes
        self._least_own = config.processes if rule.uses_q else 0  # of each task: such a rule compares with them
        self._told_reward = rule.reward
        allowed = rule.sources(SKILLS)
        source = replay.episode_task
        self._pools: list[tuple[tuple[_Pool, _Pool], tuple[_Pool, _Pool]]] = []  # of each task: own, others'
        for task in tasks:
            own, won = source == task, replay.success[:, task]
            told = won & (own | rule.reward)
            if not own.any():
                raise ValueError(f"{replay.folder}: holds no episode of task {TASK_NAMES[task]}; train without it")
            others = np.isin(source, [j for j in tasks if j != task and allowed[task, j]])
            both = [(_Pool(replay, member & told), _Pool(replay, member & ~told)) for member in (own, others)]
            self._pools.append((both[0], both[1]))

    @property
    def without_success(self) -> tuple[int, ...]:
        """Tasks of which no transition that may be drawn comes from an episode that is told to succeed."""
        won = [(own[0], others[0]) if self._config.shared else (own[0],) for own, others in self._pools]
        return tuple(task for task, pools in zip(self._tasks, won, strict=True) if not any(pools))

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(steps [B], target tasks [B]) of one batch, grouped by task. No episode comes twice, if there are enough."""
        steps, targets = [], []
        seen = set[int]()
        size, offered = self._config.per_task * self._config.processes, self._config.offered
        for task, (own, others) in zip(self._tasks, self._pools, strict=True):
            num_shared = min(self._num_shared(size, rng), size - self._least_own) if any(others) else 0
            success = self._config.success
            of_shared = success if self._config.balanced else len(others[0]) / max(1, sum(map(len, others)))
            asked = (own, size - num_shared, success), (others, offered * num_shared, of_shared)
            for (won, lost), count, part in asked:
                num_won = _part_of(count, part, rng)
                if not won or not lost:
                    num_won = count if won else 0
                for pool, number in ((won, num_won), (lost, count - num_won)):
                    if number:
                        steps.append(pool.draw(number, rng, seen))
            targets.append(np.full(size + (offered - 1) * num_shared, task, np.int64))
        return np.concatenate(steps), np.concatenate(targets)

    def _num_shared(self, size: int, rng: np.random.Generator) -> int:
        """Of a task's `size` places in the batch of all processes; as many in each where several are offered."""
        if self._config.offered == 1:
            return _part_of(size, self._config.shared, rng)
        return round(self._config.per_task * self._config.shared) * self._config.processes

    @property
    def pictures_shape(self) -> tuple[int, ...]:
        """[2 B, H, W, 3] of the decoded pictures of one process's batch."""
        steps, _ = self.draw(np.random.default_rng(0))  # every draw has as many
        side = self._replay.frame_size
        return 2 * len(steps) // self.processes, side, side, 3

    def load(self, steps: NDArray[np.int64], targets: NDArray[np.int64], memory: Tensor | None = None) -> Batch:
        """Read and decode the transitions of these steps, with the reward of the target task.

        `memory`: uint8 of `pictures_shape`, for the pictures if they are decoded here."""
        replay, size = self._replay, len(steps)
        episode = replay.episode_of(steps)
        left = replay.steps_left(steps)
        span = np.minimum(left, self._config.n_step)
        frames = replay.read(np.concatenate([steps + episode, steps + episode + span]))
        encoded, encoded_size, images = NO_BYTES, NO_SIZES, NO_PICTURES
        if self._config.decode or not all(codec.is_jpeg(frame.picture) for frame in frames):
            images = self._decode(frames, memory)
        else:
            encoded = torch.frombuffer(bytearray(b"".join(frame.picture for frame in frames)), dtype=torch.uint8)
            encoded_size = torch.tensor([len(frame.picture) for frame in frames])
        state = SceneState(np.stack([frame.state for frame in frames]))
        gripper = np.stack([state["gripper_closed"], state["gripper_position"][:, 2]], axis=1)
        marks = landmarks(SceneState(state.vector[:size]))
        done = span == left
        source = replay.episode_task[episode]
        success = replay.success[episode, targets] & (self._told_reward | (source == targets))

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
            span=tensor(span),
            left=tensor(left),
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
        """uint8 [P, 3, H, W], on the `memory` if there is any; DatasetError for a frame that is no picture."""
        side = self._replay.frame_size
        images = torch.empty((len(frames), side, side, 3), dtype=torch.uint8) if memory is None else memory
        for frame, out in zip(frames, images.numpy(), strict=True):
            try:
                codec.decode(frame.picture, out)
            except ValueError as error:
                raise DatasetError(f"{self._replay.folder}: a frame cannot be decoded: {error}") from error
        return images.permute(0, 3, 1, 2)


def _part_of(size: int, part: float, rng: np.random.Generator) -> int:
    """`part` of `size`, rounded at random so that small batches keep the share on average."""
    return int(size * part + rng.random())


class BatchStream:
    """An endless stream of batches; batch number n depends on (seed, n) alone, so a resumed run continues it.

    Of several processes, each has its part of every task's transitions: together they have the batch that one process
    would have, and no episode twice."""

    def __init__(self, sampler: Sampler, seed: int, first: int = 0, rank: int = 0) -> None:
        self.sampler, self._seed, self._rank, self._first = sampler, seed, rank, first

    def draws(self, worker: int = 0, workers: int = 1) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Steps and targets of each batch, or of every `workers`-th."""
        for number in itertools.count(self._first + worker, workers):
            drawn = self.sampler.draw(np.random.default_rng([self._seed, number]))
            steps, targets = (rows.reshape(-1, self.sampler.processes)[:, self._rank] for rows in drawn)
            yield steps, targets

    def __iter__(self) -> Iterator[Batch]:
        return (self.sampler.load(*drawn) for drawn in self.draws())
