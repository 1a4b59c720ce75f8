"""Conservative Q-learning on states: its terms by hand, members, routing, going on."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import signal

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import tensor

from bench.own_lowdim import Updates
from data.sharing import RULES
from data.transitions import COLUMNS, Transitions, write_transitions
from models.checkpoint import CheckpointError
from models.state_losses import conservative_gap, q_target, softmax_sample
from sim.locomotion import BODIES
from train.cql import CQL
from train.cql_config import CQLConfig
from train.divergence import clone_effective, divergence
from train.finite import NotFiniteError, check_weights

BODY = BODIES["walker2d"]
SMALL = {
    "per_task": 8,
    "hidden": (16, 16),
    "sampled_actions": 3,
    "steps": 4,
    "updates_per_step": 2,
    "log_every": 2,
    "episodes": 1,
}
SMALL["behaviour_steps"] = 3


@pytest.fixture(scope="module")
def transitions():
    """Steps that go nowhere; an action pays off by its first number, forward and backward."""
    rng = np.random.default_rng(0)
    count = 2400
    action = rng.uniform(-1, 1, (count, 6)).astype(np.float32)
    columns = {
        "observation": rng.normal(size=(count, 17)),
        "action": action,
        "next_observation": rng.normal(size=(count, 17)),
        "velocity": action[:, 0],
        "rise": np.zeros(count),
        "fell": np.ones(count),
        "last": np.ones(count),
        "task": np.arange(count) // 800,
    }
    return Transitions(body=BODY, columns={name: np.asarray(c, COLUMNS[name]) for name, c in columns.items()}, about={})


def module_of(transitions, **options):
    torch.manual_seed(0)
    module = Updates(CQLConfig(**{**SMALL, **options}), transitions)
    module.start("cpu")
    return module


def test_the_conservative_term_is_the_importance_weighted_logsumexp_minus_the_data():
    q, log_density = tensor([[1.0, 2.0]]), tensor([[math.log(0.5), math.log(0.25)]])
    expected = math.log((math.e / 0.5 + math.e**2 / 0.25) / 2) - 0.7
    assert conservative_gap(q, log_density, tensor([0.7])).item() == pytest.approx(expected, abs=1e-6)


def test_strata_of_the_softmax_are_drawn_as_often_as_it_says():
    logits = tensor([0.0, 1.0, 3.0]).expand(20_000, 3)
    chosen = softmax_sample(logits, 2, torch.Generator().manual_seed(0))
    often = torch.bincount(chosen.flatten(), minlength=3) / chosen.numel()
    assert often.tolist() == pytest.approx(logits[0].softmax(0).tolist(), abs=0.01)
    assert (chosen[:, 0] <= chosen[:, 1]).all()  # each in a half of its own


def test_the_drawn_gradient_is_on_average_that_of_all_actions(transitions):
    """Of Q's first layer, over many draws; the term itself is the same."""
    module = module_of(transitions, rules=("all",), seeds=(0,))
    rng = torch.Generator().manual_seed(0)
    state, action, sampled = torch.randn(1, 6, 20), torch.rand(1, 6, 6) * 2 - 1, torch.rand(1, 6, 9, 6) * 2 - 1
    density, weight = torch.rand(1, 6, 9), module.q.body.layers[0].weight

    def gradient(count):
        module.config = dataclasses.replace(module.config, gradient_actions=count)
        gap = module._conservative(state, action, sampled, density, rng)[2]
        weight.grad = None
        gap.sum().backward()
        return gap.detach(), weight.grad

    gap, exact = gradient(0)
    drawn = [gradient(4) for _ in range(400)]
    assert torch.allclose(drawn[0][0], gap, atol=1e-5)
    mean = torch.stack([each for _, each in drawn]).mean(0)
    assert (mean - exact).norm() < 0.1 * exact.norm()
    assert (drawn[0][1] - exact).norm() > 0.1 * exact.norm()


def test_the_target_bootstraps_unless_the_body_fell():
    one = q_target(tensor([1.0, 1.0]), tensor([0.0, 1.0]), tensor([2.0, 2.0]), tensor([0.5, 0.5]), 0.9)
    assert one.tolist() == pytest.approx([1 + 0.9 * 2.5, 1.0])


def test_the_behaviour_policy_is_that_of_what_counts(transitions):
    """Every task's actions have a place of their own. Without sharing a task's behaviour is its own action; with all
    of it, it is the mean of the own half and the other half, which is far from it for the tasks at the ends."""
    action = transitions.columns["action"]
    place = np.array([-0.5, 0.0, 0.5], np.float32)[transitions.columns["task"]]
    apart = {**transitions.columns, "action": (place[:, None] + 0.1 * action).astype(np.float32)}
    module = module_of(dataclasses.replace(transitions, columns=apart), rules=("none", "all"), per_task=64)
    behaved = clone_effective(module, 300)
    state = torch.zeros(2, 3, 20)
    state[:, :, 17:] = torch.eye(3)
    found = behaved(state)[0].tanh().mean(-1)
    assert found[0].tolist() == pytest.approx([-0.5, 0.0, 0.5], abs=0.12)
    assert found[1].tolist() == pytest.approx([-0.15, 0.0, 0.15], abs=0.15)
    assert torch.allclose(divergence(module, behaved, behaved), torch.zeros(2, 3), atol=1e-5)
    alone = copy.deepcopy(behaved)
    for weight in alone.parameters():
        weight.copy_(weight[:1].expand_as(weight))  # both members: the one that does not share
    narrow = divergence(module, alone, behaved)[1]
    wide = divergence(module, behaved, alone)[1]
    assert (wide > 3 * narrow).all()  # what is wide covers what is narrow, and not the other way round


@pytest.mark.parametrize("rule", list(RULES))
def test_every_rule_trains(transitions, rule):
    module = module_of(transitions, rules=(rule,), refresh_steps=1, per_task=32)
    module.update()
    info = module.update()
    assert all(torch.isfinite(value).all() for value in info.values())
    weights = module.routing()[f"{rule}-0"]["weights"]
    assert weights[0][0] is not None
    assert (weights[0][1] is None) == (RULES[rule].sources(BODY.task_names)[0, 1] == 0)


@pytest.mark.parametrize("rules", [("cds", "hipi"), ("cds-basic",)])
def test_batches_keep_their_size_where_several_are_offered(transitions, rules):
    module = module_of(transitions, rules=rules, oversample=3)
    seen = []
    real = module._conservative
    module._conservative = lambda state, *rest: seen.append(state.shape) or real(state, *rest)
    info = module.update()
    assert all(torch.isfinite(value).all() for value in info.values())
    assert seen == [(len(rules), 24, 20)]
    with pytest.raises(ValueError, match="oversample needs rules that weigh by Q-values, got cds, all"):
        CQLConfig(rules=("cds", "all"), oversample=2)


def test_the_heuristic_shares_by_the_snapshot_of_a_while_ago(transitions):
    module = module_of(transitions, rules=("cds", "heuristic"), refresh_steps=2, percentile=100.0, critic_rate=0.1)
    seen, old = [], []
    real = module._route
    module._route = lambda *given: seen.append((given[0], real(*given))) or seen[-1][1]
    for _ in range(4):
        old.append(copy.deepcopy(module.snapshot.state_dict()))
        module.update()
    shared = [batch.task_index[1] != batch.source_task_index[1] for batch, _ in seen]
    for step in (0, 1):
        assert (seen[step][1][1][shared[step]] == 0).all()
        assert (seen[step][1][0][shared[step]] > 0).all()  # the other rule's member
    assert (seen[2][1][1][shared[2]] > 0).any()  # above the least of the own ones
    key = "body.layers.0.weight"
    assert torch.equal(old[0][key], old[1][key])
    assert not torch.equal(old[1][key], old[2][key])
    assert torch.equal(old[2][key], old[3][key])


@pytest.mark.parametrize("rule", ["all", "hipi"])
def test_a_task_that_is_not_trained_is_left_out(transitions, rule):
    module = module_of(transitions, rules=(rule,), tasks=("run-forward", "jump"))
    module.update()
    weights = module.routing()[f"{rule}-0"]["weights"]
    assert weights[1] == [None, None, None]
    assert weights[0][1] is None
    assert weights[0][2] is not None
    some = transitions.columns["task"] != 1
    columns = {name: column[some] for name, column in transitions.columns.items()}
    assert module_of(dataclasses.replace(transitions, columns=columns)).tasks == (0, 2)
    with pytest.raises(ValueError, match="Did you mean 'jump'"):
        module_of(transitions, tasks=("jmp",))


def test_a_member_does_not_feel_the_others(transitions):
    """The gradient of the first of three members is that of the same weights and batch alone."""
    both = module_of(transitions, rules=("all",), seeds=(0, 1, 2))
    before = [p.clone() for p in both.q.parameters()]
    real = both.draw

    def scrambled(generator):
        batch = real(generator)
        batch.reward[1:] += 100.0
        return batch

    calm = module_of(transitions, rules=("all",), seeds=(0, 1, 2))
    both.draw = scrambled
    both.update()
    calm.update()
    for a, b, old in zip(both.q.parameters(), calm.q.parameters(), before, strict=True):
        members = a.shape[0] // 2
        assert torch.allclose(a[0], b[0], atol=1e-6)
        assert torch.allclose(a[members], b[members], atol=1e-6)
        assert not torch.equal(a[0], old[0])


def test_each_task_learns_which_way_pays(transitions):
    """One-step episodes: Q(s, a) is the reward, +a_0 forward and -a_0 backward; the policies find the ends."""
    options = {
        "per_task": 64,
        "hidden": (32, 32),
        "critic_rate": 3e-3,
        "policy_rate": 3e-3,
        "conservative_weight": 0.01,
    }
    module = module_of(transitions, rules=("all",), steps=300, **options)
    for _ in range(300):
        module.update()
    state = torch.from_numpy(transitions.columns["observation"])[None]
    for task, sign in ((0, 1), (1, -1)):
        told = torch.cat([state, torch.eye(3)[task].expand(1, 2400, 3)], -1)
        mean = module.policy(told)[0].tanh()[..., 0]
        assert (sign * mean).mean() > 0.5


@pytest.mark.parametrize("normalise", [True, False])
def test_what_acts_sees_observations_as_they_are(transitions, normalise):
    columns = {**transitions.columns, "observation": transitions.columns["observation"] * 5 + 3}
    module = module_of(dataclasses.replace(transitions, columns=columns), rules=("none", "all"), normalise=normalise)
    learned, task = torch.from_numpy(module.transitions.columns["observation"]), torch.zeros(2, 2400, dtype=torch.long)
    mean, std = (0, 1) if normalise else (3, 5)
    assert torch.allclose(learned.mean(0), torch.tensor(float(mean)), atol=0.3)
    assert torch.allclose(learned.std(0), torch.tensor(float(std)), atol=0.3)
    state, raw = (
        module.told(seen.expand(2, -1, -1), task) for seen in (learned, torch.from_numpy(columns["observation"]))
    )
    for wanted, found in zip(module.policy(state), module.deployable(module.policy)(raw), strict=True):
        assert torch.allclose(wanted, found, atol=1e-4)


def test_a_finished_run_is_evaluated_again_by_the_same_command(transitions, tmp_path, monkeypatch):
    from train import cql_run

    def returns(policy, members, *_):  # a number that tells policies apart
        return np.full((members, 3, 1), float(policy.body.layers[0].weight.detach().double().abs().sum()))

    monkeypatch.setattr(cql_run, "task_returns", returns)
    write_transitions(tmp_path / "states.h5", transitions)
    config = CQLConfig(
        **{**SMALL, "data": str(tmp_path / "states.h5"), "out": str(tmp_path / "run"), "rules": ("cds",)}
    )
    first = json.loads(cql_run.train(config).read_text())
    (tmp_path / "run" / "returns.json").unlink()
    again = json.loads(cql_run.train(config).read_text())
    assert first == again
    member = first["members"][0]
    assert set(member["divergence"]) == set(member["cloned"]) == set(BODY.task_names)
    assert member["returns"]["jump"] != member["cloned"]["jump"]


def test_without_mujoco_a_run_is_trained_and_says_so(transitions, tmp_path, monkeypatch, capsys):
    from train import cql_run

    def missing(*_):
        raise ValueError("walker2d needs MuJoCo")

    monkeypatch.setattr(cql_run, "task_returns", missing)
    write_transitions(tmp_path / "states.h5", transitions)
    config = CQLConfig(**{**SMALL, "data": str(tmp_path / "states.h5"), "out": str(tmp_path / "run")})
    assert cql_run.train(config).name == "last.ckpt"
    assert "trained, not evaluated: walker2d needs MuJoCo" in capsys.readouterr().out


def test_ctrl_c_keeps_the_update_under_way_and_the_run_goes_on_from_there(transitions, tmp_path, monkeypatch):
    from train import cql_run

    monkeypatch.setattr(cql_run, "task_returns", lambda policy, members, *_: np.zeros((members, 3, 1)))
    write_transitions(tmp_path / "states.h5", transitions)
    options = {**SMALL, "data": str(tmp_path / "states.h5"), "steps": 8, "rules": ("cds",)}
    real = CQL.training_step

    def interrupted(self, *given):
        if self.updates == 4:
            signal.raise_signal(signal.SIGINT)
        real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(CQL, "training_step", interrupted)
        with pytest.raises(SystemExit):
            cql_run.train(CQLConfig(**options, out=str(tmp_path / "stopped")))
    assert torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["updates"] == 6
    for name in ("stopped", "straight"):
        cql_run.train(CQLConfig(**options, out=str(tmp_path / name)))
    stopped, straight = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("stopped", "straight")
    )
    assert all(torch.equal(stopped["state_dict"][key], value) for key, value in straight["state_dict"].items())


def test_the_q_of_every_task_is_that_of_the_observation_told_that_task(transitions):
    module = module_of(transitions, rules=("hipi",))
    batch = module.draw(torch.Generator().manual_seed(0))
    found = module._q_of_tasks(batch)
    for task in range(3):
        told = module.told(batch.observation, torch.full_like(batch.task_index, task))
        assert torch.allclose(found[..., task], module.q(told, batch.action[:, :, None]).amin(0)[..., 0], atol=1e-5)
    assert not torch.allclose(found[..., 0], found[..., 1], atol=1e-3)


def test_a_run_does_not_go_on_from_other_data(transitions, tmp_path, monkeypatch):
    from train import cql_run

    monkeypatch.setattr(cql_run, "task_returns", lambda policy, members, *_: np.zeros((members, 3, 1)))
    config = CQLConfig(**{**SMALL, "data": str(tmp_path / "states.h5"), "out": str(tmp_path / "run")})
    write_transitions(tmp_path / "states.h5", transitions)
    cql_run.train(config)
    other = {**transitions.columns, "observation": transitions.columns["observation"] * 2}
    write_transitions(tmp_path / "states.h5", dataclasses.replace(transitions, columns=other))
    with pytest.raises(CheckpointError, match=r"learned from other data than .*states\.h5 holds now"):
        cql_run.train(config)


def test_observations_that_are_not_normalised_bind_a_run_to_its_data_too(transitions, tmp_path, monkeypatch):
    from train import cql_run

    monkeypatch.setattr(cql_run, "task_returns", lambda policy, members, *_: np.zeros((members, 3, 1)))
    options = {**SMALL, "normalise": False, "out": str(tmp_path / "run")}
    write_transitions(tmp_path / "states.h5", transitions)
    cql_run.train(CQLConfig(**options, data=str(tmp_path / "states.h5")))
    (tmp_path / "states.h5").rename(tmp_path / "moved.h5")
    cql_run.train(CQLConfig(**options, data=str(tmp_path / "moved.h5")))
    other = {**transitions.columns, "rise": transitions.columns["rise"] + 1}
    write_transitions(tmp_path / "moved.h5", dataclasses.replace(transitions, columns=other))
    with pytest.raises(CheckpointError, match=r"learned from other data than .*moved\.h5 holds now"):
        cql_run.train(CQLConfig(**options, data=str(tmp_path / "moved.h5")))


def test_a_member_that_diverges_is_named(transitions):
    module = module_of(transitions, rules=("none", "all"), seeds=(0, 5))
    module.update()
    next(module.q.parameters()).data[2] = torch.nan  # of the first Q-function of the third member
    with pytest.raises(NotFiniteError, match=r"^step 2: Q of all-0 is NaN or infinite$"):
        module.update()
    with pytest.raises(NotFiniteError, match=r"step 2: weight .* of the Q-function is NaN or infinite"):
        check_weights(2, **{"Q-function": module.q})


def test_a_run_that_diverges_says_so_and_leaves_no_checkpoint_of_it(transitions, tmp_path):
    from train import cql_run

    write_transitions(tmp_path / "states.h5", transitions)
    options = {**SMALL, "steps": 40, "critic_rate": 1e30, "data": str(tmp_path / "states.h5")}
    with pytest.raises(NotFiniteError, match=r"step \d+: .* NaN or infinite; nothing was saved; a lower --critic-rate"):
        cql_run.train(CQLConfig(**options, out=str(tmp_path / "run")))
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_other_seeds_are_another_run(transitions):
    assert CQLConfig(seeds=(0, 1)).seed != CQLConfig(seeds=(0, 2)).seed


def test_going_on_is_bit_for_bit_the_run_that_was_not_stopped(transitions, tmp_path, monkeypatch):
    from train import cql_run

    monkeypatch.setattr(cql_run, "task_returns", lambda policy, members, *_: np.zeros((members, 3, 1)))
    path = tmp_path / "states.h5"
    write_transitions(path, transitions)
    options = {**SMALL, "data": str(path), "rules": ("none", "cds"), "seeds": (0, 1), "checkpoint_every": 2}
    for name, steps in (("stopped", 4), ("stopped", 8), ("straight", 8)):
        cql_run.train(CQLConfig(**{**options, "out": str(tmp_path / name), "steps": steps}))
    stopped, straight = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("stopped", "straight")
    )
    assert stopped["updates"] == straight["updates"] == 8
    board = EventAccumulator(str(tmp_path / "straight" / "log"))
    board.Reload()
    assert {f"routing/{rule}-{seed}/weights" for rule in ("none", "cds") for seed in (0, 1)} <= set(
        board.Tags()["images"]
    )
    assert [event.step for event in board.Scalars("cds-1/bellman")] == [2, 4, 6, 8]
    assert all(torch.equal(stopped["state_dict"][key], value) for key, value in straight["state_dict"].items())
    with pytest.raises(ValueError, match=r"already holds a run with other options: discount 0.99 \(now 0.9\)"):
        cql_run.train(CQLConfig(**{**options, "out": str(tmp_path / "stopped"), "discount": 0.9}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rules": ("cds", "cdss")}, "Did you mean 'cds'"),
        ({"seeds": (1, 1)}, "seeds holds one twice"),
        ({"clip": "walker"}, "Did you mean 'walker2d'"),
        ({"per_task": 0}, "per_task is at least 1"),
        ({"gradient_actions": -1}, "gradient_actions is 0 or more"),
        ({"shared_part": 1.2}, "shared_part is between 0 and 1"),
        ({"shared_part": 1.0}, "compares shared with own transitions"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CQLConfig(**wrong)
