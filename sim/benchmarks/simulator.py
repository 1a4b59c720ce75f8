"""MuJoCo, which training from disk does without: loaded by the environments, with one line where that cannot be."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from sim.benchmarks.spec import MissingSimulatorError

REMEDY = "pip install -e '.[lowdim]'"
TOO_NEW = 4  # which breaks dm_control and metaworld


def load_mujoco(benchmark: str) -> Any:
    """The module. MissingSimulatorError where it is not installed, or a version that this project does not run on."""
    try:
        import mujoco
    except ImportError:
        raise MissingSimulatorError(f"{benchmark} needs MuJoCo: {REMEDY}") from None
    if int(mujoco.__version__.split(".")[0]) >= TOO_NEW:
        found = mujoco.__version__
        raise MissingSimulatorError(f"{benchmark} needs MuJoCo before {TOO_NEW}, found {found}: {REMEDY}")
    return mujoco


def package_folder(benchmark: str, package: str) -> Path:
    """Where a package that has the benchmark's model lies; it is not imported. MissingSimulatorError without it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingSimulatorError(f"{benchmark} needs {package} for its model: {REMEDY}")
    return Path(found.submodule_search_locations[0])
