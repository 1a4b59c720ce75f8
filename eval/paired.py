"""Statistics of the comparison of two arms, A and B, by their episodes: tests, bootstrap intervals, power.

An arm is one policy, or one recipe trained with several seeds: a *run* for each. Runs that met the same scenes are
resampled together, so that what is hard about a scene cancels in the difference B - A.

Shapes: `R` runs of both arms, `K` runs of one arm, `S` scenes, `N` tasks, `X` resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
SEED = 0  # of all resampling: the same files give the same intervals
TAIL = 0.025  # of 95% intervals
LEVEL, POWER = 0.05, 0.80  # of `smallest_difference`
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Outcomes of one task in scenes that all of its runs met: success [R, S], and the arm (0: A, 1: B) and the number
    within its arm of each run, [R]."""

    outcomes: NDArray[np.bool_]
    arm: NDArray[np.int64]
    run: NDArray[np.int64]

    @property
    def scenes(self) -> int:
        return self.outcomes.shape[1]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """B - A of a task or of the mean over tasks, with its 95% interval. `p`: of Student's t, `standard_error` and
    `degrees`: its parts, where there are several runs; None else."""

    estimate: float
    low: float
    high: float
    standard_error: float
    degrees: float
    p: float | None


def mcnemar(only_a: int, only_b: int) -> tuple[float, float]:
    """Two-sided exact and mid-p values of McNemar's test, from the pairs in which one arm alone succeeds.

    Mid-p: Fagerland, Lydersen & Laake 2013 (BMC Med. Res. Methodol. 13:91): the exact value less the probability of
    what was observed. Both are 1 where no pair differs."""
    from scipy.stats import binom, binomtest

    pairs = only_a + only_b
    if pairs == 0:
        return 1.0, 1.0
    exact, observed = float(binomtest(only_a, pairs).pvalue), float(binom.pmf(only_a, pairs, 0.5))
    return exact, 1 - observed / 2 if only_a == only_b else exact - observed


def score_test(a: Sequence[tuple[int, int]], b: Sequence[tuple[int, int]]) -> float:
    """Two-sided p of independent (successes, episodes) by task: z of the mean difference, its variance from the rates
    of both arms together. For one task this is Pearson's test of two proportions."""
    from scipy.stats import norm

    (x, m), (y, n) = np.array(a, float).T, np.array(b, float).T
    rate = (x + y) / (m + n)
    error = np.sqrt((rate * (1 - rate) * (1 / m + 1 / n)).sum())
    return float(2 * norm.sf(abs((y / n - x / m).sum()) / error)) if error else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p values (Holm 1979): compare them with the level of the whole family."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted.tolist()


def smallest_difference(pairs: int, discordant: int) -> float | None:
    """The smallest difference that McNemar's test finds with 80% power at 5%, two-sided, with so many pairs.

    Solves N = (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2 for d (Connor 1987, Biometrics 43:207). psi, the
    probability that a pair differs, is (discordant + 1) / (pairs + 2), for none observed is not none. None for fewer
    than four pairs."""
    from scipy.stats import norm

    z_a, z_b = norm.isf(LEVEL / 2), norm.isf(1 - POWER)
    rest = pairs - z_a**2 + z_b**2
    if rest <= 0:
        return None
    psi = (discordant + 1) / (pairs + 2)
    return float(min(1.0, np.sqrt(psi) * (z_a * np.sqrt(pairs) + z_b * np.sqrt(rest)) / (pairs + z_b**2)))


def smallest_independent_difference(a: Sequence[tuple[int, int]], b: Sequence[tuple[int, int]]) -> float:
    """The same for independent episodes, (successes, episodes) by task, in the mean over tasks: (z_a + z_b) times the
    standard error (Fleiss, Levin & Paik 2003, ch. 4), from the rates of both arms together, (x + 1) / (n + 2)."""
    from scipy.stats import norm

    (x, m), (y, n) = np.array(a, float).T, np.array(b, float).T
    rate = (x + y + 1) / (m + n + 2)
    error = np.sqrt((rate * (1 - rate) * (1 / m + 1 / n)).sum()) / len(a)
    return float(min(1.0, (norm.isf(LEVEL / 2) + norm.isf(1 - POWER)) * error))


def smallest_over_seeds(difference: Difference) -> float | None:
    """The same where p is of Student's t: its two quantiles times the standard error; None where that is 0."""
    from scipy.stats import t as student

    quantiles = student.isf(LEVEL / 2, difference.degrees) + student.isf(1 - POWER, difference.degrees)
    return float(min(1.0, quantiles * difference.standard_error)) if difference.standard_error else None


def differences(
    tasks: Sequence[Sequence[Block]], resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[list[Difference], Difference]:
    """B - A on each task and in the mean over tasks, by a bootstrap of scenes within tasks, and of runs within arms.

    `tasks`: the blocks of each; together they hold every run once. Each resample takes S - 1 of the S scenes of a block
    and, where an arm has several runs, K - 1 of its K, so that the variance is that of the sample, not (S - 1) / S of
    it (Hesterberg 2015, Am. Stat. 69:371).

    One run in each arm: percentiles. Where no pair differs these would say 0 to 0: there the interval is what N pairs
    without a difference leave possible, +-(1 - 0.025^(1/N)), the exact (Clopper-Pearson) bound on their share.

    Several runs: three seeds have no percentiles, so Student's t with the standard error of the bootstrap, and degrees
    of freedom by Satterthwaite (1946). The noise of single episodes enters the bootstrap's variance three times, with
    runs, with scenes and with both (Owen 2007, Ann. Appl. Stat. 1:386); the standard error is reduced to once."""
    rng = np.random.default_rng(seed)
    sizes = [1 + max(int(b.run[b.arm == arm].max(initial=-1)) for b in tasks[0]) for arm in (0, 1)]
    chosen = [_multiplicities(rng, np.ones(size, np.int64), resamples) for size in sizes]
    rates = [np.zeros((size, len(tasks))) for size in sizes]
    draws = np.zeros((resamples, len(tasks)))
    for t, blocks in enumerate(tasks):
        for block in blocks:
            patterns, counts = _patterns(block.outcomes)
            met = _multiplicities(rng, counts, resamples) @ patterns.T.astype(float)  # [X, R]
            for k, (arm, run) in enumerate(zip(block.arm, block.run, strict=True)):
                rates[arm][run, t] = block.outcomes[k].mean()
                draws[:, t] += (1 if arm else -1) * chosen[arm][:, run] * met[:, k]
    count = len(tasks)
    each = [_difference(rates, tasks, draws[:, t], np.eye(count)[t]) for t in range(count)]
    return each, _difference(rates, tasks, draws.mean(1), np.full(count, 1 / count))


def _patterns(outcomes: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The different scenes of outcomes [R, S], as columns [R, P], and how many there are of each, [P]."""
    ordered = outcomes[:, np.lexsort(outcomes)]
    first = np.concatenate([[0], 1 + np.flatnonzero((ordered[:, 1:] != ordered[:, :-1]).any(0))])
    return ordered[:, first], np.diff(first, append=outcomes.shape[1])


def _multiplicities(rng: np.random.Generator, counts: NDArray[np.int64], resamples: int) -> NDArray[np.float64]:
    """Weights [X, P] of resamples of n - 1 of n = sum(counts) things that are of P kinds."""
    size = int(counts.sum())
    if len(counts) == 1:
        return np.ones((resamples, 1))
    taken = max(size - 1, 1)
    return rng.multinomial(taken, counts / size, size=resamples) / taken


def _difference(
    rates: list[NDArray[np.float64]],
    tasks: Sequence[Sequence[Block]],
    draws: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> Difference:
    """Of the sum over tasks by `weights` [N]; `rates`: [K, N] of each arm; `draws` [X]: its resamples."""
    from scipy.stats import t as student

    used = [(weight, block) for weight, blocks in zip(weights, tasks, strict=True) for block in blocks if weight]
    estimate = float(rates[1].mean(0) @ weights - rates[0].mean(0) @ weights)
    several = max(len(each) for each in rates) > 1
    if any(block.scenes < 2 for _, block in used):  # one episode has no variance
        return Difference(estimate=estimate, low=-1.0, high=1.0, standard_error=np.inf, degrees=1.0, p=None)
    if not several:
        low, high = _percentiles(draws)
        if not any((block.outcomes[0] != block.outcomes[1]).any() for _, block in used if len(block.run) == 2):
            pairs = sum(block.scenes for _, block in used)
            low, high = -(1 - TAIL ** (1 / pairs)), 1 - TAIL ** (1 / pairs)
        error = float(draws.std())
        return Difference(estimate=estimate, low=low, high=high, standard_error=error, degrees=np.inf, p=None)
    runs = [(each @ weights).var(ddof=1) / len(each) if len(each) > 1 else 0.0 for each in rates]
    scenes = [weight**2 * _scene_variance(block, rates) for weight, block in used]
    noise = sum(weight**2 * _noise(block, rates) for weight, block in used)
    counted = sum(runs) + sum(scenes)
    variance = max(counted - noise, sum(runs), sum(scenes))
    parts = [(v, len(each) - 1) for v, each in zip(runs, rates, strict=True) if len(each) > 1]
    parts += [(v, block.scenes - 1) for v, (_, block) in zip(scenes, used, strict=True)]
    spread = sum(v**2 / degrees for v, degrees in parts)
    degrees = float(variance**2 / spread) if spread else 1.0
    error = float(draws.std() * np.sqrt(variance / (counted + noise))) if counted else 0.0
    half = float(student.ppf(1 - TAIL, degrees)) * error
    p = float(2 * student.sf(abs(estimate) / error, degrees)) if error else float(estimate == 0)
    return Difference(
        estimate=estimate,
        low=max(-1.0, estimate - half),
        high=min(1.0, estimate + half),
        standard_error=error,
        degrees=degrees,
        p=p,
    )


def _signs(block: Block, rates: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """What each run counts in B - A, [R]."""
    return np.array([(1 if arm else -1) / len(rates[arm]) for arm in block.arm])


def _scene_variance(block: Block, rates: list[NDArray[np.float64]]) -> float:
    """Variance that the choice of scenes gives to the difference."""
    return float((_signs(block, rates) @ block.outcomes).var(ddof=1) / block.scenes)


def _noise(block: Block, rates: list[NDArray[np.float64]]) -> float:
    """The part of `_scene_variance` that the variance between runs holds too: episodes apart from what is common to
    their scene and to their run, where an arm has several runs."""
    total = 0.0
    for arm in (0, 1):
        mine = block.outcomes[block.arm == arm].astype(float)  # [K, S]
        if len(rates[arm]) < 2 or not len(mine):
            continue
        apart = mine - mine.mean(1, keepdims=True)
        freedom = block.scenes - 1
        if len(mine) > 1:
            apart -= apart.mean(0)
            freedom *= len(mine) - 1
        total += len(mine) / len(rates[arm]) ** 2 * float((apart**2).sum()) / freedom / block.scenes
    return total


def interquartile_mean(scores: NDArray[np.float64]) -> float:
    """Mean of the middle half of all scores [K, N] of runs and tasks (Agarwal et al. 2021, arXiv:2108.13264)."""
    from scipy.stats import trim_mean

    return float(trim_mean(scores, 0.25, axis=None))


def probability_of_improvement(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Probability that a run of B beats one of A on a task, ties counting half, in the mean over tasks; scores [K, N]
    (Agarwal et al. 2021)."""
    return float(_improvement(a[None], b[None])[0])


def _improvement(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same for resamples, scores [X, K, N]."""
    above = b[:, :, None] - a[:, None]
    return ((above > 0) + 0.5 * (above == 0)).mean((1, 2, 3))


def interquartile_interval(scores: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = SEED) -> Interval:
    """Percentiles of the stratified bootstrap: runs are resampled for each task on its own (Agarwal et al. 2021)."""
    from scipy.stats import trim_mean

    drawn = _stratified(scores, np.random.default_rng(seed), resamples)
    return _percentiles(np.asarray(trim_mean(drawn.reshape(resamples, -1), 0.25, axis=1)))


def improvement_interval(
    a: NDArray[np.float64], b: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = SEED
) -> Interval:
    """The same for the probability of improvement; the arms are resampled independently."""
    rng = np.random.default_rng(seed)
    return _percentiles(_improvement(_stratified(a, rng, resamples), _stratified(b, rng, resamples)))


def _stratified(scores: NDArray[np.float64], rng: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """Resamples [X, K, N] of scores [K, N]."""
    runs = rng.integers(len(scores), size=(resamples, *scores.shape))
    return np.take_along_axis(scores[None], runs, axis=1)


def _percentiles(draws: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(draws, (TAIL, 1 - TAIL))
    return float(low), float(high)
