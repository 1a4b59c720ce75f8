"""95% intervals of evaluation results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054  # 97.5% quantile of the normal distribution; a machine that only trains may lack scipy
Cell = tuple[float, float]  # mean and half-width of its interval
Counts = tuple[int, int]  # successes, episodes


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson score interval of a success rate (Wilson 1927)."""
    low, high = _wilson(np.array([[successes, episodes]], float))[0]
    return float(low), float(high)


def _wilson(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same for several rates: (successes, episodes) [N, 2] -> (low, high) [N, 2]."""
    x, n = counts.T
    middle, half = x + Z**2 / 2, Z * np.sqrt(x * (n - x) / n + Z**2 / 4)
    return np.clip(np.stack([middle - half, middle + half], axis=1) / (n + Z**2)[:, None], 0, 1)


def mean_of_rates(counts: Sequence[Counts], coefficients: Sequence[float] | None = None) -> tuple[float, float, float]:
    """Weighted sum of independent success rates and its interval: (estimate, low, high).

    Default coefficients: the mean over tasks, 1/N each. Recovers the variance of each rate from its Wilson interval
    (MOVER; Zou & Donner 2008, Stat. Med. 27:1693): with one rate the interval is Wilson's, and with coefficients
    (1, -1) it is Newcombe's."""
    weights = np.full(len(counts), 1 / len(counts)) if coefficients is None else np.asarray(coefficients, float)
    rates = np.array([successes / episodes for successes, episodes in counts])
    limits = _wilson(np.array(counts, float))
    terms, ends = weights * rates, weights[:, None] * limits
    estimate = float(terms.sum())
    below = float(np.sqrt(((terms - ends.min(1)) ** 2).sum()))
    above = float(np.sqrt(((ends.max(1) - terms) ** 2).sum()))
    return estimate, estimate - below, estimate + above


def newcombe(a: Counts, b: Counts) -> tuple[float, float]:
    """Hybrid score interval of the difference b - a of two independent success rates (Newcombe 1998, Stat. Med. 17:873,
    method 10, without continuity correction)."""
    _, low, high = mean_of_rates([b, a], (1, -1))
    return low, high


def t_interval(values: Sequence[float]) -> Cell:
    """Mean and half-width of Student's t interval over independent values (seeds); nan for a single one."""
    from scipy.stats import t as student

    array = np.asarray(values, float)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    error = array.std(ddof=1) / np.sqrt(len(array))
    return float(array.mean()), float(student.ppf(0.975, len(array) - 1) * error)
