"""The file eval.json of an evaluation: counts per task, and the outcome of every episode.

Layout of `episodes`: a line for each episode, {policy, task, number, seed, success, steps}. (task, number, seed) names
the scene: together with the split, the randomised factors and the version of the world it fixes what is on the table.
Files of earlier versions have counts only.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.files import DatasetError, read_json
from sim.tasks import TASKS

FILE = "eval.json"


def to_bytes(payload: dict[str, Any]) -> bytes:
    """Content of eval.json: indented, with one line for each of the `episodes`."""
    head = json.dumps({key: value for key, value in payload.items() if key != "episodes"}, indent=1)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in payload["episodes"])
    return f'{head[:-2]},\n "episodes": [\n{rows}\n ]\n}}\n'.encode()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One policy in one eval.json.

    `scenes`: what fixes the scene of an episode number: seed, split, factors, version of the world; "" where the file
    does not tell. `counts`: (successes, episodes) by task. `outcomes`: success by task and episode number; empty for
    files of earlier versions. `fingerprint`: SHA-256 of the checkpoint (the path of a file that lacks it), or the name
    of another policy."""

    path: Path
    policy: str
    rule: str
    steps: int | None
    fingerprint: str
    scenes: str
    counts: dict[str, tuple[int, int]]
    outcomes: dict[str, dict[int, bool]]


def find(path: Path) -> Path:
    """The eval.json that `path` is, or that the folder `path` holds."""
    found = path / FILE if path.is_dir() else path
    if not found.is_file():
        raise ValueError(f"{path}: no {FILE} here; `python -m eval --checkpoint ...` writes one into the run's folder")
    return found


def read_run(path: Path, policy: str = "checkpoint") -> Run:
    """Read the results of a policy from an eval.json or a run's folder; ValueError names the file and what is wrong."""
    path = find(path)
    payload = read_json(path)
    if "members" in payload:
        raise ValueError(f"{path}: returns of a state benchmark; python -m eval.tables shows these")
    try:
        policies = list(dict.fromkeys(row["policy"] for row in payload["results"]))
        rows = [row for row in payload["results"] if row["policy"] == policy]
        if not rows:
            raise ValueError(f"{path}: holds no results of policy {policy!r}, but of {', '.join(policies)}")
        outcomes: dict[str, dict[int, bool]] = defaultdict(dict)
        for row in payload.get("episodes", ()):
            if row["policy"] == policy:
                outcomes[row["task"]][int(row["number"])] = bool(row["success"])
        settings = payload.get("settings", {})
        sha256 = settings.get("checkpoint_sha256")
        world = {key: payload.get(key) for key in ("split", "sim_version")}
        factors = sorted(payload["randomise"]) if "randomise" in payload else None
        seed = rows[0].get("seed", settings.get("seed"))
        run = Run(
            path=path,
            policy=policy,
            rule=str(payload.get("sharing", {}).get("rule", "")),
            steps=payload.get("steps"),
            fingerprint=(sha256 or str(path.resolve())) if policy == "checkpoint" else policy,
            scenes=json.dumps({"seed": seed, **world, "randomise": factors}) if outcomes else "",
            counts={row["task"]: (int(row["successes"]), int(row["episodes"])) for row in rows},
            outcomes=dict(outcomes),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: no results of `python -m eval` ({type(error).__name__}: {error})") from error
    _check(run)
    return run


def _check(run: Run) -> None:
    """ValueError where counts are impossible, or episodes are not those that were counted."""
    for task, (successes, episodes) in run.counts.items():
        if task not in TASKS:
            raise DatasetError(f"{run.path}: unknown task {task!r}")
        if not 0 <= successes <= episodes or episodes == 0:
            raise DatasetError(f"{run.path}: {task}: {successes} successes in {episodes} episodes")
        if run.outcomes:
            played = run.outcomes.get(task, {})
            if (sum(played.values()), len(played)) != (successes, episodes):
                raise DatasetError(
                    f"{run.path}: {task}: counts {successes} successes in {episodes} episodes, but lists "
                    f"{sum(played.values())} in {len(played)}"
                )
