"""A toy of the seven lifts for bench/twin.py: point objects, no physics, no images, batched over episodes.

It keeps a `SceneState` per episode, so the project's own landmarks and success detectors apply to it. Nothing turns.

Shapes: `B` episodes side by side, `O` objects (the targets of the `N` = O lifts), `E` episodes, `F` stored frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.replay import Replay
from sim import actions
from sim.landmarks import OFFSET_UNIT_M, PRESENCE, landmarks
from sim.state import O, SceneState
from sim.tasks import TASKS, detect_successes

LIFTS = tuple(spec.index for spec in TASKS.values() if spec.skill == "lift")
HORIZON = max(spec.horizon for spec in TASKS.values())
NUM_PRESENT = 3
AREA_M = ((0.35, 0.65), (-0.15, 0.15))  # where objects lie
BOX_M = np.array([[0.30, -0.20, 0.015], [0.70, 0.20, 0.30]])  # where the gripper may be
APART_M = 0.08  # least distance of objects
RADIUS_M = 0.02  # of an object: its centre's height on the table
REACH_M = 0.02  # fingers that close this near to an object's centre hold it
HOVER_M, LIFTED_BOTTOM_M = 0.07, 0.085  # as the scripted policies in sim/policies.py
MOTION_NOISE_M = np.array([0.008, 0.008, 0.005])
CRUDE_ERROR_M = np.array([0.022, 0.022, 0.008])  # of each attempt; a crude episode succeeds in about 4 of 10 cases
FAILURE_DETECTION = 0.4  # probability that a crude policy sees that its grasp failed
WIDTH_OPEN_M, WIDTH_HOLDING_M = 0.08, 0.03


def _places(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Positions [B, 3, 2] (m) at least `APART_M` from each other."""
    low, high = np.array(AREA_M).T
    places = rng.uniform(low, high, (size, NUM_PRESENT, 2))
    while True:
        distance = np.linalg.norm(places[:, :, None] - places[:, None], axis=-1) + APART_M * np.eye(NUM_PRESENT)
        close = np.flatnonzero((distance < APART_M).any((1, 2)))
        if not len(close):
            return places
        places[close] = rng.uniform(low, high, (len(close), NUM_PRESENT, 2))


class ToyWorld:
    """B scenes side by side. `target` [B]: an object that is present, -1: any. `state` is changed in place."""

    def __init__(self, target: NDArray[np.int64], rng: np.random.Generator) -> None:
        size = len(target)
        self.state = state = SceneState(np.tile(SceneState.empty().vector, (size, 1)))
        self.done = np.zeros(size, np.bool_)
        self.length = np.zeros(size, np.int64)
        priority = rng.random((size, O))
        aimed = np.flatnonzero(target >= 0)
        priority[aimed, target[aimed]] = 1.0
        objects = priority.argsort(1)[:, -NUM_PRESENT:]
        rows = np.arange(size)[:, None]
        state["object_present"][rows, objects] = 1.0
        state["object_position"][rows, objects, :2] = _places(size, rng)
        state["object_position"][rows, objects, 2] = RADIUS_M
        state["object_on_table"][rows, objects] = 1.0
        state["camera_axes"][:] = np.eye(3)
        state["camera_position"][:] = [0.0, 0.0, 2.0]
        middle = np.mean(AREA_M, axis=1)
        state["gripper_position"][:, :2] = middle + rng.uniform(-0.05, 0.05, (size, 2))
        state["gripper_position"][:, 2] = rng.uniform(0.15, 0.20, size)
        state["finger_width"][:] = WIDTH_OPEN_M

    def step(self, action: NDArray[np.float32]) -> None:
        """Moves the fingers by actions [B, 5], then carries out their commands; ended episodes stay as they are."""
        state = self.state
        command = np.where(self.done, actions.TERMINATE, action[:, 4])
        moves = command != actions.TERMINATE
        self.length += ~self.done
        tip = state["gripper_position"]
        before = tip.copy()
        motion = np.clip(action[:, :3], -actions.MAX_TRANSLATION_M, actions.MAX_TRANSLATION_M) * moves[:, None]
        tip[:] = np.clip(tip + motion, *BOX_M)
        held = state["held"].astype(np.int64)
        r = np.flatnonzero(held >= 0)
        state["object_position"][r, held[r]] += (tip - before)[r]
        self._settle(r, held[r])
        opens = np.flatnonzero(command == actions.OPEN)
        dropped = opens[held[opens] >= 0]
        state["object_position"][dropped, held[dropped], 2] = RADIUS_M
        state["object_on_finger"][dropped, held[dropped]] = 0.0
        state["gripper_closed"][opens] = 0.0
        state["finger_width"][opens] = WIDTH_OPEN_M
        state["held"][opens] = -1.0
        self._settle(dropped, held[dropped])
        closes = np.flatnonzero((command == actions.CLOSE) & (state["gripper_closed"] == 0))
        distance = np.linalg.norm(state["object_position"] - tip[:, None], axis=-1)
        distance = np.where(state["object_present"] > 0, distance, np.inf)[closes]
        nearest = distance.argmin(1)
        holds = distance.min(1, initial=np.inf) <= REACH_M
        state["gripper_closed"][closes] = 1.0
        state["finger_width"][closes] = WIDTH_HOLDING_M * holds
        state["held"][closes] = np.where(holds, nearest, -1)
        state["object_on_finger"][closes[holds], nearest[holds]] = 1.0
        self.done |= (command == actions.TERMINATE) | (self.length >= HORIZON)

    def _settle(self, rows: NDArray[np.int64], index: NDArray[np.int64]) -> None:
        """Heights and contacts with the table of one object in each of the rows."""
        height = np.maximum(self.state["object_position"][rows, index, 2], RADIUS_M)
        self.state["object_position"][rows, index, 2] = height
        self.state["object_bottom"][rows, index] = height - RADIUS_M
        self.state["object_on_table"][rows, index] = height - RADIUS_M < 1e-4

    def success(self) -> NDArray[np.bool_]:
        """Whether the states as they are succeed at each lift, [B, N], by the project's detectors."""
        return detect_successes(self.state)[:, list(LIFTS)]


class ToyPolicy:
    """The lifts of sim/policies.py for B scenes at once. `error` [3] (m): standard deviation of each attempt's error.

    `task` [B]; `aimless` attempts any present object. `detection`: probability to see that a grasp failed."""

    def __init__(
        self, task: NDArray[np.int64], aimless: bool, error: NDArray[np.float64], detection: float, noise: float
    ) -> None:
        self.task, self.aimless, self.sd, self.detection, self.noise = task, aimless, error, detection, noise
        self.target = task.copy()
        self.error = np.zeros((len(task), 3))
        self.detects = np.ones(len(task), np.bool_)
        self.fresh = np.ones(len(task), np.bool_)

    def act(self, state: SceneState, rng: np.random.Generator) -> NDArray[np.float32]:
        size = len(self.task)
        drawn = (rng.random((size, O)) * (state["object_present"] > 0)).argmax(1) if self.aimless else self.task
        self.target = np.where(self.fresh, drawn, self.target)
        self.error = np.where(self.fresh[:, None], rng.normal(size=(size, 3)) * self.sd, self.error)
        self.detects = np.where(self.fresh, rng.random(size) < self.detection, self.detects)
        tip, rows = state["gripper_position"], np.arange(size)
        move = state["object_position"][rows, self.target] + self.error - tip
        far = np.hypot(move[:, 0], move[:, 1])
        move[:, 2] += np.where(far > 0.03, HOVER_M, 0.0)
        command = np.where((far <= 0.03) & (np.abs(move[:, 2]) < 0.05), actions.CLOSE, actions.NONE)
        up = np.array([0.0, 0.0, 0.055])
        holding = state["held"] == self.target
        missed = (state["gripper_closed"] > 0) & ~holding
        move = np.where((holding | missed)[:, None], up, move)
        ends = holding & (state["object_bottom"][rows, self.target] >= LIFTED_BOTTOM_M)
        ends |= missed & ~self.detects & (tip[:, 2] > 0.12)
        command = np.where(holding | missed, actions.NONE, command)
        command = np.where(missed & self.detects, actions.OPEN, command)
        command = np.where(ends, actions.TERMINATE, command)
        self.fresh = command == actions.OPEN
        move = np.where(ends[:, None], 0.0, move) + self.noise * rng.normal(size=(size, 3)) * MOTION_NOISE_M
        yaw = self.noise * rng.normal(0.0, 0.08, size)
        action = np.concatenate([move, yaw[:, None], command[:, None]], axis=1)
        action[:, :4] = np.clip(action[:, :4], -actions.BOUNDS, actions.BOUNDS)
        return action.astype(np.float32)


# policy -> (aimless, error of an attempt, probability of detecting a failed grasp, noise of the motion)
POLICIES: dict[str, tuple[bool, NDArray[np.float64], float, float]] = {
    "aimless": (True, CRUDE_ERROR_M, FAILURE_DETECTION, 1.0),
    "crude": (False, CRUDE_ERROR_M, FAILURE_DETECTION, 1.0),
    "scripted": (False, np.full(3, 0.004), 1.0, 1.0),
}
# task -> policy and the number of its episodes, an eighth of docs/results/sharing-vision.toml or less
SOURCES: dict[str, tuple[str, int]] = {
    "lift-banana": ("aimless", 300),
    "lift-bottle": ("scripted", 3),
    "lift-sausage": ("crude", 10),
    "lift-milk": ("crude", 10),
    "lift-food": ("aimless", 300),
    "lift-can": ("scripted", 3),
    "lift-carrot": ("aimless", 300),
}


class ToyReplay(Replay):
    """Toy episodes in memory, with what samplers and routers read of a dataset on disk.

    `features` float32 [F, L, landmark + 1]: noisy landmarks, and a constant for the descriptor; `gripper` float32
    [F, 2]: closed, height (m); `action` float32 [F, 5]. The frame after an episode's last step is its end, and holds no
    action. `task`, `length` [E]; `success` [E, tasks] by every detector."""

    def __init__(
        self,
        features: Tensor,
        gripper: Tensor,
        action: Tensor,
        task: NDArray[np.int64],
        length: NDArray[np.int64],
        success: NDArray[np.bool_],
    ) -> None:
        self.folder = Path("toy")
        self.features, self.gripper, self.action = features.flatten(1), gripper, action
        self.episode_task, self.episode_length, self.success = task, length, success
        self.num_episodes, self.num_steps = len(task), int(length.sum())
        self.last_step = np.cumsum(length) - 1

    def frames(self, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Flat features, gripper and action of frames."""
        return self.features[number], self.gripper[number], self.action[number]


def observe(state: SceneState, noise_m: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Features [B, L, landmark + 1], the landmarks with white noise on the offsets of those present, and gripper
    readings [B, 2]."""
    value = landmarks(state).value
    value[..., :3] += rng.normal(0.0, noise_m / OFFSET_UNIT_M, (*value.shape[:-1], 3)) * value[..., PRESENCE, None]
    features = np.concatenate([value, np.zeros_like(value[..., :1])], axis=-1)
    gripper = np.stack([state["gripper_closed"], state["gripper_position"][..., 2]], axis=-1)
    return torch.from_numpy(features), torch.from_numpy(gripper)


def collect(sources: dict[str, tuple[str, int]], noise_m: float, rng: np.random.Generator) -> ToyReplay:
    """Plays every source's episodes."""
    parts: dict[str, list[NDArray[np.generic]]] = {name: [] for name in ("state", "action", "length", "task", "won")}
    for name, (policy, count) in sources.items():
        task = np.full(count, TASKS[name].target)
        kind = POLICIES[policy]
        world, hand = ToyWorld(np.full(count, -1) if kind[0] else task, rng), ToyPolicy(task, *kind)
        frames, steps = [world.state.vector.copy()], []
        while not world.done.all():
            steps.append(hand.act(world.state, rng))
            world.step(steps[-1])
            frames.append(world.state.vector.copy())
        kept = np.arange(len(frames)) <= world.length[:, None]  # [E, T + 1]
        steps.append(np.zeros_like(steps[-1]))
        parts["state"].append(np.stack(frames, axis=1)[kept])
        parts["action"].append(np.stack(steps, axis=1)[kept])
        parts["length"].append(world.length)
        parts["task"].append(task)
        parts["won"].append(detect_successes(world.state))
    state, action, length, own, won = (np.concatenate(part) for part in parts.values())
    features, gripper = observe(SceneState(state.astype(np.float32)), noise_m, rng)
    return ToyReplay(features, gripper, torch.from_numpy(action.astype(np.float32)), own, length, won)
