"""Memory of a process that makes and drops the same large tensors in every step."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
KEPT_BYTES, AHEAD_BYTES = 2_000_000_000, 100_000_000


def keep_memory() -> None:
    """What is freed stays with the process: by itself glibc gives large blocks back and takes new ones page by page,
    an eighth of an update of CQL. Other C libraries are left as they are."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEPT_BYTES), (M_TOP_PAD, AHEAD_BYTES)):
            set_option(option, value)
