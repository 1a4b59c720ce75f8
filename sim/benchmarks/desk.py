"""A desk with a door and a drawer of Meta-World (Yu et al. 2019, arXiv:1910.10897) in one scene, as CDS has them: each
is opened and closed.

The arm's hand follows a mocap body, as there; scene, steps, resets and controllers are written here. A task's success
is Meta-World's condition. It is paid at every step while it holds, and ends nothing. Where this departs from
Meta-World's scenes: both objects stand in one; the door's panel does not touch its own case, which there pushes it out
of the success condition by itself; a reset simulates nothing. Places are in m. Needs MuJoCo, and metaworld for the
assets alone.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.benchmarks.desk_rewards import (
    DOOR,
    DOOR_PLACE,
    DRAWER,
    DRAWER_PLACE,
    FAR_HAND_START_M,
    FINGERTIPS,
    HAND,
    HAND_START_M,
    OPEN_DOOR_RAD,
    OPEN_DRAWER_M,
    door_is_closed,
    door_is_open,
    drawer_is_closed,
    drawer_is_open,
    shaped_door_close,
    shaped_door_open,
    shaped_drawer_close,
    shaped_drawer_open,
    sparse,
)
from sim.benchmarks.simulator import load_mujoco, package_folder
from sim.benchmarks.spec import Benchmark, Condition, Controller, EnvStep, Reward, StateTask

Array = NDArray[np.float32]
HORIZON, FRAME_SKIP = 200, 5  # steps; frames of 2.5 ms in each
MOCAP_STEP_M = 0.01  # the mocap's way in a step at full action
HAND_LOW, HAND_HIGH = np.array([-0.5, 0.4, 0.05]), np.array([0.5, 1.0, 0.5])
DOOR_LOW, DOOR_HIGH = np.array([-0.15, 0.9, 0.15]), np.array([-0.05, 1.0, 0.15])  # clear of the resting hand
DRAWER_LOW, DRAWER_HIGH = np.array([0.35, 0.9, 0.0]), np.array([0.4, 0.9, 0.0])
QUANTITIES = {DOOR: (), DRAWER: (), HAND: (3,), FINGERTIPS: (3,), DOOR_PLACE: (3,), DRAWER_PLACE: (3,)}
MOMENT_SIZE = 12  # numbers of a moment: hand, opening of the fingers, handles of door and drawer, door, drawer
SETTLING_STEPS, OUT_OF_REACH = 50, (0.0, 3.0, 0.15)  # of the hand, and where the objects are meanwhile

SCENE = """
<mujoco>
  <compiler meshdir="{assets}/sawyer_xyz" texturedir="{assets}/sawyer_xyz"/>
  <include file="{assets}/scene/basic_scene.xml"/>
  <include file="{assets}/objects/assets/doorlock_dependencies.xml"/>
  <include file="{assets}/objects/assets/drawer_dependencies.xml"/>
  <include file="{assets}/objects/assets/xyz_base_dependencies.xml"/>
  <worldbody>
    <include file="{assets}/objects/assets/xyz_base.xml"/>
    <body name="door" pos="-0.1 0.9 0.15"><include file="{assets}/objects/assets/doorlockB.xml"/></body>
    <body name="drawer" pos="0.37 0.9 0"><include file="{assets}/objects/assets/drawer.xml"/></body>
  </worldbody>
  <contact><exclude body1="doorlockB" body2="door_link"/></contact>
  <actuator>
    <position ctrllimited="true" ctrlrange="-1 1" joint="r_close" kp="400"/>
    <position ctrllimited="true" ctrlrange="-1 1" joint="l_close" kp="400"/>
  </actuator>
  <equality>
    <weld body1="mocap" body2="hand" relpose="0 0 0 -1 0 0 0" torquescale="5" solref="0.02 1"/>
  </equality>
</mujoco>
"""


# ---------------------------------------------------------------- environment


@functools.cache
def compiled_desk() -> Any:
    """MuJoCo model of the scene. MissingSimulatorError without MuJoCo or metaworld."""
    assets = package_folder("desk", "metaworld") / "assets"
    return load_mujoco("desk").MjModel.from_xml_string(SCENE.format(assets=assets))


class DeskEnv:
    """The door and the drawer, one of them open where the task is to close it, the other closed.

    Observes two moments of 12 numbers, the newest first (hand, opening of the fingers, handles, joints), and how far
    ahead the mocap body is: [27]. Acts by the mocap's way in x, y, z and the force that closes the fingers: [4]."""

    def __init__(self) -> None:
        model: Any = compiled_desk()
        self._mujoco, self._model = load_mujoco("desk"), model
        self._data: Any = self._mujoco.MjData(model)
        self._rng, self._steps = np.random.default_rng(), 0
        self._door_joint, self._drawer_joint = (model.joint(name).qposadr[0] for name in ("doorjoint", "goal_slidey"))
        self._object_velocities = [model.joint(name).dofadr[0] for name in ("doorjoint", "goal_slidey")]
        bodies = ("hand", "rightclaw", "leftclaw", "door", "drawer", "drawer_link")
        self._bodies = {name: model.body(name).id for name in bodies}
        self._tips = [model.site(name).id for name in ("rightEndEffector", "leftEndEffector")]
        self._handle = model.geom("handle").id
        self._door_place, self._drawer_place = DOOR_LOW, DRAWER_LOW
        self._before = np.zeros(MOMENT_SIZE)

    def reset(self, task: str, seed: int | None = None) -> Array:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        data = self._data
        self._mujoco.mj_resetData(self._model, data)
        hand = FAR_HAND_START_M if task == "door-close" else HAND_START_M
        data.qpos[:], data.qvel[:] = _settled(hand)
        self._door_place = self._rng.uniform(DOOR_LOW, DOOR_HIGH)
        self._drawer_place = self._rng.uniform(DRAWER_LOW, DRAWER_HIGH)
        data.qvel[self._object_velocities] = 0.0
        data.qpos[self._door_joint] = OPEN_DOOR_RAD if task == "door-close" else 0.0
        data.qpos[self._drawer_joint] = OPEN_DRAWER_M if task == "drawer-close" else 0.0
        data.mocap_pos[0], data.mocap_quat[0] = hand, [1, 0, 1, 0]
        self._place_objects()
        self._mujoco.mj_forward(self._model, data)
        self._steps, self._before = 0, self._moment()
        return self._observe()

    def step(self, action: Array) -> EnvStep:
        clipped, data = np.clip(action, -1, 1), self._data
        data.mocap_pos[0] = np.clip(data.mocap_pos[0] + MOCAP_STEP_M * clipped[:3], HAND_LOW, HAND_HIGH)
        data.ctrl[:] = clipped[3], -clipped[3]
        self._place_objects()
        self._mujoco.mj_step(self._model, data, FRAME_SKIP)
        self._mujoco.mj_kinematics(self._model, data)  # places after the step, not before its last frame
        self._steps += 1
        observation, tips = self._observe(), data.site_xpos[self._tips].mean(0)
        quantities = {
            DOOR: data.qpos[self._door_joint],
            DRAWER: data.qpos[self._drawer_joint],
            HAND: data.xpos[self._bodies["hand"]],
            FINGERTIPS: tips,
            DOOR_PLACE: self._door_place,
            DRAWER_PLACE: self._drawer_place,
        }
        copies = {name: np.array(value, np.float32) for name, value in quantities.items()}
        return EnvStep(observation, copies, terminated=False, truncated=self._steps == HORIZON)

    def close(self) -> None: ...

    def simulation(self) -> tuple[Any, Any]:
        return self._model, self._data

    def _place_objects(self) -> None:
        """In the model, which environments share."""
        self._model.body_pos[self._bodies["door"]] = self._door_place
        self._model.body_pos[self._bodies["drawer"]] = self._drawer_place

    def _moment(self) -> NDArray[np.float64]:
        data, bodies = self._data, self._bodies
        opening = np.linalg.norm(data.xpos[bodies["rightclaw"]] - data.xpos[bodies["leftclaw"]])
        drawer_handle = data.xpos[bodies["drawer_link"]] + (0.0, -0.16, 0.0)
        joints = data.qpos[[self._door_joint, self._drawer_joint]]
        fingers = [min(1.0, float(opening) / 0.1)]
        return np.concatenate([data.xpos[bodies["hand"]], fingers, data.geom_xpos[self._handle], drawer_handle, joints])

    def _observe(self) -> Array:
        now = self._moment()
        ahead = self._data.mocap_pos[0] - now[:3]
        observation = np.concatenate([now, self._before, ahead]).astype(np.float32)
        self._before = now
        return observation


@functools.cache
def _settled(hand: tuple[float, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions and velocities of all joints with the hand brought to a place as in Meta-World, both objects closed."""
    import mujoco

    model = compiled_desk()
    for body in ("door", "drawer"):
        model.body_pos[model.body(body).id] = OUT_OF_REACH
    data = mujoco.MjData(model)
    data.ctrl[:] = -1, 1
    for _ in range(SETTLING_STEPS):
        data.mocap_pos[0], data.mocap_quat[0] = hand, [1, 0, 1, 0]
        mujoco.mj_step(model, data, FRAME_SKIP)
    return data.qpos.copy(), data.qvel.copy()


# ---------------------------------------------------------------- controllers

# Each: hand [..., 3] and handle [..., 3], m, and the joint [...] -> where the hand is to go [..., 3], m, and the gain
# (action per m).


def _stages(reached: list[NDArray[np.bool_]], targets: list[NDArray[np.floating]]) -> NDArray[np.floating]:
    """Each row's target: the first one whose stage is not yet reached, or else the last."""
    found = targets[-1]
    for done, target in zip(reversed(reached), reversed(targets[:-1]), strict=True):
        found = np.where(done[..., None], found, target)
    return found


def _over(place: NDArray[np.floating], height_m: float) -> NDArray[np.floating]:
    return np.concatenate([place[..., :2], np.full_like(place[..., :1], height_m)], axis=-1)


def _apart(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    """Horizontal distance."""
    distance: NDArray[np.floating] = np.linalg.norm((a - b)[..., :2], axis=-1)
    return distance


def open_door(hand: Array, handle: Array, angle: Array) -> tuple[Array, float]:
    """Behind the handle from above, and along its arc."""
    behind = handle + (0.01, 0.02, 0.0)
    near, low = _apart(hand, behind) < 0.08, np.abs(hand - handle)[..., 2] < 0.04
    high = hand[..., 2] > handle[..., 2] + 0.12
    targets = [_over(hand, 0.4), _over(behind, 0.4), behind, handle - (0.05, 0.0, 0.0)]
    pull = _stages([high | near, near, near & low], targets)
    return np.where((angle < -1.5)[..., None], hand, pull).astype(np.float32), 25.0


def close_door(hand: Array, handle: Array, angle: Array) -> tuple[Array, float]:
    """Against the handle from outside."""
    inwards = np.stack([-np.sin(angle), np.cos(angle), 0 * angle], -1)
    return (handle + 0.1 * inwards).astype(np.float32), 10.0


def open_drawer(hand: Array, handle: Array, opening: Array) -> tuple[Array, float]:
    """Into the handle from above, and back."""
    near, low = _apart(hand, handle) < 0.06, np.abs(hand - handle)[..., 2] < 0.04
    return _stages([near, near & low], [_over(handle, 0.3), handle, handle - (0.0, 0.08, 0.0)]), 20.0


def close_drawer(hand: Array, handle: Array, opening: Array) -> tuple[Array, float]:
    """In front of the handle from above, and forwards."""
    front = handle - (0.0, 0.12, 0.0)
    aligned, low = np.abs(hand - handle)[..., 0] < 0.04, np.abs(hand - handle)[..., 2] < 0.04
    return _stages([aligned, aligned & low], [_over(front, 0.25), front, handle + (0.0, 0.1, 0.0)]), 15.0


CONTROLLERS = {
    "door-open": (open_door, slice(4, 7), 10),
    "door-close": (close_door, slice(4, 7), 10),
    "drawer-open": (open_drawer, slice(7, 10), 11),
    "drawer-close": (close_drawer, slice(7, 10), 11),
}


def control(task: str, observation: Array) -> Array:
    """Actions [..., 4] towards the task's success; of the observation alone. The fingers stay closed."""
    controller, handle, joint = CONTROLLERS[task]
    hand = observation[..., :3]
    target, gain = controller(hand, observation[..., handle], observation[..., joint])
    move = (gain * (target - hand)).clip(-1, 1)
    return np.concatenate([move, np.ones_like(move[..., :1])], axis=-1).astype(np.float32)


# ---------------------------------------------------------------- record


def _task(name: str, success: Condition, shaped: Reward) -> StateTask:
    skill = name.partition("-")[0]
    return StateTask(
        name=name, skill=skill, reward=functools.partial(sparse, success), success=success, shaped_reward=shaped
    )


DESK = Benchmark(
    name="desk",
    observation_size=2 * MOMENT_SIZE + 3,
    action_size=4,
    horizon=HORIZON,
    quantities=QUANTITIES,
    tasks=(
        _task("door-open", door_is_open, shaped_door_open),
        _task("door-close", door_is_closed, shaped_door_close),
        _task("drawer-open", drawer_is_open, shaped_drawer_open),
        _task("drawer-close", drawer_is_closed, shaped_drawer_close),
    ),
    make_env=DeskEnv,
    metric="success",
    controller=Controller(command=control),
)
