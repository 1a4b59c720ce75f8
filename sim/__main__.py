"""`python -m sim watch --task lift-can --policy scripted` films episodes; `python -m sim sheet` shows many scenes."""

from __future__ import annotations

import sys

from sim.options import Parser, add_options, from_options, run_command
from sim.watch import SheetConfig, WatchConfig, sheet, watch


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_options(commands.add_parser("watch", help="film scripted episodes"), WatchConfig)
    add_options(commands.add_parser("sheet", help="one image of many scenes"), SheetConfig)
    options = vars(parser.parse_args(arguments))
    if options["command"] == "watch":
        return run_command(lambda: print(watch(from_options(WatchConfig, options))))
    return run_command(lambda: print(sheet(from_options(SheetConfig, options))))


if __name__ == "__main__":
    sys.exit(main())
