"""Options that every offline algorithm of states has: data, sharing rules and seeds, batches, logging, evaluation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

import torch

from data.assignment import ASSIGNMENTS
from data.member_random import MemberRandom
from data.sharing_options import SharingOptions
from models.conditioning import CONDITIONERS
from sim.options import check_choice, check_least, option
from train.precision import PRECISIONS

OF_REWARDS_AND_Q = (
    *("reward_scale", "reward_shift", "reference", "percentile", "sharing_temperature", "sharing_temperature_clip"),
    *("weigh_own_probability", "share_after", "snapshot_every", "score_fraction", "score_visits"),
)  # options that nothing reads in an algorithm that learns no Q-function


@dataclass(frozen=True, kw_only=True)
class StateConfig(SharingOptions):
    """Defaults are those of CDS on walker2d (app. C.1); train/presets.py has those of each benchmark. `unused`: options
    that the algorithm has no use for."""

    unused: ClassVar[tuple[str, ...]] = ()

    data: str = option("datasets/walker2d-published.h5", "file of transitions; its benchmark chooses the preset")
    assignment: str = option("collected", f"of episodes to tasks: {', '.join(ASSIGNMENTS)} (mazes)")
    out: str = option("", "folder of the run; default runs/DATASET-ALGORITHM")
    steps: int = option(300_000, "updates")
    updates_per_step: int = option(20, "updates in a step of Lightning, after which the run may stop")
    hidden_sizes: tuple[int, ...] = option((256, 256, 256), "units of the hidden layers")
    conditioning: str = option("one-hot", f"task conditioning of the networks: {', '.join(CONDITIONERS)}")
    encoder: str = option("", "file of a pretrained encoder, for conditioning encoder")
    normalise: bool = option(True, "observations, by mean and standard deviation over the dataset")
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
        super().__post_init__()
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("assignment", self.assignment, ASSIGNMENTS)
        check_choice("conditioning", self.conditioning, tuple(CONDITIONERS))
        if (self.conditioning == "encoder") != bool(self.encoder):
            raise ValueError(f"conditioning encoder and the option encoder go together, got {self.conditioning}")
        if self.encoder and not self.normalise:
            raise ValueError("option encoder: it reads normalised observations; leave out normalise false")
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes are at least 1, got {self.hidden_sizes}")
        if self.divergence_from and not self.divergence_steps:
            raise ValueError("divergence_from: KL needs divergence_steps, which are 0")
        if self.divergence_from and "none" in self.rules:
            raise ValueError("divergence_from: KL compares with this run's own policies of rule none; leave one out")
        check_least(self, 1, "steps", "updates_per_step", "log_every", "checkpoint_every", "episodes", "workers")
        check_least(self, 0, "divergence_steps", "evaluate_every")

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
