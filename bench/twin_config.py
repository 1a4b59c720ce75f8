"""Options of the twin (bench/twin.py): those of `python -m train` that it has, under the same names, and its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.twin_world import LIFTS
from data.sharing import RULES
from sim.options import check_least, option
from sim.tasks import TASK_NAMES
from train.qtopt_config import PRESETS, QTOptConfig

_VISION_64 = PRESETS["vision-64"]


def _trained(name: str, default: Any = None) -> Any:
    """A field as `python -m train` has it; default: the value of preset vision-64."""
    text = QTOptConfig.__dataclass_fields__[name].metadata["help"]
    return option(getattr(_VISION_64, name) if default is None else default, text)


@dataclass(frozen=True, kw_only=True)
class TwinConfig:
    """Options of one run of the twin. A pass of the scoring takes a twentieth of the run, as with the data of
    docs/results/sharing-vision.md."""

    rule: str = _trained("rule")
    sharing: str = _trained("sharing")
    granularity: str = _trained("granularity")
    reference: str = _trained("reference")
    percentile: float = _trained("percentile")
    reference_over: str = _trained("reference_over")
    sharing_temperature: str = _trained("sharing_temperature")
    share_after: int = _trained("share_after", 0)
    cloned: str = _trained("cloned")
    balance_shared: bool = _trained("balance_shared")
    shared_fraction: float = _trained("shared_fraction")
    success_fraction: float = _trained("success_fraction")
    score_fraction: float = _trained("score_fraction", 0.135)
    score_visits: int = _trained("score_visits")
    steps: int = _trained("steps", 1200)
    batch_size: int = _trained("batch_size", 112)
    num_unseen_actions: int = _trained("num_unseen_actions", 8)
    cem_samples: int = _trained("cem_samples", 8)
    evaluate_episodes: int = _trained("evaluate_episodes", 200)
    seed: int = _trained("seed")
    noise_m: float = option(0.008, "white noise of landmarks")

    def __post_init__(self) -> None:
        check_least(self, 0, "noise_m")
        rule, router = RULES[self.training.rule], self.training.router  # with their own checks
        if rule.snapshot or not rule.reward or rule.needs == "q_policy":
            raise ValueError(f"the twin has no rule {rule.name}: no snapshots, other rewards or Q of the policy")
        if router.draws_candidates:
            raise ValueError("the twin draws no candidates: sharing sample goes with granularity episode")

    @property
    def training(self) -> QTOptConfig:
        """Options of the learner and of what it shares: those of vision-64 but for the ones above."""
        given = {name: value for name, value in asdict(self).items() if name in QTOptConfig.__dataclass_fields__}
        return replace(_VISION_64, tasks=tuple(TASK_NAMES[k] for k in LIFTS), landmark_weight=0.0, **given)
