"""The HTML report: one self-contained file with success rates, learning curves, sharing weights and filmed episodes."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval import charts, side_by_side
from eval.curves import read_curves
from eval.rollout import EpisodeOutcome, EvalResult
from eval.routing import routing_section
from eval.side_by_side import LOOKS, Column, columns_of
from sim.appearances import SPLITS
from sim.files import write_atomic

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


def write_report(
    out: Path, payload: dict[str, Any], films: list[EpisodeOutcome], other: dict[str, Any] | None = None
) -> Path:
    """Write `report.html` into the folder `out`; `payload` is the content of eval.json, `other` that of the other
    split, to stand beside."""
    steps, size = payload["steps"], payload["image_size"]
    splits = " and ".join(each["split"] for each in in_order(payload, other))
    summary = (
        f"{html.escape(str(payload['checkpoint']))}, {steps} gradient steps at {size} x {size} px, "
        f"renderer {payload['renderer']}, sharing rule {payload['sharing']['rule']}, trained on the "
        f"{payload['trained_split']} split; scenes of the {splits} split, "
        f"randomised: {', '.join(payload['randomise']) or 'nothing'}"
    )
    columns = report_columns(payload, other)
    parts = [
        f"<h1>Switchyard: success per task</h1><p class=note>{summary}</p>",
        side_by_side.chart(columns),
        "<p class=note>Bars show the success rate, whiskers the 95% Wilson interval. Success is decided by the task's "
        "detector on the final state; the data's success is that of the episodes collected for the task. Averages pool "
        "the episodes. Unseen: looks, tables and sizes of the test split, which training never shows.</p>",
        side_by_side.html_table(columns),
        routing_section(payload["sharing"]),
        "<h2>Learning curves</h2>",
        _curves(read_curves(Path(payload["checkpoint"]).parent / "log")),
        "<h2>Evaluation episodes</h2><p class=note>The first episodes of each task, not a selection.</p>",
        "<div class=films>" + "".join(_film(outcome) for outcome in films) + "</div>",
    ]
    path = out / "report.html"
    write_atomic(path, charts.page("Switchyard report", parts))
    return path


def in_order(*payloads: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Contents of eval.json, the train split first."""
    return sorted((each for each in payloads if each), key=lambda each: SPLITS.index(each["split"]))


def report_columns(payload: dict[str, Any], other: dict[str, Any] | None = None) -> list[Column]:
    """A column for each policy, or for each policy and split, and one for the data."""
    columns = []
    payloads = in_order(payload, other)
    names = list(dict.fromkeys(row["policy"] for each in payloads for row in each["results"]))
    for policy in names:
        for each in payloads:
            rows = [EvalResult.from_json(row) for row in each["results"] if row["policy"] == policy]
            label = LABELS[policy] + (f", {LOOKS[each['split']]} looks" if other else "")
            faint = other is not None and each["split"] != "train"
            columns += columns_of(rows, {policy: label}, colour=COLOURS[policy], faint=faint)
    rows = [EvalResult.from_json(row) for row in payloads[0]["data"]]
    return columns + columns_of(rows, LABELS, colour=COLOURS["data"])


def _curves(curves: dict[str, NDArray[np.float64]]) -> str:
    shown = {tag: curves[tag] for tag in CURVES if tag in curves}
    if not shown:
        return "<p class=note>No training log lies beside this checkpoint.</p>"
    drawn = (charts.curve(CURVES[tag], {tag: points}) for tag, points in shown.items())
    return "<div class=curves>" + "".join(drawn) + "</div>"


def _film(outcome: EpisodeOutcome) -> str:
    verdict = "<b class=yes>success</b>" if outcome.success else "<b class=no>failure</b>"
    return (
        f"<figure>{charts.film(list(outcome.film), outcome.task)}"
        f"<figcaption>{outcome.task}, episode {outcome.number}: {verdict} after {outcome.steps} steps</figcaption>"
        "</figure>"
    )
