"""`python -m train --preset demo [--option value ...]`: train a Q-network from images with data sharing.

`python -m train qtopt-online --task lift-can` collects as it learns. From states (docs/algorithms.md) `cql`, `brac`,
`td3-bc`, `iql`, `bc` and `csac`, `mtcsac`, `hcsac` learn offline, `sac` and `td3` online; `acl` pretrains an encoder.
`python -m train campaign FILE` runs many trainings."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import sys
from collections.abc import Callable

from sim.options import check_choice, run_command
from train.qtopt_config import parse


def _main_of(module: str, arguments: list[str]) -> None:
    """Run a module's main; it is imported when it is asked for."""
    importlib.import_module(f"train.{module}").main(arguments)


def _offline(name: str, arguments: list[str]) -> None:
    from train.state_run import main

    main(name, arguments)


OFFLINE = ("cql", "csac", "mtcsac", "hcsac", "brac", "td3-bc", "iql", "bc")
OTHERS = ("qtopt-online", "sac", "td3", "acl", "campaign")  # modules with a main of their own
COMMANDS: dict[str, Callable[[list[str]], None]] = {
    **{name: functools.partial(_offline, name) for name in OFFLINE},
    **{name: functools.partial(_main_of, name.replace("-", "_")) for name in OTHERS},
}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and not arguments[0].startswith("-"):
        return run_command(lambda: COMMANDS[check_choice("command", arguments[0], tuple(COMMANDS))](arguments[1:]))
    return run_command(lambda: _train(arguments))


def _train(arguments: list[str]) -> None:
    config, only_prints = parse(arguments, __doc__)
    if only_prints:
        print(json.dumps(dataclasses.asdict(config), indent=1))
    else:
        from train.qtopt_run import train

        train(config)


if __name__ == "__main__":
    sys.exit(main())
