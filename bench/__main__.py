"""`python -m bench [--only NAME,...] [--quick]`: one table, and the same in bench/results/bench.json."""

from __future__ import annotations

import importlib
import os
import sys

from bench.report import RESULTS, Row, machine, print_table, write_json
from sim.options import Parser, check_choice

# name -> module. A module has `run(quick: bool) -> list[Row]`; it is imported only when it runs, because the worker
# processes of a benchmark import this file again and should not pay for torch.
BENCHMARKS: dict[str, str] = {
    "world": "bench.world",
    "tasks": "bench.tasks",
    "renderers": "bench.renderers",
    "stability": "bench.stability",
    "collecting": "bench.collecting",
    "data": "bench.data",
    "vision": "bench.vision",
    "lowdim": "bench.lowdim",
    "states": "bench.states",
    "gpu": "bench.gpu",
    "parity": "bench.parity",
    "coverage": "bench.coverage",
}


LONG = ("stability", "parity", "coverage", "gpu")  # ten minutes to an hour, or made for a GPU


def main() -> int:
    parser = Parser(prog="python -m bench", description=__doc__)
    usual = ",".join(name for name in BENCHMARKS if name not in LONG)
    text = f"of {', '.join(BENCHMARKS)}; default: all but {', '.join(LONG)}"
    parser.add_argument("--only", default=usual, metavar="NAME,...", help=text)
    parser.add_argument("--quick", action="store_true", help="tiny counts: shows that everything runs, not how fast")
    options = parser.parse_args()
    try:
        names = [check_choice("benchmark", name, tuple(BENCHMARKS)) for name in options.only.split(",") if name]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    os.environ["TQDM_DISABLE"] = "1"  # read by tqdm when it is imported; workers inherit it
    rows: list[Row] = []
    about = machine() | {"quick": options.quick}
    path = RESULTS / "bench.json"
    for name in names:
        print(f"bench: {name} ...", flush=True)
        rows += importlib.import_module(BENCHMARKS[name]).run(options.quick)
        write_json(rows, about, path)  # what is done stays, if a later one is stopped
    print_table(rows, about)
    print(f"also in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
