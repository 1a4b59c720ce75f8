"""The pretrained policies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from data.mixtures import RECIPES
from eval.behaviour import behaviour_of, load_behaviour
from eval.policy import CEMPolicy
from eval.rollout import episode_jobs, rollout
from sim.benchmarks.table import BENCHMARKS
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
    for name, recipes in RECIPES.items():
        for source in (source for recipe in recipes.values() for source in recipe if source.file == file):
            behaviour = behaviour_of(BENCHMARKS[name], str(path), source.noise)
            load_behaviour(dataclasses.replace(behaviour, task=source.task))  # which refuses any other
    assert path.with_suffix(".md").is_file()  # its card


def test_the_pretrained_policy_lifts_and_places():
    options = CEMPolicy.load(TRAINED).env_options
    if resolve_renderer("auto") != options["renderer"]:
        pytest.skip(f"needs {options['renderer']} images")
    jobs = episode_jobs(("lift-sausage", "lift-carrot", "place-bowl"), 4, seed=1000)
    successes = [outcome.success for outcome in rollout("checkpoint", str(TRAINED), options, jobs, 2)]
    assert len(successes) == 12
    assert sum(successes) >= 6
