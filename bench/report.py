"""Benchmark reports: rows of results with the machine they were measured on, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from sim.files import write_atomic

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement; None where not measured. `peer`: the value it is compared with, in the same unit.

    `ratio`: speed-up over the peer. `target` and `most`: lower and upper bound of the ratio or the value.
    """

    name: str
    value: float | None
    unit: str
    target: float | None = None
    most: float | None = None
    target_of: Literal["ratio", "value"] = "ratio"
    peer: float | None = None
    ratio: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool | None:
        reached = self.ratio if self.target_of == "ratio" else self.value
        if reached is None or (self.target is None and self.most is None):
            return None
        return (self.target is None or reached >= self.target) and (self.most is None or reached <= self.most)


def machine() -> dict[str, Any]:
    """Description of the machine; the cores are those in this process's affinity."""
    import torch  # worker processes import this file again and do without

    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": version("torch"),
        "pybullet": version("pybullet") if find_spec("pybullet") else "none",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def write_json(rows: list[Row], metadata: dict[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [asdict(row) | {"passed": row.passed} for row in rows]
    write_atomic(path, (json.dumps({"machine": metadata, "rows": values}, indent=1) + "\n").encode())
    return path


def print_table(rows: list[Row], metadata: dict[str, Any]) -> None:
    head = ("benchmark", "value", "unit", "peer", "ratio", "target", "passed")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    print("\n" + ", ".join(f"{key} {value}" for key, value in metadata.items()))
    for line, note in zip(cells, ["note", *(row.note for row in rows)], strict=True):
        left = line[0].ljust(widths[0])
        rest = [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join([left, *rest, note]).rstrip())


def _cells(row: Row) -> tuple[str, ...]:
    least = "" if row.target is None else f">= {row.target:g}"
    wanted = " ".join(part for part in (least, "" if row.most is None else f"<= {row.most:g}") if part)
    target = wanted + ("x" if wanted and row.target_of == "ratio" else "")
    return (
        row.name,
        _number(row.value),
        row.unit,
        _number(row.peer),
        "" if row.ratio is None else f"{row.ratio:.2f}x",
        target,
        {True: "yes", False: "NO", None: ""}[row.passed],
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
