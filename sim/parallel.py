"""Runs jobs in worker processes, on this machine or a Ray cluster, and yields results in order of completion."""

from __future__ import annotations

import functools
import itertools
import multiprocessing as mp
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from sim.options import STOP_SIGNALS, leave_signals

Job = TypeVar("Job")
Result = TypeVar("Result")
BACKENDS = ("local", "ray")
AHEAD = 2  # jobs submitted per worker
MAX_DEATHS = 3  # consecutive deaths of workers without a finished job


def run_jobs(
    make_worker: Callable[..., Callable[[Job], Result]],
    arguments: tuple[Any, ...],
    jobs: Iterable[Job],
    workers: int,
    backend: str = "local",
) -> Generator[Result, None, None]:
    """Runs `make_worker(*arguments)` once per worker and calls the result once per job; yields the results.

    Jobs are taken lazily, two ahead per worker. Exceptions of a job are raised here. A worker that dies is replaced and
    its jobs are repeated; ValueError after `MAX_DEATHS` deaths in a row. Closing the iterator, or the end of this
    process, kills the workers at once.
    """
    yield from (_local if backend == "local" else _ray)(make_worker, arguments, iter(jobs), workers)


def run_jobs_here(
    make_worker: Callable[..., Callable[[Job], Result]], arguments: tuple[Any, ...], jobs: Sequence[Job], workers: int
) -> Iterable[Result]:
    """As `run_jobs`, but where one worker will do it is this process, in which nothing needs to start."""
    if min(workers, len(jobs)) <= 1:
        return map(make_worker(*arguments), jobs)
    return run_jobs(make_worker, arguments, jobs, workers)


def _local(
    make_worker: Callable[..., Callable[[Job], Result]], arguments: tuple[Any, ...], jobs: Iterator[Job], workers: int
) -> Generator[Result, None, None]:
    with tempfile.TemporaryDirectory(prefix="switchyard-", ignore_cleanup_errors=True) as scratch:
        yield from _in_pools(functools.partial(_start, scratch, make_worker, arguments), jobs, workers)


def _in_pools(start: Callable[[Connection], None], jobs: Iterator[Any], workers: int) -> Generator[Any, None, None]:
    context = mp.get_context("spawn")
    _start_tracker()
    unfinished: dict[int, Any] = {}
    numbers = itertools.count()
    deaths = 0
    while True:
        for job in itertools.islice(jobs, max(0, workers - len(unfinished))):
            unfinished[next(numbers)] = job
        if not unfinished:
            return
        parent_end, worker_end = context.Pipe()
        pool = ProcessPoolExecutor(min(workers, len(unfinished)), context, initializer=start, initargs=(worker_end,))
        try:
            running = {pool.submit(_call, job): number for number, job in unfinished.items()}
            while running:
                for job in itertools.islice(jobs, max(0, workers * AHEAD - len(running))):
                    number = next(numbers)
                    unfinished[number] = job
                    running[pool.submit(_call, job)] = number
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    del unfinished[running.pop(future)]
                    deaths = 0
                    yield result
        except BrokenProcessPool:
            deaths += 1
            if deaths == MAX_DEATHS:
                raise ValueError("worker processes die (out of memory?); fewer --workers need less") from None
        finally:
            parent_end.close()
            # or shutdown would wait for the rest of a result that its killed worker never sends
            pool._result_queue._writer.close()  # type: ignore[attr-defined]
            pool.shutdown(wait=False, cancel_futures=True)


def _start_tracker() -> None:
    """Starts multiprocessing's resource tracker with stop signals blocked: a batch queue sends them to all processes of
    a job, and the tracker would die with a long traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(scratch: str, make_worker: Callable[..., Any], arguments: tuple[Any, ...], parent: Connection) -> None:
    leave_signals()
    tempfile.tempdir = scratch  # killed workers do not clean up: the iterator removes this folder
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    try:
        _call.run = make_worker(*arguments)  # type: ignore[attr-defined]
    except Exception as error:  # raised by the first job: raised here, it would only break the pool
        _call.run = functools.partial(_refuse, error)  # type: ignore[attr-defined]


def _refuse(error: Exception, job: Any) -> None:
    raise error


def _exit_with_parent(parent: Connection) -> None:
    """Exits when the parent's end of the pipe closes, with the iterator or with its process. Nothing is ever sent."""
    parent.poll(None)
    os._exit(1)


def _call(job: Any) -> Any:
    return _call.run(job)  # type: ignore[attr-defined]


class _Actor:
    """A worker of the Ray cluster. As in `_start`, a failure to start is raised by the first job."""

    def __init__(self, make_worker: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
        try:
            self._run = make_worker(*arguments)
        except Exception as error:
            self._run = functools.partial(_refuse, error)

    def call(self, job: Any) -> Any:
        return self._run(job)


def _ray(
    make_worker: Callable[..., Callable[[Job], Result]], arguments: tuple[Any, ...], jobs: Iterator[Job], workers: int
) -> Generator[Result, None, None]:
    try:
        import ray
    except ImportError:
        raise ValueError("backend ray needs Ray: pip install -e '.[ray]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # the cluster at RAY_ADDRESS, else a local one
    remote = ray.remote(num_cpus=1, max_restarts=MAX_DEATHS, max_task_retries=MAX_DEATHS)(_Actor)
    num_cpus = int(ray.cluster_resources().get("CPU", 1))  # any further actor would wait for ever
    actors = [remote.remote(make_worker, arguments) for _ in range(max(1, min(workers, num_cpus)))]
    running: dict[Any, Any] = {}

    def submit(actor: Any) -> None:
        for job in itertools.islice(jobs, 1):
            running[actor.call.remote(job)] = actor

    try:
        for actor in actors * AHEAD:
            submit(actor)
        while running:
            done = ray.wait(list(running))[0][0]
            actor = running.pop(done)
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayActorError as error:
                raise ValueError(f"workers of the Ray cluster die: {str(error).splitlines()[0]}") from None
            submit(actor)
            yield result
    finally:
        for actor in actors:
            ray.kill(actor)
