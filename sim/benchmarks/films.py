"""Frames of the state benchmarks, rendered off screen by MuJoCo, for films and pictures; learning needs none."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.benchmarks.mazes import CELL_M, MAZES, RADIUS_M, goal_of
from sim.benchmarks.spec import Benchmark, MissingSimulatorError
from sim.film_files import captioned

if TYPE_CHECKING:
    from PIL import Image

MAX_FRAMES = 100  # of an episode
ActAlone = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # observation [S] -> action [A]


@dataclass(frozen=True, kw_only=True)
class View:
    """A camera that looks at a place (m); `follows`: at the body's centre of mass."""

    at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    distance_m: float = 4.0
    azimuth_deg: float = 90.0
    elevation_deg: float = -15.0
    follows: bool = False


FOLLOWING = View(follows=True)
VIEWS = {"desk": View(at=(0.1, 0.7, 0.1), distance_m=1.5, elevation_deg=-60.0)}


def view_of(benchmark: str) -> View:
    """Where a film looks from: mazes from above, bodies from the side."""
    if (maze := MAZES.get(benchmark)) is None:
        return VIEWS.get(benchmark, FOLLOWING)
    rows, columns = len(maze.rows), len(maze.rows[0])
    x, y = ((np.array([columns, rows]) - 1) / 2 - maze.start[::-1]) * CELL_M
    return View(at=(x, y, 0.0), distance_m=5.2 * max(rows, columns), elevation_deg=-80.0)


def film(benchmark: Benchmark, task: str, act: ActAlone, seed: int, size_px: int) -> list[Image.Image]:
    """Captioned frames of an episode, some `MAX_FRAMES` of a whole one. ValueError for a benchmark that MuJoCo does not
    simulate; MissingSimulatorError where it cannot render."""
    env: Any = benchmark.make_env()
    if not hasattr(env, "simulation"):
        raise ValueError(f"{benchmark.name} is not simulated by MuJoCo, which renders the films")
    spec, maze = benchmark.tasks[benchmark.task_index(task)], MAZES.get(benchmark.name)
    goal = None if maze is None else maze.middle(goal_of(maze, task))
    frames, now, number, done, success = [], env.reset(task, seed), 0, False, False
    model, data = env.simulation()
    model.vis.global_.offwidth = model.vis.global_.offheight = size_px
    try:
        renderer = _renderer(model, size_px)
    except Exception as error:  # of several kinds, by what is missing
        raise MissingSimulatorError(f"MuJoCo renders no films here ({error}); install EGL, or set MUJOCO_GL") from None
    with renderer:
        while True:
            if number % -(-benchmark.horizon // MAX_FRAMES) == 0 or done:
                image = _render(renderer, model, data, view_of(benchmark.name), goal)
                frames.append(captioned(image, f"{benchmark.name} {task}, step {number}", [task] * success))
            if done:
                break
            step = env.step(act(now))
            now, number = step.observation, number + 1
            success = spec.success is not None and bool(spec.success(step.quantities))
            done = step.terminated or step.truncated or spec.ends(step.quantities)
    env.close()
    return frames


def _renderer(model: Any, size_px: int) -> Any:
    """By EGL, unless MUJOCO_GL names something else: without a display MuJoCo's default ends the process."""
    import mujoco
    import mujoco.gl_context

    if "torch" in sys.modules:  # whose compiler crashes where it is loaded after OpenGL
        with contextlib.suppress(ImportError):
            import triton  # noqa: F401
    if not os.environ.get("MUJOCO_GL"):
        from mujoco.egl import GLContext

        mujoco.gl_context.GLContext = GLContext
    return mujoco.Renderer(model, size_px, size_px)


def _render(renderer: Any, model: Any, data: Any, view: View, goal: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    import mujoco

    camera = mujoco.MjvCamera()
    camera.lookat[:] = data.subtree_com[1] if view.follows else view.at
    camera.distance, camera.azimuth, camera.elevation = view.distance_m, view.azimuth_deg, view.elevation_deg
    renderer.update_scene(data, camera)
    if goal is not None:
        scene = renderer.scene
        size, place, colour = np.full(3, RADIUS_M), np.array([*goal, 0.0]), np.array([0.8, 0.1, 0.2, 1.0])
        sphere = mujoco.mjtGeom.mjGEOM_SPHERE
        mujoco.mjv_initGeom(scene.geoms[scene.ngeom], sphere, size, place, np.eye(3).ravel(), colour.astype(np.float32))
        scene.ngeom += 1
    image: NDArray[np.uint8] = renderer.render()
    return image
