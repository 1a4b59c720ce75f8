"""`python -m eval --checkpoint runs/demo/last.ckpt`: success rates in the simulator, JSON, and the HTML report."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.locks import lock_file
from data.replay import Replay
from eval import results
from eval.episode_log import EpisodeLog
from eval.policy import CEMPolicy
from eval.report import write_report
from eval.rollout import POLICIES, EpisodeOutcome, EvalResult, episode_jobs, rollout, summarise
from eval.side_by_side import LOOKS, averages, columns_of, text_table
from models.checkpoint import RUN_CONFIG, CheckpointError, CheckpointFile
from sim.appearances import SPLITS
from sim.drawing import RENDERERS
from sim.files import read_json, write_atomic
from sim.options import Parser, add_options, check_choice, check_least, check_seed, from_options, option, run_command
from sim.scenes import FACTORS, read_factors
from sim.state import SIM_VERSION
from sim.tasks import TASKS, check_tasks

LOCK = "eval.lock"  # held while episodes are played
FILMED_EPISODES = 2  # per task, shown in the report
BOTH = "both"  # splits, one beside the other
UNBINDING = ("checkpoint", "data", "out", "workers", "reuse")  # may differ: files are bound by their content


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Every option of `python -m eval`."""

    checkpoint: str = field(metadata={"help": "checkpoint to evaluate"})
    out: str = option(
        "",
        "folder of the results; default: that of a run's last.ckpt, one in it for its others, else runs/NAME",
    )
    episodes: int = option(50, "per task")
    tasks: tuple[str, ...] = option((), "default: those it was trained for")
    policies: tuple[str, ...] = option(("checkpoint", "random"), f"of {', '.join(POLICIES)}")
    seed: int = option(1000, "of scenes and policies; collection's seeds are apart")
    workers: int = option(len(os.sched_getaffinity(0)), "processes")
    renderer: str = option("auto", "auto: the one the checkpoint was trained on")
    randomise: str = option("auto", f"auto: what the checkpoint's data had; all, none, or some of {', '.join(FACTORS)}")
    split: str = option("train", f"of {', '.join(SPLITS)}, {BOTH}: test has looks and sizes that train never shows")
    reuse: bool = option(False, "print the results of an identical finished evaluation")
    data: str = option("", "its training dataset, to report the data's own success rate")

    def __post_init__(self) -> None:
        if self.tasks:
            check_tasks(self.tasks)
        for name in self.policies:
            check_choice("policy", name, tuple(POLICIES))
        check_choice("renderer", self.renderer, RENDERERS)
        check_choice("split", self.split, (*SPLITS, BOTH))
        if self.randomise != "auto":
            read_factors(self.randomise)
        check_least(self, 1, "episodes", "workers")
        check_seed(self, "seed")


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m eval", description=__doc__)
    add_options(parser, EvalConfig)
    options = vars(parser.parse_args(arguments))
    return run_command(lambda: print(f"report: {evaluate(from_options(EvalConfig, options))}"))


@dataclass(kw_only=True)
class _Part:
    """The evaluation of one split. `settings`: what an evaluation must agree in to be the same. `payload`: the content
    of eval.json, once it is known; `films`: the filmed episodes."""

    config: EvalConfig
    out: Path
    settings: dict[str, Any]
    payload: dict[str, Any] | None = None
    films: list[EpisodeOutcome] = field(default_factory=list)


def evaluate(config: EvalConfig) -> Path:
    """Roll out every policy on every task, print the table, write eval.json and report.html; returns the report's path.

    An interrupted evaluation resumes after the episodes it played. Of both splits, nothing is written before both are
    played, so that this holds for both."""
    file = CheckpointFile.of(config.checkpoint)
    policy = CEMPolicy.load(file, None if config.renderer == "auto" else config.renderer)
    metadata, renderer = policy.metadata, policy.metadata["renderer"]
    tasks = config.tasks or tuple(metadata["trained_tasks"])
    untrained = [name for name in tasks if name not in metadata["trained_tasks"]]
    if untrained:
        raise CheckpointError(f"{config.checkpoint}: never trained for {', '.join(untrained)}")
    parts = _parts(config)
    if metadata["sim_version"] != SIM_VERSION:
        print(
            f"{config.checkpoint}: trained in world {metadata['sim_version']}, played in world {SIM_VERSION}, whose "
            "train split has other appearances"
        )
    data: list[EvalResult] = []
    if config.data:
        replay = Replay(config.data)
        replay.require(metadata["network"]["image_size"], renderer)
        data = data_success(replay, tasks)
    for part in parts:
        part.out.mkdir(parents=True, exist_ok=True)
        part.settings |= {"steps": metadata["steps"], "checkpoint_sha256": file.sha256, "sim_version": SIM_VERSION}
        if digest := metadata.get("episodes_sha256") or (replay.digest if config.data else ""):
            part.settings["episodes_sha256"] = digest
        if config.reuse and (found := _finished(part.out, part.settings)):
            part.payload = found
            print(f"{part.out / results.FILE} (already there)")
    unplayed = [part for part in parts if part.payload is None]
    if not unplayed:
        print_table([part.payload for part in parts if part.payload])
        return parts[0].out / "report.html"
    from sim.camera import EGL_PACKAGES, resolve_renderer  # imports PyBullet

    if renderer == "egl" and resolve_renderer("auto") != renderer:
        raise CheckpointError(
            f"{config.checkpoint}: trained on images of renderer egl, which does not start here: install {EGL_PACKAGES}"
        )
    randomise = tuple(metadata["randomise"]) if config.randomise == "auto" else read_factors(config.randomise)
    env_options = {**policy.env_options, "randomise": randomise}
    with contextlib.ExitStack() as locks:
        logs = []
        for part in unplayed:
            locks.enter_context(lock_file(part.out / LOCK, f"{part.out}: another evaluation is at work in this folder"))
            world = {**env_options, "split": part.config.split}
            common = {"checkpoint_sha256": file.sha256, "sim_version": SIM_VERSION, "seed": config.seed, "world": world}
            logs.append(EpisodeLog(part.out, common))
            part.payload = {
                "settings": part.settings,
                "checkpoint": config.checkpoint,
                "steps": metadata["steps"],
                "renderer": renderer,
                "randomise": randomise,
                "split": part.config.split,
                "trained_split": metadata["split"],
                "sim_version": SIM_VERSION,
                "image_size": metadata["network"]["image_size"],
                "results": [],
                "data": [result.to_json() for result in data],
                "averages": [],
                "sharing": metadata["sharing"],
                "options": metadata.get("options", {}),
                "episodes": [],
            }
        try:
            for part, log in zip(unplayed, logs, strict=True):
                _play(part, file, tasks, {**env_options, "split": part.config.split}, log)
        except BaseException:
            _print_unfinished(unplayed, logs)
            raise
        payloads = [part.payload for part in parts if part.payload]
        print_table(payloads)  # first, because writing may fail
        for part in unplayed:
            assert part.payload is not None
            part.payload["averages"] = averages(_results(part.payload) + data)
            other = next((each for each in payloads if each is not part.payload), None)
            write_report(part.out, part.payload, part.films, other)
        for part, log in zip(unplayed, logs, strict=True):
            assert part.payload is not None
            log.finish()
            write_atomic(part.out / results.FILE, results.to_bytes(part.payload))  # last: it marks a complete one
    return unplayed[0].out / "report.html"


def _parts(config: EvalConfig) -> list[_Part]:
    """The splits to evaluate; the test split lies in a folder within that of the train split, unless it is alone and
    `out` names one."""
    folder, name = Path(config.checkpoint).parent, Path(config.checkpoint).stem
    if not (folder / RUN_CONFIG).is_file():
        folder = Path("runs", name)
    elif name != "last":
        folder /= name
    parts = []
    for split in SPLITS if config.split == BOTH else (config.split,):
        mine = replace(config, split=split)
        base = Path(config.out) if config.out else folder
        alone = config.out and config.split != BOTH
        out = base if split == "train" or alone else base / f"{split}-split"
        settings = {key: value for key, value in json.loads(json.dumps(asdict(mine))).items() if key not in UNBINDING}
        parts.append(_Part(config=mine, out=out, settings=settings))
    return parts


def _play(
    part: _Part, file: CheckpointFile, tasks: tuple[str, ...], env_options: dict[str, Any], log: EpisodeLog
) -> None:
    """Play every policy, and put results, episodes and films into the part."""
    assert part.payload is not None
    for name in part.config.policies:
        outcomes = _roll(part.config, name, file, tasks, env_options, log)
        part.payload["results"] += [result.to_json() for result in _summary(part.config, name, outcomes)]
        part.payload["episodes"] += [
            {
                "policy": name,
                "task": outcome.task,
                "number": outcome.number,
                "seed": part.config.seed,
                "success": outcome.success,
                "steps": outcome.steps,
            }
            for outcome in outcomes
        ]
        part.films += [outcome for outcome in outcomes if outcome.film]


def _summary(config: EvalConfig, policy: str, outcomes: list[EpisodeOutcome]) -> list[EvalResult]:
    return summarise(outcomes, policy, config.checkpoint if policy == "checkpoint" else None, config.seed)


def _finished(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The finished evaluation in `out`, if its settings and checkpoint are these."""
    path = out / results.FILE
    if not path.is_file() or not (out / "report.html").is_file():
        return None
    found = read_json(path)
    return found if found.get("settings") == settings else None


def _roll(
    config: EvalConfig,
    policy: str,
    file: CheckpointFile,
    tasks: tuple[str, ...],
    env_options: dict[str, Any],
    log: EpisodeLog,
) -> list[EpisodeOutcome]:
    """Play a policy's episodes; outcomes in order. Episodes in the log are not played again, except for a film."""
    acts = policy == "checkpoint"
    jobs = episode_jobs(tasks, config.episodes, config.seed, FILMED_EPISODES if acts else 0)
    keys = {(policy, job.task, job.number): job for job in jobs}
    left = [job for key, job in keys.items() if job.filmed or key not in log.outcomes]
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(left), unit="episode", desc=f"evaluate {policy}", smoothing=0.1)
    done = {key: log.outcomes[key].success for key in keys.keys() & log.outcomes.keys()}
    with bar, contextlib.closing(rollout(policy, file if acts else "", env_options, left, config.workers)) as outcomes:
        for outcome in outcomes:
            log.add(policy, outcome)
            done[policy, outcome.task, outcome.number] = outcome.success
            bar.update()
            bar.set_postfix_str(f"success {sum(done.values()) / len(done):.0%}", refresh=False)
    return sorted((log.outcomes[key] for key in keys), key=lambda o: (TASKS[o.task].index, o.number))


def _print_unfinished(parts: list[_Part], logs: list[EpisodeLog]) -> None:
    """Print the table of an interrupted evaluation."""
    payloads = []
    for part, log in zip(parts, logs, strict=True):
        rows: list[EvalResult] = []
        for name in part.config.policies:
            rows += _summary(part.config, name, [o for (policy, *_), o in log.outcomes.items() if policy == name])
        if rows:
            payloads.append({"split": part.config.split, "results": [row.to_json() for row in rows], "data": []})
    if payloads:
        print_table(payloads)
        print(f"{sum(len(log.outcomes) for log in logs)} episodes are kept: the same command goes on after them")


def data_success(replay: Replay, tasks: tuple[str, ...]) -> list[EvalResult]:
    """Success rate of the data: of the episodes that were collected for each task."""
    rows = []
    for name in tasks:
        index = TASKS[name].index
        own: NDArray[np.bool_] = replay.success[replay.episode_task == index, index]
        if len(own):
            values: dict[str, Any] = {"successes": int(own.sum()), "episodes": len(own), "seed": 0}
            rows.append(EvalResult(task=name, policy="data", checkpoint=None, wall_time_s=0.0, **values))
    return rows


def _results(payload: dict[str, Any]) -> list[EvalResult]:
    return [EvalResult.from_json(row) for row in payload["results"]]


def print_table(payloads: Sequence[dict[str, Any]]) -> None:
    """Print a row for each task and a column for each policy; of both splits, the seen and unseen looks of a policy
    side by side. `payloads`: contents of eval.json."""
    columns = []
    for policy in dict.fromkeys(row["policy"] for payload in payloads for row in payload["results"]):
        for payload in payloads:
            looks = f", {LOOKS[payload['split']]}" if len(payloads) > 1 else ""
            rows = [result for result in _results(payload) if result.policy == policy]
            columns += columns_of(rows, {policy: policy + looks})
    columns += columns_of([EvalResult.from_json(row) for row in payloads[0]["data"]])
    print(f"\nsuccess with its 95% interval\n{text_table(columns)}")
    if len(payloads) > 1:
        print(
            "seen, unseen: looks, tables and sizes of the train and of the test split; training never shows the latter"
        )


if __name__ == "__main__":
    sys.exit(main())
