"""Cameras and renderers: an over-the-shoulder view, through EGL (Mesa or a GPU) or PyBullet's TinyRenderer.

The two renderers shade differently, so the renderer's name travels with every dataset and every checkpoint.
A process has one EGL instance at most (PyBullet's own limit).
"""

from __future__ import annotations

import importlib.util
import multiprocessing as mp
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pybullet
from numpy.typing import NDArray

from sim.options import choose
from sim.views import RENDERERS, SMALL_PX, CameraSpec

EGL_FROM_PX = 160  # below this TinyRenderer is the faster of the two on a CPU (bench/world.py)


class Camera:
    """Renders the scene of one PyBullet client as uint8 `[size, size, 3]`."""

    def __init__(self, client: int, size: int, renderer: str = "auto", spec: CameraSpec | None = None) -> None:
        if size < SMALL_PX[0]:
            raise ValueError(f"the image size is at least {SMALL_PX[0]} px, got {size}")
        choose("renderer", renderer, RENDERERS)
        self.size = size
        self._client = client
        spec = spec or CameraSpec()
        self._view = pybullet.computeViewMatrix(spec.eye_m, spec.look_at_m, [0, 0, 1])
        self._projection = pybullet.computeProjectionMatrixFOV(spec.field_of_view_deg, 1.0, spec.near_m, spec.far_m)
        self._plugin = -1
        if renderer == "egl" or (renderer == "auto" and size >= EGL_FROM_PX):
            self._plugin = _load_egl(client)
            if self._plugin < 0 and renderer == "egl":
                raise ValueError("EGL rendering does not start on this machine: use --renderer tiny or auto")
        self.renderer = "egl" if self._plugin >= 0 else "tiny"

    def render(self, size: int | None = None) -> NDArray[np.uint8]:
        """The view as uint8 [size, size, 3]; another size than the camera's own is for people to look at."""
        size = size or self.size
        _, _, rgba, _, _ = pybullet.getCameraImage(
            size,
            size,
            self._view,
            self._projection,
            lightDirection=[0.03, -0.03, 1.0],
            lightColor=[1.0, 1.0, 1.0],
            lightAmbientCoeff=0.55,
            lightDiffuseCoeff=0.5,
            lightSpecularCoeff=0.05,
            shadow=0,
            flags=pybullet.ER_NO_SEGMENTATION_MASK,
            renderer=pybullet.ER_BULLET_HARDWARE_OPENGL if self._plugin >= 0 else pybullet.ER_TINY_RENDERER,
            physicsClientId=self._client,
        )
        return np.ascontiguousarray(np.asarray(rgba, np.uint8).reshape(size, size, 4)[..., :3])

    def close(self) -> None:
        if self._plugin >= 0:
            pybullet.unloadPlugin(self._plugin, physicsClientId=self._client)


def _load_egl(client: int) -> int:
    spec = importlib.util.find_spec("eglRenderer")
    if spec is None or spec.origin is None:
        return -1
    load: Callable[..., int] = pybullet.loadPlugin
    return load(spec.origin, "_eglRendererPlugin", physicsClientId=client)


def resolve_renderer(renderer: str, size: int) -> str:
    """Which renderer this means for pictures of `size` px here; tried in its own process, as drivers may crash."""
    choose("renderer", renderer, RENDERERS)
    if renderer == "tiny" or (renderer == "auto" and size < EGL_FROM_PX):
        return "tiny"
    with ProcessPoolExecutor(1, mp_context=mp.get_context("spawn")) as pool:
        try:
            return pool.submit(_try_renderer, renderer, size).result()
        except BrokenProcessPool:
            if renderer == "auto":
                return "tiny"
            raise ValueError(f"renderer {renderer} crashes on this machine: use --renderer tiny") from None


def _try_renderer(renderer: str, size: int) -> str:
    client = pybullet.connect(pybullet.DIRECT)
    try:
        camera = Camera(client, size, renderer)
        camera.render()
        camera.close()
        return camera.renderer
    finally:
        pybullet.disconnect(client)
