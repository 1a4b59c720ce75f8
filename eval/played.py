"""Outcomes of evaluation episodes on disk, one a line: an evaluation that was stopped goes on after them."""

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

PLAYED = "episodes.jsonl"
STORED = tuple(field.name for field in fields(EpisodeOutcome) if field.name != "film")


class Played:
    """The file `episodes.jsonl` of a folder: a line of what all its episodes have in common, then one an episode. Until
    `finish` it has a hidden name, of its own for all that is common. An episode depends on its number and on that
    alone, so that an evaluation of more episodes or tasks goes on from one of fewer that was stopped."""

    def __init__(self, folder: Path, common: dict[str, Any]) -> None:
        """OSError where the folder cannot be written into."""
        head = json.dumps(common, sort_keys=True)
        self._path, self._making = folder / PLAYED, folder / f".{zlib.crc32(head.encode()):08x}.{PLAYED}"
        self.outcomes = _read(self._making, head)
        lines = [head, *(json.dumps({"policy": policy, **_stored(o)}) for (policy, *_), o in self.outcomes.items())]
        write_atomic(self._making, "".join(f"{line}\n" for line in lines).encode())
        self._file = self._making.open("a", encoding="utf-8")

    def add(self, policy: str, outcome: EpisodeOutcome) -> None:
        """What cannot be written is still counted: the results are not lost with a full disk."""
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
    """By policy, task and number; nothing of another evaluation, nor of a line that a kill cut short."""
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
