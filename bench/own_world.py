"""Switchyard's side of bench/world.py: the loop of bench/peer_kuka.py over our environment, and time per component.

Runs in its own process, like the peer: python -m bench.own_world SIZE_PX CPU.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.sched_setaffinity(0, {int(sys.argv[2])})  # before the renderer starts its threads
answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # keeps the output of libraries apart from the answers

import numpy as np  # noqa: E402

import sim.env  # noqa: E402
from sim import actions  # noqa: E402
from sim.env import PickPlaceEnv  # noqa: E402
from sim.tasks import TASK_NAMES  # noqa: E402

NO_TERMINATE = {  # action mask
    "translation": None,
    "yaw": None,
    "command": (np.arange(len(actions.COMMANDS)) != actions.TERMINATE).astype(np.int8),
}


class RandomPlay:
    """Random actions in one environment; the tasks alternate with every reset."""

    def __init__(self, size_px: int) -> None:
        self.env = PickPlaceEnv(image_size=size_px)
        self.env.action_space.seed(0)
        self.num_resets = 0
        self.reset()

    def reset(self) -> None:
        task = TASK_NAMES[self.num_resets % len(TASK_NAMES)]
        self.env.reset(seed=self.num_resets, options={"task": task})
        self.num_resets += 1
        self.done = False

    def block(self, num_steps: int, mask: dict[str, Any] | None = None) -> dict[str, float]:
        resets_before = self.num_resets
        begin = time.perf_counter()
        for _ in range(num_steps):
            if self.done:
                self.reset()
            _, _, terminated, truncated, _ = self.env.step(self.env.action_space.sample(mask))
            self.done = terminated or truncated
        return {"seconds": time.perf_counter() - begin, "resets": self.num_resets - resets_before}

    def long_block(self, num_steps: int) -> dict[str, float]:
        """A block without the terminate command: episodes last to their horizon."""
        return self.block(num_steps, NO_TERMINATE)

    def profile(self, num_steps: int) -> dict[str, float]:
        """Milliseconds per step of each component of a step, and milliseconds per reset."""
        spent_s = {"physics": 0.0, "rendering": 0.0, "detectors": 0.0}
        self.env = PickPlaceEnv(image_size=self.env.world.camera.size, horizon=num_steps)  # a single episode
        self.env.action_space.seed(0)
        world, module = self.env.world, vars(sim.env)

        def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*arguments: Any) -> Any:
                begin = time.perf_counter()
                result = call(*arguments)
                spent_s[name] += time.perf_counter() - begin
                return result

            return wrapper

        self.reset()
        originals = world._simulate, world.render, module["detect_successes"]
        world._simulate = timed("physics", originals[0])  # type: ignore[method-assign]
        world.render = timed("rendering", originals[1])  # type: ignore[method-assign]
        module["detect_successes"] = timed("detectors", originals[2])
        begin = time.perf_counter()
        for _ in range(num_steps):
            self.env.step(self.env.action_space.sample(NO_TERMINATE))
        spent_s["whole step"] = time.perf_counter() - begin
        world._simulate, world.render, module["detect_successes"] = originals  # type: ignore[method-assign]
        begin = time.perf_counter()
        for _ in TASK_NAMES:
            self.reset()
        reset_ms = 1000 * (time.perf_counter() - begin) / len(TASK_NAMES)
        return {name: 1000 * seconds / num_steps for name, seconds in spent_s.items()} | {"reset": reset_ms}


if __name__ == "__main__":
    play = RandomPlay(int(sys.argv[1]))
    print(json.dumps({"renderer": play.env.world.camera.renderer}), file=answers, flush=True)
    commands = {"block": play.block, "long_block": play.long_block, "profile": play.profile}
    for line in sys.stdin:
        command, count = line.split()
        print(json.dumps(commands[command](int(count))), file=answers, flush=True)
