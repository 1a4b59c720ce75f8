"""Scenes as data: what a task begins with, drawn from a generator before any physics. Every randomised factor can be
switched off by itself, and none of the others then draws anything else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.bodies import BodySpec, Footprint, ObjectSpec, stands
from sim.looks import SPLITS, TABLES
from sim.objects import FIXTURES, OBJECTS
from sim.options import check_choice
from sim.rotations import euler_quaternion, multiply, rotate
from sim.state import FIXTURE_NAMES, OBJECT_NAMES
from sim.tasks import TaskSpec
from sim.views import CameraSpec

FACTORS: dict[str, str] = {  # that a scene randomises
    "size": "of objects: up to 8% more or less; 8 to 14% in the held-out split",
    "mass": "of objects: 70 to 130% of what one of their size weighs",
    "friction": "of objects and fixtures: 80 to 120%",
    "look": "colours and textures of objects and fixtures, and a tint",
    "light": "direction, colour and strength",
    "table": "texture and tint",
    "camera": "up to 8 mm each way, about a degree aside, a degree of roll",
    "distractors": "two to four beside the object to lift, instead of two",
    "start": "where the arm begins",
    "actuation": "noise on every motion: 5% of it, a millimetre and half a degree",
    "delay": "in half of the episodes an action is carried out one step late",
}
SIZES = {"train": ((0.92, 1.08),), "test": ((0.86, 0.92), (1.08, 1.14))}
LARGEST = max(high for bands in SIZES.values() for _, high in bands)
OBJECT_AREA_M = np.array([[0.41, -0.18], [0.63, 0.18]])
MOST_DISTRACTORS = 4
OBJECT_GAP_M = 0.02  # between what they cover of the table
FIXTURE_SPOTS_M = ((0.42, -0.13), (0.42, 0.13), (0.63, 0.0))  # near, near, far; jittered
START_M = np.array([[0.44, -0.10, 0.19], [0.56, 0.10, 0.25]])
START_YAW_RAD = 0.3


def read_factors(text: str | Iterable[str]) -> tuple[str, ...]:
    """'all', 'none', names of `FACTORS`, or 'all,-delay', for which '-delay' is short -> the names in that order."""
    words = [word.strip() for word in (text.split(",") if isinstance(text, str) else text)]
    on = set(FACTORS) if words and words[0].startswith("-") else set[str]()
    for word in words:
        name = check_choice("factor", word.removeprefix("-"), ("all", "none", *FACTORS))
        if name == "all":
            on = set(FACTORS)
        elif word.startswith("-"):
            on -= {name}
        elif name != "none":
            on.add(name)
    return tuple(name for name in FACTORS if name in on)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One body: `index` in its table; `spot_m` of its centre on the table, `turn` a quaternion x, y, z, w."""

    index: int
    spot_m: tuple[float, float]
    turn: tuple[float, ...]
    scale: float
    mass_kg: float
    friction: float
    look: int  # of its split
    tint: tuple[float, ...]  # multiplies the look's colours


@dataclass(frozen=True, kw_only=True)
class Light:
    """`direction` is the unit vector towards the light; `colour` and `ambient` multiply the surfaces' colours."""

    direction: tuple[float, ...] = (0.302, -0.388, 0.871)
    colour: tuple[float, ...] = (0.62, 0.60, 0.56)
    ambient: tuple[float, ...] = (0.42, 0.43, 0.45)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that an episode begins with. In a place task the one object is in the hand: its spot means nothing."""

    task: TaskSpec
    split: str
    objects: tuple[Item, ...]
    fixtures: tuple[Item, ...]
    start_m: tuple[float, ...]  # of the point between the finger tips
    start_yaw_rad: float
    light: Light
    table_look: int
    table_tint: tuple[float, ...]
    camera: CameraSpec
    actuation_noise: float  # 0 or 1, of `ACTUATION_NOISE` (sim/world.py)
    delay_steps: int
    noise_seed: int


def draw_scene(
    task: TaskSpec,
    rng: np.random.Generator,
    factors: Iterable[str] = tuple(FACTORS),
    split: str = "train",
) -> Scene:
    """A new scene for the task. Lift: its object among others; place: any object held, all three fixtures."""
    check_choice("split", split, SPLITS)
    on = set(read_factors(factors))
    seeds = rng.integers(2**63, size=len(FACTORS) + 1)
    draws = {name: np.random.default_rng(seed) for name, seed in zip(("layout", *FACTORS), seeds, strict=True)}
    layout = draws["layout"]
    objects: tuple[Item, ...]
    fixtures: tuple[Item, ...] = ()
    start_yaw = float(draws["start"].uniform(-START_YAW_RAD, START_YAW_RAD)) if "start" in on else 0.0
    if task.skill == "lift":
        others = int(draws["distractors"].integers(2, MOST_DISTRACTORS + 1)) if "distractors" in on else 2
        objects = _scattered(task.target, layout)[: 1 + others]
    else:
        objects = (_held(int(layout.integers(len(OBJECTS))), start_yaw, layout),)
        fixtures = _fixtures(task.target, layout)
    return Scene(
        task=task,
        split=split,
        objects=tuple(_varied(item, OBJECTS[OBJECT_NAMES[item.index]], draws, on, split) for item in objects),
        fixtures=tuple(_varied(item, FIXTURES[FIXTURE_NAMES[item.index]], draws, on, split) for item in fixtures),
        start_m=tuple(draws["start"].uniform(START_M[0], START_M[1]) if "start" in on else START_M.mean(axis=0)),
        start_yaw_rad=start_yaw,
        light=_light(draws["light"]) if "light" in on else Light(),
        table_look=int(draws["table"].integers(len(TABLES[split]))) if "table" in on or split != "train" else 0,
        table_tint=_tint(draws["table"], 0.10) if "table" in on else (1.0, 1.0, 1.0),
        camera=_moved(CameraSpec(), draws["camera"]) if "camera" in on else CameraSpec(),
        actuation_noise=1.0 if "actuation" in on else 0.0,
        delay_steps=int(draws["delay"].integers(2)) if "delay" in on else 0,
        noise_seed=int(draws["actuation"].integers(2**63)),
    )


def _scattered(target: int, rng: np.random.Generator) -> tuple[Item, ...]:
    """The target and as many others as there may be, each clear of the ones before; where one finds no room, all are
    drawn again."""
    others = rng.permutation([i for i in range(len(OBJECTS)) if i != target])
    indices = (target, *(int(i) for i in others[:MOST_DISTRACTORS]))
    for _ in range(1000):
        items: list[Item] = []
        taken: list[_Covered] = []
        for index in indices:
            spec = OBJECTS[OBJECT_NAMES[index]]
            rest, yaw = int(rng.integers(len(spec.rests))), rng.uniform(-np.pi, np.pi)
            spots = rng.uniform(OBJECT_AREA_M[0], OBJECT_AREA_M[1], (50, 2))
            covered = _Covered(spec.footprints[rest], yaw)
            free = np.ones(len(spots), np.bool_)
            for other in taken:
                free &= covered.gaps(spots, other) >= OBJECT_GAP_M
            if not free.any():
                break
            x, y = (float(v) for v in spots[free.argmax()])
            covered.line_m += [x, y]
            taken.append(covered)
            turn = multiply(euler_quaternion(0.0, 0.0, yaw), euler_quaternion(*spec.rests[rest]))
            items.append(_item(index, spec, (x, y), turn))
        else:
            return tuple(items)
    names = ", ".join(OBJECT_NAMES[index] for index in indices)
    raise ValueError(f"the table has no room for {names} together")


class _Covered:
    """What an object at its largest covers of the table: all within `radius_m` of a line [K, 2]."""

    def __init__(self, footprint: Footprint, yaw: float) -> None:
        angle = yaw + footprint.angle_rad
        along = np.linspace(*footprint.line_m, 5)[:, None] * [math.cos(angle), math.sin(angle)]
        self.line_m, self.radius_m = LARGEST * along, LARGEST * footprint.radius_m

    def gaps(self, spots: NDArray[np.float64], other: _Covered) -> NDArray[np.float64]:
        """[S]: the gap to another if this one, which lies at the origin, is put at each of the spots [S, 2] (m)."""
        apart = spots[:, None] - (other.line_m[:, None] - self.line_m).reshape(-1, 2)
        return np.sqrt((apart**2).sum(-1).min(-1)) - self.radius_m - other.radius_m


def _held(index: int, gripper_yaw_rad: float, rng: np.random.Generator) -> Item:
    """An object as the fingers hold it: across its long axis."""
    spec = OBJECTS[OBJECT_NAMES[index]]
    rest = euler_quaternion(*spec.rests[int(rng.integers(len(spec.rests)))])
    along = rotate(rest, np.array(spec.long_axis))
    yaw = gripper_yaw_rad - (0.0 if stands(along) else np.arctan2(along[1], along[0]))
    return _item(index, spec, (0.0, 0.0), multiply(euler_quaternion(0.0, 0.0, yaw), rest))


def _fixtures(target: int, rng: np.random.Generator) -> tuple[Item, ...]:
    """The target among others, as many as there are spots."""
    spots = np.array(FIXTURE_SPOTS_M) * [1, rng.choice([-1, 1])]
    others = rng.permutation([i for i in range(len(FIXTURES)) if i != target])
    items = []
    for spot, index in zip(spots, rng.permutation([target, *others[: len(spots) - 1]]), strict=True):
        x, y = spot + rng.uniform(-0.008, 0.008, 2)
        turn = euler_quaternion(0.0, 0.0, rng.uniform(-np.pi, np.pi))
        items.append(_item(int(index), FIXTURES[FIXTURE_NAMES[index]], (float(x), float(y)), turn))
    return tuple(items)


def _item(index: int, spec: BodySpec, spot: tuple[float, float], turn: NDArray[np.float64]) -> Item:
    return Item(
        index=index,
        spot_m=spot,
        turn=tuple(turn),
        scale=1.0,
        mass_kg=spec.mass_kg,
        friction=spec.friction,
        look=0,
        tint=(1.0, 1.0, 1.0),
    )


def _varied(item: Item, spec: BodySpec, draws: dict[str, np.random.Generator], on: set[str], split: str) -> Item:
    """The item with the size, weight, friction and look of this episode.

    The held-out split draws sizes and looks even where they are not randomised: its objects have no usual ones."""
    scale, mass = item.scale, item.mass_kg
    if isinstance(spec, ObjectSpec):
        bands = SIZES[split]
        band = bands[int(draws["size"].integers(len(bands)))]
        size = float(draws["size"].uniform(*band))
        scale = size if "size" in on or split != "train" else 1.0
        mass *= scale**3 * (float(draws["mass"].uniform(0.7, 1.3)) if "mass" in on else 1.0)
    look = int(draws["look"].integers(len(spec.looks.of(split))))
    return replace(
        item,
        scale=scale,
        mass_kg=mass,
        friction=spec.friction * (float(draws["friction"].uniform(0.8, 1.2)) if "friction" in on else 1.0),
        look=look if "look" in on or split != "train" else 0,
        tint=_tint(draws["look"], 0.08) if "look" in on else (1.0, 1.0, 1.0),
    )


def _tint(rng: np.random.Generator, spread: float) -> tuple[float, ...]:
    """Darker and towards a colour, never brighter: TinyRenderer could not show it."""
    return tuple(float(v) for v in rng.uniform(1 - 2 * spread, 1) * rng.uniform(1 - spread, 1, 3))


def _light(rng: np.random.Generator) -> Light:
    azimuth, elevation = rng.uniform(-np.pi, np.pi), np.radians(rng.uniform(45.0, 80.0))
    level = math.cos(elevation)
    strength, warmth = rng.uniform(0.48, 0.70), rng.uniform(-0.07, 0.07)
    ambient = rng.uniform(0.36, 0.50)
    return Light(
        direction=(level * math.cos(azimuth), level * math.sin(azimuth), math.sin(elevation)),
        colour=(strength * (1 + warmth), strength, strength * (1 - warmth)),
        ambient=(ambient * (1 - warmth / 2), ambient, ambient * (1 + warmth / 2)),
    )


def _moved(camera: CameraSpec, rng: np.random.Generator) -> CameraSpec:
    eye = np.array(camera.eye_m) + rng.uniform(-0.008, 0.008, 3)
    look_at = np.array(camera.look_at_m) + rng.uniform(-0.014, 0.014, 3)  # a metre away: 14 mm are 0.8 degrees
    roll = camera.roll_rad + rng.uniform(-0.02, 0.02)
    return replace(camera, eye_m=tuple(eye), look_at_m=tuple(look_at), roll_rad=float(roll))
