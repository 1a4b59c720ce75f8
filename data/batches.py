"""Batches of image transitions, as a loader hands them to a learner (data/sampler.py fills them)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data import codec
from data.gpu_decoding import gpu_decoder

NO_IMAGES = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
IMAGES = ("image", "next_image", "score_image")
NO_BYTES, NO_SIZES = torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
NO_ROWS = torch.empty(0, 0)


@dataclass
class Batch:
    """B n-step transitions (s, a, r_i, s'), relabelled for target task i = `task_index`; collected for source task
    j = `source_task_index`."""

    image: Tensor  # uint8 [B, 3, H, W], stored size: not yet cropped
    next_image: Tensor  # uint8 [B, 3, H, W]
    gripper: Tensor  # float32 [B, 2]: closed (0/1), height (m)
    next_gripper: Tensor  # float32 [B, 2]
    action: Tensor  # float32 [B, 5], sim/actions.py
    reward: Tensor  # float32 [B], of the target task: 1 if s' ends an episode that succeeds at it
    done: Tensor  # float32 [B], 1 if s' ends the episode: its success is decided there, so no bootstrapping
    n_step: Tensor  # float32 [B], steps from s to s': the configured n, fewer where the episode ends before
    steps_to_go: Tensor  # float32 [B], steps from s to the end of the episode
    success: Tensor  # float32 [B], episode succeeds at the target task; 0 if shared and the rule does not relabel
    landmark: Tensor  # float32 [B, L, 6], privileged: poses and presence (sim/landmarks.py)
    point: Tensor  # float32 [B, P, 2], privileged: landmarks in the stored frame, as fractions of its side
    point_present: Tensor  # bool [B, P]
    task_index: Tensor  # int64 [B]
    source_task_index: Tensor  # int64 [B]
    episode: Tensor  # int64 [B], index in the dataset
    is_shared: Tensor  # bool [B], collected for another task
    score_image: Tensor = NO_IMAGES  # uint8 [P, 3, H, W], of P further steps, to be scored for every task
    score_gripper: Tensor = NO_ROWS  # float32 [P, 2]
    score_action: Tensor = NO_ROWS  # float32 [P, 5]
    score_episode: Tensor = NO_SIZES  # int64 [P], index in the dataset
    encoded: Tensor = NO_BYTES  # uint8 [sum]: JPEG files of `image`, `next_image`, `score_image`, if `to` decodes them
    encoded_size: Tensor = NO_SIZES  # int64 [2 B + P]: bytes of each file

    def to(self, device: torch.device | str) -> Batch:
        """Move the batch to a device, where images that are still encoded are decoded."""
        rest = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("encoded")}
        if len(self.encoded_size):
            rest |= split_images(decode_on(device, self.encoded, self.encoded_size), len(self))
        moved = {name: value.to(device, non_blocking=True) for name, value in rest.items()}
        return Batch(**moved)

    def pin_memory(self) -> Batch:
        """Copy the batch to pinned memory; PyTorch's loader calls it too."""
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    def select(self, index: Tensor) -> Batch:
        """Rows of a batch whose images are decoded."""
        names = (f.name for f in fields(self) if not f.name.startswith(("encoded", "score_")))
        return Batch(**{name: getattr(self, name)[index] for name in names})

    def arrays(self, images: bool) -> dict[str, NDArray[Any]]:
        """All fields as arrays, with or without the decoded images."""
        names = (f.name for f in fields(self) if images or f.name not in IMAGES)
        return {name: getattr(self, name).numpy() for name in names}

    def __len__(self) -> int:
        return len(self.task_index)


def split_images(images: Tensor, size: int) -> dict[str, Tensor]:
    """Images [2 B + P, 3, H, W] of a batch of `size` B by the names of its fields."""
    return dict(zip(IMAGES, (images[:size], images[size : 2 * size], images[2 * size :]), strict=True))


def split_readings(gripper: Tensor, action: Tensor, size: int) -> dict[str, Tensor]:
    """Gripper readings and actions [2 B + P, ...] of a batch of `size` B by the names of its fields."""
    parts = (gripper[:size], gripper[size : 2 * size], action[:size], gripper[2 * size :], action[2 * size :])
    return dict(zip(("gripper", "next_gripper", "action", "score_gripper", "score_action"), parts, strict=True))


def decode_on(device: torch.device | str, encoded: Tensor, size: Tensor) -> Tensor:
    """Decode JPEG files to images uint8 [B, 3, H, W]: by nvJPEG on a GPU, else one by one on the CPU."""
    files, device = encoded.split(size.tolist()), torch.device(device)
    if device.type == "cuda":
        found = gpu_decoder(device)
        if found is None:
            raise ValueError("nothing here decodes JPEG on the GPU; --decode cpu does without")
        return torch.stack(list(found[1](files, device)))
    frames = np.stack([codec.decode(file.numpy().tobytes()) for file in files])
    return torch.from_numpy(frames).permute(0, 3, 1, 2)
