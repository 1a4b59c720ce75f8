"""`make torture`: fault injection for datasets: kills at random moments, random damage, a full disk, two collections at
once; trainings under the faults of clusters and containers are in bench/torture_training.py. Takes half an hour.

Invariants: after any kill the manifest opens, `check` finds no error, and the same command ends with exactly the
requested episodes, byte for byte those of an undisturbed run. After any damage a dataset is refused by file name, or
read unchanged, and `check` sees every changed byte of a shard.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench import torture_training
from bench.commands import HANGS_S, UNTRIED, Ended, ended_by, lives, run, send, start, workers_of
from bench.damage import REFUSED, UNCHANGED, files_of, mutations
from data.check import check
from data.manifest import MANIFEST
from sim.files import DatasetError
from sim.options import Parser

KILLS, MUTATIONS = 30, 2000
COLLECT = (sys.executable, "-m", "data", "collect", "--out", "set", "--size", "48", "--renderer", "tiny")
SMALL = (*COLLECT, "--episodes-per-shard", "2", "--workers", "2")
MIX = """
[[source]]
tasks = ["lift-can", "place-bowl"]
policy = "crude"
episodes = 6

[[source]]
tasks = ["lift-can"]
policy = "scripted"
episodes = 6
"""
SHORT = ("--first-episodes", "6", "--episodes", "4", "--steps", "3", "--evaluations", "2", "--rounds", "2")
LOOP = (
    sys.executable,
    "-m",
    "train",
    "qtopt-online",
    "--task",
    "lift-can",
    "--out",
    "set",
    "--renderer",
    "tiny",
    *SHORT,
)


def main() -> int:
    parser = Parser(prog="python -m bench.torture", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--mutations", type=int, default=MUTATIONS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    wrong = []
    with tempfile.TemporaryDirectory(prefix="switchyard-torture-") as name:
        work = Path(name)
        wrong += _kills(work, options.kills, rng)
        outcomes = mutations(work, options.mutations, rng)
        wrong += _report(f"{options.mutations} mutations", outcomes, (REFUSED, UNCHANGED))
        wrong += _report("a file too large for the disk", Counter([_full_disk(work)]), (KEPT,))
        wrong += _report("a full disk", Counter([_tmpfs(work)]), (KEPT, UNTRIED))
        wrong += _report("two collections in one folder", Counter([_two(work)]), (CLEAR,))
        wrong += _report("a folder that is read-only", Counter([_read_only(work)]), (CLEAR, UNTRIED))
        for what, happened, fine in torture_training.trials(work, options.kills, rng):
            wrong += _report(what, Counter(happened), fine)
    print("\n".join(wrong) or "all held")
    return 1 if wrong else 0


RESUMED, LATE = "resumed to the same bytes", "had ended already"
KEPT = "clear error, finished shards kept, and the same command goes on"
CLEAR = "clear error, nothing changed"


def _report(what: str, outcomes: Counter[str], fine: tuple[str, ...]) -> list[str]:
    print(f"{what}: " + ", ".join(f"{count} {text}" for text, count in sorted(outcomes.items())), flush=True)
    return [f"WRONG: {what}: {text}" for text in outcomes if text not in fine]


# ---------------------------------------------------------------------- kills


class Scenario(NamedTuple):
    """Commands run one after another in a folder; the last is killed."""

    name: str
    commands: tuple[tuple[str, ...], ...]


SCENARIOS = (
    Scenario("a new dataset", ((*SMALL, "--episodes", "30"),)),
    Scenario("one that grows", ((*SMALL, "--episodes", "14"), (*SMALL, "--episodes", "36"))),
    Scenario("a mix", ((*SMALL, "--mix", "mix.toml"),)),
    Scenario(
        "until a rate",
        ((*SMALL, "--tasks", "place-plate,lift-can", "--until", "0.5", "--window", "6", "--episodes", "40"),),
    ),
    Scenario("qtopt-online", (LOOP,)),
)


def _kills(work: Path, count: int, rng: random.Random) -> list[str]:
    wrong = []
    for position, scenario in enumerate(SCENARIOS):
        times = len(range(position, count, len(SCENARIOS)))
        whole = _prepared(work / "whole", scenario)
        begin = time.monotonic()
        run(scenario.commands[-1], whole)
        took_s = time.monotonic() - begin
        content = files_of(whole)
        outcomes = Counter(_kill(work / "killed", scenario, content, took_s, rng) for _ in range(times))
        wrong += _report(f"{times} kills of {scenario.name} ({took_s:.0f} s)", outcomes, (RESUMED, LATE))
        shutil.rmtree(whole)
    return wrong


def _prepared(folder: Path, scenario: Scenario) -> Path:
    """Run all but the last command in a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "mix.toml").write_text(MIX, encoding="utf-8")
    for command in scenario.commands[:-1]:
        run(command, folder)
    return folder


def _kill(folder: Path, scenario: Scenario, content: dict[str, bytes], took_s: float, rng: random.Random) -> str:
    """Kill the parent or one of its workers, check, resume, compare."""
    _prepared(folder, scenario)
    running = start(scenario.commands[-1], folder)
    try:
        time.sleep(rng.uniform(0.0, took_s))
        if running.poll() is not None:
            return LATE
        workers = workers_of(running.pid)
        target = rng.choice([running.pid, *workers])
        send(target, signal.SIGKILL)
        if target == running.pid:
            running.wait()
        elif running.wait(HANGS_S) and scenario.name != "qtopt-online":  # its training's loader may not lose a worker
            return f"a killed worker ended it with {running.returncode}"
        end = time.monotonic() + 10
        while any(lives(pid) for pid in workers):
            if time.monotonic() > end:
                return "workers went on without their parent"
            time.sleep(0.02)
        for manifest in folder.rglob(MANIFEST):
            if found := check(manifest.parent).wrong:
                return f"check found {found[0]}"
        run(scenario.commands[-1], folder)
        if different := _different(files_of(folder), content):
            return f"other bytes than undisturbed: {different}"
        return RESUMED
    except (DatasetError, RuntimeError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


def _different(one: dict[str, bytes], other: dict[str, bytes]) -> str:
    return ", ".join(sorted(name for name in {*one, *other} if one.get(name) != other.get(name)))


# ---------------------------------------------------------------------- errors of the system


ONE = (*COLLECT, "--tasks", "lift-can", "--episodes-per-shard", "20", "--workers", "2")


def _full_disk(work: Path) -> str:
    """A file size limit of 200 kB, less than a shard of twenty episodes."""
    folder = work / "limited"
    folder.mkdir()
    run((*ONE, "--episodes", "20"), folder)
    line = f"ulimit -f 200; trap '' XFSZ; exec {' '.join([*ONE, '--episodes', '100'])}"
    return _goes_on(folder, files_of(folder), ended_by(["bash", "-c", line], folder))


def _tmpfs(work: Path) -> str:
    """A file system of 1.5 MB, too small for a hundred episodes."""
    folder = work / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "none", folder], capture_output=True).returncode:
        return UNTRIED
    try:
        run((*ONE, "--episodes", "20"), folder)
        content = files_of(folder)
        ended = ended_by((*ONE, "--episodes", "100"), folder)
        subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
        return _goes_on(folder, content, ended)
    finally:
        subprocess.run(["umount", folder], check=True)


def _goes_on(folder: Path, before: dict[str, bytes], ended: Ended) -> str:
    """Whether a collection that could not write printed an error, kept its shards, and can be resumed."""
    errors = ended.errors
    if ended.returncode != 2 or len(errors) != 1 or "set" not in errors[0] or "Traceback" in ended.stderr:
        return f"stderr: {ended.stderr[-300:]}"
    shards = {name: data for name, data in before.items() if name.endswith(".h5")}
    if not shards.items() <= files_of(folder).items() or check(folder / "set").wrong:
        return "lost a shard"
    run((*ONE, "--episodes", "100"), folder)
    report = check(folder / "set")
    return KEPT if not report.wrong and not report.unfinished else f"did not go on: {report}"


def _two(work: Path) -> str:
    folder = work / "two"
    folder.mkdir()
    command = (*SMALL, "--episodes", "30")
    first = start(command, folder)
    end = time.monotonic() + HANGS_S
    while not (folder / "set" / "collect.json").exists() and time.monotonic() < end:
        time.sleep(0.05)
    second = ended_by(command, folder)
    clear = second.returncode == 2 and "another collection is at work in this folder" in second.stderr
    report = check(folder / "set") if first.wait(HANGS_S) == 0 else None
    whole = report is not None and not report.wrong and not report.unfinished
    return CLEAR if clear and whole else f"first {report}, second {second.stderr[-300:]}"


def _read_only(work: Path) -> str:
    """A read-only folder; a superuser drops the capability to write anywhere."""
    folder = work / "read-only"
    folder.mkdir()
    run((*ONE, "--episodes", "20"), folder)
    content = files_of(folder)
    command: tuple[str, ...] = (*ONE, "--episodes", "60")
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            return UNTRIED
        command = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command)
    for path in (folder / "set", *(folder / "set").iterdir()):
        path.chmod(path.stat().st_mode & 0o555 | 0o444)
    with _writable_again(folder / "set"):
        ended = ended_by(command, folder)
    errors = ended.errors
    clear = ended.returncode == 2 and len(errors) == 1 and "set" in errors[0] and "Traceback" not in ended.stderr
    return CLEAR if clear and files_of(folder) == content else f"stderr: {ended.stderr[-300:]}"


@contextlib.contextmanager
def _writable_again(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        folder.chmod(0o755)


if __name__ == "__main__":
    sys.exit(main())
