"""The pretrained policies."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.mixtures import RECIPES
from eval.policy import CEMPolicy
from eval.rollout import episode_jobs, rollout
from models.policy_files import load_policies
from sim.camera import resolve_renderer
from sim.tasks import TASK_NAMES

TRAINED = Path(__file__).parents[1] / "models" / "trained" / "vision-64.ckpt"


def test_the_pretrained_policy_is_small_and_knows_all_tasks():
    assert TRAINED.stat().st_size < 10e6
    assert CEMPolicy.load(TRAINED).metadata["trained_tasks"] == list(TASK_NAMES)


FILES = sorted({source.file for recipes in RECIPES.values() for recipe in recipes.values() for source in recipe})


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith(".pt")])
def test_the_behaviour_policies_are_small_and_serve_the_tasks_that_recipes_ask_of_them(file):
    path = TRAINED.parents[2] / file
    assert path.stat().st_size < 1e6
    policies = load_policies(path)
    for name, recipes in RECIPES.items():
        for source in (source for recipe in recipes.values() for source in recipe if source.file == file):
            assert policies.benchmark.name == name
            assert source.task in policies.tasks
    assert path.with_suffix(".md").is_file()  # its card


def test_the_pretrained_policy_lifts_and_places():
    options = CEMPolicy.load(TRAINED).env_options
    if resolve_renderer("auto") != options["renderer"]:
        pytest.skip(f"needs {options['renderer']} images")
    jobs = episode_jobs(("lift-sausage", "lift-carrot", "place-bowl"), 4, seed=1000)
    successes = [outcome.success for outcome in rollout("checkpoint", str(TRAINED), options, jobs, 2)]
    assert len(successes) == 12
    assert sum(successes) >= 6
