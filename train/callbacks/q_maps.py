"""Maps of Q over the image, in TensorBoard under `q_maps/`."""

from __future__ import annotations

from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data import codec
from data.replay import Replay
from models.acting import ActingConfig, best_action
from models.images import crop
from models.qnetwork import QNetwork
from sim.actions import COMMANDS, MAX_TRANSLATION_M
from sim.camera_geometry import CameraSpec, project
from sim.state import SceneState
from sim.tasks import TASK_NAMES, task_by_name
from train.qtopt_config import QTOptConfig

SHOWN_TASKS = 4
GRID = 21  # motions along x and y
SHOWN_PX = 320
CAPTION_PX = 18


class QMaps(Callback):
    """Draws Q every `q_maps_every` steps, for the middle frame of a successful episode of each of the first tasks."""

    def __init__(self, replay: Replay, config: QTOptConfig) -> None:
        self._every = config.q_maps_every
        tasks = [task_by_name(name).index for name in config.tasks]
        self._frames = [(task, frame) for task in tasks if (frame := _middle(replay, task)) is not None][:SHOWN_TASKS]
        self._replay = replay

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *arguments: Any
    ) -> None:
        if trainer.global_step % self._every or not trainer.is_global_zero or trainer.logger is None:
            return
        for task, frame in self._frames:
            image = q_map(pl_module.target, pl_module.config.acting, self._replay, frame, task)
            board = trainer.logger.experiment
            board.add_image(f"q_maps/{TASK_NAMES[task]}", image, trainer.global_step, dataformats="HWC")


def _middle(replay: Replay, task: int) -> int | None:
    successes = np.flatnonzero((replay.episode_task == task) & replay.success[:, task])
    if not len(successes):
        return None
    frames = replay.frames_of(int(successes[0]))
    return frames[len(frames) // 2]


@torch.no_grad()
def q_map(network: QNetwork, acting: ActingConfig, replay: Replay, number: int, task: int) -> NDArray[np.uint8]:
    """Map of Q over motions of the gripper, drawn on a frame: uint8 [H, W, 3]. The rest of the action is that of the
    best action (white ring). A cross marks the data's action."""
    frame = replay.read([number])[0]
    pixels, state = codec.decode(frame.image), SceneState(frame.state)
    best, value, motion, q = _q_around(network, acting, pixels, state, task)
    low, high = float(q.min()), float(q.max())
    command, height = COMMANDS[int(best[4])], f"{100 * best[2]:+.0f} cm up"
    text = f"{TASK_NAMES[task]}: Q {low:.2f} (blue) to {high:.2f}, of {command}, {height}; best {value:.2f}"
    canvas = _Canvas(pixels, network.config.image_size, state, text)
    for xy, level in zip(canvas.places(motion), (q - low) / max(high - low, 1e-6), strict=True):
        canvas.disc(xy, 4, fill=(int(255 * level), int(200 * level * level), int(255 * (1 - level)), 170))
    canvas.disc(canvas.places(best[None, :3])[0], 6, outline="white", width=2)
    canvas.cross(canvas.places(frame.action[None, :3])[0], 5)
    return np.array(canvas.out)


def _q_around(
    network: QNetwork, acting: ActingConfig, pixels: NDArray[np.uint8], state: SceneState, task: int
) -> tuple[NDArray[np.float32], float, NDArray[np.float32], NDArray[np.float32]]:
    """The best action [5], its value, motions [P, 3] (m) around the gripper, and their Q [P] with the rest of the
    best action."""
    device = next(network.parameters()).device
    image = crop(torch.from_numpy(pixels).permute(2, 0, 1)[None], network.config.image_size).to(device)
    reading = [float(state["gripper_closed"]), float(state["gripper_position"][2])]
    gripper, index = torch.tensor([reading], device=device), torch.tensor([task], device=device)
    features = network.encode(image, gripper)
    best, value = best_action(network, features, gripper, index, acting, torch.Generator(device).manual_seed(0))
    reach = torch.linspace(-MAX_TRANSLATION_M, MAX_TRANSLATION_M, GRID, device=device)
    candidates = best.repeat(GRID * GRID, 1)
    candidates[:, :2] = torch.cartesian_prod(reach, reach)
    q = network.score(features, gripper, candidates[None], index)[0].float().sigmoid()
    return best[0].cpu().numpy(), float(value[0]), candidates[:, :3].cpu().numpy(), q.cpu().numpy()


class _Canvas:
    """The network's image, twice, with a caption; marks go on the right one."""

    def __init__(self, pixels: NDArray[np.uint8], side: int, state: SceneState, caption: str) -> None:
        self._frame_px, self._side, self._state = len(pixels), side, state
        self._margin = (len(pixels) - side) / 2
        box = (self._margin, self._margin, self._margin + side, self._margin + side)
        shown = Image.fromarray(pixels).crop(box).resize((SHOWN_PX, SHOWN_PX), Image.Resampling.NEAREST)
        self.out = Image.new("RGB", (2 * SHOWN_PX, SHOWN_PX + CAPTION_PX))
        self.out.paste(shown, (0, 0))
        self.out.paste(shown, (SHOWN_PX, 0))
        self._pen = ImageDraw.Draw(self.out, "RGBA")
        self._pen.text((4, SHOWN_PX + 3), caption, fill="white")

    def places(self, motion: NDArray[np.floating]) -> NDArray[np.floating]:
        """End points of gripper motions [P, 3] in the canvas, px [P, 2]."""
        state = self._state
        ends = state["gripper_position"] + motion
        seen = project(ends, state["camera_position"], state["camera_axes"], CameraSpec())
        return (seen * self._frame_px - self._margin) / self._side * SHOWN_PX + [SHOWN_PX, 0]

    def disc(self, xy: NDArray[np.floating], radius: float, **style: Any) -> None:
        if xy[0] - radius >= SHOWN_PX and xy[1] + radius < SHOWN_PX:
            self._pen.ellipse((*(xy - radius), *(xy + radius)), **style)

    def cross(self, xy: NDArray[np.floating], radius: float) -> None:
        x, y = xy
        for r in (radius, -radius):
            self._pen.line((x - radius, y - r, x + radius, y + r), fill="white", width=2)
