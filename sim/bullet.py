"""`from sim.bullet import pybullet`: PyBullet with numpy support, without the line about its build that it prints when
it is imported."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

__all__ = ["pybullet"]

INSTALL = (
    "`make setup` installs it; by hand, on Python 3.12 too: pip install numpy setuptools wheel && "
    "pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation 'pybullet>=3.2.7'"
)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Redirects file descriptors 1 and 2 to /dev/null: C libraries bypass sys.stdout."""
    flush = ctypes.CDLL(None).fflush
    kept: dict[int, int] = {}
    flush(None)  # earlier output of C code is still shown
    try:
        with open(os.devnull, "wb") as nowhere:
            for descriptor in (1, 2):
                with contextlib.suppress(OSError):  # closed already, as in a daemon
                    kept[descriptor] = os.dup(descriptor)
                    os.dup2(nowhere.fileno(), descriptor)
        yield
    finally:
        flush(None)
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)


try:
    with _silence():
        import pybullet
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"PyBullet is not installed. {INSTALL}", name=error.name) from error

if not pybullet.isNumpyEnabled():
    raise ImportError(f"PyBullet was built without numpy: rendering would be very slow. {INSTALL}", name="pybullet")
