"""All frames of a dataset, decoded once and kept on the device of a training, where batches are gathered.

Shapes: `F` frames of side `H` px, `L` landmarks, `P` points (sim/landmarks.py), `B` rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch
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
                frames = replay.read(numbers)
                images = torch.empty((len(frames), replay.frame_size, replay.frame_size, 3), dtype=torch.uint8)
                decode_frames(replay, frames, images)
                for name, values in {"image": images, **columns_of(frames, len(frames))}.items():
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


def columns_of(frames: Sequence[Frame], marked: int) -> dict[str, Tensor]:
    """What a batch holds of frames besides images, by the names of its fields: `gripper` [B, 2] and `action` [B, 5] of
    all, and the landmarks of the first `marked`."""
    state = SceneState(np.stack([frame.state for frame in frames]))
    marks = landmarks(SceneState(state.vector[:marked]))
    arrays = {
        "gripper": np.stack([state["gripper_closed"], state["gripper_position"][:, 2]], axis=1),
        "action": np.stack([frame.action for frame in frames]),
        "landmark": marks.value,
        "point": marks.point.astype(np.float32),
        "point_present": marks.point_present.astype(np.bool_),
    }
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
