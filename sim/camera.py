"""The camera of a world: draws with OpenGL where EGL starts, or with PyBullet's TinyRenderer.

The two shade differently, so the renderer's name travels with every dataset and every checkpoint.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.bullet import pybullet
from sim.drawing import Body, Geometry
from sim.forks import check_not_forked
from sim.looks import Paint
from sim.meshes import Mesh
from sim.opengl import OpenGLError, OpenGLRenderer, open_context
from sim.options import check_choice
from sim.scenes import Scene
from sim.tiny import TinyRenderer
from sim.views import RENDERERS, SMALL_PX

EGL_PACKAGES = "libegl1 libgl1 libgl1-mesa-dri"  # Debian's and Ubuntu's names, for a machine without a GPU


class Camera:
    """Draws the scene of one PyBullet client; `size` is the side of its pictures in px."""

    def __init__(self, size: int, renderer: str) -> None:
        if size < SMALL_PX[0]:
            raise ValueError(f"the image size is at least {SMALL_PX[0]} px, got {size}")
        self.size = size
        self._asked = check_choice("renderer", renderer, RENDERERS)

    @functools.cached_property
    def renderer(self) -> str:
        """egl or tiny; ValueError for EGL where there is none."""
        return resolve_renderer(self._asked)

    def open(self, client: int, folder: Path, meshes: dict[str, list[Mesh]], paints: list[Paint]) -> None:
        """Start drawing bodies of this client with these meshes and paints; TinyRenderer keeps files in the folder."""
        self._client, self._process = client, os.getpid()
        self._draw: OpenGLRenderer | TinyRenderer
        self._draw = OpenGLRenderer(meshes, paints) if self.renderer == "egl" else TinyRenderer(client, folder)

    def dress(self, scene: Scene, bodies: list[Body]) -> None:
        """Take the looks, the light and the view of a scene that consists of these bodies."""
        self._bodies = bodies
        self._draw.dress(scene, bodies)

    def render(self, size: int | None = None) -> NDArray[np.uint8]:
        """The view as uint8 [size, size, 3]; another size than the camera's own is for people to look at."""
        return self._draw.render(size or self.size, self._poses())

    def geometry(self, size: int | None = None) -> Geometry:
        """Depth and segmentation of the view."""
        return self._draw.geometry(size or self.size, self._poses())

    def close(self) -> None:
        self._draw.close()

    def check_process(self) -> None:
        """ValueError in a process that was forked since `open`."""
        check_not_forked("this world", self._process)

    def _poses(self) -> list[NDArray[np.float64]]:
        self.check_process()
        if self.renderer != "egl":
            return []
        poses = []
        links = [body.link for body in self._bodies if body.link >= 0]
        robot = next(body.uid for body in self._bodies if body.link >= 0)
        states = dict(zip(links, pybullet.getLinkStates(robot, links, physicsClientId=self._client), strict=True))
        for body in self._bodies:
            if body.link >= 0:
                position, turn = states[body.link][4:6]
            elif body.uid == robot:
                position, turn = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)  # PyBullet tells its centre of mass
            else:
                position, turn = pybullet.getBasePositionAndOrientation(body.uid, physicsClientId=self._client)
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = np.reshape(pybullet.getMatrixFromQuaternion(turn), (3, 3)), position
            poses.append(pose)
        return poses


def resolve_renderer(renderer: str) -> str:
    """Which renderer this means on this machine; ValueError for EGL where there is none."""
    if check_choice("renderer", renderer, RENDERERS) == "tiny":
        return "tiny"
    reason = _why_no_egl()
    if not reason:
        return "egl"
    if renderer == "egl":
        raise ValueError(f"{reason}: use --renderer tiny, or install EGL ({EGL_PACKAGES})")
    _say(f"rendering with TinyRenderer, several times slower: {reason}; for EGL install {EGL_PACKAGES}")
    return "tiny"


@functools.cache
def _say(line: str) -> None:
    """Once in a process."""
    print(line, file=sys.stderr)


@functools.cache
def _why_no_egl() -> str:
    """Empty where EGL starts."""
    try:
        open_context().release()
    except OpenGLError as error:
        return str(error)
    return ""
