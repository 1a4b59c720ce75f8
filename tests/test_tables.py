"""Tables of results beside the paper's."""

from __future__ import annotations

import json
import re

import pytest

from eval.tables import PAPER_RETURNS, PAPER_VISION, SAME, main, t_interval, tables
from sim.locomotion import BODIES
from sim.tasks import TASK_NAMES


def test_the_interval_of_three_values_is_students():
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3**0.5), abs=1e-3)


@pytest.mark.parametrize("rule", list(PAPER_VISION))
def test_the_papers_averages_are_those_of_its_tasks(rule):
    *tasks, average = PAPER_VISION[rule]
    assert len(tasks) == len(TASK_NAMES)
    assert sum(tasks) / 10 == pytest.approx(average, abs=0.06)


@pytest.mark.parametrize("rule", list(PAPER_RETURNS))
def test_the_papers_mean_returns_are_those_of_its_tasks(rule):
    *tasks, average = (value for value, _ in PAPER_RETURNS[rule])
    assert sum(tasks) / 3 == pytest.approx(average, abs=0.1)


def written(path, content):
    path.write_text(json.dumps(content))
    return path


def evaluation(path, rule, won, tasks=TASK_NAMES, config=None, **settings):
    rows = [{"task": task, "policy": "checkpoint", "successes": won, "episodes": 50} for task in tasks]
    rows.append({"task": TASK_NAMES[0], "policy": "random", "successes": 0, "episodes": 50})
    told = dict.fromkeys(SAME, 1) | {"checkpoint_sha256": path.name} | settings
    sharing = {"rule": rule, "config": config or {}}
    return written(path, {"results": rows, "sharing": sharing, "settings": told, "checkpoint": path.name})


def test_success_of_rules_stands_beside_the_papers(tmp_path):
    files = [
        evaluation(tmp_path / "a", "none", 25),
        evaluation(tmp_path / "b", "cds", 30),
        evaluation(tmp_path / "c", "cds", 40),
    ]
    text = tables(files)
    assert re.search(r"\| success, % \| cds \| none \| paper: cds \| paper: none \|", text)
    assert re.search(r"\| lift-banana \| 70.0 ± 127.1 \| 50.0 \(37-63\) \| 53.1 \| 20.0 \|", text)
    assert re.search(r"\| average \| 70.0 ± 127.1 \| 50.0 \(46-54\) \| 74.8 \| 60.8 \|", text)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"checkpoint_sha256": "a"}, "b: comes twice"),
        ({"steps": 60}, r"b: not comparable with a: steps 1 \(now 60\)"),
        ({"manifest_sha256": "x"}, "not comparable"),
        ({"config": {"percentile": 50.0}}, r"rule cds had other options: percentile None \(now 50.0\)"),
        ({"tasks": TASK_NAMES[1:]}, "lacks lift-banana"),
    ],
)
def test_evaluations_that_differ_in_more_than_rule_and_seed_are_refused(tmp_path, other, message):
    with pytest.raises(ValueError, match=message):
        tables([evaluation(tmp_path / "a", "cds", 25), evaluation(tmp_path / "b", "cds", 30, **other)])


def test_one_seed_of_returns_has_no_interval(tmp_path):
    member = {"rule": "cds", "seed": 0, "returns": {task: [1.0] for task in BODIES["walker2d"].task_names}}
    assert "| jump | 1.0 | 1418.2" in tables([written(tmp_path / "one.json", {"members": [member]})])


def test_returns_and_divergences_of_all_seeds_stand_beside_the_papers(tmp_path, capsys):
    tasks = BODIES["walker2d"].task_names

    def member(rule, seed, level):
        returns = {task: [level - 10, level + 10] for task in tasks}
        cloned = {task: [level / 2] for task in tasks}
        divergence = dict.fromkeys(tasks, level / 100)
        return {"rule": rule, "seed": seed, "returns": returns, "divergence": divergence, "cloned": cloned}

    members = [member("cds", seed, level) for seed, level in enumerate((100, 200, 300))]
    one = written(tmp_path / "one.json", {"members": members[:1]})
    two = written(tmp_path / "two.json", {"members": [*members[1:], member("all", 0, 50), member("all", 1, 50)]})
    assert main([str(one), str(two)]) == 0
    text = capsys.readouterr().out
    assert "| jump | 200.0 ± 248.4 | 50.0 ± 0.0 | 1418.2 ± 138.4 | 885.1 ± 152.9 |" in text
    assert "| average | 2.00 ± 2.48 | 0.50 ± 0.00 | 3.50 | 15.82 |" in text
    assert "| return of the clone | cds | all |" in text
    assert "| jump | 100.0 ± 124.2 | 25.0 ± 0.0 |" in text


def test_members_that_are_not_independent_or_lack_a_task_are_refused(tmp_path, capsys):
    member = {"rule": "cds", "seed": 0, "returns": {task: [1.0] for task in BODIES["walker2d"].task_names}}
    twice = written(tmp_path / "twice.json", {"members": [member, member]})
    assert main([str(twice)]) == 2
    assert "a seed of cds comes twice" in capsys.readouterr().err
    some = written(tmp_path / "some.json", {"members": [{**member, "returns": {"jump": [1.0]}}]})
    assert main([str(some)]) == 2
    assert "cds, seed 0: lacks run-forward" in capsys.readouterr().err


def test_other_files_are_refused(tmp_path, capsys):
    assert main([str(written(tmp_path / "x.json", {"a": 1}))]) == 2
    assert "eval.json of evaluations, or returns.json" in capsys.readouterr().err
