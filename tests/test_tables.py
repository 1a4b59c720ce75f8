"""Tables of results beside the paper's."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from eval import paper
from eval.intervals import t_interval
from eval.tables import SAME, main, tables
from sim.benchmarks.table import BENCHMARKS
from sim.tasks import TASK_NAMES

TASKS = BENCHMARKS["walker2d"].task_names


def test_the_interval_of_three_values_is_students():
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3**0.5), abs=1e-3)


@pytest.mark.parametrize("rule", list(paper.VISION))
def test_the_papers_averages_are_those_of_its_tasks(rule):
    *tasks, average = paper.VISION[rule]
    assert len(tasks) == len(TASK_NAMES)
    assert sum(tasks) / 10 == pytest.approx(average, abs=0.06)


@pytest.mark.parametrize("key", list(paper.STATES))
def test_the_papers_averages_over_tasks_are_those_of_its_tasks(key):
    for rule, (*tasks, average) in paper.STATES[key].returns.items():
        misprint = 6.0 if (key, rule) == (("walker2d", "medium"), "all") else 0  # table 1 prints 747.7 for 741.7
        if not np.isnan(tasks[0][0]):  # else the paper has the average alone
            assert sum(value for value, _ in tasks) / len(tasks) == pytest.approx(average[0] - misprint, abs=0.1)
        assert len(tasks) == len(BENCHMARKS[key[0]].tasks)


def written(path, content):
    path.write_text(json.dumps(content))
    return path


def evaluation(path, rule, successes, tasks=TASK_NAMES, config=None, options=None, **settings):
    rows = [{"task": task, "policy": "checkpoint", "successes": successes, "episodes": 50} for task in tasks]
    rows.append({"task": TASK_NAMES[0], "policy": "random", "successes": 0, "episodes": 50})
    settings_of_run = dict.fromkeys(SAME, 1) | {"checkpoint_sha256": path.name} | settings
    content = {"results": rows, "sharing": {"rule": rule, "config": config or {}}, "settings": settings_of_run}
    options = {"lr": 0.001, "seed": successes, "rule": rule} | (options or {})
    return written(path, content | {"checkpoint": path.name, "options": options})


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


def test_what_was_routed_has_a_table(tmp_path):
    files = []
    for number, (success, auc) in enumerate([(0.5, 0.9), (0.7, None)]):
        path = evaluation(tmp_path / str(number), "cds-hard", 25)
        content = json.loads(path.read_text())
        content["sharing"] |= {"shared": [0.4] * 10, "success": [success] + [None] * 9, "auc": [auc] * 10}
        files.append(written(path, content))
    text = tables(files)
    assert "| shared, useful | cds-hard |" in text
    assert "| lift-banana | 40%, 60% |" in text
    assert "| lift-bottle | 40%, - |" in text
    assert re.search(r"\| AUC of scores \| cds-hard \|\n.*\n\| lift-banana \| 0.90 \|", text)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"checkpoint_sha256": "a"}, "b: comes twice"),
        ({"steps": 60}, r"b: not comparable with a: steps 1 \(now 60\)"),
        ({"manifest_sha256": "x"}, "not comparable"),
        ({"options": {"lr": 0.1}}, r"b: not comparable with a: lr 0.001 \(now 0.1\)"),
        ({"episodes_sha256": None, "manifest_sha256": None}, "not comparable"),
        ({"options": {"cloned": "effective"}}, r"rule cds had other options: cloned None \(now 'effective'\)"),
        ({"config": {"percentile": 50.0}}, r"rule cds had other options: percentile None \(now 50.0\)"),
        ({"tasks": TASK_NAMES[1:]}, "lacks lift-banana"),
    ],
)
def test_evaluations_that_differ_in_more_than_rule_and_seed_are_refused(tmp_path, other, message):
    with pytest.raises(ValueError, match=message):
        tables([evaluation(tmp_path / "a", "cds", 25), evaluation(tmp_path / "b", "cds", 30, **other)])


def test_evaluations_of_unknown_datasets_are_not_averaged(tmp_path):
    unknown = dict.fromkeys(("episodes_sha256", "manifest_sha256"))
    tables([evaluation(tmp_path / "a", "cds", 25, **unknown)])
    with pytest.raises(ValueError, match="does not say which dataset"):
        tables([evaluation(tmp_path / name, "cds", 25, **unknown) for name in "ab"])


def row(rule, seed, level, tasks=TASKS):
    returns = {task: [level - 10, level + 10] for task in tasks}
    behaviour = {task: [level / 2] for task in tasks}
    known = {"divergence": dict.fromkeys(tasks, level / 100), "own_divergence": dict.fromkeys(tasks, level)}
    return {"rule": rule, "seed": seed, "returns": returns, **known, "behaviour_returns": behaviour}


def results(path, members, **header):
    known = {"benchmark": "walker2d", "metric": "return", "algorithm": "cql", "recipe": "published"}
    known |= {"dataset_digest": "x", "updates": 9, "episodes": 2, "evaluation_seed": 1, "config": {"rules": [1]}}
    return written(path, known | header | {"members": members})


def test_one_seed_of_returns_has_no_interval(tmp_path):
    assert "| jump | 1.0 | 1418.2" in tables([results(tmp_path / "one.json", [row("cds", 0, 1.0)])])


def test_returns_and_divergences_of_all_seeds_stand_beside_the_papers(tmp_path, capsys):
    members = [row("cds", seed, level) for seed, level in enumerate((100, 200, 300))]
    one = results(tmp_path / "one.json", members[:1])
    two = results(tmp_path / "two.json", [*members[1:], row("all", 0, 50), row("all", 1, 50)])
    assert main([str(one), str(two)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("walker2d published, cql, 9 updates\n")
    assert "| jump | 200.0 ± 248.4 | 50.0 ± 0.0 | 1418.2 ± 138.4 | 885.1 ± 152.9 |" in text
    assert "| KL from the policy of none to the effective data | cds | all | paper: cds | paper: all |" in text
    assert "| average | 2.00 ± 2.48 | 0.50 ± 0.00 | 3.50 | 15.82 |" in text
    assert "own policy" not in text
    assert "| return of the effective behaviour policy | cds | all |" in text
    assert "| jump | 100.0 ± 124.2 | 25.0 ± 0.0 |" in text


@pytest.mark.parametrize("kind", ["of before", "without the rule none"])
def test_the_divergence_of_a_rules_own_policy_has_another_heading(tmp_path, kind):
    """Results of before hold one divergence, which was that."""
    members = [row("cds", 0, 100), row("all", 0, 200)]
    if kind == "of before":
        members[0]["divergence"] = members[0].pop("own_divergence")
    else:
        members[0]["divergence"] = None
    text = tables([results(tmp_path / "x.json", members)])
    assert "| KL from each rule's own policy to its effective data | cds | all |\n" in text
    assert "| jump | 100.00 | 200.00 |" in text
    assert "policy of none" not in text


def test_results_without_a_divergence_have_no_table_of_it(tmp_path):
    member = row("cds", 0, 1.0)
    del member["divergence"], member["own_divergence"]
    assert "KL" not in tables([results(tmp_path / "x.json", [member])])


def test_a_benchmark_without_the_papers_numbers_stands_alone(tmp_path):
    text = tables([results(tmp_path / "ant.json", [row("cds", 0, 1.0)], benchmark="ant")])
    assert "| return | cds |\n" in text
    assert "paper" not in text


def test_table_1_of_the_paper_has_no_intervals(tmp_path):
    text = tables([results(tmp_path / "x.json", [row("none", 0, 1.0)], recipe="medium")])
    assert "| jump | 1.0 | 351.1 |" in text


def test_success_is_in_percent(tmp_path):
    members = [{**row("cds", 0, 1.0), "success": {task: [True, False] for task in TASKS}}]
    text = tables([results(tmp_path / "x.json", members, metric="success", benchmark="ant")])
    assert "| success, % | cds |" in text
    assert "| jump | 50.0 (9-91) |" in text  # one seed: Wilson's interval of two episodes
    assert "| average | 50.0 (19-81) |" in text


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"benchmark": "halfcheetah"}, r"not comparable with .*a.json: benchmark 'walker2d' \(here 'halfcheetah'\)"),
        ({"updates": 10}, r"updates 9 \(here 10\)"),
        ({"dataset_digest": "y"}, "dataset_digest"),
        ({"config": {"rules": [1], "critic_lr": 1}}, "critic_lr"),
        ({"metric": None}, "metric"),
    ],
)
def test_results_of_other_benchmarks_budgets_and_data_are_refused(tmp_path, other, message):
    first = results(tmp_path / "a.json", [row("cds", 0, 1.0)])
    with pytest.raises(ValueError, match=message):
        tables([first, results(tmp_path / "b.json", [row("cds", 1, 1.0)], **other)])


def test_results_that_do_not_name_their_benchmark_are_refused(tmp_path):
    old = written(tmp_path / "old.json", {"members": [row("cds", 0, 1.0)]})
    with pytest.raises(ValueError, match=r"old.json: no results of an offline run .* it names no benchmark"):
        tables([old])


def test_members_that_are_not_independent_or_lack_a_task_are_refused(tmp_path, capsys):
    twice = results(tmp_path / "twice.json", [row("cds", 0, 1.0), row("cds", 0, 1.0)])
    assert main([str(twice)]) == 2
    assert "cds, seed 0 comes twice" in capsys.readouterr().err
    some = results(tmp_path / "some.json", [row("cds", 0, 1.0), row("cds", 1, 1.0, tasks=("jump",))])
    assert main([str(some)]) == 2
    assert "cds, seed 1: played other tasks" in capsys.readouterr().err


def test_other_files_are_refused(tmp_path, capsys):
    assert main([str(written(tmp_path / "x.json", {"a": 1}))]) == 2
    assert "eval.json of evaluations, or returns.json" in capsys.readouterr().err


def test_a_reading_of_a_maze_stands_beside_the_papers_average_of_that_reading(tmp_path):
    benchmark = BENCHMARKS["antmaze-medium"]
    played = dict.fromkeys(benchmark.task_names, (True, False))
    row = {"name": "cds-0", "rule": "cds", "seed": 0, "returns": dict.fromkeys(played, (1.0, 0.0)), "success": played}
    content = {"benchmark": benchmark.name, "metric": "success", "algorithm": "cql", "recipe": "published"}
    content |= {"dataset_digest": "x", "updates": 5, "episodes": 2, "evaluation_seed": 1}
    files = {}
    for assignment in ("directed", "undirected", "collected"):
        of_reading = {**content, "config": {"assignment": assignment}, "members": [{**row, "success_at_end": played}]}
        files[assignment] = written(tmp_path / f"{assignment}.json", of_reading)
    text = tables([files["undirected"]])
    assert text.startswith("antmaze-medium published, undirected, cql, 5 updates")
    assert "| goal-0 | 50.0 (9-91) | - |" in text
    assert "| average | 50.0 (19-81) | 36.7 ± 6.2 |" in text
    assert "success at the end, %" in text
    assert "36.7" not in tables([files["directed"]])
    assert "18.5 ± 6.0" in tables([files["directed"]])
    quick = json.loads(files["directed"].read_text()) | {"recipe": "quick"}
    assert "paper" not in tables([written(tmp_path / "quick.json", quick)])
    assert "paper" not in tables([files["collected"]])
    with pytest.raises(ValueError, match=r"not comparable with .*assignment"):
        tables([files["directed"], files["undirected"]])
