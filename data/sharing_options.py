"""Options of data sharing on states, those of SharedBatches; an algorithm's configuration has them among its own."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from data.router_config import ADAPTIVE, BY_RULE, GRANULARITIES, RouterConfig
from data.sharing import REFERENCES, RULES
from sim.options import check_choice, check_fraction, check_least, check_seed, option


@dataclass(frozen=True, kw_only=True)
class SharingOptions:
    """Defaults are those of CDS on walker2d (app. C.1)."""

    rules: tuple[str, ...] = option(("cds",), f"sharing rules, trained side by side: {', '.join(RULES)}")
    seeds: tuple[int, ...] = option((0,), "seeds of each rule, trained side by side")
    tasks: tuple[str, ...] = option((), "tasks to train; default: those the dataset has transitions of")
    per_task: int = option(128, "transitions of each task in a batch")
    shared_fraction: float = option(0.5, "fraction of them from other tasks")
    snapshot_every: int = option(10_000, "updates between snapshots of the Q-function (rule heuristic)")
    sharing: str = option("weight", "weight: the rule scales the loss of shared transitions; sample: it draws them")
    granularity: str = option("transition", f"unit that is scored: {', '.join(GRANULARITIES)}")
    candidates_per_shared: int = option(10, "drawn for each shared transition (sharing sample, granularity transition)")
    share_after: int = option(0, "updates before which a rule that uses Q-values chooses nothing")
    score_fraction: float = option(0.25, "steps scored in an update, as a fraction of a batch (granularity episode)")
    score_visits: int = option(4, "visits over which an episode's score is the mean")
    reward_scale: float = option(1.0, "rewards r are learned from as scale r + shift")
    reward_shift: float = option(0.0, "as above")
    reference: str = option(BY_RULE, f"to reach: {', '.join(REFERENCES)} of own scores, or as the rule has it")
    percentile: float = option(50.0, "k of the reference percentile, percent from the top")
    sharing_temperature: str = option("signed", f"tau of soft rules: {', '.join(ADAPTIVE)}, or a number")
    sharing_temperature_clip: tuple[float, ...] = option((5.0, float("inf")), "bounds of the adaptive tau")
    weigh_own_probability: float = option(0.5, "that a task's own transitions are weighed too, drawn for each update")

    def __post_init__(self) -> None:
        for name, values in (("rules", self.rules), ("seeds", self.seeds)):
            if not values:
                raise ValueError(f"{name} is empty")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} holds one twice: {values}")
        for rule in self.rules:
            check_choice("sharing rule", rule, tuple(RULES))
        clip = self.sharing_temperature_clip
        if len(clip) != 2 or not 0 < clip[0] <= clip[1]:
            raise ValueError(f"sharing_temperature_clip is LOW,HIGH with 0 < LOW <= HIGH, got {clip}")
        if not math.isfinite(self.reward_scale) or not math.isfinite(self.reward_shift):
            raise ValueError(f"reward_scale and reward_shift are finite, got {self.reward_scale}, {self.reward_shift}")
        check_least(self, 1, "per_task", "candidates_per_shared", "score_visits", "snapshot_every")
        check_least(self, 0, "share_after")
        check_seed(self, "seeds")
        check_fraction(self, "shared_fraction", "score_fraction", "weigh_own_probability")
        for rule in self.rules:
            if RULES[rule].reference and self.num_shared == self.per_task:
                raise ValueError(
                    f"rule {rule} compares shared with own transitions: shared_fraction leaves none of those"
                )
        _ = self.routers  # which checks the rest

    @property
    def num_shared(self) -> int:
        """Shared transitions of each task in a batch."""
        return round(self.per_task * self.shared_fraction)

    @functools.cached_property
    def routers(self) -> tuple[RouterConfig, ...]:
        """Of each rule, with a member for each seed."""
        low, high = self.sharing_temperature_clip
        return tuple(
            RouterConfig(
                rule=rule,
                sharing=self.sharing,
                granularity=self.granularity,
                reference=self.reference,
                percentile=self.percentile,
                temperature=self.sharing_temperature,
                tau_low=low,
                tau_high=high,
                weigh_own_probability=self.weigh_own_probability,
                share_after=self.share_after,
            )
            for rule in self.rules
        )
