"""Materials: colours and procedural patterns of the parts of objects and fixtures, and of the table."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.options import check_choice

Colour = tuple[float, float, float]
TEXTURE_PX = 64  # of a part of an object or fixture
TABLE_TEXTURE_PX = 256
TABLE_TEXTURE_M = 0.5  # one period of the texture


@dataclass(frozen=True)
class Material:
    """Material of a part: `colour`, and `second` where its pattern is (a name in `PATTERNS`, for the table one in
    `TABLE_PATTERNS`, or a text in capitals). Colours are red, green and blue, 0 to 1."""

    colour: Colour
    pattern: str = "plain"
    second: Colour = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if not self.pattern.isupper():
            check_choice("pattern", self.pattern, (*PATTERNS, *TABLE_PATTERNS))


def texture(material: Material) -> NDArray[np.uint8]:
    """Texture image [S, S, 3] of a material, top row first; S is that of its `mask`."""
    fraction = mask(material.pattern)
    image = np.empty((*fraction.shape, 3), np.uint8)
    for channel, (first, second) in enumerate(zip(material.colour, material.second, strict=True)):
        image[..., channel] = np.rint(255 * ((1 - fraction) * first + fraction * second))
    return image


@functools.cache
def mask(pattern: str) -> NDArray[np.float64]:
    """Fraction [S, S] of the second colour, 0 to 1, top row first; S = `TEXTURE_PX`, or `TABLE_TEXTURE_PX` for the
    table."""
    if pattern in TABLE_PATTERNS:
        return TABLE_PATTERNS[pattern](TABLE_TEXTURE_PX)
    return PATTERNS[pattern](TEXTURE_PX) if pattern in PATTERNS else _text(pattern)


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


def _diagonals(size: int) -> NDArray[np.float64]:
    x, y = _grid(size)
    return (np.floor((x + y) * 8) % 2).astype(np.float64)


def _zigzag(size: int) -> NDArray[np.float64]:
    x, y = _grid(size)
    return (np.floor(6 * y + 2 * np.abs((4 * x) % 1 - 0.5)) % 2).astype(np.float64)


def _halves(size: int) -> NDArray[np.float64]:
    return (_grid(size)[1] > 0.5).astype(np.float64)


def _gradient(size: int) -> NDArray[np.float64]:
    return _grid(size)[1].copy()


def _disc(size: int) -> NDArray[np.float64]:
    x, y = _grid(size)
    return (np.hypot(x - 0.5, y - 0.5) < 0.3).astype(np.float64)


def _frame(size: int) -> NDArray[np.float64]:
    x, y = _grid(size)
    return (np.maximum(np.abs(x - 0.5), np.abs(y - 0.5)) > 0.36).astype(np.float64)


def _plaid(size: int) -> NDArray[np.float64]:
    return (_stripes(size) + np.floor(_grid(size)[1] * 12) % 2) / 2


def _blots(size: int) -> NDArray[np.float64]:
    return np.clip((_noise(size, 6, seed=2) - 0.5) * 12, 0, 1)


def _clouds(size: int) -> NDArray[np.float64]:
    return np.clip((_noise(size, 5, seed=3) - 0.5) * 2 + 0.5, 0, 1)


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
    "diagonals": _diagonals,
    "zigzag": _zigzag,
    "halves": _halves,
    "gradient": _gradient,
    "disc": _disc,
    "frame": _frame,
    "plaid": _plaid,
    "blots": _blots,
    "clouds": _clouds,
}


def _wood(size: int, number: int) -> NDArray[np.float64]:
    x, _ = _grid(size)
    bends = 1.2 * _noise(size, 4, number) + 0.8 * _noise(size, 8, number + 1, 4)
    grain = 0.5 + 0.5 * np.sin(2 * np.pi * (10 * x + bends))
    return 0.65 * grain + 0.35 * _noise(size, 128, number + 2, 16)


def _stone(size: int, number: int) -> NDArray[np.float64]:
    flecks = 0.5 * _noise(size, 6, number) + 0.3 * _noise(size, 24, number + 1) + 0.2 * _noise(size, 128, number + 2)
    return np.clip(2.2 * (flecks - 0.28), 0, 1)


def _cloth(size: int, number: int) -> NDArray[np.float64]:
    x, y = _grid(size)
    return 0.5 + 0.25 * np.sin(2 * np.pi * number * x) + 0.25 * np.sin(2 * np.pi * number * y)


def _tiles(size: int, number: int) -> NDArray[np.float64]:
    x, y = _grid(size)
    return ((np.floor(x * number) + np.floor(y * number)) % 2).astype(np.float64)


def _gingham(size: int, number: int) -> NDArray[np.float64]:
    x, y = _grid(size)
    return (np.floor(x * number) % 2 + np.floor(y * number) % 2) / 2


def _laminate(size: int, number: int) -> NDArray[np.float64]:
    return np.clip((_noise(size, 128, number) - 0.6) * 4, 0, 1)


# Kind -> its mask, and numbers: the seed of the grain, or threads or tiles across the texture.
_TABLES: dict[str, tuple[Callable[..., NDArray[np.float64]], tuple[int, ...]]] = {
    "wood": (_wood, (10, 20, 70, 80, 50)),
    "stone": (_stone, (0, 30, 40, 90, 60)),
    "cloth": (_cloth, (32, 24, 16, 40, 28)),
    "tiles": (_tiles, (4, 2, 8, 10, 6)),
    "gingham": (_gingham, (10, 16, 24)),
    "laminate": (_laminate, (100, 110)),
}
TABLE_PATTERNS: dict[str, Callable[[int], NDArray[np.float64]]] = {  # such as "wood-10"
    f"{kind}-{number}": functools.partial(make, number=number)
    for kind, (make, numbers) in _TABLES.items()
    for number in numbers
}
