"""EGL and open worlds do not survive a fork: Mesa's threads are missing in the child, and would be waited for."""

from __future__ import annotations

import os


def check_not_forked(what: str, process: int) -> None:
    """ValueError in a process that was forked from the one in which `what` was started."""
    if os.getpid() != process:
        raise ValueError(
            f"{what} was started in process {process} and does not work in a fork of it: "
            'start workers by spawn, as gymnasium.make_vec and AsyncVectorEnv(..., context="spawn") do'
        )
