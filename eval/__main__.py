"""`python -m eval --checkpoint runs/demo/last.ckpt`: success rates in the simulator, JSON, and the HTML report."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.locks import lock_file
from data.replay import Replay
from eval.episode_log import EpisodeLog
from eval.intervals import wilson
from eval.policy import CEMPolicy
from eval.report import write_report
from eval.rollout import POLICIES, EpisodeOutcome, EvalResult, episode_jobs, rollout, summarise
from models.checkpoint import RUN_CONFIG, CheckpointError, CheckpointFile
from sim.appearances import SPLITS
from sim.drawing import RENDERERS
from sim.files import read_json, write_atomic
from sim.options import Parser, add_options, check_choice, check_least, check_seed, from_options, option, run_command
from sim.scenes import FACTORS, read_factors
from sim.state import SIM_VERSION
from sim.tasks import SKILLS, TASKS, check_tasks

LOCK = "eval.lock"  # held while episodes are played
FILMED_EPISODES = 2  # per task, shown in the report
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
    split: str = option("train", f"of {', '.join(SPLITS)}: test has looks and sizes that train never shows")
    reuse: bool = option(False, "print the results of an identical finished evaluation")
    data: str = option("", "its training dataset, to report the data's own success rate")

    def __post_init__(self) -> None:
        if self.tasks:
            check_tasks(self.tasks)
        for name in self.policies:
            check_choice("policy", name, tuple(POLICIES))
        check_choice("renderer", self.renderer, RENDERERS)
        check_choice("split", self.split, SPLITS)
        if self.randomise != "auto":
            read_factors(self.randomise)
        check_least(self, 1, "episodes", "workers")
        check_seed(self, "seed")


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m eval", description=__doc__)
    add_options(parser, EvalConfig)
    options = vars(parser.parse_args(arguments))
    return run_command(lambda: print(f"report: {evaluate(from_options(EvalConfig, options))}"))


def evaluate(config: EvalConfig) -> Path:
    """Roll out every policy on every task, print the table, write eval.json and report.html; returns the report's path.

    An interrupted evaluation resumes after the episodes it played."""
    file = CheckpointFile.of(config.checkpoint)
    policy = CEMPolicy.load(file, None if config.renderer == "auto" else config.renderer)
    metadata, renderer = policy.metadata, policy.metadata["renderer"]
    tasks = config.tasks or tuple(metadata["trained_tasks"])
    untrained = [name for name in tasks if name not in metadata["trained_tasks"]]
    if untrained:
        raise CheckpointError(f"{config.checkpoint}: never trained for {', '.join(untrained)}")
    folder, name = Path(config.checkpoint).parent, Path(config.checkpoint).stem
    if not (folder / RUN_CONFIG).is_file():
        folder = Path("runs", name)
    elif name != "last":
        folder /= name
    out = Path(config.out or (folder if config.split == "train" else folder / f"{config.split}-split"))
    out.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in json.loads(json.dumps(asdict(config))).items() if key not in UNBINDING}
    settings["steps"], settings["checkpoint_sha256"] = metadata["steps"], file.sha256
    settings["sim_version"] = SIM_VERSION
    if metadata["sim_version"] != SIM_VERSION:
        print(
            f"{config.checkpoint}: trained in world {metadata['sim_version']}, played in world {SIM_VERSION}, whose "
            "train split has other appearances"
        )
    data: list[EvalResult] = []
    if config.data:
        replay = Replay(config.data)
        replay.require(metadata["network"]["image_size"], renderer)
        settings["episodes_sha256"] = hashlib.sha256(np.sort(replay.episode_key).tobytes()).hexdigest()
        data = data_success(replay, tasks)
    if config.reuse and (found := _finished(out, settings)):
        print(f"{out / 'eval.json'} (already there)")
        print_table([EvalResult.from_json(row) for row in found["results"] + found["data"]])
        return out / "report.html"
    from sim.camera import EGL_PACKAGES, resolve_renderer  # imports PyBullet

    if renderer == "egl" and resolve_renderer("auto") != renderer:
        raise CheckpointError(
            f"{config.checkpoint}: trained on images of renderer egl, which does not start here: install {EGL_PACKAGES}"
        )
    randomise = tuple(metadata["randomise"]) if config.randomise == "auto" else read_factors(config.randomise)
    env_options = {**policy.env_options, "randomise": randomise, "split": config.split}
    common = {"checkpoint_sha256": file.sha256, "sim_version": SIM_VERSION, "seed": config.seed, "world": env_options}
    with lock_file(out / LOCK, f"{out}: another evaluation is at work in this folder"):
        log = EpisodeLog(out, common)
        results, films = _play(config, file, tasks, env_options, log)
        print_table(results + data)  # first, because writing may fail
        payload = {
            "settings": settings,
            "checkpoint": config.checkpoint,
            "steps": metadata["steps"],
            "renderer": renderer,
            "randomise": randomise,
            "split": config.split,
            "trained_split": metadata["split"],
            "image_size": metadata["network"]["image_size"],
            "results": [result.to_json() for result in results],
            "data": [result.to_json() for result in data],
            "averages": averages(results + data),
            "sharing": metadata["sharing"],
        }
        report = write_report(out, payload, films)
        log.finish()
        write_atomic(out / "eval.json", json.dumps(payload, indent=1).encode())  # last: it marks a complete evaluation
    return report


def _play(
    config: EvalConfig, file: CheckpointFile, tasks: tuple[str, ...], env_options: dict[str, Any], log: EpisodeLog
) -> tuple[list[EvalResult], list[EpisodeOutcome]]:
    """Results of every policy, and the filmed episodes. On an error or interruption it prints the table so far."""
    results: list[EvalResult] = []
    films: list[EpisodeOutcome] = []
    try:
        for name in config.policies:
            outcomes = _roll(config, name, file, tasks, env_options, log)
            results += summarise(outcomes, name, config.checkpoint if name == "checkpoint" else None, config.seed)
            films += [outcome for outcome in outcomes if outcome.film]
    except BaseException:
        _print_unfinished(config, log)
        raise
    return results, films


def _finished(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The finished evaluation in `out`, if its settings and checkpoint are these."""
    path = out / "eval.json"
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


def _print_unfinished(config: EvalConfig, log: EpisodeLog) -> None:
    """Print the table of an interrupted evaluation."""
    results: list[EvalResult] = []
    for name in config.policies:
        outcomes = [outcome for (policy, *_), outcome in log.outcomes.items() if policy == name]
        results += summarise(outcomes, name, config.checkpoint if name == "checkpoint" else None, config.seed)
    if results:
        print_table(results)
        print(f"{len(log.outcomes)} episodes are kept: the same command goes on after them")


def data_success(replay: Replay, tasks: tuple[str, ...]) -> list[EvalResult]:
    """Success rate of the data: of the episodes that were collected for each task."""
    results = []
    for name in tasks:
        index = TASKS[name].index
        own: NDArray[np.bool_] = replay.success[replay.episode_task == index, index]
        if len(own):
            values: dict[str, Any] = {"successes": int(own.sum()), "episodes": len(own), "seed": 0}
            results.append(EvalResult(task=name, policy="data", checkpoint=None, wall_time_s=0.0, **values))
    return results


def averages(results: list[EvalResult]) -> list[dict[str, Any]]:
    """Success of each policy, pooled over the tasks of a skill and over all tasks."""
    rows = []
    for group in (*dict.fromkeys(SKILLS), "all"):
        for policy in dict.fromkeys(result.policy for result in results):
            pooled = [r for r in results if r.policy == policy and group in ("all", TASKS[r.task].skill)]
            if pooled:
                successes, episodes = sum(r.successes for r in pooled), sum(r.episodes for r in pooled)
                low, high = wilson(successes, episodes)
                name = f"average of {group}"
                values = {"successes": successes, "episodes": episodes, "low": low, "high": high}
                rows.append({"task": name, "policy": policy, **values})
    return rows


def print_table(results: list[EvalResult]) -> None:
    print(f"\n{'task':<22}{'policy':<12}{'success':>9}{'95% interval':>18}{'episodes':>10}")
    for row in [*(result.to_json() for result in results), *averages(results)]:
        rate, interval = row["successes"] / row["episodes"], f"{row['low']:.1%} - {row['high']:.1%}"
        print(f"{row['task']:<22}{row['policy']:<12}{rate:>9.1%}{interval:>18}{row['episodes']:>10}")


if __name__ == "__main__":
    sys.exit(main())
