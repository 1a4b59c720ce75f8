"""JPEG frames: simplejpeg where it is installed, torchvision's codec where it is not (a bare GPU machine)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]


def encode(frame: Frame, quality: int) -> bytes:
    """A frame uint8 [H, W, 3] as JPEG bytes, without chroma subsampling."""
    import simplejpeg

    return bytes(simplejpeg.encode_jpeg(frame, quality=quality, colorspace="RGB", colorsubsampling="444"))


def _decoder() -> Callable[[Frame], Frame]:
    try:
        import simplejpeg
    except ImportError:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        def through_torchvision(data: Frame) -> Frame:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchvision announces the move of its codecs at every call
                image = decode_jpeg(torch.from_numpy(data.copy()), mode=ImageReadMode.RGB)
            return np.ascontiguousarray(image.permute(1, 2, 0).numpy())

        return through_torchvision
    return lambda data: simplejpeg.decode_jpeg(data, colorspace="RGB")


decode: Callable[[Frame], Frame] = _decoder()  # JPEG bytes as uint8 [n] -> frame uint8 [H, W, 3]
