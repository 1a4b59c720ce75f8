"""`python -m eval.compare A B [C ...]`: is B better than A, and how sure is that, per task and on average.

Each of A, B, ... is an eval.json, a run's folder that holds one, or several of them with commas between: the training
seeds of one recipe, A1,A2,A3. Every further arm is compared with the first. Equal scenes are paired; where scenes
differ, the episodes count as independent, and the output says so. docs/commands.md#comparing-policies has the methods.

Exit status: 0; 1 where `--require` is not met; 2 where nothing can be compared, or for a wrong option.
"""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import charts, side_by_side
from eval.comparison import AVERAGE, Arm, compare, interval_text, meets, p_text, points
from eval.results import read_run
from eval.rollout import POLICIES
from sim.files import check_writable, write_atomic
from sim.options import Parser, check_choice, run_command
from sim.tasks import TASK_NAMES

REQUIREMENTS = ("better", "not-worse")


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.compare", description=__doc__)
    parser.add_argument("arms", nargs="+", metavar="ARM", help="eval.json or run folder; several seeds: A1,A2,A3")
    parser.add_argument("--labels", default="", metavar="A,B,...", help="names of the arms (default: A, B, ...)")
    parser.add_argument("--policy", default="checkpoint", help=f"which of {', '.join(POLICIES)} (default checkpoint)")
    parser.add_argument("--require", default="", help="better or not-worse: exit 1 unless every further arm is that")
    parser.add_argument("--margin", type=float, default=0.0, help="points, for --require (default 0)")
    parser.add_argument("--json", default="", metavar="FILE", help="also write everything as JSON; -: nothing but that")
    parser.add_argument("--report", default="", metavar="FILE", help="also write an HTML page, side by side")
    options = parser.parse_args(arguments)
    return run_command(lambda: _main(**vars(options)))


def _main(
    arms: list[str], labels: str, policy: str, require: str, margin: float, json: str, report: str
) -> int:  # names of the options
    check_choice("policy", policy, tuple(POLICIES))
    if require:
        check_choice("requirement", require, REQUIREMENTS)
    if not margin >= 0 or (margin and not require):
        raise ValueError(f"--margin is 0 or more points, and belongs to --require; got {margin:g}")
    for path in (json, report):
        if path not in ("", "-"):
            check_writable(Path(path))
    read = read_arms(arms, labels, policy)
    found = compare(read)
    if require:
        found["require"] = {"what": require, "margin": margin / 100, "met": meets(found, require, margin / 100)}
    if json == "-":
        print(as_json(found))
    else:
        print(as_text(found))
    if report:
        write_atomic(Path(report), as_page(read, found))
    if json not in ("", "-"):
        write_atomic(Path(json), (as_json(found) + "\n").encode())
    return 1 if require and not found["require"]["met"] else 0


def read_arms(texts: Sequence[str], labels: str = "", policy: str = "checkpoint") -> list[Arm]:
    """The arms that a command line names; ValueError where they cannot be compared."""
    if len(texts) < 2:
        raise ValueError(f"give two arms or more to compare, got {len(texts)}: {' '.join(texts)}")
    names = [name for name in labels.split(",") if name] or [_letter(k) for k in range(len(texts))]
    if len(set(names)) != len(texts):
        raise ValueError(f"--labels needs {len(texts)} different names, one for each arm, got {','.join(names)}")
    arms = []
    for name, text in zip(names, texts, strict=True):
        paths = [text] if Path(text).exists() else [part for part in text.split(",") if part]
        runs = tuple(read_run(Path(path), policy) for path in paths)
        for k, run in enumerate(runs):
            if any(run.fingerprint == other.fingerprint for other in runs[:k]):
                raise ValueError(f"{run.path}: this policy comes twice in {name}; its seeds must be trained apart")
        arms.append(Arm(label=name, runs=runs))
    return arms


def _letter(k: int) -> str:
    return chr(ord("A") + k) if k < 26 else f"arm-{k + 1}"


def as_json(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1, allow_nan=False)


def table(found: dict[str, Any]) -> list[list[str]]:
    """Head and rows of one comparison, as text."""
    a, b = found["a"], found["b"]
    tests = ["exact p", "mid-p"] if found[AVERAGE]["p_exact"] is not None else ["p"]
    rows = [["task", a, b, f"{b} - {a}", "95% interval", *tests, "Holm", "can show", f"{b} is"]]
    for row in (*found["tasks"], found[AVERAGE]):
        shows, values = row["smallest_difference"], [row["p_exact"], row["p_mid"]] if len(tests) > 1 else [row["p"]]
        rows.append(
            [
                row["task"],
                *(f"{100 * row[arm]['rate']:.1f}%" for arm in "ab"),
                points(row["difference"]),
                interval_text(row),
                *map(p_text, values),
                p_text(row["p_holm"]),
                "-" if shows is None else f"{100 * shows:.1f}",
                {"open": "-"}.get(row["verdict"], row["verdict"]),
            ]
        )
    return rows


def as_text(found: dict[str, Any]) -> str:
    lines = []
    for arm in found["arms"]:
        runs = ", ".join(run["file"] for run in arm["runs"])
        lines.append(f"{arm['label']}: {runs}" + (f" ({len(arm['runs'])} runs)" if len(arm["runs"]) > 1 else ""))
    for each in found["comparisons"]:
        rows = table(each)
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines.append("")
        lines += ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
        lines += ["", *_words(each)]
    if "require" in found:
        wanted = found["require"]
        met = "met" if wanted["met"] else "not met"
        lines.append(f"--require {wanted['what']} by {100 * wanted['margin']:g} points: {met}.")
    return "\n".join(lines)


def _words(found: dict[str, Any]) -> list[str]:
    """What stands below a table."""
    words = [found["verdict"], *found["notes"], found["method"]]
    if over := found["over_seeds"]:
        for arm in "ab":
            words.append(f"Interquartile mean of {found[arm]}: {_percent(over[f'iqm_{arm}'])}.")
        improves = _percent(over["probability_of_improvement"])
        words.append(f"Probability that a run of {found['b']} beats one of {found['a']} on a task: {improves}.")
    return words


def _percent(values: list[float]) -> str:
    rate, low, high = (100 * value for value in values)
    return f"{rate:.1f}% ({low:.1f}-{high:.1f})"


def as_page(arms: Sequence[Arm], found: dict[str, Any]) -> bytes:
    """HTML page: the chart and the table of all arms side by side, then every comparison."""
    columns = []
    for arm, colour in zip(arms, (charts.LINES * len(arms))[: len(arms)], strict=True):
        counts = {
            task: (sum(run.counts[task][0] for run in arm.runs), sum(run.counts[task][1] for run in arm.runs))
            for task in TASK_NAMES
            if all(task in run.counts for run in arm.runs)
        }
        columns.append(side_by_side.Column(name=arm.label, counts=counts, colour=colour))
    files = "<br>".join(
        html.escape(f"{arm['label']}: {', '.join(run['file'] for run in arm['runs'])}") for arm in found["arms"]
    )
    parts = ["<h1>Switchyard: policies compared</h1>", f"<p class=note>{files}</p>", side_by_side.chart(columns)]
    parts.append("<p class=note>Bars and table: all episodes of an arm, with 95% Wilson intervals.</p>")
    parts.append(side_by_side.html_table(columns))
    for each in found["comparisons"]:
        parts.append(f"<h2>{html.escape(each['b'])} beside {html.escape(each['a'])}</h2><table>")
        head, *rows = table(each)
        parts.append(f"<tr>{''.join(f'<th>{html.escape(cell)}' for cell in head)}</tr>")
        parts += [f"<tr>{''.join(f'<td>{html.escape(cell)}' for cell in row)}</tr>" for row in rows]
        parts.append("</table>" + "".join(f"<p>{html.escape(line)}</p>" for line in _words(each)))
    return charts.page("Switchyard: policies compared", parts)


if __name__ == "__main__":
    sys.exit(main())
