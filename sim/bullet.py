"""Imports PyBullet without the build line that it prints: `from sim.bullet import pybullet`."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

__all__ = ["pybullet"]


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


with _silence():
    import pybullet
