"""Appearances of objects, fixtures and the table: fixed ones of the default and of the test split, and random ones of
the train split.

Training appearances are so varied that colours identify no class; what stays is structure: which part is a label, metal
ends, leaves. They never come near the hues of the same body in the test split, nor near its tables.
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sim.materials import PATTERNS, TABLE_PATTERNS, Colour, Material

Appearance = tuple[Material, ...]  # one material per part of the body
SPLITS = ("train", "test")
CHROMATIC = 0.15  # chroma (maximum - minimum) from which a colour has a hue
TEST_GAP_DEG = 28.0  # least distance in hue of a sampled colour from the chromatic test colours of the body; tests: 25
WHITE: Colour = (1.0, 1.0, 1.0)
TRIES = 100

# Kind of colour -> its relative frequency, and ranges of saturation and value.
FAMILIES: dict[str, tuple[float, tuple[float, float], tuple[float, float]]] = {
    "vivid": (0.36, (0.60, 1.00), (0.60, 1.00)),
    "muted": (0.22, (0.25, 0.60), (0.45, 0.90)),
    "pale": (0.19, (0.04, 0.25), (0.80, 1.00)),
    "dark": (0.10, (0.20, 1.00), (0.12, 0.38)),
    "grey": (0.13, (0.00, 0.05), (0.10, 1.00)),
}
# fmt: off
WORDS = (  # on labels, none of the test split
    "ALE", "APPLE", "AQUA", "BEANS", "BERRY", "BIO", "CAKE", "CHIPS", "COCOA", "COFFEE", "COLA", "CREAM", "EGG",
    "FARM", "FISH", "FRESH", "FRUIT", "GOLD", "HERB", "HONEY", "ICE", "JAM", "KIWI", "LEMON", "LIME", "LUX", "MALT",
    "MAX", "MILK", "MINT", "NUTS", "OIL", "OLIVE", "PASTA", "PEAS", "PLUM", "PURE", "RICE", "SALT", "SNACK", "SODA",
    "SOUP", "SOY", "SUN", "TEA", "TOFU", "TUNA", "YUM", "ZEN",
)
# fmt: on


def hue_deg(colour: Colour) -> float | None:
    """Hue, 0 to 360; None for an achromatic colour, whose hue hardly shows."""
    if max(colour) - min(colour) < CHROMATIC:
        return None
    return 360 * colorsys.rgb_to_hsv(*colour)[0]


def hue_distance_deg(one: float, other: float) -> float:
    """Angle between two hues on the colour circle, 0 to 180."""
    return abs((one - other + 180) % 360 - 180)


def tinted(colour: Colour, tint: tuple[float, ...]) -> Colour:
    red, green, blue = (value * factor for value, factor in zip(colour, tint, strict=True))
    return red, green, blue


class Painter:
    """Samples the materials of one body. `avoided_deg`: hues that its colours avoid, without and with the tint."""

    def __init__(
        self, rng: np.random.Generator, avoided_deg: tuple[float, ...] = (), tint: tuple[float, ...] = WHITE
    ) -> None:
        self._rng, self._avoided_deg, self._tint = rng, avoided_deg, tint

    def chance(self, probability: float) -> bool:
        return bool(self._rng.random() < probability)

    def choice(self, options: tuple[str, ...]) -> str:
        return options[int(self._rng.integers(len(options)))]

    def colour(
        self,
        families: tuple[str, ...] = tuple(FAMILIES),
        hues_deg: tuple[float, float] = (0.0, 360.0),
        unlike: Colour | None = None,
        contrast: float = 0.2,
    ) -> Colour:
        """A colour of one of the families, with a hue in this range; its brightness differs by `contrast` from that of
        `unlike`. Colours are multiples of 1/255, as in a texture."""
        frequency = np.cumsum([FAMILIES[name][0] for name in families])
        for _ in range(TRIES):
            which, *place = self._rng.random(4).tolist()
            family = families[int(np.searchsorted(frequency, which * frequency[-1]))]
            ranges = (hues_deg, *FAMILIES[family][1:])
            hue, saturation, value = (low + x * (high - low) for x, (low, high) in zip(place, ranges, strict=True))
            colour = _rounded(colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value))
            if self._is_allowed(colour) and (unlike is None or abs(_luma(colour) - _luma(unlike)) >= contrast):
                return colour
        grey = 240 / 255 if unlike is not None and _luma(unlike) < 0.5 else 30 / 255
        return grey, grey, grey

    def _is_allowed(self, colour: Colour) -> bool:
        hues = [hue for hue in (hue_deg(colour), hue_deg(tinted(colour, self._tint))) if hue is not None]
        return all(hue_distance_deg(hue, other) >= TEST_GAP_DEG for hue in hues for other in self._avoided_deg)

    def plain(self, families: tuple[str, ...] = tuple(FAMILIES)) -> Material:
        return Material(self.colour(families))

    def patterned(self, patterns: tuple[str, ...] = tuple(PATTERNS), plain: float = 0.4) -> Material:
        """A material with one of the patterns, or with none."""
        colour = self.colour()
        if self.chance(plain):
            return Material(colour)
        return Material(colour, self.choice(patterns), self.colour(unlike=colour))

    def label(self, colour: Colour | None = None) -> Material:
        """A printed label: mostly a word, which is readable."""
        colour = self.colour() if colour is None else colour
        pattern = self.choice(WORDS) if self.chance(0.65) else self.choice(tuple(PATTERNS))
        return Material(colour, pattern, self.colour(unlike=colour, contrast=0.35))

    def metal(self) -> Material:
        """Bare metal: a light grey."""
        red, green, blue = self._rng.uniform(0.62, 0.88) + self._rng.uniform(-0.02, 0.02, 3)
        return Material(_rounded((red, green, blue)))


def _rounded(colour: tuple[float, ...]) -> Colour:
    red, green, blue = (round(255 * value) / 255 for value in colour)
    return red, green, blue


def _luma(colour: Colour) -> float:
    """Brightness, 0 to 1 (ITU-R BT.601)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _part_by_part(painter: Painter, parts: int) -> Appearance:
    return tuple(painter.patterned() for _ in range(parts))


@dataclass(frozen=True, kw_only=True)
class Appearances:
    """The appearances of a body: `default`, where looks are not randomised; `test`, which never occur in training; and
    `sample`, which paints its parts for training (without it, each part is painted by itself)."""

    default: Appearance
    test: tuple[Appearance, ...]
    sample: Callable[[Painter], Appearance] | None = field(default=None, compare=False)

    @functools.cached_property
    def test_hues_deg(self) -> tuple[float, ...]:
        """Hues of all chromatic colours of the test split."""
        materials = [material for appearance in self.test for material in appearance]
        hues = (hue_deg(colour) for material in materials for colour in colours_of(material))
        return tuple(hue for hue in hues if hue is not None)

    def sampled(self, rng: np.random.Generator, tint: tuple[float, ...] = WHITE) -> Appearance:
        """An appearance of the train split. `tint`: the factor on its colours with which it will be drawn."""
        painter = Painter(rng, self.test_hues_deg, tint)
        return self.sample(painter) if self.sample else _part_by_part(painter, len(self.default))


def colours_of(material: Material) -> tuple[Colour, ...]:
    """The colours that show."""
    return (material.colour,) if material.pattern == "plain" else (material.colour, material.second)


# ---------------------------------------------------------------------- tables

DEFAULT_TABLE = Material((0.60, 0.55, 0.50), "stone-0", (0.52, 0.47, 0.42))
TEST_TABLES = (
    Material((0.66, 0.47, 0.36), "wood-50", (0.50, 0.32, 0.22)),
    Material((0.55, 0.60, 0.55), "tiles-6", (0.44, 0.50, 0.45)),
    Material((0.62, 0.44, 0.42), "cloth-28", (0.52, 0.34, 0.33)),
    Material((0.58, 0.62, 0.66), "stone-60", (0.42, 0.45, 0.50)),
)
TRAIN_TABLE_PATTERNS = tuple(name for name in TABLE_PATTERNS if name not in {table.pattern for table in TEST_TABLES})
# Kind of table -> ranges of hue (degrees), saturation and value; wood may be painted.
TABLE_COLOURS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "wood": ((12.0, 45.0), (0.18, 0.65), (0.42, 0.95)),
    "stone": ((0.0, 360.0), (0.00, 0.22), (0.38, 0.96)),
    "cloth": ((0.0, 360.0), (0.00, 0.55), (0.40, 0.96)),
    "tiles": ((0.0, 360.0), (0.00, 0.35), (0.45, 0.98)),
    "gingham": ((0.0, 360.0), (0.05, 0.50), (0.55, 0.98)),
    "laminate": ((0.0, 360.0), (0.00, 0.45), (0.40, 0.98)),
}
PAINTED_WOOD = 0.25
TABLE_GAP = 0.10  # least distance of a table's mean colour (red, green, blue) from those of the test split
SAME_KIND_GAP = 0.20  # and from those of its own kind


def sample_table(rng: np.random.Generator) -> Material:
    """A table of the train split: any pattern of none of the test tables, two similar colours, far from those."""
    for _ in range(TRIES):
        pattern = TRAIN_TABLE_PATTERNS[int(rng.integers(len(TRAIN_TABLE_PATTERNS)))]
        hues, saturations, values = TABLE_COLOURS[kind_of(pattern)]
        if kind_of(pattern) == "wood" and rng.random() < PAINTED_WOOD:
            hues = (0.0, 360.0)
        hue, value = rng.uniform(*hues), rng.uniform(*values)
        saturation = saturations[0] + (saturations[1] - saturations[0]) * rng.random() ** 2  # few tables are vivid
        darker, greyer = rng.uniform(0.60, 0.94), rng.uniform(0.7, 1.2)
        light = _rounded(colorsys.hsv_to_rgb(hue / 360, saturation, value))
        dark = _rounded(colorsys.hsv_to_rgb(hue / 360, min(1.0, saturation * greyer), value * darker))
        table = Material(light, pattern, dark)
        if all(is_far(table, other) for other in TEST_TABLES):
            return table
    return DEFAULT_TABLE


def kind_of(pattern: str) -> str:
    return pattern.partition("-")[0]


def is_far(table: Material, other: Material) -> bool:
    """Whether two tables differ so much in their mean colours that one does not stand for the other."""
    gap = SAME_KIND_GAP if kind_of(table.pattern) == kind_of(other.pattern) else TABLE_GAP
    return float(np.linalg.norm(_mean(table) - _mean(other))) >= gap


def _mean(table: Material) -> np.ndarray:
    return (np.array(table.colour) + np.array(table.second)) / 2
