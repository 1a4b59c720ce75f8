"""Success rates side by side: a row for each task, a column for each policy; as text, and as parts of an HTML page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.intervals import Counts, wilson
from eval.rollout import EvalResult
from sim.tasks import SKILLS, TASK_NAMES, TASKS

ALL = "average of all"
LOOKS = {"train": "seen", "test": "unseen"}  # by split: looks, tables and sizes that training shows, or never


@dataclass(frozen=True, kw_only=True)
class Column:
    """Rates of one policy. `rows`: (successes, episodes) by task. `faint`: drawn lighter, beside its pair."""

    name: str
    counts: Mapping[str, Counts]
    colour: str = "#2166ac"
    faint: bool = False

    def averages(self) -> dict[str, Counts]:
        """(successes, episodes) pooled over the tasks of each skill and over all tasks."""
        pooled = {}
        for group in (*dict.fromkeys(SKILLS), "all"):
            members = [each for task, each in self.counts.items() if group in ("all", TASKS[task].skill)]
            if members:
                pooled[f"average of {group}"] = (sum(x for x, _ in members), sum(n for _, n in members))
        return pooled


def columns_of(results: Sequence[EvalResult], names: Mapping[str, str] | None = None, **look: Any) -> list[Column]:
    """A column for each policy of the results; `names`: by policy, if not its own."""
    return [
        Column(
            name=(names or {}).get(policy, policy),
            counts={row.task: (row.successes, row.episodes) for row in results if row.policy == policy},
            **look,
        )
        for policy in dict.fromkeys(row.policy for row in results)
    ]


def averages(results: Sequence[EvalResult]) -> list[dict[str, Any]]:
    """Success of each policy, pooled over the tasks of a skill and over all tasks."""
    columns = columns_of(results)
    rows = []
    for group in dict.fromkeys(group for column in columns for group in column.averages()):
        for column in columns:
            if group in column.averages():
                successes, episodes = column.averages()[group]
                low, high = wilson(successes, episodes)
                values = {"successes": successes, "episodes": episodes, "low": low, "high": high}
                rows.append({"task": group, "policy": column.name, **values})
    return rows


def _rows(columns: Sequence[Column]) -> dict[str, list[Counts | None]]:
    """Counts by task, in the order of the task table, and then by average; None where a policy did not play."""
    cells = [{**column.counts, **column.averages()} for column in columns]
    groups = dict.fromkeys(group for column in columns for group in column.averages())
    names = [name for name in (*TASK_NAMES, *groups) if any(name in each for each in cells)]
    return {name: [each.get(name) for each in cells] for name in names}


def _episodes(column: Column) -> str:
    counts = sorted({n for _, n in column.counts.values()})
    return f"{counts[0]} to {counts[-1]} a task" if len(counts) > 1 else f"{counts[0]} a task" if counts else ""


def text_table(columns: Sequence[Column]) -> str:
    """Rates with their 95% Wilson intervals, for the terminal; averages pool the episodes."""
    lines = [["task", *(column.name for column in columns)], ["", *(_episodes(column) for column in columns)]]
    for name, row in _rows(columns).items():
        lines.append([name, *(_cell(counts) for counts in row)])
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns) + 1)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join(text)


def _cell(counts: Counts | None) -> str:
    if counts is None:
        return "-"
    low, high = wilson(*counts)
    return f"{counts[0] / counts[1]:.1%} ({100 * low:.1f}-{100 * high:.1f})"


def html_table(columns: Sequence[Column]) -> str:
    """The same as an HTML table."""
    head = "".join(f"<th>{html.escape(column.name)}<br>{_episodes(column)}" for column in columns)
    out = [f"<table><tr><th>task, success with its 95% interval{head}</tr>"]
    for name, row in _rows(columns).items():
        cells = (f"<td title='{x[0]} of {x[1]}'>{_cell(x)}" if x else "<td>-" for x in row)
        out.append(f"<tr><td>{name}{''.join(cells)}</tr>")
    return "".join(out) + "</table>"


def chart(columns: Sequence[Column]) -> str:
    """Bars with the success rate of each task and policy, and whiskers with its 95% Wilson interval (SVG)."""
    tasks = [name for name in TASK_NAMES if any(name in column.counts for column in columns)]
    left, width, bar = 140, 800, 11
    group = bar * len(columns) + 10
    marks = (
        f"<span style='color:{c.colour};opacity:{_opacity(c)}'>&#9632;</span> {html.escape(c.name)}" for c in columns
    )
    out = [f"<p class=note>{' &ensp; '.join(marks)}</p>"]
    out.append(f'<svg viewBox="0 0 {left + width + 60} {group * len(tasks) + 30}" role="img">')
    for k in range(0, 101, 20):
        x = left + width * k / 100
        out.append(f'<line x1="{x}" x2="{x}" y1="2" y2="{group * len(tasks) + 6}" stroke="#e5e5e5"/>')
        out.append(f'<text x="{x}" y="{group * len(tasks) + 22}" text-anchor="middle">{k}%</text>')
    for t, task in enumerate(tasks):
        top = 6 + t * group
        out.append(f'<text x="{left - 8}" y="{top + group / 2}" text-anchor="end">{task}</text>')
        for p, column in enumerate(columns):
            if task not in column.counts:
                continue
            successes, episodes = column.counts[task]
            rate, (low, high) = successes / episodes, wilson(successes, episodes)
            y = top + p * bar
            title = f"{html.escape(column.name)}: {rate:.1%} of {episodes}"
            out.append(
                f'<rect x="{left}" y="{y}" width="{width * rate:.1f}" height="{bar - 2}" fill="{column.colour}" '
                f'opacity="{_opacity(column)}"><title>{title}</title></rect>'
            )
            ends = f'x1="{left + width * low:.1f}" x2="{left + width * high:.1f}"'
            out.append(f'<line {ends} y1="{y + bar / 2 - 1}" y2="{y + bar / 2 - 1}" stroke="#222"/>')
    return "".join(out) + "</svg>"


def _opacity(column: Column) -> float:
    return 0.4 if column.faint else 0.75
