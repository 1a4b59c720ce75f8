"""Reports of the sharing routers, in TensorBoard under `routing/`."""

from __future__ import annotations

from typing import Any, Protocol

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from data.router import effective_steps

CELL_PX = 40
NAME_PX = 130
SCALARS = ("shared", "success", "temperature", "reference", "auc")  # of a report, by task


class RoutedModule(Protocol):
    """A module with routers to report."""

    @property
    def done_steps(self) -> int: ...

    def routing(self) -> dict[str, dict[str, Any]]:
        """Report of each router by its name, with the names of the `tasks`."""


class RouterReport(Callback):
    """Logs, every `every` steps, a heat map of the mean weights, and for each target task its effective number of
    steps, the shared fraction of what it learns from and the successes among that, temperature, reference, and how well
    the scores of others' episodes tell successes (area under the ROC curve). Says once where a task shares nothing."""

    def __init__(self, every: int) -> None:
        self._every, self._shown = every, 0
        self._starved: set[tuple[str, str]] = set()  # said already

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._shown = pl_module.done_steps  # also before a resume

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *arguments: Any
    ) -> None:
        module: RoutedModule = pl_module  # type: ignore[assignment]
        step = module.done_steps
        if step // self._every == self._shown // self._every or not trainer.is_global_zero or trainer.logger is None:
            return
        self._shown = step
        board = trainer.logger.experiment
        for name, report in module.routing().items():
            folder = f"routing/{name}/" if name else "routing/"
            image = heat_map(report["tasks"], report["weights"])
            board.add_image(f"{folder}weights", image, step, dataformats="HWC")
            scalars = {"effective_steps": effective_steps(report["weights"], report["steps"])}
            scalars |= {key: report[key] for key in SCALARS if key in report}
            self._say_starved(name, report, step)
            for key, values in scalars.items():
                for task, value in zip(report["tasks"], values, strict=True):
                    if value is not None:
                        board.add_scalar(f"{folder}{key}/{task}", value, step)

    def _say_starved(self, name: str, report: dict[str, Any], step: int) -> None:
        for task in starved_tasks(report):
            if (name, task) not in self._starved:
                self._starved.add((name, task))
                run = f"{name}: " if name else ""
                tqdm.write(
                    f"{run}step {step}: rule {report['rule']} lets nothing of other tasks pass for {task}; it learns "
                    "from its own data until something does"
                )


def starved_tasks(report: dict[str, Any]) -> list[str]:
    """Tasks that may share, but for which the rule gives all data of other tasks the weight 0."""
    found = []
    for i, task in enumerate(report["tasks"]):
        others = [w for j, w in enumerate(report["weights"][i]) if j != i and w is not None]
        if others and not any(others):
            found.append(task)
    return found


def heat_map(tasks: tuple[str, ...], weights: list[list[float | None]]) -> NDArray[np.uint8]:
    """Heat map of weights in [0, 1] by target (row) and source task (column), darker is higher: uint8 [H, W, 3]."""
    side = NAME_PX + CELL_PX * len(tasks)
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    for k, task in enumerate(tasks):
        pen.text((4, NAME_PX + CELL_PX * (k + 0.35)), task, fill="black")
        name = Image.new("RGB", (NAME_PX, CELL_PX), "white")
        ImageDraw.Draw(name).text((4, 0.35 * CELL_PX), task, fill="black")
        image.paste(name.rotate(90, expand=True), (NAME_PX + CELL_PX * k, 0))
    for i, row in enumerate(weights):
        for j, weight in enumerate(row):
            if weight is not None:
                x, y = NAME_PX + CELL_PX * j, NAME_PX + CELL_PX * i
                light = round(255 * (1 - weight))
                pen.rectangle((x, y, x + CELL_PX - 2, y + CELL_PX - 2), fill=(light, light, 255 - (255 - light) // 3))
                pen.text((x + 9, y + 14), f"{weight:.2f}", fill="white" if weight > 0.55 else "black")
    return np.array(image)
