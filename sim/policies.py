"""Hand-written policies: uniform random, and scripted pick and place with adjustable noise.

The scripted policy is a memoryless function of the privileged `SceneState`, so it recovers from its own noise. It
collects the first data, as in QT-Opt and MT-Opt. Shapes: `B` scenes, `O` objects.
"""

from __future__ import annotations

from typing import Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from sim import actions
from sim.bodies import is_upright
from sim.objects import FIXTURES, OBJECTS
from sim.rotations import rotate
from sim.state import FIXTURE_NAMES, OBJECT_NAMES, SceneState
from sim.tasks import REST_ANGULAR_SPEED_RAD_S, REST_SPEED_M_S, SKILLS, TASK_NAMES, TASKS, TaskSpec

HOVER_M = 0.07  # height above the grasp until the gripper is over it
FINGER_DEPTH_M = 0.038  # how far below an object's top the fingertips may reach
CARRY_BOTTOM_M = 0.075  # height of a carried object's lowest point: it clears every rim
RELEASE_BOTTOM_M = 0.022
LIFTED_BOTTOM_M = 0.085
NO_ERROR = np.zeros(4)


class Observation(TypedDict):
    """A batch of observations: `image` uint8 [B, H, W, 3], `gripper_closed` [B] 0/1, `gripper_height` [B] (m above the
    table), `state` float32 [B, S]: privileged, for scripted policies only."""

    image: NDArray[np.uint8]
    gripper_closed: NDArray[np.float32]
    gripper_height: NDArray[np.float32]
    state: NDArray[np.float32]


class Policy(Protocol):
    """A policy: `act` maps B observations and B task indices to actions float32 [B, 5] (sim/actions.py)."""

    def act(
        self, observation: Observation, task_index: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float32]: ...


class RandomPolicy:
    """Uniform random motion and a random command; terminates rarely, so that most of the horizon is used."""

    command_probabilities = (0.65, 0.15, 0.15, 0.05)

    def act(
        self, observation: Observation, task_index: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        size = len(task_index)
        motion = rng.uniform(-actions.BOUNDS, actions.BOUNDS, (size, 4))
        command = rng.choice(4, size, p=self.command_probabilities)
        return np.concatenate([motion, command[:, None]], axis=1).astype(np.float32)


class ScriptedPolicy:
    """Scripted pick and place. `noise` 0 solves nearly every episode, 1 about half of them.

    Noise: Gaussian on the motion, and an occasional random command.
    """

    noise_spread = 1.0  # collection samples each episode's noise from [0, noise]

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise

    def act(
        self, observation: Observation, task_index: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        out = np.zeros((len(task_index), actions.ACTION_SIZE), np.float32)
        for b, index in enumerate(task_index):
            state = SceneState(observation["state"][b])
            plan = _pick if SKILLS[index] == "lift" else _place
            out[b] = plan(state, TASKS[TASK_NAMES[index]].target)
            if self.noise > 0:
                out[b, :4] += self.noise * rng.normal(0.0, [0.022, 0.022, 0.014, 0.20])
                if rng.random() < 0.04 * self.noise:
                    out[b, 4] = rng.choice(4, p=[0.4, 0.35, 0.15, 0.1])
        out[:, :4] = np.clip(out[:, :4], -actions.BOUNDS, actions.BOUNDS)
        return out


class CrudePolicy:
    """Scripted pick and place with a position error per attempt, which often misses that a grasp failed.

    As in the data collection of QT-Opt (sec. 4.3) and MT-Opt: a random approach, a grasp, a random release. Each
    attempt samples an error of position and yaw, `noise` times Gaussian, kept until the fingers open again. It detects
    a failed grasp, and retries, with probability `failure_detection`; else it lifts nothing and terminates. One
    instance serves one batch, for one episode.
    """

    lift_error = np.array([0.036, 0.036, 0.014, 0.50])  # standard deviations at noise 1: m, m, m, rad
    place_error = np.array([0.043, 0.043, 0.015, 0.0])
    noise_spread = 0.0  # collection uses exactly the given noise
    failure_detection = 0.4  # probability

    def __init__(self, noise: float = 1.0) -> None:
        self.noise = noise
        # scene -> target, error, whether it will detect a failed grasp
        self._attempts: dict[int, tuple[int, NDArray[np.float64], bool]] = {}

    def act(
        self, observation: Observation, task_index: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        out = np.zeros((len(task_index), actions.ACTION_SIZE), np.float32)
        for b, index in enumerate(task_index):
            state, task = SceneState(observation["state"][b]), TASKS[TASK_NAMES[index]]
            if b not in self._attempts:
                scale = self.lift_error if task.skill == "lift" else self.place_error
                target = self._target(state, task, rng)
                self._attempts[b] = (
                    target,
                    self.noise * rng.normal(0.0, scale),
                    bool(rng.random() < self.failure_detection),
                )
            target, error, detects_failure = self._attempts[b]
            out[b] = (_pick if task.skill == "lift" else _place)(state, target, error, detects_failure)
            if out[b, 4] == actions.OPEN:
                del self._attempts[b]
            out[b, :4] += self.noise * rng.normal(0.0, [0.008, 0.008, 0.005, 0.08])
        out[:, :4] = np.clip(out[:, :4], -actions.BOUNDS, actions.BOUNDS)
        return out

    def _target(self, state: SceneState, task: TaskSpec, rng: np.random.Generator) -> int:
        """Index of the object or fixture of an attempt."""
        return task.target


class AimlessPolicy(CrudePolicy):
    """The crude policy without a task: each attempt targets a random object or fixture of those present.

    As MT-Opt's scripted picks and places: most of its successful episodes succeed at another task than their own."""

    def _target(self, state: SceneState, task: TaskSpec, rng: np.random.Generator) -> int:
        present = state["object_present"] if task.skill == "lift" else state["fixture_present"]
        return int(rng.choice(np.flatnonzero(present > 0)))


COLLECTORS: dict[str, type[CrudePolicy | ScriptedPolicy]] = {
    "crude": CrudePolicy,
    "aimless": AimlessPolicy,
    "scripted": ScriptedPolicy,
}


def _pick(
    state: SceneState, target: int, error: NDArray[np.float64] = NO_ERROR, detects_failure: bool = True
) -> NDArray[np.float32]:
    """One step of a pick. `error` [4] (m, rad) is added to the target's pose. With `detects_failure`, a failed grasp is
    released and retried."""
    tip = state["gripper_position"]
    if int(state["held"]) == target:
        if state["object_bottom"][target] >= LIFTED_BOTTOM_M:
            return _action(np.zeros(3), 0.0, actions.TERMINATE)
        return _action(np.array([0.0, 0.0, 0.055]), 0.0, actions.NONE)
    if state["gripper_closed"] > 0:
        if detects_failure:
            return _action(np.array([0.0, 0.0, 0.05]), 0.0, actions.OPEN)
        command = actions.TERMINATE if tip[2] > 0.12 else actions.NONE
        return _action(np.array([0.0, 0.0, 0.055]), 0.0, command)
    position, yaw = _grasp(state, target)
    position += error[:3]
    yaw += error[3]
    goal = state["gripper_goal"]  # position to which earlier actions already move the fingertips
    move = position - goal
    distance_xy = float(np.hypot(move[0], move[1]))
    if distance_xy > 0.03:
        move[2] = position[2] + HOVER_M - goal[2]
    if distance_xy < 0.03 and abs(yaw) > 0.5:
        move[2] = max(move[2], position[2] + 0.03 - goal[2])
    close = distance_xy <= 0.03 and abs(move[2]) < 0.05 and abs(yaw) < 0.45
    return _action(move, yaw, actions.CLOSE if close else actions.NONE)


def _grasp(state: SceneState, target: int) -> tuple[NDArray[np.float32], float]:
    """Grasp position [3] (m) of the fingertips and remaining yaw (rad), modulo a quarter or half turn by symmetry."""
    centre = state["object_position"][target].astype(np.float64)
    spec = OBJECTS[OBJECT_NAMES[target]]
    axis = rotate(state["object_orientation"][target], np.array(spec.long_axis))
    bottom = float(state["object_bottom"][target])
    top = 2 * centre[2] - bottom
    position = np.array([centre[0], centre[1], max(centre[2] - 0.004, top - FINGER_DEPTH_M, 0.012)])
    fingers = rotate(state["gripper_orientation"], np.array([0.0, 1.0, 0.0]))  # the fingers close along their y
    if is_upright(axis):
        face = rotate(state["object_orientation"][target], np.array([1.0, 0.0, 0.0]))
        wanted, fold = np.arctan2(face[1], face[0]), np.pi / 2
    else:
        wanted, fold = np.arctan2(axis[1], axis[0]) + np.pi / 2, np.pi
    yaw = wanted - np.arctan2(fingers[1], fingers[0])
    return position, float((yaw + fold / 2) % fold - fold / 2)


def _place(
    state: SceneState, target: int, error: NDArray[np.float64] = NO_ERROR, detects_failure: bool = True
) -> NDArray[np.float32]:
    """One step of a place. `error` [4] (m, rad) is added to the fixture's pose."""
    tip = state["gripper_position"]
    if state["gripper_closed"] == 0:
        if tip[2] > 0.17:
            rolling = detects_failure and bool((_motion(state) > 0.15).any())
            return _action(np.zeros(3), 0.0, actions.NONE if rolling else actions.TERMINATE)
        return _action(np.array([0.0, 0.0, 0.06]), 0.0, actions.NONE)
    held = int(state["held"])
    if held < 0:  # dropped on the way
        return _action(np.array([0.0, 0.0, 0.05]), 0.0, actions.OPEN)
    pending = state["gripper_goal"].astype(np.float64) - tip  # the motion that earlier actions have yet to complete
    move = _nearest_section(state, target, held) + error[:3] - state["object_position"][held] - pending
    distance_xy = float(np.hypot(move[0], move[1]))
    bottom = float(state["object_bottom"][held] + pending[2])
    move[2] = (CARRY_BOTTOM_M if distance_xy > 0.05 else RELEASE_BOTTOM_M) - bottom
    release = distance_xy < 0.04 and bottom < RELEASE_BOTTOM_M + 0.05
    return _action(move, 0.0, actions.OPEN if release else actions.NONE)


def _nearest_section(state: SceneState, target: int, held: int) -> NDArray[np.float64]:
    """World position [3] (m) of the fixture's section nearest to the held object."""
    offsets = np.array(FIXTURES[FIXTURE_NAMES[target]].sections)
    positions = state["fixture_position"][target] + rotate(state["fixture_orientation"][target], offsets)
    distances = np.linalg.norm((positions - state["object_position"][held])[:, :2], axis=1)
    return positions[distances.argmin()]


def _motion(state: SceneState) -> NDArray[np.floating]:
    """[O]: speed of each object that is off the table, relative to the thresholds of rest."""
    speed = np.linalg.norm(state["object_velocity"], axis=-1) / REST_SPEED_M_S
    angular_speed = np.linalg.norm(state["object_angular_velocity"], axis=-1) / REST_ANGULAR_SPEED_RAD_S
    return (state["object_present"] > 0) * (state["object_on_table"] == 0) * np.maximum(speed, angular_speed)


def _action(move: NDArray[np.floating], yaw: float, command: int) -> NDArray[np.float32]:
    return np.array([*move, yaw, command], np.float32)
