"""Switchyard's side of bench/world.py: the same loop as bench/peer_kuka.py over our environment, and a split.

Usage: python -m bench.own_world SIZE_PX CPU. A process of its own, so that each size may have its EGL instance.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.sched_setaffinity(0, {int(sys.argv[2])})  # before the renderer starts its threads
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the libraries print must not mix with the answers

import numpy as np  # noqa: E402

from sim import actions  # noqa: E402
from sim.env import PickPlaceEnv  # noqa: E402
from sim.tasks import TASK_NAMES, verdicts  # noqa: E402


class RandomPlay:
    """Random actions in one environment; every reset takes the next of the ten tasks."""

    def __init__(self, size_px: int) -> None:
        self.env = PickPlaceEnv(image_size=size_px)
        self.env.action_space.seed(0)
        self.num_resets = 0
        self.reset()

    def reset(self) -> None:
        task = TASK_NAMES[self.num_resets % len(TASK_NAMES)]
        self.env.reset(seed=self.num_resets, options={"task": task})
        self.num_resets += 1
        self.over = False

    def block(self, num_steps: int, mask: dict[str, Any] | None = None) -> dict[str, float]:
        resets_before = self.num_resets
        begin = time.perf_counter()
        for _ in range(num_steps):
            if self.over:
                self.reset()
            _, _, terminated, truncated, _ = self.env.step(self.env.action_space.sample(mask))
            self.over = terminated or truncated
        return {"seconds": time.perf_counter() - begin, "resets": self.num_resets - resets_before}

    def long_block(self, num_steps: int) -> dict[str, float]:
        """Without the terminate command, so that episodes last to their horizon."""
        commands = np.arange(len(actions.COMMANDS)) != actions.TERMINATE
        return self.block(num_steps, {"translation": None, "yaw": None, "command": commands.astype(np.int8)})

    def split(self, num_steps: int) -> dict[str, float]:
        """Milliseconds per step of the parts of a step; the reset, of which there is one in several steps, whole."""
        spent_s = {"physics": 0.0, "render": 0.0, "snapshot and detectors": 0.0}
        self.reset()
        for _ in range(num_steps):
            action: dict[str, Any] = self.env.action_space.sample()
            vector = np.array([*action["translation"], action["yaw"], action["command"]], np.float32)
            marks = [time.perf_counter()]
            self.env.world.step(vector)
            marks.append(time.perf_counter())
            self.env.world.render()
            marks.append(time.perf_counter())
            verdicts(self.env.world.snapshot())
            marks.append(time.perf_counter())
            for name, seconds in zip(spent_s, np.diff(marks), strict=True):
                spent_s[name] += float(seconds)
        begin = time.perf_counter()
        for _ in TASK_NAMES:
            self.reset()
        reset_ms = 1000 * (time.perf_counter() - begin) / len(TASK_NAMES)
        return {name: 1000 * seconds / num_steps for name, seconds in spent_s.items()} | {"reset": reset_ms}


if __name__ == "__main__":
    play = RandomPlay(int(sys.argv[1]))
    print(json.dumps({"renderer": play.env.world.camera.renderer}), file=answers, flush=True)
    commands = {"block": play.block, "long_block": play.long_block, "split": play.split}
    for line in sys.stdin:
        command, count = line.split()
        print(json.dumps(commands[command](int(count))), file=answers, flush=True)
