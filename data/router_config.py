"""Options of routing, and what they say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.sharing import REFERENCES, RULES, Reference
from sim.options import check_choice, check_fraction

SHARING = ("weight", "sample")
GRANULARITIES = ("transition", "episode")
BY_RULE = "rule"  # the reference that the rule names
ADAPTIVE = ("absolute", "signed")  # temperatures; others are numbers


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """Options of a router; sources of the readings: docs/sharing.md.

    `sharing`: shared transitions are drawn evenly and their loss is weighed (`weight`), or they are drawn from D_eff by
    their weight and count in full (`sample`). `granularity`: single transitions or whole episodes are scored.
    `reference`: what shared scores are compared with: `percentile` k from the top of the own scores, their `mean`, or
    what the `rule` names. For transitions the own scores are the last `window`. `temperature`: tau, a number, or the
    running mean with `decay`, of each task, of Delta over shared rows (`signed`) or of |Delta| over own and shared rows
    (`absolute`), clipped to `tau_low` and `tau_high`. `weigh_own_probability`: probability, in each step, that a task's
    own transitions are weighed too. `share_after`: steps before which a rule that uses Q-values chooses nothing.
    """

    rule: str = "cds"
    sharing: str = "weight"
    granularity: str = "transition"
    reference: str = BY_RULE
    percentile: float = 50.0
    window: int = 1024
    temperature: str = "absolute"
    decay: float = 0.995
    tau_low: float = 1e-3
    tau_high: float = float("inf")
    weigh_own_probability: float = 0.0
    share_after: int = 0

    def __post_init__(self) -> None:
        check_choice("sharing rule", self.rule, tuple(RULES))
        check_choice("sharing", self.sharing, SHARING)
        check_choice("granularity", self.granularity, GRANULARITIES)
        check_choice("reference", self.reference, (BY_RULE, *REFERENCES))
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"the percentile is 0 to 100 percent from the top, got {self.percentile}")
        check_fraction(self, "weigh_own_probability")
        _ = self.fixed_temperature
        if not 0 < self.tau_low <= self.tau_high:
            raise ValueError("tau_low is above 0 and at most tau_high")

    @property
    def fixed_temperature(self) -> float | None:
        """tau where it is a number."""
        if self.temperature in ADAPTIVE:
            return None
        try:
            number = float(self.temperature)
        except ValueError:
            number = -1.0
        if not 0 < number < float("inf"):
            raise ValueError(f"the temperature is {' or '.join(ADAPTIVE)} or a number above 0, got {self.temperature}")
        return number

    @property
    def by_episode(self) -> bool:
        """Whether whole episodes are scored."""
        return self.granularity == "episode" and RULES[self.rule].uses_q

    @property
    def draws_episodes(self) -> bool:
        """Whether shared transitions are drawn from the episodes that the rule chooses."""
        return self.sharing == "sample" and self.by_episode

    @property
    def draws_candidates(self) -> bool:
        """Whether shared transitions are drawn from candidates, which are scored first."""
        return self.sharing == "sample" and not self.by_episode and RULES[self.rule].uses_q

    @property
    def is_adaptive(self) -> bool:
        """Whether tau is a running mean: not a number, and of a rule that has a Delta."""
        return self.fixed_temperature is None and RULES[self.rule].reference is not None

    def tau(self, mean: Tensor) -> Tensor:
        """Temperatures [...] of the mean of Delta or |Delta|: clipped, or the number that the options give; 1 for a
        rule without Delta."""
        return (
            mean.clamp(self.tau_low, self.tau_high)
            if self.is_adaptive
            else torch.full_like(mean, self.fixed_temperature or 1.0)
        )

    @property
    def reference_of(self) -> Reference | None:
        """The reference of the rule, or the one that the options name instead; None for a rule without one."""
        rule = RULES[self.rule]
        return rule.reference and (rule.reference if self.reference == BY_RULE else REFERENCES[self.reference])
