"""Adding an object, a benchmark or an algorithm is one record or one file; everything else follows."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import mixtures
from data.mixtures import CollectStateConfig, Source
from data.transitions import read_transitions
from eval.behaviour import load_behaviour
from eval.tables import tables
from models.policy_files import load_policies
from sim.benchmarks.table import BENCHMARKS
from tests.conftest import SMALL_STATE_RUN as SMALL
from tests.line import LINE
from train import presets, state_run
from train.online_states import learn
from train.sac import SAC, SACConfig

ROOT = Path(__file__).parents[1]

CODE = """
import numpy as np
from sim import objects
from sim.appearances import Appearances
from sim.materials import Material
from sim.meshes import box

objects.OBJECTS["brick"] = objects.ObjectSpec(
    name="brick", mass_kg=0.15, friction=0.8, parts=(box((0.04, 0.08, 0.03)),),
    colliders=(objects.Collider("box", (0.04, 0.08, 0.03)),),
    appearances=Appearances(default=(Material((0.7, 0.3, 0.2), "checks"),), test=((Material((0.3, 0.3, 0.7)),),)),
    long_axis=(0.0, 1.0, 0.0),
)

from sim.env import PickPlaceEnv, as_action, as_batch
from sim.policies import ScriptedPolicy
from sim.state import O
from sim.tasks import TASK_NAMES, TASKS

assert TASK_NAMES.index("lift-brick") == 7 and len(TASK_NAMES) == 11, TASK_NAMES
env = PickPlaceEnv("lift-brick", image_size=64, renderer="tiny")
successes, drawn = 0, 0
for seed in range(3):
    observation, info = env.reset(seed=seed)
    assert info["successes"].shape == (11,)
    segments = env.world.geometry().segmentation
    from sim.drawing import SEGMENTS
    drawn += int((segments == SEGMENTS.index("brick")).any())
    done, rng = False, np.random.default_rng(seed)
    while not done:
        action = ScriptedPolicy().act(as_batch(observation, info), np.array([TASKS["lift-brick"].index]), rng)[0]
        observation, reward, terminated, truncated, info = env.step(as_action(action))
        done = terminated or truncated
    successes += reward
print(int(successes), drawn, O)
"""


def test_an_object_added_to_the_table_is_rendered_lifted_and_detected():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-3:] == ["3", "3", "8"]


@pytest.fixture
def line(monkeypatch, tmp_path):
    """All that adds a benchmark: its record, one row of presets, one recipe."""
    monkeypatch.setitem(BENCHMARKS, "line", LINE)
    monkeypatch.setitem(presets.PRESETS, "line", {"sharing": {"sharing_temperature_clip": (0.1, 1.0)}})
    replay, policies = (Source(task=task, file=str(tmp_path / "sac" / file), steps=200) for task, file in SOURCES)
    monkeypatch.setitem(mixtures.RECIPES, "line", {"quick": (replay, policies)})
    options = {"steps": 300, "start_steps": 200, "replay_steps": 200, "batch_size": 8, "hidden_sizes": (16,)}
    learn("SAC", SACConfig(benchmark="line", out=str(tmp_path / "sac"), **options), SAC, "--lr")
    return CollectStateConfig(benchmark="line", recipe="quick", out=str(tmp_path / "line.h5"), workers=1)


SOURCES = (("right", "replay.h5"), ("left", "policy-300.pt"))


def test_a_benchmark_added_to_the_tables_is_collected_learned_played_and_tabulated(line, tmp_path, capsys):
    made = mixtures.make(line, load_behaviour)
    assert read_transitions(line.path).digest == made.digest
    assert np.bincount(made.columns["task"]).tolist() == [200, 200]
    state_run.main("cql", ["--data", str(line.path), "--print-config"])
    assert json.loads(capsys.readouterr().out)["sharing_temperature_clip"] == [0.1, 1.0]
    options = {**SMALL, "data": str(line.path), "out": str(tmp_path / "run"), "rules": ("none", "cds")}
    found = state_run.train("cql", state_run.CQLConfig(**options))
    results = json.loads(found.read_text())
    assert (results["benchmark"], results["recipe"], results["metric"]) == ("line", "quick", "success")
    assert all(row["success"].keys() == {"right", "left"} for row in results["members"])
    text = tables([found])
    assert text.startswith("line quick, cql, 4 updates\n\n| success, % | none | cds |")


def test_an_algorithm_is_one_file_of_under_60_lines_and_a_row(line, tmp_path, monkeypatch):
    """Behaviour cloning, loaded from its file alone, learns to go where its data went."""
    source = ROOT / "train" / "bc.py"
    assert len(source.read_text().splitlines()) < 60
    spec = importlib.util.spec_from_file_location("added", source)
    added = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "added", added)
    spec.loader.exec_module(added)
    monkeypatch.setattr(state_run, "ALGORITHMS", {"added": state_run.Entry(added.BC, added.BCConfig)})
    made = mixtures.make(line, load_behaviour)
    small = {name: value for name, value in SMALL.items() if name != "num_sampled_actions"}
    options = {**small, "data": str(line.path), "out": str(tmp_path / "run"), "rules": ("all",), "steps": 200}
    found = json.loads(state_run.train("added", added.BCConfig(**options, lr=0.01)).read_text())
    assert found["algorithm"] == "added"
    assert set(found["members"][0]["returns"]) == {"right", "left"}
    policy = load_policies(tmp_path / "run" / "policy.pt").policy
    mean = policy.act(np.eye(3, dtype=np.float32)[None], np.zeros((1, 3), np.int64))[0, :, 0]
    for place in range(3):
        there = made.columns["observation"][:, place] > 0
        assert mean[place] == pytest.approx(made.columns["action"][there].mean(), abs=0.3)
