"""What a training has logged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def read_curves(folder: Path) -> dict[str, NDArray[np.float64]]:
    """TensorBoard scalars by tag, each [points, 2] of (step, value), the last value of a repeated step; {} where
    there is no log."""
    if not folder.is_dir():
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    values = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    return {tag: np.array(sorted(each.items())) for tag, each in values.items()}
