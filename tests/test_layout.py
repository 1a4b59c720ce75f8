"""The architecture: where the packages lie, and in which direction they import."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "sim": set(),
    "data": {"sim"},
    "models": {"sim"},
    "eval": {"sim", "data", "models"},
    "train": {"sim", "data", "models", "eval"},
}
COMPOSES = {Path("data/__main__.py"): {"eval"}}  # a command that hands over what lies above its package
BY_NAME = {"resolve_name", "import_module", "__import__"}  # imports that no reader of imports sees
OUTSIDE_SIMULATOR = {"pybullet", "pybullet_data", "mujoco", "gymnasium"}


def imported(path):
    """The top-level names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_each_package_is_the_one_in_this_repository(package):
    assert Path(importlib.import_module(package).__file__).parent == ROOT / package


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        own = imported(path) & (MAY_IMPORT.keys() | {"bench", "tests"})
        assert own <= MAY_IMPORT[package] | {package} | COMPOSES.get(path.relative_to(ROOT), set()), path


@pytest.mark.parametrize("package", [name for name in MAY_IMPORT if name != "train"])
def test_nothing_is_imported_by_a_name_in_a_string(package):
    for path in (ROOT / package).rglob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        attributes = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not (names | attributes) & BY_NAME, path


def test_the_simulator_never_sees_torch():
    for path in (ROOT / "sim").rglob("*.py"):
        assert not imported(path) & {"torch", "torchvision", "lightning"}, path


@pytest.mark.parametrize("package", ["data", "models", "train"])
def test_learning_from_disk_names_no_simulator(package):
    for path in (ROOT / package).rglob("*.py"):
        assert not imported(path) & OUTSIDE_SIMULATOR, path


def test_training_starts_where_there_is_no_simulator():
    """As on a machine that has a GPU and torch, lightning, numpy, h5py and torchvision: scipy is for evaluation."""
    missing = ["pybullet", "moderngl", "trimesh", "gymnasium", "mujoco", "simplejpeg", "zstandard", "ray"]
    for module, absent in (("train.qtopt_run", [*missing, "eval"]), ("train.state_run", missing)):
        code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import {module}"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_a_run_on_states_loads_nothing_of_the_pick_place_world():
    code = "import sys, train.state_run; print(*(m for m in sys.modules if m.startswith(('sim', 'data', 'models'))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    benchmarks = {"sim.benchmarks", *(f"sim.benchmarks.{path.stem}" for path in (ROOT / "sim/benchmarks").glob("*.py"))}
    assert {name for name in loaded if name.startswith("sim.")} <= benchmarks | {
        "sim.files",
        "sim.film_files",
        "sim.options",
        "sim.parallel",
    }
    assert not loaded & {"data.shards", "data.replay", "data.batches", "models.networks", "models.image_checkpoint"}


def test_no_file_of_train_is_longer_than_300_lines():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "train").rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
