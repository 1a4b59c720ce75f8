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
from eval.intervals import wilson
from eval.played import Played
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
FILMED_EPISODES = 2  # of each task, shown in the report
UNBINDING = ("checkpoint", "data", "out", "workers", "reuse")  # options: files bind results by their content


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Every option of `python -m eval`."""

    checkpoint: str = field(metadata={"help": "what to evaluate"})
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
    reuse: bool = option(False, "print an evaluation that is already there")
    data: str = option("", "its dataset, to show the data's own success")

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
    """Roll out every policy on every task, print the table, write eval.json and report.html; returns the report.

    One that was stopped goes on after the episodes it played."""
    file = CheckpointFile.of(config.checkpoint)
    policy = CEMPolicy.load(file, None if config.renderer == "auto" else config.renderer)
    about, renderer = policy.about, policy.about["renderer"]
    tasks = config.tasks or tuple(about["trained_tasks"])
    untrained = [name for name in tasks if name not in about["trained_tasks"]]
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
    settings["steps"], settings["checkpoint_sha256"] = about["steps"], file.sha256
    data: list[EvalResult] = []
    if config.data:
        replay = Replay(config.data)
        replay.require(about["network"]["image_size"], renderer)
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
    randomise = tuple(about["randomise"]) if config.randomise == "auto" else read_factors(config.randomise)
    world = {**policy.world, "randomise": randomise, "split": config.split}
    common = {"checkpoint_sha256": file.sha256, "sim_version": SIM_VERSION, "seed": config.seed, "world": world}
    with lock_file(out / LOCK, f"{out}: another evaluation is at work in this folder"):
        played = Played(out, common)
        results, films = _play(config, file, tasks, world, played)
        print_table(results + data)  # first: it may be that nothing can be written any more
        payload = {
            "settings": settings,
            "checkpoint": config.checkpoint,
            "steps": about["steps"],
            "renderer": renderer,
            "randomise": randomise,
            "split": config.split,
            "trained_split": about["split"],
            "image_size": about["network"]["image_size"],
            "results": [result.to_json() for result in results],
            "data": [result.to_json() for result in data],
            "averages": averages(results + data),
            "sharing": about["sharing"],
        }
        report = write_report(out, payload, films)
        played.finish()
        write_atomic(out / "eval.json", json.dumps(payload, indent=1).encode())  # last: it says that all is there
    return report


def _play(
    config: EvalConfig, file: CheckpointFile, tasks: tuple[str, ...], world: dict[str, Any], played: Played
) -> tuple[list[EvalResult], list[EpisodeOutcome]]:
    """The results of every policy, and the episodes with a film. Stopped or failed, it prints the table of what was
    played."""
    results: list[EvalResult] = []
    films: list[EpisodeOutcome] = []
    try:
        for name in config.policies:
            outcomes = _roll(config, name, file, tasks, world, played)
            results += summarise(outcomes, name, config.checkpoint if name == "checkpoint" else None, config.seed)
            films += [outcome for outcome in outcomes if outcome.film]
    except BaseException:
        _print_played(config, played)
        raise
    return results, films


def _finished(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The evaluation that lies in `out`, if it was made with these settings of this checkpoint."""
    path = out / "eval.json"
    if not path.is_file() or not (out / "report.html").is_file():
        return None
    found = read_json(path)
    return found if found.get("settings") == settings else None


def _roll(
    config: EvalConfig, policy: str, file: CheckpointFile, tasks: tuple[str, ...], world: dict[str, Any], played: Played
) -> list[EpisodeOutcome]:
    """The policy's episodes, in order. Those that were played before are not played again, but for a film."""
    acts = policy == "checkpoint"
    jobs = episode_jobs(tasks, config.episodes, config.seed, FILMED_EPISODES if acts else 0)
    keys = {(policy, job.task, job.number): job for job in jobs}
    left = [job for key, job in keys.items() if job.filmed or key not in played.outcomes]
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(left), unit="episode", desc=f"evaluate {policy}", smoothing=0.1)
    done = {key: played.outcomes[key].success for key in keys.keys() & played.outcomes.keys()}
    with bar, contextlib.closing(rollout(policy, file if acts else "", world, left, config.workers)) as outcomes:
        for outcome in outcomes:
            played.add(policy, outcome)
            done[policy, outcome.task, outcome.number] = outcome.success
            bar.update()
            bar.set_postfix_str(f"success {sum(done.values()) / len(done):.0%}", refresh=False)
    return sorted((played.outcomes[key] for key in keys), key=lambda o: (TASKS[o.task].index, o.number))


def _print_played(config: EvalConfig, played: Played) -> None:
    """The table of an evaluation that does not end."""
    results: list[EvalResult] = []
    for name in config.policies:
        mine = [outcome for (policy, *_), outcome in played.outcomes.items() if policy == name]
        results += summarise(mine, name, config.checkpoint if name == "checkpoint" else None, config.seed)
    if results:
        print_table(results)
        print(f"{len(played.outcomes)} episodes are kept: the same command goes on after them")


def data_success(replay: Replay, tasks: tuple[str, ...]) -> list[EvalResult]:
    """The success of the episodes that were collected for each task, in the form of a policy's result."""
    results = []
    for name in tasks:
        index = TASKS[name].index
        own: NDArray[np.bool_] = replay.success[replay.episode_task == index, index]
        if len(own):
            values: dict[str, Any] = {"successes": int(own.sum()), "episodes": len(own), "seed": 0}
            results.append(EvalResult(task=name, policy="data", checkpoint=None, wall_time_s=0.0, **values))
    return results


def averages(results: list[EvalResult]) -> list[dict[str, Any]]:
    """Of each policy: a skill's tasks pooled, and all."""
    rows = []
    for group in (*dict.fromkeys(SKILLS), "all"):
        for policy in dict.fromkeys(result.policy for result in results):
            mine = [r for r in results if r.policy == policy and group in ("all", TASKS[r.task].skill)]
            if mine:
                won, episodes = sum(r.successes for r in mine), sum(r.episodes for r in mine)
                low, high = wilson(won, episodes)
                name = f"average of {group}"
                rows.append(
                    {"task": name, "policy": policy, "successes": won, "episodes": episodes, "low": low, "high": high}
                )
    return rows


def print_table(results: list[EvalResult]) -> None:
    print(f"\n{'task':<22}{'policy':<12}{'success':>9}{'95% interval':>18}{'episodes':>10}")
    for row in [*(result.to_json() for result in results), *averages(results)]:
        rate, interval = row["successes"] / row["episodes"], f"{row['low']:.1%} - {row['high']:.1%}"
        print(f"{row['task']:<22}{row['policy']:<12}{rate:>9.1%}{interval:>18}{row['episodes']:>10}")


if __name__ == "__main__":
    sys.exit(main())
