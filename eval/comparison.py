"""Comparison of policies by the outcomes of episodes: differences, tests, verdicts; eval/compare.py prints them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval import paired
from eval.intervals import Counts, mean_of_rates, newcombe, t_interval
from eval.paired import Block, Difference
from eval.results import Run
from sim.options import changed
from sim.tasks import TASK_NAMES

AVERAGE = "average"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison: a run, or a run for each training seed."""

    label: str
    runs: tuple[Run, ...]

    def scenes(self) -> str:
        """What fixes the scenes that all of its runs met; "" where they met different or unknown ones."""
        found = {run.scenes for run in self.runs}
        return found.pop() if len(found) == 1 else ""


def compare(arms: Sequence[Arm]) -> dict[str, Any]:
    """Each further arm against the first, as plain values: rates and differences are fractions.

    Holm's correction covers all tasks of all comparisons, and apart from these the averages of all comparisons."""
    comparisons = [_compare(arms[0], arm) for arm in arms[1:]]
    for rows in (
        [row for each in comparisons for row in each["tasks"]],
        [each[AVERAGE] for each in comparisons],
    ):
        for row, p in zip(rows, paired.holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = p
            row["verdict"] = _winner(row)
    for each in comparisons:
        each["verdict"] = _verdict(each)
    return {
        "arms": [{"label": arm.label, "runs": [_described(run) for run in arm.runs]} for arm in arms],
        "policy": arms[0].runs[0].policy,
        "confidence": 1 - 2 * paired.TAIL,
        "bootstrap": {"resamples": paired.RESAMPLES, "seed": paired.SEED},
        "comparisons": comparisons,
    }


def _described(run: Run) -> dict[str, Any]:
    return {"file": str(run.path), "rule": run.rule, "steps": run.steps, "sha256": run.fingerprint}


def _compare(a: Arm, b: Arm) -> dict[str, Any]:
    runs = (*a.runs, *b.runs)
    tasks = [task for task in TASK_NAMES if all(task in run.counts for run in runs)]
    if not tasks:
        own = "; ".join(f"{run.path}: {', '.join(run.counts)}" for run in runs)
        raise ValueError(f"{a.label} and {b.label} have no task in common: {own}")
    notes = []
    if single := [task for task in TASK_NAMES if task not in tasks and any(task in run.counts for run in runs)]:
        notes.append(f"Not every evaluation has {', '.join(single)}: left out.")
    blocks, pairs = _blocks(a, b, tasks)
    notes += _left_out(a, b, tasks, blocks)
    several = max(len(a.runs), len(b.runs)) > 1
    scores = (_scores(blocks, 0, len(a.runs)), _scores(blocks, 1, len(b.runs)))
    same = _same(a, b, tasks)
    notes += [] if same else _about_scenes(a, b, pairs)
    if same:
        each, average = _none(len(tasks))
    elif several or pairs:
        each, average = paired.differences(blocks)
    else:
        each, average = _independent(*(_counts(blocks, arm) for arm in (0, 1)))
    rows = []
    for k, name in enumerate([*tasks, AVERAGE]):
        part = slice(k, k + 1) if k < len(tasks) else slice(None)
        rows.append({"task": name, **_row(scores, blocks, part, each[k] if k < len(tasks) else average, pairs)})
    if several:
        notes += [
            f"{arm.label} is one run: how far other training seeds of it would differ is not in the interval."
            for arm in (a, b)
            if len(arm.runs) == 1
        ]
    return {
        "a": a.label,
        "b": b.label,
        "same": same,
        "paired": pairs,
        "method": _method(pairs, several),
        "notes": notes,
        "tasks": rows[:-1],
        AVERAGE: rows[-1],
        "over_seeds": _over_seeds(*scores) if min(len(a.runs), len(b.runs)) > 1 else None,
    }


def _blocks(a: Arm, b: Arm, tasks: list[str]) -> tuple[list[list[Block]], bool]:
    """The episodes of each task that are compared, and whether they are paired: runs that met the same scenes lie in
    one block, with the scenes that all of them met."""
    known = [*((0, k, run) for k, run in enumerate(a.runs)), *((1, k, run) for k, run in enumerate(b.runs))]
    arms: list[list[tuple[int, int, Run]]] = [[each for each in known if each[0] == arm] for arm in (0, 1)]
    pairs = a.scenes() == b.scenes() != "" and all(_common(known, task) for task in tasks)
    groups = [known]
    if not pairs:
        groups = []
        for mine, arm in zip(arms, (a, b), strict=True):
            together = arm.scenes() and all(_common(mine, task) for task in tasks)
            groups += [mine] if together else [[each] for each in mine]
    return [[_block(group, task) for group in groups] for task in tasks], pairs


def _common(group: list[tuple[int, int, Run]], task: str) -> list[int]:
    """The episodes that every run of a group played."""
    return sorted(set.intersection(*(set(run.outcomes.get(task, {})) for *_, run in group)))


def _block(group: list[tuple[int, int, Run]], task: str) -> Block:
    numbers = _common(group, task)
    if numbers:
        rows = [[run.outcomes[task][number] for number in numbers] for *_, run in group]
    else:  # counts alone, of one run
        ((_, _, run),) = group
        successes, episodes = run.counts[task]
        rows = [[number < successes for number in range(episodes)]]
    arm, number = (np.array([each[k] for each in group], np.int64) for k in (0, 1))
    return Block(outcomes=np.array(rows, np.bool_), arm=arm, run=number)


def _left_out(a: Arm, b: Arm, tasks: list[str], blocks: list[list[Block]]) -> list[str]:
    used = {
        (arm, run): sum(block.scenes for each in blocks for block in each if _holds(block, arm, run))
        for arm, side in enumerate((a, b))
        for run in range(len(side.runs))
    }
    notes = []
    for (arm, number), count in used.items():
        run = (a, b)[arm].runs[number]
        if more := sum(run.counts[task][1] for task in tasks) - count:
            notes.append(f"Left out: {more} episodes of {run.path} that not every run beside it played.")
    return notes


def _holds(block: Block, arm: int, run: int) -> bool:
    return bool(((block.arm == arm) & (block.run == run)).any())


def _about_scenes(a: Arm, b: Arm, pairs: bool) -> list[str]:
    """Why episodes are not paired; and the same checkpoint, where that is no reason for equal outcomes."""
    runs = (*a.runs, *b.runs)
    notes = []
    if not pairs:
        if old := [str(run.path) for run in runs if not run.scenes]:
            why = f"{', '.join(old)} has counts alone (an earlier version of python -m eval)"
        else:
            first, other = (
                json.loads(run.scenes)
                for run in (runs[0], next((r for r in runs if r.scenes != runs[0].scenes), runs[0]))
            )
            why = changed(first, other).replace("(now ", "(against ") or "no episode number is in all of them"
        notes.append(f"Scenes differ, so the episodes count as independent: {why}.")
    if {run.fingerprint for run in a.runs} == {run.fingerprint for run in b.runs}:
        ended = ", and yet some episodes ended otherwise: another machine or version played them" if pairs else ""
        notes.append(f"{a.label} and {b.label} are the same policy{ended}.")
    return notes


def _same(a: Arm, b: Arm, tasks: list[str]) -> bool:
    """Whether the arms are the same policies with the same outcomes."""

    def known(arm: Arm) -> list[Any]:
        return sorted(
            (run.fingerprint, run.scenes, [(run.counts[t], sorted(run.outcomes.get(t, {}).items())) for t in tasks])
            for run in arm.runs
        )

    return known(a) == known(b)


def _none(count: int) -> tuple[list[Difference], Difference]:
    none = Difference(estimate=0.0, low=0.0, high=0.0, standard_error=0.0, degrees=1.0, p=1.0)
    return [none] * count, none


def _scores(blocks: list[list[Block]], arm: int, runs: int) -> NDArray[np.float64]:
    """Success rates [K, N] of the runs of an arm."""
    found = np.zeros((runs, len(blocks)))
    for task, each in enumerate(blocks):
        for block in each:
            mine = block.arm == arm
            found[block.run[mine], task] = block.outcomes[mine].mean(1)
    return found


def _counts(blocks: list[list[Block]], arm: int) -> list[Counts]:
    """(successes, episodes) by task, of the only run of an arm."""
    rows = [block.outcomes[block.arm == arm][0] for each in blocks for block in each if (block.arm == arm).any()]
    return [(int(row.sum()), len(row)) for row in rows]


def _independent(x: list[Counts], y: list[Counts]) -> tuple[list[Difference], Difference]:
    """Newcombe's interval of each task and of the mean over tasks, and the score test."""

    def difference(x: list[Counts], y: list[Counts]) -> Difference:
        share = np.full(len(x), 1 / len(x))
        estimate, low, high = mean_of_rates([*y, *x], [*share, *-share])
        if len(x) == 1:
            low, high = newcombe(x[0], y[0])
        return Difference(
            estimate=estimate, low=low, high=high, standard_error=np.nan, degrees=np.inf, p=paired.score_test(x, y)
        )

    return [difference([each], [other]) for each, other in zip(x, y, strict=True)], difference(x, y)


def _row(
    scores: tuple[NDArray[np.float64], NDArray[np.float64]],
    blocks: list[list[Block]],
    part: slice,
    found: Difference,
    pairs: bool,
) -> dict[str, Any]:
    """Values of a task, or of the mean over tasks."""
    used = blocks[part]
    row: dict[str, Any] = {
        "a": _rate(scores[0][:, part], used, 0),
        "b": _rate(scores[1][:, part], used, 1),
        "difference": found.estimate,
        "low": found.low,
        "high": found.high,
        "only_a": None,
        "only_b": None,
        "p_exact": None,
        "p_mid": None,
        "p": found.p,
    }
    several = max(len(each) for each in scores) > 1
    if several:
        row["p"] = 1.0 if found.p is None else found.p
        row["smallest_difference"] = paired.smallest_over_seeds(found)
    elif pairs:
        a, b = (np.concatenate([block.outcomes[arm] for (block,) in used]) for arm in (0, 1))
        row["only_a"], row["only_b"] = int((a & ~b).sum()), int((b & ~a).sum())
        row["p_exact"], row["p_mid"] = paired.mcnemar(row["only_a"], row["only_b"])
        row["p"] = row["p_mid"]
        row["smallest_difference"] = paired.smallest_difference(len(a), row["only_a"] + row["only_b"])
    else:
        row["smallest_difference"] = paired.smallest_independent_difference(_counts(used, 0), _counts(used, 1))
    return row


def _rate(scores: NDArray[np.float64], blocks: list[list[Block]], arm: int) -> dict[str, Any]:
    """Success rate of an arm with its interval: Wilson's of its episodes (for a mean over tasks: from those of the
    tasks); over several seeds Student's t."""
    episodes = sum(block.scenes * int((block.arm == arm).sum()) for each in blocks for block in each)
    if len(scores) > 1:
        rate, half = t_interval(scores.mean(1).tolist())
        low, high = max(0.0, rate - half), min(1.0, rate + half)
    else:
        rate, low, high = mean_of_rates(_counts(blocks, arm))
    return {"rate": rate, "low": low, "high": high, "episodes": episodes, "runs": len(scores)}


def _over_seeds(a: NDArray[np.float64], b: NDArray[np.float64]) -> dict[str, Any]:
    """Interquartile means and the probability of improvement, with their intervals (Agarwal et al. 2021)."""
    return {
        "iqm_a": [paired.interquartile_mean(a), *paired.interquartile_interval(a)],
        "iqm_b": [paired.interquartile_mean(b), *paired.interquartile_interval(b)],
        "probability_of_improvement": [paired.probability_of_improvement(a, b), *paired.improvement_interval(a, b)],
    }


def _method(pairs: bool, several: bool) -> str:
    resamples = f"{paired.RESAMPLES:,} resamples, seed {paired.SEED}"
    if several:
        return (
            f"Interval: Student's t with the standard error of a bootstrap of training seeds, and of "
            f"{'pairs of episodes' if pairs else 'episodes'} within tasks ({resamples}); p from the same t."
        )
    if pairs:
        return f"Paired by scene. Interval: bootstrap of pairs within tasks ({resamples}); verdicts: McNemar's mid-p."
    return "Not paired. Interval: Newcombe's, of independent episodes; p: score test of two proportions."


def _winner(row: dict[str, Any]) -> str:
    """ "better", "worse" or "open": B beside A, at 5% after Holm's correction; the interval must agree."""
    if row["p_holm"] >= paired.LEVEL or row["low"] <= 0 <= row["high"]:
        return "open"
    return "better" if row["difference"] > 0 else "worse"


def _verdict(found: dict[str, Any]) -> str:
    """In plain words: of the average, and of the tasks."""
    a, b, row, tasks = found["a"], found["b"], found[AVERAGE], found["tasks"]
    if found["same"]:
        return f"{a} and {b} are the same policy, with the same outcome in every episode: no difference."
    over = f"on average over {len(tasks)} tasks" if len(tasks) > 1 else f"on {tasks[0]['task']}"
    size = f"{points(row['difference'])} points {over} (95% interval {interval_text(row)}, p {p_text(row['p_holm'])})"
    if row["verdict"] == "open":
        text = f"Inconclusive: {b} - {a} is {size}."
        if row["smallest_difference"]:
            text += (
                f" So many episodes show a difference of {100 * row['smallest_difference']:.1f} points in 80% of cases."
            )
    else:
        text = f"{b} is {row['verdict']}: {size}."
    if len(tasks) > 1:
        told = [f"{b} is {w} on {', '.join(mine)}" for w in ("better", "worse") if (mine := _where(tasks, w))]
        left = len(_where(tasks, "open"))
        if left:
            told.append(f"inconclusive on {left}" if told else "inconclusive on all")
        text += f" Of single tasks, after Holm's correction: {'; '.join(told)}."
    return text


def _where(tasks: list[dict[str, Any]], verdict: str) -> list[str]:
    return [row["task"] for row in tasks if row["verdict"] == verdict]


def meets(found: dict[str, Any], what: str, margin: float) -> bool:
    """Whether every further arm is `better` than the first by more than the margin, or `not-worse` by more than it: the
    lower limit of the average's interval decides, and for `better` the test too."""
    rows = [each[AVERAGE] for each in found["comparisons"]]
    if what == "better":
        return all(row["verdict"] == "better" and row["low"] > margin for row in rows)
    return all(row["low"] >= -margin for row in rows)


def points(value: float) -> str:
    return f"{100 * value:+.1f}" if round(100 * value, 1) else "0.0"


def interval_text(row: dict[str, Any]) -> str:
    return f"{points(row['low'])} to {points(row['high'])}"


def p_text(value: float | None) -> str:
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
