"""Comparison of policies: tests and intervals against hand-computed numbers and other packages, and the command."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from scipy import stats

from bench.coverage import Setting, coverage
from eval.compare import as_text, compare, main, read_arms
from eval.intervals import mean_of_rates, newcombe, wilson
from eval.paired import (
    Block,
    differences,
    holm,
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
    mcnemar,
    probability_of_improvement,
    score_test,
    smallest_difference,
    smallest_independent_difference,
)
from eval.results import read_run, to_bytes
from sim.tasks import TASK_NAMES

TWO = TASK_NAMES[:2]


def test_mcnemar_by_hand_and_beside_the_binomial_test():
    """Of 8 pairs one and seven: 2 (1 + 8) / 256; mid-p takes off 8 / 256 (table 1 of Fagerland et al. 2013)."""
    assert mcnemar(1, 7) == pytest.approx((18 / 256, 10 / 256))
    assert mcnemar(7, 1) == mcnemar(1, 7)
    assert mcnemar(3, 3) == pytest.approx((1, 1 - 20 / 64 / 2))
    assert mcnemar(0, 0) == (1, 1)
    for b, c in ((0, 5), (12, 30), (40, 41)):
        assert mcnemar(b, c)[0] == pytest.approx(stats.binomtest(b, b + c, 0.5).pvalue)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1, 1]
    assert holm([0.05]) == [0.05]


def test_newcombes_interval_has_its_published_values():
    """Table II of Newcombe 1998, method 10: 56/70 - 48/80, 9/10 - 3/10, 10/10 - 0/20."""
    assert newcombe((48, 80), (56, 70)) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe((3, 10), (9, 10)) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert newcombe((0, 20), (10, 10)) == pytest.approx((0.6791, 1.0), abs=5e-5)


def test_the_mean_of_one_rate_has_wilsons_interval_and_of_many_a_narrower_one():
    assert mean_of_rates([(7, 20)]) == pytest.approx((0.35, *wilson(7, 20)))
    expected = stats.binomtest(7, 20).proportion_ci(0.95, method="wilson")
    assert wilson(7, 20) == pytest.approx((expected.low, expected.high))
    estimate, low, high = mean_of_rates([(30, 60)] * 4)
    assert estimate == 0.5
    assert (high - low) / (wilson(30, 60)[1] - wilson(30, 60)[0]) == pytest.approx(1 / 2)  # sqrt(4)


def test_the_score_test_of_one_task_is_pearsons():
    table = [[12, 28], [24, 16]]
    assert score_test([(12, 40)], [(24, 40)]) == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue)
    assert score_test([(5, 5)], [(9, 9)]) == 1


def test_the_smallest_difference_has_the_power_that_it_promises():
    """Connor's formula for N, put in again; and simulated: McNemar's test finds it in about 80% of cases."""
    pairs, discordant = 400, 79
    d, psi = smallest_difference(pairs, discordant), 80 / 402
    z_a, z_b = stats.norm.isf(0.025), stats.norm.isf(0.2)
    assert (z_a * math.sqrt(psi) + z_b * math.sqrt(psi - d**2)) ** 2 / d**2 == pytest.approx(pairs)
    drawn = np.random.default_rng(0).multinomial(pairs, [(psi + d) / 2, (psi - d) / 2, 1 - psi], size=1000)
    found = [mcnemar(int(b), int(c))[1] < 0.05 for b, c, _ in drawn]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)
    assert smallest_difference(3, 1) is None
    assert smallest_difference(50, 0) > 0  # none observed is not none


def test_the_smallest_difference_of_independent_episodes_by_hand():
    """Rate (99 + 1) / (198 + 2) = 1/2: (1.960 + 0.8416) sqrt(1/4 (1/99 + 1/99))."""
    found = smallest_independent_difference([(49, 99)], [(50, 99)])
    assert found == pytest.approx(2.8016 * math.sqrt(0.5 / 99), abs=1e-4)


def block(a, b):
    """Paired episodes of two runs."""
    return [Block(outcomes=np.array([a, b], np.bool_), arm=np.array([0, 1]), run=np.array([0, 0]))]


def test_the_paired_bootstrap_agrees_with_scipys():
    rng = np.random.default_rng(0)
    common = rng.random(200)
    a, b = (np.where(rng.random(200) < 0.5, common, rng.random(200)) < rate for rate in (0.6, 0.7))
    (found,), average = differences([block(a, b)])
    assert found == average
    assert found.estimate == pytest.approx(b.mean() - a.mean())
    by_scipy = stats.bootstrap(
        (a, b),
        lambda x, y, axis: y.mean(axis) - x.mean(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((by_scipy.low, by_scipy.high), abs=0.011)  # two steps of 1/200


def test_the_interval_of_the_average_is_that_of_independent_tasks():
    """Two tasks of equal variance: half the width of one, times the square root of two; and n - 1, not n."""
    a, b = np.zeros(40), np.tile([0, 1], 20)
    one, average = differences([block(a, b)] * 2)
    assert average.estimate == one[0].estimate == 0.5
    assert one[0].standard_error == pytest.approx(math.sqrt(0.25 / 39), rel=0.03)
    assert average.standard_error == pytest.approx(math.sqrt(0.25 / 39 / 2), rel=0.03)


def test_where_no_pair_differs_the_interval_is_the_exact_bound():
    (found,), _ = differences([block(np.ones(50), np.ones(50))])
    upper = stats.binomtest(0, 50).proportion_ci(0.95, method="exact").high
    assert (found.low, found.high) == pytest.approx((-upper, upper))
    (one,), _ = differences([block([0], [1])])  # one episode says nothing
    assert (one.low, one.high) == (-1, 1)


def seeds(a, b):
    """One block of several runs a side, success [K, S] each."""
    arm = np.repeat([0, 1], [len(a), len(b)])
    run = np.concatenate([np.arange(len(a)), np.arange(len(b))])
    return [Block(outcomes=np.concatenate([a, b]), arm=arm, run=run)]


def test_over_seeds_the_variance_between_them_counts():
    """Scenes that are all equally hard, seeds that differ: Welch's t-test of the seeds' rates."""
    rows = [np.tile(np.arange(10) < successes, 400) for successes in (4, 5, 6, 6, 8, 7)]
    for row in rows:
        np.random.default_rng(int(row.sum())).shuffle(row)
    a, b = np.array(rows[:3]), np.array(rows[3:])
    (found,), _ = differences([seeds(a, b)])
    welch = stats.ttest_ind(b.mean(1), a.mean(1), equal_var=False)
    low, high = welch.confidence_interval(0.95)
    assert found.estimate == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    assert found.p == pytest.approx(welch.pvalue, abs=0.01)


# rliable 1.2.0 (arch 7.2.0, NumPy 2.4): metrics.aggregate_iqm(A), (B), metrics.probability_of_improvement(B, A);
# library.get_interval_estimates({"A": A, "B": B}, ..., reps=200_000, random_state=RandomState(0)), and with
# {"B,A": (B, A)} and reps=50_000.
A = np.array([[0.62, 0.41, 0.80], [0.58, 0.47, 0.74], [0.66, 0.36, 0.78], [0.60, 0.44, 0.90]])
B = np.array([[0.70, 0.45, 0.79], [0.61, 0.52, 0.83], [0.73, 0.40, 0.86]])
RLIABLE = {
    "iqm": (0.6116666666666667, 0.67),
    "iqm intervals": ((0.59166667, 0.635), (0.628, 0.702)),
    "improvement": 0.7222222222222222,
    "improvement interval": (0.47222222, 0.94444444),
}


def test_interquartile_mean_and_probability_of_improvement_are_those_of_rliable():
    assert (interquartile_mean(A), interquartile_mean(B)) == pytest.approx(RLIABLE["iqm"])
    assert probability_of_improvement(A, B) == pytest.approx(RLIABLE["improvement"])
    for scores, interval in zip((A, B), RLIABLE["iqm intervals"], strict=True):
        assert interquartile_interval(scores) == pytest.approx(interval, abs=0.004)
    assert improvement_interval(A, B) == pytest.approx(RLIABLE["improvement interval"], abs=0.03)  # one pair: 1 / 36


def test_the_same_of_the_package_itself():
    metrics = pytest.importorskip("rliable.metrics")
    rng = np.random.default_rng(0)
    a, b = rng.random((5, 4)), rng.random((3, 4)) + 0.2
    assert interquartile_mean(a) == pytest.approx(metrics.aggregate_iqm(a))
    assert probability_of_improvement(a, b) == pytest.approx(metrics.probability_of_improvement(b, a))


def test_intervals_hold_the_true_value_as_often_as_they_say():
    """A small copy of `python -m bench --only coverage`: 400 repetitions, standard error 1.1%."""
    for setting in (Setting(episodes=50, tasks=4, gain=0.05), Setting(episodes=20, tasks=10, alike=0.9)):
        found = coverage(setting, repetitions=400, resamples=400)
        assert {"paired bootstrap", "Wilson, mean of tasks", "Newcombe, mean of tasks"} <= found.keys()
        for name, percent in found.items():
            assert 92 <= percent <= 98, (setting.name, name)


def write(path, outcomes, sha256="a", seed=1000, episodes=True, policy="checkpoint", **more):
    """An eval.json of success [episodes] by task; `outcomes`: {task: [success]} or {task: {number: success}}."""
    numbered = {task: each if isinstance(each, dict) else dict(enumerate(each)) for task, each in outcomes.items()}
    counts = [(task, int(sum(each.values())), len(each)) for task, each in numbered.items()]
    payload = {
        "settings": {"checkpoint_sha256": sha256, "seed": seed},
        "split": "train",
        "sim_version": 5,
        "randomise": ["start", "look"],
        "steps": 10,
        "sharing": {"rule": "none"},
        "results": [
            {"task": task, "policy": policy, "successes": x, "episodes": n, "seed": seed} for task, x, n in counts
        ],
        "episodes": [
            {"policy": policy, "task": task, "number": k, "seed": seed, "success": bool(won), "steps": 3}
            for task, each in numbered.items()
            for k, won in each.items()
        ],
        **more,
    }
    path.parent.mkdir(exist_ok=True, parents=True)
    if episodes:
        path.write_bytes(to_bytes(payload))
    else:
        path.write_text(json.dumps({key: value for key, value in payload.items() if key != "episodes"}))
    return str(path)


def found_in(*arms, labels=""):
    (comparison,) = compare(read_arms(arms, labels))["comparisons"]
    return comparison


def test_a_file_with_episodes_is_json_with_a_line_each_and_is_read_again(tmp_path):
    path = tmp_path / "run/eval.json"
    write(path, {TWO[0]: [1, 0, 1], TWO[1]: [0, 0, 0]})
    lines = [line for line in path.read_text().splitlines() if '"number"' in line]
    assert len(lines) == len(json.loads(path.read_text())["episodes"]) == 6
    run = read_run(path.parent)  # the folder of a run
    assert run.counts == {TWO[0]: (2, 3), TWO[1]: (0, 3)}
    assert run.outcomes[TWO[0]] == {0: True, 1: False, 2: True}


def test_paired_episodes_show_what_counts_do_not(tmp_path):
    """12 scenes that B alone solves and 2 that A alone does, of 100: told by pairs, not by counts."""
    a = [1] * 40 + [0] * 60
    b = [0] * 2 + [1] * 50 + [0] * 48
    files = [write(tmp_path / name, {TWO[0]: each}, name) for name, each in (("a", a), ("b", b))]
    (row,) = found_in(*files)["tasks"]
    assert (row["only_a"], row["only_b"], row["difference"]) == (2, 12, pytest.approx(0.1))
    assert row["p_exact"] == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert row["p_mid"] == pytest.approx((2 * (1 + 14 + 91) - 91) / 2**14)
    assert 0.02 < row["low"] < 0.05 < 0.15 < row["high"] < 0.19
    assert row["verdict"] == "better"
    old = [write(tmp_path / f"old-{k}", {TWO[0]: each}, f"{k}", episodes=False) for k, each in enumerate((a, b))]
    found = found_in(*old)
    (row,) = found["tasks"]
    assert not found["paired"]
    assert (row["low"], row["high"]) == pytest.approx(newcombe((40, 100), (50, 100)))
    assert row["verdict"] == "open"
    assert "Inconclusive" in found["verdict"]
    assert "counts alone (an earlier version" in found["notes"][0]


def test_the_same_policy_differs_from_itself_by_nothing(tmp_path):
    outcomes = {TWO[0]: [1, 0, 1, 1], TWO[1]: [0, 0, 1, 1]}
    twice = [write(tmp_path / name / "eval.json", outcomes) for name in "ab"]
    old = write(tmp_path / "old", outcomes, episodes=False)
    for arms in ([twice[0]] * 2, twice, [old, old], [",".join([twice[0], write(tmp_path / "c", outcomes, "c")])] * 2):
        found = found_in(*arms)
        for row in (*found["tasks"], found["average"]):
            assert (row["difference"], row["low"], row["high"], row["p"], row["p_holm"]) == (0, 0, 0, 1, 1)
        assert found["verdict"] == "A and B are the same policy, with the same outcome in every episode: no difference."
    other = write(tmp_path / "d", outcomes, "another policy")
    found = found_in(twice[0], other)  # not the same because it did the same
    assert found["average"]["high"] == pytest.approx(1 - 0.025 ** (1 / 8))
    assert "Inconclusive" in found["verdict"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seed": 7}, "seed 1000 (against 7)"),
        ({"split": "test"}, "split 'train' (against 'test')"),
        ({"sim_version": 6}, "sim_version 5 (against 6)"),
        ({"randomise": []}, "randomise ['look', 'start'] (against [])"),
    ],
)
def test_other_scenes_are_not_paired_and_that_is_said(tmp_path, change, why):
    first = write(tmp_path / "a", {TWO[0]: [1, 0] * 20}, "a")
    found = found_in(first, write(tmp_path / "b", {TWO[0]: [1, 0] * 20}, "b", **change))
    assert not found["paired"]
    assert f"Scenes differ, so the episodes count as independent: {why}." in found["notes"]
    assert "Newcombe" in found["method"]
    reordered = write(tmp_path / "c", {TWO[0]: [1, 0] * 20}, "c", randomise=["look", "start"])
    assert found_in(first, reordered)["paired"]


def test_episodes_and_tasks_in_only_one_file_are_left_out_in_words(tmp_path):
    a = write(tmp_path / "a", {TWO[0]: [1, 0, 1, 0], TASK_NAMES[2]: [1, 1]}, "a")
    b = write(tmp_path / "b", {TWO[0]: {2: 1, 3: 1, 4: 1, 5: 1, 6: 1}, TWO[1]: [0, 1]}, "b")
    found = found_in(a, b)
    assert [row["task"] for row in found["tasks"]] == [TWO[0]]
    assert (found["average"]["only_a"], found["average"]["only_b"]) == (0, 1)
    assert found["notes"] == [
        f"Not every evaluation has {TWO[1]}, {TASK_NAMES[2]}: left out.",
        f"Left out: 2 episodes of {a} that not every run beside it played.",
        f"Left out: 3 episodes of {b} that not every run beside it played.",
    ]
    c = write(tmp_path / "c", {TWO[0]: {9: 1, 10: 0}}, "c")
    assert any("no episode number is in all of them" in note for note in found_in(a, c)["notes"])


def test_several_seeds_are_an_arm(tmp_path, capsys):
    rng = np.random.default_rng(0)
    arms = []
    for arm, rates in (("a", (0.40, 0.45, 0.35)), ("b", (0.80, 0.85, 0.9))):
        files = [
            write(tmp_path / f"{arm}{k}", {task: rng.random(60) < rate for task in TWO}, f"{arm}{k}")
            for k, rate in enumerate(rates)
        ]
        arms.append(",".join(files))
    report = tmp_path / "page.html"
    options = ["--labels", "none,<cds>", "--report", str(report), "--json", str(tmp_path / "found.json")]
    assert main([*arms, *options]) == 0
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())["comparisons"][0]
    average = found["average"]
    assert average["verdict"] == "better"
    assert average["a"]["runs"] == 3
    assert average["p_exact"] is None  # of one policy beside one
    assert found["over_seeds"]["probability_of_improvement"][0] == 1
    assert found["over_seeds"]["iqm_b"][0] == pytest.approx(average["b"]["rate"], abs=0.03)
    assert "<cds> is better: +" in text
    assert "Probability that a run of <cds> beats one of none on a task: 100.0% (100.0-100.0)" in text
    page = report.read_text()
    assert page.count("<svg") == 1
    assert "&lt;cds&gt; is better" in page
    assert "<cds>" not in page
    single = found_in(arms[0].split(",")[0], arms[1])
    assert "A is one run: how far other training seeds of it would differ is not in the interval." in single["notes"]
    assert main([f"{arms[0]},{arms[0].split(',')[0]}", arms[1]]) == 2
    assert "comes twice in A" in capsys.readouterr().err


def test_verdicts_of_tasks_are_corrected_over_tasks(tmp_path):
    """p of 0.03125 (mid-p of 0 and 5) is below 5% for one task, and not for two."""
    a = write(tmp_path / "a", {task: [0] * 20 for task in TWO}, "a")
    b = write(tmp_path / "b", {TWO[0]: [1] * 5 + [0] * 15, TWO[1]: [0] * 20}, "b")
    first, _ = found_in(a, b)["tasks"]
    assert (first["p"], first["p_holm"]) == pytest.approx((0.03125, 0.0625))
    assert first["verdict"] == "open"
    alone = write(tmp_path / "c", {TWO[0]: [1] * 5 + [0] * 15}, "c")
    assert found_in(a, alone)["tasks"][0]["verdict"] == "better"
    assert found_in(alone, a)["tasks"][0]["verdict"] == "worse"


def test_few_differing_pairs_are_no_proof_though_a_bootstrap_excludes_none(tmp_path):
    a = write(tmp_path / "a", {TWO[0]: [0] * 50}, "a")
    row = found_in(a, write(tmp_path / "b", {TWO[0]: [1] * 4 + [0] * 46}, "b"))["average"]
    assert row["low"] > 0
    assert row["p"] == pytest.approx(0.0625)
    assert row["verdict"] == "open"


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ([], 0),
        (["--require", "better"], 0),
        (["--require", "better", "--margin", "30"], 1),
        (["--require", "not-worse"], 0),
    ],
)
def test_the_exit_status_tells_a_script_whether_b_is_better(tmp_path, options, status, capsys):
    a = write(tmp_path / "a", {TWO[0]: [1, 0] * 50}, "a")
    b = write(tmp_path / "b", {TWO[0]: [1, 1, 1, 0] * 25}, "b")
    assert main([a, b, *options]) == status
    assert main([b, a, *options]) == (1 if options else 0)
    assert main([a, a, "--require", "not-worse"]) == 0
    assert main([a, a, "--require", "better"]) == 1
    assert "--require better by 0 points: not met." in capsys.readouterr().out


def test_equal_files_give_equal_output_and_json_alone_goes_to_stdout(tmp_path, capsys):
    rng = np.random.default_rng(1)
    files = [write(tmp_path / name, {task: rng.random(30) < 0.5 for task in TWO}, name) for name in "ab"]
    texts = []
    for _ in range(2):
        assert main([*files, "--json", "-"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    found = json.loads(texts[0])
    assert found["bootstrap"] == {"resamples": 10_000, "seed": 0}
    rate = found["comparisons"][0]["average"]["a"]["rate"]
    assert re.search(rf"^average +{100 * rate:.1f}% ", as_text(found), re.MULTILINE)


def test_more_arms_are_each_compared_with_the_first(tmp_path):
    won = {"a": 5, "b": 11, "c": 30}
    files = [write(tmp_path / name, {TWO[0]: [1] * k + [0] * (40 - k)}, name) for name, k in won.items()]
    found = compare(read_arms(files))["comparisons"]
    assert [(each["a"], each["b"]) for each in found] == [("A", "B"), ("A", "C")]
    assert found[0]["average"]["p_holm"] == found[0]["average"]["p"]  # the larger of two
    assert found[1]["average"]["p_holm"] == pytest.approx(2 * found[1]["average"]["p"])


def test_what_cannot_be_compared_is_refused_in_words(tmp_path, capsys):
    a = write(tmp_path / "a", {TWO[0]: [1, 0]}, "a")
    states = tmp_path / "returns.json"
    states.write_text('{"members": []}')
    damaged = tmp_path / "damaged.json"
    damaged.write_text('{"results": [{"policy": "checkpoint"}]}')
    miscounted = tmp_path / "miscounted.json"
    miscounted.write_text((tmp_path / "a").read_text().replace('"successes": 1', '"successes": 2'))
    cases = {
        (a,): "give two arms or more to compare, got 1",
        (a, str(tmp_path / "none")): "no eval.json here",
        (a, write(tmp_path / "b", {TWO[1]: [1, 0]}, "b")): "have no task in common",
        (a, str(states)): "returns of a state benchmark; python -m eval.tables shows these",
        (a, str(damaged)): "damaged.json: no results of `python -m eval`",
        (a, str(miscounted)): "counts 2 successes in 2 episodes, but lists 1 in 2",
        (a, a, "--policy", "random"): "holds no results of policy 'random', but of checkpoint",
        (a, a, "--require", "beter"): "Did you mean 'better'",
        (a, a, "--margin", "5"): "--margin is 0 or more points, and belongs to --require",
        (a, a, "--labels", "x"): "--labels needs 2 different names",
    }
    for arguments, message in cases.items():
        assert main(list(arguments)) == 2
        assert message in capsys.readouterr().err
