"""Options that every offline algorithm of states has: data, sharing rules and seeds, batches, logging, evaluation."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from data.assignment import ASSIGNMENTS
from data.member_random import MemberRandom
from data.router_config import ADAPTIVE, BY_RULE, GRANULARITIES, RouterConfig
from data.shared_batches import SharingConfig
from data.sharing import REFERENCES, RULES
from models.conditioning import CONDITIONERS
from sim.options import check_choice, check_fraction, check_least, check_seed, option
from train.precision import PRECISIONS


@dataclass(frozen=True, kw_only=True)
class StateConfig:
    """Defaults are those of CDS on walker2d (app. C.1); train/presets.py has those of each benchmark."""

    data: str = option("datasets/walker2d-published.h5", "file of transitions; its benchmark chooses the preset")
    assignment: str = option("collected", f"of episodes to tasks: {', '.join(ASSIGNMENTS)} (mazes)")
    out: str = option("", "folder of the run; default runs/DATASET-ALGORITHM")
    rules: tuple[str, ...] = option(("cds",), f"sharing rules, trained side by side: {', '.join(RULES)}")
    seeds: tuple[int, ...] = option((0,), "seeds of each rule, trained side by side")
    tasks: tuple[str, ...] = option((), "tasks to train; default: those the dataset has transitions of")
    steps: int = option(300_000, "updates")
    updates_per_step: int = option(20, "updates in a step of Lightning, after which the run may stop")
    per_task: int = option(128, "transitions of each task in a batch")
    shared_fraction: float = option(0.5, "fraction of them from other tasks")
    snapshot_every: int = option(10_000, "updates between snapshots of the Q-function (rule heuristic)")
    sharing: str = option("weight", "weight: the rule scales the loss of shared transitions; sample: it draws them")
    granularity: str = option("transition", f"unit that is scored: {', '.join(GRANULARITIES)}")
    candidates_per_shared: int = option(10, "drawn for each shared transition (sharing sample, granularity transition)")
    share_after: int = option(0, "updates before which a rule that uses Q-values chooses nothing")
    score_fraction: float = option(0.25, "steps scored in an update, as a fraction of a batch (granularity episode)")
    score_visits: int = option(4, "visits over which an episode's score is the mean")
    hidden_sizes: tuple[int, ...] = option((256, 256, 256), "units of the hidden layers")
    conditioning: str = option("one-hot", f"task conditioning of the networks: {', '.join(CONDITIONERS)}")
    encoder: str = option("", "file of a pretrained encoder, for conditioning encoder")
    reward_scale: float = option(1.0, "rewards r are learned from as scale r + shift")
    reward_shift: float = option(0.0, "as above")
    normalise: bool = option(True, "observations, by mean and standard deviation over the dataset")
    reference: str = option(BY_RULE, f"to reach: {', '.join(REFERENCES)} of own scores, or as the rule has it")
    percentile: float = option(50.0, "k of the reference percentile, percent from the top")
    sharing_temperature: str = option("signed", f"tau of soft rules: {', '.join(ADAPTIVE)}, or a number")
    sharing_temperature_clip: tuple[float, ...] = option((5.0, float("inf")), "bounds of the adaptive tau")
    weigh_own_probability: float = option(0.5, "that a task's own transitions are weighed too, drawn for each update")
    log_every: int = option(100, "updates between values for TensorBoard")
    checkpoint_every: int = option(10_000, "updates between checkpoints")
    precision: str = option("auto", "of the middle layers: 32-true, bf16-mixed, or auto: what the hardware has")
    divergence_steps: int = option(
        3000, "to fit the effective behaviour policy at the end, for KL and its returns; 0: neither"
    )
    divergence_from: str = option("", "policy.pt of rule none, for KL of a run without that rule; default: none")
    episodes: int = option(10, "evaluation episodes of each task at the end")
    evaluate_every: int = option(0, "updates between further evaluations, of which the best is reported too; 0: none")
    workers: int = option(len(os.sched_getaffinity(0)), "processes that evaluate")

    def __post_init__(self) -> None:
        for rule in self.rules:
            check_choice("sharing rule", rule, tuple(RULES))
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("assignment", self.assignment, ASSIGNMENTS)
        check_choice("conditioning", self.conditioning, tuple(CONDITIONERS))
        if (self.conditioning == "encoder") != bool(self.encoder):
            raise ValueError(f"conditioning encoder and the option encoder go together, got {self.conditioning}")
        if self.encoder and not self.normalise:
            raise ValueError("option encoder: it reads normalised observations; leave out normalise false")
        for name in ("rules", "seeds", "hidden_sizes"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} is empty")
            if name != "hidden_sizes" and len(set(values)) < len(values):
                raise ValueError(f"{name} holds one twice: {values}")
        clip = self.sharing_temperature_clip
        if len(clip) != 2 or not 0 < clip[0] <= clip[1]:
            raise ValueError(f"sharing_temperature_clip is LOW,HIGH with 0 < LOW <= HIGH, got {clip}")
        if not math.isfinite(self.reward_scale) or not math.isfinite(self.reward_shift):
            raise ValueError(f"reward_scale and reward_shift are finite, got {self.reward_scale}, {self.reward_shift}")
        if min(self.hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes are at least 1, got {self.hidden_sizes}")
        if self.divergence_from and "none" in self.rules:
            raise ValueError("divergence_from: KL compares with this run's own policies of rule none; leave one out")
        counts = ("steps", "updates_per_step", "per_task", "log_every", "checkpoint_every", "episodes", "workers")
        check_least(self, 1, *counts, "candidates_per_shared", "score_visits", "snapshot_every")
        check_least(self, 0, "divergence_steps", "share_after", "evaluate_every")
        check_seed(self, "seeds")
        check_fraction(self, "shared_fraction", "score_fraction", "weigh_own_probability")
        num_shared = round(self.per_task * self.shared_fraction)
        for rule in self.rules:
            if RULES[rule].reference and num_shared == self.per_task:
                raise ValueError(
                    f"rule {rule} compares shared with own transitions: shared_fraction leaves none of those"
                )
        _ = self.shared_batches  # which checks the rest

    @property
    def members(self) -> tuple[tuple[str, int], ...]:
        """(rule, seed) of each."""
        return tuple((rule, seed) for rule in self.rules for seed in self.seeds)

    @property
    def member_names(self) -> tuple[str, ...]:
        return tuple(f"{rule}-{seed}" for rule, seed in self.members)

    def random(self, device: torch.device | str, *numbers: int) -> MemberRandom:
        """Random numbers of the members, which depend on each one's seed and on `numbers` alone: a purpose, an update.
        Rules with the same seed draw the same."""
        return MemberRandom(self.seeds, len(self.rules), device, *numbers)

    @property
    def shared_batches(self) -> SharingConfig:
        low, high = self.sharing_temperature_clip
        return SharingConfig(
            routers=tuple(
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
            ),
            seeds=len(self.seeds),
            tasks=self.tasks,
            per_task=self.per_task,
            shared_fraction=self.shared_fraction,
            candidates_per_shared=self.candidates_per_shared,
            score_fraction=self.score_fraction,
            score_visits=self.score_visits,
            snapshot_every=self.snapshot_every,
            reward_scale=self.reward_scale,
            reward_shift=self.reward_shift,
        )
