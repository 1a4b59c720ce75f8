"""Captured updates: what is replayed learns as what is called, and nothing in it waits for a device.

A CUDA graph repeats kernels with the tensors they were captured with, whatever Python would do now. Without a GPU the
same is asked of a recording of operators."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.step import Step, synthetic_batch
from eval.policy import Search
from models.acting import WAYS, ActingConfig
from models.captured import Captured, HostTransfers
from models.image_checkpoint import read_checkpoint
from models.networks import build_network
from models.qnetwork import NetworkConfig
from tests.conftest import small_state_config
from train import state_run
from train.image_bc import BehaviourCloning
from train.image_learner import ImageLearner
from train.qtopt_config import QTOptConfig
from train.qtopt_run import train

CPU = torch.device("cpu")
CASES = {
    "weights": ("cql", {"rules": ("none", "cds", "cds-basic", "hipi", "hipi-partition", "uds"), "seeds": (0, 1)}),
    "snapshots": ("cql", {"rules": ("heuristic", "cds"), "snapshot_every": 7, "weigh_own_probability": 0.5}),
    "candidates": ("cql", {"rules": ("cds", "all", "cds-hard"), "sharing": "sample", "candidates_per_shared": 3}),
    "episodes": (
        "cql",
        {"rules": ("none", "cds-hard", "cds-basic", "hipi"), "sharing": "sample", "granularity": "episode"},
    ),
    "weights of episodes": ("cql", {"rules": ("cds",), "granularity": "episode", "share_after": 20}),
    "embedding": ("cql", {"rules": ("cds",), "conditioning": "embedding", "bc_steps": 9, "num_gradient_actions": 0}),
    "lagrange": ("cql", {"rules": ("all", "cds"), "lagrange_threshold": 5.0, "reward_scale": 10.0}),
    "bc": ("bc", {"rules": ("none", "all")}),
    "brac": (
        "brac",
        {"rules": ("all", "cds", "cds-basic", "hipi", "heuristic"), "snapshot_every": 12, "divergence_samples": 3}
        | {"bc_steps": 9, "warm_start_steps": 9, "share_after": 10},
    ),
    "brac in closed form": ("brac", {"rules": ("cds",), "divergence_samples": 0, "bc_steps": 0}),
    "iql": ("iql", {"rules": ("none", "cds", "cds-basic", "hipi"), "conditioning": "embedding"}),
    "td3-bc": ("td3-bc", {"rules": ("none", "cds", "cds-basic", "hipi")}),
    "td3-bc by episode": ("td3-bc", {"rules": ("cds",), "sharing": "sample", "granularity": "episode"}),
}


class Operators(TorchDispatchMode):
    """Records operators as a CUDA graph does kernels: a repeated one writes where it wrote."""

    def __init__(self, random):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def record(self, compute):
        with self:
            return compute()

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, before in self.calls:
            now = func(*args, **kwargs)
            if any(found.alias_info is not None for found in func._schema.returns):
                continue  # a view, or a tensor that was written
            for old, new in zip(tree_leaves(before), tree_leaves(now), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)


def refuse_the_host(monkeypatch):
    """Fail where Python asks a tensor for numbers, which on a CPU is no operator."""

    def refused(*given, **more):
        raise AssertionError("brings numbers from the host or to it")

    for name in ("tolist", "numpy", "cpu", "item", "__bool__", "__int__", "__float__", "__index__", "pin_memory"):
        monkeypatch.setattr(torch.Tensor, name, refused)
    monkeypatch.setattr(torch, "from_numpy", refused)


def learner(transitions, name, options):
    scores = {} if name == "bc" else {"score_fraction": 1.0}
    config = small_state_config(name, **scores, **options)
    algorithm = state_run.build(name, config, transitions)
    algorithm.shared.start("cpu")
    return algorithm


def replayed(algorithm, updates):
    """So many updates, recorded."""
    algorithm.begin()
    algorithm._captured = captured = Captured(algorithm.compute, algorithm.random, algorithm.optimizers, Operators)
    for _ in range(updates):
        algorithm.update()
    return captured


class Counted:
    """A recording that computes nothing when it is replayed."""

    def __init__(self, random):
        self.replays = 0

    def record(self, compute):
        return compute()

    def replay(self):
        self.replays += 1


@pytest.mark.parametrize(
    ("phases", "computed", "recorded"),
    [
        ("aaaaaa", 4, "a"),  # three times to warm up, once recorded
        ("aaaaabbbbb", 8, "b"),  # one that ends is dropped
        ("ababababab", 8, "ab"),  # ones that alternate stay
        ("ababababcccccc", 12, "bc"),  # the oldest of three is dropped
        ("aaaaababababab", 9, "ab"),  # the first ended once, when it was not known to return
    ],
)
def test_recordings_of_the_latest_two_phases_stay_where_phases_alternate(phases, computed, recorded):
    calls = []
    captured = Captured(lambda: calls.append(1), SimpleNamespace(device="cpu"), [], Counted)
    for phase in phases:
        captured(phase)
    assert len(calls) == computed
    assert "".join(sorted(key for key, each in captured._phases.items() if each.recorded)) == recorded


@pytest.fixture(scope="module")
def falling(transitions):
    """The transitions in episodes of eight steps, so that episodes have something to score."""
    end = np.arange(len(transitions.columns["task"])) % 8 == 7
    columns = transitions.columns | {"episode_end": end, "terminated": end}
    return type(transitions)(benchmark=transitions.benchmark, columns=columns, metadata={})


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_update_gives_the_same_bits(falling, case):
    """Over 50 updates, of which all but the first three of a phase are repeated."""
    plain, recorded = (learner(falling, *CASES[case]) for _ in range(2))
    for _ in range(50):
        values = plain.update()
    captured = replayed(recorded, 49)
    again = recorded.update()
    assert captured.recorded
    assert captured._phase.calls == 4  # of the last phase
    for key, value in plain.state_dict().items():
        assert np.array_equal(value.numpy(), recorded.state_dict()[key].numpy(), equal_nan=True), key
    for one, other in zip(plain.optimizers, recorded.optimizers, strict=True):
        for a, b in zip(tree_leaves(one.state_dict()["state"]), tree_leaves(other.state_dict()["state"]), strict=True):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    assert all(torch.equal(value, again[key]) for key, value in values.items())


@pytest.mark.parametrize("case", CASES)
def test_no_operator_of_an_update_waits_for_a_device(falling, case, monkeypatch):
    algorithm = learner(falling, *CASES[case])
    for _ in range(30):  # into the last phase
        algorithm.update()

    algorithm.begin()
    refuse_the_host(monkeypatch)
    with HostTransfers() as found:
        algorithm.compute()
    assert found.names == []


TINY = QTOptConfig(
    image_size=48,
    tasks=("lift-banana", "place-bowl"),
    batch_size=8,
    num_unseen_actions=4,
    nearby_fraction=0.5,
    behaviour_policy=True,
    landmark_weight=1.0,
    photometric=True,
    cem_samples=8,
    cem_elites=3,
    lagged_target_steps=5,
    score_visits=2,
    log_every=4,
    lr=1e-3,
)
BY_TRANSITION = {"granularity": "transition"}
IMAGES = {
    "episodes": {},
    "emaq off": {"behaviour_policy": False, "landmark_weight": 0.0, "random_crop": False, "conditioning": "one_hot"},
    "weights": {"rule": "cds-basic", "sharing": "weight", "weigh_own_probability": 0.5, **BY_TRANSITION},
    "weights of episodes": {"rule": "cds", "sharing": "weight", "share_after": 8},
    "candidates": {"rule": "hipi", "candidates_per_shared": 2, **BY_TRANSITION},
    "snapshots": {"rule": "heuristic", "snapshot_every": 6},
    "cloning": {"learner": "bc", "rule": "none", "shared_fraction": 0.0},
}


class Cloning(BehaviourCloning):
    """Without a trainer."""

    steps_done, global_step, update, log, log_dict = 0, Step.global_step, Step.update, Step.log, Step.log_dict


def image_learner(case, monkeypatch):
    """Few episodes, whose scores count at once."""
    monkeypatch.setattr("bench.step.EPISODES", 6)
    monkeypatch.setattr("train.image_router.DRAWN_AHEAD", 1)
    torch.manual_seed(0)
    config = replace(TINY, **IMAGES[case])
    module = (Cloning if config.learner == "bc" else Step)(config)
    return module, module.configure_optimizers()["optimizer"]


def image_batches(module, count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        batch = synthetic_batch(module.config, generator)
        yield replace(batch, episode=batch.episode % 6, score_episode=batch.score_episode % 6)


@pytest.mark.parametrize("case", IMAGES)
def test_a_recorded_step_on_images_gives_the_same_bits(case, monkeypatch):
    steps = 16
    (plain, adam), (recorded, other) = (image_learner(case, monkeypatch) for _ in range(2))
    recorded.capture(other, recording=Operators)
    for module, optimizer in ((plain, adam), (recorded, other)):
        for batch in image_batches(module, steps):
            module.update(batch, optimizer)
    assert recorded._captured.recorded
    assert recorded._captured._phase.calls == 4  # of the last phase
    for key, value in plain.state_dict().items():
        assert np.array_equal(value.numpy(), recorded.state_dict()[key].numpy(), equal_nan=True), key


def test_a_captured_training_on_images_is_the_plain_one_also_where_it_goes_on(tiny_training, tmp_path, monkeypatch):
    """Under Lightning, which counts steps and takes no gradient of its own."""

    def trained(out, steps=10, **more):
        options = {**tiny_training, "steps": steps, "photometric": True, "log_every": 3, **more}
        return read_checkpoint(train(QTOptConfig(out=str(tmp_path / out), **options)))

    plain, recordings = trained("plain"), []

    def capture(self):
        self.capture(self.optimizers(use_pl_optimizer=False), recording=Operators)
        recordings.append(self._captured)

    monkeypatch.setattr(ImageLearner, "on_fit_start", capture)
    captured = trained("captured")
    trained("resumed", 6)
    resumed = trained("resumed")
    assert [each.recorded for each in recordings] == [True, True, True]
    for found in (captured, resumed):
        assert found["switchyard"]["steps"] == found["global_step"] == 10
        for key, value in plain["state_dict"].items():
            assert np.array_equal(value.numpy(), found["state_dict"][key].numpy(), equal_nan=True), key
    falling = trained("falling", lr_decay=True)
    monkeypatch.undo()
    for key, value in trained("plain falling", lr_decay=True)["state_dict"].items():
        assert np.array_equal(value.numpy(), falling["state_dict"][key].numpy(), equal_nan=True), key
    losses = [read_scalar(tmp_path / name, "train/gradient_norm") for name in ("plain", "captured")]
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize("by", WAYS)
def test_a_captured_search_finds_the_same_actions(by):
    torch.manual_seed(0)
    network = build_network(NetworkConfig(image_size=48, num_tasks=10, behaviour_policy=True)).eval()
    acting, rng = ActingConfig(by=by), np.random.default_rng(0)
    plain, recorded = Search(network, acting, CPU), Search(network, acting, CPU, recording=Operators)
    for seed in range(8):
        frames = torch.from_numpy(rng.integers(256, size=(3, 56, 56, 3), dtype=np.uint8))
        given = (
            seed,
            frames,
            torch.from_numpy(rng.random((3, 2), np.float32)),
            torch.from_numpy(rng.integers(10, size=3)),
        )
        assert torch.equal(plain(*given), recorded(*given))
    assert recorded._captured.recorded


def read_scalar(run, name):
    events = EventAccumulator(str(run / "log"))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


@pytest.mark.parametrize("case", IMAGES)
def test_no_operator_of_a_step_on_images_waits_for_a_device(case, monkeypatch):
    module, optimizer = image_learner(case, monkeypatch)
    module.capture(optimizer)
    *batches, last = image_batches(module, 10)
    for batch in batches:
        module.update(batch, optimizer)
    module.begin(last)
    refuse_the_host(monkeypatch)
    with HostTransfers() as found:
        module._captured._compute()
    assert found.names == []


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.sum() > 0), "_local_scalar_dense"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.unique(), "unique"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: x + torch.tensor([1.0, 2.0, 3.0]), "lift_fresh"),
        (lambda x: x.to("meta"), "_to_copy"),
        (lambda x: x.repeat_interleave(torch.tensor([1, 2, 3])), "repeat_interleave"),
    ],
)
def test_what_waits_for_a_device_is_named(operation, name):
    with HostTransfers() as found:
        operation(torch.tensor([-1.0, 0.0, 1.0]))
    assert any(name in each for each in found.names)


def test_a_capture_that_fails_names_the_operation_and_the_run_goes_on(falling, capsys):
    class Failing(Operators):
        def record(self, compute):
            torch.rand(3, generator=next(iter(algorithm.random.generators())))  # which the capture drew
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    algorithm, plain = (learner(falling, "cql", {"rules": ("cds",)}) for _ in range(2))
    compute = algorithm.compute
    algorithm.begin()
    algorithm._captured = Captured(
        lambda: (algorithm.log_alpha.sum().item(), compute())[1], algorithm.random, algorithm.optimizers, Failing
    )
    for _ in range(6):
        algorithm.update()
        plain.update()
    assert capsys.readouterr().out == (
        "updates are not captured as a CUDA graph, and slower: aten._local_scalar_dense.default\n"
    )
    for key, value in plain.state_dict().items():
        assert np.array_equal(value.numpy(), algorithm.state_dict()[key].numpy(), equal_nan=True), key
