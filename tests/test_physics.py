"""Contacts of arm, objects and table: no wind-up, no bouncing, no penetration."""

from __future__ import annotations

import numpy as np
import pybullet
import pytest

from sim import actions
from sim.state import OBJECT_NAMES


def test_a_blocked_arm_does_not_wind_up(still_env):
    """Pushed down on the table for ten steps, it comes up with the first step upwards."""
    still_env.reset(seed=1, options={"task": "place-bowl"})
    for _ in range(10):
        still_env.world.step(np.array([0, 0, -0.06, 0, 0], np.float32))
    low = still_env.world.snapshot()["gripper_position"][2]
    still_env.world.step(np.array([0, 0, 0.06, 0, 0], np.float32))
    still_env.world.step(np.array([0, 0, 0.06, 0, 0], np.float32))
    assert still_env.world.snapshot()["gripper_position"][2] > low + 0.03


@pytest.mark.parametrize("name", OBJECT_NAMES)
def test_an_object_that_falls_by_10_cm_does_not_bounce(still_env, name):
    """Even in plain steps of 1/240 s. A solver that undoes a penetration in one step throws a can up by 8 cm."""
    still_env.reset(seed=0, options={"task": f"lift-{name}"})
    world = still_env.world
    body, client = world._objects[OBJECT_NAMES.index(name)], world._client
    at_rest, orientation = pybullet.getBasePositionAndOrientation(body, physicsClientId=client)
    for more_m in (0.0, 0.001, 0.002, 0.004):  # the penetration depends on when within a step it lands
        heights = []
        pybullet.resetBasePositionAndOrientation(
            body, (0.55, 0.5, at_rest[2] + 0.1 + more_m), orientation, physicsClientId=client
        )
        pybullet.resetBaseVelocity(body, (0, 0, 0), (0, 0, 0), physicsClientId=client)
        for _ in range(120):
            pybullet.stepSimulation(physicsClientId=client)
            position = pybullet.getBasePositionAndOrientation(body, physicsClientId=client)[0]
            heights.append(position[2] - at_rest[2])
        landed = int(np.argmax(np.array(heights) < 0.004))
        assert 0 < landed < 60
        assert max(heights[landed:]) < 0.035


@pytest.mark.parametrize("name", OBJECT_NAMES)
def test_a_falling_object_neither_bounces_nor_penetrates_the_table(still_env, name):
    """In steps of 1/240 s alone, a carrot that tumbles down goes 17 mm into the table and a bottle jumps by 6 cm."""
    still_env.reset(seed=0, options={"task": f"lift-{name}"})
    world, rng = still_env.world, np.random.default_rng(0)
    item = next(item for item in world.scene.objects if OBJECT_NAMES[item.index] == name)
    body, client = world._objects[item.index], world._client
    for _ in range(6):
        orientation = rng.normal(size=4)
        orientation /= np.linalg.norm(orientation)
        height = rng.uniform(0.2, 0.34) - world._lowest(item, orientation)
        pybullet.resetBasePositionAndOrientation(body, (0.2, 0.5, height), orientation, physicsClientId=client)
        pybullet.resetBaseVelocity(body, (0, 0, 0), (0, 0, 0), physicsClientId=client)
        lowest = []
        for _ in range(200):
            world._simulate(1)
            position, orientation = pybullet.getBasePositionAndOrientation(body, physicsClientId=client)
            lowest.append(position[2] + world._lowest(item, orientation))
        landed = int(np.argmax(np.array(lowest) < 0.003))
        assert 0 < landed < 100
        assert min(lowest) > -0.003
        assert max(lowest[landed:]) < 0.03


@pytest.mark.parametrize("name", ["food", "can"])
def test_the_arm_does_not_press_objects_into_the_table(still_env, name):
    """With 70 N m instead of 45, a box sinks deeper than this."""
    still_env.reset(seed=0, options={"task": f"lift-{name}"})
    world, index, pressed = still_env.world, OBJECT_NAMES.index(name), 0
    world.step(np.array([0, 0, 0.06, 0, actions.CLOSE], np.float32))
    for number in range(14):
        state = world.snapshot()
        offset = state["object_position"][index, :2] - state["gripper_position"][:2]
        world.step(np.array([*np.clip(offset, -0.06, 0.06), -0.06 * (number > 7), 0, 0], np.float32))
        state = world.snapshot()
        pressed += bool(state["object_on_finger"][index].any() and state["object_on_table"][index])
        assert state["object_bottom"][index] > -0.004
    assert pressed >= 3
