"""The seven objects and three fixtures: one record each, with procedural meshes.

Lengths in metres, masses in kilograms; realistic sizes and masses, scaled where an 8 cm gripper requires it. A part is
a mesh with one material; a collider is a primitive or a convex hull. To add an object, add its record to `OBJECTS`
(docs/world.md).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from sim.appearances import Appearance, Appearances, Painter
from sim.bodies import Collider, FixtureSpec, ObjectSpec
from sim.materials import Colour, Material
from sim.meshes import UP, Point, box, prism, revolve, tube


def _arc(radius: float, half_angle: float, count: int) -> list[Point]:
    angles = np.linspace(-half_angle, half_angle, count)
    return [(radius * np.sin(a), radius * (np.cos(a) - np.cos(half_angle / 2)), 0.0) for a in angles]


def _chain(path: list[Point], radii: list[float]) -> tuple[Collider, ...]:
    """Capsules along a path in the x-y plane; each has the mean radius of its two ends."""
    out = []
    for (a, b), (ra, rb) in zip(pairwise(path), pairwise(radii), strict=True):
        start, end = np.array(a), np.array(b)
        direction = end - start
        yaw = float(np.arctan2(direction[1], direction[0]))
        middle = tuple(float(v) for v in (start + end) / 2)
        size = ((ra + rb) / 2, float(np.linalg.norm(direction)))
        out.append(Collider("capsule", size, (middle[0], middle[1], middle[2]), (0.0, np.pi / 2, yaw)))
    return tuple(out)


def _paint_banana(painter: Painter) -> Appearance:
    body = painter.patterned(("blush", "speckles", "blots", "clouds", "gradient", "stripes", "rings", "dots", "plaid"))
    return (body, painter.plain(("dark",) if painter.chance(0.6) else ("muted", "vivid", "grey")))


def _banana() -> ObjectSpec:
    path = _arc(0.105, 0.75, 13)
    radii = [0.006, 0.011, 0.0145, 0.0165, 0.0175, 0.018, 0.018, 0.018, 0.0175, 0.0165, 0.0145, 0.010, 0.006]
    stalk = tube(
        [(path[-1][0] + 0.001, path[-1][1], 0.0), (path[-1][0] + 0.012, path[-1][1] - 0.009, 0.0)], [0.005, 0.004], UP
    )
    brown = Material((0.35, 0.25, 0.10))
    return ObjectSpec(
        name="banana",
        mass_kg=0.12,
        friction=0.8,
        parts=(tube(path, radii, UP), stalk),
        colliders=(*_chain(path[1:-1:2], radii[1:-1:2]), Collider("hull", points=stalk.vertices)),
        appearances=Appearances(
            default=(Material((0.95, 0.80, 0.12), "blush", (0.80, 0.72, 0.20)), brown),
            test=(
                (Material((0.66, 0.78, 0.20), "blush", (0.40, 0.62, 0.16)), Material((0.30, 0.45, 0.12))),
                (Material((0.88, 0.66, 0.10), "blush", (0.40, 0.26, 0.08)), brown),
            ),
            sample=_paint_banana,
        ),
        long_axis=(1.0, 0.0, 0.0),
        stable_orientations=((0.146, 0.0, 0.0), (np.pi - 0.146, 0.0, 0.0)),
    )


def _paint_sausage(painter: Painter) -> Appearance:
    return (painter.patterned(),)


def _sausage() -> ObjectSpec:
    path = _arc(0.16, 0.36, 9)
    radii = [0.004, 0.012, 0.0155, 0.016, 0.016, 0.016, 0.0155, 0.012, 0.004]
    return ObjectSpec(
        name="sausage",
        mass_kg=0.09,
        friction=0.8,
        parts=(tube(path, radii, UP),),
        colliders=_chain([path[1], path[4], path[7]], [0.015, 0.016, 0.015]),
        appearances=Appearances(
            default=(Material((0.62, 0.22, 0.13), "speckles", (0.75, 0.40, 0.28)),),
            test=(
                (Material((0.85, 0.62, 0.48), "blush", (0.70, 0.42, 0.30)),),
                (Material((0.58, 0.26, 0.20), "stripes", (0.36, 0.13, 0.09)),),
            ),
            sample=_paint_sausage,
        ),
        long_axis=(1.0, 0.0, 0.0),
        stable_orientations=(FLAT, FLIPPED),
    )


def _paint_carrot(painter: Painter) -> Appearance:
    root = painter.patterned(
        ("rings", "blush", "speckles", "gradient", "halves", "stripes", "blots", "clouds", "zigzag")
    )
    if painter.chance(0.6):  # dark, and as green as the test split allows
        green = painter.colour(("dark", "muted"), hues_deg=(90.0, 190.0))
        return (root, Material(green, "stripes", painter.colour(("dark", "muted"), (90.0, 190.0), green, 0.05)))
    return (root, painter.patterned(("stripes", "speckles")))


def _carrot() -> ObjectSpec:
    path: list[Point] = [(-0.075, 0, 0), (-0.06, 0, 0), (-0.02, 0, 0), (0.03, 0, 0), (0.058, 0, 0), (0.064, 0, 0)]
    radii = [0.003, 0.006, 0.0115, 0.0165, 0.0175, 0.010]
    root = tube(path, radii, UP)
    leaves = tube([(0.062, 0, 0), (0.075, 0, 0), (0.092, 0, 0)], [0.006, 0.012, 0.004], UP)
    green = Material((0.18, 0.50, 0.15), "stripes", (0.26, 0.60, 0.20))
    return ObjectSpec(
        name="carrot",
        mass_kg=0.08,
        friction=0.8,
        parts=(root, leaves),
        colliders=(Collider("hull", points=root.vertices), Collider("hull", points=leaves.vertices)),
        appearances=Appearances(
            default=(Material((0.96, 0.45, 0.08), "rings", (0.92, 0.41, 0.07)), green),
            test=(
                (Material((0.48, 0.18, 0.40), "rings", (0.40, 0.14, 0.34)), green),
                (Material((0.96, 0.78, 0.30), "blush", (0.90, 0.66, 0.22)), Material((0.22, 0.46, 0.12))),
            ),
            sample=_paint_carrot,
        ),
        long_axis=(1.0, 0.0, 0.0),
        stable_orientations=((0.0, -0.1, 0.0),),
    )


LYING = (np.pi / 2, 0.0, 0.0)
STANDING = FLAT = (0.0, 0.0, 0.0)
FLIPPED = (np.pi, 0.0, 0.0)
ON_EDGE = (0.0, np.pi / 2, 0.0)


def _upright(*heights: float) -> list[Point]:
    return [(0.0, 0.0, z) for z in heights]


def _paint_bottle(painter: Painter) -> Appearance:
    glass = painter.plain()
    label = painter.label() if painter.chance(0.8) else glass
    return (glass, label, glass, glass if painter.chance(0.2) else painter.plain())


def _bottle() -> ObjectSpec:
    def appearance(glass: Colour, label: tuple[Colour, str, Colour], cap: Colour) -> Appearance:
        return (Material(glass), Material(*label), Material(glass), Material(cap))

    return ObjectSpec(
        name="bottle",
        mass_kg=0.25,
        friction=0.7,
        parts=(
            tube(_upright(-0.08, -0.04), [0.028, 0.028]),
            tube(_upright(-0.04, 0.015), [0.0284, 0.0284]),
            tube(_upright(0.015, 0.03, 0.05, 0.068), [0.028, 0.027, 0.013, 0.012]),
            tube(_upright(0.066, 0.08), [0.0145, 0.0145]),
        ),
        colliders=(
            Collider("cylinder", (0.028, 0.11), (0.0, 0.0, -0.025)),
            Collider("cylinder", (0.0145, 0.05), (0.0, 0.0, 0.055)),
        ),
        appearances=Appearances(
            default=appearance(
                (0.10, 0.45, 0.30), ((0.95, 0.95, 0.90), "SODA", (0.10, 0.40, 0.25)), (0.85, 0.15, 0.12)
            ),
            test=(
                appearance((0.30, 0.15, 0.40), ((0.85, 0.85, 0.90), "WINE", (0.35, 0.15, 0.45)), (0.15, 0.15, 0.18)),
                appearance((0.90, 0.60, 0.15), ((0.98, 0.98, 0.95), "stripes", (0.95, 0.65, 0.20)), (0.20, 0.55, 0.25)),
            ),
            sample=_paint_bottle,
        ),
        long_axis=(0.0, 0.0, 1.0),
        stable_orientations=(STANDING, LYING),
    )


def _paint_can(painter: Painter) -> Appearance:
    metal = painter.metal()
    body = metal if painter.chance(0.25) else painter.patterned(plain=0.75)
    return (body, painter.label(), metal, metal)


def _can() -> ObjectSpec:
    def appearance(material: Material, label: Material) -> Appearance:
        metal = Material((0.75, 0.76, 0.78))
        return (material, label, metal, metal)

    return ObjectSpec(
        name="can",
        mass_kg=0.20,
        friction=0.7,
        parts=(
            tube(_upright(-0.043, 0.043), [0.031, 0.031]),
            tube(_upright(-0.020, 0.022), [0.0314, 0.0314]),
            tube(_upright(0.043, 0.049), [0.031, 0.027]),
            tube(_upright(-0.049, -0.043), [0.027, 0.031]),
        ),
        colliders=(Collider("cylinder", (0.031, 0.098)),),
        appearances=Appearances(
            default=appearance(Material((0.80, 0.10, 0.12)), Material((0.96, 0.92, 0.80), "SOUP", (0.80, 0.10, 0.12))),
            test=(
                appearance(Material((0.95, 0.75, 0.15)), Material((0.98, 0.96, 0.90), "CORN", (0.85, 0.55, 0.05))),
                appearance(Material((0.45, 0.20, 0.50)), Material((0.90, 0.85, 0.92), "dots", (0.45, 0.20, 0.50))),
            ),
            sample=_paint_can,
        ),
        long_axis=(0.0, 0.0, 1.0),
        stable_orientations=(STANDING, LYING),
    )


def _paint_milk(painter: Painter) -> Appearance:
    carton, front = painter.plain(), painter.label()
    if painter.chance(0.5):  # the print has the carton's colour
        front = Material(painter.colour(unlike=carton.colour, contrast=0.3), front.pattern, carton.colour)
    return (carton, front, Material(front.colour) if painter.chance(0.6) else carton, carton)


def _milk() -> ObjectSpec:
    w, h, top = 0.027, 0.045, 0.065
    gable = prism([(-w, h), (w, h), (0.004, top - 0.008), (-0.004, top - 0.008)], 2 * w)
    body = box((2 * w, 2 * w, 0.11), (0.0, 0.0, -0.01))
    ridge = box((0.006, 2 * w, 0.012), (0.0, 0.0, top - 0.003))
    filled = np.concatenate([body.vertices, gable.vertices])

    def appearance(carton: Colour, colour: Colour, pattern: str) -> Appearance:
        return (Material(carton), Material(colour, pattern, carton), Material(colour), Material(carton))

    return ObjectSpec(
        name="milk",
        mass_kg=0.25,
        friction=0.7,
        parts=(body, box((2 * w + 0.001, 2 * w + 0.001, 0.045), (0.0, 0.0, -0.005)), gable, ridge),
        colliders=(Collider("hull", points=filled), Collider("hull", points=ridge.vertices)),
        appearances=Appearances(
            default=appearance((0.96, 0.96, 0.98), (0.15, 0.35, 0.85), "MILK"),
            test=(
                appearance((0.98, 0.96, 0.88), (0.92, 0.55, 0.10), "JUICE"),
                appearance((0.85, 0.88, 0.95), (0.35, 0.20, 0.55), "stripes"),
            ),
            sample=_paint_milk,
        ),
        long_axis=(0.0, 0.0, 1.0),
        stable_orientations=(STANDING, LYING, ON_EDGE),
    )


def _paint_food(painter: Painter) -> Appearance:
    return (painter.patterned(plain=0.7), painter.label())


def _food() -> ObjectSpec:
    size = (0.05, 0.09, 0.036)

    def appearance(carton: Colour, label: Material) -> Appearance:
        return (Material(carton), label)

    return ObjectSpec(
        name="food",
        mass_kg=0.18,
        friction=0.7,
        parts=(box(size), box((0.0505, 0.055, 0.0365))),
        colliders=(Collider("box", size),),
        appearances=Appearances(
            default=appearance((0.45, 0.20, 0.55), Material((0.98, 0.85, 0.30), "RICE", (0.45, 0.20, 0.55))),
            test=(
                appearance((0.55, 0.75, 0.30), Material((0.98, 0.98, 0.90), "OATS", (0.25, 0.45, 0.10))),
                appearance((0.20, 0.20, 0.25), Material((0.85, 0.70, 0.40), "band", (0.20, 0.20, 0.25))),
            ),
            sample=_paint_food,
        ),
        long_axis=(0.0, 1.0, 0.0),
        stable_orientations=(FLAT, ON_EDGE, LYING),
    )


def _wall(
    foot: tuple[float, float], rim: tuple[float, float], thickness: float, count: int = 16
) -> tuple[Collider, ...]:
    """Boxes along a circle, from `foot` to `rim`: each (distance from the axis, height)."""
    (near, low), (far, high) = foot, rim
    radius, lean = (near + far) / 2, float(np.arctan2(far - near, high - low))
    size = (thickness, 2 * max(near, far) * np.tan(np.pi / count), float(np.hypot(far - near, high - low)))
    return tuple(
        Collider("box", size, (radius * np.cos(a), radius * np.sin(a), (low + high) / 2), (0.0, lean, a))
        for a in 2 * np.pi * np.arange(count) / count
    )


def _paint_dish(painter: Painter) -> Appearance:
    return (
        painter.patterned(("dots", "stripes", "checks", "disc", "speckles", "clouds", "plaid", "zigzag"), plain=0.6),
    )


def _bowl() -> FixtureSpec:
    shell = revolve(
        [
            (0.0, 0.0),
            (0.05, 0.0),
            (0.075, 0.015),
            (0.092, 0.045),
            (0.094, 0.052),
            (0.089, 0.052),
            (0.071, 0.019),
            (0.048, 0.006),
            (0.0, 0.006),
        ]
    )
    return FixtureSpec(
        name="bowl",
        mass_kg=0.5,
        radius_m=0.094,
        inner_radius_m=0.085,
        parts=(shell,),
        appearances=Appearances(
            default=(Material((0.20, 0.55, 0.75)),),
            test=((Material((0.55, 0.40, 0.65)),), (Material((0.10, 0.40, 0.42)),)),
            sample=_paint_dish,
        ),
        colliders=(
            Collider("cylinder", (0.052, 0.006), (0.0, 0.0, 0.003)),
            *_wall((0.050, 0.004), (0.074, 0.018), 0.005),
            *_wall((0.073, 0.017), (0.0915, 0.052), 0.004),
        ),
    )


def _plate() -> FixtureSpec:
    shell = revolve(
        [(0.0, 0.0), (0.070, 0.0), (0.105, 0.013), (0.108, 0.016), (0.104, 0.0165), (0.069, 0.006), (0.0, 0.006)]
    )
    return FixtureSpec(
        name="plate",
        mass_kg=0.5,
        radius_m=0.108,
        inner_radius_m=0.105,
        parts=(shell,),
        appearances=Appearances(
            default=(Material((0.93, 0.93, 0.90)),),
            test=((Material((0.85, 0.90, 0.80)),), (Material((0.95, 0.93, 0.88), "stripes", (0.88, 0.80, 0.70)),)),
            sample=_paint_dish,
        ),
        colliders=(
            Collider("cylinder", (0.072, 0.006), (0.0, 0.0, 0.003)),
            *_wall((0.070, 0.004), (0.106, 0.0155), 0.004),
        ),
    )


def _paint_divider_plate(painter: Painter) -> Appearance:
    (shell,) = _paint_dish(painter)
    walls = Material(shell.colour) if painter.chance(0.7) else painter.plain()
    return (shell, walls, walls, walls)


def _divider_plate() -> FixtureSpec:
    shell = revolve([(0.0, 0.0), (0.116, 0.0), (0.118, 0.03), (0.113, 0.03), (0.112, 0.006), (0.0, 0.006)])
    walls = tuple(
        Collider("box", (0.112, 0.006, 0.016), (0.056 * np.cos(a), 0.056 * np.sin(a), 0.014), (0.0, 0.0, a))
        for a in 2 * np.pi * np.arange(3) / 3
    )
    visible = tuple(box((0.112, 0.006, 0.016)).moved(wall.centre, wall.euler[2]) for wall in walls)

    def appearance(colour: Colour) -> Appearance:
        return (Material(colour),) * (1 + len(visible))

    return FixtureSpec(
        name="divider-plate",
        mass_kg=0.5,
        radius_m=0.118,
        inner_radius_m=0.115,
        parts=(shell, *visible),
        appearances=Appearances(
            default=appearance((0.85, 0.35, 0.45)),
            test=(appearance((0.75, 0.45, 0.75)), appearance((0.95, 0.70, 0.55))),
            sample=_paint_divider_plate,
        ),
        colliders=(
            Collider("cylinder", (0.116, 0.006), (0.0, 0.0, 0.003)),
            *_wall((0.115, 0.004), (0.115, 0.030), 0.006),
            *walls,
        ),
        sections=tuple((0.05 * np.cos(a), 0.05 * np.sin(a), 0.0) for a in np.pi * np.array([1, 3, 5]) / 3),
    )


OBJECTS: dict[str, ObjectSpec] = {
    spec.name: spec for spec in (_banana(), _bottle(), _sausage(), _milk(), _food(), _can(), _carrot())
}
FIXTURES: dict[str, FixtureSpec] = {spec.name: spec for spec in (_bowl(), _plate(), _divider_plate())}
