"""The pick-place world as a gymnasium environment, registered as `switchyard/PickPlace-v0`."""

from __future__ import annotations

import sys
from traceback import walk_stack
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from sim import actions
from sim.drawing import SEGMENTS
from sim.looks import SPLITS
from sim.options import check_choice
from sim.policies import Observation
from sim.scenes import draw_scene, read_factors
from sim.tasks import TASK_NAMES, task_by_name, verdicts
from sim.views import CameraSpec
from sim.world import World

EXTRAS = ("depth", "segmentation")


class PickPlaceEnv(gymnasium.Env[dict[str, Any], dict[str, Any]]):
    """One task, or `task=None` for a new task each reset. Reward 1 when the episode ends in success, else 0.

    An episode terminates by the terminate command. It is truncated after `horizon` steps or by gymnasium's TimeLimit
    (`max_episode_steps`), whichever comes first; where neither is given, after the task's horizon. `info` holds
    `task_index`, the privileged `state` [S] and the `verdicts` [N] of every task. `extras` adds `depth` (m) and
    `segmentation` (values of sim.drawing.SEGMENTS) to the observation.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 6}

    def __init__(
        self,
        task: str | None = None,
        image_size: int = 472,
        renderer: str = "auto",
        horizon: int | None = None,
        randomise: str | tuple[str, ...] = "all",
        split: str = "train",
        extras: str | tuple[str, ...] = (),
        render_mode: str | None = "rgb_array",
    ) -> None:
        if horizon is not None and horizon < 1:
            raise ValueError(f"horizon is at least 1, got {horizon}")
        extras = (extras,) if isinstance(extras, str) else extras
        self._factors = read_factors(randomise)
        self._split = check_choice("split", split, SPLITS)
        self._task_name = None if task is None else task_by_name(task).name
        self._horizon = horizon
        if render_mode is not None:
            check_choice("render mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self._steps = -1  # since the reset
        self._over = False
        self.world = World(image_size, renderer)
        self._extras = tuple(check_choice("extra observation", name, EXTRAS) for name in extras)
        side = (image_size, image_size)
        observed: dict[str, spaces.Space[Any]] = {
            "image": spaces.Box(0, 255, (*side, 3), np.uint8),
            "gripper_closed": spaces.Box(0.0, 1.0, (1,), np.float32),
            "gripper_height": spaces.Box(-1.0, 2.0, (1,), np.float32),
        }
        possible: dict[str, spaces.Space[Any]] = {
            "depth": spaces.Box(0.0, CameraSpec().far_m, side, np.float32),
            "segmentation": spaces.Box(0, len(SEGMENTS) - 1, side, np.uint8),
        }
        self.observation_space = spaces.Dict(observed | {name: possible[name] for name in self._extras})
        reach, turn = actions.MAX_TRANSLATION_M, actions.MAX_YAW_RAD
        self.action_space = spaces.Dict(
            {
                "translation": spaces.Box(-reach, reach, (3,), np.float32),
                "yaw": spaces.Box(-turn, turn, (), np.float32),
                "command": spaces.Discrete(len(actions.COMMANDS)),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        for key in options or {}:
            check_choice("option of reset", key, ("task",))
        name = (options or {}).get("task", self._task_name)
        if name is None:
            name = TASK_NAMES[int(self.np_random.integers(len(TASK_NAMES)))]
        self.task = task_by_name(name)
        self.world.reset(draw_scene(self.task, self.np_random, self._factors, self._split))
        self._steps, self._over = 0, False
        return self._observe()

    def step(self, action: dict[str, Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self._check_is_reset()
        if self._over:
            raise gymnasium.error.ResetNeeded("the episode has ended: call reset")
        translation, yaw = np.asarray(action["translation"], np.float32), np.asarray(action["yaw"], np.float32)
        if translation.shape != (3,) or yaw.size != 1:
            raise ValueError(f"translation has 3 numbers and yaw one, got {action['translation']} and {action['yaw']}")
        self.world.step(np.array([*translation, yaw.item(), action["command"]], np.float32))
        self._steps += 1
        terminated = int(action["command"]) == actions.TERMINATE
        truncated = not terminated and self._time_is_up()
        self._over = terminated or truncated
        observation, info = self._observe()
        reward = float(info["verdicts"][self.task.index]) if self._over else 0.0
        return observation, reward, terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        self._check_is_reset()
        return self.world.render()

    def close(self) -> None:
        self.world.close()
        self._steps = -1

    def _check_is_reset(self) -> None:
        if self._steps < 0:
            raise gymnasium.error.ResetNeeded("call reset first")

    def _time_is_up(self) -> bool:
        """Whether this step is the last one. TimeLimit ends an episode without telling the environment, which has to
        pay the reward: so it is looked for among the callers of `step`."""
        steps_left = [] if self._horizon is None else [self._horizon - self._steps]
        for frame, _ in walk_stack(sys._getframe()):
            if frame.f_code is TimeLimit.step.__code__ and (limit := frame.f_locals["self"]).unwrapped is self:
                steps_left.append(limit._max_episode_steps - limit._elapsed_steps - 1)
        return min(steps_left, default=self.task.horizon - self._steps) <= 0

    def _observe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        state = self.world.snapshot()
        observation = {
            "image": self.world.render(),
            "gripper_closed": np.array([state["gripper_closed"]], np.float32),
            "gripper_height": state["gripper_position"][2:].astype(np.float32),
        }
        if self._extras:
            geometry = self.world.geometry()
            seen = {"depth": geometry.depth_m, "segmentation": geometry.segmentation}
            observation |= {name: seen[name] for name in self._extras}
        return observation, {"task_index": self.task.index, "state": state.vector, "verdicts": verdicts(state)}


def as_batch(observation: dict[str, Any], info: dict[str, Any]) -> Observation:
    """One environment's observation as a batch of one, for a `Policy`."""
    return Observation(
        image=observation["image"][None],
        gripper_closed=observation["gripper_closed"],
        gripper_height=observation["gripper_height"],
        state=info["state"][None],
    )


def as_action(vector: NDArray[np.float32]) -> dict[str, Any]:
    """A policy's action [5] in the form the environment's action space asks for."""
    return {"translation": vector[:3], "yaw": np.array(vector[3], np.float32), "command": int(vector[4])}


gymnasium.register(
    id="switchyard/PickPlace-v0", entry_point="sim.env:PickPlaceEnv", vector_entry_point="sim.vector:make_vector"
)
