"""`make torture`: kills at random moments, random damage, a full disk, two collections at once. Ten minutes.

What must hold: after any kill the manifest opens, a check finds nothing, and the same command ends with exactly the
asked episodes, byte for byte those of an undisturbed run. After any damage a dataset is refused by the name of the
file, or read unchanged, and the check sees every changed byte of a shard.
"""

from __future__ import annotations

import argparse
import contextlib
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
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py

from data.check import check
from data.manifest import MANIFEST, read_manifest, write_manifest
from data.replay import Replay
from data.shards import DatasetError, read_shard
from sim.options import Parser

ROOT = Path(__file__).parents[1]
EPISODES = 30
KILLS, MUTATIONS = 30, 2000
OPTIONS = ("--size", "48", "--renderer", "tiny", "--workers", "2", "--episodes-per-shard", "2")
AT_ONCE = 200  # mutations in one process
HOURGLASS_S = 120  # longer than anything here takes: beyond it, something hangs


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
        whole = work / "whole"
        begin = time.monotonic()
        _collect(whole)
        took_s = time.monotonic() - begin
        print(f"undisturbed: {EPISODES} episodes in {took_s:.1f} s", flush=True)
        outcomes = Counter[str]()
        for number in range(options.kills):
            outcomes[_kill(work / f"kill-{number}", whole, rng, took_s)] += 1
        wrong += _tell(f"{options.kills} kills", outcomes, ("resumed to the same bytes",))
        outcomes = _mutate(work, whole, options.mutations, rng)
        wrong += _tell(f"{options.mutations} mutations", outcomes, ("refused by name", "read unchanged"))
        wrong += _tell("full disk", Counter([_full_disk(work)]), ("clear error, finished shards kept",))
        wrong += _tell("two collections in one folder", Counter([_two(work)]), ("clear error, the first went on",))
        wrong += _tell(
            "read-only folder", Counter([_read_only(work)]), ("clear error", "not tried: may write anywhere")
        )
    print("\n".join(wrong) or "all held")
    return 1 if wrong else 0


def _tell(what: str, outcomes: Counter[str], fine: tuple[str, ...]) -> list[str]:
    print(f"{what}: " + ", ".join(f"{count} {text}" for text, count in sorted(outcomes.items())), flush=True)
    return [f"WRONG: {what}: {text}" for text in outcomes if text not in fine]


def _command(folder: Path, episodes: int = EPISODES) -> list[str]:
    return [sys.executable, "-m", "data", "collect", "--out", str(folder), "--episodes", str(episodes), *OPTIONS]


def _collect(folder: Path) -> None:
    subprocess.run(_command(folder), cwd=ROOT, check=True, capture_output=True, timeout=HOURGLASS_S)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


# ---------------------------------------------------------------------- kills


def _kill(folder: Path, whole: Path, rng: random.Random, took_s: float) -> str:
    """Kill the parent or one of its workers, look, go on, compare."""
    running = subprocess.Popen(_command(folder), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(rng.uniform(0.0, 1.1 * took_s))
    workers = _workers(running.pid)
    target = rng.choice([running.pid, *workers])
    _send(target, signal.SIGKILL)
    if target == running.pid:
        running.wait()
    elif running.wait(HOURGLASS_S):  # a killed worker is replaced
        return f"a killed worker ended the collection with {running.returncode}"
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        if time.monotonic() > end:
            return "workers went on without their parent"
        time.sleep(0.02)
    if (folder / MANIFEST).exists() and (found := check(folder)[1]):
        return f"check found {found[0]}"
    _collect(folder)
    if _content(folder) != _content(whole):
        return "other bytes than undisturbed"
    shutil.rmtree(folder)
    return "resumed to the same bytes"


def _workers(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "spawn_main" in line]


def _send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it had ended
        os.kill(process, number)


# ---------------------------------------------------------------------- damage


def _mutate(work: Path, whole: Path, count: int, rng: random.Random) -> Counter[str]:
    """In processes of their own, so that a crash or a hang of the HDF5 library is an outcome too."""
    outcomes = Counter[str]()
    seeds = [rng.randrange(2**32) for _ in range(count)]
    for first in range(0, count, AT_ONCE):
        with ProcessPoolExecutor(1, mp.get_context("spawn")) as pool:
            for seed in seeds[first : first + AT_ONCE]:
                try:
                    outcomes[pool.submit(_one_mutation, str(work), str(whole), seed).result(HOURGLASS_S)] += 1
                except Exception as error:
                    outcomes[f"{type(error).__name__} (seed {seed}): {error}"[:200]] += 1
    return outcomes


def _one_mutation(work: str, whole: str, seed: int) -> str:
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp(dir=work))
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    kept = sorted(folder.glob("*.h5"))[:3]  # a small dataset: three of its shards
    manifest = read_manifest(folder)
    rows = [row for row in manifest["shards"] if row["name"] in {path.name for path in kept}]
    about = {key: manifest[key] for key in ("size", "frame_size", "renderer", "randomise", "split")}
    write_manifest(folder, about, rows)
    expected = _everything(folder)
    victim = rng.choice([*kept, folder / MANIFEST])
    before = victim.read_bytes()
    kind = rng.choice(["flip", "flip", "overwrite", "truncate", "grow", "swap", "exchange", "schema"])
    _damage(victim, before, kind, kept, rng)
    changed = {path.name for path in kept if path.read_bytes() != (Path(whole) / path.name).read_bytes()}
    outcome = _read(folder, expected, changed, kept)
    shutil.rmtree(folder)
    return (
        outcome
        if outcome in ("refused by name", "read unchanged")
        else f"{outcome} ({kind} of {victim.suffix}, {seed})"
    )


def _damage(victim: Path, content: bytes, kind: str, shards: list[Path], rng: random.Random) -> None:
    data, size = bytearray(content), len(content)
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 4])):
            data[rng.randrange(size)] ^= 1 << rng.randrange(8)
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
    elif victim.suffix == ".h5":
        with h5py.File(victim, "r+") as file:
            file.attrs[rng.choice(["schema", "state_version", "sim_version", "seed"])] = rng.randrange(3, 9)
        return
    else:
        manifest = json.loads(content)
        manifest[rng.choice(["schema", "sim_version", "size"])] = rng.randrange(3, 9)
        data = bytearray(json.dumps(manifest).encode())
    victim.write_bytes(data)


def _everything(folder: Path) -> list[bytes]:
    replay = Replay(folder)
    frames = replay.read(range(replay.num_steps + replay.num_episodes))
    about = [replay.episode_task.tobytes(), replay.episode_length.tobytes(), replay.success.tobytes()]
    about.append(repr((replay.size, replay.frame_size, replay.renderer, replay.randomise, replay.split)).encode())
    return about + [f.picture + f.action.tobytes() + f.state.tobytes() + f.verdict.tobytes() for f in frames]


def _read(folder: Path, expected: list[bytes], changed: set[str], shards: list[Path]) -> str:
    """By a training's reader, by the check, and by a collection that adopts shards which no manifest lists."""
    refused = False
    try:
        if _everything(folder) != expected:
            return "SILENT DIFFERENCE"
    except DatasetError as error:
        refused = True
        if str(folder) not in str(error):
            return f"refused without a name: {error}"
    try:
        found = check(folder)[1]
    except DatasetError as error:
        found = [str(error)]
    missed = [name for name in changed if not any(name in text or MANIFEST in text for text in found)]
    if missed:
        return "the check missed a changed shard"
    for path in shards:
        try:
            row = read_shard(path)[0]
        except DatasetError as error:
            if path.name not in str(error):
                return f"not adopted without a name: {error}"
        else:
            if path.name in changed and row["name"] != path.name:
                return "adopted under another name"
    return "refused by name" if refused or found else "read unchanged"


# ---------------------------------------------------------------------- refusals of the system


def _full_disk(work: Path) -> str:
    """No file may grow beyond 200 kB, like on a disk that is full: no shard of twenty fits."""
    folder = work / "full"
    more = ("--tasks", "lift-can", "--episodes-per-shard", "20")
    subprocess.run([*_command(folder, 20), *more], cwd=ROOT, check=True, capture_output=True, timeout=HOURGLASS_S)
    before = {path.name: path.read_bytes() for path in folder.glob("*.h5")}
    line = f"ulimit -f 200; trap '' XFSZ; exec {' '.join([*_command(folder, 60), *more])}"
    ended = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=HOURGLASS_S)
    kept = {path.name: path.read_bytes() for path in folder.glob("*.h5")} == before and not check(folder)[1]
    said = [text for text in ended.stderr.splitlines() if text.startswith("error: ")]
    clear = ended.returncode == 2 and len(said) == 1 and str(folder) in said[0] and "Traceback" not in ended.stderr
    return "clear error, finished shards kept" if kept and clear else f"kept {kept}, said {ended.stderr[-300:]}"


def _two(work: Path) -> str:
    folder = work / "two"
    first = subprocess.Popen(_command(folder), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "collect.json").exists():
        time.sleep(0.05)
    second = subprocess.run(_command(folder), cwd=ROOT, capture_output=True, text=True, timeout=HOURGLASS_S)
    clear = second.returncode == 2 and "another collection is at work in this folder" in second.stderr
    whole = first.wait(HOURGLASS_S) == 0 and not check(folder)[1]
    return "clear error, the first went on" if clear and whole else f"first {whole}, second {second.stderr[-300:]}"


def _read_only(work: Path) -> str:
    folder = work / "read-only"
    _collect(folder)
    folder.chmod(0o555)
    try:
        (folder / "x").touch()
        return "not tried: may write anywhere"  # the superuser
    except PermissionError:
        ended = subprocess.run(_command(folder, 40), cwd=ROOT, capture_output=True, text=True, timeout=HOURGLASS_S)
        clear = ended.returncode == 2 and str(folder) in ended.stderr and "Traceback" not in ended.stderr
        return "clear error" if clear else f"said {ended.stderr[-300:]}"
    finally:
        folder.chmod(0o755)


if __name__ == "__main__":
    sys.exit(main())
