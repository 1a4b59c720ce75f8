"""Coverage of the 95% intervals of eval/: simulated episodes of two policies whose difference is known.

Success of A and B in a scene: with probability `alike` both ask the same uniform number whether they succeed, else each
its own. So the rates are exact, and pairs are correlated. Runs of one arm differ by `seed_sd`, drawn for each task.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.report import Row
from eval.intervals import mean_of_rates, newcombe, wilson
from eval.paired import Block, differences, mcnemar

RATES = (0.2, 0.95)  # of arm A, from the first task to the last
LEAST, MOST = 94.0, 96.0  # percent, of what is held to it
RESAMPLES = 1000  # in each repetition
REPETITIONS = 5000  # standard error 0.3%
SEED = 1


@dataclass(frozen=True, kw_only=True)
class Setting:
    """`gain`: of B over A on every task, up to a rate of 0.99. `runs`: in each arm. `held`: whether intervals of the
    mean over tasks must cover 94 to 96%; those of a single rate oscillate, and those of few seeds are conservative."""

    episodes: int
    tasks: int = 10
    gain: float = 0.0
    alike: float = 0.5
    runs: int = 1
    seed_sd: float = 0.0
    held: bool = True

    @property
    def name(self) -> str:
        seeds = f", {self.runs} runs a side, sd {100 * self.seed_sd:g}" if self.runs > 1 else ""
        return f"{self.tasks} x {self.episodes} episodes, gain {100 * self.gain:g}, alike {self.alike:g}{seeds}"


SETTINGS = (
    Setting(episodes=150),
    Setting(episodes=150, alike=0.9),
    Setting(episodes=150, gain=0.05),
    Setting(episodes=150, gain=0.05, alike=0.0),
    Setting(episodes=150, gain=0.1, alike=0.9),
    Setting(episodes=50, gain=0.05),
    Setting(episodes=20, gain=0.05),
    Setting(episodes=10, gain=0.05),
    Setting(episodes=150, tasks=1, held=False),  # rate 0.2
    Setting(episodes=50, tasks=1, held=False),
    Setting(episodes=150, runs=3, seed_sd=0.05, held=False),
    Setting(episodes=150, runs=5, seed_sd=0.05, held=False),
    Setting(episodes=150, runs=3, seed_sd=0.0, held=False),
    Setting(episodes=50, tasks=1, runs=3, seed_sd=0.05, held=False),
)


def rates(setting: Setting) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Success rates of A and B by task, [N] each."""
    a = np.linspace(*RATES, setting.tasks)
    return a, np.minimum(a + setting.gain, 0.99)


def simulate(setting: Setting, rng: np.random.Generator) -> list[Block]:
    """The outcomes of one comparison in equal scenes, a block for each task."""
    blocks = []
    for a, b in zip(*rates(setting), strict=True):
        means = np.repeat([a, b], setting.runs)
        if setting.seed_sd:
            means = np.clip(means + setting.seed_sd * rng.uniform(-np.sqrt(3), np.sqrt(3), len(means)), 0, 1)
        shape = (len(means), setting.episodes)
        own, common = rng.random(shape), rng.random(setting.episodes)
        asked = np.where(rng.random(setting.episodes) < setting.alike, common, own)
        arm, run = np.repeat([0, 1], setting.runs), np.tile(np.arange(setting.runs), 2)
        blocks.append(Block(outcomes=asked < means[:, None], arm=arm, run=run))
    return blocks


def coverage(setting: Setting, repetitions: int, resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, float]:
    """Percent of the repetitions in which an interval holds the true value, by interval."""
    rng = np.random.default_rng(seed)
    a, b = rates(setting)
    hits: dict[str, list[bool]] = {}
    for repetition in range(repetitions):
        blocks = simulate(setting, rng)
        _, average = differences([[block] for block in blocks], resamples, seed + repetition)
        found = {"paired bootstrap": average.low <= (b - a).mean() <= average.high}
        if setting.runs == 1:
            found |= dict(_unpaired(blocks, a, b, setting, rng))
        for name, hit in found.items():
            hits.setdefault(name, []).append(bool(hit))
    return {name: 100 * float(np.mean(each)) for name, each in hits.items()}


def _unpaired(
    blocks: list[Block], a: NDArray[np.float64], b: NDArray[np.float64], setting: Setting, rng: np.random.Generator
) -> Iterator[tuple[str, bool]]:
    """Intervals of independent episodes: A's as they are, B's drawn anew; and the error of the test where there is no
    difference, as the percent of p above 5%."""
    n = setting.episodes
    x = [(int(block.outcomes[0].sum()), n) for block in blocks]
    y = [(int(count), n) for count in rng.binomial(n, b)]
    _, low, high = mean_of_rates(x)
    yield ("Wilson" if len(x) == 1 else "Wilson, mean of tasks"), low <= a.mean() <= high
    share = np.full(len(x), 1 / len(x))
    _, low, high = mean_of_rates(y + x, [*share, *-share])
    yield ("Newcombe" if len(x) == 1 else "Newcombe, mean of tasks"), low <= (b - a).mean() <= high
    if len(x) > 1:
        middle = len(x) // 2
        low, high = wilson(*x[middle])
        yield "Wilson, one task", low <= a[middle] <= high
        low, high = newcombe(x[middle], y[middle])
        yield "Newcombe, one task", low <= (b - a)[middle] <= high
    if setting.gain == 0:
        pairs = [(int((p & ~q).sum()), int((q & ~p).sum())) for p, q in (block.outcomes for block in blocks)]
        yield "mid-p McNemar above 5%", mcnemar(*np.sum(pairs, axis=0).tolist())[1] > 0.05


def run(quick: bool) -> list[Row]:
    rows = []
    for setting in SETTINGS:
        repetitions = 20 if quick else REPETITIONS // (10 if setting.runs > 1 else 1)
        for name, percent in coverage(setting, repetitions, 200 if quick else RESAMPLES).items():
            held = setting.held and not quick and (name == "paired bootstrap" or "mean of tasks" in name)
            rows.append(
                Row(
                    name=f"{name}: {setting.name}",
                    value=percent,
                    unit="% coverage",
                    target=LEAST if held else None,
                    most=MOST if held else None,
                    target_of="value",
                    note=f"{repetitions} repetitions",
                )
            )
    return rows
