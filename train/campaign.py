"""`python -m train campaign FILE.toml --minutes 9`: many trainings on one machine within a given time.

FILE lists trainings: the arguments of `python -m train`, and values that some of them take (`over`), one training for
each combination. `at_once` of them run side by side. At the limit those at work stop and keep their checkpoint; the
same command goes on, and leaves finished ones as they are. What is needed elsewhere, of every finished training its
policies, curves and routing, lies in at most eight files of 16 MB in OUT/pack, which `python -m eval.campaign` plays on
a machine with simulators.

    at_once = 2
    [[training]]
    name = "sharing"
    arguments = "--preset vision-64 --data datasets/mix --steps 5000"
    over = { rule = ["none", "cds-hard"], seed = [1, 2, 3] }
    steps_per_s = 60  # as measured; without it time is not estimated
"""

from __future__ import annotations

import itertools
import json
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from data.decoded_frames import GIB, MOST_OF_MEMORY, decoded_bytes, fits, free_bytes
from data.replay import Replay
from eval.campaign import IMAGE_POLICY, TRAINING
from eval.export import ExportConfig, slim
from models.checkpoint import read_plain
from sim.files import read_json, write_atomic
from sim.options import Parser, add_options, check_choice, check_least, from_options, option
from train import qtopt_config, state_run
from train.campaign_files import pack
from train.qtopt_config import QTOptConfig
from train.run_dir import LAST
from train.state_config import StateConfig

PACK = "pack"  # folder of the files that travel
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
GRACE_S = 120.0  # for a training to write its checkpoint
KEYS = {"name", "arguments", "over", "steps_per_s"}


@dataclass(frozen=True, kw_only=True)
class CampaignConfig:
    """Every option of `python -m train campaign`, besides the file."""

    minutes: float = option(9.0, "after which trainings at work are stopped")
    out: str = option("", "folder of the trainings; default: runs/FILE")

    def __post_init__(self) -> None:
        check_least(self, 0, "minutes")


@dataclass
class Training:
    """One training of a campaign: arguments of `python -m train`, and what became of it."""

    name: str
    arguments: list[str]
    config: QTOptConfig | StateConfig
    steps_per_s: float | None
    state: str = "waiting"
    seconds: float = 0.0  # of all calls
    done: int = 0  # steps at its last checkpoint
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m train campaign", description=__doc__)
    parser.add_argument("file", type=Path, help="TOML file that lists the trainings")
    add_options(parser, CampaignConfig)
    options = vars(parser.parse_args(arguments))
    file = options.pop("file")
    if any(training.state.startswith(FAILED) for training in run(file, from_options(CampaignConfig, options))):
        raise SystemExit(1)


def run(file: Path, config: CampaignConfig) -> list[Training]:
    """Train, or go on; returns what became of each."""
    begin, out = time.monotonic(), Path(config.out or f"runs/{file.stem}")
    trainings, at_once = read_campaign(file, out)
    check_time(trainings, at_once, config.minutes)
    check_memory(trainings, at_once)
    out.mkdir(parents=True, exist_ok=True)
    waiting, working = [each for each in trainings if each.state != FINISHED], list[Training]()
    try:
        while (waiting or working) and time.monotonic() - begin < 60 * config.minutes:
            while waiting and len(working) < at_once:
                working.append(_start(waiting.pop(0), out))
            time.sleep(0.2)
            for training in [each for each in working if each.process and each.process.poll() is not None]:
                working.remove(training)
                _end(training, FINISHED, out)
                pack([out / each.name for each in trainings], out / PACK)
    finally:
        for training in working:
            assert training.process is not None
            training.process.send_signal(signal.SIGTERM)
        for training in working:
            _end(training, STOPPED, out)
        pack([out / each.name for each in trainings], out / PACK)
        print(_table(trainings, out))
    return trainings


# ---------------------------------------------------------------------- what is to be trained


def read_campaign(file: Path, out: Path) -> tuple[list[Training], int]:
    """The trainings and how many run at once. ValueError for what is no campaign, or a training that would be
    refused."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not TOML: {error}") from error
    listed, at_once = content.pop("training", []), content.pop("at_once", 1)
    tables = isinstance(listed, list) and listed and all(isinstance(table, dict) for table in listed)
    if content or not tables or not isinstance(at_once, int) or at_once < 1:
        raise ValueError(f"{file}: a campaign holds at_once, 1 or more, and [[training]] tables")
    trainings = [_with_past(training, out) for table in listed for training in _of_table(file, table, out)]
    names = [training.name for training in trainings]
    if len(set(names)) < len(names):
        raise ValueError(f"{file}: two trainings have the same name; give their tables other ones")
    return trainings, at_once


def _of_table(file: Path, table: dict[str, Any], out: Path) -> Iterator[Training]:
    for key in table:
        check_choice(f"key of a training in {file}", key, tuple(KEYS))
    over, rate = table.get("over", {}), table.get("steps_per_s", 1.0)
    if not isinstance(table.get("name"), str) or not isinstance(table.get("arguments"), str):
        raise ValueError(f"{file}: a training has a name and arguments, two texts")
    if not isinstance(over, dict) or not all(isinstance(values, list) and values for values in over.values()):
        raise ValueError(f"{file}: over lists values, as in over = {{ seed = [0, 1] }}")
    if not isinstance(rate, int | float) or rate <= 0:
        raise ValueError(f"{file}: steps_per_s is a number above 0, got {rate!r}")
    for values in itertools.product(*over.values()):
        name = "-".join([table["name"], *map(str, values)])
        arguments = shlex.split(table["arguments"])
        for key, value in zip(over, values, strict=True):
            arguments += [f"--{key.replace('_', '-')}", str(value)]
        arguments += ["--out", str(out / name)]
        yield Training(name, arguments, _resolved(arguments), table.get("steps_per_s"))


def _with_past(training: Training, out: Path) -> Training:
    """What became of it in earlier calls."""
    run = out / training.name
    if (run / TRAINING).is_file():
        found = read_json(run / TRAINING)
        training.seconds = found["seconds"]
        if found["finished"] and found["arguments"] == training.arguments:
            training.state = FINISHED
    if (run / LAST).is_file():
        checkpoint = read_plain(run / LAST)
        training.done = checkpoint["switchyard"]["steps"] if "switchyard" in checkpoint else checkpoint["updates"]
    return training


def _resolved(arguments: list[str]) -> QTOptConfig | StateConfig:
    if arguments[0].startswith("-"):
        return qtopt_config.parse(arguments)[0]
    name = check_choice("algorithm of a campaign", arguments[0], tuple(state_run.ALGORITHMS))
    return state_run.parse(name, arguments[1:])[0]


def check_time(trainings: list[Training], at_once: int, minutes: float) -> None:
    """ValueError, with the estimate, where the trainings cannot end in time."""
    unfinished = [training for training in trainings if training.state != FINISHED and training.steps_per_s]
    known = [max(0, each.config.steps - each.done) / each.steps_per_s for each in unfinished if each.steps_per_s]
    needed = sum(known) / at_once / 60
    if needed > minutes:
        raise ValueError(
            f"{len(known)} trainings need about {needed:.1f} minutes, {at_once} at once, more than {minutes:g}: "
            "give --minutes, fewer steps, or fewer trainings"
        )


def check_memory(trainings: list[Training], at_once: int) -> None:
    """ValueError, with the sizes, where the frames of trainings side by side do not fit the device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    held = {}
    for config in (training.config for training in trainings if isinstance(training.config, QTOptConfig)):
        replay = Replay(config.data)
        if config.frames == "device" or (config.frames == "auto" and device.type == "cuda" and fits(replay, device)):
            held[config.data] = decoded_bytes(replay)
    size, free = max(held.values(), default=0), free_bytes(device)
    if size > MOST_OF_MEMORY * (free - (at_once - 1) * size):  # what the last one asks for
        raise ValueError(
            f"{at_once} trainings at once hold {at_once * size / GIB:.1f} GiB of frames, {free / GIB:.1f} GiB are free "
            f"on {device}: fewer at_once, or --frames encoded"
        )


# ---------------------------------------------------------------------- processes


def _start(training: Training, out: Path) -> Training:
    log = out / f"{training.name}.log"
    with log.open("ab") as written:
        command = [sys.executable, "-W", "ignore", "-m", "train", *training.arguments]
        training.process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT)
    training.state, training.seconds = "at work", training.seconds - time.monotonic()
    return training


def _end(training: Training, state: str, out: Path) -> None:
    """Note how a training ended, and write the policy of one on images. It is waited for."""
    assert training.process is not None
    try:
        status = training.process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        training.process.kill()
        status = training.process.wait()
    training.seconds += time.monotonic()
    training.state = FINISHED if not status else state if state == STOPPED else f"{FAILED}, see {training.name}.log"
    finished, run = training.state == FINISHED, out / training.name
    if finished and isinstance(training.config, QTOptConfig):
        (run / IMAGE_POLICY).unlink(missing_ok=True)
        slim(ExportConfig(checkpoint=str(run / LAST), out=str(run / IMAGE_POLICY), format="checkpoint", half=True))
    if run.is_dir():
        about = {"name": training.name, "arguments": training.arguments, "seconds": training.seconds}
        write_atomic(run / TRAINING, json.dumps(about | {"finished": finished}).encode())


def _table(trainings: list[Training], out: Path) -> str:
    lines = [f"{'training':<32}{'state':<12}{'steps':>10}{'minutes':>9}"]
    for training in trainings:
        minutes = f"{training.seconds / 60:.1f}" if training.seconds > 0 else ""
        lines.append(f"{training.name:<32}{training.state:<12}{training.config.steps:>10}{minutes:>9}")
    packs = sorted((out / PACK).glob("*.tar"))
    size = sum(path.stat().st_size for path in packs) / 1e6
    lines.append(f"{len(packs)} file(s), {size:.1f} MB; to play them: python -m eval.campaign --pack {out / PACK}")
    return "\n".join(lines)
