"""Films of scripted episodes, captioned with the detected successes, and contact sheets of scenes."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sim.actions import COMMANDS
from sim.appearances import SPLITS
from sim.benchmarks.films import ActAlone, film
from sim.benchmarks.spec import Benchmark
from sim.benchmarks.table import benchmark_by_name
from sim.drawing import RENDERERS
from sim.files import check_writable, write_atomic
from sim.film_files import FILM_PAUSE_MS, FORMATS, captioned, encoded, write_film
from sim.options import check_choice, check_least, check_seed, option
from sim.policies import CrudePolicy, Policy, RandomPolicy, ScriptedPolicy
from sim.scenes import FACTORS
from sim.tasks import TASK_NAMES, task_by_name

if TYPE_CHECKING:
    from PIL import Image

POLICIES: dict[str, type[Policy]] = {"scripted": ScriptedPolicy, "crude": CrudePolicy, "random": RandomPolicy}
SHEET_FORMATS = (".jpg", ".png", ".webp")
LARGEST_PX = 2048


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    task: str = option("", f"of {', '.join(TASK_NAMES)} (default lift-can), or of the benchmark")
    benchmark: str = option("", "a state benchmark, played by its controller (policy scripted) or at random")
    policy: str = option("scripted", f"of {', '.join(POLICIES)}")
    seed: int = option(0, "of the first scene")
    episodes: int = option(1, "one after another, with consecutive seeds")
    size: int = option(472, "px")
    out: str = option("", f"the file, of {', '.join(FORMATS)}; default runs/watch/TASK-POLICY-SEED.gif")
    randomise: str = option("all", f"all, none, or some of {', '.join(FACTORS)} (pick-place world)")
    split: str = option("train", f"of {', '.join(SPLITS)} (pick-place world)")
    renderer: str = option("auto", f"of {', '.join(RENDERERS)} (pick-place world)")
    window: bool = option(True, "also show it, if there is a display")

    def __post_init__(self) -> None:
        check_choice("policy", self.policy, tuple(POLICIES))
        if self.out:
            check_choice("file format", Path(self.out).suffix.lower(), FORMATS)
        _check_size(self.size)
        check_seed(self, "seed")
        check_least(self, 1, "episodes")


def watch(config: WatchConfig) -> Path:
    """Writes the film, shows it if there is a display, and returns its path."""
    benchmark = benchmark_by_name(config.benchmark) if config.benchmark else None
    task = config.task or (benchmark.task_names[0] if benchmark else "lift-can")
    name = f"{benchmark.name}-{task}" if benchmark else task
    path = Path(config.out or f"runs/watch/{name}-{config.policy}-{config.seed}.gif")
    check_writable(path)
    seeds = range(config.seed, config.seed + config.episodes)
    if benchmark:
        frames = [
            frame
            for seed in seeds
            for frame in film(benchmark, task, _act_of(benchmark, config.policy, task, seed), seed, config.size)
        ]
        pause_ms = FILM_PAUSE_MS
    else:
        frames, pause_ms = _film_world(config, task, seeds)
    write_film(path, frames, pause_ms)
    if config.window and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        _show(frames, pause_ms)
    return path


def _film_world(config: WatchConfig, task: str, seeds: range) -> tuple[list[Image.Image], int]:
    """Captioned frames of episodes in the pick-place world, and the pause between them in ms."""
    frames: list[Image.Image] = []
    from sim.env import PickPlaceEnv
    from sim.episodes import play

    frames_per_s: int = PickPlaceEnv.metadata["render_fps"]
    env = PickPlaceEnv(task, config.size, config.renderer, randomise=config.randomise, split=config.split)
    with env:
        for seed in seeds:
            policy, rng = POLICIES[config.policy](), np.random.default_rng(seed)
            for number, step in enumerate(play(env, policy, task_by_name(task), seed, rng)):
                title, event = f"{task}, step {number}", "moves"
                if step.action is None:
                    title, event = f"{task}, {config.policy}, seed {seed}", "begins"
                elif step.done:
                    event = f"ends: {'success' if step.reward else 'failure'}"
                elif step.action[4]:
                    event = COMMANDS[int(step.action[4])]
                holds = np.asarray(step.info["successes"])
                detected = [name for name, success in zip(TASK_NAMES, holds, strict=True) if success]
                frames.append(captioned(step.observation["image"], f"{title}: {event}", detected))
            frames += [frames[-1]] * frames_per_s
    return frames, 1000 // frames_per_s


@dataclass(frozen=True, kw_only=True)
class SheetConfig:
    rows: int = option(4, "scenes per task")
    size: int = option(236, "of each scene, px")
    seed: int = option(0, "of the first scene")
    out: str = option("runs/watch/sheet.jpg", "the file")
    randomise: str = option("all", f"all, none, or some of {', '.join(FACTORS)}")
    split: str = option("train", f"of {', '.join(SPLITS)}")
    renderer: str = option("auto", f"of {', '.join(RENDERERS)}")

    def __post_init__(self) -> None:
        check_choice("file format", Path(self.out).suffix.lower(), SHEET_FORMATS)
        _check_size(self.size)
        check_least(self, 1, "rows")
        check_seed(self, "seed")


def sheet(config: SheetConfig) -> Path:
    """Writes one image with `rows` scenes of every task, five tasks side by side; returns its path."""
    from PIL import Image, ImageDraw, ImageFont

    from sim.env import PickPlaceEnv

    side_by_side, caption_px = 5, 22
    blocks = -(-len(TASK_NAMES) // side_by_side)
    canvas = Image.new(
        "RGB", (side_by_side * config.size, blocks * config.rows * (config.size + caption_px)), (24, 24, 26)
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    env = PickPlaceEnv(None, config.size, config.renderer, randomise=config.randomise, split=config.split)
    path = Path(config.out)
    check_writable(path)
    with env:
        for index, name in enumerate(TASK_NAMES):
            for row in range(config.rows):
                seed = config.seed + row * len(TASK_NAMES) + index
                observation, _ = env.reset(seed=seed, options={"task": name})
                x = index % side_by_side * config.size
                y = (index // side_by_side * config.rows + row) * (config.size + caption_px)
                canvas.paste(Image.fromarray(observation["image"]), (x, y))
                draw.text((x + 4, y + config.size + 2), f"{name}, seed {seed}", fill=(220, 220, 220), font=font)
    write_atomic(path, encoded(canvas, path))
    return path


def _act_of(benchmark: Benchmark, policy: str, task: str, seed: int) -> ActAlone:
    """The benchmark's controller, or random actions."""
    controller = benchmark.controller
    if policy == "random":
        rng = np.random.default_rng(seed)
        return lambda _: rng.uniform(-1, 1, benchmark.action_size).astype(np.float32)
    if policy != "scripted" or controller is None or controller.follower:
        raise ValueError(
            f"{policy} does not play {benchmark.name} by itself; --policy random does, and "
            "python -m eval.returns --film shows policies of a file"
        )
    return lambda observation: controller.command(task, observation)


def _check_size(size: int) -> None:
    if not 16 <= size <= LARGEST_PX:
        raise ValueError(f"size is 16 to {LARGEST_PX} px, got {size}")


def _show(frames: list[Image.Image], pause_ms: int) -> None:
    """Plays the film in a window, in a loop, until it is closed."""
    try:
        import tkinter

        from PIL import ImageTk
    except ImportError as error:
        print(f"no window: {error}", file=sys.stderr)
        return
    try:
        root = tkinter.Tk()
    except tkinter.TclError as error:
        print(f"no window: {error}", file=sys.stderr)
        return
    root.title("Switchyard")
    images = [ImageTk.PhotoImage(frame) for frame in frames]
    label = tkinter.Label(root)
    label.pack()

    def show(number: int) -> None:
        label.configure(image=images[number])
        root.after(pause_ms, show, (number + 1) % len(images))

    show(0)
    root.mainloop()
