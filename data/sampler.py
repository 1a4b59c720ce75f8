"""The sampler of image transitions: stratified by task, source and outcome, shared ones drawn by a sharing rule.

Each batch holds the same number of transitions for every trained task: some are the task's own, the others are shared
from the tasks that the sharing rule allows and relabelled with the target task's reward. A constant fraction of the own
ones comes from successful episodes (the rebalancing of MT-Opt, arXiv:2104.08212).

Shapes: `B` transitions of a batch, `P` further steps that are scored, `N` tasks, `E` episodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data import codec
from data.batches import NO_BYTES, NO_IMAGES, NO_SIZES, Batch, split_images, split_readings
from data.decoded_frames import DecodedFrames, columns_of, decode_frames
from data.devices import to_device
from data.episode_router import EpisodeRouter
from data.replay import Replay
from data.shards import Frame
from data.sharing import SharingRule
from sim.tasks import SKILLS, TASK_NAMES

TRIES = 20  # to find an episode that is not in the batch yet


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Stratification of a batch: `per_task` transitions for each task in each of the `processes`.

    `shared_fraction`: shared from other tasks. `success_fraction`: of the own ones, from episodes that succeed at the
    target task, and with `balance_shared` of the shared ones, too, which are else drawn by the rule: the detector then
    chooses what is shared. `candidates_per_shared`: if not 0, candidates for each shared transition, of which the
    router chooses, with `per_task` own ones. `by_episode`: shared ones are drawn from episodes by their weights.
    `scored`: further steps in each process, to be scored. `n_step`: n of n-step returns. `decode`: images are decoded
    as they are loaded; else `Batch.to` decodes JPEGs.
    """

    per_task: int
    processes: int = 1
    shared_fraction: float = 0.5
    success_fraction: float = 0.5
    balance_shared: bool = False
    candidates_per_shared: int = 0
    by_episode: bool = False
    scored: int = 0
    n_step: int = 1
    decode: bool = True


class _Pool:
    """A set of episodes whose steps are drawn uniformly, or with `weight` [E] in proportion to their episode's."""

    def __init__(self, replay: Replay, member: NDArray[np.bool_], weight: NDArray[np.floating] | None = None) -> None:
        self._episode = np.flatnonzero(member)
        self._length = replay.episode_length[self._episode]
        self._end = np.cumsum(self._length if weight is None else self._length * weight[self._episode].astype(float))
        self._first_step = replay.last_step[self._episode] - self._length + 1

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._episode)

    def draw(self, count: int, rng: np.random.Generator, seen: set[int]) -> NDArray[np.int64]:
        """Draw steps of `count` episodes not in `seen` and add these to it; after TRIES tries, episodes repeat."""
        steps = np.empty(count, np.int64)
        remaining = np.arange(count)
        for last_try in (*[False] * (TRIES - 1), True):
            number = rng.random(len(remaining)) * self._end[-1]
            member = np.searchsorted(self._end, number, side="right")
            before = np.concatenate([[0.0], self._end])[member]
            within = (number - before) / (self._end[member] - before) * self._length[member]
            steps[remaining] = self._first_step[member] + within.astype(np.int64).clip(0, self._length[member] - 1)
            again = []
            for slot, episode in zip(remaining.tolist(), self._episode[member].tolist(), strict=True):
                if episode in seen and not last_try:
                    again.append(slot)
                seen.add(episode)
            if not again:
                break
            remaining = np.array(again)
        return steps


def drawn_as_often(replay: Replay, success_fraction: float) -> NDArray[np.float64]:
    """How often batches hold an own failure and an own success of each task, compared with its data: [N, 2]."""
    steps = np.diagonal(replay.steps_by_outcome(len(TASK_NAMES)), axis1=1, axis2=2)  # [2, N]
    drawn = np.array([1 - success_fraction, success_fraction])[:, None] * steps.sum(0) / steps.clip(1)
    return np.where((steps > 0).all(0), drawn, 1.0).T


class Sampler:
    """Stratified sampler: draws the steps and target tasks of a batch by the given generator and the rule's weights of
    episodes alone, and loads them."""

    def __init__(self, replay: Replay, tasks: tuple[int, ...], rule: SharingRule, config: SamplerConfig) -> None:
        self._replay, self._tasks, self._config = replay, tasks, config
        self.decodes, self.processes, self.draws_episodes = config.decode, config.processes, config.by_episode
        self._least_own = config.processes if rule.uses_q else 0  # of each task: a Q-based rule compares with them
        self._relabel_rewards = rule.reward
        source = replay.episode_task
        self.sources = rule.other_sources(SKILLS, tasks)
        self._own: list[tuple[_Pool, _Pool]] = []  # for each task: successes, failures
        self._others: list[tuple[_Pool, ...]] = []
        for task in tasks:
            own = source == task
            success = replay.success[:, task] & (own | rule.reward)
            if not own.any():
                raise ValueError(f"{replay.folder}: holds no episode of task {TASK_NAMES[task]}; train without it")
            others = self.sources[task, source]
            self._own.append((_Pool(replay, own & success), _Pool(replay, own & ~success)))
            masks = (others & success, others & ~success) if config.balance_shared else (others,)
            self._others.append(tuple(_Pool(replay, mask) for mask in masks))

    @property
    def tasks_without_success(self) -> tuple[int, ...]:
        """Tasks no episode of which, own or shared, is labelled as a success."""
        success, source = self._replay.success, self._replay.episode_task
        reached = (success[:, task] & (self.sources[task, source] | (source == task)) for task in self._tasks)
        return tuple(task for task, found in zip(self._tasks, reached, strict=True) if not found.any())

    def pools_of(self, weights: NDArray[np.floating]) -> list[tuple[_Pool, ...]]:
        """For each task, the episodes that it shares in proportion to the rule's weights [N, E]."""
        source = self._replay.episode_task
        masks = [self.sources[task, source] & (weights[task] > 0) for task in self._tasks]
        return [(_Pool(self._replay, mask, weights[task]),) for mask, task in zip(masks, self._tasks, strict=True)]

    def draw(
        self, rng: np.random.Generator, pools: list[tuple[_Pool, ...]] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw a batch: (steps [B], target tasks [B]), grouped by task, own ones first; no episode repeats if there are
        enough. `pools`: of `pools_of`, for a rule that chooses episodes; where a task shares fewer episodes than there
        are shared places, own steps take their places. Without pools, shared ones are drawn evenly."""
        steps, targets = [], []
        seen = set[int]()
        config, size = self._config, self._config.per_task * self._config.processes
        for k, task in enumerate(self._tasks):
            others = self._others[k] if pools is None else pools[k]
            num_shared = min(self._num_shared(size, rng), size - self._least_own) if any(map(len, others)) else 0
            if config.by_episode and num_shared:
                num_shared = min(num_shared, len(others[0]))
            num_own = size if config.candidates_per_shared else size - num_shared
            num_shared *= config.candidates_per_shared or 1
            for drawn_from, count in ((self._own[k], num_own), (others, num_shared)):
                numbers = [count]
                if len(drawn_from) > 1:  # successes, failures
                    num_successes = _fraction_of(count, config.success_fraction, rng)
                    if not len(drawn_from[0]) or not len(drawn_from[1]):
                        num_successes = count if len(drawn_from[0]) else 0
                    numbers = [num_successes, count - num_successes]
                pairs = zip(drawn_from, numbers, strict=False)  # no pool: nothing is shared
                steps += [pool.draw(number, rng, seen) for pool, number in pairs if number]
            targets.append(np.full(num_own + num_shared, task, np.int64))
        return np.concatenate(steps), np.concatenate(targets)

    def _num_shared(self, size: int, rng: np.random.Generator) -> int:
        """Number of shared transitions among a task's `size` in the batch of all processes; equal in each process if
        there are candidates."""
        if not self._config.candidates_per_shared:
            return _fraction_of(size, self._config.shared_fraction, rng)
        return round(self._config.per_task * self._config.shared_fraction) * self._config.processes

    @property
    def images_shape(self) -> tuple[int, ...]:
        """Shape [2 B + P, H, W, 3] of the decoded images in a process's batch."""
        steps, _ = self.draw(np.random.default_rng(0))  # every draw has the same size
        side = self._replay.frame_size
        return 2 * len(steps) // self.processes + self._config.scored, side, side, 3

    def load(self, drawn: Drawn, memory: Tensor | None = None) -> Batch:
        """Read and decode the transitions that were drawn, relabelled with the reward of the target task.

        `memory`: uint8 buffer of `images_shape`, for images that are decoded here."""
        size = len(drawn.steps)
        numbers, labels = self._label(drawn)
        frames = self._replay.read(numbers)
        encoded, encoded_size, images = NO_BYTES, NO_SIZES, NO_IMAGES
        if self._config.decode or not all(codec.is_jpeg(frame.image) for frame in frames):
            images = self._decode(frames, memory)
        else:
            encoded = torch.frombuffer(bytearray(b"".join(frame.image for frame in frames)), dtype=torch.uint8)
            encoded_size = torch.tensor([len(frame.image) for frame in frames])
        columns = columns_of(frames, size)
        return Batch(
            **split_images(images, size),
            encoded=encoded,
            encoded_size=encoded_size,
            **split_readings(columns.pop("gripper"), columns.pop("action"), size),
            **columns,
            **labels,
        )

    def gather(self, drawn: Drawn, frames: DecodedFrames) -> Batch:
        """As `load`, on the device of the frames."""
        size, device = len(drawn.steps), frames.device
        numbers, labels = self._label(drawn)
        number = to_device(torch.from_numpy(numbers), device)
        columns = frames.columns
        marks = {name: columns[name][number[:size]] for name in ("landmark", "point", "point_present")}
        return Batch(
            **split_images(columns["image"][number].permute(0, 3, 1, 2), size),
            **split_readings(columns["gripper"][number], columns["action"][number], size),
            **marks,
            **{name: to_device(values, device) for name, values in labels.items()},
        )

    def _label(self, drawn: Drawn) -> tuple[NDArray[np.int64], dict[str, Tensor]]:
        """Numbers of the frames [2 B + P] of what was drawn: of s, of s' and of the steps that are scored; and the
        fields of a batch that follow from episodes and target tasks."""
        steps, targets, replay = drawn.steps, drawn.targets, self._replay
        episode = replay.episode_of(steps)
        steps_to_go = replay.steps_to_go(steps)
        n_step = np.minimum(steps_to_go, self._config.n_step)
        numbers = [steps + episode, steps + episode + n_step, drawn.scored_steps + drawn.scored_episodes]
        done = n_step == steps_to_go
        source = replay.episode_task[episode]
        success = replay.success[episode, targets] & (self._relabel_rewards | (source == targets))

        def tensor(array: NDArray[Any], kind: Any = np.float32) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, kind))

        return np.concatenate(numbers), {
            "reward": tensor(done & success),
            "done": tensor(done),
            "n_step": tensor(n_step),
            "steps_to_go": tensor(steps_to_go),
            "success": tensor(success),
            "task_index": tensor(targets, np.int64),
            "source_task_index": tensor(source, np.int64),
            "episode": tensor(episode, np.int64),
            "is_shared": tensor(source != targets, np.bool_),
            "score_episode": tensor(drawn.scored_episodes, np.int64),
        }

    def _decode(self, frames: list[Frame], memory: Tensor | None) -> Tensor:
        """Decode frames to images uint8 [P, 3, H, W], in `memory` if given; DatasetError if one cannot be decoded."""
        side = self._replay.frame_size
        images = torch.empty((len(frames), side, side, 3), dtype=torch.uint8) if memory is None else memory
        decode_frames(self._replay, frames, images)
        return images.permute(0, 3, 1, 2)


def _fraction_of(size: int, fraction: float, rng: np.random.Generator) -> int:
    """`fraction` of `size`, rounded at random so that small batches keep it in expectation."""
    return int(size * fraction + rng.random())


@dataclass(frozen=True)
class Drawn:
    """What a process loads for a batch: `steps` and their target tasks [B], and further steps to be scored, with their
    episodes, [P]; int64."""

    steps: NDArray[np.int64]
    targets: NDArray[np.int64]
    scored_steps: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    scored_episodes: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


class BatchStream:
    """Endless stream of batches. Batch n depends on (seed, n), and where a rule chooses episodes on the scores that
    count for it, so a resumed run continues it. Batches are drawn in order and at most LAG before they are learned
    from.

    With several processes, each takes its slice of every task's transitions; together they form the batch of a single
    process, without repeated episodes."""

    def __init__(
        self, sampler: Sampler, seed: int, first: int = 0, rank: int = 0, episodes: EpisodeRouter | None = None
    ) -> None:
        """`episodes`: their scores, which grow with the training."""
        self.sampler, self._seed, self._rank, self._first, self._episodes = sampler, seed, rank, first, episodes
        self._pools: tuple[int, list[tuple[_Pool, ...]]] | None = None

    def draws(self) -> Iterator[Drawn]:
        """What this process loads, batch by batch."""
        processes = self.sampler.processes
        for number in itertools.count(self._first):
            drawn = self.sampler.draw(np.random.default_rng([self._seed, number]), self._pools_for(number))
            rows = [column.reshape(-1, processes)[:, self._rank] for column in drawn]
            if self._episodes is not None:
                episode, step = self._episodes.scores.schedule.steps(number)
                rows += [column[self._rank :: processes] for column in (step, episode)]
            yield Drawn(*rows)

    def _pools_for(self, number: int) -> list[tuple[_Pool, ...]] | None:
        """The shared episodes for a batch, for a sampler that draws by the rule's weights."""
        if self._episodes is None or not self.sampler.draws_episodes:
            return None
        found, weights = self._episodes.scores.version_of(number), self._episodes.weights(number)
        if found is None or weights is None:
            return None
        _, since = found
        if self._pools is None or self._pools[0] != since:
            self._pools = since, self.sampler.pools_of(weights[0].cpu().numpy())
        return self._pools[1]

    def __iter__(self) -> Iterator[Batch]:
        return (self.sampler.load(drawn) for drawn in self.draws())
