"""`python -m data view`: one self-contained page of episodes, to be looked through frame by frame."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data import codec
from data.replay import Replay
from sim.actions import BOUNDS, COMMANDS
from sim.files import check_writable, write_atomic
from sim.tasks import TASK_NAMES, TASKS

PAGE = Path(__file__).with_name("view.html")
SHOWN_PX = 256  # larger frames are shown smaller: the page holds all of them
OUTCOMES = ("all", "success", "failure")


def view(replay: Replay, out: Path, episodes: int, tasks: tuple[str, ...], outcome: str) -> int:
    """Write the page of at most so many episodes, the tasks and outcomes taking turns; returns how many it shows.

    ValueError where there is none to show, OSError where no page can be written."""
    check_writable(out)
    if not (chosen := choose_episodes(replay, episodes, tasks, outcome)):
        raise ValueError(f"{replay.folder}: no episode of outcome {outcome} among {', '.join(tasks)}")
    count, rate = replay.num_episodes, replay.own_success.mean()
    page = {
        "title": str(replay.folder),
        "about": f"{len(chosen)} of {count} episodes ({rate:.0%} of those succeed), the tasks and outcomes in turn; "
        f"{replay.frame_size} px, {replay.renderer}",
        "tasks": list(TASK_NAMES),
        "commands": list(COMMANDS),
        "bounds": [round(float(bound), 4) for bound in BOUNDS],
        "episodes": [_episode(replay, episode) for episode in chosen],
    }
    text = json.dumps(page).replace("</", "<\\/")  # nothing in it can end the script
    write_atomic(out, PAGE.read_text(encoding="utf-8").replace("/*PAGE*/ null", text).encode())
    return len(chosen)


def choose_episodes(replay: Replay, count: int, tasks: tuple[str, ...], outcome: str) -> list[int]:
    """The first episodes of each task and outcome in turn, so that a short page still shows every kind."""
    own = replay.own_success
    groups = []
    for name in tasks:
        for won in (True, False):
            if outcome in ("all", "success" if won else "failure"):
                groups.append(np.flatnonzero((replay.episode_task == TASKS[name].index) & (own == won)).tolist())
    longest = max((len(group) for group in groups), default=0)
    turns = [group[n] for n in range(longest) for group in groups if n < len(group)]
    return sorted(turns[:count])


def _episode(replay: Replay, episode: int) -> dict[str, Any]:
    frames = replay.read(replay.frames_of(episode))
    task = int(replay.episode_task[episode])
    return {
        "number": episode,
        "task": task,
        "success": bool(replay.success[episode, task]),
        "policy": replay.shards[replay.episode_shard[episode]].row.policy,
        "actions": [[round(float(v), 4) for v in frame.action] for frame in frames[:-1]],
        "verdicts": ["".join("1" if v else "0" for v in frame.verdict) for frame in frames],
        "frames": [_shown(frame.picture) for frame in frames],
    }


def _shown(picture: bytes) -> str:
    """A picture as a data URI, shrunk to what the page shows."""
    if not codec.is_jpeg(picture) or Image.open(io.BytesIO(picture)).width > SHOWN_PX:
        image = Image.fromarray(codec.decode(picture))
        image.thumbnail((SHOWN_PX, SHOWN_PX))
        picture = codec.encode(np.array(image), quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()
