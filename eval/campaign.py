"""`python -m eval.campaign --pack runs/NAME/pack`: play the policies of a campaign (train/campaign.py), and one table.

Policies on images are played in the pick-place world, those on states in their benchmark. Stopped anywhere, the same
command goes on: finished evaluations are left as they are.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim.files import read_json, sha256, write_atomic
from sim.options import Parser, add_options, check_least, from_options, option, run_command

TABLE = "campaign.json"
TRAINING, IMAGE_POLICY, STATE_POLICY = "training.json", "policy.ckpt", "policy.pt"  # of a training in the pack


@dataclass(frozen=True, kw_only=True)
class PlayConfig:
    """Every option of `python -m eval.campaign`."""

    pack: str = field(metadata={"help": "folder of the files of a campaign"})
    out: str = option("", "folder of the results; default: beside the pack")
    episodes: int = option(50, "of each task, on images; of each member and task, on states")
    workers: int = option(len(os.sched_getaffinity(0)), "processes")

    def __post_init__(self) -> None:
        check_least(self, 1, "episodes", "workers")


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.campaign", description=__doc__)
    add_options(parser, PlayConfig)
    options = vars(parser.parse_args(arguments))
    return run_command(lambda: play(from_options(PlayConfig, options)))


def play(config: PlayConfig) -> None:
    """Unpack, play, and write the table."""
    packs = sorted(Path(config.pack).glob("campaign-*.tar"))
    if not packs:
        raise ValueError(f"{config.pack}: holds no campaign-*.tar")
    out = Path(config.out or Path(config.pack).parent / "played")
    out.mkdir(parents=True, exist_ok=True)
    for path in packs:
        try:
            with tarfile.open(path) as tar:
                tar.extractall(out, filter="data")
        except tarfile.TarError as error:
            raise ValueError(f"{path}: damaged: {error}") from error
    rows = [_played(folder, config) for folder in sorted(out.iterdir()) if (folder / TRAINING).is_file()]
    if not rows:
        raise ValueError(f"{config.pack}: holds no finished training")
    write_atomic(out / TABLE, json.dumps(rows, indent=1).encode())
    width = max(len(row["name"]) for row in rows) + 2
    for row in rows:
        print(row["name"].ljust(width) + "  ".join(f"{key} {value:.4g}" for key, value in row["results"].items()))
    print(f"{out / TABLE}: {len(rows)} trainings")


def _played(folder: Path, config: PlayConfig) -> dict[str, Any]:
    about = read_json(folder / TRAINING)
    images, states = folder / IMAGE_POLICY, folder / STATE_POLICY
    return about | {"results": _on_images(images, config) if images.is_file() else _on_states(states, config)}


def _on_images(policy: Path, config: PlayConfig) -> dict[str, float]:
    """Success rates: the averages of lifts and places, and of each task."""
    from eval.__main__ import EvalConfig, evaluate

    folder = policy.parent / "eval"
    evaluate(
        EvalConfig(
            checkpoint=str(policy),
            out=str(folder),
            policies=("checkpoint",),
            episodes=config.episodes,
            workers=config.workers,
            reuse=True,
        )
    )
    found = read_json(folder / "eval.json")
    rows = [*found["averages"], *found["results"]]
    return {row["task"]: row["successes"] / row["episodes"] for row in rows if row["policy"] == "checkpoint"}


def _on_states(policy: Path, config: PlayConfig) -> dict[str, float]:
    """Mean return, or success rate, of each member at each task."""
    from eval.returns import EVALUATION_SEED, evaluate
    from models.policy_files import load_policies

    path, digest = policy.parent / "returns.json", sha256(policy)  # of the training itself, where it could play
    if not path.is_file() or read_json(path)["episodes"] != config.episodes:
        path = policy.parent / f"played-{config.episodes}.json"
        if not path.is_file() or read_json(path)["policy"] != digest:
            results = evaluate(load_policies(policy), config.episodes, EVALUATION_SEED, config.workers)
            write_atomic(path, json.dumps({**results.to_json(), "policy": digest}, indent=1).encode())
    members = read_json(path)["members"]
    return {
        f"{member['name']} {task}": sum(values) / len(values)
        for member in members
        for task, values in member.get("success", member["returns"]).items()
    }


if __name__ == "__main__":
    sys.exit(main())
