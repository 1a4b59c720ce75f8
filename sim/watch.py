"""Films of scripted episodes, with the detectors' verdicts drawn in, and sheets of scenes, for people to look at."""

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
from sim.files import check_writable, write_atomic
from sim.looks import SPLITS
from sim.options import check_choice, check_least, check_seed, option
from sim.policies import CrudePolicy, Policy, RandomPolicy, ScriptedPolicy
from sim.scenes import FACTORS
from sim.tasks import TASK_NAMES
from sim.views import RENDERERS

if TYPE_CHECKING:
    from PIL import Image

WATCHED: dict[str, type[Policy]] = {"expert": ScriptedPolicy, "crude": CrudePolicy, "random": RandomPolicy}
FORMATS = (".gif", ".webp", ".png")
SHEET_FORMATS = (".jpg", ".png", ".webp")
CAPTION_PX = 44
SMALLEST_PX = 320  # of a film; smaller frames are enlarged, so that the caption has room
LARGEST_PX = 2048


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    task: str = option("lift-can", f"of {', '.join(TASK_NAMES)}")
    policy: str = option("expert", f"of {', '.join(WATCHED)}")
    seed: int = option(0, "of the first scene")
    episodes: int = option(1, "one after the other, with the next seeds")
    size: int = option(472, "px")
    out: str = option("", f"the file, of {', '.join(FORMATS)}; default runs/watch/TASK-POLICY-SEED.gif")
    randomise: str = option("all", f"all, none, or some of {', '.join(FACTORS)}")
    split: str = option("train", f"of {', '.join(SPLITS)}")
    renderer: str = option("auto", f"of {', '.join(RENDERERS)}")
    window: bool = option(True, "show it too, where there is a display")

    def __post_init__(self) -> None:
        check_choice("policy", self.policy, tuple(WATCHED))
        if self.out:
            check_choice("file format", Path(self.out).suffix.lower(), FORMATS)
        _check_size(self.size)
        check_seed(self, "seed")
        check_least(self, 1, "episodes")


def watch(config: WatchConfig) -> Path:
    """Write the film and show it where there is a display; returns the file."""
    path = Path(config.out or f"runs/watch/{config.task}-{config.policy}-{config.seed}.gif")
    frames: list[Image.Image] = []
    from sim.env import PickPlaceEnv, as_action, as_batch

    frames_per_s: int = PickPlaceEnv.metadata["render_fps"]
    env = PickPlaceEnv(config.task, config.size, config.renderer, randomise=config.randomise, split=config.split)
    check_writable(path)
    with env:
        for seed in range(config.seed, config.seed + config.episodes):
            policy, rng = WATCHED[config.policy](), np.random.default_rng(seed)
            observation, info = env.reset(seed=seed)
            title = f"{config.task}, {config.policy}, seed {seed}"
            frames.append(_captioned(observation["image"], title, "begins", info))
            done, step = False, 0
            while not done:
                action = policy.act(as_batch(observation, info), np.array([env.task.index]), rng)[0]
                observation, reward, terminated, truncated, info = env.step(as_action(action))
                done = terminated or truncated
                doing = COMMANDS[int(action[4])] if action[4] else "moves"
                doing = f"ends: {'success' if reward else 'failure'}" if done else doing
                step += 1
                frames.append(_captioned(observation["image"], f"{config.task}, step {step}", doing, info))
            frames += [frames[-1]] * frames_per_s
    pause_ms = 1000 // frames_per_s
    saved = _one_palette(frames) if path.suffix.lower() == ".gif" else frames
    film = _encoded(saved[0], path, save_all=True, append_images=saved[1:], duration=pause_ms, loop=0)
    write_atomic(path, film)
    if config.window and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        _show(frames, pause_ms)
    return path


@dataclass(frozen=True, kw_only=True)
class SheetConfig:
    rows: int = option(4, "scenes of each task")
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
    """One picture of `rows` scenes of every task, five tasks side by side; returns the file."""
    from PIL import Image, ImageDraw, ImageFont

    from sim.env import PickPlaceEnv

    side_by_side, caption_px = 5, 22
    blocks = -(-len(TASK_NAMES) // side_by_side)
    whole = Image.new(
        "RGB", (side_by_side * config.size, blocks * config.rows * (config.size + caption_px)), (24, 24, 26)
    )
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(size=14)
    env = PickPlaceEnv(None, config.size, config.renderer, randomise=config.randomise, split=config.split)
    path = Path(config.out)
    check_writable(path)
    with env:
        for index, name in enumerate(TASK_NAMES):
            for row in range(config.rows):
                seed = config.seed + row * len(TASK_NAMES) + index
                observation, _ = env.reset(seed=seed, options={"task": name})
                left = index % side_by_side * config.size
                top = (index // side_by_side * config.rows + row) * (config.size + caption_px)
                whole.paste(Image.fromarray(observation["image"]), (left, top))
                draw.text((left + 4, top + config.size + 2), f"{name}, seed {seed}", fill=(220, 220, 220), font=font)
    write_atomic(path, _encoded(whole, path))
    return path


def _encoded(picture: Image.Image, path: Path, **options: Any) -> bytes:
    """A picture as the file format that the path's suffix says."""
    from PIL import Image

    content = io.BytesIO()
    picture.save(content, Image.registered_extensions()[path.suffix.lower()], **options)
    return content.getvalue()


def _captioned(picture: NDArray[np.uint8], title: str, doing: str, info: dict[str, object]) -> Image.Image:
    """The picture over two lines of text: what happens, and which tasks the detectors find done now."""
    from PIL import Image, ImageDraw, ImageFont

    picture = np.repeat(np.repeat(picture, factor := -(-SMALLEST_PX // len(picture)), axis=0), factor, axis=1)
    size = picture.shape[0]
    sheet = Image.new("RGB", (size, size + CAPTION_PX), (24, 24, 26))
    sheet.paste(Image.fromarray(picture), (0, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    done = [name for name, verdict in zip(TASK_NAMES, np.asarray(info["verdicts"]), strict=True) if verdict]
    draw.text((6, size + 3), f"{title}: {doing}", fill=(235, 235, 235), font=font)
    draw.text(
        (6, size + 23),
        f"detected: {', '.join(done) or 'nothing'}",
        fill=(120, 220, 120) if done else (150, 150, 150),
        font=font,
    )
    return sheet


def _check_size(size: int) -> None:
    if not 16 <= size <= LARGEST_PX:
        raise ValueError(f"size is 16 to {LARGEST_PX} px, got {size}")


def _one_palette(frames: list[Image.Image]) -> list[Image.Image]:
    """A film's frames in the same 256 colours, else things would change theirs from frame to frame."""
    from PIL import Image

    some = frames[:: max(1, len(frames) // 8)]
    strip = Image.new("RGB", (some[0].width, sum(frame.height for frame in some)))
    for number, frame in enumerate(some):
        strip.paste(frame, (0, number * frame.height))
    palette = strip.quantize(256, Image.Quantize.MEDIANCUT)
    return [frame.quantize(palette=palette) for frame in frames]


def _show(frames: list[Image.Image], pause_ms: int) -> None:
    """Play the film in a window, over and over, until it is closed."""
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
    pictures = [ImageTk.PhotoImage(frame) for frame in frames]
    label = tkinter.Label(root)
    label.pack()

    def show(number: int) -> None:
        label.configure(image=pictures[number])
        root.after(pause_ms, show, (number + 1) % len(pictures))

    show(0)
    root.mainloop()
