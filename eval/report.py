"""The HTML report: one self-contained file with success, learning curves, the routing matrix and filmed episodes."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.shards import write_whole
from eval.rollout import EpisodeOutcome
from sim.tasks import TASK_NAMES, TASKS

COLOURS = {"checkpoint": "#2166ac", "random": "#b2182b", "expert": "#1b7837", "crude": "#762a83", "data": "#878787"}
LABELS = {
    "checkpoint": "trained policy",
    "random": "random policy",
    "expert": "scripted expert",
    "crude": "crude policy",
    "data": "the data",
}
CURVES = {  # TensorBoard tag -> what it is
    "eval/success_rate": "success in the simulator, all tasks",
    "train/loss": "total loss",
    "train/bellman": "Bellman cross-entropy",
    "train/q_success": "Q on own steps of successful episodes",
    "train/q_failure": "Q on own steps of failed episodes",
    "train/q_unseen": "Q on unseen actions (softmax mean)",
    "train/data_rank": "unseen actions outranked by the data's",
    "train/shared_weight": "mean weight of shared transitions",
    "train/cloning": "cloning loss",
    "train/point": "attention loss (where in the image)",
    "train/landmark": "landmark loss (where in space)",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1060px; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: 3px 7px; text-align: right; }
th:first-child, td:first-child { text-align: left; } .matrix td { text-align: center; min-width: 2.6em; }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 12px; }
figure { margin: 0; } figure img { width: 100%; border-radius: 4px; } figcaption { font-size: 12px; }
.yes { color: #1b7837; } .no { color: #b2182b; }
.curves { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; }
svg text { font: 11px system-ui, sans-serif; fill: #333; } .note { color: #555; font-size: 13px; }
"""


def write_report(out: Path, payload: dict[str, Any], films: list[EpisodeOutcome]) -> Path:
    """Write `report.html` into the folder of eval.json; `payload` is what that holds."""
    rows = sorted(payload["results"] + payload["data"], key=lambda row: TASKS[row["task"]].index)
    steps, size = payload["steps"], payload["image_size"]
    about = (
        f"{html.escape(str(payload['checkpoint']))}, {steps} gradient steps at {size} x {size} px, "
        f"renderer {payload['renderer']}, sharing rule {payload['sharing']['rule']}, trained on the "
        f"{payload['trained_split']} split; scenes of the {payload['split']} split, "
        f"randomised: {', '.join(payload['randomise']) or 'nothing'}"
    )
    parts = [
        f"<h1>Switchyard: success per task</h1><p class=note>{about}</p>",
        _success_chart(rows),
        "<p class=note>Bars show the success rate, whiskers the 95% Wilson interval. Success is decided by the task's "
        "detector on the final state; the data's success is that of the episodes collected for the task.</p>",
        _success_table(rows + payload["averages"]),
        "<h2>Routing: mean weight of source (column) for target (row)</h2>",
        _routing(payload["sharing"]["weights"]),
        "<h2>Learning curves</h2>",
        _curves(read_curves(Path(payload["checkpoint"]).parent / "log")),
        "<h2>Evaluation episodes</h2><p class=note>The first episodes of each task, not a selection.</p>",
        "<div class=films>" + "".join(_film(outcome) for outcome in films) + "</div>",
    ]
    page = f"<!doctype html><meta charset=utf-8><title>Switchyard report</title><style>{STYLE}</style>{''.join(parts)}"
    path = out / "report.html"
    write_whole(path, page.encode())
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


def _routing(weights: list[list[float | None]]) -> str:
    head = "".join(f"<th>{name.replace('-', '<br>', 1)}" for name in TASK_NAMES)
    out = [f"<table class=matrix><tr><th>target{head}</tr>"]
    for target, row in zip(TASK_NAMES, weights, strict=True):
        out.append(f"<tr><td>{target}")
        for value in row:
            if value is None:
                out.append('<td style="color:#bbb">-')
            else:
                ink = "#fff" if value > 0.55 else "#222"
                out.append(f'<td style="background:rgba(33,102,172,{value:.2f});color:{ink}">{value:.2f}')
        out.append("</tr>")
    return "".join(out) + "</table><p class=note>1 on the diagonal: a task's own data count in full.</p>"


def read_curves(folder: Path) -> dict[str, NDArray[np.float64]]:
    """TensorBoard scalars by tag, each [points, 2] of (step, value), the last of a step that was done again; empty
    where there is no log."""
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
    return "<div class=curves>" + "".join(_curve(CURVES[tag], points) for tag, points in curves.items()) + "</div>"


def _curve(title: str, points: NDArray[np.float64]) -> str:
    points = points[np.isfinite(points[:, 1])]
    if not len(points):
        return ""
    width, height, left, top = 320, 170, 40, 24
    low, high = float(points[:, 1].min()), float(points[:, 1].max())
    span = (high - low) or 1.0
    last = max(float(points[-1, 0]), 1.0)
    x = left + (width - left - 8) * points[:, 0] / last
    y = top + (height - top - 24) * (1 - (points[:, 1] - low) / span)
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return (
        f'<svg viewBox="0 0 {width} {height}"><text x="{left}" y="14">{title}</text>'
        f'<text x="{left - 4}" y="{top + 8}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{left - 4}" y="{height - 24}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{width - 8}" y="{height - 8}" text-anchor="end">{last:.0f} steps</text>'
        f'<rect x="{left}" y="{top}" width="{width - left - 8}" height="{height - top - 24}" '
        'fill="none" stroke="#ddd"/>'
        f'<polyline points="{line}" fill="none" stroke="#2166ac" stroke-width="1.5"/></svg>'
    )


def _film(outcome: EpisodeOutcome) -> str:
    pictures = [Image.fromarray(frame) for frame in outcome.film]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=[*pictures[1:], *[pictures[-1]] * 4],
        duration=250,
        loop=0,
        quality=70,
    )
    data = base64.b64encode(buffer.getvalue()).decode()
    verdict = "<b class=yes>success</b>" if outcome.success else "<b class=no>failure</b>"
    return (
        f'<figure><img src="data:image/webp;base64,{data}" alt="{outcome.task}">'
        f"<figcaption>{outcome.task}, episode {outcome.number}: {verdict} after {outcome.steps} steps</figcaption>"
        "</figure>"
    )
