"""Process-wide settings that cut the overhead of small updates: malloc keeps freed blocks; CUDA is probed once."""

from __future__ import annotations

import ctypes
import os

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
KEPT_BYTES, AHEAD_BYTES = 2_000_000_000, 100_000_000


def prepare_process() -> None:
    """Keep freed memory, and probe for a GPU once."""
    _keep_memory()
    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or every step of an optimizer looks for the driver, for a millisecond


def _keep_memory() -> None:
    """Keep freed memory in the process, which allocates the same large tensors in every step: by default glibc returns
    large blocks and maps new ones page by page, which costs an eighth of an update of CQL. Other C libraries are left
    as they are."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEPT_BYTES), (M_TOP_PAD, AHEAD_BYTES)):
            set_option(option, value)
