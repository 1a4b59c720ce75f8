"""The HTML report: one self-contained file with success rates, learning curves, sharing weights and filmed episodes."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval import charts
from eval.rollout import EpisodeOutcome
from eval.routing import routing_section
from sim.files import write_atomic
from sim.tasks import TASK_NAMES, TASKS

COLOURS = {"checkpoint": "#2166ac", "random": "#b2182b", "scripted": "#1b7837", "crude": "#762a83", "data": "#878787"}
LABELS = {
    "checkpoint": "trained policy",
    "random": "random policy",
    "scripted": "scripted policy",
    "crude": "crude policy",
    "data": "the data",
}
CURVES = {  # TensorBoard tag -> title
    "eval/success_rate": "success in the simulator, all tasks",
    "train/loss": "total loss",
    "train/bellman": "Bellman cross-entropy",
    "train/q_success": "Q on own steps of successful episodes",
    "train/q_failure": "Q on own steps of failed episodes",
    "train/q_unseen": "Q on unseen actions (softmax mean)",
    "train/data_rank": "fraction of unseen actions outranked by the data's",
    "train/shared_weight": "mean weight of shared transitions",
    "train/cloning": "cloning loss",
    "train/point": "attention loss (landmarks in the image)",
    "train/landmark": "landmark loss (landmarks in space)",
}


def write_report(out: Path, payload: dict[str, Any], films: list[EpisodeOutcome]) -> Path:
    """Write `report.html` into the folder `out`; `payload` is the content of eval.json."""
    rows = sorted(payload["results"] + payload["data"], key=lambda row: TASKS[row["task"]].index)
    steps, size = payload["steps"], payload["image_size"]
    summary = (
        f"{html.escape(str(payload['checkpoint']))}, {steps} gradient steps at {size} x {size} px, "
        f"renderer {payload['renderer']}, sharing rule {payload['sharing']['rule']}, trained on the "
        f"{payload['trained_split']} split; scenes of the {payload['split']} split, "
        f"randomised: {', '.join(payload['randomise']) or 'nothing'}"
    )
    parts = [
        f"<h1>Switchyard: success per task</h1><p class=note>{summary}</p>",
        _success_chart(rows),
        "<p class=note>Bars show the success rate, whiskers the 95% Wilson interval. Success is decided by the task's "
        "detector on the final state; the data's success is that of the episodes collected for the task.</p>",
        _success_table(rows + payload["averages"]),
        routing_section(payload["sharing"]),
        "<h2>Learning curves</h2>",
        _curves(read_curves(Path(payload["checkpoint"]).parent / "log")),
        "<h2>Evaluation episodes</h2><p class=note>The first episodes of each task, not a selection.</p>",
        "<div class=films>" + "".join(_film(outcome) for outcome in films) + "</div>",
    ]
    path = out / "report.html"
    write_atomic(path, charts.page("Switchyard report", parts))
    return path


def _success_chart(rows: list[dict[str, Any]]) -> str:
    tasks = [name for name in TASK_NAMES if any(row["task"] == name for row in rows)]
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    left, width, bar = 140, 800, 11
    group = bar * len(policies) + 10
    out = [f'<svg viewBox="0 0 {left + width + 60} {group * len(tasks) + 50}" role="img">']
    for k in range(0, 101, 20):
        x = left + width * k / 100
        out.append(f'<line x1="{x}" x2="{x}" y1="22" y2="{group * len(tasks) + 26}" stroke="#e5e5e5"/>')
        out.append(f'<text x="{x}" y="{group * len(tasks) + 42}" text-anchor="middle">{k}%</text>')
    for k, policy in enumerate(policies):
        out.append(f'<rect x="{left + 150 * k}" y="4" width="10" height="10" fill="{COLOURS[policy]}"/>')
        out.append(f'<text x="{left + 150 * k + 15}" y="13">{LABELS[policy]}</text>')
    for t, task in enumerate(tasks):
        top = 26 + t * group
        out.append(f'<text x="{left - 8}" y="{top + group / 2}" text-anchor="end">{task}</text>')
        for p, policy in enumerate(policies):
            row = next((r for r in rows if r["task"] == task and r["policy"] == policy), None)
            if row is None:
                continue
            rate = row["successes"] / row["episodes"]
            y, low, high = top + p * bar, left + width * row["low"], left + width * row["high"]
            title = f"{LABELS[policy]}: {rate:.1%} of {row['episodes']}"
            out.append(
                f'<rect x="{left}" y="{y}" width="{width * rate:.1f}" height="{bar - 2}" fill="{COLOURS[policy]}" '
                f'opacity="0.75"><title>{title}</title></rect>'
            )
            middle = y + (bar - 2) / 2
            out.append(f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="#222"/>')
    return "".join(out) + "</svg>"


def _success_table(rows: list[dict[str, Any]]) -> str:
    out = ["<table><tr><th>task<th>policy<th>success<th>95% interval<th>episodes</tr>"]
    for row in rows:
        rate = row["successes"] / row["episodes"]
        out.append(
            f"<tr><td>{row['task']}<td>{LABELS[row['policy']]}<td>{rate:.1%}"
            f"<td>{row['low']:.1%} to {row['high']:.1%}<td>{row['episodes']}</tr>"
        )
    return "".join(out) + "</table>"


def read_curves(folder: Path) -> dict[str, NDArray[np.float64]]:
    """TensorBoard scalars by tag, each [points, 2] of (step, value), the last value of a repeated step; {} where
    there is no log."""
    if not folder.is_dir():
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()["scalars"]
    values = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in CURVES if tag in tags}
    return {tag: np.array(sorted(each.items())) for tag, each in values.items()}


def _curves(curves: dict[str, NDArray[np.float64]]) -> str:
    if not curves:
        return "<p class=note>No training log lies beside this checkpoint.</p>"
    drawn = (charts.curve(CURVES[tag], {tag: points}) for tag, points in curves.items())
    return "<div class=curves>" + "".join(drawn) + "</div>"


def _film(outcome: EpisodeOutcome) -> str:
    verdict = "<b class=yes>success</b>" if outcome.success else "<b class=no>failure</b>"
    return (
        f"<figure>{charts.film(list(outcome.film), outcome.task)}"
        f"<figcaption>{outcome.task}, episode {outcome.number}: {verdict} after {outcome.steps} steps</figcaption>"
        "</figure>"
    )
