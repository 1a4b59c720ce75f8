"""Rollouts in the simulator, in worker processes, and success rates with Wilson intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.intervals import wilson
from sim.parallel import run_jobs
from sim.policies import CrudePolicy, Policy, RandomPolicy, ScriptedPolicy
from sim.tasks import TASKS, task_by_name

if TYPE_CHECKING:
    from models.checkpoint import Source  # imports torch, which a worker of a scripted policy does not need

FILM_PX = 240  # of the frames of films


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Success rate of one policy on one task, with its 95% Wilson score `interval`."""

    task: str
    policy: str
    successes: int
    episodes: int
    seed: int
    checkpoint: str | None
    wall_time_s: float

    @property
    def rate(self) -> float:
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.successes, self.episodes)

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {**asdict(self), "success_rate": self.rate, "low": low, "high": high}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> EvalResult:
        return cls(**{key: row[key] for key in cls.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class EpisodeJob:
    """One evaluation episode; its scene and its policy's random numbers depend on (seed, task, number) alone."""

    task: str
    number: int
    seed: int
    filmed: bool


@dataclass(frozen=True, kw_only=True)
class EpisodeOutcome:
    """Outcome of an `EpisodeJob`."""

    task: str
    number: int
    success: bool
    steps: int
    wall_time_s: float
    film: tuple[NDArray[np.uint8], ...]  # each [FILM_PX, FILM_PX, 3]; empty unless asked for


PolicyMaker = Callable[[], Policy]  # called for each episode: some policies have a state within one


def _from_checkpoint(checkpoint: Source) -> PolicyMaker:
    import torch

    from eval.policy import CEMPolicy

    torch.set_num_threads(1)  # the workers share the cores
    policy = CEMPolicy.load(checkpoint)
    return lambda: policy


POLICIES: dict[str, Callable[[Any], PolicyMaker]] = {  # by name, from a checkpoint
    "checkpoint": _from_checkpoint,
    "random": lambda checkpoint: RandomPolicy,
    "scripted": lambda checkpoint: ScriptedPolicy,
    "crude": lambda checkpoint: CrudePolicy,
}


def episode_jobs(tasks: Iterable[str], episodes: int, seed: int, filmed: int = 0) -> list[EpisodeJob]:
    """`episodes` jobs of each task, the tasks in turn; the first `filmed` of each with a film."""
    return [
        EpisodeJob(task=task, number=number, seed=seed, filmed=number < filmed)
        for number in range(episodes)
        for task in tasks
    ]


def rollout(
    policy: str, checkpoint: Source, env_options: dict[str, Any], jobs: list[EpisodeJob], workers: int
) -> Generator[EpisodeOutcome, None, None]:
    """Play episodes in `workers` processes, each with a `PickPlaceEnv(**env_options)`; yields outcomes as they end."""
    return run_jobs(Evaluator, (policy, checkpoint, env_options), jobs, workers)


class Evaluator:
    """A worker's environment and policy; called with a job, it plays the episode."""

    def __init__(self, policy: str, checkpoint: Source, env_options: dict[str, Any]) -> None:
        from sim.env import PickPlaceEnv

        self._env = PickPlaceEnv(**env_options)
        self._make_policy = POLICIES[policy](checkpoint)

    def __call__(self, job: EpisodeJob) -> EpisodeOutcome:
        from sim.env import as_action, as_batch

        env, policy, task = self._env, self._make_policy(), task_by_name(job.task)
        begin = time.perf_counter()
        rng = np.random.default_rng([job.seed, task.index, job.number])
        observation, info = env.reset(seed=int(rng.integers(2**31)), options={"task": task.name})
        film = [env.world.camera.render(FILM_PX)] if job.filmed else []
        steps, done = 0, False
        while not done:
            action = policy.act(as_batch(observation, info), np.array([task.index]), rng)[0]
            observation, reward, terminated, truncated, info = env.step(as_action(action))
            steps += 1
            done = terminated or truncated
            if job.filmed:
                film.append(env.world.camera.render(FILM_PX))
        return EpisodeOutcome(
            task=task.name,
            number=job.number,
            success=reward > 0,
            steps=steps,
            wall_time_s=time.perf_counter() - begin,
            film=tuple(film),
        )


def summarise(
    outcomes: list[EpisodeOutcome], policy: str, checkpoint: str | Path | None, seed: int
) -> list[EvalResult]:
    """Success rate of each task, in the order of the task table."""
    results = []
    for name in TASKS:
        of_task = [outcome for outcome in outcomes if outcome.task == name]
        if of_task:
            results.append(
                EvalResult(
                    task=name,
                    policy=policy,
                    successes=sum(outcome.success for outcome in of_task),
                    episodes=len(of_task),
                    seed=seed,
                    checkpoint=None if checkpoint is None else str(checkpoint),
                    wall_time_s=sum(outcome.wall_time_s for outcome in of_task),
                )
            )
    return results
