"""KL of the paper's tables 1 and 2 in a run's results: of the single-task policy from each rule's effective data."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from data.transitions import TransitionDataset, empty_columns, write_transitions
from eval.returns import Results
from models.checkpoint import CheckpointError
from models.policy_files import load_policies
from sim.benchmarks.table import BENCHMARKS
from tests.conftest import SMALL_STATE_RUN as SMALL
from tests.conftest import small_state_config
from train import state_run
from train.cql import CQLConfig

TASKS = BENCHMARKS["walker2d"].task_names


@pytest.fixture
def run(transitions, tmp_path, monkeypatch):
    """A run with these options, of which nothing is played: its results by member, and its pi_beta_eff."""
    write_transitions(tmp_path / "states.h5", transitions)
    fitted = []
    real = state_run.fit_behaviour
    monkeypatch.setattr(state_run, "fit_behaviour", lambda *given: fitted.append(real(*given)) or fitted[-1])

    def unplayed(file, *_):
        rows = [{"name": m.name, "rule": m.rule, "seed": m.seed, "returns": {}} for m in file.members]
        return Results(header={"benchmark": "walker2d", "metric": "return"} | file.metadata, members=rows)

    monkeypatch.setattr(state_run, "evaluate", unplayed)

    def train(name, **options):
        given = {**SMALL, "data": str(tmp_path / "states.h5"), "out": str(tmp_path / name), **options}
        rows = json.loads(state_run.train("cql", CQLConfig(**given)).read_text())["members"]
        return {row["name"]: row for row in rows}, fitted[-1]

    return train


def known_kl(policy, behaviour, member, of, transitions, task):
    """By torch, at all 800 own states of the task."""
    own = transitions.columns["observation"][transitions.columns["task"] == task]
    seen = torch.from_numpy(own).expand(policy.network.members, -1, -1)
    p = torch.distributions.Normal(*(x[of] for x in policy(seen, torch.full(seen.shape[:2], task))))
    seen = seen[:1].expand(behaviour.network.members, -1, -1)
    q = torch.distributions.Normal(*(x[member] for x in behaviour(seen, torch.full(seen.shape[:2], task))))
    return torch.distributions.kl_divergence(p, q).sum(-1).mean().item()


def test_every_rule_is_compared_with_the_policy_that_does_not_share(run, transitions, tmp_path):
    rows, behaviour = run("all", rules=("cds", "none"), seeds=(3, 4))
    policy = load_policies(tmp_path / "all" / "policy.pt").policy  # cds-3, cds-4, none-3, none-4
    for member, single in ((0, 2), (1, 3), (2, 2), (3, 3)):
        row = rows[("cds-3", "cds-4", "none-3", "none-4")[member]]
        for task, name in enumerate(TASKS):
            wanted = known_kl(policy, behaviour, member, single, transitions, task)
            assert row["divergence"][name] == pytest.approx(wanted, rel=1e-3)
            wanted = known_kl(policy, behaviour, member, member, transitions, task)
            assert row["own_divergence"][name] == pytest.approx(wanted, rel=1e-3)
    assert rows["none-3"]["divergence"] == rows["none-3"]["own_divergence"]
    assert rows["cds-3"]["divergence"] != rows["cds-3"]["own_divergence"]


def test_the_policies_of_another_run_serve_a_run_without_that_rule(run, tmp_path, capsys):
    together, _ = run("together", rules=("none", "cds"), seeds=(0, 5))
    run("none", rules=("none",), seeds=(5, 7, 0))
    without, _ = run("cds", rules=("cds",), seeds=(0, 5))
    assert {row["divergence"] for row in without.values()} == {None}
    assert "no KL of CDS's tables 1 and 2: it needs rule none" in capsys.readouterr().out
    found, _ = run("cds", rules=("cds",), seeds=(0, 5), divergence_from=str(tmp_path / "none" / "policy.pt"))
    for name in ("cds-0", "cds-5"):
        assert without[name]["own_divergence"] == found[name]["own_divergence"]
        for key in ("divergence", "own_divergence"):
            assert found[name][key] == pytest.approx(together[name][key], rel=1e-3)


def test_deterministic_policies_have_the_kl_of_another_runs(run, tmp_path):
    """KL(pi_none || pi_beta_eff) is of stochastic policies both."""
    run("none", rules=("none",), seeds=(0,))
    settings = small_state_config("td3-bc", rules=("all",), data=str(tmp_path / "states.h5"), seeds=(0,))
    settings = dataclasses.replace(settings, divergence_from=str(tmp_path / "none" / "policy.pt"))
    path = state_run.train("td3-bc", dataclasses.replace(settings, out=str(tmp_path / "td3-bc")))
    (row,) = json.loads(path.read_text())["members"]
    assert min(row["divergence"][task] for task in TASKS) > 0
    assert row["own_divergence"] is None


def test_policies_that_do_not_match_are_refused_before_there_is_a_folder(run, transitions, tmp_path):
    run("none", rules=("none",), seeds=(0,), tasks=("run-forward", "jump"))
    policies = str(tmp_path / "none" / "policy.pt")
    run("cds", rules=("cds",), seeds=(0,))
    for message, options in (
        (r"policy.pt has no policy of rule none, seed 1, 2; train those seeds there", {"seeds": (0, 1, 2)}),
        (r"policy.pt learned run-forward, jump, this run learns run-forward, run-backward, jump", {}),
        (r"cds.policy.pt has no policy of rule none", {"divergence_from": str(tmp_path / "cds" / "policy.pt")}),
        (r"leave one out", {"rules": ("none", "all")}),
        (r"KL needs divergence_steps", {"divergence_steps": 0}),
    ):
        with pytest.raises(ValueError, match=message):
            run("new", **{"rules": ("all",), "seeds": (0,), "divergence_from": policies} | options)
    settings = small_state_config("td3-bc", rules=("none",), data=str(tmp_path / "states.h5"))
    state_run.train("td3-bc", dataclasses.replace(settings, out=str(tmp_path / "td3-bc"), seeds=(0,)))
    with pytest.raises(ValueError, match=r"holds deterministic policies, of which there is no KL"):
        run("new", rules=("all",), divergence_from=str(tmp_path / "td3-bc" / "policy.pt"))
    with pytest.raises(CheckpointError, match=r"nowhere\.pt"):
        run("new", rules=("all",), divergence_from=str(tmp_path / "nowhere.pt"))
    other = {**transitions.columns, "action": transitions.columns["action"] / 2}
    write_transitions(tmp_path / "states.h5", dataclasses.replace(transitions, columns=other))
    with pytest.raises(ValueError, match=r"policy.pt learned from other data than .*states.h5"):
        run("new", rules=("all",), divergence_from=policies)
    ant = BENCHMARKS["ant"]
    columns = empty_columns(ant, 30)
    columns["task"][:] = np.arange(30) % 3
    columns["episode_end"][-1] = True
    write_transitions(tmp_path / "ant.h5", TransitionDataset(benchmark=ant, columns=columns, metadata={}))
    with pytest.raises(ValueError, match=r"policy\.pt holds policies for walker2d, not for ant"):
        run("new", rules=("all",), data=str(tmp_path / "ant.h5"), divergence_from=policies)
    assert not (tmp_path / "new").exists()
