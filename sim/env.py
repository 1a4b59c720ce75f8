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
from sim.appearances import SPLITS
from sim.camera_geometry import CameraSpec
from sim.drawing import SEGMENTS
from sim.options import check_choice
from sim.policies import Observation
from sim.scenes import draw_scene, read_factors
from sim.tasks import TASK_NAMES, detect_successes, task_by_name
from sim.world import World

EXTRAS = ("depth", "segmentation")


class PickPlaceEnv(gymnasium.Env[dict[str, Any], dict[str, Any]]):
    """Pick-place environment. Reward 1 at the end of a successful episode, else 0. `task=None`: a random one per reset.

    The terminate command terminates an episode. It is truncated after `horizon` steps or by gymnasium's TimeLimit
    (`max_episode_steps`), whichever comes first; without either, at the task's horizon. `info` holds `task_index`, the
    privileged `state` [S] and `successes` [N], one per task. `extras` adds `depth` (m) and `segmentation` (indices into
    sim.drawing.SEGMENTS) to the observation.
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
        self._done = False
        self.world = World(image_size, renderer)
        self._extras = tuple(check_choice("extra observation", name, EXTRAS) for name in extras)
        side = (image_size, image_size)
        observation_spaces: dict[str, spaces.Space[Any]] = {
            "image": spaces.Box(0, 255, (*side, 3), np.uint8),
            "gripper_closed": spaces.Box(0.0, 1.0, (1,), np.float32),
            "gripper_height": spaces.Box(-1.0, 2.0, (1,), np.float32),
        }
        extra_spaces: dict[str, spaces.Space[Any]] = {
            "depth": spaces.Box(0.0, CameraSpec().far_m, side, np.float32),
            "segmentation": spaces.Box(0, len(SEGMENTS) - 1, side, np.uint8),
        }
        self.observation_space = spaces.Dict(observation_spaces | {name: extra_spaces[name] for name in self._extras})
        reach, yaw = actions.MAX_TRANSLATION_M, actions.MAX_YAW_RAD
        self.action_space = spaces.Dict(
            {
                "translation": spaces.Box(-reach, reach, (3,), np.float32),
                "yaw": spaces.Box(-yaw, yaw, (), np.float32),
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
        self._steps, self._done = 0, False
        return self._observe()

    def step(self, action: dict[str, Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self._check_is_reset()
        if self._done:
            raise gymnasium.error.ResetNeeded("the episode has ended: call reset")
        translation, yaw = np.asarray(action["translation"], np.float32), np.asarray(action["yaw"], np.float32)
        if translation.shape != (3,) or yaw.size != 1:
            raise ValueError(f"translation has 3 numbers and yaw one, got {action['translation']} and {action['yaw']}")
        self.world.step(np.array([*translation, yaw.item(), action["command"]], np.float32))
        self._steps += 1
        terminated = int(action["command"]) == actions.TERMINATE
        truncated = not terminated and self._is_last_step()
        self._done = terminated or truncated
        observation, info = self._observe()
        reward = float(info["successes"][self.task.index]) if self._done else 0.0
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

    def _is_last_step(self) -> bool:
        """Whether this step reaches a time limit. gymnasium's TimeLimit truncates an episode without notifying the
        environment, which pays the reward, so this looks for TimeLimit among the callers of `step`."""
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
            extras = {"depth": geometry.depth_m, "segmentation": geometry.segmentation}
            observation |= {name: extras[name] for name in self._extras}
        return observation, {"task_index": self.task.index, "state": state.vector, "successes": detect_successes(state)}


def as_batch(observation: dict[str, Any], info: dict[str, Any]) -> Observation:
    """Wraps the observation of one environment as a batch of one, the input of a `Policy`."""
    return Observation(
        image=observation["image"][None],
        gripper_closed=observation["gripper_closed"],
        gripper_height=observation["gripper_height"],
        state=info["state"][None],
    )


def as_action(vector: NDArray[np.float32]) -> dict[str, Any]:
    """Converts a policy's action [5] to an element of the environment's action space."""
    return {"translation": vector[:3], "yaw": np.array(vector[3], np.float32), "command": int(vector[4])}


gymnasium.register(
    id="switchyard/PickPlace-v0", entry_point="sim.env:PickPlaceEnv", vector_entry_point="sim.vector:make_vector"
)
