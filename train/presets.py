"""Published settings of each state benchmark, one row each: `sharing` for every algorithm, then those of one algorithm.

CDS, app. C.1: the clip of the adaptive temperature, whether own transitions are weighed too, CQL's weight beta as it
stands beside half the squared error (2 beta in CQL's code), its Lagrange threshold. CQL's command for AntMaze: its
weight in the Lagrange form. IQL: app. B of its paper. A row is chosen by the benchmark that the dataset names; options
of the command line win over it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sim.options import check_choice
from train.state_config import StateConfig

INF = float("inf")
MAZE_SHARING = {"sharing_temperature_clip": (10.0, INF), "weigh_own_probability": 0.5}
MAZE_REWARD = {"reward_scale": 10.0, "reward_shift": -5.0}  # with rewards of 0 and 1 no Q differs by a tau of 10
ANTMAZE_CQL = {"lagrange_threshold": 5.0, "conservative_weight": 5.0} | MAZE_REWARD
MAZE_IQL = {"expectile": 0.9, "inverse_temperature": 10.0, "reward_shift": -1.0}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "walker2d": {
        "sharing": {"sharing_temperature_clip": (5.0, INF), "weigh_own_probability": 0.5},
        "cql": {"conservative_weight": 1.0, "critic_lr": 3e-4, "actor_lr": 1e-4},
    },
    "halfcheetah": {
        "sharing": {"sharing_temperature_clip": (10.0, INF), "weigh_own_probability": 0.5},
        "cql": {"conservative_weight": 1.0, "critic_lr": 3e-4, "actor_lr": 1e-4},
        "sac": {"update_every": 4},
        "td3": {"update_every": 4},
    },
    "ant": {
        "sharing": {"sharing_temperature_clip": (10.0, 25.0), "weigh_own_probability": 0.5},
        "cql": {"conservative_weight": 5.0, "critic_lr": 3e-4, "actor_lr": 1e-4},
        "sac": {"update_every": 4},
        "td3": {"update_every": 4},
    },
    "dmc-walker": {
        "sharing": {"sharing_temperature_clip": (5.0, INF), "weigh_own_probability": 0.5},
        "sac": {"update_every": 4, "replay_steps": 300_000},
        "td3": {"update_every": 4, "replay_steps": 300_000},
    },
    "desk": {
        "sharing": {"sharing_temperature_clip": (1.0, 50.0), "weigh_own_probability": 0.0},
        "cql": {"conservative_weight": 1.0, "critic_lr": 3e-4, "actor_lr": 1e-4},
        "sac": {"update_every": 4, "replay_steps": 152_000, "out": "runs/desk-sac"},
        "td3": {"update_every": 4, "replay_steps": 152_000},
    },
    "ant-direction": {"sac": {"update_every": 4}},
    "pointmaze-medium": {"sharing": MAZE_SHARING, "cql": MAZE_REWARD},
    "pointmaze-large": {"sharing": MAZE_SHARING, "cql": MAZE_REWARD},
    "antmaze-medium": {"sharing": MAZE_SHARING, "cql": ANTMAZE_CQL, "iql": MAZE_IQL},
    "antmaze-large": {"sharing": MAZE_SHARING, "cql": ANTMAZE_CQL, "iql": MAZE_IQL},
}


def preset_for(algorithm: str, benchmark: str, config: type) -> dict[str, Any]:
    """Options of the configuration class that the benchmark's row sets; what an algorithm itself says of sharing stays.
    ValueError for a benchmark without a row: its settings would be another's, silently."""
    row = PRESETS[check_choice("preset of benchmark", benchmark, tuple(PRESETS))]
    usual = {field.name: field.default for field in dataclasses.fields(StateConfig)}
    own = {f.name for f in dataclasses.fields(config) if f.name in usual and f.default != usual[f.name]}
    sharing = {name: value for name, value in row.get("sharing", {}).items() if name not in own}
    options = {**sharing, **row.get(algorithm, {})}
    names = {field.name for field in dataclasses.fields(config)} - set(getattr(config, "unused", ()))
    return {name: value for name, value in options.items() if name in names}
