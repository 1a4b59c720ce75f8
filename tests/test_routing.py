"""Pages about routing."""

from __future__ import annotations

import re

import pytest

from data.replay import Replay
from eval.policy import CEMPolicy
from eval.routing import RoutingConfig, routing_section, show, weigh_episodes
from models.checkpoint import CheckpointError
from sim.tasks import TASK_NAMES, TASKS
from train.callbacks.router_report import CELL_PX, NAME_PX, heat_map, starved_tasks
from train.qtopt_config import QTOptConfig
from train.qtopt_run import train


def sharing(**values):
    """Of two tasks that share, the others were not trained."""
    count = len(TASK_NAMES)
    weights = [[None] * count for _ in range(count)]
    weights[0][0], weights[0][1], weights[1][1] = 1.0, 0.25, 1.0
    plain = {"rule": "cds", "weights": weights, "success": [0.5] + [None] * 9, "temperature": [0.2] * count}
    plain |= {
        "reference": [0.7] + [None] * 9,
        "steps": [100.0, 40.0] + [0.0] * 8,
        "history": [[10, weights], [20, weights]],
    }
    return plain | values


def test_the_section_shows_weights_effective_steps_and_drift():
    text = re.sub(r"<[^>]*>", " ", routing_section(sharing()))
    assert "0.25" in text
    assert re.search(r"lift-banana\s+100\s+110\s+50\s+0.7\s+0.2", text)
    assert "lift-banana: weight of each source" in text


def test_a_rule_that_weighs_nothing_has_no_drift_and_an_older_report_no_table():
    plain = sharing(rule="none")
    assert "Drift" not in routing_section(plain)
    assert "effective" not in routing_section({"rule": "none", "weights": plain["weights"]})


def test_the_page_shows_the_episodes_of_others_that_count_most_and_least(tiny_checkpoint, tiny_training, tmp_path):
    out = tmp_path / "page.html"
    options = {"checkpoint": str(tiny_checkpoint), "data": tiny_training["data"], "task": "lift-banana"}
    assert show(RoutingConfig(**options, out=str(out), episodes=3, shown=1)) == out
    page = out.read_text()
    assert page.count("<img") == 2
    assert page.count("of place-bowl") == 2
    replay, policy = Replay(tiny_training["data"]), CEMPolicy.load(tiny_checkpoint)
    others = (replay.episode_task == TASKS["place-bowl"].index).nonzero()[0]
    weights = [each.weight for each in weigh_episodes(policy, replay, others, TASKS["lift-banana"].index)]
    assert len(weights) == 3
    assert set(weights) <= {0.0, 1.0}  # the rule is a hard one
    shown = [float(text) for text in re.findall(r"weight ([0-9.]+), Q", page)]
    assert shown == pytest.approx([max(weights), min(weights)], abs=0.006)


def test_tasks_for_which_nothing_passes_are_told_from_those_that_may_not_share():
    weights = [[1.0, 0.0, 0.0], [0.2, 1.0, 0.0], [None, None, 1.0]]
    assert starved_tasks({"tasks": ("a", "b", "c"), "weights": weights}) == ["a"]


def test_the_heat_map_is_dark_where_much_is_shared():
    image = heat_map(("a", "b"), [[1.0, 0.25], [None, 0.0]])
    first, last = NAME_PX + 3, NAME_PX + CELL_PX + 3
    assert image.shape == (NAME_PX + 2 * CELL_PX, NAME_PX + 2 * CELL_PX, 3)
    assert image[first, first, 0] < image[first, last, 0] < image[last, last, 0] == image[last, first, 0] == 255


def test_a_page_needs_a_rule_that_weighs_by_q_and_a_task_that_was_trained(tiny_checkpoint, tiny_training, tmp_path):
    options = {"data": tiny_training["data"], "checkpoint": str(tiny_checkpoint)}
    with pytest.raises(CheckpointError, match="was not trained for lift-can"):
        show(RoutingConfig(**options, task="lift-can"))
    plain = train(QTOptConfig(out=str(tmp_path / "run"), **{**tiny_training, "rule": "all", "steps": 1}))
    with pytest.raises(CheckpointError, match="shares by rule all, which weighs no episodes by Q"):
        show(RoutingConfig(**{**options, "checkpoint": str(plain)}, task="lift-banana"))
