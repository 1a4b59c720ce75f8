"""The policy that comes along."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.policy import CEMPolicy
from eval.rollout import episode_jobs, rollout
from sim.camera import resolve_renderer
from sim.tasks import TASK_NAMES

TRAINED = Path(__file__).parents[1] / "models" / "trained" / "vision-64.ckpt"


def test_the_policy_that_comes_along_is_small_and_knows_all_tasks():
    assert TRAINED.stat().st_size < 10e6
    assert CEMPolicy.load(TRAINED).about["trained_tasks"] == list(TASK_NAMES)


def test_the_policy_that_comes_along_lifts_and_places():
    world = CEMPolicy.load(TRAINED).world
    if resolve_renderer("auto") != world["renderer"]:
        pytest.skip(f"needs {world['renderer']} pictures")
    jobs = episode_jobs(("lift-sausage", "lift-carrot", "place-bowl"), 4, seed=1000)
    won = [outcome.success for outcome in rollout("checkpoint", str(TRAINED), world, jobs, 2)]
    assert len(won) == 12
    assert sum(won) >= 6
