"""95% intervals of evaluation results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Cell = tuple[float, float]  # mean and half-width of its interval


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson score interval of a success rate."""
    from scipy.stats import binomtest  # where a machine only trains there may be no scipy

    interval = binomtest(successes, episodes).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def t_interval(values: Sequence[float]) -> Cell:
    """Mean and half-width of Student's t interval over independent values (seeds); nan for a single one."""
    from scipy.stats import t as student

    array = np.asarray(values, float)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    error = array.std(ddof=1) / np.sqrt(len(array))
    return float(array.mean()), float(student.ppf(0.975, len(array) - 1) * error)
