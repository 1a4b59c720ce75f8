"""`python -m eval.tables FILE...`: results of several runs as Markdown, beside those of the CDS paper.

FILE: eval.json of evaluations in the pick-place world (table 4), or returns.json of CQL on walker2d (tables 2 and 3,
and the returns of the clone of what each rule leaves).
Over several seeds: mean and 95% interval by Student's t; one seed of pictures: Wilson's interval of its episodes.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from eval.rollout import wilson
from sim.files import read_json
from sim.locomotion import BODIES
from sim.options import Parser, changed, run_command
from sim.tasks import TASK_NAMES

Cell = tuple[float, float]  # value, half of its 95% interval
PAPER_VISION: dict[str, tuple[float, ...]] = {  # CDS, table 4: success in percent, by task and then the average
    "cds": (53.1, 74.0, 71.8, 83.4, 61.4, 65.5, 83.8, 81.0, 85.8, 87.8, 74.8),
    "hipi": (48.3, 64.4, 71.0, 79.0, 62.6, 67.8, 78.8, 77.2, 83.6, 78.0, 71.1),
    "skill": (32.1, 55.9, 68.8, 68.2, 41.5, 50.8, 66.0, 80.8, 78.4, 80.8, 62.3),
    "all": (41.8, 60.1, 70.0, 72.5, 58.5, 57.7, 75.2, 70.8, 78.7, 79.2, 66.4),
    "none": (20.0, 49.7, 60.9, 68.4, 39.1, 49.1, 69.4, 80.3, 86.1, 85.0, 60.8),
}
# Of comparable evaluations; either of the two sums tells the dataset.
SAME = ("steps", "episodes_sha256", "manifest_sha256", "episodes", "seed", "randomise", "split", "renderer")
PAPER_RETURNS: dict[str, tuple[Cell, ...]] = {  # table 3, walker2d: by task and then the average
    "cds": ((1057.9, 121.6), (564.8, 47.7), (1418.2, 138.4), (1013.6, 71.5)),
    "cds-basic": ((968.6, 188.6), (594.5, 22.7), (1501.8, 115.1), (1021.6, 76.9)),
    "hipi": ((695.5, 61.9), (626.0, 48.0), (1603.7, 146.8), (975.1, 45.1)),
    "all": ((701.4, 47.0), (756.7, 76.7), (885.1, 152.9), (781.0, 100.8)),
    "none": ((590.1, 48.6), (614.7, 87.3), (1575.2, 70.9), (926.6, 37.7)),
}
PAPER_DIVERGENCE: dict[str, tuple[float, ...]] = {  # table 2
    "cds": (1.49, 6.09, 2.91),
    "cds-basic": (14.31, 8.26, 13.25),
    "all": (7.76, 12.2, 27.5),
    "none": (1.49, 1.91, 3.12),
}


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.tables", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    files = parser.parse_args(arguments).files
    return run_command(lambda: print(tables(files)))


def tables(files: Sequence[Path]) -> str:
    """Markdown of all files, which are of one kind."""
    found = [read_json(path) for path in files]
    if all("members" in each for each in found):
        return "\n\n".join(_states([row for each in found for row in each["members"]]))
    if all("results" in each for each in found):
        return _pictures(found)
    raise ValueError("the files are eval.json of evaluations, or returns.json of CQL on states, not both or others")


def t_interval(values: Sequence[float]) -> Cell:
    """The mean of independent values and half of its 95% interval (Student's t); nan for a single one."""
    array = np.asarray(values, float)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    error = array.std(ddof=1) / np.sqrt(len(array))
    return float(array.mean()), float(student.ppf(0.975, len(array) - 1) * error)


def _pictures(found: list[dict[str, Any]]) -> str:
    _comparable(found)
    runs: dict[str, list[dict[str, tuple[int, int]]]] = defaultdict(list)  # rule -> of each seed: task -> won, of
    for each in found:
        mine = (row for row in each["results"] if row["policy"] == "checkpoint")
        runs[each["sharing"]["rule"]].append({row["task"]: (row["successes"], row["episodes"]) for row in mine})
    rules = _in_order(runs, PAPER_VISION)
    if missing := [task for each in runs.values() for run in each for task in TASK_NAMES if task not in run]:
        raise ValueError(f"an evaluation lacks {missing[0]}: the table is of the trained policy on all ten tasks")

    def cell(rule: str, tasks: Sequence[str]) -> str:
        pooled = [[sum(run[task][k] for task in tasks) for k in (0, 1)] for run in runs[rule]]
        if len(pooled) > 1:
            mean, half = t_interval([100 * won / episodes for won, episodes in pooled])
            return f"{mean:.1f} ± {half:.1f}"
        (won, episodes) = pooled[0]
        low, high = wilson(won, episodes)
        return f"{100 * won / episodes:.1f} ({100 * low:.0f}-{100 * high:.0f})"

    rows = []
    for k, (name, tasks) in enumerate([*((task, [task]) for task in TASK_NAMES), ("average", TASK_NAMES)]):
        paper = [f"{PAPER_VISION[rule][k]:.1f}" if rule in PAPER_VISION else "-" for rule in rules]
        rows.append([name, *(cell(rule, tasks) for rule in rules), *paper])
    return markdown(["success, %", *rules, *(f"paper: {rule}" for rule in rules)], rows)


def _comparable(found: list[dict[str, Any]]) -> None:
    """ValueError where evaluations differ in more than rule and seed."""
    configs: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    for each in found:
        name, rule = each["checkpoint"], each["sharing"]["rule"]
        if each["settings"]["checkpoint_sha256"] in seen:
            raise ValueError(f"{name}: comes twice")
        seen.add(each["settings"]["checkpoint_sha256"])
        first, mine = ({key: run["settings"].get(key) for key in SAME} for run in (found[0], each))
        if differs := changed(first, mine):
            raise ValueError(f"{name}: not comparable with {found[0]['checkpoint']}: {differs}")
        config = each["sharing"].get("config", {})
        if differs := changed(configs.setdefault(rule, config), config):
            raise ValueError(f"{name}: another run of rule {rule} had other options: {differs}")


def _states(members: list[dict[str, Any]]) -> list[str]:
    tasks = BODIES["walker2d"].task_names
    of_rule: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for member in members:
        of_rule[member["rule"]].append(member)
        if missing := [task for task in tasks if task not in member["returns"]]:
            raise ValueError(f"{member['rule']}, seed {member['seed']}: lacks {missing[0]}")
    for rule, mine in of_rule.items():
        if len({member["seed"] for member in mine}) < len(mine):
            raise ValueError(f"a seed of {rule} comes twice: its members would not be independent")
    rules = _in_order(of_rule, PAPER_RETURNS)

    def seeds(rule: str, key: str, reduce: Callable[[Any], float]) -> list[list[float]]:
        """[task and their average][seed]"""
        each = [[reduce(member[key][task]) for member in of_rule[rule]] for task in tasks]
        return [*each, np.mean(each, axis=0).tolist()]

    def rows(
        key: str, reduce: Callable[[Any], float], digits: int, paper: Callable[[str, int], str] | None = None
    ) -> list[list[str]]:
        ours = {rule: [t_interval(values) for values in seeds(rule, key, reduce)] for rule in rules}

        def cell(mean: float, half: float) -> str:
            return f"{mean:.{digits}f}" + ("" if np.isnan(half) else f" ± {half:.{digits}f}")

        return [
            [name, *(cell(*ours[rule][k]) for rule in rules), *(paper(rule, k) for rule in rules if paper)]
            for k, name in enumerate([*tasks, "average"])
        ]

    def returned(rule: str, k: int) -> str:
        known = PAPER_RETURNS.get(rule)
        return f"{known[k][0]:.1f} ± {known[k][1]:.1f}" if known else "-"

    def apart(rule: str, k: int) -> str:
        known = PAPER_DIVERGENCE.get(rule)
        return f"{[*known, np.mean(known)][k]:.2f}" if known else "-"

    papers = [f"paper: {rule}" for rule in rules]
    mean: Any = np.mean
    out = [markdown(["return", *rules, *papers], rows("returns", mean, 1, returned))]
    if all("divergence" in member for member in members):
        out.append(markdown(["KL", *rules, *papers], rows("divergence", float, 2, apart)))
    if all("cloned" in member for member in members):
        out.append(markdown(["return of the clone", *rules], rows("cloned", mean, 1)))
    return out


def _in_order(found: Iterable[str], paper: Iterable[str]) -> list[str]:
    """The rules that were found, the paper's first, as it lists them."""
    found, paper = list(found), list(paper)
    return [rule for rule in paper if rule in found] + [rule for rule in found if rule not in paper]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
