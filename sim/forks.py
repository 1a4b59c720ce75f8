"""Refuses forked processes: EGL and open worlds do not survive a fork, because the child would wait for threads of
Mesa that it does not have."""

from __future__ import annotations

import os


def check_not_forked(what: str, process: int) -> None:
    """Raises ValueError in a fork of the process that started `what`."""
    if os.getpid() != process:
        raise ValueError(
            f"{what} was started in process {process} and does not work in a fork of it: "
            'start workers by spawn, as gymnasium.make_vec and AsyncVectorEnv(..., context="spawn") do'
        )
