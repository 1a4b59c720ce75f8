"""Former names of options and weights, so that old checkpoints and config.json files can still be read."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

from torch import Tensor


def _unchanged(value: Any) -> Any:
    return value


def _update_rate(decay: float) -> float:
    return round(1 - decay, 12)  # 0.02 for 0.98, not 0.020000000000000018


def _temperature(value: str | float) -> str:
    """Once a number, where 0 meant the running mean of |Delta|."""
    return value if isinstance(value, str) else str(value) if value else "absolute"


INF = float("inf")
CLIPS = {  # of the adaptive sharing temperature, once an option by name
    "walker2d": (5.0, INF),
    "halfcheetah": (10.0, INF),
    "ant": (10.0, 25.0),
    "metaworld": (1.0, 50.0),
    "antmaze": (10.0, INF),
}
OPTIONS: dict[str, tuple[str, Callable[[Any], Any]]] = {  # old name -> new name, new value from the old one
    "balance_successes": ("balance_shared", _unchanged),
    "behaviour_steps": ("divergence_steps", _unchanged),
    "body": ("benchmark", _unchanged),
    "by": ("by", lambda by: {"proposals": "emaq", "clone": "behaviour_policy"}.get(by, by)),
    "clip": ("sharing_temperature_clip", lambda name: list(CLIPS[name])),
    "critic_rate": ("critic_lr", _unchanged),
    "gradient_actions": ("num_gradient_actions", _unchanged),
    "hidden": ("hidden_sizes", _unchanged),
    "landscape_every": ("q_maps_every", _unchanged),
    "learner": ("learner", lambda learner: "bc" if learner == "clone" else learner),
    "learning_rate": ("lr", _unchanged),
    "learning_rate_decay": ("lr_decay", _unchanged),
    "nearby_share": ("nearby_fraction", _unchanged),
    "oversample": ("candidates_per_shared", _unchanged),
    "own_part": ("weigh_own_probability", _unchanged),
    "policy_rate": ("actor_lr", _unchanged),
    "prior": ("behaviour_policy", _unchanged),
    "prior_loyalty": ("bc_log_prob_weight", _unchanged),
    "prior_std": ("behaviour_policy_std", _unchanged),
    "refresh_steps": ("snapshot_every", _unchanged),
    "sampled_actions": ("num_sampled_actions", _unchanged),
    "shared_part": ("shared_fraction", _unchanged),
    "success_part": ("success_fraction", _unchanged),
    "target_decay": ("target_update_rate", _update_rate),
    "target_rate": ("target_update_rate", _unchanged),
    "sharing_temperature": ("sharing_temperature", _temperature),
    "temperature": ("sharing_temperature", _temperature),
    "unseen_actions": ("num_unseen_actions", _unchanged),
    "warm_steps": ("bc_steps", _unchanged),
}
WEIGHTS = {  # first part of a parameter's name in the small network
    "focus": "task_attention",
    "merge_focus": "merge_task_landmark",
    "merge_things": "merge_landmarks",
    "prior1": "policy1",
    "prior2": "policy2",
    "prior3": "policy3",
    "which1": "landmark_bias1",
}


def current_options(stored: Mapping[str, Any], fields: Container[str] | None = None) -> dict[str, Any]:
    """Stored options under their current names. `fields`: the names in use; without them, every old name is mapped."""
    current = {}
    for old, value in stored.items():
        new, convert = OPTIONS.get(old, (old, _unchanged))
        if fields is not None and new not in fields:
            new, convert = old, _unchanged
        current[new] = convert(value)
    return current


def rename_weights(module: Any, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Hook before `load_state_dict`: old names of the small network's weights become the current ones, in place."""
    for key in list(weights):
        first, dot, rest = key.removeprefix(prefix).partition(".")
        if key.startswith(prefix) and first in WEIGHTS:
            weights[f"{prefix}{WEIGHTS[first]}{dot}{rest}"] = weights.pop(key)
