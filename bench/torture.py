"""`make torture`: kills at random moments, random damage, a full disk, two collections at once. Half an hour.

What must hold: after any kill the manifest opens, a check finds nothing, and the same command ends with exactly the
asked episodes, byte for byte those of an undisturbed run. After any damage a dataset is refused by the name of the
file, or read unchanged, and the check sees every changed byte of a shard.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing as mp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import h5py

from data.check import check
from data.collect import collect
from data.manifest import MANIFEST
from data.plan import CONFIG, CollectConfig
from data.replay import Replay
from data.shards import MAGIC, TRAILER, DatasetError
from sim.options import Parser

ROOT = Path(__file__).parents[1]
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
HANGS_S = 300  # longer than anything here takes


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
        outcomes = _mutations(work, options.mutations, rng)
        wrong += _tell(f"{options.mutations} mutations", outcomes, ("refused by name", "read unchanged"))
        wrong += _tell("a file too large for the disk", Counter([_full_disk(work)]), (KEPT,))
        wrong += _tell("a full disk", Counter([_tmpfs(work)]), (KEPT, UNTRIED))
        wrong += _tell("two collections in one folder", Counter([_two(work)]), (CLEAR,))
        wrong += _tell("a folder that is read-only", Counter([_read_only(work)]), (CLEAR, UNTRIED))
    print("\n".join(wrong) or "all held")
    return 1 if wrong else 0


RESUMED, LATE = "resumed to the same bytes", "had ended already"
KEPT = "clear error, finished shards kept, and the same command goes on"
CLEAR = "clear error, nothing changed"
UNTRIED = "not tried: not allowed here"


def _tell(what: str, outcomes: Counter[str], fine: tuple[str, ...]) -> list[str]:
    print(f"{what}: " + ", ".join(f"{count} {text}" for text, count in sorted(outcomes.items())), flush=True)
    return [f"WRONG: {what}: {text}" for text in outcomes if text not in fine]


def _start(command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )


def _ended(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANGS_S)


def _run(command: Sequence[str], folder: Path) -> None:
    done = _ended(command, folder)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")


# ---------------------------------------------------------------------- kills


class Scenario(NamedTuple):
    """Commands, run one after another in a folder; the last is the one that is killed."""

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
    Scenario("qtopt-online", ((*LOOP, *SHORT),)),
)


def _kills(work: Path, count: int, rng: random.Random) -> list[str]:
    wrong = []
    for position, scenario in enumerate(SCENARIOS):
        times = len(range(position, count, len(SCENARIOS)))
        whole = _prepared(work / "whole", scenario)
        begin = time.monotonic()
        _run(scenario.commands[-1], whole)
        took_s = time.monotonic() - begin
        content = _content(whole)
        outcomes = Counter(_kill(work / "killed", scenario, content, took_s, rng) for _ in range(times))
        wrong += _tell(f"{times} kills of {scenario.name} ({took_s:.0f} s)", outcomes, (RESUMED, LATE))
        shutil.rmtree(whole)
    return wrong


def _prepared(folder: Path, scenario: Scenario) -> Path:
    """A folder in which all but the last command ran."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "mix.toml").write_text(MIX)
    for command in scenario.commands[:-1]:
        _run(command, folder)
    return folder


def _kill(folder: Path, scenario: Scenario, content: dict[str, bytes], took_s: float, rng: random.Random) -> str:
    """Kill the parent or one of its workers, look, go on, compare."""
    _prepared(folder, scenario)
    running = _start(scenario.commands[-1], folder)
    try:
        time.sleep(rng.uniform(0.0, took_s))
        if running.poll() is not None:
            return LATE
        workers = _workers(running.pid)
        target = rng.choice([running.pid, *workers])
        _send(target, signal.SIGKILL)
        if target == running.pid:
            running.wait()
        elif running.wait(HANGS_S) and scenario.name != "qtopt-online":  # its training's loader may not lose a worker
            return f"a killed worker ended it with {running.returncode}"
        end = time.monotonic() + 10
        while any(_lives(pid) for pid in workers):
            if time.monotonic() > end:
                return "workers went on without their parent"
            time.sleep(0.02)
        for manifest in folder.rglob(MANIFEST):
            if found := check(manifest.parent).wrong:
                return f"check found {found[0]}"
        _run(scenario.commands[-1], folder)
        if different := _different(_content(folder), content):
            return f"other bytes than undisturbed: {different}"
        return RESUMED
    except (DatasetError, RuntimeError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


def _content(folder: Path) -> dict[str, bytes]:
    """Of all shards and manifests."""
    paths = sorted([*folder.rglob("*.h5"), *folder.rglob(MANIFEST)])
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _different(one: dict[str, bytes], other: dict[str, bytes]) -> str:
    return ", ".join(sorted(name for name in {*one, *other} if one.get(name) != other.get(name)))


def _workers(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True).stdout
    ours = [line for line in listed.splitlines() if "python" in line and "resource_tracker" not in line]
    return [int(line.split()[0]) for line in ours]


def _lives(process: int) -> bool:
    """And is not just waiting for its parent to take notice of its end."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it had ended
        os.kill(process, number)


# ---------------------------------------------------------------------- damage


def _mutations(work: Path, count: int, rng: random.Random) -> Counter[str]:
    """In a process of its own, so that a crash or a hang is an outcome too."""
    options = CollectConfig(
        out=str(work / "whole"), tasks=("lift-can",), episodes=6, episodes_per_shard=2, size=48, renderer="tiny"
    )
    collect(options)
    seeds = [rng.randrange(2**32) for _ in range(count)]
    outcomes = Counter[str]()
    context = mp.get_context("spawn")
    while seeds:
        ours, theirs = context.Pipe()
        process = context.Process(target=_mutate_all, args=(theirs, work, options, seeds))
        process.start()
        theirs.close()
        try:
            while seeds and ours.poll(HANGS_S):
                outcomes[ours.recv()] += 1
                seeds.pop(0)
            if seeds:
                outcomes["HANG"] += 1
                seeds.pop(0)
        except EOFError:
            outcomes["CRASH"] += 1
            seeds.pop(0)
        process.kill()
        process.join()
    return outcomes


def _mutate_all(out: Connection, work: Path, options: CollectConfig, seeds: list[int]) -> None:
    sys.stderr = io.StringIO()  # what a collection says of its progress
    for seed in seeds:
        try:
            out.send(_mutate(work / "mutated", options, random.Random(seed)))
        except Exception as error:
            out.send(f"{type(error).__name__}: {error}".replace(str(work), "")[:200])


def _mutate(folder: Path, options: CollectConfig, rng: random.Random) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(options.out, folder)
    shards = sorted(folder.glob("*.h5"))
    whole = _content(folder)
    expected = _everything(folder)
    victim = rng.choice([*shards, folder / MANIFEST, folder / CONFIG])
    kind = rng.choice(["flip", "flip", "overwrite", "truncate", "grow", "swap", "exchange", "schema"])
    _damage(victim, kind, shards, rng)
    changed = [path for path in shards if path.read_bytes() != whole[path.name]]
    outcomes = {_read(folder, expected), _check(folder, changed), _adopt(folder, options, expected)}
    bad = sorted(outcomes - {"refused by name", "read unchanged"})
    if bad:
        return f"{bad[0]} ({kind} of {victim.suffix})"
    return "refused by name" if "refused by name" in outcomes else "read unchanged"


def _damage(victim: Path, kind: str, shards: list[Path], rng: random.Random) -> None:
    content = victim.read_bytes()
    data, size = bytearray(content), len(content)
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 4])):  # half of them where HDF5 keeps its own tables
            place = rng.randrange(size) if rng.random() < 0.5 else rng.choice([1, -1]) * rng.randrange(min(size, 4096))
            data[place] ^= 1 << rng.randrange(8)
    elif kind == "overwrite":
        begin = rng.randrange(size)
        data[begin : begin + 64] = rng.randbytes(len(data[begin : begin + 64]))
    elif kind == "truncate":
        del data[rng.randrange(size) :]
    elif kind == "grow":
        data += rng.randbytes(rng.randrange(1, 100))
    elif kind == "swap":
        length = rng.randrange(1, size // 4)
        one, two = sorted(rng.sample(range(size - length), 2))
        data[one : one + length], data[two : two + length] = data[two : two + length], data[one : one + length]
        del data[size:]
    elif kind == "exchange":
        these, those = rng.sample(shards, 2)
        content, other = these.read_bytes(), those.read_bytes()
        these.write_bytes(other)
        those.write_bytes(content)
        return
    elif victim.name == CONFIG:
        data = bytearray(content.replace(b"1", b"2", 1))
    elif victim.suffix == ".h5":  # with the right checksum at its end: another's shard, not a damaged one
        victim.write_bytes(content[: -TRAILER.size])
        with h5py.File(victim, "r+") as file:
            file.attrs[rng.choice(["schema", "state_version", "sim_version", "seed"])] = rng.randrange(30, 90)
        body = victim.read_bytes()
        data = bytearray(body + TRAILER.pack(MAGIC, zlib.crc32(body)))
    else:
        manifest = json.loads(content)
        manifest[rng.choice(["schema", "sim_version", "size"])] = rng.randrange(30, 90)
        data = bytearray(json.dumps(manifest).encode())
    victim.write_bytes(data)


def _everything(folder: Path) -> list[bytes]:
    replay = Replay(folder)
    frames = replay.read(range(replay.num_steps + replay.num_episodes))
    about = [replay.episode_task.tobytes(), replay.episode_length.tobytes(), replay.success.tobytes()]
    about.append(repr((replay.size, replay.frame_size, replay.renderer, replay.randomise, replay.split)).encode())
    return about + [f.picture + f.action.tobytes() + f.state.tobytes() + f.verdict.tobytes() for f in frames]


def _read(folder: Path, expected: list[bytes]) -> str:
    """As a training does."""
    try:
        return "read unchanged" if _everything(folder) == expected else "SILENT DIFFERENCE"
    except DatasetError as error:
        return "refused by name" if str(folder) in str(error) else f"refused without a name: {error}"


def _check(folder: Path, changed: list[Path]) -> str:
    try:
        found = "\n".join(check(folder).wrong)
    except DatasetError as error:
        return "refused by name" if str(folder) in str(error) else f"refused without a name: {error}"
    if any(str(path) not in found for path in changed):
        return "a changed shard passed the check"
    return "refused by name" if found else "read unchanged"


def _adopt(folder: Path, options: CollectConfig, expected: list[bytes]) -> str:
    """As a collection that goes on without a manifest: what it lists must be what was collected."""
    (folder / MANIFEST).unlink()
    try:
        collect(replace(options, out=str(folder)))
    except DatasetError as error:
        return "refused by name" if str(folder) in str(error) else f"refused without a name: {error}"
    return "read unchanged" if _everything(folder) == expected else "SILENT DIFFERENCE of what was adopted"


# ---------------------------------------------------------------------- refusals of the system


ONE = (*COLLECT, "--tasks", "lift-can", "--episodes-per-shard", "20", "--workers", "2")


def _full_disk(work: Path) -> str:
    """No file may grow beyond 200 kB: no shard of twenty fits."""
    folder = work / "limited"
    folder.mkdir()
    _run((*ONE, "--episodes", "20"), folder)
    line = f"ulimit -f 200; trap '' XFSZ; exec {' '.join([*ONE, '--episodes', '100'])}"
    return _goes_on(folder, _content(folder), _ended(["bash", "-c", line], folder))


def _tmpfs(work: Path) -> str:
    """A file system of 1.5 MB, which a hundred episodes do not fit into."""
    folder = work / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "none", folder], capture_output=True).returncode:
        return UNTRIED
    try:
        _run((*ONE, "--episodes", "20"), folder)
        content = _content(folder)
        ended = _ended((*ONE, "--episodes", "100"), folder)
        subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
        return _goes_on(folder, content, ended)
    finally:
        subprocess.run(["umount", folder], check=True)


def _goes_on(folder: Path, before: dict[str, bytes], ended: subprocess.CompletedProcess[str]) -> str:
    """Whether a collection that could not write said so, kept what there was, and is ended by the same command."""
    said = [text for text in ended.stderr.splitlines() if text.startswith("error: ")]
    if ended.returncode != 2 or len(said) != 1 or "set" not in said[0] or "Traceback" in ended.stderr:
        return f"said {ended.stderr[-300:]}"
    shards = {name: data for name, data in before.items() if name.endswith(".h5")}
    if not shards.items() <= _content(folder).items() or check(folder / "set").wrong:
        return "lost a shard"
    _run((*ONE, "--episodes", "100"), folder)
    report = check(folder / "set")
    return KEPT if not report.wrong and not report.unfinished else f"did not go on: {report}"


def _two(work: Path) -> str:
    folder = work / "two"
    folder.mkdir()
    command = (*SMALL, "--episodes", "30")
    first = _start(command, folder)
    end = time.monotonic() + HANGS_S
    while not (folder / "set" / "collect.json").exists() and time.monotonic() < end:
        time.sleep(0.05)
    second = _ended(command, folder)
    clear = second.returncode == 2 and "another collection is at work in this folder" in second.stderr
    report = check(folder / "set") if first.wait(HANGS_S) == 0 else None
    whole = report is not None and not report.wrong and not report.unfinished
    return CLEAR if clear and whole else f"first {report}, second {second.stderr[-300:]}"


def _read_only(work: Path) -> str:
    """The superuser may write anywhere, unless it gives that right away."""
    folder = work / "read-only"
    folder.mkdir()
    _run((*ONE, "--episodes", "20"), folder)
    content = _content(folder)
    command: tuple[str, ...] = (*ONE, "--episodes", "60")
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            return UNTRIED
        command = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command)
    for path in (folder / "set", *(folder / "set").iterdir()):
        path.chmod(path.stat().st_mode & 0o555 | 0o444)
    with _writable_again(folder / "set"):
        ended = _ended(command, folder)
    said = [text for text in ended.stderr.splitlines() if text.startswith("error: ")]
    clear = ended.returncode == 2 and len(said) == 1 and "set" in said[0] and "Traceback" not in ended.stderr
    return CLEAR if clear and _content(folder) == content else f"said {ended.stderr[-300:]}"


@contextlib.contextmanager
def _writable_again(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        folder.chmod(0o755)


if __name__ == "__main__":
    sys.exit(main())
