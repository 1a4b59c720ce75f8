"""`python -m data collect | info`."""

from __future__ import annotations

import sys

from data.collect import CollectConfig, collect
from data.replay import Replay
from sim.options import Parser, add_options, from_options
from sim.tasks import TASK_NAMES


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    add_options(commands.add_parser("collect", help="collect episodes by a scripted policy"), CollectConfig)
    info = commands.add_parser("info", help="check a dataset's tables and print what it holds")
    info.add_argument("folder")
    options = vars(parser.parse_args(arguments))
    try:
        if options["command"] == "collect":
            config = from_options(CollectConfig, options)
            collect(config)
            print_table(Replay(config.out))
        else:
            print_table(Replay(options["folder"]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def print_table(replay: Replay) -> None:
    """Episodes, steps and own successes per task, then in how many of all episodes each task's detector says yes."""
    print(f"{replay.folder}: {replay.num_episodes} episodes, {replay.num_steps} steps, {replay.renderer}")
    if replay.num_changed_verdicts:
        print(f"{replay.num_changed_verdicts} verdicts differ from those at collection; today's detectors decide")
    print(f"{'task':<22}{'episodes':>9}{'success':>9}{'in all data':>13}")
    for index, name in enumerate(TASK_NAMES):
        own = replay.episode_task == index
        rate = f"{replay.success[own, index].mean():.1%}" if own.any() else "-"
        print(f"{name:<22}{own.sum():>9}{rate:>9}{replay.success[:, index].sum():>13}")


if __name__ == "__main__":
    sys.exit(main())
