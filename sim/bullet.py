"""`from sim.bullet import pybullet`: PyBullet without the line about its build that every import of it prints."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

__all__ = ["pybullet"]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """File descriptors 1 and 2 lead nowhere: C libraries print past sys.stdout."""
    flush = ctypes.CDLL(None).fflush
    kept: dict[int, int] = {}
    flush(None)  # what C printed before is still shown
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
