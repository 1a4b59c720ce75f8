"""`python -m data collect | collect-state | info | check | view | merge | split | select | drop | export`."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from data.assignment import ASSIGNMENTS, assign_tasks
from data.check import check
from data.collect import collect
from data.export import EXPORTS
from data.manifest import merge, split
from data.mixtures import CollectStateConfig, describe, make, missing
from data.plan import TRAINED, CollectConfig
from data.replay import Replay
from data.select import CONDITIONS, select
from data.transitions import read_transitions
from data.view import OUTCOMES, view
from sim.options import Parser, add_options, check_choice, from_options, run_command
from sim.tasks import TASK_NAMES, check_tasks

WORKERS = len(os.sched_getaffinity(0))


def main(arguments: list[str] | None = None) -> int:
    options = vars(_parser().parse_args(arguments))
    return run_command(lambda: COMMANDS[options.pop("command")](**options))


def _parser() -> Parser:
    parser = Parser(prog="python -m data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    def command(name: str, text: str, *places: str) -> Parser:
        added: Parser = commands.add_parser(name, help=text, description=text)
        for place in places:
            added.add_argument(place, type=Path)
        return added

    add_options(command("collect", "collect episodes into a new dataset, or resume or extend one"), CollectConfig)
    collecting = command("collect-state", "make a dataset of a state benchmark by a recipe (docs/benchmarks.md)")
    add_options(collecting, CollectStateConfig)
    collecting.add_argument("--print-missing", action="store_true", help="print the trainings it needs first, and stop")
    informing = command("info", "print the content and size of a dataset", "folder")
    text = f"of a benchmark's episodes to tasks: {', '.join(ASSIGNMENTS)}"
    informing.add_argument("--assignment", default="collected", help=text)
    checking = command("check", "read everything and report errors by file", "folder")
    checking.add_argument("--workers", type=int, default=WORKERS)
    viewing = command("view", "write a self-contained HTML page to browse episodes frame by frame", "folder")
    viewing.add_argument("--out", type=Path, help="default: view.html in the folder")
    viewing.add_argument(
        "--episodes", type=int, default=40, help="at most, alternating tasks and outcomes (default 40)"
    )
    viewing.add_argument("--tasks", type=lambda text: tuple(text.split(",")), default=TASK_NAMES, metavar="A,B,...")
    viewing.add_argument("--outcome", default="all", help=f"of {', '.join(OUTCOMES)}")
    merging = command("merge", "merge datasets: a manifest that lists their shards in place", "out")
    merging.add_argument("folders", type=Path, nargs="+")
    merging.add_argument(
        "--copy", action="store_true", help="copy the shards too, so that the new folder is self-contained"
    )
    splitting = command(
        "split", "split a dataset in two manifests, stratified by task and outcome", "folder", "first", "second"
    )
    splitting.add_argument("--fraction", type=float, default=0.9, help="of the episodes, for the first (default 0.9)")
    splitting.add_argument("--seed", type=int, default=0)
    conditions = ", ".join(condition.example for condition in CONDITIONS.values())
    for name, which in (("select", "that match all conditions"), ("drop", "except those that match all conditions")):
        selecting = command(name, f"write a manifest of the episodes {which} (docs/data.md)", "folder", "out")
        text = f"conditions, separated by commas: {conditions}"
        selecting.add_argument("--where", required=name == "drop", metavar="CONDITIONS", help=text)
        if name == "select":
            selecting.add_argument("--per-task", type=int, help="at most the first so many episodes of each task")
    exporting = command("export", "write a dataset in another format", "folder", "out")
    exporting.add_argument("--format", required=True, help=f"of {', '.join(EXPORTS)}")
    return parser


def _collect(**options: object) -> None:
    config = from_options(CollectConfig, options)
    if any(source.policy == TRAINED for source in config.sources):
        from eval.policy import exploring  # imports torch, which scripted policies do not need

        collect(config, exploring)
    else:
        collect(config)
    print_info(Replay(config.out))


def _collect_state(print_missing: bool, **options: object) -> None:
    config = from_options(CollectStateConfig, options)
    if print_missing:
        print("\n".join(missing(config)))
        return
    from eval.behaviour import load_behaviour

    made = make(config, load_behaviour)
    print(f"{config.path}: {describe(made)}")


def _info(folder: Path, assignment: str) -> None:
    if folder.suffix == ".h5":
        print(describe(assign_tasks(read_transitions(folder), assignment)))
    elif assignment != "collected":
        raise ValueError(f"{folder}: a dataset of images, whose episodes are of the task they were collected for")
    else:
        print_info(Replay(folder))


def _check(folder: Path, workers: int) -> int:
    report = check(folder, max(1, workers))
    print("\n".join(report.wrong) or f"{folder}: all {report.frames} frames are as they were written")
    for text in report.unfinished:
        print(f"note: {text}")
    return 1 if report.wrong else 0


def _view(folder: Path, out: Path | None, episodes: int, tasks: tuple[str, ...], outcome: str) -> None:
    check_tasks(tasks)
    check_choice("outcome", outcome, OUTCOMES)
    page = out or folder / "view.html"
    shown = view(Replay(folder), page, episodes, tasks, outcome)
    print(f"{page}: {shown} episodes, {page.stat().st_size / 1e6:.1f} MB")


def _merge(out: Path, folders: list[Path], copy: bool) -> None:
    merge(out, folders, copy=copy)
    print_info(Replay(out))


def _split(folder: Path, first: Path, second: Path, fraction: float, seed: int) -> None:
    split(folder, first, second, fraction, seed)
    for out in (first, second):
        print_info(Replay(out))


def _select(folder: Path, out: Path, where: str | None, per_task: int | None = None, drop: bool = False) -> None:
    count = select(folder, out, where, per_task=per_task, drop=drop)
    print_info(selected := Replay(out))
    print(f"{selected.num_episodes} of the {count} episodes of {folder}")


def _export(folder: Path, out: Path, format: str) -> None:
    EXPORTS[check_choice("format", format, tuple(EXPORTS))](Replay(folder), out)
    print(f"{out}: {format}")


COMMANDS: dict[str, Callable[..., int | None]] = {
    "collect": _collect,
    "collect-state": _collect_state,
    "info": _info,
    "check": _check,
    "view": _view,
    "merge": _merge,
    "split": _split,
    "select": _select,
    "drop": functools.partial(_select, drop=True),
    "export": _export,
}


def print_info(replay: Replay) -> None:
    """Print the size of a dataset, and for each task its episodes, success rate and successes among all episodes."""
    files = {shard.path.resolve(): shard.entry for shard in replay.shards}  # two selections may share one
    used, stored = (sum(getattr(entry, key) for entry in files.values()) for key in ("bytes", "frames"))
    each = used / stored * (replay.num_steps + replay.num_episodes) / replay.num_episodes
    print(
        f"{replay.folder}: {replay.num_episodes} episodes, {replay.num_steps} steps, {len(replay.shards)} shards, "
        f"{replay.frame_size} px for {replay.size}, {replay.renderer}\n"
        f"{used / 1e6:.1f} MB, {each / 1e3:.0f} kB an episode, {used / stored / 1e3:.1f} kB a frame; "
        f"100,000 episodes of 25 steps: {used / stored * 26 * 1e5 / 1e9:.0f} GB"
    )
    print(f"{'task':<22}{'episodes':>9}{'success':>9}{'in all data':>13}  policies")
    for index, name in enumerate(TASK_NAMES):
        own = replay.episode_task == index
        rate = f"{replay.success[own, index].mean():.1%}" if own.any() else "-"
        policies = sorted({replay.shards[shard].entry.policy for shard in replay.episode_shard[own]})
        print(f"{name:<22}{own.sum():>9}{rate:>9}{replay.success[:, index].sum():>13}  {', '.join(policies)}")


if __name__ == "__main__":
    sys.exit(main())
