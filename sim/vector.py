"""Vector environments: gymnasium's vector API over worker processes, with observations in shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from sim.camera import resolve_renderer
from sim.env import PickPlaceEnv
from sim.options import check_choice
from sim.tasks import task_by_name


def make_vector(
    num_envs: int = 1,
    task: str | Sequence[str | None] | None = None,
    autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    max_episode_steps: int | None = None,
    autoreset: str | AutoresetMode | None = None,
    **env_options: Any,
) -> AsyncVectorEnv:
    """`num_envs` environments `PickPlaceEnv(task, **env_options)`, each in its own process; several tasks alternate.

    The vector entry point of `gymnasium.make_vec`. `autoreset_mode` (alias `autoreset`): gymnasium's enum, or NextStep,
    SameStep or Disabled. `max_episode_steps`: the smaller of it and `horizon` applies, -1 is none. Observations are
    copied from shared memory, so a final observation is never overwritten (gymnasium #1132).
    """
    autoreset_mode = autoreset or autoreset_mode
    tasks = [task] if task is None or isinstance(task, str) else list(task)
    if not tasks or num_envs < 1:
        raise ValueError(f"name at least one task and one environment, got {tasks} and {num_envs}")
    for name in tasks:
        if name is not None:
            task_by_name(name)
    if isinstance(autoreset_mode, str):
        check_choice("autoreset mode", autoreset_mode, [mode.value for mode in AutoresetMode])
    if max_episode_steps not in (None, -1):
        horizon = env_options.get("horizon")
        env_options["horizon"] = max_episode_steps if horizon is None else min(horizon, max_episode_steps)
    env_options["renderer"] = resolve_renderer(env_options.get("renderer", "auto"))  # once, not per worker
    makers = [partial(PickPlaceEnv, tasks[number % len(tasks)], **env_options) for number in range(num_envs)]
    return AsyncVectorEnv(makers, shared_memory=True, copy=True, context="spawn", autoreset_mode=autoreset_mode)
