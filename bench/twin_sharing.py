"""How the twin (bench/twin.py) shares data: its options, the batches it draws, and the episodes that a rule lets pass.

`TwinSampler.draw` is all that the learner sees of it, so another sampler can take its place.

Shapes: `B` rows of a batch, `E` episodes, `N` = 7 lifts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.twin_world import LIFTS, ToyEpisodes
from data.router import GRANULARITIES
from data.sharing import RULES, RuleContext, mean, top_quantile
from sim.options import check_choice, check_fraction, check_least, option
from sim.tasks import SKILLS

N = len(LIFTS)
MODES = ("weight", "sample", "top-tenth")
REFERENCES: dict[str, Callable[[Tensor, float], Tensor]] = {"percentile": top_quantile, "mean": mean}
# Which rows the behaviour policy clones: (success at the target, own row) -> factor of the row's weight.
CLONES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "accepted": lambda success, own: success,
    "effective": lambda success, own: torch.ones_like(success),
    "own-accepted": lambda success, own: torch.where(own, success, 1.0),
}
WINDOW = 1000  # scores of a balanced reference


@dataclass(frozen=True, kw_only=True)
class TwinConfig:
    """Options of one run of the twin."""

    rule: str = option("cds", f"sharing rule: {', '.join(RULES)}")
    mode: str = option("weight", f"what the rule does, of {', '.join(MODES)}: weigh evenly drawn rows, or route them")
    reference: str = option("percentile", f"what scores are compared with, of {', '.join(REFERENCES)}")
    percentile: float = option(10.0, "k, percent from the top")
    balance_reference: bool = option(False, "the own scores count half successes, half failures, as own rows are drawn")
    sharing_temperature: float = option(0.0, "tau; 0: the mean of |Delta|")
    granularity: str = option("transition", f"unit that mode weight weighs: {', '.join(GRANULARITIES)}")
    balance_successes: bool = option(False, "half of the shared rows are accepted by the target's detector (an oracle)")
    clone: str = option("accepted", f"rows that the behaviour policy clones: {', '.join(CLONES)}")
    score_every: int = option(100, "steps between renewals of the episodes' scores")
    warm_up: int = option(200, "steps before the first scores")
    warm_up_rule: str = option("none", "until then the shared rows are own ones (none) or drawn evenly (all)")
    score_frames: int = option(4, "frames of an episode that are scored")
    steps: int = option(1200, "gradient steps")
    per_task: int = option(16, "rows of each task in a batch")
    shared_fraction: float = option(0.5, "fraction of them from other tasks")
    candidates: int = option(8, "unseen actions of a state, and proposed ones for its target; vision-64 has 16")
    noise_m: float = option(0.008, "white noise of landmarks")
    episodes: int = option(200, "evaluation episodes of each task")
    seed: int = option(0, "of data, training and evaluation")

    def __post_init__(self) -> None:
        check_choice("sharing rule", self.rule, tuple(RULES))
        check_choice("mode", self.mode, MODES)
        check_choice("reference", self.reference, tuple(REFERENCES))
        check_choice("granularity", self.granularity, GRANULARITIES)
        check_choice("clone", self.clone, tuple(CLONES))
        check_choice("rule of the warm-up", self.warm_up_rule, ("none", "all"))
        check_least(self, 1, "score_every", "score_frames", "steps", "episodes")
        check_least(self, 0, "warm_up", "noise_m", "sharing_temperature")
        check_least(self, 1, "per_task", "candidates")
        check_fraction(self, "shared_fraction")
        rule = RULES[self.rule]
        if rule.snapshot or not rule.reward or rule.needs == "q_policy":
            raise ValueError(
                f"the twin does not have rule {self.rule}; it has none, all, skill, cds, cds-hard and hipi"
            )
        if self.mode == "weight" and self.reference != "percentile":
            raise ValueError("mode weight is the project's router, which has no reference but percentile")


@dataclass(kw_only=True)
class TwinBatch:
    """B transitions relabelled for their target task, as data/batches.py has them; `rows` [B] are their frames."""

    rows: NDArray[np.int64]
    task_index: Tensor
    source_task_index: Tensor
    success: Tensor
    episode: Tensor
    done: Tensor


class TwinSampler:
    """Draws batches: of each task some own rows, balanced by success, and some shared ones, as `share` [N, E] says.

    `share`: probability of each episode's steps, relative to each other, in the shared rows of task i. It begins even.
    """

    def __init__(self, data: ToyEpisodes, config: TwinConfig) -> None:
        self.data, self.config = data, config
        self.own = data.task == np.arange(N)[:, None]  # [N, E]
        lifts = RULES[config.rule].sources(SKILLS)[np.ix_(LIFTS, LIFTS)]
        self.allowed = lifts[:, data.task] & ~self.own
        self.share = self.allowed.astype(np.float64)
        self.num_shared = np.where(self.allowed.any(1), round(config.per_task * config.shared_fraction), 0)
        if config.mode != "weight" and RULES[config.rule].uses_q and config.warm_up_rule == "none":
            self.num_shared[:] = 0

    def route(self, weight: NDArray[np.float64], fill: bool) -> None:
        """From now on shared rows are drawn by these weights [N, E]. With `fill`, a task draws no more rows than there
        are episodes with a weight; own rows take the other places."""
        self.share = weight * self.allowed
        most = round(self.config.per_task * self.config.shared_fraction)
        passing = (self.share > 0).sum(1)
        self.num_shared = np.minimum(most, passing) if fill else np.where(passing > 0, most, 0)

    def draw(self, rng: np.random.Generator) -> TwinBatch:
        data, size = self.data, self.config.per_task
        episodes: list[NDArray[np.int64]] = []
        for task in range(N):
            shared = int(self.num_shared[task])
            for chance, balanced, count in (
                (self.own[task].astype(np.float64), True, size - shared),
                (self.share[task], self.config.balance_successes, shared),
            ):
                if count:
                    chance = chance * data.length
                    if balanced:
                        chance = _balance(chance, data.success[:, task])
                    total = chance.cumsum()
                    episodes.append(np.searchsorted(total, rng.random(count) * total[-1], side="right"))
        episode = np.concatenate(episodes)
        step = rng.integers(data.length[episode])
        target = np.repeat(np.arange(N), size)
        return TwinBatch(
            rows=data.first[episode] + step,
            task_index=torch.from_numpy(target),
            source_task_index=torch.from_numpy(data.task[episode]),
            success=torch.from_numpy(data.success[episode, target]).float(),
            episode=torch.from_numpy(episode),
            done=torch.from_numpy(step == data.length[episode] - 1).float(),
        )


def _balance(chance: NDArray[np.float64], success: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scales chances [E] so that successes and failures have the same sum, if there are both."""
    sums = np.array([chance[~success].sum(), chance[success].sum()])
    return chance / sums[success.astype(int)] if sums.all() else chance


def balanced_window(score: Tensor, own: Tensor, success: Tensor) -> Tensor:
    """Quantiles [N, WINDOW] of the own scores, in which successes and failures count the same; arguments [N, E]."""
    point = (torch.arange(WINDOW, dtype=torch.float64) + 0.5) / WINDOW
    windows = []
    for values, mine, won in zip(score, own, success, strict=True):
        order = values[mine].argsort()
        total = torch.from_numpy(_balance(np.ones(len(order)), won[mine][order].numpy())).cumsum(0)
        windows.append(values[mine][order][torch.searchsorted(total / total[-1], point)])
    return torch.stack(windows)


def episode_weights(score: Tensor, own: Tensor, success: Tensor, config: TwinConfig) -> Tensor:
    """Weights [N, E] of the rule for all episodes of other tasks, by their scores [N, E]; `own`, `success` [N, E]."""
    score, rule, num_tasks = score.double(), RULES[config.rule], len(score)
    if config.mode == "top-tenth":
        others = score.masked_fill(own, torch.nan)
        return (score >= others.nanquantile(0.9, dim=1, keepdim=True)).double() * ~own
    window = score.masked_fill(~own, torch.nan)
    if config.balance_reference:
        window = balanced_window(score, own, success)
    reference = REFERENCES[config.reference](window, config.percentile)[:, None]
    gap = ((score - reference).abs() * ~own).sum(1, keepdim=True) / (~own).sum(1, keepdim=True)
    tau = torch.full_like(gap, config.sharing_temperature) if config.sharing_temperature else gap
    target = torch.arange(num_tasks)[:, None].expand(score.shape)
    q_tasks = score.T.expand(num_tasks, -1, -1)
    context = RuleContext(reference=reference, temperature=tau, target=target, q_tasks=q_tasks)
    return rule.weight(score, context).double() * ~own
