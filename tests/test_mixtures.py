"""Datasets of state benchmarks by recipes: what they are made of, and that nothing is written over."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data import mixtures
from data.mixtures import CONTROLLER, RECIPES, REPLAYS, CollectStateConfig, Source, make, missing, read_source
from data.transitions import TransitionDataset, empty_columns, write_transitions
from eval.behaviour import load_behaviour
from models.checkpoint import CheckpointError
from sim.benchmarks.table import BENCHMARKS
from sim.files import DatasetError

WALKER2D = BENCHMARKS["walker2d"]
ROOT = Path(__file__).parents[1]


@pytest.fixture
def transitions():
    """Ten transitions of each task."""
    columns = empty_columns(WALKER2D, 30)
    columns["action"][:] = np.arange(30)[:, None]
    columns["task"][:] = np.arange(30) // 10
    columns["episode_end"][4::5] = True
    return TransitionDataset(benchmark=WALKER2D, columns=columns, metadata={})


@pytest.fixture
def config(transitions, tmp_path, monkeypatch):
    """A dataset of a replay, and of a file of policies whose steps are those of the replay."""
    write_transitions(tmp_path / "replay.h5", transitions)
    (tmp_path / "policy.pt").write_bytes(b"policy")

    def played(sources, *_):
        return [
            {name: column[20 : 20 + source.steps] for name, column in transitions.columns.items()} for source in sources
        ]

    monkeypatch.setattr(mixtures, "collect_parts", played)
    sources = (f"run-forward={tmp_path}/replay.h5:5", f"jump={tmp_path}/policy.pt:10")
    return CollectStateConfig(out=str(tmp_path / "set.h5"), sources=sources)


def load(behaviour):
    return None, {"policy_steps": 7}


def not_reached(*_):
    raise AssertionError("simulated")


def test_a_dataset_tells_what_it_is_made_of_and_is_not_made_twice(config, tmp_path, monkeypatch, capsys):
    made = make(config, load)
    replay, policy = (hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("replay.h5", "policy.pt"))
    assert made.metadata == {
        "run-forward": {"kind": "replay", "file": "replay.h5", "sha256": replay},
        "jump": {
            "kind": "policy",
            "collection": 3,
            "file": "policy.pt",
            "seed": 0,
            "policy_steps": 7,
            "sha256": policy,
        },
    }
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(mixtures, "collect_parts", not_reached)
    written = (tmp_path / "set.h5").stat().st_mtime_ns
    again = make(config, load)
    assert (again.metadata, again.digest) == (made.metadata, made.digest)
    assert f"{config.out}: already there, made of these sources" in capsys.readouterr().err
    assert (tmp_path / "set.h5").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, seed=1), r"other sources: jump seed 0 \(now 1\); choose another --out or delete it"),
        (lambda c: replace(c, sources=(c.sources[0], c.sources[1][:-1])), r"jump steps 10 \(now 1\)"),
        (lambda c: replace(c, sources=c.sources[::-1]), r"order \['run-forward', 'jump'\] \(now \['jump', 'run-"),
        (lambda c: replace(c, sources=c.sources[:1]), r"jump kind 'policy' \(now None\)"),
        (lambda c: replace(c, out=c.out.replace("set", "replay")), r"replay\.h5: already there, made of other sources"),
        (lambda c: replace(c, out=c.sources[1].split("=")[1][:-3]), r"policy\.pt: not a dataset.*choose another --out"),
    ],
)
def test_a_file_that_is_another_is_not_written_over(config, tmp_path, monkeypatch, change, message):
    make(config, load)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(mixtures, "collect_parts", not_reached)
    with pytest.raises(DatasetError, match=message):
        make(change(config), load)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_source_that_has_changed_since_makes_another_dataset(config, tmp_path):
    make(config, load)
    (tmp_path / "policy.pt").write_bytes(b"another")
    with pytest.raises(DatasetError, match="other sources: jump sha256"):
        make(config, load)


def test_every_benchmark_has_a_published_and_a_quick_recipe():
    followers = {benchmark.controller.follower for benchmark in BENCHMARKS.values() if benchmark.controller}
    assert RECIPES.keys() == BENCHMARKS.keys() - followers  # those have no data of their own
    for name, recipes in RECIPES.items():
        assert {"published", "quick"} <= recipes.keys()
        for recipe, sources in recipes.items():
            assert {source.task for source in sources} == set(BENCHMARKS[name].task_names), (name, recipe)
            for source in sources:
                assert source.file in (CONTROLLER, *REPLAYS) or (ROOT / source.file).is_file(), source.file
        assert not any(source.file in REPLAYS for source in recipes["quick"])  # no training first


def test_the_published_sizes_of_walker2d_are_the_papers():
    sizes = {name: [source.steps for source in sources] for name, sources in RECIPES["walker2d"].items()}
    assert sizes["published"] == [109_900, 31_298, 5_000]
    assert sizes["medium"] == [27_646, 31_298, 100_000]


def test_the_trainings_a_recipe_needs_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = CollectStateConfig(benchmark="walker2d", recipe="medium-replay")
    assert [line.split("--out")[0].strip() for line in missing(config)] == [
        "train sac --benchmark walker2d --seed 1 --steps 110000",
    ]
    with pytest.raises(
        DatasetError, match=r"replay.h5: no such replay or file of policies; python -m train sac .* makes it"
    ):
        make(config, load)


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown recipe of ant 'quik': .* Did you mean 'quick'"):
        CollectStateConfig(benchmark="ant", recipe="quik")
    with pytest.raises(ValueError, match=r"unknown benchmark with recipes 'ant-direction': choose from walker2d"):
        CollectStateConfig(benchmark="ant-direction", recipe="quick")


def test_policies_of_another_benchmark_are_refused(tmp_path):
    """walker2d and halfcheetah have the same sizes and task names."""
    source = f"jump={ROOT}/models/trained/walker2d-expert.pt:10"
    config = CollectStateConfig(benchmark="halfcheetah", sources=(source,), out=str(tmp_path / "x.h5"))
    with pytest.raises(CheckpointError, match="holds policies for walker2d, not for halfcheetah"):
        make(config, load_behaviour)


def test_the_expert_that_jumps_is_recorded_without_falls():
    jump = RECIPES["walker2d"]["published"][2]
    assert (jump.task, jump.without_falls) == ("jump", True)


@pytest.mark.parametrize("text", ["jump", "jump=x.pt", "jump=x.pt:0", "jump=x.pt:5:a", "=x.pt:5", "jump=:5"])
def test_a_source_that_is_not_one_is_refused(text):
    with pytest.raises(ValueError, match="a source is TASK=FILE:STEPS or TASK=FILE:STEPS:NOISE"):
        read_source(text)


def test_sources_of_the_command_line():
    assert read_source("jump=a:b.pt:010") == Source(task="jump", file="a:b.pt", steps=10)
    assert read_source("goal-1=controller:500:0.2") == Source(task="goal-1", file=CONTROLLER, steps=500, noise=0.2)


def test_options_of_a_source_are_told_where_they_are_not_the_usual_ones(config, tmp_path, monkeypatch):
    policy = str(tmp_path / "policy.pt")
    sources = (
        Source(task="jump", file=policy, steps=5, random_actions=0.0),
        Source(task="run-forward", file=policy, steps=5),
    )
    monkeypatch.setitem(RECIPES["walker2d"], "quick", sources)
    made = make(replace(config, sources=(), recipe="quick", out=str(tmp_path / "other.h5")), load)
    assert made.metadata["jump"]["random_actions"] == 0.0
    assert not {"random_actions", "noise", "without_falls"} & made.metadata["run-forward"].keys()
