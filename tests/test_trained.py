"""The pretrained policies."""

from __future__ import annotations

from pathlib import Path

import pytest
from data.locomotion import LocomotionConfig, read_source
from models.state_policy import load_policies

from eval.policy import CEMPolicy
from eval.rollout import episode_jobs, rollout
from sim.camera import resolve_renderer
from sim.tasks import TASK_NAMES

TRAINED = Path(__file__).parents[1] / "models" / "trained" / "vision-64.ckpt"


def test_the_pretrained_policy_is_small_and_knows_all_tasks():
    assert TRAINED.stat().st_size < 10e6
    assert CEMPolicy.load(TRAINED).metadata["trained_tasks"] == list(TASK_NAMES)


def test_the_pretrained_walkers_are_small_and_those_the_dataset_is_made_by():
    for text in LocomotionConfig().sources[1:]:
        task, file, _ = read_source(text)
        _, body, about = load_policies(TRAINED.parents[2] / file)
        assert (TRAINED.parents[2] / file).stat().st_size < 1e6
        assert task in about["tasks"]
        assert body.name == LocomotionConfig().body


def test_the_pretrained_policy_lifts_and_places():
    options = CEMPolicy.load(TRAINED).env_options
    if resolve_renderer("auto") != options["renderer"]:
        pytest.skip(f"needs {options['renderer']} images")
    jobs = episode_jobs(("lift-sausage", "lift-carrot", "place-bowl"), 4, seed=1000)
    successes = [outcome.success for outcome in rollout("checkpoint", str(TRAINED), options, jobs, 2)]
    assert len(successes) == 12
    assert sum(successes) >= 6
