"""Frames as bytes: JPEG (simplejpeg, else torchvision on a bare GPU machine), or PNG where nothing may be lost."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
CODECS = ("jpeg", "png")
JPEG_MAGIC = b"\xff\xd8\xff"


def encode(frame: Frame, codec: str = "jpeg", quality: int = 95) -> bytes:
    """A frame uint8 [H, W, 3] as a JPEG file without chroma subsampling, or as a PNG file."""
    if codec == "png":
        from PIL import Image

        out = io.BytesIO()
        Image.fromarray(frame).save(out, "png", compress_level=1)
        return out.getvalue()
    import simplejpeg

    return bytes(simplejpeg.encode_jpeg(frame, quality=quality, colorspace="RGB", colorsubsampling="444"))


def decode(data: bytes, out: Frame | None = None) -> Frame:
    """A frame uint8 [H, W, 3], in `out` where that is given; ValueError where the bytes are no picture of its size."""
    frame = _decode_jpeg(data, out) if data.startswith(JPEG_MAGIC) else _decode_png(data)
    if out is None or frame is out:
        return frame
    if frame.shape != out.shape:
        raise ValueError(f"a picture of shape {frame.shape} where {out.shape} was expected")
    out[...] = frame
    return out


def _decode_png(data: bytes) -> Frame:
    from PIL import Image, UnidentifiedImageError

    try:
        return np.array(Image.open(io.BytesIO(data), formats=["png"]).convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"neither a JPEG nor a PNG picture ({error})") from error


def _jpeg_decoder() -> Callable[[bytes, Frame | None], Frame]:
    try:
        import simplejpeg
    except ImportError:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        def through_torchvision(data: bytes, out: Frame | None) -> Frame:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchvision announces the move of its codecs at every call
                image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
            return np.ascontiguousarray(image.permute(1, 2, 0).numpy())

        return through_torchvision

    def through_simplejpeg(data: bytes, out: Frame | None) -> Frame:
        if out is not None and simplejpeg.decode_jpeg_header(data)[:2] == out.shape[:2]:
            simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)
            return out
        return simplejpeg.decode_jpeg(data, colorspace="RGB")

    return through_simplejpeg


_decode_jpeg = _jpeg_decoder()
