"""Run commands of Switchyard as subprocesses, and inspect their processes from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
HANGS_S = 300  # longer than anything here takes
UNTRIED = "not tried: not allowed here"


class Ended(NamedTuple):
    """Result of a command. `stayed`: whether a process that it started outlived it."""

    returncode: int
    stderr: str
    stayed: bool

    @property
    def errors(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


def start(
    command: Sequence[str], folder: Path, stderr: int = subprocess.DEVNULL, **variables: str
) -> subprocess.Popen[str]:
    """Start a command in its own process group, with additional environment variables."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, text=True, process_group=0
    )


def ended_by(command: Sequence[str], folder: Path, **variables: str) -> Ended:
    """Run a command to its end; subprocess.TimeoutExpired if it hangs."""
    return end_of(start(command, folder, subprocess.PIPE, **variables))


def end_of(running: subprocess.Popen[str]) -> Ended:
    """Wait for a command that was started with its stderr in a pipe, and kill what outlives it."""
    try:
        stderr = running.communicate(timeout=HANGS_S)[1]
        end = time.monotonic() + 10
        while (stayed := _group_lives(running.pid)) and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        kill_group(running)
    return Ended(running.returncode, stderr, stayed)


def run(command: Sequence[str], folder: Path, **variables: str) -> None:
    done = ended_by(command, folder, **variables)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")


def kill_group(running: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)


def workers_of(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True).stdout
    ours = [line for line in listed.splitlines() if "python" in line and "resource_tracker" not in line]
    return [int(line.split()[0]) for line in ours]


def lives(process: int) -> bool:
    """Whether a process runs; a zombie does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    return False


def _group_lives(group: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_bytes().rpartition(b")")[2].split()
            if int(fields[2]) == group and fields[0] != b"Z":
                return True
    return False


def send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it had ended
        os.kill(process, number)
