"""Worker processes: every job is done once, errors are raised in the parent, and dead workers are replaced."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sim.parallel import run_jobs, run_jobs_here


def squares(offset):
    return functools.partial(_square, offset)


def _square(offset, number):
    if number < 0:
        raise ValueError(f"no root of {number}")
    return offset + number**2


def broken(message):
    raise ValueError(message)


def dying(folder, times):
    """A worker that the first `times` jobs kill."""
    return functools.partial(_die, Path(folder), times)


def _die(folder, times, number):
    died = len(list(folder.iterdir()))
    if died < times:
        (folder / str(died)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def waiting(folder):
    (Path(folder) / str(os.getpid())).touch()
    return _wait


def _wait(seconds):
    time.sleep(seconds)


def test_every_job_is_done_once():
    assert sorted(run_jobs(squares, (1,), range(7), 2)) == [1, 2, 5, 10, 17, 26, 37]
    assert list(run_jobs(squares, (1,), [], 2)) == []


def of_process(base):
    return lambda job: (os.getpid(), job + base)


@pytest.mark.parametrize(("jobs", "workers", "here"), [([1, 2], 1, True), ([1], 2, True), ([1, 2], 2, False)])
def test_what_one_worker_does_is_done_in_this_process(jobs, workers, here):
    found = sorted(run_jobs_here(of_process, (5,), jobs, workers))
    assert {result for _, result in found} == {job + 5 for job in jobs}
    assert all((process == os.getpid()) == here for process, _ in found)


def test_an_error_of_a_job_is_raised_here():
    with pytest.raises(ValueError, match="no root of -1"):
        list(run_jobs(squares, (0,), [1, -1, 2], 2))


def test_an_error_of_a_workers_start_is_raised_here_once():
    with pytest.raises(ValueError, match="no such checkpoint"):
        list(run_jobs(broken, ("no such checkpoint",), [1, 2], 2))


def test_a_worker_that_dies_is_replaced_and_its_jobs_are_done(tmp_path):
    assert sorted(run_jobs(dying, (str(tmp_path), 2), range(5), 1)) == [0, 1, 2, 3, 4]


def test_workers_that_always_die_end_it(tmp_path):
    with pytest.raises(ValueError, match="worker processes die"):
        list(run_jobs(dying, (str(tmp_path), 10**6), range(5), 1))
    assert len(list(tmp_path.iterdir())) == 3


def test_closing_while_a_large_result_is_on_its_way_ends_too():
    code = (
        "from tests.test_parallel import run_jobs, large\n"
        "if __name__ == '__main__':\n"
        "    results = run_jobs(large, (), range(40), 2)\n"
        "    next(results)\n"
        "    results.close()\n"
    )
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True, timeout=60)


def large():
    return _megabytes


def _megabytes(number):
    return bytes(50_000_000)


def test_ray_raises_the_error_of_a_job_and_of_a_start_and_takes_no_more_workers_than_it_has_room_for():
    pytest.importorskip("ray")
    assert sorted(run_jobs(squares, (1,), range(4), 64, "ray")) == [1, 2, 5, 10]
    with pytest.raises(ValueError, match="no root of -1"):
        list(run_jobs(squares, (0,), [1, -1, 2], 1, "ray"))
    with pytest.raises(ValueError, match="no such checkpoint"):
        list(run_jobs(broken, ("no such checkpoint",), [1, 2], 1, "ray"))


def test_closing_ends_the_workers_in_the_middle_of_their_jobs(tmp_path):
    running = run_jobs(waiting, (str(tmp_path),), [0.0, 600.0], 1)
    next(running)
    running.close()
    worker = int(next(tmp_path.iterdir()).name)
    end = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{worker}").exists()
