"""All frames of a dataset, decoded once and kept on the device of a training, where batches are gathered.

Shapes: `F` frames of side `H` px, `L` landmarks, `P` points (sim/landmarks.py), `B` rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from data import codec
from data.replay import Replay
from data.shards import Frame
from sim.files import DatasetError
from sim.landmarks import landmarks
from sim.state import SceneState

FRAMES = ("auto", "device", "encoded")
CHUNK = 512  # frames decoded at a time
MOST_OF_MEMORY = 0.6  # of what is free on a device, which a training needs too
GIB = 2**30


class DecodedFrames:
    """`columns`, as in a batch: `image` uint8 [F, H, H, 3], `gripper` [F, 2], `action` [F, 5], `landmark` [F, L, 6],
    `point` [F, P, 2], `point_present` bool [F, P]."""

    def __init__(self, replay: Replay, device: torch.device | str) -> None:
        """Reads and decodes the whole dataset, with a progress bar. ValueError, with the sizes, where it does not
        fit."""
        self.device = torch.device(device)
        if not fits(replay, self.device):
            size, free = decoded_bytes(replay), free_bytes(self.device)
            raise ValueError(
                f"{replay.folder}: decoded it is {size / GIB:.1f} GiB, more than {MOST_OF_MEMORY:.0%} of the "
                f"{free / GIB:.1f} GiB that are free on {self.device}; --frames encoded reads frames as they are needed"
            )
        self.columns: dict[str, Tensor] = {}
        count = num_frames(replay)
        with tqdm(total=count, desc="decode", unit="frame") as progress:
            for begin in range(0, count, CHUNK):
                numbers = np.arange(begin, min(begin + CHUNK, count))
                for name, values in _columns(replay, replay.read(numbers)).items():
                    if name not in self.columns:
                        self.columns[name] = torch.empty((count, *values.shape[1:]), dtype=values.dtype, device=device)
                    self.columns[name][begin : begin + len(numbers)] = values
                progress.update(len(numbers))


def num_frames(replay: Replay) -> int:
    return replay.num_steps + replay.num_episodes


def decoded_bytes(replay: Replay) -> int:
    """Of the images, and about 1 KB a frame of the rest."""
    return num_frames(replay) * (3 * replay.frame_size**2 + 1000)


def fits(replay: Replay, device: torch.device) -> bool:
    """Whether the frames leave enough of a device's memory to a training."""
    return decoded_bytes(replay) <= MOST_OF_MEMORY * free_bytes(device)


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for reuse
        return torch.cuda.mem_get_info(device)[0] + kept
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def decode_frames(replay: Replay, frames: Iterable[Frame], images: Tensor) -> None:
    """Decode into images uint8 [B, H, H, 3]; DatasetError if one cannot be decoded."""
    for frame, out in zip(frames, images.numpy(), strict=True):
        try:
            codec.decode(frame.image, out)
        except ValueError as error:
            raise DatasetError(f"{replay.folder}: a frame cannot be decoded: {error}") from error


def gripper_reading(state: NDArray[np.float32]) -> NDArray[np.float32]:
    """Closed (0/1) and height (m) of states [B, ...], [B, 2]."""
    view = SceneState(state)
    return np.stack([view["gripper_closed"], view["gripper_position"][:, 2]], axis=1)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on a device, which is not waited for."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def _columns(replay: Replay, frames: list[Frame]) -> dict[str, Tensor]:
    state = np.stack([frame.state for frame in frames])
    images = torch.empty((len(frames), replay.frame_size, replay.frame_size, 3), dtype=torch.uint8)
    decode_frames(replay, frames, images)
    marks = landmarks(SceneState(state))
    arrays = {
        "gripper": gripper_reading(state),
        "action": np.stack([frame.action for frame in frames]),
        "landmark": marks.value,
        "point": marks.point.astype(np.float32),
        "point_present": marks.point_present.astype(np.bool_),
    }
    return {"image": images, **{name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}}
