"""Scenes as data: the randomised initial condition of an episode, sampled before any physics.

Each factor has its own random generator, so switching one off changes no other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.appearances import DEFAULT_TABLE, SPLITS, TEST_TABLES, WHITE, Appearance, sample_table
from sim.bodies import BodySpec, Footprint, ObjectSpec, is_upright
from sim.camera_geometry import CameraSpec
from sim.materials import Material
from sim.objects import FIXTURES, OBJECTS
from sim.options import check_choice
from sim.rotations import euler_quaternion, multiply, rotate
from sim.state import FIXTURE_NAMES, OBJECT_NAMES
from sim.tasks import TaskSpec

FACTORS: dict[str, str] = {  # of randomisation; datasets and checkpoints record these names
    "size": "of objects: up to 8% more or less; 8 to 14% in the held-out split",
    "mass": "of objects: 70 to 130% of the mass at their size",
    "friction": "of objects and fixtures: 80 to 120%",
    "look": "colours and textures of objects and fixtures, and a tint",
    "light": "direction, colour and strength",
    "table": "texture and tint",
    "camera": "up to 8 mm in each axis, about a degree of direction, a degree of roll",
    "distractors": "two to four other objects in lift tasks, instead of two",
    "start": "initial position and yaw of the gripper",
    "actuation": "noise on every motion: 5% of it, a millimetre and half a degree",
    "delay": "in half of the episodes, every action is executed one step late",
}
SIZES = {"train": ((0.92, 1.08),), "test": ((0.86, 0.92), (1.08, 1.14))}
MAX_SCALE = max(high for bands in SIZES.values() for _, high in bands)
OBJECT_AREA_M = np.array([[0.41, -0.18], [0.63, 0.18]])  # lower and upper corner
MAX_DISTRACTORS = 4
OBJECT_GAP_M = 0.02  # least gap between footprints
FIXTURE_POSITIONS_M = ((0.42, -0.13), (0.42, 0.13), (0.63, 0.0))  # near, near, far; jittered
START_M = np.array([[0.44, -0.10, 0.19], [0.56, 0.10, 0.25]])
START_YAW_RAD = 0.3


def read_factors(text: str | Iterable[str]) -> tuple[str, ...]:
    """Parses 'all', 'none', 'light,size' or 'all,-delay' (short: '-delay') to names, in the order of `FACTORS`."""
    words = [word.strip() for word in (text.split(",") if isinstance(text, str) else text)]
    enabled = set(FACTORS) if words and words[0].startswith("-") else set[str]()
    for word in words:
        name = check_choice("factor", word.removeprefix("-"), ("all", "none", *FACTORS))
        if name == "all":
            enabled = set(FACTORS)
        elif word.startswith("-"):
            enabled -= {name}
        elif name != "none":
            enabled.add(name)
    return tuple(name for name in FACTORS if name in enabled)


@dataclass(frozen=True, kw_only=True)
class Item:
    """A body of a scene: `index` in its table, `position_xy_m` of its centre, `orientation` a quaternion x, y, z, w."""

    index: int
    position_xy_m: tuple[float, float]
    orientation: tuple[float, ...]
    scale: float
    mass_kg: float
    friction: float
    appearance: Appearance  # one material per part
    tint: tuple[float, ...]  # factor on the colours


@dataclass(frozen=True, kw_only=True)
class Light:
    """A directional light. `direction`: unit vector towards it; `colour` and `ambient` multiply the surface colours."""

    direction: tuple[float, ...] = (0.302, -0.388, 0.871)
    colour: tuple[float, ...] = (0.62, 0.60, 0.56)
    ambient: tuple[float, ...] = (0.42, 0.43, 0.45)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Initial condition of an episode. In place tasks the only object is in the hand, and its position is unused."""

    task: TaskSpec
    split: str
    objects: tuple[Item, ...]
    fixtures: tuple[Item, ...]
    start_m: tuple[float, ...]  # of the point between the fingertips
    start_yaw_rad: float
    light: Light
    table_material: Material
    table_tint: tuple[float, ...]
    camera: CameraSpec
    actuation_noise: float  # 0 or 1, factor on `ACTUATION_NOISE` (sim/world.py)
    delay_steps: int
    noise_seed: int


def draw_scene(
    task: TaskSpec,
    rng: np.random.Generator,
    factors: Iterable[str] = tuple(FACTORS),
    split: str = "train",
) -> Scene:
    """Samples a scene. Lift: the target object among distractors; place: a random held object and all fixtures."""
    check_choice("split", split, SPLITS)
    enabled = set(read_factors(factors))
    seeds = rng.integers(2**63, size=len(FACTORS) + 1)
    rngs = {name: np.random.default_rng(seed) for name, seed in zip(("layout", *FACTORS), seeds, strict=True)}
    layout = rngs["layout"]
    objects: tuple[Item, ...]
    fixtures: tuple[Item, ...] = ()
    start_yaw = float(rngs["start"].uniform(-START_YAW_RAD, START_YAW_RAD)) if "start" in enabled else 0.0
    if task.skill == "lift":
        others = int(rngs["distractors"].integers(2, MAX_DISTRACTORS + 1)) if "distractors" in enabled else 2
        objects = _scattered(task.target, layout)[: 1 + others]
    else:
        objects = (_held(int(layout.integers(len(OBJECTS))), start_yaw, layout),)
        fixtures = _fixtures(task.target, layout)
    return Scene(
        task=task,
        split=split,
        objects=tuple(_randomised(item, OBJECTS[OBJECT_NAMES[item.index]], rngs, enabled, split) for item in objects),
        fixtures=tuple(
            _randomised(item, FIXTURES[FIXTURE_NAMES[item.index]], rngs, enabled, split) for item in fixtures
        ),
        start_m=tuple(rngs["start"].uniform(START_M[0], START_M[1]) if "start" in enabled else START_M.mean(axis=0)),
        start_yaw_rad=start_yaw,
        light=_light(rngs["light"]) if "light" in enabled else Light(),
        table_material=_table(rngs["table"], "table" in enabled, split),
        table_tint=_tint(rngs["table"], 0.10) if "table" in enabled else WHITE,
        camera=_jittered(CameraSpec(), rngs["camera"]) if "camera" in enabled else CameraSpec(),
        actuation_noise=1.0 if "actuation" in enabled else 0.0,
        delay_steps=int(rngs["delay"].integers(2)) if "delay" in enabled else 0,
        noise_seed=int(rngs["actuation"].integers(2**63)),
    )


def _scattered(target: int, rng: np.random.Generator) -> tuple[Item, ...]:
    """Places the target and the maximum of distractors without overlap (rejection sampling; restarts if one finds no
    room). The caller uses the first ones."""
    others = rng.permutation([i for i in range(len(OBJECTS)) if i != target])
    indices = (target, *(int(i) for i in others[:MAX_DISTRACTORS]))
    for _ in range(1000):
        items: list[Item] = []
        placed: list[_PlacedFootprint] = []
        for index in indices:
            spec = OBJECTS[OBJECT_NAMES[index]]
            rest, yaw = int(rng.integers(len(spec.stable_orientations))), rng.uniform(-np.pi, np.pi)
            positions = rng.uniform(OBJECT_AREA_M[0], OBJECT_AREA_M[1], (50, 2))
            footprint = _PlacedFootprint(spec.footprints[rest], yaw)
            free = np.ones(len(positions), np.bool_)
            for other in placed:
                free &= footprint.gaps(positions, other) >= OBJECT_GAP_M
            if not free.any():
                break
            x, y = (float(v) for v in positions[free.argmax()])
            footprint.line_m += [x, y]
            placed.append(footprint)
            orientation = multiply(euler_quaternion(0.0, 0.0, yaw), euler_quaternion(*spec.stable_orientations[rest]))
            items.append(_item(index, spec, (x, y), orientation))
        else:
            return tuple(items)
    names = ", ".join(OBJECT_NAMES[index] for index in indices)
    raise ValueError(f"the table has no room for {names} together")


class _PlacedFootprint:
    """Footprint of an object at the largest scale: all within `radius_m` of the points `line_m` [K, 2]."""

    def __init__(self, footprint: Footprint, yaw: float) -> None:
        angle = yaw + footprint.angle_rad
        line = np.linspace(*footprint.line_m, 5)[:, None] * [math.cos(angle), math.sin(angle)]
        self.line_m, self.radius_m = MAX_SCALE * line, MAX_SCALE * footprint.radius_m

    def gaps(self, positions: NDArray[np.float64], other: _PlacedFootprint) -> NDArray[np.float64]:
        """Gap [S] (m) to another footprint if this one, at the origin, is moved to each of the positions [S, 2] (m)."""
        offsets = positions[:, None] - (other.line_m[:, None] - self.line_m).reshape(-1, 2)
        return np.sqrt((offsets**2).sum(-1).min(-1)) - self.radius_m - other.radius_m


def _held(index: int, gripper_yaw_rad: float, rng: np.random.Generator) -> Item:
    """An object oriented for the fingers to hold it across its long axis."""
    spec = OBJECTS[OBJECT_NAMES[index]]
    rest = euler_quaternion(*spec.stable_orientations[int(rng.integers(len(spec.stable_orientations)))])
    axis = rotate(rest, np.array(spec.long_axis))
    yaw = gripper_yaw_rad - (0.0 if is_upright(axis) else np.arctan2(axis[1], axis[0]))
    return _item(index, spec, (0.0, 0.0), multiply(euler_quaternion(0.0, 0.0, yaw), rest))


def _fixtures(target: int, rng: np.random.Generator) -> tuple[Item, ...]:
    """One fixture per position, the target among them, in random order."""
    positions = np.array(FIXTURE_POSITIONS_M) * [1, rng.choice([-1, 1])]
    others = rng.permutation([i for i in range(len(FIXTURES)) if i != target])
    items = []
    for position, index in zip(positions, rng.permutation([target, *others[: len(positions) - 1]]), strict=True):
        x, y = position + rng.uniform(-0.008, 0.008, 2)
        orientation = euler_quaternion(0.0, 0.0, rng.uniform(-np.pi, np.pi))
        items.append(_item(int(index), FIXTURES[FIXTURE_NAMES[index]], (float(x), float(y)), orientation))
    return tuple(items)


def _item(index: int, spec: BodySpec, position: tuple[float, float], orientation: NDArray[np.float64]) -> Item:
    return Item(
        index=index,
        position_xy_m=position,
        orientation=tuple(orientation),
        scale=1.0,
        mass_kg=spec.mass_kg,
        friction=spec.friction,
        appearance=spec.appearances.default,
        tint=WHITE,
    )


def _randomised(
    item: Item, spec: BodySpec, rngs: dict[str, np.random.Generator], enabled: set[str], split: str
) -> Item:
    """A copy of the item with random size, mass, friction and appearance.

    The test split samples size and appearance even if they are not randomised: the defaults belong to `train`."""
    scale, mass = item.scale, item.mass_kg
    if isinstance(spec, ObjectSpec):
        bands = SIZES[split]
        band = bands[int(rngs["size"].integers(len(bands)))]
        size = float(rngs["size"].uniform(*band))
        scale = size if "size" in enabled or split != "train" else 1.0
        mass *= scale**3 * (float(rngs["mass"].uniform(0.7, 1.3)) if "mass" in enabled else 1.0)
    appearance, tint = _look(spec, rngs["look"], "look" in enabled, split)
    return replace(
        item,
        scale=scale,
        mass_kg=mass,
        friction=spec.friction * (float(rngs["friction"].uniform(0.8, 1.2)) if "friction" in enabled else 1.0),
        appearance=appearance,
        tint=tint,
    )


def _look(
    spec: BodySpec, rng: np.random.Generator, randomised: bool, split: str
) -> tuple[Appearance, tuple[float, ...]]:
    """Appearance and tint of a body."""
    appearances = spec.appearances
    if split == "test":
        held_out = appearances.test[int(rng.integers(len(appearances.test)))]
        return held_out, _tint(rng, 0.08) if randomised else WHITE
    if not randomised:
        return appearances.default, WHITE
    tint = _tint(rng, 0.08)
    return appearances.sampled(rng, tint), tint


def _table(rng: np.random.Generator, randomised: bool, split: str) -> Material:
    if split == "test":
        return TEST_TABLES[int(rng.integers(len(TEST_TABLES)))]
    return sample_table(rng) if randomised else DEFAULT_TABLE


def _tint(rng: np.random.Generator, spread: float) -> tuple[float, ...]:
    """Random tint, at most 1 in each channel: TinyRenderer cannot brighten."""
    return tuple(float(v) for v in rng.uniform(1 - 2 * spread, 1) * rng.uniform(1 - spread, 1, 3))


def _light(rng: np.random.Generator) -> Light:
    azimuth, elevation = rng.uniform(-np.pi, np.pi), np.radians(rng.uniform(45.0, 80.0))
    horizontal = math.cos(elevation)
    strength, warmth = rng.uniform(0.48, 0.70), rng.uniform(-0.07, 0.07)
    ambient = rng.uniform(0.36, 0.50)
    return Light(
        direction=(horizontal * math.cos(azimuth), horizontal * math.sin(azimuth), math.sin(elevation)),
        colour=(strength * (1 + warmth), strength, strength * (1 - warmth)),
        ambient=(ambient * (1 - warmth / 2), ambient, ambient * (1 + warmth / 2)),
    )


def _jittered(camera: CameraSpec, rng: np.random.Generator) -> CameraSpec:
    eye = np.array(camera.eye_m) + rng.uniform(-0.008, 0.008, 3)
    look_at = np.array(camera.look_at_m) + rng.uniform(-0.014, 0.014, 3)  # 0.8 degrees at a distance of a metre
    roll = camera.roll_rad + rng.uniform(-0.02, 0.02)
    return replace(camera, eye_m=tuple(eye), look_at_m=tuple(look_at), roll_rad=float(roll))
