"""Conservative Q-learning on states: its terms by hand, members, routing."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import tensor

from data.sharing import RULES
from models.checkpoint import CheckpointError
from models.conditioning import FrozenEncoder
from models.policy_files import Member, PolicyFile, load_policies, pack_encoder, pack_policies
from models.state_losses import conservative_gap, q_target, softmax_sample
from sim.benchmarks.table import BENCHMARKS
from tests.conftest import SMALL_STATE_RUN as SMALL
from train import cql, state_run
from train.cql import CQLConfig
from train.divergence import divergence, fit_behaviour
from train.finite import NotFiniteError, check_weights

WALKER2D = BENCHMARKS["walker2d"]


def module_of(transitions, **options):
    module = state_run.build("cql", CQLConfig(**{**SMALL, **options}), transitions)
    module.shared.start("cpu")
    return module


def numbers(module):
    return module.config.random("cpu", 100)


def routing(module):
    return dict(zip(module.config.member_names, module.shared.report(), strict=True))


def test_the_conservative_term_is_the_importance_weighted_logsumexp_minus_the_data():
    q, log_density = tensor([[1.0, 2.0]]), tensor([[math.log(0.5), math.log(0.25)]])
    expected = math.log((math.e / 0.5 + math.e**2 / 0.25) / 2) - 0.7
    assert conservative_gap(q, log_density, tensor([0.7])).item() == pytest.approx(expected, abs=1e-6)


def test_strata_of_the_softmax_are_drawn_as_often_as_it_says():
    logits = tensor([0.0, 1.0, 3.0]).expand(20_000, 3)
    chosen = softmax_sample(logits, torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0)))
    often = torch.bincount(chosen.flatten(), minlength=3) / chosen.numel()
    assert often.tolist() == pytest.approx(logits[0].softmax(0).tolist(), abs=0.01)
    assert (chosen[:, 0] <= chosen[:, 1]).all()  # each in a half of its own


def test_the_drawn_gradient_is_on_average_that_of_all_actions(transitions):
    """Of Q's first layer, over many draws; the term itself is the same."""
    module = module_of(transitions, rules=("all",), seeds=(0,))
    rng = torch.Generator().manual_seed(0)
    state, action, sampled = torch.randn(1, 6, 20), torch.rand(1, 6, 6) * 2 - 1, torch.rand(1, 6, 9, 6) * 2 - 1
    density, weight = torch.rand(1, 6, 9), module.q.mlp.layers[0].weight

    def gradient(count):
        strata = torch.rand(2, 1, 6, count, generator=rng)
        gap = module.conservative_terms(state, action, sampled, density, strata)[2]
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
    options = {"rules": ("none", "all"), "per_task": 64, "hidden_sizes": (64, 64)}
    module = module_of(dataclasses.replace(transitions, columns=apart), **options)
    behaved = fit_behaviour(module, 300)
    mean = torch.from_numpy(transitions.columns["observation"].mean(0)).expand(2, 3, 17)
    found = behaved(mean, torch.arange(3).expand(2, 3))[0].tanh().mean(-1)
    assert found[0].tolist() == pytest.approx([-0.5, 0.0, 0.5], abs=0.12)
    assert found[1].tolist() == pytest.approx([-0.15, 0.0, 0.15], abs=0.15)
    assert torch.allclose(divergence(behaved, behaved, transitions, (0, 1, 2)), torch.zeros(2, 3), atol=1e-5)
    alone = copy.deepcopy(behaved)
    for weight in alone.network.parameters():
        weight.copy_(weight[:1].expand_as(weight))  # both members: the one that does not share
    narrow = divergence(alone, behaved, transitions, (0, 1, 2))[1]
    wide = divergence(behaved, alone, transitions, (0, 1, 2))[1]
    assert (wide > 3 * narrow).all()  # what is wide covers what is narrow, and not the other way round


@pytest.mark.parametrize("rule", list(RULES))
def test_every_rule_trains(transitions, rule):
    module = module_of(transitions, rules=(rule,), snapshot_every=1, per_task=32)
    module.update()
    info = module.update()
    assert all(torch.isfinite(value).all() for value in info.values())
    weights = routing(module)[f"{rule}-0"]["weights"]
    assert weights[0][0] is not None
    assert (weights[0][1] is None) == (RULES[rule].sources(WALKER2D.task_names)[0, 1] == 0)


@pytest.mark.parametrize("granularity", ["transition", "episode"])
@pytest.mark.parametrize("rules", [("cds", "hipi"), ("cds-basic",), ("none", "cds-hard", "all"), tuple(RULES)])
def test_batches_keep_their_size_where_shared_rows_are_drawn_by_the_rule(transitions, rules, granularity):
    options = {"sharing": "sample", "granularity": granularity, "candidates_per_shared": 3, "score_fraction": 1.0}
    module = module_of(transitions, rules=rules, snapshot_every=2, weigh_own_probability=0.0, **options)
    seen, weights = [], []
    real, weigh = module.conservative_terms, module.shared.weigh
    module.conservative_terms = lambda state, *rest: seen.append(state.shape) or real(state, *rest)
    module.shared.weigh = lambda *given: weights.append(weigh(*given)) or weights[-1]
    for _ in range(4):
        info = module.update()
    assert all(torch.isfinite(value).all() for value in info.values())
    assert seen == [(len(rules), 24, 20)] * 4
    if granularity == "episode":
        assert all((weight == 1).all() for weight in weights)
    for name, report in routing(module).items():
        shares = RULES[name.rpartition("-")[0]].sources(WALKER2D.task_names)[0, 1]
        assert all(0 <= part <= 0.5 * shares for part in report["shared"])


def test_hard_cds_learns_from_candidates_that_pass_alone(transitions):
    """All Q-values are known: what is shared with a task reaches the median of its own."""
    module = module_of(transitions, rules=("cds-hard",), sharing="sample", weigh_own_probability=0.0)
    batch = module.shared.sample(numbers(module))
    q = torch.rand(batch.reward.shape, generator=torch.Generator().manual_seed(0))
    scorer = SimpleNamespace(q=lambda: q)
    shared = batch.task_index != batch.source_task_index
    medians = [q[0, ~shared[0] & (batch.task_index[0] == task)].median().item() for task in range(3)]
    real = module.shared.routers[0].choose
    rows = []
    module.shared.routers[0].choose = lambda *given: rows.append(real(*given)) or rows[-1]
    chosen, weight = module.shared.choose(batch, lambda *given: scorer, numbers(module))
    index = rows[0][0][0]
    drawn = chosen.task_index[0] != chosen.source_task_index[0]
    assert drawn.sum() == 12
    assert (weight == 1).all()
    for row, target in zip(index[drawn].tolist(), chosen.task_index[0][drawn].tolist(), strict=True):
        assert q[0, row] >= medians[target] - 0.06  # the median of eight lies between two


def test_the_heuristic_shares_by_the_snapshot_of_a_while_ago(transitions):
    module = module_of(transitions, rules=("cds", "heuristic"), snapshot_every=2, percentile=100.0, critic_lr=0.1)
    seen, old = [], []
    real = module.shared.weigh
    module.shared.weigh = lambda *given: seen.append((given[0], real(*given))) or seen[-1][1]
    for _ in range(4):
        old.append(copy.deepcopy(module.shared.snapshot.state_dict()))
        module.update()
    shared = [batch.task_index[1] != batch.source_task_index[1] for batch, _ in seen]
    for step in (0, 1):
        assert (seen[step][1][1][shared[step]] == 0).all()
        assert (seen[step][1][0][shared[step]] > 0).all()  # the other rule's member
    assert (seen[2][1][1][shared[2]] > 0).any()  # above the least of the own ones
    key = "q.mlp.layers.0.weight"
    assert torch.equal(old[0][key], old[1][key])
    assert not torch.equal(old[1][key], old[2][key])
    assert torch.equal(old[2][key], old[3][key])


@pytest.mark.parametrize("rule", ["all", "hipi"])
def test_a_task_that_is_not_trained_is_left_out(transitions, rule):
    module = module_of(transitions, rules=(rule,), tasks=("run-forward", "jump"))
    module.update()
    weights = routing(module)[f"{rule}-0"]["weights"]
    assert weights[1] == [None, None, None]
    assert weights[0][1] is None
    assert weights[0][2] is not None
    some = transitions.columns["task"] != 1
    columns = {name: column[some] for name, column in transitions.columns.items()}
    assert module_of(dataclasses.replace(transitions, columns=columns)).shared.tasks == (0, 2)
    with pytest.raises(ValueError, match="Did you mean 'jump'"):
        module_of(transitions, tasks=("jmp",))


def test_a_member_does_not_feel_the_others(transitions):
    """The gradient of the first of three members is that of the same weights and batch alone."""
    both = module_of(transitions, rules=("all",), seeds=(0, 1, 2))
    before = [p.clone() for p in both.q.parameters()]
    real = both.shared.sample

    def scrambled(random):
        batch = real(random)
        batch.reward[1:] += 100.0
        return batch

    calm = module_of(transitions, rules=("all",), seeds=(0, 1, 2))
    both.shared.sample = scrambled
    both.update()
    calm.update()
    for a, b, old in zip(both.q.parameters(), calm.q.parameters(), before, strict=True):
        members = a.shape[0] // 2
        assert torch.allclose(a[0], b[0], atol=1e-6)
        assert torch.allclose(a[members], b[members], atol=1e-6)
        assert not torch.equal(a[0], old[0])


def test_the_conservative_weight_is_half_of_that_in_cqls_code(transitions, monkeypatch):
    """Its objective, for each of two Q-functions: mean squared error + weight x mean gap; ours is half of it."""
    module = module_of(transitions, rules=("none",), seeds=(0,), conservative_weight=3.0, num_gradient_actions=0)
    seen, losses = [], []
    real, terms, step = cql.q_target, module.conservative_terms, cql.gradient_step
    monkeypatch.setattr(cql, "q_target", lambda *given: seen.append(real(*given)) or seen[-1])
    monkeypatch.setattr(module, "conservative_terms", lambda *given: seen.append(terms(*given)) or seen[-1])
    monkeypatch.setattr(cql, "gradient_step", lambda adam, loss: losses.append(loss.item()) or step(adam, loss))
    module.update()
    target, (q, _, gap) = seen
    theirs = sum(torch.nn.functional.mse_loss(q[k, 0], target[0]) + 6.0 * gap[k, 0].mean() for k in (0, 1))
    assert 2 * losses[0] == pytest.approx(theirs.item(), rel=1e-5)


def test_the_lagrange_form_is_that_of_cqls_code(transitions, monkeypatch):
    """There: mse + alpha' (weight x gap - tau) for each of two Q-functions, alpha' rising by the mean excess."""
    options = {"rules": ("none",), "conservative_weight": 3.0, "num_gradient_actions": 0, "lagrange_threshold": 2.0}
    module, seen, losses = module_of(transitions, seeds=(0, 1), **options), [], []
    module.log_multiplier.data.copy_(torch.tensor([2.0, 0.5]).log())
    real, terms, step = cql.q_target, module.conservative_terms, cql.gradient_step
    monkeypatch.setattr(cql, "q_target", lambda *given: seen.append(real(*given)) or seen[-1])
    monkeypatch.setattr(module, "conservative_terms", lambda *given: seen.append(terms(*given)) or seen[-1])
    monkeypatch.setattr(cql, "gradient_step", lambda adam, loss: losses.append(loss.item()) or step(adam, loss))
    values = module.update()
    target, (q, _, gap) = seen
    excess = 3.0 * gap.mean(-1) - 2.0  # [2, E]
    multiplier = torch.tensor([2.0, 0.5])
    assert losses[0] == pytest.approx(-(multiplier * excess.mean(0)).sum().item(), rel=1e-5)
    assert losses[1] == pytest.approx(((q - target).square().mean(-1) / 2 + multiplier * excess).sum().item(), rel=1e-5)
    assert torch.allclose(values["multiplier"], multiplier)
    risen = module.log_multiplier.exp() > multiplier
    assert torch.equal(risen, excess.mean(0) > 0)


@pytest.mark.parametrize(("threshold", "rises"), [(0.01, True), (50.0, False)])
def test_the_multiplier_rises_while_the_conservative_term_is_above_its_threshold(transitions, threshold, rises):
    module = module_of(transitions, rules=("none", "all"), lagrange_threshold=threshold)
    for _ in range(5):
        values = module.update()
    assert torch.equal(values["multiplier"] > 1, torch.full((2,), rises))
    assert module.warning(values) == ""
    bound = {"multiplier": torch.tensor([1.0, cql.MAX_MULTIPLIER])}
    assert re.search(r"^all-0: .* stays above lagrange_threshold .*; raise it", module.warning(bound))
    idle = {"multiplier": torch.tensor([1e-4, 1.0])}
    assert re.search(r"^none-0: .* stays below lagrange_threshold .*; lower it", module.warning(idle))


def test_a_multiplier_comes_back_from_its_bound(transitions):
    module = module_of(transitions, rules=("none",), lagrange_threshold=50.0, critic_lr=0.1)
    module.log_multiplier.data.fill_(20.0)
    seen = [module.update()["multiplier"].item() for _ in range(4)]
    assert seen[1] == pytest.approx(cql.MAX_MULTIPLIER)
    assert seen[3] < seen[2] < 0.99 * cql.MAX_MULTIPLIER


@pytest.mark.parametrize("bc_steps", [0, 1])
def test_the_policy_clones_the_data_at_first(transitions, monkeypatch, bc_steps):
    """E[alpha log pi(a~ | s) - log pi(a | s)] at first, then Q(s, a~) in place of log pi(a | s)."""
    module = module_of(transitions, rules=("none",), bc_steps=bc_steps)
    before, batches, drawn = copy.deepcopy(module), [], []
    sample, draw = module.shared.sample, cql.sample_with_log_prob
    monkeypatch.setattr(module.shared, "sample", lambda random: batches.append(sample(random)) or batches[-1])
    monkeypatch.setattr(cql, "sample_with_log_prob", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    actor = module.update()["actor"]
    (batch,), (action, log_prob) = batches, drawn[0]
    state = before.conditioner(batch.observation, batch.task_index)
    gain = before.policy.log_prob(state, batch.action) if bc_steps else module.q(state, action).amin(0)[..., 0]
    assert torch.allclose(actor, (log_prob[..., 0] - gain).mean(-1), rtol=1e-4)


def test_without_a_threshold_there_is_no_multiplier(transitions):
    module = module_of(transitions, rules=("none",))
    assert len(module.optimizers) == 2
    assert "log_multiplier" not in module.state_dict()
    assert module.warning(module.update()) == ""


def test_the_entropy_temperature_is_tuned_on_the_rows_that_the_policy_learns_from(transitions, monkeypatch):
    """By hand: -alpha' = mean over the first row of each member, which alone counts, of log pi - A."""
    module, seen = module_of(transitions, rules=("none", "all")), []
    weight = torch.zeros(2, 24)
    weight[:, 0] = 0.5
    monkeypatch.setattr(module.shared, "weigh", lambda *_: weight)
    real = cql.sample_with_log_prob
    monkeypatch.setattr(cql, "sample_with_log_prob", lambda *given: seen.append(real(*given)) or seen[-1])
    module.update()
    log_prob = seen[0][1].detach()[:, 0, 0]
    assert module.log_alpha.grad.tolist() == pytest.approx((6 - log_prob).tolist(), rel=1e-5)


def test_each_task_learns_which_way_pays(transitions):
    """Without a discount Q(s, a) is the reward, +a_0 forward and -a_0 backward; the policies find the ends."""
    options = {
        "per_task": 64,
        "hidden_sizes": (32, 32),
        "critic_lr": 3e-3,
        "actor_lr": 3e-3,
        "conservative_weight": 0.01,
        "discount": 0.0,
    }
    module = module_of(transitions, rules=("all",), steps=300, **options)
    for _ in range(300):
        module.update()
    state = torch.from_numpy(transitions.columns["observation"])[None]
    for task, sign in ((0, 1), (1, -1)):
        mean = module.policies()(state, torch.full((1, 2400), task))[0].tanh()[..., 0]
        assert (sign * mean).mean() > 0.5


@pytest.mark.parametrize("normalise", [True, False])
def test_policies_act_on_observations_as_the_environment_gives_them(transitions, normalise):
    columns = {**transitions.columns, "observation": transitions.columns["observation"] * 5 + 3}
    dataset = dataclasses.replace(transitions, columns=columns)
    module = module_of(dataset, rules=("none", "all"), normalise=normalise)
    batch = module.shared.sample(numbers(module))
    mean, std = (0, 1) if normalise else (3, 5)
    assert torch.allclose(batch.observation.mean((0, 1)), torch.tensor(float(mean)), atol=3.0 if std > 1 else 0.7)
    assert batch.observation.std() == pytest.approx(std, rel=0.1)
    raw, task = torch.from_numpy(columns["observation"]).expand(2, -1, -1), torch.zeros(2, 2400, dtype=torch.long)
    learned = (raw - raw[0].mean(0)) / (raw[0].std(0, correction=0) + 1e-3) if normalise else raw
    wanted = module.policy(module.conditioner(learned, task))
    for one, other in zip(wanted, module.policies()(raw, task), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_the_q_of_every_task_is_that_of_the_observation_conditioned_on_it(transitions):
    module = module_of(transitions, rules=("hipi",))
    batch = module.shared.sample(numbers(module))
    found = module.score(batch, numbers(module)).q_tasks()
    for task in range(3):
        state = module.conditioner(batch.observation, torch.full_like(batch.task_index, task))
        assert torch.allclose(found[..., task], module.q(state, batch.action[:, :, None]).amin(0)[..., 0], atol=1e-5)
    assert not torch.allclose(found[..., 0], found[..., 1], atol=1e-3)


def test_a_learned_embedding_is_trained_with_the_critic(transitions):
    module = module_of(transitions, rules=("all",), conditioning="embedding")
    before = module.conditioner.embedding.detach().clone()
    assert module.conditioner.size == 17
    module.update()
    module.update()
    assert (module.conditioner.embedding != before).any(-1).all()


def test_a_member_that_diverges_is_named(transitions):
    module = module_of(transitions, rules=("none", "all"), seeds=(0, 5))
    module.update()
    next(module.q.parameters()).data[2] = torch.nan  # of the first Q-function of the third member
    with pytest.raises(NotFiniteError, match=r"^step 2: q_data of all-0 is NaN or infinite$"):
        module.update()
    with pytest.raises(NotFiniteError, match=r"step 2: weight .* of the Q-function is NaN or infinite"):
        check_weights(2, **{"Q-function": module.q})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rules": ("cds", "cdss")}, "Did you mean 'cds'"),
        ({"seeds": (1, 1)}, "seeds holds one twice"),
        ({"conditioning": "onehot"}, "Did you mean 'one-hot'"),
        ({"conditioning": "encoder"}, "encoder go together"),
        ({"sharing_temperature_clip": (5.0,)}, "LOW,HIGH"),
        ({"sharing_temperature_clip": (5.0, 1.0)}, "LOW,HIGH"),
        ({"sharing_temperature": "-1"}, "temperature is absolute or signed or a number above 0"),
        ({"hidden_sizes": (0,)}, "hidden_sizes are at least 1"),
        ({"per_task": 0}, "per_task is at least 1"),
        ({"lagrange_threshold": -1.0}, "lagrange_threshold is 0 or more"),
        ({"lagrange_threshold": 5.0, "conservative_weight": 0.0}, "lagrange_threshold: it bounds conservative_weight"),
        ({"num_gradient_actions": -1}, "num_gradient_actions is 0 or more"),
        ({"conservative_weight": -1.0}, "conservative_weight is 0 or more"),
        ({"discount": 9.9}, "discount is between 0 and 1"),
        ({"target_update_rate": -3.0}, "target_update_rate is between 0 and 1"),
        ({"reward_scale": float("nan")}, "reward_scale and reward_shift are finite"),
        ({"shared_fraction": 1.2}, "shared_fraction is between 0 and 1"),
        ({"shared_fraction": 1.0}, "compares shared with own transitions"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CQLConfig(**wrong)


def test_the_effective_behaviour_is_that_of_the_batches_a_loss_gets(transitions):
    """Where shared transitions are drawn from candidates, all of which pass here, they keep their half of a batch."""
    module = module_of(transitions, rules=("cds",), sharing="sample", candidates_per_shared=4)
    batch, weight = module.shared.sample_weighted(module.score, numbers(module))
    assert batch.task_index.shape == weight.shape == (1, 24)
    assert (batch.task_index != batch.source_task_index).float().mean() == 0.5


def test_episodes_are_scored_for_every_task_by_the_mean_of_their_steps(transitions):
    """Every visit of the scores of two members, by Q itself."""
    options = {"granularity": "episode", "score_visits": 2, "score_fraction": 1.0, "critic_lr": 0.0}
    module = module_of(transitions, rules=("cds", "none"), seeds=(0, 5), **options)
    for _ in range(2 * module.shared.routers[0].episodes.scores.schedule.batches):
        module.update()
    scores = module.shared.routers[0].episodes.scores
    assert scores.since[1] > 0
    known = torch.zeros(2, 3, scores.versions.shape[-1], 2)
    for number in range(module.updates):
        passed, _ = scores.schedule.pass_of(number)
        episode, step = scores.schedule.steps(number)
        batch = module.shared._samplers[0].load(torch.from_numpy(step), 4)
        with torch.no_grad():
            state = module.conditioner(batch.observation, batch.task_index)
            q = module.q(state, batch.action[:, :, None]).amin(0)[..., 0].view(4, len(step), 3)
        known[:, :, episode, passed % 2] = q[:2].transpose(1, 2)
    assert torch.allclose(scores.versions[1], known.mean(-1), atol=1e-5)


def test_a_snapshot_keeps_its_conditioner(transitions):
    module = module_of(transitions, rules=("heuristic",), conditioning="embedding", snapshot_every=1, critic_lr=0.1)
    module.update()
    batch = module.shared.sample(numbers(module))
    snapshot = copy.deepcopy(module.shared.snapshot)
    before = module.score(batch, numbers(module)).q_by(snapshot)
    module.update()
    module.update()
    assert torch.equal(module.score(batch, numbers(module)).q_by(snapshot), before)
    assert not torch.equal(module.score(batch, numbers(module)).q_by(module.shared.snapshot), before)


def test_one_network_without_the_task_trains_one_task(transitions):
    with pytest.raises(ValueError, match="conditioning none: one network cannot tell 3 tasks apart"):
        module_of(transitions, conditioning="none")
    module_of(transitions, conditioning="none", tasks=("jump",), rules=("none",)).update()


def test_a_pretrained_encoder_is_not_trained_and_comes_with_the_policy(transitions, tmp_path):
    encoder = FrozenEncoder(1, 17, 3, (12, 5))
    (tmp_path / "encoder.pt").write_bytes(pack_encoder(encoder, WALKER2D, transitions.digest))
    options = {"conditioning": "encoder", "encoder": str(tmp_path / "encoder.pt"), "rules": ("all",)}
    module = module_of(transitions, **options)
    module.update()
    assert module.conditioner.size == 5 + 3
    assert all(torch.equal(a, b) for a, b in zip(module.conditioner.parameters(), encoder.parameters(), strict=True))
    file = PolicyFile(
        policy=module.policies(), benchmark=WALKER2D, members=(Member(name="x", tasks=("jump",)),), metadata={}
    )
    (tmp_path / "policy.pt").write_bytes(pack_policies(file))
    found = load_policies(tmp_path / "policy.pt").policy
    observation, task = transitions.columns["observation"][None, :9], np.full((1, 9), 2)
    assert np.array_equal(found.act(observation, task), module.policies().act(observation, task))
    other = dataclasses.replace(
        transitions, columns={**transitions.columns, "action": transitions.columns["action"] / 2}
    )
    with pytest.raises(CheckpointError, match="was pretrained on another dataset"):
        module_of(other, **options)
