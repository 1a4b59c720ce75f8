"""The ten tasks of the CDS paper (app. C.2) and their success detectors.

A detector is a pure predicate over a `SceneState`, live or from disk, with any leading dimensions. As in MT-Opt, every
detector applies to every episode: one collected for a task may succeed at another, or at none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sim.objects import FIXTURES
from sim.options import check_choice
from sim.state import FIXTURE_NAMES, OBJECT_NAMES, SceneState

LIFT_HEIGHT_M = 0.06  # the lowest point of a lifted object is at least this high
LEAST_GRIP_M = 0.005  # with a smaller gap the object lies on top of the fingers
REST_SPEED_M_S = 0.05  # a placed object is slower than both
REST_ANGULAR_SPEED_RAD_S = 1.0
STANDING_M = 0.02  # a fixture with a higher base does not stand on the table
UPRIGHT_COSINE = 0.94  # a fixture tilted by more than 20 degrees has tipped over


def lifted(state: SceneState, *, object_index: int) -> NDArray[np.bool_]:
    """True where the object is lifted: held between closed fingers, touching no table, other object or fixture."""
    i = object_index
    return (
        (state["object_present"][..., i] > 0)
        & (state["object_on_finger"][..., i, :] > 0).all(-1)
        & (state["gripper_closed"] > 0)
        & (state["finger_width"] >= LEAST_GRIP_M)
        & (state["object_bottom"][..., i] >= LIFT_HEIGHT_M)
        & (state["object_on_table"][..., i] == 0)
        & (state["object_on_object"][..., i] == 0)
        & (state["object_on_fixture"][..., i, :] == 0).all(-1)
    )


def placed(state: SceneState, *, fixture_index: int) -> NDArray[np.bool_]:
    """True where some object is placed: at rest inside the rim of the upright fixture, touching nothing else."""
    f = fixture_index
    quaternion = state["fixture_orientation"][..., f, :]
    up_z = 1.0 - 2.0 * (quaternion[..., 0] ** 2 + quaternion[..., 1] ** 2)
    offset = state["object_position"][..., :2] - state["fixture_position"][..., f, None, :2]
    resting = (
        (state["object_present"] > 0)
        & (state["object_on_fixture"][..., f] > 0)
        & (state["object_on_fixture"].sum(-1) == state["object_on_fixture"][..., f])
        & (state["object_on_table"] == 0)
        & (state["object_on_finger"] == 0).all(-1)
        & (state["object_on_arm"] == 0)
        & (np.linalg.norm(offset, axis=-1) <= FIXTURES[FIXTURE_NAMES[f]].inner_radius_m)
        & (np.linalg.norm(state["object_velocity"], axis=-1) < REST_SPEED_M_S)
        & (np.linalg.norm(state["object_angular_velocity"], axis=-1) < REST_ANGULAR_SPEED_RAD_S)
    )
    upright = (up_z >= UPRIGHT_COSINE) & (state["fixture_position"][..., f, 2] < STANDING_M)
    return (state["fixture_present"][..., f] > 0) & upright & resting.any(-1)


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task. `success(state) -> bool[...]` is its detector; `target` indexes the object (lift) or fixture."""

    name: str
    index: int
    skill: str
    target: int
    success: Callable[[SceneState], NDArray[np.bool_]]
    horizon: int = 25


def _table() -> dict[str, TaskSpec]:
    rows: list[tuple[str, str, int, Callable[[SceneState], NDArray[np.bool_]]]] = [
        (f"lift-{name}", "lift", i, partial(lifted, object_index=i)) for i, name in enumerate(OBJECT_NAMES)
    ]
    rows += [(f"place-{name}", "place", i, partial(placed, fixture_index=i)) for i, name in enumerate(FIXTURE_NAMES)]
    return {
        name: TaskSpec(name=name, index=index, skill=skill, target=target, success=success)
        for index, (name, skill, target, success) in enumerate(rows)
    }


TASKS: dict[str, TaskSpec] = _table()  # in the order of the task one-hot
TASK_NAMES: tuple[str, ...] = tuple(TASKS)
SKILLS: tuple[str, ...] = tuple(spec.skill for spec in TASKS.values())


def task_by_name(name: str) -> TaskSpec:
    return TASKS[check_choice("task", name, TASK_NAMES)]


def check_tasks(names: tuple[str, ...]) -> None:
    """Raises ValueError unless `names` are one or more different tasks."""
    if not names:
        raise ValueError("name at least one task")
    for name in names:
        task_by_name(name)
        if names.count(name) > 1:
            raise ValueError(f"task {name} is named twice")


def detect_successes(state: SceneState) -> NDArray[np.bool_]:
    """Runs every task's detector: states [...] -> bool [..., N], in the order of `TASKS`."""
    return np.stack([spec.success(state) for spec in TASKS.values()], axis=-1)
