"""Environment steps per second on one core: our pick-place world against PyBullet's own KukaDiverseObjectEnv.

Each side is a process on the same core that answers a line "block STEPS" with {seconds, resets}. Blocks alternate, and
the ratio is the median over pairs. Both sides sample their own action space, render every step and include resets. A
step of ours is 40 physics steps, with everything randomised, shadows, the full state and ten success detectors. A step
of the peer is 80 physics steps, plus 1000 in the step that attempts the grasp.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

from bench.peers import Side, SideError, interpreter
from bench.report import Row
from sim.image_sizes import frame_size

SIZES_PX = {64: 8.0, 472: 8.0}  # -> least ratio
MOST_OTHER_PERCENT = 15.0  # of a step: neither physics nor rendering
PEER = "KukaDiverseObjectEnv"
PEER_VENV = ".peer-venv"
# pybullet_envs asks for `gym.envs.registration.registry.env_specs` (gone in gym 0.26) and for pkg_resources.
PEER_PACKAGES = ("pybullet==3.2.7", "gym==0.25.2", "numpy<2", "setuptools<81")


def run(quick: bool) -> list[Row]:
    core, peer = max(os.sched_getaffinity(0)), interpreter(PEER_VENV, PEER_PACKAGES)
    rows: list[Row] = []
    for size_px, target in SIZES_PX.items():
        rows += _compare(size_px, target, core, peer, quick)
    return rows


def _compare(size_px: int, target: float, core: int, peer: Path | None, quick: bool) -> list[Row]:
    num_pairs, own_steps, peer_steps = (1, 10, 8) if quick else (9, 120, 24)
    own = Side(f"own-{size_px}", [sys.executable, "-m", "bench.own_world", str(size_px), str(core)])
    own.ask(f"block {own_steps // 4}")  # caches warm, files read
    notes = [f"{own.metadata['renderer']} renderer, one core"]
    other = _start_peer(size_px, core, peer, notes)
    own_answers, long_answers, peer_answers = [], [], []
    for _ in range(num_pairs):
        long_answers.append(own.ask(f"long_block {own_steps}"))
        own_answers.append(own.ask(f"block {own_steps}"))
        if other is not None:
            peer_answers.append(other.ask(f"block {peer_steps}"))
    parts_ms = own.ask(f"profile {own_steps}")
    own.close()
    if other is not None:
        other.close()
        notes.append(f"peer {PEER}, {_resets(peer_answers, peer_steps)} resets per 100 steps, {num_pairs} pairs")
    floor_ms = parts_ms["physics"] + parts_ms["rendering"]
    floor = f"floor {floor_ms:.3g} ms a step (physics and rendering alone)"
    peer_rates = [peer_steps / answer["seconds"] for answer in peer_answers]
    rows: list[Row] = []
    for title, answers in (("", own_answers), (", never terminating", long_answers)):
        rates = [own_steps / answer["seconds"] for answer in answers]
        pairs = [rate / peer_rate for rate, peer_rate in zip(rates, peer_rates, strict=bool(peer_rates))]
        spread = [f"ratios {min(pairs):.1f} to {max(pairs):.1f}"] if pairs else []
        row = Row(
            name=f"world {size_px} px{title}",
            value=statistics.median(rates),
            unit="steps/s",
            target=None if title else target,
            peer=statistics.median(peer_rates) if peer_rates else None,
            ratio=statistics.median(pairs) if pairs else None,
            note="; ".join(
                [f"{_resets(answers, own_steps)} resets per 100 steps", *spread, *(() if title else (floor, *notes))]
            ),
        )
        rows.append(row)
    rows += [
        Row(name=f"  of it {part}", value=value, unit="ms/reset" if part == "reset" else "ms/step")
        for part, value in parts_ms.items()
    ]
    overhead = Row(
        name=f"  neither physics nor rendering, {size_px} px",
        value=100 * (1 - floor_ms / parts_ms["whole step"]),
        unit="% of a step",
        most=MOST_OTHER_PERCENT if size_px >= 472 else None,
        target_of="value",
    )
    rows.append(overhead)
    return [*rows, _stored_frame(size_px, core, own_steps)]


def _start_peer(size_px: int, core: int, peer: Path | None, notes: list[str]) -> Side | None:
    """Starts and warms up the peer; None, with the reason added to `notes`, if it does not run."""
    if peer is None:
        notes.append(f"no peer: {PEER} could not be installed")
        return None
    script = str(Path(__file__).with_name("peer_kuka.py"))
    try:
        side = Side(f"peer-{size_px}", [str(peer), "-W", "ignore", script, str(size_px), str(core)])
        side.ask("block 8")
    except SideError as error:
        notes.append(f"no peer: {error}")
        print(notes[-1])
        return None
    return side


def _stored_frame(size_px: int, core: int, num_steps: int) -> Row:
    """Steps per second at the size of the frames that collection renders and stores, before random crops."""
    stored_px = frame_size(size_px)
    side = Side(f"own-{stored_px}", [sys.executable, "-m", "bench.own_world", str(stored_px), str(core)])
    side.ask(f"block {num_steps // 4}")
    seconds = side.ask(f"block {num_steps}")["seconds"]
    side.close()
    note = f"{side.metadata['renderer']} renderer; the size stored for {size_px} px"
    return Row(name=f"world {stored_px} px", value=num_steps / seconds, unit="steps/s", note=note)


def _resets(answers: list[dict[str, float]], steps_per_block: int) -> str:
    return f"{100 * sum(answer['resets'] for answer in answers) / (len(answers) * steps_per_block):.0f}"
