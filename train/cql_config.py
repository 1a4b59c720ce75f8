"""The typed configuration of conservative Q-learning on states, and its presets."""

from __future__ import annotations

from dataclasses import dataclass

from data.router import TEMPERATURE_CLIPS, RouterConfig
from data.sharing import RULES
from sim.options import check_choice, check_least, check_part, check_seed, option
from train.precision import PRECISIONS
from train.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class CQLConfig:
    """Every option of `python -m train cql`. The defaults are those of CDS on walker2d (app. C.1)."""

    data: str = option("datasets/walker2d.h5", "file of transitions")
    out: str = option("runs/walker2d", "folder of the run: checkpoints, logs, config")
    rules: tuple[str, ...] = option(("cds",), f"sharing rules, trained side by side: {', '.join(RULES)}")
    seeds: tuple[int, ...] = option((0,), "seeds of each rule, trained side by side")
    tasks: tuple[str, ...] = option((), "to train; default: those the data are of")
    steps: int = option(300_000, "updates")
    updates_per_step: int = option(20, "in a step of Lightning, after which it may stop")
    per_task: int = option(128, "transitions of each task in a batch")
    shared_part: float = option(0.5, "of them from other tasks")
    refresh_steps: int = option(10_000, "between renewals of the Q-function by which the heuristic shares")
    oversample: int = option(1, "transitions offered for each shared place, of which the weights choose one")
    critic_rate: float = option(3e-4, "of Adam")
    policy_rate: float = option(1e-4, "of Adam")
    discount: float = option(0.99, "gamma")
    target_rate: float = option(5e-3, "of the running average that gives targets")
    conservative_weight: float = option(1.0, "beta of CQL")
    sampled_actions: int = option(10, "each: anywhere, of the policy at s, of the policy at s'")
    gradient_actions: int = option(2, "of them, drawn from their softmax, to estimate the critic's gradient by; 0: all")
    warm_steps: int = option(0, "in which the policy clones the data")
    normalise: bool = option(True, "observations, by the means and deviations of the dataset's")
    hidden: tuple[int, ...] = option((256, 256, 256), "units of the layers")
    percentile: float = option(10.0, "k of CDS, percent from the top")
    temperature: float = option(0.0, "tau; 0: adaptive")
    clip: str = option("walker2d", f"of the adaptive temperature, as published: {', '.join(TEMPERATURE_CLIPS)}")
    own_part: float = option(0.5, "chance that a task's own transitions are weighed too, each step")
    granularity: str = option("transition", "what is weighed: transition, episode")
    log_every: int = option(100, "updates between values for TensorBoard")
    checkpoint_every: int = option(10_000, "updates between checkpoints")
    precision: str = option("auto", "of the middle layers: 32-true, bf16-mixed, or auto: what the hardware has")
    behaviour_steps: int = option(
        3000, "to fit the behaviour policy by in the end, for the KL and its returns; 0: neither"
    )
    episodes: int = option(10, "of each task to evaluate a member by, in the end")

    def __post_init__(self) -> None:
        for rule in self.rules:
            check_choice("sharing rule", rule, tuple(RULES))
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("clip", self.clip, tuple(TEMPERATURE_CLIPS))
        for name in ("rules", "seeds", "hidden"):
            if len(set(getattr(self, name))) < len(getattr(self, name)) and name != "hidden":
                raise ValueError(f"{name} holds one twice: {getattr(self, name)}")
            if not getattr(self, name):
                raise ValueError(f"{name} is empty")
        check_least(
            self,
            1,
            "steps",
            "updates_per_step",
            "per_task",
            "sampled_actions",
            "log_every",
            "checkpoint_every",
            "episodes",
            "oversample",
            "refresh_steps",
        )
        check_least(self, 0, "gradient_actions", "warm_steps", "behaviour_steps")
        check_seed(self, "seeds")
        check_part(self, "shared_part")
        num_shared = round(self.per_task * self.shared_part)
        for rule in self.rules:
            if RULES[rule].uses_q and num_shared == self.per_task:
                raise ValueError(f"rule {rule} compares shared with own transitions: shared_part leaves none of those")
        if self.oversample > 1 and not all(RULES[rule].uses_q for rule in self.rules):
            raise ValueError(f"oversample needs rules that weigh by Q-values, got {', '.join(self.rules)}")
        _ = [self.router(rule) for rule in self.rules]

    @property
    def members(self) -> tuple[tuple[str, int], ...]:
        """(rule, seed) of each."""
        return tuple((rule, seed) for rule in self.rules for seed in self.seeds)

    @property
    def member_names(self) -> tuple[str, ...]:
        return tuple(f"{rule}-{seed}" for rule, seed in self.members)

    @property
    def seed(self) -> int:
        """Of the run's chance, in which all members share: another set of seeds is another run."""
        return derive_seed(*self.seeds)

    def router(self, rule: str) -> RouterConfig:
        low, high = TEMPERATURE_CLIPS[self.clip]
        return RouterConfig(
            rule=rule,
            percentile=self.percentile,
            temperature=self.temperature,
            tau_low=low,
            tau_high=high,
            own_part=self.own_part,
            granularity=self.granularity,
        )
