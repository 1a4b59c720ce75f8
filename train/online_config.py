"""Options that every online algorithm on states has, and its command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from sim.benchmarks.table import BENCHMARKS, benchmark_by_name
from sim.options import (
    Parser,
    add_options,
    check_choice,
    check_fraction,
    check_least,
    check_seed,
    from_options,
    option,
    peek_option,
)
from train.precision import PRECISIONS
from train.presets import preset_for

Config = TypeVar("Config", bound="OnlineConfig")


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """An environment of each task steps in turn."""

    benchmark: str = option("walker2d", f"of {', '.join(BENCHMARKS)}; it chooses the preset")
    tasks: tuple[str, ...] = option((), "of the benchmark, to learn side by side; default: all")
    out: str = option("runs/walker2d-sac", "folder of the run")
    seed: int = option(0, "of everything")
    steps: int = option(500_000, "steps of each task's environment")
    start_steps: int = option(5000, "random actions first, without learning")
    update_every: int = option(1, "environment steps of each task for one update")
    batch_size: int = option(256, "transitions of each task")
    lr: float = option(3e-4, "learning rate of Adam, policies, Q-functions and entropy temperatures")
    discount: float = option(0.99, "gamma")
    reward_scale: float = option(1.0, "rewards are learned from times it")
    target_update_rate: float = option(5e-3, "weight of the new network in the target's running average")
    hidden_sizes: tuple[int, ...] = option((256, 256), "units of the hidden layers")
    keep_every: int = option(100_000, "steps between policies that are kept; the last is kept too")
    checkpoint_every: int = option(10_000, "steps between checkpoints, from which the same command goes on")
    replay_steps: int = option(109_900, "steps that are kept as the replay buffer (CDS, table 3)")
    precision: str = option("auto", "of the middle layers: 32-true, bf16-mixed, or auto: what the hardware has")

    def __post_init__(self) -> None:
        for name in self.tasks:
            benchmark_by_name(self.benchmark).task_index(name)
        check_choice("precision", self.precision, PRECISIONS)
        check_seed(self, "seed")
        counts = ("steps", "start_steps", "update_every", "batch_size", "keep_every", "checkpoint_every")
        check_least(self, 1, *counts, "replay_steps")
        check_fraction(self, "discount", "target_update_rate")
        if not 0 < self.reward_scale < float("inf"):
            raise ValueError(f"reward_scale is above 0 and finite, got {self.reward_scale}")
        if self.steps <= self.start_steps:
            raise ValueError(f"steps {self.steps}: after start_steps {self.start_steps} none is left to learn by")


def parse(name: str, kind: type[Config], arguments: list[str], description: str | None) -> Config:
    """Options of `python -m train NAME`: those of the benchmark's preset, then the command line's."""
    benchmark = benchmark_by_name(peek_option(arguments, "--benchmark", kind.benchmark)).name
    preset: dict[str, Any] = {"benchmark": benchmark, "out": f"runs/{benchmark}-{name}"}
    preset |= preset_for(name, benchmark, kind)
    parser = Parser(prog=f"python -m train {name}", description=description)
    add_options(parser, kind, kind(**preset))
    return from_options(kind, vars(parser.parse_args(arguments)), **preset)
