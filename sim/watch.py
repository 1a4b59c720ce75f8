"""Films of scripted episodes, captioned with the detected successes, and contact sheets of scenes."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.actions import COMMANDS
from sim.appearances import SPLITS
from sim.drawing import RENDERERS
from sim.files import check_writable, write_atomic
from sim.options import check_choice, check_least, check_seed, option
from sim.policies import CrudePolicy, Policy, RandomPolicy, ScriptedPolicy
from sim.scenes import FACTORS
from sim.tasks import TASK_NAMES, task_by_name

if TYPE_CHECKING:
    from PIL import Image

POLICIES: dict[str, type[Policy]] = {"scripted": ScriptedPolicy, "crude": CrudePolicy, "random": RandomPolicy}
FORMATS = (".gif", ".webp", ".png")
SHEET_FORMATS = (".jpg", ".png", ".webp")
CAPTION_PX = 44
SMALLEST_PX = 320  # of a film; smaller frames are enlarged to leave room for the caption
LARGEST_PX = 2048


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    task: str = option("lift-can", f"of {', '.join(TASK_NAMES)}")
    policy: str = option("scripted", f"of {', '.join(POLICIES)}")
    seed: int = option(0, "of the first scene")
    episodes: int = option(1, "one after another, with consecutive seeds")
    size: int = option(472, "px")
    out: str = option("", f"the file, of {', '.join(FORMATS)}; default runs/watch/TASK-POLICY-SEED.gif")
    randomise: str = option("all", f"all, none, or some of {', '.join(FACTORS)}")
    split: str = option("train", f"of {', '.join(SPLITS)}")
    renderer: str = option("auto", f"of {', '.join(RENDERERS)}")
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
    path = Path(config.out or f"runs/watch/{config.task}-{config.policy}-{config.seed}.gif")
    frames: list[Image.Image] = []
    from sim.env import PickPlaceEnv
    from sim.episodes import play

    frames_per_s: int = PickPlaceEnv.metadata["render_fps"]
    env = PickPlaceEnv(config.task, config.size, config.renderer, randomise=config.randomise, split=config.split)
    check_writable(path)
    with env:
        for seed in range(config.seed, config.seed + config.episodes):
            policy, rng = POLICIES[config.policy](), np.random.default_rng(seed)
            for number, step in enumerate(play(env, policy, task_by_name(config.task), seed, rng)):
                title, event = f"{config.task}, step {number}", "moves"
                if step.action is None:
                    title, event = f"{config.task}, {config.policy}, seed {seed}", "begins"
                elif step.done:
                    event = f"ends: {'success' if step.reward else 'failure'}"
                elif step.action[4]:
                    event = COMMANDS[int(step.action[4])]
                frames.append(_captioned(step.observation["image"], title, event, step.info))
            frames += [frames[-1]] * frames_per_s
    pause_ms = 1000 // frames_per_s
    saved = _with_shared_palette(frames) if path.suffix.lower() == ".gif" else frames
    film = _encoded(saved[0], path, save_all=True, append_images=saved[1:], duration=pause_ms, loop=0)
    write_atomic(path, film)
    if config.window and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        _show(frames, pause_ms)
    return path


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
    write_atomic(path, _encoded(canvas, path))
    return path


def _encoded(image: Image.Image, path: Path, **options: Any) -> bytes:
    """Encodes an image in the format of the path's suffix."""
    from PIL import Image

    content = io.BytesIO()
    image.save(content, Image.registered_extensions()[path.suffix.lower()], **options)
    return content.getvalue()


def _captioned(frame: NDArray[np.uint8], title: str, event: str, info: dict[str, object]) -> Image.Image:
    """The frame above two lines of text: what happens, and the tasks that the detectors accept in this state."""
    from PIL import Image, ImageDraw, ImageFont

    frame = np.repeat(np.repeat(frame, factor := -(-SMALLEST_PX // len(frame)), axis=0), factor, axis=1)
    size = frame.shape[0]
    image = Image.new("RGB", (size, size + CAPTION_PX), (24, 24, 26))
    image.paste(Image.fromarray(frame), (0, 0))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=15)
    detected = [name for name, success in zip(TASK_NAMES, np.asarray(info["successes"]), strict=True) if success]
    draw.text((6, size + 3), f"{title}: {event}", fill=(235, 235, 235), font=font)
    draw.text(
        (6, size + 23),
        f"detected: {', '.join(detected) or 'nothing'}",
        fill=(120, 220, 120) if detected else (150, 150, 150),
        font=font,
    )
    return image


def _check_size(size: int) -> None:
    if not 16 <= size <= LARGEST_PX:
        raise ValueError(f"size is 16 to {LARGEST_PX} px, got {size}")


def _with_shared_palette(frames: list[Image.Image]) -> list[Image.Image]:
    """Quantises all frames to the same 256 colours, or objects would change colour from frame to frame."""
    from PIL import Image

    samples = frames[:: max(1, len(frames) // 8)]
    strip = Image.new("RGB", (samples[0].width, sum(frame.height for frame in samples)))
    for number, frame in enumerate(samples):
        strip.paste(frame, (0, number * frame.height))
    palette = strip.quantize(256, Image.Quantize.MEDIANCUT)
    return [frame.quantize(palette=palette) for frame in frames]


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
