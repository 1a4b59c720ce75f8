"""Image codecs: JPEG (simplejpeg, or torchvision on a machine without it) and lossless Zstandard."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
CODECS = ("jpeg", "zstd")
JPEG_MAGIC = b"\xff\xd8\xff"
ZSTD_LEVEL = 3


def encode(frame: Frame, codec: str = "jpeg", quality: int = 95) -> bytes:
    """Encode a frame uint8 [H, W, 3] as JPEG without chroma subsampling, or as its raw pixels under Zstandard."""
    if codec == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(np.ascontiguousarray(frame).data)
    import simplejpeg

    return bytes(simplejpeg.encode_jpeg(frame, quality=quality, colorspace="RGB", colorsubsampling="444"))


def is_jpeg(data: bytes) -> bool:
    return data.startswith(JPEG_MAGIC)


def decode(data: bytes, out: Frame | None = None) -> Frame:
    """Decode a square frame uint8 [H, H, 3], into `out` if given; ValueError if the bytes are no image of its size."""
    frame = _decode_jpeg(data, out) if is_jpeg(data) else _decode_zstd(data)
    if out is None or frame is out:
        return frame
    if frame.shape != out.shape:
        raise ValueError(f"an image of shape {frame.shape} where {out.shape} was expected")
    out[...] = frame
    return out


def _decode_zstd(data: bytes) -> Frame:
    try:
        import zstandard
    except ImportError:
        raise ValueError("frames compressed by Zstandard need the package zstandard") from None
    try:
        numbers = np.frombuffer(zstandard.ZstdDecompressor().decompress(data), np.uint8)
    except zstandard.ZstdError as error:
        raise ValueError(f"neither a JPEG nor a Zstandard image ({error})") from error
    side = math.isqrt(len(numbers) // 3)
    return numbers.reshape(side, side, 3).copy()


def _jpeg_decoder() -> Callable[[bytes, Frame | None], Frame]:
    try:
        import simplejpeg
    except ImportError:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        def with_torchvision(data: bytes, out: Frame | None) -> Frame:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchvision warns of the move of its codecs at every call
                try:
                    image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
                except RuntimeError as error:
                    raise ValueError(str(error)) from error
            return np.ascontiguousarray(image.permute(1, 2, 0).numpy())

        return with_torchvision

    def with_simplejpeg(data: bytes, out: Frame | None) -> Frame:
        if out is not None and simplejpeg.decode_jpeg_header(data)[:2] == out.shape[:2]:
            simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)
            return out
        return simplejpeg.decode_jpeg(data, colorspace="RGB")

    return with_simplejpeg


_decode_jpeg = _jpeg_decoder()
