"""`python -m sim watch --task lift-can --policy expert`: a film; `python -m sim sheet`: a picture of many scenes."""

from __future__ import annotations

import sys

from sim.options import Parser, add_options, from_options
from sim.watch import SheetConfig, WatchConfig, sheet, watch


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_options(commands.add_parser("watch", help="film scripted episodes"), WatchConfig)
    add_options(commands.add_parser("sheet", help="one picture of many scenes"), SheetConfig)
    options = vars(parser.parse_args(arguments))
    try:
        if options["command"] == "watch":
            print(watch(from_options(WatchConfig, options)))
        else:
            print(sheet(from_options(SheetConfig, options)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
