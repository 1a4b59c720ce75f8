"""Members of a run on states: what each draws and learns depends on its rule, its seed and the options alone."""

from __future__ import annotations

import pytest
import torch

from data.member_random import MemberRandom
from models.stacked import StackedMLP, TwinQ, initialise_weights
from tests.conftest import small_state_config
from train import state_run
from train.divergence import fit_behaviour

ROUNDING = 1e-5  # products of several members at once round differently


def trained(name, transitions, updates=5, **options):
    algorithm = state_run.build(name, small_state_config(name, **options), transitions)
    algorithm.shared.start("cpu")
    for _ in range(updates):
        algorithm.update()
    return algorithm


def weights_of(module, members, member):
    """All weights of one member; layers of Q-functions are [2E, ...]."""
    return torch.cat([parameter.detach()[member::members].flatten() for parameter in module.parameters()])


def test_a_member_draws_by_its_seed_alone_and_rules_draw_alike():
    both, alone = MemberRandom((0, 7), 3, "cpu", 1, 9), MemberRandom((7,), 1, "cpu", 1, 9)
    for draw in ("normal", "uniform"):
        numbers = getattr(both, draw)(40, 2)
        assert numbers.shape == (6, 40, 2)
        assert torch.equal(numbers[1::2], getattr(alone, draw)(40, 2).expand(3, 40, 2))  # rules outer, seeds inner
        assert not torch.equal(numbers[0], numbers[1])
    assert not torch.equal(alone.normal(40), MemberRandom((7,), 1, "cpu", 1, 10).normal(40))


def test_the_numbers_of_a_stream_do_not_depend_on_what_was_drawn_before():
    random = MemberRandom((0, 7), 3, "cpu", 1)
    first = random.of_one_rule(2).uniform(5)
    assert not torch.equal(random.of_one_rule(2).uniform(5), first)  # it goes on
    assert not torch.equal(random.of_one_rule(3).uniform(5), first)
    assert not torch.equal(random.uniform(5)[:2], first)
    other = MemberRandom((0, 7), 3, "cpu", 1)
    other.normal(3)
    assert torch.equal(other.of_one_rule(2).uniform(5), first)


def test_a_stream_begun_again_draws_as_a_new_one_from_the_same_generators():
    random, new = MemberRandom((0, 7), 3, "cpu", 1), MemberRandom((0, 7), 3, "cpu", 4)
    random.uniform(5)
    random.stream(2).normal(3)
    generators = list(random.generators())
    assert len(generators) == 4
    random.begin(4)
    assert torch.equal(random.uniform(5), new.uniform(5))
    assert torch.equal(random.stream(2).normal(3), new.stream(2).normal(3))
    assert list(random.generators()) == generators


def test_first_weights_are_distributed_as_torchs_and_the_same_for_each_rule():
    random = MemberRandom((0, 7), 2, "cpu")
    twin = initialise_weights(TwinQ(4, 30, 6, (50, 40)), 4, random.uniform)
    wide = twin.mlp.layers[1].weight.detach()
    assert wide.shape == (8, 50, 40)  # [2E, in, out]
    known = torch.nn.Linear(50, 40).weight  # uniform in +-1/sqrt(50), whose deviation is that over sqrt(3)
    assert wide.abs().max() <= 50**-0.5
    assert wide.std().item() == pytest.approx(150**-0.5, rel=0.02) == pytest.approx(known.std().item(), rel=0.1)
    for which in (0, 4):  # of each of the two Q-functions
        assert torch.equal(wide[which : which + 2], wide[which + 2 : which + 4])  # rules alike
        assert not torch.equal(wide[which], wide[which + 1])  # seeds not
    assert not torch.equal(wide[0], wide[4])  # nor the two Q-functions of one member
    alone = initialise_weights(TwinQ(1, 30, 6, (50, 40)), 1, MemberRandom((7,), 1, "cpu").uniform)
    assert torch.equal(alone.mlp.layers[1].weight, wide[[3, 7]])


def test_all_weights_are_drawn():
    torch.manual_seed(0)
    network = StackedMLP(2, 5, (7,), 3)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    initialise_weights(network, 2, MemberRandom((0, 1), 1, "cpu").uniform)
    assert all((old != new).all() for old, new in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "rule", "beside", "options"),
    [
        ("cql", "cds", ("none", "cds"), {}),
        ("cql", "cds", ("cds-basic", "cds"), {"sharing": "sample", "candidates_per_shared": 3}),
        ("cql", "all", ("cds", "all"), {"sharing": "sample", "candidates_per_shared": 3}),
        ("cql", "none", ("cds-hard", "none"), {"sharing": "sample", "candidates_per_shared": 3}),
        ("cql", "cds-hard", ("all", "cds-hard"), {"sharing": "sample", "granularity": "episode"}),
        ("cql", "none", ("none", "uds"), {"conditioning": "embedding", "num_gradient_actions": 0}),
        ("bc", "all", ("none", "all"), {}),
        ("brac", "cds", ("none", "cds"), {"bc_steps": 1, "warm_start_steps": 1, "share_after": 2}),
        ("iql", "cds-basic", ("none", "cds-basic"), {}),
        ("td3-bc", "hipi", ("hipi", "cds"), {}),
    ],
)
def test_a_member_learns_the_same_whatever_is_beside_it(transitions, name, rule, beside, options):
    """Seed 1 of one rule alone, and of two rules and three seeds."""
    alone = trained(name, transitions, rules=(rule,), seeds=(1,), **options)
    among = trained(name, transitions, rules=beside, seeds=(0, 1, 5), **options)
    number, members = beside.index(rule) * 3 + 1, 6
    assert among.config.member_names[number] == f"{rule}-1"
    for network in ("policy", "q", "target", "conditioner", "behaviour", "value", "target_policy"):
        if hasattr(alone, network) and list(getattr(alone, network).parameters()):
            mine = weights_of(getattr(among, network), members, number)
            assert torch.allclose(mine, weights_of(getattr(alone, network), 1, 0), atol=ROUNDING)
    router, other = alone.shared.routers[0], among.shared.routers[beside.index(rule)]
    assert torch.allclose(router.temperature()[0], other.temperature()[1], atol=ROUNDING)
    assert torch.allclose(router.learned[:, 0], other.learned[:, 1], atol=1e-3)
    fitted, mine = fit_behaviour(alone, 5).network, fit_behaviour(among, 5).network
    assert torch.allclose(weights_of(mine, members, number), weights_of(fitted, 1, 0), atol=ROUNDING)
    assert not torch.allclose(weights_of(mine, members, number - 1), weights_of(fitted, 1, 0), atol=1e-2)


def test_rules_with_the_same_sources_learn_from_the_same_rows(transitions):
    algorithm = trained("cql", transitions, updates=0, rules=("all", "cds", "uds"), seeds=(0, 1))
    batch = algorithm.shared.sample(algorithm.config.random("cpu", 1))
    for rule in (1, 2):
        assert torch.equal(batch.action[:2], batch.action[2 * rule : 2 * rule + 2])
    assert not torch.equal(batch.action[0], batch.action[1])
