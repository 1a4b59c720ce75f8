"""Image sizes that the networks accept, and the size of the frames that are stored for random crops.

Here, on the ground floor, because data collection and the networks need the same numbers and do not import each other.
"""

from __future__ import annotations

import math

SMALL_PX = (48, 128)  # smallest and largest image of the small network, in steps of four pixels
QTOPT_FROM_PX = 220  # smallest image of QT-Opt's network: below it, its last three convolutions run out of feature map


def check_size(size_px: int) -> None:
    """Raises ValueError for an image size that no network accepts."""
    if not ((SMALL_PX[0] <= size_px <= SMALL_PX[1] and size_px % 4 == 0) or size_px >= QTOPT_FROM_PX):
        raise ValueError(
            f"no network sees {size_px} px: the small one takes {SMALL_PX[0]} to {SMALL_PX[1]} in steps of 4, "
            f"QT-Opt's {QTOPT_FROM_PX} and more"
        )


def frame_size(crop_size: int) -> int:
    """Side of the stored frame (px) for a network input of `crop_size` px, as 512 is to 472: 472 -> 512, 64 -> 72."""
    return math.ceil(crop_size * 512 / 472 / 8) * 8
