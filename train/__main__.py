"""`python -m train --preset demo [--option value ...]`: train a Q-network from images with data sharing.

`python -m train qtopt-online --task lift-can` collects as it learns; `python -m train cql` and `bc` learn from states
offline, `sac` online (docs/sharing.md)."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from typing import Any

from sim.options import Parser, add_options, check_choice, from_options, peek_option, run_command
from train.qtopt_config import PRESETS, QTOptConfig


def _online(arguments: list[str]) -> None:
    from train.qtopt_online import main

    main(arguments)


def _sac(arguments: list[str]) -> None:
    from train.sac import main

    main(arguments)


def _offline(name: str, arguments: list[str]) -> None:
    from train.state_run import main

    main(name, arguments)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "qtopt-online": _online,
    "sac": _sac,
    "cql": functools.partial(_offline, "cql"),
    "bc": functools.partial(_offline, "bc"),
}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and not arguments[0].startswith("-"):
        return run_command(lambda: COMMANDS[check_choice("command", arguments[0], tuple(COMMANDS))](arguments[1:]))
    return run_command(lambda: _train(arguments))


def _train(arguments: list[str]) -> None:
    name = peek_option(arguments, "--preset", "vision-472")
    preset = PRESETS[check_choice("preset", name, tuple(PRESETS))]
    parser = Parser(prog="python -m train", description=__doc__)
    parser.add_argument("--preset", default=name, help=f"named defaults: {', '.join(PRESETS)} (default {name})")
    parser.add_argument(
        "--print-config", "--print_config", action="store_true", help="print the resolved configuration and stop"
    )
    add_options(parser, QTOptConfig, preset)
    options = vars(parser.parse_args(arguments))
    config = from_options(QTOptConfig, options, **_values(preset))
    if options["print_config"]:
        print(json.dumps(_values(config), indent=1))
    else:
        from train.qtopt_run import train

        train(config)


def _values(config: QTOptConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


if __name__ == "__main__":
    sys.exit(main())
