"""Fault injection for trainings, for `make torture`: damaged data under the loader, a temporary folder on another file
system, a disk that fills, signals of a batch queue, little /dev/shm, no flock.

Invariants: a training that cannot continue ends with all its processes, one line and status 2; its checkpoints stay;
nothing is written outside --out; and the same command ends with the weights of an undisturbed run.
"""

from __future__ import annotations

import contextlib
import functools
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bench.commands import HANGS_S, UNTRIED, Ended, end_of, ended_by, kill_group, run, start
from data.replay import Replay
from models.checkpoint import CheckpointError
from models.image_checkpoint import read_checkpoint

PYTHON = sys.executable
HELD = "as it should be"
Trial = tuple[str, list[str], tuple[str, ...]]  # (name, outcome of each repetition, accepted outcomes)
COLLECT = (PYTHON, "-m", "data", "collect", "--renderer", "tiny", "--workers", "2")
TRAIN = (PYTHON, "-m", "train", "--preset", "demo", "--data", "set", "--out", "run", "--image-size", "48")
SHORT = ("--batch-size", "20", "--log-every", "2", "--checkpoint-every", "2", "--lr-decay", "no")
LARGE = ("--size", "472", "--episodes", "2", "--tasks", "lift-can")
QUEUE = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
QUEUE |= {"SLURM_JOB_NAME": "sweep", "SLURM_NODELIST": "node1"}
NO_FLOCK = "#include <errno.h>\nint flock(int file, int operation) { errno = ENOLCK; return -1; }\n"


def trials(work: Path, kills: int, rng: random.Random) -> Iterator[Trial]:
    """Run the trials one after another."""
    data = work / "data"
    data.mkdir()
    run((*COLLECT, "--out", "set", "--size", "48", "--episodes", "20", "--episodes-per-shard", "4"), data)

    def tried(what: str, trial: Callable[[Path], str], times: int = 1) -> Trial:
        found = []
        for _ in range(times):
            folder = work / "trial"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / "set").symlink_to(data / "set")
            try:
                found.append(trial(folder))
            except (RuntimeError, CheckpointError, subprocess.TimeoutExpired) as error:
                found.append(f"{type(error).__name__}: {error}")
        return what, found, (HELD, UNTRIED)

    yield tried("a damaged shard under the loader", lambda folder: _damaged(folder, rng))
    yield tried("a shard that is gone", _gone)
    yield tried("a shard that is a git-lfs pointer", _pointer)
    few = max(1, kills // 5)
    yield tried(f"{few} kills of a training with TMPDIR on another file system", lambda f: _other_tmp(f, rng), few)
    yield tried("a full temporary folder", _full_tmp)
    yield tried("a training on a disk that fills", _full_disk)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        yield tried(f"{number.name} under SLURM", functools.partial(_signal, number))
    yield tried("a collection under SLURM's SIGUSR1", _signal_collection)
    yield tried("64 MB of /dev/shm, images of 472 px", lambda folder: _little_shm(folder, work))
    yield tried("no flock", _no_flock)


def _ends_with_one_line(ended: Ended, *named: str) -> str:
    errors = ended.errors
    clear = ended.returncode == 2 and len(errors) == 1 and "Traceback" not in ended.stderr
    if clear and all(name in errors[0] for name in named) and not ended.stayed:
        return HELD
    return f"status {ended.returncode}, processes stayed: {ended.stayed}, stderr: {ended.stderr[-300:]}"


# ---------------------------------------------------------------------- data


def _own_data(folder: Path) -> Path:
    """Replace the dataset by a copy that may be damaged; returns one of its shards."""
    data = (folder / "set").resolve()
    (folder / "set").unlink()
    shutil.copytree(data, folder / "set")
    return Replay(folder / "set").shards[1].path


def _damaged(folder: Path, rng: random.Random) -> str:
    shard = _own_data(folder)
    entry = Replay(folder / "set").shards[1].entry
    content = bytearray(shard.read_bytes())
    for place in range(entry.at["frame/image"] + rng.randrange(400), len(content) - 2000, 400):
        content[place] ^= 1 << rng.randrange(8)
    shard.write_bytes(content)
    return _ends_with_one_line(ended_by((*TRAIN, *SHORT, "--steps", "400", "--workers", "2"), folder), shard.name)


def _gone(folder: Path) -> str:
    """Shards deleted during the training."""
    shard = _own_data(folder)
    running = start((*TRAIN, *SHORT, "--steps", "5000"), folder, subprocess.PIPE)
    _wait_for(folder / "run" / "last.ckpt", running)
    for path in shard.parent.glob("*.h5"):
        path.unlink()
    return _ends_with_one_line(end_of(running), ".h5", "missing")


def _pointer(folder: Path) -> str:
    shard = _own_data(folder)
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1000\n", encoding="utf-8")
    return _ends_with_one_line(ended_by((*TRAIN, *SHORT, "--steps", "400", "--workers", "2"), folder), shard.name)


# ---------------------------------------------------------------------- disks


@contextlib.contextmanager
def _mounted(folder: Path, size: str) -> Iterator[bool]:
    """Mount a small file system on this folder; False if that is not permitted."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _other_tmp(folder: Path, rng: random.Random) -> str:
    tmp = folder / "tmp"
    with _mounted(tmp, "200m") as mounted:
        if not mounted:
            return UNTRIED
        running = start((*TRAIN, *SHORT, "--steps", "5000", "--checkpoint-every", "1"), folder, TMPDIR=str(tmp))
        _wait_for(folder / "run" / "last.ckpt", running)
        time.sleep(rng.uniform(0.0, 2.0))
        kill_group(running)
        running.wait()
        return _goes_on(folder, "--checkpoint-every", "1", TMPDIR=str(tmp))


def _full_tmp(folder: Path) -> str:
    tmp = folder / "tmp"
    with _mounted(tmp, "64k") as mounted:
        if not mounted:
            return UNTRIED
        run((*TRAIN, *SHORT, "--steps", "6"), folder, TMPDIR=str(tmp))
        return HELD if _saved(folder) == 6 else "nothing was saved"


def _full_disk(folder: Path) -> str:
    out = folder / "run"
    with _mounted(out, "20m") as mounted:
        if not mounted:
            return UNTRIED
        running = start((*TRAIN, *SHORT, "--steps", "5000"), folder, subprocess.PIPE)
        _wait_for(out / "last.ckpt", running)
        with contextlib.suppress(OSError), (out / "lost+found").open("wb") as other:
            while True:
                other.write(bytes(100_000))
                other.flush()
        outcome = _ends_with_one_line(end_of(running), "run", "No space left on device")
        if outcome != HELD:
            return outcome
        (out / "lost+found").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=100m", str(out)], check=True)
        return _goes_on(folder)


def _goes_on(folder: Path, *more: str, **variables: str) -> str:
    """Whether the same command resumes from the last checkpoint."""
    steps = _saved(folder)
    run((*TRAIN, *SHORT, "--steps", str(steps + 3), *more), folder, **variables)
    return HELD if _saved(folder) == steps + 3 else "did not go on"


# ---------------------------------------------------------------------- clusters


def _signal(number: signal.Signals, folder: Path) -> str:
    """Signal all processes of a job in its own working folder, requeue it, and compare with an undisturbed run."""
    working = folder / "working"
    working.mkdir()
    paths = {"--data": str(folder / "set"), "--out": str(folder / "run")}
    command = [paths.get(before, word) for before, word in zip(("", *TRAIN), TRAIN, strict=False)]
    running = start((*command, *SHORT, "--steps", "5000", "--workers", "2"), working, subprocess.PIPE, **QUEUE)
    _wait_for(folder / "run" / "last.ckpt", running)
    subprocess.run(["kill", f"-{number.value}", "--", f"-{running.pid}"], check=True)
    ended = end_of(running)
    if ended.returncode != 128 + number or ended.stayed or any(working.iterdir()):
        return f"{ended}, left {[path.name for path in working.iterdir()]}"
    steps = str(_saved(folder) + 3)
    run((*command, *SHORT, "--steps", steps, "--workers", "2"), working, **QUEUE)
    shutil.move(folder / "run", folder / "stopped")
    run((*command, *SHORT, "--steps", steps, "--workers", "2"), working)
    found, whole = (read_checkpoint(folder / name / "last.ckpt")["state_dict"] for name in ("stopped", "run"))
    if any(working.iterdir()):
        return f"left {[path.name for path in working.iterdir()]}"
    same = all(np.array_equal(found[key], value, equal_nan=True) for key, value in whole.items())  # NaN: not scored yet
    return HELD if same else "other weights than undisturbed"


def _signal_collection(folder: Path) -> str:
    command = (*COLLECT, "--out", "mine", "--size", "48", "--episodes", "40", "--episodes-per-shard", "4")
    running = start(command, folder, subprocess.PIPE, **QUEUE)
    _wait_for(folder / "mine" / "collect.json", running)
    time.sleep(3)
    subprocess.run(["kill", "-USR1", "--", f"-{running.pid}"], check=True)
    ended = end_of(running)
    if ended.returncode != 128 + signal.SIGUSR1 or ended.stayed or "Traceback" in ended.stderr:
        return str(ended)
    run(command, folder, **QUEUE)
    return HELD if Replay(folder / "mine").num_episodes == 40 else "did not go on"


def _little_shm(folder: Path, work: Path) -> str:
    """Train in a mount namespace with 64 MB of /dev/shm, less than a batch of images."""
    if not (work / "large" / "set").exists():
        (work / "large").mkdir()
        run((*COLLECT, "--out", "set", *LARGE), work / "large")
    train = f"{PYTHON} -m train --preset vision-472 --rule none --data {work}/large/set --out run --steps 2"
    ended = ended_by(["unshare", "-m", "bash", "-c", f"mount -t tmpfs -o size=64m none /dev/shm && {train}"], folder)
    if "unshare failed" in ended.stderr or "permission denied" in ended.stderr:
        return UNTRIED
    return HELD if ended.returncode == 0 and _saved(folder) == 2 else str(ended)


def _no_flock(folder: Path) -> str:
    if not shutil.which("gcc"):
        return UNTRIED
    (folder / "no_flock.c").write_text(NO_FLOCK, encoding="utf-8")
    subprocess.run(["gcc", "-shared", "-fPIC", "no_flock.c", "-o", "no_flock.so"], cwd=folder, check=True)
    without = {"LD_PRELOAD": str(folder / "no_flock.so")}
    run((*COLLECT, "--out", "mine", "--size", "48", "--episodes", "2", "--tasks", "lift-can"), folder, **without)
    running = start((*TRAIN, *SHORT, "--steps", "5000"), folder, subprocess.DEVNULL, **without)
    _wait_for(folder / "run" / "last.ckpt", running)
    second = ended_by((*TRAIN, *SHORT, "--steps", "5000"), folder, **without)
    if (outcome := _ends_with_one_line(second, "another training is at work in this folder")) != HELD:
        return outcome
    kill_group(running)
    running.wait()
    return _goes_on(folder, **without)  # the lock of the killed one is stale


def _saved(folder: Path) -> int:
    """Step of the last checkpoint; CheckpointError if it cannot be read."""
    steps: int = read_checkpoint(folder / "run" / "last.ckpt")["switchyard"]["steps"]
    return steps


def _wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    end = time.monotonic() + HANGS_S
    while not path.is_file() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    if not path.is_file():
        kill_group(running)
        raise RuntimeError(f"{path.name} did not appear")
