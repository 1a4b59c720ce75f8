"""`python -m eval.tables FILE...`: results of several runs as Markdown, beside those of the CDS paper.

FILE: eval.json of evaluations in the pick-place world (table 4), or returns.json of offline algorithms on a state
benchmark (tables 1 to 3, and the returns of the behaviour policy of each rule's effective data). Files of different
benchmarks, datasets, budgets or settings are refused side by side.
Over several seeds: mean and 95% interval by Student's t; one seed of pictures: Wilson's interval of its episodes.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval import paper
from eval.intervals import t_interval, wilson
from sim.benchmarks.table import benchmark_by_name
from sim.files import read_json
from sim.options import Parser, changed, run_command
from sim.tasks import TASK_NAMES

DATASET = ("episodes_sha256", "manifest_sha256")  # of an evaluation, either of which names the dataset
SAME = ("steps", *DATASET, "episodes", "seed", "randomise", "split", "renderer")
# Of comparable results of states: an average over other updates, data or settings would mean nothing.
SAME_STATES = ("benchmark", "metric", "algorithm", "recipe", "dataset_digest", "updates", "episodes", "evaluation_seed")
FREE_OPTIONS = (
    "data",
    "out",
    "rules",
    "seeds",
    "workers",
    "steps",
    "log_every",
    "checkpoint_every",
    "updates_per_step",
    "divergence_from",
    "evaluate_every",
)

# Options of trainings on images that belong to a rule: trainings by another one may have others.
SHARING = (
    "rule",
    "sharing",
    "granularity",
    "reference",
    "percentile",
    "reference_over",
    "sharing_temperature",
    "weigh_own_probability",
    "snapshot_every",
    "share_after",
    "score_fraction",
    "score_visits",
    "candidates_per_shared",
    "shared_fraction",
    "balance_shared",
    "cloned",
)

PAPERS_KL = "KL from the policy of none to the effective data"  # pi_none, pi_beta_eff: tables 1 and 2
OWN_KL = "KL from each rule's own policy to its effective data"  # not in the paper


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.tables", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    files = parser.parse_args(arguments).files
    return run_command(lambda: print(tables(files)))


def tables(files: Sequence[Path]) -> str:
    """Markdown of all files, which are of one kind."""
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path}: not a file; give the returns.json or eval.json of a run")
    found = [read_json(path) for path in files]
    if all("members" in each for each in found):
        return "\n\n".join(_states(files, found))
    if all("results" in each for each in found):
        return _pictures(found)
    raise ValueError("the files are eval.json of evaluations, or returns.json of state benchmarks, not both or others")


def _pictures(found: list[dict[str, Any]]) -> str:
    _comparable(found)
    runs: dict[str, list[dict[str, tuple[int, int]]]] = defaultdict(list)  # rule -> seeds: task -> successes, episodes
    for each in found:
        mine = (row for row in each["results"] if row["policy"] == "checkpoint")
        runs[each["sharing"]["rule"]].append({row["task"]: (row["successes"], row["episodes"]) for row in mine})
    rules = _in_order(runs, paper.VISION)
    if missing := [task for each in runs.values() for run in each for task in TASK_NAMES if task not in run]:
        raise ValueError(f"an evaluation lacks {missing[0]}: the table is of the trained policy on all ten tasks")

    def cell(rule: str, tasks: Sequence[str]) -> str:
        pooled = [[sum(run[task][k] for task in tasks) for k in (0, 1)] for run in runs[rule]]
        if len(pooled) > 1:
            mean, half = t_interval([100 * successes / episodes for successes, episodes in pooled])
            return f"{mean:.1f} ± {half:.1f}"
        (successes, episodes) = pooled[0]
        low, high = wilson(successes, episodes)
        return f"{100 * successes / episodes:.1f} ({100 * low:.0f}-{100 * high:.0f})"

    rows = []
    for k, (name, tasks) in enumerate([*((task, [task]) for task in TASK_NAMES), ("average", TASK_NAMES)]):
        published = [f"{paper.VISION[rule][k]:.1f}" if rule in paper.VISION else "-" for rule in rules]
        rows.append([name, *(cell(rule, tasks) for rule in rules), *published])
    table = markdown(["success, %", *rules, *(f"paper: {rule}" for rule in rules)], rows)
    return "\n\n".join([table, *_routing(found, rules)])


def _routing(found: list[dict[str, Any]], rules: Sequence[str]) -> list[str]:
    """What was routed, by task, means over the seeds of each rule: how much of what is learned from is shared, how much
    of that is useful (the target's detector accepts it), and how well the scores of others' episodes tell that."""
    shown = [rule for rule in rules if rule != "none"]
    out = []
    for head, keys in (("shared, useful", ("shared", "success")), ("AUC of scores", ("auc",))):
        known = [each["sharing"] for each in found if keys[0] in each["sharing"]]
        runs = {rule: [each for each in known if each["rule"] == rule] for rule in shown}
        names = [rule for rule in shown if runs[rule]]
        rows = [
            [task, *(", ".join(_routed(runs[rule], key, k) for key in keys) for rule in names)]
            for k, task in enumerate(TASK_NAMES)
        ]
        if names:
            out.append(markdown([head, *names], rows))
    return out


def _routed(runs: Sequence[dict[str, Any]], key: str, task: int) -> str:
    """Mean of a routing statistic over runs, in percent but for the AUC."""
    values = [each[key][task] for each in runs if each[key][task] is not None]
    if not values:
        return "-"
    return f"{np.mean(values):.2f}" if key == "auc" else f"{100 * np.mean(values):.0f}%"


def _comparable(found: list[dict[str, Any]]) -> None:
    """ValueError where evaluations differ in more than rule and seed."""
    configs: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    for each in found:
        name, rule = each["checkpoint"], each["sharing"]["rule"]
        if each["settings"]["checkpoint_sha256"] in seen:
            raise ValueError(f"{name}: comes twice")
        seen.add(each["settings"]["checkpoint_sha256"])
        first, mine = ({key: run["settings"].get(key) for key in SAME} for run in (found[0], each))
        options = each.get("options", {})
        differs = changed(first, mine) or changed(found[0].get("options", {}), options, ("seed", *SHARING))
        if differs:
            raise ValueError(f"{name}: not comparable with {found[0]['checkpoint']}: {differs}")
        if len(found) > 1 and not any(mine[key] for key in DATASET):
            raise ValueError(f"{name}: does not say which dataset it learned from; evaluate it with --data")
        config = each["sharing"].get("config", {}) | options
        if differs := changed(configs.setdefault(rule, config), config, ("seed",)):
            raise ValueError(f"{name}: another run of rule {rule} had other options: {differs}")


def _comparable_states(files: Sequence[Path], found: list[dict[str, Any]]) -> None:
    """ValueError where results differ in more than rule and seed."""
    for path, each in zip(files, found, strict=True):
        if lacking := [key for key in (*SAME_STATES, "config") if key not in each]:
            raise ValueError(f"{path}: no results of an offline run (returns.json): it names no {lacking[0]}")
        differs = changed(*({key: one[key] for key in SAME_STATES} for one in (found[0], each)))
        differs = differs or changed(found[0]["config"], each["config"], FREE_OPTIONS)
        if differs:
            raise ValueError(f"{path}: not comparable with {files[0]}: {differs.replace('(now ', '(here ')}")


def _states(files: Sequence[Path], found: list[dict[str, Any]]) -> list[str]:
    _comparable_states(files, found)
    benchmark = benchmark_by_name(found[0]["benchmark"])
    of_rule: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for member in (row for each in found for row in each["members"]):
        best = {f"best {key}": value for key, value in member.get("best", {}).items()}
        of_rule[member["rule"]].append(_with_divergences(member) | best)
        if member["returns"].keys() != found[0]["members"][0]["returns"].keys():
            raise ValueError(f"{member['rule']}, seed {member['seed']}: played other tasks than the first member")
    tasks = [task for task in benchmark.task_names if task in found[0]["members"][0]["returns"]]
    for rule, mine in of_rule.items():
        seeds = [member["seed"] for member in mine]
        if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
            raise ValueError(f"{rule}, seed {twice[0]} comes twice: leave out a file, or train other --seeds")
    assignment = found[0]["config"].get("assignment", "collected")
    recipe = found[0]["recipe"]
    data = recipe if assignment == "collected" else assignment
    as_published = tasks == list(benchmark.task_names) and recipe in (data, "published")
    known = paper.STATES.get((benchmark.name, data)) if as_published else None
    rules = _in_order(of_rule, known.returns if known else ())

    def table(head: str, key: str, digits: int, cells: dict[str, list[str]] | None = None, scale: float = 1) -> str:
        """By task and their average: mean over the seeds of each rule, and its interval; then `cells` of the paper."""
        rows = []
        for k, name in enumerate([*tasks, "average"]):
            ours = []
            for rule in rules:
                each = [[scale * np.mean(member[key][task]) for member in of_rule[rule]] for task in tasks]
                mean, half = t_interval([*each, np.mean(each, axis=0).tolist()][k])
                ours.append(_number(mean, half, digits))
                if key == "success" and len(of_rule[rule]) == 1:  # one seed: Wilson's interval of its episodes
                    rows_of = tasks[k : k + 1] or tasks
                    played = [bool(each) for task in rows_of for each in of_rule[rule][0][key][task]]
                    low, high = wilson(sum(played), len(played))
                    ours[-1] = f"{mean:.1f} ({100 * low:.0f}-{100 * high:.0f})"
            rows.append([name, *ours, *(cells[rule][k] for rule in rules if cells)])
        return markdown([head, *rules, *(f"paper: {rule}" for rule in rules if cells)], rows)

    blank = {rule: ["-"] * (len(tasks) + 1) for rule in rules}
    returns = (
        {rule: [_number(mean, half, 1) for mean, half in cells] for rule, cells in known.returns.items()}
        if known
        else {}
    )
    apart = {
        rule: [f"{value:.2f}" for value in (*values, float(np.mean(values)))]
        for rule, values in (known.divergence if known else {}).items()
    }
    of_data = f"{recipe}, {assignment}" if data == assignment else recipe
    head = f"{benchmark.name} {of_data}, {found[0]['algorithm']}, {found[0]['updates']} updates"
    out = [head]
    if found[0]["metric"] == "success":
        out.append(table("success, %", "success", 1, blank | returns if returns else None, scale=100))
        if all("success_at_end" in member for mine in of_rule.values() for member in mine):
            out.append(table("success at the end, %", "success_at_end", 1, scale=100))
    else:
        out.append(table("return", "returns", 1, blank | returns if returns else None))
    members = [member for mine in of_rule.values() for member in mine]
    if all("best" in member for member in members):
        of_success = found[0]["metric"] == "success"
        head = "success in the best evaluation, %" if of_success else "return in the best evaluation"
        out.append(table(head, "best success" if of_success else "best returns", 1, scale=100 if of_success else 1))
    if all(member["divergence"] for member in members):
        out.append(table(PAPERS_KL, "divergence", 2, blank | apart if apart else None))
    elif all(member["own_divergence"] for member in members):
        out.append(table(OWN_KL, "own_divergence", 2))
    if all("behaviour_returns" in member for member in members):
        out.append(table("return of the effective behaviour policy", "behaviour_returns", 1))
    return out


def _with_divergences(member: dict[str, Any]) -> dict[str, Any]:
    """A member with both divergences. Results of before had one, of the member's own policy."""
    known = {"divergence": None, "own_divergence": None} | member
    if "own_divergence" not in member:
        known |= {"divergence": None, "own_divergence": member.get("divergence")}
    return known


def _number(mean: float, half: float, digits: int) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if np.isnan(half) else f" ± {half:.{digits}f}")


def _in_order(found: Iterable[str], paper: Iterable[str]) -> list[str]:
    """The rules that were found, the paper's first, as it lists them."""
    found, paper = list(found), list(paper)
    return [rule for rule in paper if rule in found] + [rule for rule in found if rule not in paper]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
