"""The peer's side of bench/world.py: PyBullet's KukaDiverseObjectEnv, in a virtual environment of its own.

Imports nothing from Switchyard. Usage: peer_kuka.py SIZE_PX CPU. Protocol: bench/world.py.
"""

import json
import os
import sys
import time

os.sched_setaffinity(0, {int(sys.argv[2])})
answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # keeps the output of libraries apart from the answers

from pybullet_envs.bullet.kuka_diverse_object_gym_env import KukaDiverseObjectEnv  # type: ignore[import-untyped]  # noqa: E402

size_px = int(sys.argv[1])
env = KukaDiverseObjectEnv(width=size_px, height=size_px, renders=False, isDiscrete=False)
env.action_space.seed(0)
assert env.reset().shape == (size_px, size_px, 3)
done = False
print(json.dumps({"renderer": "tiny"}), file=answers, flush=True)

for line in sys.stdin:
    resets = 0
    begin = time.perf_counter()
    for _ in range(int(line.split()[1])):
        if done:
            env.reset()
            resets += 1
        _, _, done, _ = env.step(env.action_space.sample())
    print(json.dumps({"seconds": time.perf_counter() - begin, "resets": resets}), file=answers, flush=True)
