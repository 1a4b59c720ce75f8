"""Benchmarks against peers: each side is a separate process, and a peer has a virtual environment for its packages.

A side prints a line of JSON metadata when it is ready, then answers each line of its input with a line of JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report import RESULTS

ROOT = Path(__file__).parents[1]


class SideError(RuntimeError):
    """A side of the comparison did not start or did not answer."""


class Side:
    """One process of a comparison; all output but its answers goes to a log file."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self._name = name
        self._log = RESULTS / f"{name}.log"
        RESULTS.mkdir(parents=True, exist_ok=True)
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
            )
        self.metadata = self._answer()

    def ask(self, line: str) -> dict[str, float]:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise SideError(f"{self._name} ended: {(lines or ['nothing in its log'])[-1]} (see {self._log})")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()  # the end of its input ends it


def interpreter(name: str, packages: Sequence[str]) -> Path | None:
    """The python of a peer's virtual environment, created on first use; None if that fails."""
    venv = RESULTS / name
    python, ready = venv / "bin" / "python", venv / ".ready"
    if ready.is_file() and ready.read_text(encoding="utf-8") == " ".join(packages):
        return python
    print(f"making {venv} for the peer", flush=True)
    try:
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no peer: its virtual environment {venv} could not be made: {error}")
        return None
    ready.write_text(" ".join(packages), encoding="utf-8")
    return python
