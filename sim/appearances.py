"""Appearances: colours and procedural textures of objects, fixtures and the table, split into train and test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sim.options import check_choice

Colour = tuple[float, float, float]
SPLITS = ("train", "test")
TEXTURE_PX = 64  # of a part of an object or fixture
TABLE_TEXTURE_PX = 256
TABLE_TEXTURE_M = 0.5  # one period of the texture


@dataclass(frozen=True)
class Material:
    """Material of a part: `colour`, and `second` where its pattern is (a name in `PATTERNS`, or a text in capitals)."""

    colour: Colour
    pattern: str = "plain"
    second: Colour = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if not self.pattern.isupper():
            check_choice("pattern", self.pattern, tuple(PATTERNS))


Appearance = tuple[Material, ...]  # one material per part of the body


@dataclass(frozen=True)
class Appearances:
    """The possible appearances of a body. `train[0]` is the default; those of `test` never occur in training."""

    train: tuple[Appearance, ...]
    test: tuple[Appearance, ...]

    def of(self, split: str) -> tuple[Appearance, ...]:
        return {"train": self.train, "test": self.test}[split]


def texture(material: Material) -> NDArray[np.uint8]:
    """Texture image [TEXTURE_PX, TEXTURE_PX, 3] of a material, top row first."""
    mask = PATTERNS[material.pattern](TEXTURE_PX) if material.pattern in PATTERNS else _text(material.pattern)
    return _mixed(mask, material.colour, material.second)


def _mixed(mask: NDArray[np.float64], colour: Colour, second: Colour) -> NDArray[np.uint8]:
    mixed = (1 - mask[..., None]) * np.array(colour) + mask[..., None] * np.array(second)
    return (255 * np.clip(mixed, 0, 1)).round().astype(np.uint8)


def _grid(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Texture coordinates x (right) and y (down), each [size, size], in 0 to 1."""
    line = (np.arange(size) + 0.5) / size
    return np.broadcast_to(line[None, :], (size, size)), np.broadcast_to(line[:, None], (size, size))


def _plain(size: int) -> NDArray[np.float64]:
    return np.zeros((size, size))


def _bands(size: int) -> NDArray[np.float64]:
    return (np.abs(_grid(size)[1] - 0.5) < 0.2).astype(np.float64)


def _stripes(size: int) -> NDArray[np.float64]:
    return (np.floor(_grid(size)[0] * 12) % 2).astype(np.float64)


def _rings(size: int) -> NDArray[np.float64]:
    return (np.floor(_grid(size)[1] * 7) % 2).astype(np.float64)


def _checks(size: int) -> NDArray[np.float64]:
    x, y = _grid(size)
    return ((np.floor(x * 8) + np.floor(y * 8)) % 2).astype(np.float64)


def _dots(size: int) -> NDArray[np.float64]:
    x, y = _grid(size)
    return (np.hypot((x * 6) % 1 - 0.5, (y * 6) % 1 - 0.5) < 0.28).astype(np.float64)


def _speckles(size: int) -> NDArray[np.float64]:
    return np.clip((_noise(size, 24, seed=1) - 0.72) * 8, 0, 1)


def _blush(size: int) -> NDArray[np.float64]:
    return np.clip(2.5 * (np.abs(_grid(size)[1] - 0.5) - 0.25), 0, 1)  # towards both ends


def _noise(size: int, cells: int, seed: int, stretch: int = 1) -> NDArray[np.float64]:
    """Smooth periodic noise in 0 to 1, with `cells` cells across and `cells / stretch` down."""
    from PIL import Image

    knots = np.random.default_rng(seed).random((max(1, cells // stretch), cells))
    tiled = np.tile((255 * knots).astype(np.uint8), (3, 3))
    large = np.asarray(Image.fromarray(tiled).resize((3 * size, 3 * size), Image.Resampling.BICUBIC), np.float64)
    return large[size : 2 * size, size : 2 * size] / 255


def _text(text: str) -> NDArray[np.float64]:
    """The text at half height, twice around the part."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", (2 * TEXTURE_PX, 2 * TEXTURE_PX))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=TEXTURE_PX * 1.5 / max(3, len(text)))
    for middle in (0.5 * TEXTURE_PX, 1.5 * TEXTURE_PX):
        draw.text((middle, TEXTURE_PX), text, fill=255, font=font, anchor="mm")
    return np.asarray(image.resize((TEXTURE_PX, TEXTURE_PX), Image.Resampling.BOX), np.float64) / 255


PATTERNS: dict[str, Callable[[int], NDArray[np.float64]]] = {
    "plain": _plain,
    "band": _bands,
    "stripes": _stripes,
    "rings": _rings,
    "checks": _checks,
    "dots": _dots,
    "speckles": _speckles,
    "blush": _blush,
}


def _wood(light: Colour, dark: Colour, seed: int) -> NDArray[np.uint8]:
    size = TABLE_TEXTURE_PX
    x, _ = _grid(size)
    grain = 0.5 + 0.5 * np.sin(2 * np.pi * (10 * x + 1.2 * _noise(size, 4, seed) + 0.8 * _noise(size, 8, seed + 1, 4)))
    return _mixed(0.65 * grain + 0.35 * _noise(size, 128, seed + 2, 16), light, dark)


def _stone(light: Colour, dark: Colour, seed: int) -> NDArray[np.uint8]:
    size = TABLE_TEXTURE_PX
    mask = 0.5 * _noise(size, 6, seed) + 0.3 * _noise(size, 24, seed + 1) + 0.2 * _noise(size, 128, seed + 2)
    return _mixed(np.clip(2.2 * (mask - 0.28), 0, 1), light, dark)


def _cloth(light: Colour, dark: Colour, threads: int) -> NDArray[np.uint8]:
    x, y = _grid(TABLE_TEXTURE_PX)
    weave = 0.5 + 0.25 * np.sin(2 * np.pi * threads * x) + 0.25 * np.sin(2 * np.pi * threads * y)
    return _mixed(weave, light, dark)


def _tiles(light: Colour, dark: Colour, count: int) -> NDArray[np.uint8]:
    x, y = _grid(TABLE_TEXTURE_PX)
    return _mixed(((np.floor(x * count) + np.floor(y * count)) % 2).astype(np.float64), light, dark)


TABLES: dict[str, tuple[Callable[[], NDArray[np.uint8]], ...]] = {  # -> image [TABLE_TEXTURE_PX, TABLE_TEXTURE_PX, 3]
    "train": (
        partial(_stone, (0.60, 0.55, 0.50), (0.52, 0.47, 0.42), 0),
        partial(_wood, (0.78, 0.62, 0.43), (0.62, 0.45, 0.28), 10),
        partial(_wood, (0.48, 0.34, 0.24), (0.36, 0.24, 0.16), 20),
        partial(_stone, (0.82, 0.82, 0.80), (0.62, 0.63, 0.64), 30),
        partial(_cloth, (0.40, 0.46, 0.56), (0.32, 0.37, 0.46), 32),
        partial(_cloth, (0.74, 0.70, 0.62), (0.62, 0.57, 0.50), 24),
        partial(_stone, (0.35, 0.36, 0.38), (0.25, 0.26, 0.28), 40),
        partial(_tiles, (0.72, 0.72, 0.70), (0.66, 0.66, 0.65), 4),
    ),
    "test": (
        partial(_wood, (0.66, 0.47, 0.36), (0.50, 0.32, 0.22), 50),
        partial(_tiles, (0.55, 0.60, 0.55), (0.44, 0.50, 0.45), 6),
        partial(_cloth, (0.62, 0.44, 0.42), (0.52, 0.34, 0.33), 28),
        partial(_stone, (0.58, 0.62, 0.66), (0.42, 0.45, 0.50), 60),
    ),
}
