"""Adding an object takes one record in one table: state, tasks, detectors, appearances, scenes and experts follow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

CODE = """
import numpy as np
from sim import objects
from sim.looks import Looks, Paint
from sim.meshes import box

objects.OBJECTS["brick"] = objects.ObjectSpec(
    name="brick", mass_kg=0.15, friction=0.8, parts=(box((0.04, 0.08, 0.03)),),
    colliders=(objects.Collider("box", (0.04, 0.08, 0.03)),),
    looks=Looks(train=((Paint((0.7, 0.3, 0.2), "checks"),),), test=((Paint((0.3, 0.3, 0.7)),),)),
    long_axis=(0.0, 1.0, 0.0),
)

from sim.env import PickPlaceEnv, as_action, as_batch
from sim.policies import ScriptedPolicy
from sim.state import O
from sim.tasks import TASK_NAMES, TASKS

assert TASK_NAMES.index("lift-brick") == 7 and len(TASK_NAMES) == 11, TASK_NAMES
env = PickPlaceEnv("lift-brick", image_size=64, renderer="tiny")
successes, colours = 0, 0
for seed in range(3):
    observation, info = env.reset(seed=seed)
    assert info["verdicts"].shape == (11,)
    segments = env.world.geometry().segmentation
    from sim.drawing import SEGMENTS
    colours += int((segments == SEGMENTS.index("brick")).any())
    done, rng = False, np.random.default_rng(seed)
    while not done:
        action = ScriptedPolicy().act(as_batch(observation, info), np.array([TASKS["lift-brick"].index]), rng)[0]
        observation, reward, terminated, truncated, info = env.step(as_action(action))
        done = terminated or truncated
    successes += reward
print(int(successes), colours, O)
"""


def test_an_object_added_to_the_table_is_drawn_lifted_and_judged():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-3:] == ["3", "3", "8"]
