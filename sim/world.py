"""The pick-place world: a Franka Panda at a table, simulated by PyBullet. The only file that steps the physics.

After `reset` everything moves by physics alone: the fingers hold by friction, without constraint or teleport.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim import actions
from sim.bodies import BodySpec
from sim.bullet import pybullet
from sim.camera import Camera
from sim.drawing import TABLE, Geometry, RenderBody
from sim.materials import TABLE_TEXTURE_M, Material
from sim.meshes import Mesh, Point, box, hull, inertia, smooth
from sim.objects import FIXTURES, OBJECTS
from sim.rotations import rotate
from sim.scenes import Item, Scene
from sim.state import FIXTURE_NAMES, OBJECT_NAMES, SceneState
from sim.urdf import read_obj, write_body, write_panda

TIMESTEP_S = 1 / 240
FINE_STEPS = 4  # substeps while an object falls or tumbles fast: a fall of 30 cm ends at 2.4 m/s, 10 mm in 1/240 s
FAST_M_S, FAST_RAD_S = 0.7, 10.0
SPEED_CHECK_EVERY = 4  # steps
STEPS_PER_ACTION = 40  # 6 actions per second
STEPS_PER_GRIPPER_COMMAND = 24  # in addition, when the fingers move
SETTLE_STEPS = 30
WORKSPACE_M = np.array([[0.34, -0.30, 0.008], [0.70, 0.30, 0.36]])  # of the point between the fingertips
WINDUP_M = 0.08  # maximum distance between the goal and a blocked arm
FINGER_OPEN_M = 0.04  # each finger
FINGER_FORCE_N = 25.0
ARM_JOINTS = tuple(range(7))
FINGER_LINKS = (9, 10)
MOVING_JOINTS = (*ARM_JOINTS, *FINGER_LINKS)
TIP_LINK = 11  # "panda_grasptarget": the point between the fingertips
ARM_FORCES_N_M = [45.0, 45.0, 45.0, 45.0, 12.0, 12.0, 12.0]  # besides gravity compensation; rated 87 for large joints
ARM_GAIN, FINGER_GAIN = 0.12, 0.1  # fraction of the position error corrected per step
HOME_RAD = [0.0, -0.2, 0.0, -2.35, 0.0, 2.15, 0.785]
CONTACT_M = 0.0005
CONTACT_ERP = 0.4  # of a penetration undone per step; at 0.2 a pressed object sinks 9 mm, at 0.9 a falling one bounces
TABLE_M = ((1.50, 1.70, 0.20), (0.40, 0.0, -0.10))  # edges and centre; the top is z = 0
TABLE_FRICTION = 0.8
ACTUATION_NOISE = (0.05, 0.001, 0.009)  # standard deviations: fraction of the motion, m, rad
ROBOT_MATERIAL, FINGER_MATERIAL = Material((0.92, 0.92, 0.93)), Material((0.18, 0.18, 0.20))


class _Target(NamedTuple):
    """Gripper pose and command that an action asks for."""

    goal_m: NDArray[np.float64]
    yaw_rad: float
    command: int


class World:
    """A simulated scene. `reset` builds it, `step` acts, `snapshot` returns its state, `render` its camera image."""

    def __init__(self, image_size: int = 472, renderer: str = "auto") -> None:
        self.camera = Camera(image_size, renderer)
        self._client = -1

    def _open(self) -> None:
        """Starts PyBullet and the renderer. Called by the first reset, not earlier, because neither survives a fork."""
        visible = self.camera.renderer == "tiny"  # raises ValueError without EGL
        opened = contextlib.ExitStack()
        self._release = weakref.finalize(self, _release, os.getpid(), opened)
        self._client = pybullet.connect(pybullet.DIRECT)
        opened.callback(pybullet.disconnect, self._client)
        folder = Path(tempfile.mkdtemp(prefix="switchyard-"))
        opened.callback(shutil.rmtree, folder, ignore_errors=True)
        specs: list[BodySpec] = [*OBJECTS.values(), *FIXTURES.values()]
        shown = write_panda(folder, visible=True)
        self._panda_urdf = shown if visible else write_panda(folder, visible=False)
        self._urdfs = {spec.name: write_body(spec, folder, visible) for spec in specs}
        self._inertia = {spec.name: inertia(list(spec.parts), 1.0) for spec in specs}
        self._hulls = [hull(list(spec.parts)) for spec in OBJECTS.values()]
        self._robot, meshes = self._robot_bodies(shown)
        meshes |= {spec.name: list(spec.parts) for spec in specs} | {TABLE: [_table_mesh()]}
        self.camera.open(self._client, folder, meshes)
        opened.callback(self.camera.close)

    def close(self) -> None:
        """Releases PyBullet and the renderer; also happens when the world is garbage-collected."""
        if self._client >= 0:
            self._release()
            self._client = -1

    # ------------------------------------------------------------------ reset

    def reset(self, scene: Scene) -> None:
        """Builds a scene and lets it settle."""
        if self._client < 0:
            try:
                self._open()
            except OSError as error:
                self.close()
                raise OSError(error.errno, error.strerror, error.filename or tempfile.gettempdir()) from error
            except BaseException:
                self.close()
                raise
        self.camera.check_process()
        self._objects: dict[int, int] = {}  # index in OBJECT_NAMES -> PyBullet body
        self._fixtures: dict[int, int] = {}
        self._load_table_and_robot()
        self.scene = scene
        self._rng = np.random.default_rng(scene.noise_seed)
        self._yaw, self._goal = scene.start_yaw_rad, np.array(scene.start_m)
        self._delayed = deque([_Target(self._goal, self._yaw, actions.NONE)] * scene.delay_steps)
        self._set_arm(FINGER_OPEN_M)
        for item in scene.fixtures:
            spec = FIXTURES[FIXTURE_NAMES[item.index]]
            self._fixtures[item.index] = self._spawn(spec, item, (*item.position_xy_m, 0.001))
        for item in scene.objects:
            height = 0.001 - self._lowest(item, item.orientation)
            self._objects[item.index] = self._spawn(
                OBJECTS[OBJECT_NAMES[item.index]], item, (*item.position_xy_m, height)
            )
        if scene.task.skill == "place":
            self._put_into_hand(scene.objects[0])
        else:
            self._simulate(SETTLE_STEPS)
        self.camera.set_appearance(scene, self._bodies())

    def _load_table_and_robot(self) -> None:
        """Starts from an empty simulation: reused or recreated bodies would change the last bits of equal episodes."""
        c = self._client
        self._substeps = 1
        pybullet.resetSimulation(physicsClientId=c)
        pybullet.setGravity(0, 0, -9.81, physicsClientId=c)
        pybullet.setPhysicsEngineParameter(
            fixedTimeStep=TIMESTEP_S,
            numSubSteps=1,
            numSolverIterations=30,
            contactERP=CONTACT_ERP,
            deterministicOverlappingPairs=1,
            physicsClientId=c,
        )
        size, centre = TABLE_M
        half = [edge / 2 for edge in size]
        shape = pybullet.createCollisionShape(pybullet.GEOM_BOX, halfExtents=half, physicsClientId=c)
        visual = -1
        if self.camera.renderer == "tiny":
            mesh = _table_mesh()
            visual = pybullet.createVisualShape(
                pybullet.GEOM_MESH,
                vertices=mesh.vertices.tolist(),
                indices=list(range(len(mesh.vertices))),
                normals=mesh.normals.tolist(),
                uvs=mesh.uv.tolist(),
                physicsClientId=c,
            )
        self._table = pybullet.createMultiBody(0, shape, visual, centre, physicsClientId=c)
        pybullet.changeDynamics(self._table, -1, lateralFriction=TABLE_FRICTION, physicsClientId=c)
        self._panda = pybullet.loadURDF(str(self._panda_urdf), useFixedBase=True, physicsClientId=c)
        for link in FINGER_LINKS:
            pybullet.changeDynamics(
                self._panda, link, lateralFriction=1.2, spinningFriction=0.02, rollingFriction=0.002, physicsClientId=c
            )

    def _robot_bodies(self, urdf: Path) -> tuple[list[RenderBody], dict[str, list[Mesh]]]:
        """The Panda's links as bodies to render, and their meshes."""
        c = self._client
        panda = pybullet.loadURDF(str(urdf), useFixedBase=True, physicsClientId=c)
        bodies, meshes = [], {}
        for _, link, _, _, path, position, orientation, *_ in pybullet.getVisualShapeData(panda, physicsClientId=c):
            vertices, faces = read_obj(Path(path.decode()))
            name = f"robot-{link}"
            meshes[name] = [smooth(rotate(np.array(orientation), vertices) + np.array(position), faces, 0.75)]
            material = FINGER_MATERIAL if link in FINGER_LINKS else ROBOT_MATERIAL
            bodies.append(
                RenderBody(name=name, segment="robot", uid=panda, link=link, materials=(material,), gloss=0.12)
            )
        pybullet.removeBody(panda, physicsClientId=c)
        return bodies, meshes

    def _bodies(self) -> list[RenderBody]:
        """All bodies to render, the table first."""
        scene = self.scene
        table = RenderBody(
            name=TABLE, segment=TABLE, uid=self._table, materials=(scene.table_material,), tint=scene.table_tint
        )
        bodies = [table, *(replace(body, uid=self._panda) for body in self._robot)]
        items: list[tuple[Item, BodySpec, int]] = [
            *((item, OBJECTS[OBJECT_NAMES[item.index]], self._objects[item.index]) for item in scene.objects),
            *((item, FIXTURES[FIXTURE_NAMES[item.index]], self._fixtures[item.index]) for item in scene.fixtures),
        ]
        for item, spec, uid in items:
            bodies.append(
                RenderBody(
                    name=spec.name,
                    segment=spec.name,
                    uid=uid,
                    scale=item.scale,
                    materials=item.appearance,
                    tint=item.tint,
                    gloss=0.18,
                )
            )
        return bodies

    def _put_into_hand(self, item: Item) -> None:
        """Closes the fingers on an object, which is kept in place until they hold it."""
        body = self._objects[item.index]
        drop = max(0.0, -self._lowest(item, item.orientation) - 0.035)  # tall objects hang lower, clear of the palm
        position = [self._goal[0], self._goal[1], self._goal[2] - drop]
        self._command(self._goal, self._yaw, 0.0)
        for _ in range(48):
            pybullet.resetBasePositionAndOrientation(body, position, item.orientation, physicsClientId=self._client)
            pybullet.resetBaseVelocity(body, [0, 0, 0], [0, 0, 0], physicsClientId=self._client)
            self._simulate(1)
        self._simulate(SETTLE_STEPS)

    def _spawn(self, spec: BodySpec, item: Item, position: Point) -> int:
        c = self._client
        body: int = pybullet.loadURDF(
            str(self._urdfs[spec.name]), position, item.orientation, globalScaling=item.scale, physicsClientId=c
        )
        pybullet.changeDynamics(
            body,
            -1,
            mass=item.mass_kg,
            localInertiaDiagonal=(self._inertia[spec.name] * item.mass_kg * item.scale**2).tolist(),
            lateralFriction=item.friction,
            rollingFriction=0.001,
            spinningFriction=0.002,
            physicsClientId=c,
        )
        return body

    # ------------------------------------------------------------------ step

    def step(self, action: NDArray[np.float32]) -> None:
        """Moves by the action's translation and yaw, then executes its gripper command.

        With a delay, executes the previous action instead. Raises ValueError for an invalid action."""
        self.camera.check_process()
        action = actions.clip(action)
        relative, noise_m, noise_rad = ACTUATION_NOISE
        noise = self.scene.actuation_noise * self._rng.normal(size=(4, 2))
        motion = action[:4] * (1 + relative * noise[:, 0]) + noise[:, 1] * [*[noise_m] * 3, noise_rad]
        reach = WINDUP_M + len(self._delayed) * actions.MAX_TRANSLATION_M
        tip = np.array(self._tip_position())
        goal = np.clip(self._goal + motion[:3], *WORKSPACE_M)
        self._goal = np.clip(goal, tip - reach, tip + reach)  # anti-windup for a blocked arm
        self._yaw = float(np.clip(self._yaw + motion[3], -2.0, 2.0))
        self._delayed.append(_Target(self._goal, self._yaw, int(action[4])))
        self._execute(self._delayed.popleft())

    def _execute(self, target: _Target) -> None:
        closed = self._finger_goal == 0.0
        self._command(target.goal_m, target.yaw_rad, self._finger_goal)
        self._simulate(STEPS_PER_ACTION)
        if (target.command == actions.CLOSE and not closed) or (target.command == actions.OPEN and closed):
            self._command(target.goal_m, target.yaw_rad, 0.0 if target.command == actions.CLOSE else FINGER_OPEN_M)
            self._simulate(STEPS_PER_GRIPPER_COMMAND)

    def _simulate(self, steps: int) -> None:
        for number in range(steps):
            if number % SPEED_CHECK_EVERY == 0:
                self._update_substeps()
            pybullet.setJointMotorControlArray(  # torques last for one step
                self._panda,
                ARM_JOINTS,
                pybullet.TORQUE_CONTROL,
                forces=self._gravity_torques_n_m,
                physicsClientId=self._client,
            )
            pybullet.stepSimulation(physicsClientId=self._client)

    def _update_substeps(self) -> None:
        """Uses finer steps while an object falls or tumbles fast."""
        steps = 1
        for body in self._objects.values():
            (_, _, fall), (roll, pitch, _) = pybullet.getBaseVelocity(body, physicsClientId=self._client)
            if abs(fall) / FAST_M_S + (abs(roll) + abs(pitch)) / FAST_RAD_S > 1:
                steps = FINE_STEPS
        if steps != self._substeps:
            self._substeps = steps
            pybullet.setPhysicsEngineParameter(numSubSteps=steps, physicsClientId=self._client)
            self._drive()

    def _tip_position(self) -> tuple[float, float, float]:
        state = pybullet.getLinkState(self._panda, TIP_LINK, physicsClientId=self._client)
        return tuple(state[4])  # type: ignore[return-value]

    def _joint_goal(self, goal_m: NDArray[np.float64], yaw_rad: float, iterations: int) -> list[float]:
        orientation = pybullet.getQuaternionFromEuler([np.pi, 0.0, yaw_rad])
        joints = pybullet.calculateInverseKinematics(
            self._panda,
            TIP_LINK,
            goal_m.tolist(),
            orientation,
            maxNumIterations=iterations,
            residualThreshold=1e-5,
            physicsClientId=self._client,
        )
        return list(joints[:7])

    def _set_arm(self, finger_m: float) -> None:
        for joint, angle in zip(ARM_JOINTS, HOME_RAD, strict=True):
            pybullet.resetJointState(self._panda, joint, angle, physicsClientId=self._client)
        for joint, angle in zip(ARM_JOINTS, self._joint_goal(self._goal, self._yaw, 200), strict=True):
            pybullet.resetJointState(self._panda, joint, angle, physicsClientId=self._client)
        for joint in FINGER_LINKS:
            pybullet.resetJointState(self._panda, joint, finger_m, physicsClientId=self._client)
        self._command(self._goal, self._yaw, finger_m)

    def _command(self, goal_m: NDArray[np.float64], yaw_rad: float, finger_m: float) -> None:
        c = self._client
        self._arm_goal, self._finger_goal = self._joint_goal(goal_m, yaw_rad, 30), finger_m
        angles = [state[0] for state in pybullet.getJointStates(self._panda, MOVING_JOINTS, physicsClientId=c)]
        still = [0.0] * len(angles)
        torques = pybullet.calculateInverseDynamics(self._panda, angles, still, still, physicsClientId=c)
        self._gravity_torques_n_m = torques[: len(ARM_JOINTS)]  # gravity compensation, as in the Panda's controller
        self._drive()

    def _drive(self) -> None:
        """Sets the motor goals, with gains that keep the speed per action in finer steps."""
        for joints, goals, forces, gain in (
            (ARM_JOINTS, self._arm_goal, ARM_FORCES_N_M, ARM_GAIN),
            (FINGER_LINKS, [self._finger_goal] * 2, [FINGER_FORCE_N] * 2, FINGER_GAIN),
        ):
            pybullet.setJointMotorControlArray(
                self._panda,
                joints,
                pybullet.POSITION_CONTROL,
                targetPositions=goals,
                forces=forces,
                positionGains=[gain / self._substeps] * len(joints),
                physicsClientId=self._client,
            )

    # ------------------------------------------------------------------ observe

    def render(self) -> NDArray[np.uint8]:
        """Renders the camera image, uint8 [H, W, 3]."""
        return self.camera.render()

    def geometry(self) -> Geometry:
        """Renders depth and segmentation of the camera image."""
        return self.camera.geometry()

    def snapshot(self) -> SceneState:
        """Reads the privileged state of the scene."""
        c = self._client
        state = SceneState.empty()
        object_of = {body: index for index, body in self._objects.items()}
        fixture_of = {body: index for index, body in self._fixtures.items()}
        for item in self.scene.objects:
            index, body = item.index, self._objects[item.index]
            position, orientation = pybullet.getBasePositionAndOrientation(body, physicsClientId=c)
            velocity, angular_velocity = pybullet.getBaseVelocity(body, physicsClientId=c)
            state["object_present"][index] = 1
            state["object_position"][index] = position
            state["object_orientation"][index] = orientation
            state["object_velocity"][index] = velocity
            state["object_angular_velocity"][index] = angular_velocity
            state["object_bottom"][index] = position[2] + self._lowest(item, orientation)
        for index, body in self._fixtures.items():
            position, orientation = pybullet.getBasePositionAndOrientation(body, physicsClientId=c)
            state["fixture_present"][index] = 1
            state["fixture_position"][index] = position
            state["fixture_orientation"][index] = orientation
        for index, body in self._objects.items():
            for contact in pybullet.getContactPoints(bodyA=body, physicsClientId=c):
                other, link, distance = contact[2], contact[4], contact[8]
                if distance > CONTACT_M:
                    continue
                if other == self._table:
                    state["object_on_table"][index] = 1
                elif other == self._panda and link in FINGER_LINKS:
                    state["object_on_finger"][index, FINGER_LINKS.index(link)] = 1
                elif other == self._panda:
                    state["object_on_arm"][index] = 1
                elif other in object_of:
                    state["object_on_object"][index] = 1
                elif other in fixture_of:
                    state["object_on_fixture"][index, fixture_of[other]] = 1
        tip = pybullet.getLinkState(self._panda, TIP_LINK, physicsClientId=c)
        state["gripper_position"][:] = tip[4]
        state["gripper_orientation"][:] = tip[5]
        state["gripper_goal"][:] = self._goal
        state["camera_position"][:] = self.scene.camera.eye_m
        state["camera_axes"][:] = self.scene.camera.axes()
        fingers = pybullet.getJointStates(self._panda, FINGER_LINKS, physicsClientId=c)
        state["finger_width"][...] = fingers[0][0] + fingers[1][0]
        state["gripper_closed"][...] = float(self._finger_goal == 0.0)
        held = np.flatnonzero((state["object_on_finger"] > 0).all(-1))
        state["held"][...] = held[0] if len(held) else -1
        state["target"][...] = self.scene.task.target
        return state

    def _lowest(self, item: Item, orientation: Sequence[float]) -> float:
        """Height (m) of an object's lowest point relative to its centre: a negative number."""
        down = pybullet.getMatrixFromQuaternion(orientation)[6:]
        return float((self._hulls[item.index] @ down).min()) * item.scale


def _release(process: int, opened: contextlib.ExitStack) -> None:
    """Closes a world, unless this is a fork of the process that opened it."""
    if os.getpid() == process:
        opened.close()


@functools.cache
def _table_mesh() -> Mesh:
    size, centre = TABLE_M
    mesh = box(size)
    return Mesh(mesh.vertices, mesh.normals, (mesh.vertices + np.array(centre))[:, :2] / TABLE_TEXTURE_M)
