"""Films and pictures as files: captions, and frames in the format of a file's suffix."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.files import write_atomic

if TYPE_CHECKING:
    from PIL import Image

FORMATS = (".gif", ".webp", ".png")
CAPTION_PX = 44
SMALLEST_PX = 320  # of a film; smaller frames are enlarged to leave room for the caption
FILM_PAUSE_MS = 80  # between frames of a state benchmark


def write_film(path: Path, frames: list[Image.Image], pause_ms: int) -> None:
    """A looping film; it appears whole or not at all."""
    saved = _with_shared_palette(frames) if path.suffix.lower() == ".gif" else frames
    write_atomic(path, encoded(saved[0], path, save_all=True, append_images=saved[1:], duration=pause_ms, loop=0))


def captioned(frame: NDArray[np.uint8], text: str, detected: Sequence[str]) -> Image.Image:
    """The frame above two lines: a text, and the tasks that are successes in this state."""
    from PIL import Image, ImageDraw, ImageFont

    frame = np.repeat(np.repeat(frame, factor := -(-SMALLEST_PX // len(frame)), axis=0), factor, axis=1)
    size = frame.shape[0]
    image = Image.new("RGB", (size, size + CAPTION_PX), (24, 24, 26))
    image.paste(Image.fromarray(frame), (0, 0))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=15)
    draw.text((6, size + 3), text, fill=(235, 235, 235), font=font)
    draw.text(
        (6, size + 23),
        f"detected: {', '.join(detected) or 'nothing'}",
        fill=(120, 220, 120) if detected else (150, 150, 150),
        font=font,
    )
    return image


def encoded(image: Image.Image, path: Path, **options: Any) -> bytes:
    """Encodes an image in the format of the path's suffix."""
    from PIL import Image

    content = io.BytesIO()
    image.save(content, Image.registered_extensions()[path.suffix.lower()], **options)
    return content.getvalue()


def _with_shared_palette(frames: list[Image.Image]) -> list[Image.Image]:
    """Quantises all frames to the same 256 colours, or objects would change colour from frame to frame."""
    from PIL import Image

    samples = frames[:: max(1, len(frames) // 8)]
    strip = Image.new("RGB", (samples[0].width, sum(frame.height for frame in samples)))
    for number, frame in enumerate(samples):
        strip.paste(frame, (0, number * frame.height))
    palette = strip.quantize(256, Image.Quantize.MEDIANCUT)
    return [frame.quantize(palette=palette) for frame in frames]
