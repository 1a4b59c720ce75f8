"""The walker of the DeepMind Control Suite (Tassa et al. 2018, arXiv:1801.00690), which walks and runs: the body of
HCSAC's experiments. Observations and rewards are dm_control's to the bit; its steps cost less. Needs MuJoCo, and
dm_control for the model alone.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.benchmarks.simulator import load_mujoco, package_folder
from sim.benchmarks.spec import Benchmark, EnvStep, Quantities, StateTask

Array = NDArray[np.float32]
HORIZON, FRAME_SKIP = 1000, 10  # steps of 25 ms; frames of 2.5 ms in each
HEIGHT, UPRIGHT, VELOCITY = "height_m", "upright", "x_velocity_m_s"  # of the torso; upright is the cosine of its tilt
STAND_HEIGHT_M, WALK_M_S, RUN_M_S = 1.2, 1.0, 8.0


def standing_reward(q: Quantities) -> NDArray[np.floating]:
    """In [0, 1], [...]: three quarters of it for the height, the rest for being upright."""
    below = np.maximum(0, STAND_HEIGHT_M - q[HEIGHT]) / (STAND_HEIGHT_M / 2)
    standing = np.exp(-0.5 * np.square(below * np.sqrt(-2 * np.log(0.1))))
    found: NDArray[np.floating] = (3 * standing + (1 + q[UPRIGHT]) / 2) / 4
    return found


def move_reward(speed_m_s: float, q: Quantities, action: Array) -> NDArray[np.floating]:
    """In [0, 1], [...]: standing, and as a factor between a sixth and 1 the velocity up to this speed."""
    missing = np.maximum(0, speed_m_s - q[VELOCITY]) / (speed_m_s / 2)
    moving = np.where(missing * 0.5 < 1, 1 - missing * 0.5, 0.0)
    found: NDArray[np.floating] = standing_reward(q) * (5 * moving + 1) / 6
    return found


@functools.cache
def compiled_walker() -> Any:
    """dm_control's MuJoCo model. MissingSimulatorError without MuJoCo or dm_control."""
    model = package_folder("dmc-walker", "dm_control") / "suite" / "walker.xml"
    return load_mujoco("dmc-walker").MjModel.from_xml_path(str(model))


class DMCWalkerEnv:
    """Observes the orientation of each of seven bodies as the x and z of its x axis, the height of the torso, and all
    joints' velocities: [24]. Episodes begin in any pose; none ends before the horizon."""

    def __init__(self) -> None:
        self._mujoco, self._model = load_mujoco("dmc-walker"), compiled_walker()
        self._data: Any = self._mujoco.MjData(self._model)
        self._rng, self._steps = np.random.default_rng(), 0
        self._torso = self._model.body("torso").id
        self._velocity = self._model.sensor("torso_subtreelinvel").adr[0]

    def reset(self, task: str, seed: int | None = None) -> Array:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        positions, model = np.zeros(self._model.nq), self._model
        for joint in range(model.njnt):  # each has one number
            if model.jnt_limited[joint]:
                positions[joint] = self._rng.uniform(*model.jnt_range[joint])
            elif model.jnt_type[joint] == self._mujoco.mjtJoint.mjJNT_HINGE:
                positions[joint] = self._rng.uniform(-np.pi, np.pi)
        return self.reset_to(positions)

    def reset_to(self, positions: NDArray[np.float64]) -> Array:
        """At rest in a pose, the joints' positions [9]."""
        self._mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:] = positions
        self._mujoco.mj_forward(self._model, self._data)
        self._steps = 0
        return self._observe()

    def step(self, action: Array) -> EnvStep:
        self._data.ctrl[:] = np.clip(action, -1, 1)
        self._mujoco.mj_step(self._model, self._data, FRAME_SKIP)
        self._mujoco.mj_step1(self._model, self._data)  # places and sensors of the state that was reached
        self._steps += 1
        quantities = {name: np.asarray(value, np.float32) for name, value in self.measure().items()}
        return EnvStep(self._observe(), quantities, terminated=False, truncated=self._steps == HORIZON)

    def measure(self) -> dict[str, float]:
        """The quantities as MuJoCo has them, in double precision."""
        data = self._data
        height, upright = data.xpos[self._torso, 2], data.xmat[self._torso, 8]
        return {HEIGHT: height, UPRIGHT: upright, VELOCITY: data.sensordata[self._velocity]}

    def close(self) -> None: ...

    def simulation(self) -> tuple[Any, Any]:
        return self._model, self._data

    def _observe(self) -> Array:
        data = self._data
        orientations = data.xmat[1:, [0, 2]].ravel()
        return np.concatenate([orientations, data.xpos[self._torso, 2:], data.qvel]).astype(np.float32)


DMC_WALKER = Benchmark(
    name="dmc-walker",
    observation_size=24,
    action_size=6,
    horizon=HORIZON,
    quantities={HEIGHT: (), UPRIGHT: (), VELOCITY: ()},
    tasks=(
        StateTask(name="walk", reward=functools.partial(move_reward, WALK_M_S)),
        StateTask(name="run", reward=functools.partial(move_reward, RUN_M_S)),
    ),
    make_env=DMCWalkerEnv,
)
