"""Policies that need no learning: uniform random, and a scripted pick and place with adjustable noise.

The scripted policy reads the privileged `SceneState` and keeps no memory: each action follows from the state alone, so
it recovers from its own noise. It bootstraps the data as in QT-Opt and MT-Opt. All shapes are batched: `B` scenes.
"""

from __future__ import annotations

from typing import Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from sim import actions
from sim.bodies import stands
from sim.objects import FIXTURES, OBJECTS
from sim.rotations import rotate
from sim.state import FIXTURE_NAMES, OBJECT_NAMES, SceneState
from sim.tasks import REST_SPEED_M_S, REST_SPIN_RAD_S, SKILLS, TASK_NAMES, TASKS, TaskSpec

HOVER_M = 0.07  # above the grasp while the gripper is still beside it
FINGER_DEPTH_M = 0.038  # how far below an object's top the finger tips may reach
CARRY_BOTTOM_M = 0.075  # a carried object clears every rim
RELEASE_BOTTOM_M = 0.022
LIFTED_BOTTOM_M = 0.085
EXACT = np.zeros(4)


class Observation(TypedDict):
    """What a policy sees. `image` uint8 [B, H, W, 3], `gripper_closed` [B] 0/1, `gripper_height` [B] m above the table,
    `state` float32 [B, S]: privileged, for scripted policies only."""

    image: NDArray[np.uint8]
    gripper_closed: NDArray[np.float32]
    gripper_height: NDArray[np.float32]
    state: NDArray[np.float32]


class Policy(Protocol):
    """`act` maps B observations and B task indices to actions float32 [B, 5] (sim/actions.py)."""

    def act(
        self, observation: Observation, task_index: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float32]: ...


class RandomPolicy:
    """Uniform translation and yaw, a uniform command; terminates rarely enough to use most of the horizon."""

    command_probabilities = (0.65, 0.15, 0.15, 0.05)

    def act(
        self, observation: Observation, task_index: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        size = len(task_index)
        motion = rng.uniform(-actions.BOUNDS, actions.BOUNDS, (size, 4))
        command = rng.choice(4, size, p=self.command_probabilities)
        return np.concatenate([motion, command[:, None]], axis=1).astype(np.float32)


class ScriptedPolicy:
    """Pick or place by geometry. `noise` 0 is the expert; 1 succeeds about half of the time.

    Noise is Gaussian on the motion, and now and then a random command.
    """

    noise_spread = 1.0  # collection draws each episode's noise from all below the one asked for

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
    """A scripted pick and place that misjudges where its target is and often does not look whether it holds it.

    The bootstrap of QT-Opt (sec. 4.3) and MT-Opt: a random approach, a grasp, a random release. Each attempt draws an
    error of place and angle, `noise` times Gaussian, kept until the fingers open again; after a failed grasp it tries
    again in two of five cases, else it lifts nothing and terminates. One instance serves one batch, for one episode.
    """

    lift_error = np.array([0.036, 0.036, 0.014, 0.50])  # standard deviations at noise 1: m, m, m, rad
    place_error = np.array([0.043, 0.043, 0.015, 0.0])
    noise_spread = 0.0  # collection takes the noise asked for
    attention = 0.4  # probability to notice a failed grasp

    def __init__(self, noise: float = 1.0) -> None:
        self.noise = noise
        # of each scene: what it aims at, the error, whether it will notice
        self._attempts: dict[int, tuple[int, NDArray[np.float64], bool]] = {}

    def act(
        self, observation: Observation, task_index: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        out = np.zeros((len(task_index), actions.ACTION_SIZE), np.float32)
        for b, index in enumerate(task_index):
            state, task = SceneState(observation["state"][b]), TASKS[TASK_NAMES[index]]
            if b not in self._attempts:
                scale = self.lift_error if task.skill == "lift" else self.place_error
                aim = self._aim(state, task, rng)
                self._attempts[b] = (aim, self.noise * rng.normal(0.0, scale), bool(rng.random() < self.attention))
            target, error, notices = self._attempts[b]
            out[b] = (_pick if task.skill == "lift" else _place)(state, target, error, notices)
            if out[b, 4] == actions.OPEN:
                del self._attempts[b]
            out[b, :4] += self.noise * rng.normal(0.0, [0.008, 0.008, 0.005, 0.08])
        out[:, :4] = np.clip(out[:, :4], -actions.BOUNDS, actions.BOUNDS)
        return out

    def _aim(self, state: SceneState, task: TaskSpec, rng: np.random.Generator) -> int:
        """The object or fixture of an attempt."""
        return task.target


class AimlessPolicy(CrudePolicy):
    """The crude policy for anything in reach: each attempt is at an object or fixture drawn from those present.

    As MT-Opt's scripted picks and places, which know no task: most of its episodes succeed at another task than
    their own, if at any."""

    def _aim(self, state: SceneState, task: TaskSpec, rng: np.random.Generator) -> int:
        present = state["object_present"] if task.skill == "lift" else state["fixture_present"]
        return int(rng.choice(np.flatnonzero(present > 0)))


COLLECTORS: dict[str, type[CrudePolicy | ScriptedPolicy]] = {
    "crude": CrudePolicy,
    "aimless": AimlessPolicy,
    "scripted": ScriptedPolicy,
}


def _pick(
    state: SceneState, target: int, error: NDArray[np.float64] = EXACT, notices: bool = True
) -> NDArray[np.float32]:
    """One step of a pick whose target seems to lie `error` [4] (m, rad) away; who `notices` drops a failed grasp."""
    tip = state["gripper_position"]
    if int(state["held"]) == target:
        if state["object_bottom"][target] >= LIFTED_BOTTOM_M:
            return _action(np.zeros(3), 0.0, actions.TERMINATE)
        return _action(np.array([0.0, 0.0, 0.055]), 0.0, actions.NONE)
    if state["gripper_closed"] > 0:
        if notices:
            return _action(np.array([0.0, 0.0, 0.05]), 0.0, actions.OPEN)
        command = actions.TERMINATE if tip[2] > 0.12 else actions.NONE
        return _action(np.array([0.0, 0.0, 0.055]), 0.0, command)
    spot, turn = _grasp(state, target)
    spot += error[:3]
    turn += error[3]
    goal = state["gripper_goal"]  # where the tips are already on their way to
    move = spot - goal
    beside = float(np.hypot(move[0], move[1]))
    if beside > 0.03:
        move[2] = spot[2] + HOVER_M - goal[2]
    if beside < 0.03 and abs(turn) > 0.5:
        move[2] = max(move[2], spot[2] + 0.03 - goal[2])
    close = beside <= 0.03 and abs(move[2]) < 0.05 and abs(turn) < 0.45
    return _action(move, turn, actions.CLOSE if close else actions.NONE)


def _grasp(state: SceneState, target: int) -> tuple[NDArray[np.float32], float]:
    """Where the tips go (m) and the yaw still to turn (rad), folded into a quarter or a half turn by symmetry."""
    centre = state["object_position"][target].astype(np.float64)
    spec = OBJECTS[OBJECT_NAMES[target]]
    along = rotate(state["object_orientation"][target], np.array(spec.long_axis))
    bottom = float(state["object_bottom"][target])
    top = 2 * centre[2] - bottom
    spot = np.array([centre[0], centre[1], max(centre[2] - 0.004, top - FINGER_DEPTH_M, 0.012)])
    fingers = rotate(state["gripper_orientation"], np.array([0.0, 1.0, 0.0]))  # the fingers close along their y
    if stands(along):
        face = rotate(state["object_orientation"][target], np.array([1.0, 0.0, 0.0]))
        wanted, fold = np.arctan2(face[1], face[0]), np.pi / 2
    else:
        wanted, fold = np.arctan2(along[1], along[0]) + np.pi / 2, np.pi
    turn = wanted - np.arctan2(fingers[1], fingers[0])
    return spot, float((turn + fold / 2) % fold - fold / 2)


def _place(
    state: SceneState, target: int, error: NDArray[np.float64] = EXACT, notices: bool = True
) -> NDArray[np.float32]:
    """One step of a place whose fixture seems to lie `error` [4] away."""
    tip = state["gripper_position"]
    if state["gripper_closed"] == 0:
        if tip[2] > 0.17:
            rolling = notices and bool((_unrest(state) > 0.15).any())
            return _action(np.zeros(3), 0.0, actions.NONE if rolling else actions.TERMINATE)
        return _action(np.array([0.0, 0.0, 0.06]), 0.0, actions.NONE)
    held = int(state["held"])
    if held < 0:  # dropped on the way
        return _action(np.array([0.0, 0.0, 0.05]), 0.0, actions.OPEN)
    ahead = state["gripper_goal"].astype(np.float64) - tip  # of where it is: the arm is on its way there
    move = _nearest_section(state, target, held) + error[:3] - state["object_position"][held] - ahead
    beside = float(np.hypot(move[0], move[1]))
    bottom = float(state["object_bottom"][held] + ahead[2])
    move[2] = (CARRY_BOTTOM_M if beside > 0.05 else RELEASE_BOTTOM_M) - bottom
    release = beside < 0.04 and bottom < RELEASE_BOTTOM_M + 0.05
    return _action(move, 0.0, actions.OPEN if release else actions.NONE)


def _nearest_section(state: SceneState, target: int, held: int) -> NDArray[np.float64]:
    """Of the fixture, the one nearest to the held object: where that is to go (m)."""
    offsets = np.array(FIXTURES[FIXTURE_NAMES[target]].sections)
    spots = state["fixture_position"][target] + rotate(state["fixture_orientation"][target], offsets)
    away = np.linalg.norm((spots - state["object_position"][held])[:, :2], axis=1)
    return spots[away.argmin()]


def _unrest(state: SceneState) -> NDArray[np.floating]:
    """[O]: how fast each object that is not on the table moves, in units of what counts as rest."""
    speed = np.linalg.norm(state["object_velocity"], axis=-1) / REST_SPEED_M_S
    spin = np.linalg.norm(state["object_spin"], axis=-1) / REST_SPIN_RAD_S
    return (state["object_present"] > 0) * (state["object_on_table"] == 0) * np.maximum(speed, spin)


def _action(move: NDArray[np.floating], turn: float, command: int) -> NDArray[np.float32]:
    return np.array([*move, turn, command], np.float32)
