"""MuJoCo, which training from disk does without: loaded by the environments, with one line where that cannot be."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from sim.benchmarks.spec import MissingSimulatorError

REMEDY = "pip install -e '.[lowdim]'"
OLDEST, TOO_NEW = (3, 3), (4, 0)  # version 4 breaks dm_control and metaworld


def load_mujoco(benchmark: str) -> Any:
    """The module, which warns on the terminal. MissingSimulatorError where it is not installed, a version that this
    project does not run on, or asked for an OpenGL that is not there."""
    try:
        import mujoco
    except Exception as error:  # of many kinds: importing it loads the OpenGL that MUJOCO_GL names
        if importlib.util.find_spec("mujoco") is None:
            raise MissingSimulatorError(f"{benchmark} needs MuJoCo: {REMEDY}") from None
        renderer = f"MUJOCO_GL={os.environ['MUJOCO_GL']}: unset it, or install" if "MUJOCO_GL" in os.environ else "this"
        raise MissingSimulatorError(f"{benchmark}: MuJoCo does not load with {renderer} OpenGL ({error})") from None
    version = tuple(map(int, mujoco.__version__.split(".")[:2]))
    if not OLDEST <= version < TOO_NEW:
        raise MissingSimulatorError(f"{benchmark} needs MuJoCo 3.3 to 3, found {mujoco.__version__}: {REMEDY}")
    mujoco.set_mju_user_warning(_warn)  # its own writes MUJOCO_LOG.TXT into the working folder
    return mujoco


@functools.cache
def _warn(message: str | bytes) -> None:
    """Print each warning once in a process."""
    print(f"MuJoCo: {message.decode() if isinstance(message, bytes) else message}", file=sys.stderr)


def package_folder(benchmark: str, package: str) -> Path:
    """Where a package that has the benchmark's model lies; it is not imported. MissingSimulatorError without it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingSimulatorError(f"{benchmark} needs {package} for its model: {REMEDY}")
    return Path(found.submodule_search_locations[0])
