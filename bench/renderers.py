"""Geometric agreement of the two renderers: IoU of their segmentation masks over scenes of every task."""

from __future__ import annotations

import numpy as np

from bench.report import Row
from sim.camera import resolve_renderer
from sim.drawing import overlaps
from sim.scenes import draw_scene
from sim.tasks import TASKS
from sim.world import World

SIZES_PX = (64, 472)
LARGE_PX = 60
LEAST_IOU = 0.97


def run(quick: bool) -> list[Row]:
    if resolve_renderer("auto") != "egl":
        return [Row(name="overlap of the renderers' masks", value=None, unit="", note="EGL does not start here")]
    return [_overlap(size_px, 1 if quick else 10) for size_px in SIZES_PX]


def _overlap(size_px: int, rounds: int) -> Row:
    worlds = [World(size_px, renderer) for renderer in ("egl", "tiny")]
    ious: list[float] = []
    for seed in range(rounds):
        for task in TASKS.values():
            scene = draw_scene(task, np.random.default_rng([seed, task.index]))
            for world in worlds:
                world.reset(scene)
            masks = [world.geometry().segmentation for world in worlds]
            ious += overlaps(masks[0], masks[1], LARGE_PX)
    for world in worlds:
        world.close()
    return Row(
        name=f"overlap of the renderers' masks, {size_px} px",
        value=min(ious),
        unit="least IoU",
        target=LEAST_IOU,
        target_of="value",
        note=f"{len(ious)} masks larger than {LARGE_PX} px, mean {np.mean(ious):.5f}",
    )
