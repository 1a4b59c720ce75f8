"""JPEG decoding on a GPU by nvJPEG, through torchcodec or torchvision, whichever works here."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Decoder = Callable[[Sequence[Tensor], torch.device], Sequence[Tensor]]  # files uint8 [n] -> images uint8 [3, H, W]


@functools.cache
def gpu_decoder(device: torch.device) -> tuple[str, Decoder] | None:
    """The first library that decodes a picture on the device, by name; None where that is no GPU or none does."""
    for name, decoder in DECODERS.items() if device.type == "cuda" else ():
        try:
            image = decoder([_a_file()], device)[0]
        except (ImportError, OSError, RuntimeError, NotImplementedError):
            continue
        if image.is_cuda:
            return name, decoder
    return None


def _by_torchcodec(files: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    from torchcodec.decoders import decode_jpeg

    images: list[Tensor] = decode_jpeg(list(files), device=device)
    return images


def _by_torchvision(files: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision warns of the move of its codecs at every call
        images: list[Tensor] = decode_jpeg(list(files), mode=ImageReadMode.RGB, device=device)
    return images


DECODERS: dict[str, Decoder] = {"torchcodec": _by_torchcodec, "torchvision": _by_torchvision}


def _a_file() -> Tensor:
    """A JPEG of a grey picture."""
    from torchvision.io import encode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file: Tensor = encode_jpeg(torch.full((3, 16, 16), 128, dtype=torch.uint8))
    return file
