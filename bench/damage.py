"""Fuzzing of shards and manifests: each mutation must be refused by file name, or be read unchanged."""

from __future__ import annotations

import io
import json
import multiprocessing as mp
import random
import shutil
import sys
import zlib
from collections import Counter
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import h5py

from bench.commands import HANGS_S
from data.check import check
from data.collect import collect
from data.manifest import MANIFEST
from data.plan import CONFIG, CollectConfig
from data.replay import Replay
from data.shards import MAGIC, TRAILER
from sim.files import DatasetError

REFUSED, UNCHANGED = "refused by name", "read unchanged"


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of all shards and manifests, by path."""
    paths = sorted([*folder.rglob("*.h5"), *folder.rglob(MANIFEST)])
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def mutations(work: Path, count: int, rng: random.Random) -> Counter[str]:
    """Count the outcomes of random mutations, in a separate process, so that a crash or a hang is an outcome too."""
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
    sys.stderr = io.StringIO()  # silences the progress of collections
    for seed in seeds:
        try:
            out.send(_mutate(work / "mutated", options, random.Random(seed)))
        except Exception as error:
            out.send(f"{type(error).__name__}: {error}".replace(str(work), "")[:200])


def _mutate(folder: Path, options: CollectConfig, rng: random.Random) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(options.out, folder)
    shards = sorted(folder.glob("*.h5"))
    whole = files_of(folder)
    expected = _everything(folder)
    victim = rng.choice([*shards, folder / MANIFEST, folder / CONFIG])
    kind = rng.choice(["flip", "flip", "overwrite", "truncate", "grow", "swap", "exchange", "schema"])
    _damage(victim, kind, shards, rng)
    changed = [path for path in shards if path.read_bytes() != whole[path.name]]
    outcomes = {_read(folder, expected), _check(folder, changed), _adopt(folder, options, expected)}
    bad = sorted(outcomes - {REFUSED, UNCHANGED})
    if bad:
        return f"{bad[0]} ({kind} of {victim.suffix})"
    return REFUSED if REFUSED in outcomes else UNCHANGED


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
    elif victim.suffix == ".h5":  # with a valid checksum at its end: a foreign shard, not a damaged one
        victim.write_bytes(content[: -TRAILER.size])
        with h5py.File(victim, "r+") as file:
            file.attrs[rng.choice(["schema", "state_version", "sim_version", "seed"])] = rng.randrange(30, 90)
        payload = victim.read_bytes()
        data = bytearray(payload + TRAILER.pack(MAGIC, zlib.crc32(payload)))
    else:
        manifest = json.loads(content)
        manifest[rng.choice(["schema", "sim_version", "size"])] = rng.randrange(30, 90)
        data = bytearray(json.dumps(manifest).encode())
    victim.write_bytes(data)


def _everything(folder: Path) -> list[bytes]:
    replay = Replay(folder)
    frames = replay.read(range(replay.num_steps + replay.num_episodes))
    metadata = [replay.episode_task.tobytes(), replay.episode_length.tobytes(), replay.success.tobytes()]
    metadata.append(repr((replay.size, replay.frame_size, replay.renderer, replay.randomise, replay.split)).encode())
    return metadata + [f.image + f.action.tobytes() + f.state.tobytes() + f.verdict.tobytes() for f in frames]


def _read(folder: Path, expected: list[bytes]) -> str:
    """Read every frame, as a training does."""
    try:
        return UNCHANGED if _everything(folder) == expected else "SILENT DIFFERENCE"
    except DatasetError as error:
        return REFUSED if str(folder) in str(error) else f"refused without a name: {error}"


def _check(folder: Path, changed: list[Path]) -> str:
    try:
        found = "\n".join(check(folder).wrong)
    except DatasetError as error:
        return REFUSED if str(folder) in str(error) else f"refused without a name: {error}"
    if any(str(path) not in found for path in changed):
        return "a changed shard passed the check"
    return REFUSED if found else UNCHANGED


def _adopt(folder: Path, options: CollectConfig, expected: list[bytes]) -> str:
    """Resume the collection without its manifest: what it lists must be what was collected."""
    (folder / MANIFEST).unlink()
    try:
        collect(replace(options, out=str(folder)))
    except DatasetError as error:
        return REFUSED if str(folder) in str(error) else f"refused without a name: {error}"
    return UNCHANGED if _everything(folder) == expected else "SILENT DIFFERENCE of what was adopted"
