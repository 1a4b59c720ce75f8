"""`python -m train qtopt-online --task lift-can`: QT-Opt's online loop for one task (sec. 4.3).

A round collects episodes, adds them to the replay buffer, trains on all of it, and evaluates. The crude policy collects
in the first round, then the trained policy of the round before, with epsilon-greedy exploration. The loop ends when the
evaluation passes a threshold, by default that of the CDS paper: 40% for lifts, 80% for places (app. C.2). The buffer is
then the task's part of a multi-task dataset (`python -m data merge`). After an interruption, the same command resumes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data.collect import collect
from data.locks import lock_file
from data.manifest import merge
from data.plan import CollectConfig
from data.shards import successes
from eval.intervals import wilson
from eval.policy import CEMPolicy, exploring
from eval.rollout import episode_jobs, rollout
from models.checkpoint import CheckpointError, CheckpointFile
from sim.files import is_nonempty, read_json, remove_temporaries, write_atomic
from sim.options import (
    MAX_SEED,
    Parser,
    add_options,
    changed,
    check_choice,
    check_fraction,
    check_least,
    from_options,
    option,
)
from sim.scenes import FACTORS, read_factors
from sim.tasks import task_by_name
from train.qtopt_config import PRESETS
from train.qtopt_run import train

STATE = "online.json"
LOCK = "online.lock"
THRESHOLDS = {"lift": 0.4, "place": 0.8}
EVALUATION_SEED = 1000  # collection has other seeds
ROUND_SEEDS = 1000  # seeds per loop, one for the collection of each round
FREE_TO_CHANGE = ("out", "rounds", "threshold", "workers")


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """Every option of `python -m train qtopt-online`."""

    task: str = field(metadata={"help": "task to learn"})
    out: str = option("", "folder of the loop; default runs/online-TASK")
    preset: str = option("online", f"of the training: {', '.join(PRESETS)}")
    rounds: int = option(20, "maximum number of rounds")
    first_episodes: int = option(400, "of the crude policy, in the first round")
    noise: float = option(1.0, "of the crude policy's motion")
    episodes: int = option(100, "of each later round")
    epsilon: float = option(0.2, "probability of a random action in later rounds")
    steps: int = option(600, "gradient steps a round")
    evaluations: int = option(50, "evaluation episodes a round")
    threshold: float = option(0.0, "success rate that ends the loop; 0: 0.4 for a lift, 0.8 for a place")
    randomise: str = option("all", f"all, none, or some of {', '.join(FACTORS)}")
    renderer: str = option("auto", "of all episodes")
    seed: int = option(0, "of everything")
    workers: int = option(len(os.sched_getaffinity(0)), "processes")

    def __post_init__(self) -> None:
        task_by_name(self.task)
        check_choice("preset", self.preset, tuple(PRESETS))
        read_factors(self.randomise)
        check_least(self, 1, "rounds", "first_episodes", "episodes", "steps", "evaluations", "workers")
        check_fraction(self, "epsilon", "threshold")
        check_least(self, 0, "seed", "noise")
        for name, most in (("seed", MAX_SEED // ROUND_SEEDS), ("rounds", ROUND_SEEDS)):
            if getattr(self, name) > most:
                raise ValueError(
                    f"{name} is at most {most}, for each round has a seed of its own; got {getattr(self, name)}"
                )

    @property
    def folder(self) -> Path:
        return Path(self.out or f"runs/online-{self.task}")

    @property
    def goal(self) -> float:
        return self.threshold or THRESHOLDS[task_by_name(self.task).skill]


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m train qtopt-online", description=__doc__)
    add_options(parser, OnlineConfig)
    learn(from_options(OnlineConfig, vars(parser.parse_args(arguments))))


def learn(config: OnlineConfig) -> list[dict[str, Any]]:
    """Run rounds until the threshold or their maximum number; returns the record of each."""
    folder = config.folder
    with lock_file(folder / LOCK, f"{folder}: another loop is at work in this folder"):
        rounds = _learn(config, folder)
    if rounds[-1]["success"] >= config.goal:
        end = f"passes {config.goal:.0%}; its replay buffer is {folder / 'buffer'}"
    else:
        end = f"after {len(rounds)} rounds; more --rounds go on"
    print(f"{config.task}: {rounds[-1]['success']:.0%} {end}")
    return rounds


def _learn(config: OnlineConfig, folder: Path) -> list[dict[str, Any]]:
    rounds = _claim(folder, config)
    while len(rounds) < config.rounds and not (rounds and rounds[-1]["success"] >= config.goal):
        rounds.append(_round(config, folder, len(rounds), rounds))
        print_table(rounds)
        _write(folder, config, rounds)
    return rounds


def _claim(folder: Path, config: OnlineConfig) -> list[dict[str, Any]]:
    """Records of the finished rounds; refuses a folder of another loop."""
    remove_temporaries(folder)
    path = folder / STATE
    if not path.is_file():
        if is_nonempty(folder, LOCK):
            raise CheckpointError(f"{folder}: not empty and not a loop of qtopt-online (it has no {STATE})")
        _write(folder, config, [])
        return []
    found = read_json(path)
    if not {"config", "rounds"} <= found.keys():
        raise CheckpointError(f"{path}: damaged, an entry is missing")
    if differs := changed(found["config"], dataclasses.asdict(config), FREE_TO_CHANGE):
        raise CheckpointError(f"{folder}: already holds a loop with other options: {differs}")
    rounds: list[dict[str, Any]] = found["rounds"]
    return rounds


def _write(folder: Path, config: OnlineConfig, rounds: list[dict[str, Any]]) -> None:
    write_atomic(
        folder / STATE, json.dumps({"config": dataclasses.asdict(config), "rounds": rounds}, indent=1).encode()
    )


def _round(config: OnlineConfig, folder: Path, number: int, before: list[dict[str, Any]]) -> dict[str, Any]:
    begin = time.perf_counter()
    parts = [folder / f"round-{n:03d}" for n in range(number + 1)]
    manifest = collect(_collection(config, folder, number), exploring)
    task = task_by_name(config.task)
    num_successes = sum(success for row in manifest.shards for success in successes(row, task.index))
    collected_s = time.perf_counter() - begin
    buffer = folder / "buffer"
    merged = merge(buffer, parts, replace_manifest=True)
    checkpoint = train(
        replace(
            PRESETS[config.preset],
            data=str(buffer),
            out=str(folder / "policy"),
            tasks=(config.task,),
            steps=config.steps * (number + 1),
            lr_decay=False,  # it would span the steps of one round only
            seed=config.seed,
        )
    )
    trained_s = time.perf_counter() - begin - collected_s
    file = CheckpointFile.of(checkpoint)
    env_options = CEMPolicy.load(file).env_options
    jobs = episode_jobs([config.task], config.evaluations, EVALUATION_SEED + number)
    num_passed = sum(outcome.success for outcome in rollout("checkpoint", file, env_options, jobs, config.workers))
    (folder / "policies").mkdir(exist_ok=True)
    write_atomic(_policy(folder, number), file.content)  # the next round collects with this one
    return {
        "collected": manifest.episodes,
        "collected_success": num_successes / manifest.episodes,
        "episodes": merged.episodes,
        "steps": config.steps * (number + 1),
        "successes": num_passed,
        "evaluations": config.evaluations,
        "success": num_passed / config.evaluations,
        "collect_s": collected_s,
        "train_s": trained_s,
        "total_s": time.perf_counter() - begin + (before[-1]["total_s"] if before else 0.0),
    }


def _policy(folder: Path, number: int) -> Path:
    """Checkpoint at the end of a round."""
    return folder / "policies" / f"round-{number:03d}.ckpt"


def _collection(config: OnlineConfig, folder: Path, number: int) -> CollectConfig:
    acting: dict[str, Any] = {"policy": "crude", "noise": config.noise, "episodes": config.first_episodes}
    if number:
        acting = {
            "policy": "checkpoint",
            "checkpoint": str(_policy(folder, number - 1)),
            "noise": config.epsilon,
            "episodes": config.episodes,
        }
    return CollectConfig(
        out=str(folder / f"round-{number:03d}"),
        tasks=(config.task,),
        size=PRESETS[config.preset].image_size,
        seed=config.seed * ROUND_SEEDS + number,
        randomise=config.randomise,
        renderer=config.renderer,
        workers=config.workers,
        episodes_per_shard=10,
        **acting,
    )


def print_table(rounds: list[dict[str, Any]]) -> None:
    print(
        f"\n{'round':>5}{'episodes':>10}{'collected':>11}{'steps':>8}{'success':>9}{'95% interval':>17}{'minutes':>9}"
    )
    for number, r in enumerate(rounds):
        low, high = wilson(r["successes"], r["evaluations"])
        interval = f"{low:.1%} - {high:.1%}"
        print(
            f"{number:>5}{r['episodes']:>10}{r['collected_success']:>11.1%}{r['steps']:>8}{r['success']:>9.1%}"
            f"{interval:>17}{r['total_s'] / 60:>9.1f}"
        )
    sys.stdout.flush()
