"""Log of evaluation episodes on disk, one per line, from which an interrupted evaluation resumes."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from eval.rollout import EpisodeOutcome
from sim.files import write_atomic

LOG = "episodes.jsonl"
STORED = tuple(field.name for field in fields(EpisodeOutcome) if field.name != "film")


class EpisodeLog:
    """The file `episodes.jsonl` of a folder: a line of settings common to all episodes, then a line per episode. Until
    `finish` it has a hidden name, derived from the settings. An episode depends on its number and the settings alone,
    so an interrupted evaluation may be resumed with more episodes or tasks."""

    def __init__(self, folder: Path, common: dict[str, Any]) -> None:
        """`common`: the settings. OSError where the folder is not writable."""
        head = json.dumps(common, sort_keys=True)
        self._path, self._making = folder / LOG, folder / f".{zlib.crc32(head.encode()):08x}.{LOG}"
        self.outcomes = _read(self._making, head)
        lines = [head, *(json.dumps({"policy": policy, **_stored(o)}) for (policy, *_), o in self.outcomes.items())]
        write_atomic(self._making, "".join(f"{line}\n" for line in lines).encode())
        self._file = self._making.open("a", encoding="utf-8")

    def add(self, policy: str, outcome: EpisodeOutcome) -> None:
        """Record an outcome. Write errors are ignored: a full disk must not lose the results."""
        self.outcomes[policy, outcome.task, outcome.number] = outcome
        with contextlib.suppress(OSError):
            self._file.write(json.dumps({"policy": policy, **_stored(outcome)}) + "\n")
            self._file.flush()

    def finish(self) -> None:
        self._file.close()
        os.replace(self._making, self._path)


def _stored(outcome: EpisodeOutcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in STORED}


def _read(path: Path, head: str) -> dict[tuple[str, str, int], EpisodeOutcome]:
    """Outcomes by policy, task and number; {} for another evaluation. Incomplete lines, after a kill, are skipped."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    if not lines or lines[0] != head:
        return {}
    found = {}
    for line in lines[1:]:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            outcome = EpisodeOutcome(film=(), **{name: row[name] for name in STORED})
            found[row["policy"], outcome.task, outcome.number] = outcome
    return found
