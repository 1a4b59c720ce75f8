"""`python -m data check`: verifies checksums, schema and detectors of a whole dataset and reports errors by file."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data import codec
from data.collection import read_options
from data.manifest import Manifest, read_manifest, select_episodes
from data.plan import CONFIG
from data.progress import LINE_EVERY_S
from data.shards import ManifestEntry, Shard, read_listed, read_shard, shard_files
from sim import actions
from sim.files import DatasetError
from sim.parallel import run_jobs_here
from sim.scenes import read_factors
from sim.state import SceneState
from sim.tasks import TASK_NAMES, TASKS, detect_successes

Key = tuple[str, int, int]  # (origin, task, number) identifies an episode


@dataclass(frozen=True, kw_only=True)
class Report:
    frames: int  # number of frames read
    wrong: tuple[str, ...]  # errors, by file
    unfinished: tuple[str, ...]  # what an interrupted collection has left to do, which is no error


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Errors of one shard, and the episodes it holds."""

    wrong: tuple[str, ...]
    episodes: tuple[Key, ...] = ()
    frames: int = 0


def check(folder: Path, workers: int = 1) -> Report:
    """Read and verify everything that the manifest lists; DatasetError without a manifest."""
    manifest = read_manifest(folder)
    wrong: list[str] = []
    seen: dict[Key, str] = {}
    frames = 0
    entries = manifest.shards
    results = run_jobs_here(Checker, (folder, manifest), entries, workers)
    printed = time.monotonic()
    findings: list[tuple[ManifestEntry, Finding]] = []
    for result in results:
        findings.append(result)
        if time.monotonic() - printed > LINE_EVERY_S:
            printed = time.monotonic()
            print(f"{len(findings)} of {len(entries)} shards read", file=sys.stderr)
    for entry, found in sorted(findings, key=lambda pair: pair[0].name):
        wrong += found.wrong
        frames += found.frames
        for key in found.episodes:
            if key in seen:
                episode = f"episode {key[2]} of {TASK_NAMES[key[1]]}"
                wrong.append(f"{folder / entry.name}: holds {episode}, as {seen[key]} does")
            seen[key] = entry.name
    unfinished: tuple[str, ...] = ()
    if (folder / CONFIG).is_file():  # merged and split datasets have gaps by design
        try:
            unfinished = tuple(_unfinished(folder, manifest, read_options(folder), () if wrong else seen.keys()))
        except DatasetError as error:
            wrong.append(str(error))
    return Report(frames=frames, wrong=tuple(wrong), unfinished=unfinished)


def _unfinished(folder: Path, manifest: Manifest, metadata: dict[str, Any], episodes: Iterable[Key]) -> Iterator[str]:
    asked = sum(metadata["asked"][-1])
    if manifest.episodes < asked and not metadata["until"]:
        yield f"{folder}: {manifest.episodes} of the {asked} episodes that were asked for; collect goes on"
    names = {entry.name for entry in manifest.shards}
    unlisted = [path.name for path in shard_files(folder) if path.name not in names]
    if unlisted:
        yield f"{folder}: {len(unlisted)} shards are not listed yet, {unlisted[0]} for one; collect lists them"
    numbers = defaultdict[tuple[str, int], set[int]](set)
    for origin, task, number in episodes:
        numbers[origin, task].add(number)
    for (_, task), held in numbers.items():
        if len(held) <= max(held):
            yield f"{folder}: {TASK_NAMES[task]} lacks {max(held) + 1 - len(held)} episodes in between; collect goes on"


class Checker:
    """Worker of a check: verifies a shard by its manifest entry."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, replace(manifest, shards=())

    def __call__(self, entry: ManifestEntry) -> tuple[ManifestEntry, Finding]:
        try:
            return entry, self._read(entry)
        except DatasetError as error:
            return entry, Finding(wrong=(str(error),))
        except (ValueError, OSError) as error:
            return entry, Finding(wrong=(f"{self._folder / entry.name}: {error}",))

    def _read(self, entry: ManifestEntry) -> Finding:
        path = self._folder / entry.name
        shard = Shard(path, entry)
        shard.frames([0])  # is it the file that the manifest lists?
        read_listed(path, entry)
        real, tables, attributes = read_shard(path)
        index_of = {first: number for number, first in enumerate(real.first)}
        chosen = [index_of[first] for first in entry.first if first in index_of]
        wrong = []
        if replace(select_episodes(real, chosen), name=entry.name) != entry:
            wrong.append("the manifest says otherwise of it")
        for key in ("renderer", "size", "split"):
            if attributes[key] != getattr(self._manifest, key):
                wrong.append(f"its {key} is {attributes[key]}, its dataset's {getattr(self._manifest, key)}")
        if set(read_factors(attributes["randomise"])) - set(self._manifest.randomise):
            wrong.append(f"randomises {attributes['randomise']}, its dataset {', '.join(self._manifest.randomise)}")
        wrong += self._tables(tables)
        listed = [first + k for first, length in zip(entry.first, entry.length, strict=True) for k in range(length + 1)]
        side = self._manifest.frame_size
        for number, frame in zip(listed, shard.frames(listed), strict=True):
            try:
                codec.decode(frame.image, np.empty((side, side, 3), np.uint8))
            except ValueError as error:
                wrong.append(f"frame {number}: {error}")
        return Finding(
            wrong=tuple(f"{path}: {text}" for text in wrong),
            episodes=tuple((real.origin, real.task[n], real.number[n]) for n in chosen),
            frames=len(listed),
        )

    def _tables(self, tables: dict[str, NDArray[Any]]) -> list[str]:
        state, action = tables["frame/state"], tables["frame/action"]
        length, task = tables["episode/length"], tables["episode/task"]
        last = np.cumsum(length + 1) - 1
        acted = np.ones(len(action), np.bool_)
        acted[last] = False
        if not ((task >= 0) & (task < len(TASK_NAMES))).all():
            return ["an episode of no known task"]
        horizon = np.array([spec.horizon for spec in TASKS.values()])[task]
        changed = (detect_successes(SceneState(state)) != tables["frame/verdict"]).any(axis=1)
        found = {
            "a state that is not finite": not np.isfinite(state).all(),
            "an action that is not finite": not np.isfinite(action).all(),
            "an action out of bounds": (np.abs(action[:, :4]) > actions.BOUNDS + 1e-6).any(),
            "a command that is none": not np.isin(action[:, 4], range(len(actions.COMMANDS))).all(),
            "an action after the end of an episode": action[~acted].any(),
            "an episode longer than its task's horizon": (length > horizon).any(),
            "an episode that ends otherwise than it says": not np.array_equal(
                tables["episode/terminated"], action[last - 1, 4] == actions.TERMINATE
            ),
            f"{changed.sum()} frames whose verdicts are others than today's detectors give": changed.any(),
        }
        return [text for text, wrong in found.items() if wrong]
