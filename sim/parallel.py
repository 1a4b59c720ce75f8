"""Jobs for worker processes, of this machine or of a Ray cluster; results come as they are ready, in any order."""

from __future__ import annotations

import functools
import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
BACKENDS = ("local", "ray")
MAX_DEATHS = 3  # of workers, one after another with nothing finished in between


def run_jobs(
    make_worker: Callable[..., Callable[[Job], Result]],
    arguments: tuple[Any, ...],
    jobs: Sequence[Job],
    workers: int,
    backend: str = "local",
) -> Generator[Result, None, None]:
    """`make_worker(*arguments)` is called once in each worker, and what it returns once for each job.

    An error of a job is raised here. A worker that dies is replaced and its jobs are done again; ValueError where that
    does not help. Closing the iterator, like the end of this process, ends the workers at once.
    """
    yield from (_local if backend == "local" else _ray)(make_worker, arguments, jobs, workers)


def _local(
    make_worker: Callable[..., Callable[[Job], Result]], arguments: tuple[Any, ...], jobs: Sequence[Job], workers: int
) -> Generator[Result, None, None]:
    context = mp.get_context("spawn")
    waiting = dict(enumerate(jobs))
    deaths = 0
    while waiting:
        ours, theirs = context.Pipe()
        start = (theirs, make_worker, arguments)
        pool = ProcessPoolExecutor(min(workers, len(waiting)), context, initializer=_start, initargs=start)
        try:
            futures = {pool.submit(_call, job): number for number, job in waiting.items()}
            for future in as_completed(futures):
                result = future.result()
                del waiting[futures.pop(future)]
                deaths = 0
                yield result
        except BrokenProcessPool:
            deaths += 1
            if deaths == MAX_DEATHS:
                raise ValueError("worker processes die (out of memory?); fewer --workers need less") from None
        finally:
            ours.close()
            pool.shutdown(wait=False, cancel_futures=True)


def _start(parent: Connection, make_worker: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        _call.run = make_worker(*arguments)  # type: ignore[attr-defined]
    except (ValueError, OSError) as error:  # is raised by the first job, else the pool would just break
        _call.run = functools.partial(_refuse, error)  # type: ignore[attr-defined]


def _refuse(error: Exception, job: Any) -> None:
    raise error


def _end_with(parent: Connection) -> None:
    """Nothing is ever sent: the other end closes with the iterator, or with the process that held it."""
    parent.poll(None)
    os._exit(1)


def _call(job: Any) -> Any:
    return _call.run(job)  # type: ignore[attr-defined]


class _Actor:
    def __init__(self, make_worker: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
        self._run = make_worker(*arguments)

    def call(self, job: Any) -> Any:
        return self._run(job)


def _ray(
    make_worker: Callable[..., Callable[[Job], Result]], arguments: tuple[Any, ...], jobs: Sequence[Job], workers: int
) -> Generator[Result, None, None]:
    try:
        import ray
        from ray.util import ActorPool
    except ImportError:
        raise ValueError("backend ray needs Ray: pip install -e '.[ray]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # the cluster of RAY_ADDRESS, else one of this machine
    remote = ray.remote(num_cpus=1, max_restarts=MAX_DEATHS, max_task_retries=MAX_DEATHS)(_Actor)
    actors = [remote.remote(make_worker, arguments) for _ in range(min(workers, len(jobs)))]
    try:
        yield from ActorPool(actors).map_unordered(lambda actor, job: actor.call.remote(job), jobs)
    finally:
        for actor in actors:
            ray.kill(actor)
