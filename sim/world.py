"""The pick-place world: a Franka Panda over a table, simulated by PyBullet. This file owns the only step loop.

After `reset` everything happens by physics: fingers hold by friction, no constraint, no attachment, no teleport.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pybullet
from numpy.typing import NDArray

from sim import actions
from sim.camera import Camera
from sim.objects import FIXTURES, OBJECTS, FixtureSpec, ObjectSpec
from sim.state import FIXTURE_NAMES, OBJECT_NAMES, SceneState
from sim.tasks import TaskSpec
from sim.urdf import write_body, write_panda
from sim.views import CameraSpec

TIMESTEP_S = 1 / 240
STEPS_PER_ACTION = 40  # 6 actions a second
STEPS_PER_GRIPPER_COMMAND = 24  # more, when the fingers have to travel
SETTLE_STEPS = 60
WORKSPACE_M = np.array([[0.34, -0.30, 0.008], [0.70, 0.30, 0.36]])  # of the point between the finger tips
FINGER_OPEN_M = 0.04  # each finger
FINGER_FORCE_N = 25.0
ARM_JOINTS = tuple(range(7))
FINGER_LINKS = (9, 10)
TIP_LINK = 11  # "panda_grasptarget": the point between the finger tips
ARM_FORCES_N_M = [87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0]
HOME_RAD = [0.0, -0.2, 0.0, -2.35, 0.0, 2.15, 0.785]
CONTACT_M = 0.0005
NUM_DISTRACTORS = 2
FIXTURE_SPOTS_M = ((0.42, -0.13), (0.42, 0.13), (0.63, 0.0))  # near, near, far; jittered


class World:
    """One scene. `reset` draws it from a generator, `step` acts, `snapshot` tells everything, `render` shows it."""

    def __init__(self, image_size: int = 472, renderer: str = "auto", camera: CameraSpec | None = None) -> None:
        self._client = pybullet.connect(pybullet.DIRECT)
        assert pybullet.isNumpyEnabled(), "PyBullet was built without numpy: rendering would be very slow"
        try:
            self.camera = Camera(self._client, image_size, renderer, camera)
        except ValueError:
            pybullet.disconnect(self._client)
            raise
        self._scratch = tempfile.TemporaryDirectory(prefix="switchyard-")
        folder = Path(self._scratch.name)
        self._panda_urdf = write_panda(folder)
        bodies: list[ObjectSpec | FixtureSpec] = [*OBJECTS.values(), *FIXTURES.values()]
        self._urdfs = {spec.name: write_body(spec, folder) for spec in bodies}
        self._objects: dict[int, int] = {}  # index in OBJECT_NAMES -> PyBullet body
        self._fixtures: dict[int, int] = {}
        self._load_fixed()

    def close(self) -> None:
        if self._client >= 0:
            self.camera.close()
            pybullet.disconnect(self._client)
            self._client = -1
            self._scratch.cleanup()

    # ------------------------------------------------------------------ reset

    def reset(self, task: TaskSpec, rng: np.random.Generator) -> None:
        """A new scene for the task. Lift: its object among others; place: any object held, all three fixtures."""
        for body in (*self._objects.values(), *self._fixtures.values()):
            pybullet.removeBody(body, physicsClientId=self._client)
        self._objects, self._fixtures = {}, {}
        self._task = task
        self._yaw = float(rng.uniform(-0.3, 0.3))
        self._goal = np.array([rng.uniform(0.44, 0.56), rng.uniform(-0.10, 0.10), rng.uniform(0.19, 0.25)])
        self._set_arm(FINGER_OPEN_M)
        if task.skill == "lift":
            self._scatter_objects(task.target, rng)
            self._settle(SETTLE_STEPS)
        else:
            self._scatter_fixtures(rng)
            self._put_into_hand(int(rng.integers(len(OBJECT_NAMES))), rng)

    def _load_fixed(self) -> None:
        c = self._client
        pybullet.resetSimulation(physicsClientId=c)
        pybullet.setGravity(0, 0, -9.81, physicsClientId=c)
        pybullet.setPhysicsEngineParameter(
            fixedTimeStep=TIMESTEP_S, numSolverIterations=30, deterministicOverlappingPairs=1, physicsClientId=c
        )
        half = [0.40, 0.55, 0.02]
        shape = pybullet.createCollisionShape(pybullet.GEOM_BOX, halfExtents=half, physicsClientId=c)
        look = pybullet.createVisualShape(
            pybullet.GEOM_BOX, halfExtents=half, rgbaColor=[0.55, 0.50, 0.45, 1], physicsClientId=c
        )
        self._table = pybullet.createMultiBody(0, shape, look, [0.60, 0, -half[2]], physicsClientId=c)
        pybullet.changeVisualShape(self._table, -1, specularColor=[0, 0, 0], physicsClientId=c)
        pybullet.changeDynamics(self._table, -1, lateralFriction=0.8, physicsClientId=c)
        self._panda = pybullet.loadURDF(str(self._panda_urdf), useFixedBase=True, physicsClientId=c)
        for link in FINGER_LINKS:
            pybullet.changeDynamics(
                self._panda, link, lateralFriction=1.2, spinningFriction=0.02, rollingFriction=0.002, physicsClientId=c
            )
            pybullet.changeVisualShape(self._panda, link, rgbaColor=[0.18, 0.18, 0.20, 1], physicsClientId=c)

    def _scatter_objects(self, target: int, rng: np.random.Generator) -> None:
        others = [i for i in range(len(OBJECT_NAMES)) if i != target]
        chosen = [target, *(int(i) for i in rng.choice(others, NUM_DISTRACTORS, replace=False))]
        taken: list[NDArray[np.float64]] = []
        for index in chosen:
            spec = OBJECTS[OBJECT_NAMES[index]]
            spot = _free_spot(taken, 0.13, np.array([[0.42, -0.17], [0.62, 0.17]]), rng)
            taken.append(spot)
            tilt = spec.rests[int(rng.integers(len(spec.rests)))]
            body = self._spawn(spec, (*spot, 0.5), _turned(tilt, float(rng.uniform(-np.pi, np.pi))))
            self._objects[index] = body
            position, turn = pybullet.getBasePositionAndOrientation(body, physicsClientId=self._client)
            lift = 0.001 - self._bottom(body)
            position = [position[0], position[1], position[2] + lift]
            pybullet.resetBasePositionAndOrientation(body, position, turn, physicsClientId=self._client)

    def _scatter_fixtures(self, rng: np.random.Generator) -> None:
        spots = np.array(FIXTURE_SPOTS_M) * [1, rng.choice([-1, 1])]
        for spot, index in zip(spots, rng.permutation(len(FIXTURE_NAMES)), strict=True):
            spec = FIXTURES[FIXTURE_NAMES[index]]
            x, y = spot + rng.uniform(-0.008, 0.008, 2)
            turn = pybullet.getQuaternionFromEuler([0, 0, rng.uniform(-np.pi, np.pi)])
            self._fixtures[int(index)] = self._spawn(spec, (x, y, 0.001), turn)

    def _put_into_hand(self, index: int, rng: np.random.Generator) -> None:
        """Close the fingers on an object that is kept in place until they hold it."""
        spec = OBJECTS[OBJECT_NAMES[index]]
        tilt = spec.rests[int(rng.integers(len(spec.rests)))]
        along = _rotate(pybullet.getQuaternionFromEuler(tilt), spec.long_axis)
        lying = abs(along[2]) < 0.7
        turn = _turned(tilt, self._yaw - (np.arctan2(along[1], along[0]) if lying else 0.0))  # across the fingers
        body = self._spawn(spec, (0.0, 0.0, 1.0), turn)
        self._objects[index] = body
        low, high = pybullet.getAABB(body, physicsClientId=self._client)
        drop = max(0.0, (high[2] - low[2]) / 2 - 0.035)  # tall things hang lower, clear of the palm
        spot = [self._goal[0], self._goal[1], self._goal[2] - drop]
        self._command_arm(0.0)
        for _ in range(48):
            pybullet.resetBasePositionAndOrientation(body, spot, turn, physicsClientId=self._client)
            pybullet.resetBaseVelocity(body, [0, 0, 0], [0, 0, 0], physicsClientId=self._client)
            pybullet.stepSimulation(physicsClientId=self._client)
        self._settle(SETTLE_STEPS // 2)

    def _spawn(self, spec: ObjectSpec | FixtureSpec, position: tuple[float, ...], turn: tuple[float, ...]) -> int:
        c = self._client
        flags = pybullet.URDF_USE_INERTIA_FROM_FILE
        body: int = pybullet.loadURDF(str(self._urdfs[spec.name]), position, turn, flags=flags, physicsClientId=c)
        friction = spec.friction if isinstance(spec, ObjectSpec) else 0.8
        pybullet.changeDynamics(
            body, -1, lateralFriction=friction, rollingFriction=0.001, spinningFriction=0.002, physicsClientId=c
        )
        return body

    # ------------------------------------------------------------------ step

    def step(self, action: NDArray[np.float32]) -> None:
        """Move by the action's translation and yaw, then open or close the gripper if it is asked to."""
        action = actions.clip(action)
        command = int(action[4])
        reach = np.array(self._tip_position())
        goal = np.clip(self._goal + action[:3], *WORKSPACE_M)
        self._goal = np.clip(goal, reach - 0.08, reach + 0.08)  # a blocked arm does not wind its goal up
        self._yaw = float(np.clip(self._yaw + action[3], -2.0, 2.0))
        closed = self._finger_goal == 0.0
        self._command_arm(self._finger_goal)
        self._settle(STEPS_PER_ACTION)
        if (command == actions.CLOSE and not closed) or (command == actions.OPEN and closed):
            self._command_arm(0.0 if command == actions.CLOSE else FINGER_OPEN_M)
            self._settle(STEPS_PER_GRIPPER_COMMAND)

    def _settle(self, steps: int) -> None:
        for _ in range(steps):
            pybullet.stepSimulation(physicsClientId=self._client)

    def _tip_position(self) -> tuple[float, float, float]:
        state = pybullet.getLinkState(self._panda, TIP_LINK, physicsClientId=self._client)
        return tuple(state[4])  # type: ignore[return-value]

    def _joint_goal(self, iterations: int) -> list[float]:
        turn = pybullet.getQuaternionFromEuler([np.pi, 0.0, self._yaw])
        joints = pybullet.calculateInverseKinematics(
            self._panda,
            TIP_LINK,
            self._goal.tolist(),
            turn,
            maxNumIterations=iterations,
            residualThreshold=1e-5,
            physicsClientId=self._client,
        )
        return list(joints[:7])

    def _set_arm(self, finger_m: float) -> None:
        for joint, angle in zip(ARM_JOINTS, HOME_RAD, strict=True):
            pybullet.resetJointState(self._panda, joint, angle, physicsClientId=self._client)
        for joint, angle in zip(ARM_JOINTS, self._joint_goal(200), strict=True):
            pybullet.resetJointState(self._panda, joint, angle, physicsClientId=self._client)
        for joint in FINGER_LINKS:
            pybullet.resetJointState(self._panda, joint, finger_m, physicsClientId=self._client)
        self._command_arm(finger_m)

    def _command_arm(self, finger_m: float) -> None:
        self._finger_goal = finger_m
        pybullet.setJointMotorControlArray(
            self._panda,
            ARM_JOINTS,
            pybullet.POSITION_CONTROL,
            targetPositions=self._joint_goal(30),
            forces=ARM_FORCES_N_M,
            positionGains=[0.12] * 7,
            physicsClientId=self._client,
        )
        pybullet.setJointMotorControlArray(
            self._panda,
            FINGER_LINKS,
            pybullet.POSITION_CONTROL,
            targetPositions=[finger_m] * 2,
            forces=[FINGER_FORCE_N] * 2,
            physicsClientId=self._client,
        )

    # ------------------------------------------------------------------ observe

    def render(self) -> NDArray[np.uint8]:
        return self.camera.render()

    def snapshot(self) -> SceneState:
        c = self._client
        state = SceneState.empty()
        object_of = {body: index for index, body in self._objects.items()}
        fixture_of = {body: index for index, body in self._fixtures.items()}
        for index, body in self._objects.items():
            position, turn = pybullet.getBasePositionAndOrientation(body, physicsClientId=c)
            velocity, spin = pybullet.getBaseVelocity(body, physicsClientId=c)
            state["object_present"][index] = 1
            state["object_position"][index] = position
            state["object_orientation"][index] = turn
            state["object_velocity"][index] = velocity
            state["object_spin"][index] = spin
            state["object_bottom"][index] = self._bottom(body)
        for index, body in self._fixtures.items():
            position, turn = pybullet.getBasePositionAndOrientation(body, physicsClientId=c)
            state["fixture_present"][index] = 1
            state["fixture_position"][index] = position
            state["fixture_orientation"][index] = turn
        for index, body in self._objects.items():
            for contact in pybullet.getContactPoints(bodyA=body, physicsClientId=c):
                other, link, distance = contact[2], contact[4], contact[8]
                if distance > CONTACT_M:
                    continue
                if other == self._table:
                    state["object_on_table"][index] = 1
                elif other == self._panda and link in FINGER_LINKS:
                    state["object_on_finger"][index, FINGER_LINKS.index(link)] = 1
                elif other in object_of:
                    state["object_on_object"][index] = 1
                elif other in fixture_of:
                    state["object_on_fixture"][index, fixture_of[other]] = 1
        tip = pybullet.getLinkState(self._panda, TIP_LINK, physicsClientId=c)
        state["gripper_position"][:] = tip[4]
        state["gripper_orientation"][:] = tip[5]
        fingers = pybullet.getJointStates(self._panda, FINGER_LINKS, physicsClientId=c)
        state["finger_width"][...] = fingers[0][0] + fingers[1][0]
        state["gripper_closed"][...] = float(self._finger_goal == 0.0)
        held = np.flatnonzero((state["object_on_finger"] > 0).all(-1))
        state["held"][...] = held[0] if len(held) else -1
        state["target"][...] = self._task.target
        return state

    def _bottom(self, body: int) -> float:
        low, _ = pybullet.getAABB(body, physicsClientId=self._client)
        return float(low[2])


def _turned(tilt: tuple[float, float, float], yaw: float) -> tuple[float, ...]:
    first = pybullet.getQuaternionFromEuler(tilt)
    then = pybullet.getQuaternionFromEuler([0, 0, yaw])
    _, turn = pybullet.multiplyTransforms([0, 0, 0], then, [0, 0, 0], first)
    return tuple(turn)


def _rotate(turn: tuple[float, ...], vector: tuple[float, float, float]) -> NDArray[np.float64]:
    point, _ = pybullet.multiplyTransforms([0, 0, 0], turn, vector, [0, 0, 0, 1])
    return np.array(point)


def _free_spot(
    taken: list[NDArray[np.float64]], gap: float, area: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """A point of the area at least `gap` metres from the others, or the farthest of 50 draws."""
    draws = rng.uniform(area[0], area[1], (50, 2))
    if not taken:
        return draws[0]
    distance = np.linalg.norm(draws[:, None] - np.array(taken)[None], axis=-1).min(axis=1)
    good = np.flatnonzero(distance >= gap)
    return draws[good[0] if len(good) else int(distance.argmax())]
