"""Jobs for worker processes, of this machine or of a Ray cluster; results come as they are ready, in any order."""

from __future__ import annotations

import functools
import itertools
import multiprocessing as mp
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from sim.options import STOP_SIGNALS, leave_signals

Job = TypeVar("Job")
Result = TypeVar("Result")
BACKENDS = ("local", "ray")
AHEAD = 2  # jobs submitted for each worker
MAX_DEATHS = 3  # of workers, one after another with nothing finished in between


def run_jobs(
    make_worker: Callable[..., Callable[[Job], Result]],
    arguments: tuple[Any, ...],
    jobs: Iterable[Job],
    workers: int,
    backend: str = "local",
) -> Generator[Result, None, None]:
    """`make_worker(*arguments)` is called once in each worker, and what it returns once for each job.

    Jobs are taken as workers come free for them, two ahead. An error of a job is raised here. A worker that dies is
    replaced and its jobs are done again; ValueError where that does not help. Closing the iterator, like the end of
    this process, ends the workers at once.
    """
    yield from (_local if backend == "local" else _ray)(make_worker, arguments, iter(jobs), workers)


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
        ours, theirs = context.Pipe()
        pool = ProcessPoolExecutor(min(workers, len(unfinished)), context, initializer=start, initargs=(theirs,))
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
            ours.close()
            # else the rest of a result that a worker's end cut short would be waited for
            pool._result_queue._writer.close()  # type: ignore[attr-defined]
            pool.shutdown(wait=False, cancel_futures=True)


def _start_tracker() -> None:
    """multiprocessing's helper process, deaf to the signals that stop a command: else it dies of what a batch queue
    sends to all processes of a job, and says so at length."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(scratch: str, make_worker: Callable[..., Any], arguments: tuple[Any, ...], parent: Connection) -> None:
    leave_signals()
    tempfile.tempdir = scratch  # what a worker leaves there goes with the iterator: it ends without cleaning up
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        _call.run = make_worker(*arguments)  # type: ignore[attr-defined]
    except Exception as error:  # is raised by the first job, else the pool would just break
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
    """A worker of the cluster. An error of its start is raised by its first job, as here."""

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
        ray.init(log_to_driver=False)  # the cluster of RAY_ADDRESS, else one of this machine
    remote = ray.remote(num_cpus=1, max_restarts=MAX_DEATHS, max_task_retries=MAX_DEATHS)(_Actor)
    room = int(ray.cluster_resources().get("CPU", 1))  # an actor beyond it would wait for ever, with its jobs
    actors = [remote.remote(make_worker, arguments) for _ in range(max(1, min(workers, room)))]
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
