"""`make bench-lowdim`: updates per second of the algorithms on states beside d3rlpy's, and what routing costs.

Both sides have 3 x 128 transitions of walker2d's sizes and each algorithm's own networks (CQL: as CDS has it, 3 x 256
units, 10 actions of each kind), the same machine and all of its cores, in turns; the ratio is the median over the
pairs. A GPU trains 15 seeds at once, and their updates are counted.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch

from bench.peers import Side, SideError, interpreter
from bench.report import Row
from bench.vision import MOST_ROUTING_PERCENT

PEER_PACKAGES = ("d3rlpy==2.8.1",)
THREE = {"cpu": 3.0, "cuda": 3.0}
LEAST_RATIO = {"cql": {"cpu": 4.0, "cuda": 40.0}, "td3-bc": THREE, "iql": THREE, "bc": THREE}  # to d3rlpy, by device
PAIRS, UPDATES = 21, {"cql": 10, "brac": 40, "td3-bc": 40, "iql": 40, "bc": 80}
SEEDS = {"cpu": 1, "cuda": 15}
ROUTED = ("cds", "cds-basic", "hipi")


def run(quick: bool) -> list[Row]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = start_peer()
    rows = [_beside(peer, name, device, quick) for name in LEAST_RATIO]
    if peer is not None:
        peer.close()
    rows.append(_beside(None, "brac", device, quick))
    return [*rows, *(_routing(rule, 2 if quick else 10) for rule in ROUTED)]


def _beside(peer: Side | None, name: str, device: str, quick: bool) -> Row:
    """Updates of an algorithm, in turns with the peer's."""
    pairs, updates = (1, 2) if quick else (PAIRS, UPDATES[name])
    own, seeds = _own(name, "none", SEEDS[device]), SEEDS[device]
    ours, theirs, drawing = [], [], []
    own.ask(f"block {max(1, updates // 4)}")
    if peer is not None:
        peer.ask(f"block {name} {max(1, updates // 4)}")
    for _ in range(pairs):
        ours.append(seeds * updates / own.ask(f"block {updates}")["seconds"])
        if peer is not None:
            answer = peer.ask(f"block {name} {updates}")
            theirs.append(updates / answer["seconds"])
            drawing.append(answer["drawing"] / answer["seconds"])
    ratios = [a / b for a, b in zip(ours, theirs, strict=bool(theirs))]
    notes = [f"{own.metadata['precision']}, {seeds} seed(s) on {own.metadata['device']}"]
    if peer is not None:
        alone = [rate / (1 - part) for rate, part in zip(theirs, drawing, strict=True)]
        notes.append(f"peer d3rlpy {peer.metadata['version']}, {statistics.median(alone):.3g} without drawing batches")
        notes.append(f"{pairs} pairs, ratios {min(ratios):.1f} to {max(ratios):.1f}")
    own.close()
    return Row(
        name=f"{name} on states",
        value=statistics.median(ours),
        unit="updates/s",
        target=LEAST_RATIO.get(name, {}).get(device),
        peer=statistics.median(theirs) if theirs else None,
        ratio=statistics.median(ratios) if ratios else None,
        note="; ".join(notes),
    )


def _routing(rule: str, updates: int) -> Row:
    side = _own("cql", rule, 1)
    side.ask(f"block {max(1, updates // 4)}")
    answers = [side.ask(f"block {updates}") for _ in range(3)]
    side.close()
    return Row(
        name=f"  routing by {rule}",
        value=statistics.median(100 * each["routing"] / each["seconds"] for each in answers),
        unit="% of an update",
        most=MOST_ROUTING_PERCENT,
        target_of="value",
    )


def _own(name: str, rule: str, seeds: int) -> Side:
    command = [sys.executable, "-W", "ignore", "-m", "bench.own_lowdim", name, rule, str(seeds)]
    return Side(f"own-lowdim-{name}-{rule}", command)


def start_peer() -> Side | None:
    """d3rlpy, or None with the reason on the terminal: then there is no ratio."""
    python = interpreter(".peer-d3rlpy", PEER_PACKAGES)
    if python is None:
        return None
    try:
        return Side("peer-d3rlpy", [str(python), "-W", "ignore", str(Path(__file__).with_name("peer_d3rlpy.py"))])
    except SideError as error:
        print(f"no peer: {error}")
        return None
