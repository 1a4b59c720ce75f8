"""`python -m data view`: a self-contained HTML page to browse episodes frame by frame."""

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
SHOWN_PX = 256  # larger frames are downscaled: the page embeds all of them
OUTCOMES = ("all", "success", "failure")


def view(replay: Replay, out: Path, episodes: int, tasks: tuple[str, ...], outcome: str) -> int:
    """Write a page of at most `episodes` episodes, alternating tasks and outcomes; returns how many it shows.

    ValueError if there is none to show, OSError if the page cannot be written."""
    check_writable(out)
    if not (chosen := choose_episodes(replay, episodes, tasks, outcome)):
        raise ValueError(f"{replay.folder}: no episode of outcome {outcome} among {', '.join(tasks)}")
    count, rate = replay.num_episodes, replay.own_success.mean()
    page = {
        "title": str(replay.folder),
        "summary": f"{len(chosen)} of {count} episodes ({rate:.0%} of those succeed), the tasks and outcomes in turn; "
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
    """First episodes of each (task, outcome) group, round-robin, so that a short page shows every group."""
    own = replay.own_success
    groups = []
    for name in tasks:
        for success in (True, False):
            if outcome in ("all", "success" if success else "failure"):
                groups.append(np.flatnonzero((replay.episode_task == TASKS[name].index) & (own == success)).tolist())
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
        "policy": replay.shards[replay.episode_shard[episode]].entry.policy,
        "actions": [[round(float(v), 4) for v in frame.action] for frame in frames[:-1]],
        "verdicts": ["".join("1" if v else "0" for v in frame.verdict) for frame in frames],
        "frames": [_data_uri(frame.image) for frame in frames],
    }


def _data_uri(encoded: bytes) -> str:
    """A frame as a JPEG data URI of at most SHOWN_PX a side."""
    if not codec.is_jpeg(encoded) or Image.open(io.BytesIO(encoded)).width > SHOWN_PX:
        image = Image.fromarray(codec.decode(encoded))
        image.thumbnail((SHOWN_PX, SHOWN_PX))
        encoded = codec.encode(np.array(image), quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode()
