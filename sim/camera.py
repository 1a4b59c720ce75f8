"""The camera of a world: renders with OpenGL where EGL starts, else with PyBullet's TinyRenderer.

The two shade differently, so every dataset and every checkpoint records the renderer's name.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.bullet import pybullet
from sim.drawing import RENDERERS, Geometry, RenderBody
from sim.forks import check_not_forked
from sim.image_sizes import SMALL_PX
from sim.meshes import Mesh
from sim.opengl import OpenGLError, OpenGLRenderer, open_context
from sim.options import check_choice
from sim.scenes import Scene
from sim.tiny import TinyRenderer

EGL_PACKAGES = "libegl1 libgl1 libgl1-mesa-dri"  # Debian's and Ubuntu's names, for a machine without a GPU


class Camera:
    """Renders the scene of one PyBullet client; `size` is the side of its images in px."""

    def __init__(self, size: int, renderer: str) -> None:
        if size < SMALL_PX[0]:
            raise ValueError(f"the image size is at least {SMALL_PX[0]} px, got {size}")
        self.size = size
        self._requested = check_choice("renderer", renderer, RENDERERS)

    @functools.cached_property
    def renderer(self) -> str:
        """egl or tiny; ValueError if EGL is asked for and does not start."""
        return resolve_renderer(self._requested)

    def open(self, client: int, folder: Path, meshes: dict[str, list[Mesh]]) -> None:
        """Starts the renderer with all meshes; TinyRenderer writes its files to `folder`."""
        self._client, self._process = client, os.getpid()
        self._renderer: OpenGLRenderer | TinyRenderer
        self._renderer = OpenGLRenderer(meshes) if self.renderer == "egl" else TinyRenderer(client, folder)

    def set_appearance(self, scene: Scene, bodies: list[RenderBody]) -> None:
        """Takes materials, light and camera pose from the scene; `bodies` are all that is rendered from now on."""
        self._bodies = bodies
        self._renderer.set_appearance(scene, bodies)

    def render(self, size: int | None = None) -> NDArray[np.uint8]:
        """Renders an image, uint8 [size, size, 3]. A size other than the camera's own is for people to look at."""
        return self._renderer.render(size or self.size, self._poses())

    def geometry(self, size: int | None = None) -> Geometry:
        """Renders depth and segmentation."""
        return self._renderer.geometry(size or self.size, self._poses())

    def close(self) -> None:
        self._renderer.close()

    def check_process(self) -> None:
        """Raises ValueError in a process that was forked since `open`."""
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
                position, orientation = states[body.link][4:6]
            elif body.uid == robot:
                position, orientation = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)  # PyBullet returns the centre of mass
            else:
                position, orientation = pybullet.getBasePositionAndOrientation(body.uid, physicsClientId=self._client)
            pose = np.eye(4)
            pose[:3, :3] = np.reshape(pybullet.getMatrixFromQuaternion(orientation), (3, 3))
            pose[:3, 3] = position
            poses.append(pose)
        return poses


def resolve_renderer(renderer: str) -> str:
    """Resolves auto to egl or tiny on this machine; ValueError if egl is asked for and does not start."""
    if check_choice("renderer", renderer, RENDERERS) == "tiny":
        return "tiny"
    reason = _why_no_egl()
    if not reason:
        return "egl"
    if renderer == "egl":
        raise ValueError(f"{reason}: use --renderer tiny, or install EGL ({EGL_PACKAGES})")
    _warn_once(f"rendering with TinyRenderer, several times slower: {reason}; for EGL install {EGL_PACKAGES}")
    return "tiny"


@functools.cache
def _warn_once(line: str) -> None:
    print(line, file=sys.stderr)


@functools.cache
def _why_no_egl() -> str:
    """Why EGL does not start; empty if it does."""
    try:
        open_context().release()
    except OpenGLError as error:
        return str(error)
    return ""
