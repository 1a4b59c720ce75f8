"""`python -m eval.weights RUN`: what the sharing rules of an offline run on states made of its data.

Prints, for each rule that shares by Q-values, the mean weight of each task's transitions (columns) for each task
(rows), over seeds (CDS, table 6; `-`: unknown). Of a maze it also draws the weights over the plane for each goal
(figure 4), a PNG for each rule beside the run's policies.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data.assignment import assign_tasks
from data.transitions import TransitionDataset, read_transitions
from data.weight_files import WEIGHTS, WeightFile, read_weights
from models.checkpoint import RUN_CONFIG
from sim.benchmarks.mazes import CELL_M, MAZES, POSITION, Maze
from sim.files import DatasetError, read_json, write_atomic
from sim.film_files import encoded
from sim.options import Parser, run_command

CELL_PX, BINS = 24, 4  # of a cell of the maze on the page: pixels, and bins in each direction
MARGIN_PX, TITLE_PX = 12, 16
WALL, UNKNOWN, GOAL = (90, 90, 90), (235, 235, 235), (200, 30, 45)
LOW, HIGH = np.array([247.0, 251.0, 255.0]), np.array([8.0, 48.0, 107.0])  # colours of weights 0 and 1


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.weights", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--data", type=Path, help="its dataset, if it has moved")
    options = parser.parse_args(arguments)
    return run_command(lambda: _main(options.run, options.data))


def _main(run: Path, data: Path | None) -> None:
    file = read_weights(run / WEIGHTS)
    if data is None:
        if not (run / RUN_CONFIG).is_file():
            raise DatasetError(f"{run}: without {RUN_CONFIG}, which names its dataset; give --data")
        data = Path(read_json(run / RUN_CONFIG)["data"])
    dataset = assign_tasks(read_transitions(data), file.assignment)
    if dataset.digest != file.dataset_digest:
        raise DatasetError(f"{data}: not the dataset of {run}")
    print(weights_table(file, dataset))
    maze = MAZES.get(dataset.benchmark.name)
    for rule in dict.fromkeys(file.rules) if maze else ():
        assert maze is not None
        picture = draw_weights(maze, dataset, file.row, file.of_rule(rule))
        path = run / f"weights-{rule}.png"
        write_atomic(path, encoded(picture, path))
        print(f"{path}: the weights of each place for each goal (red)")


def weights_table(file: WeightFile, dataset: TransitionDataset) -> str:
    """Markdown of the mean weight by target (row) and source (column); `-` where none is known."""
    names, source = dataset.benchmark.task_names, dataset.columns["task"][file.row]
    parts = []
    for rule in dict.fromkeys(file.rules):
        weight = file.of_rule(rule)
        lines = [f"| weight by {rule}, for | from {' | '.join(names)} |", "|---|" + "---|" * len(names)]
        for target, name in enumerate(names):
            parts_of = [weight[source == k, target] for k in range(len(names))]
            known = [part[~np.isnan(part)] for part in parts_of]
            cells = [f"{part.mean():.2f}" if len(part) else "-" for part in known]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def draw_weights(
    maze: Maze, dataset: TransitionDataset, row: NDArray[np.int64], weight: NDArray[np.float32]
) -> Image.Image:
    """A panel for each goal, y upwards: the mean weight [P, N] of the transitions in each part of a cell."""
    shape = len(maze.rows) * BINS, len(maze.rows[0]) * BINS
    cell = dataset.quantities[POSITION][row] / CELL_M + (maze.start[1] + 0.5, maze.start[0] + 0.5)
    x, y = np.clip((cell * BINS).astype(int), 0, (shape[1] - 1, shape[0] - 1)).T
    walls = np.array([[character == "#" for character in text] for text in maze.rows]).repeat(BINS, 0).repeat(BINS, 1)
    scale = CELL_PX // BINS
    width, height = shape[1] * scale + 2 * MARGIN_PX, shape[0] * scale + MARGIN_PX + TITLE_PX
    across = min(4, len(maze.goals))
    page = Image.new("RGB", (width * across, height * -(-len(maze.goals) // across)), "white")
    draw = ImageDraw.Draw(page)
    for number, goal in enumerate(maze.goals):
        known = ~np.isnan(weight[:, number])
        total, count = np.zeros(shape), np.zeros(shape)
        np.add.at(total, (y[known], x[known]), weight[known, number])
        np.add.at(count, (y[known], x[known]), 1)
        mean = (total / np.maximum(count, 1))[..., None]
        colour = np.where(count[..., None] > 0, LOW + mean * (HIGH - LOW), UNKNOWN)
        colour = np.where(walls[..., None], WALL, colour).astype(np.uint8)[::-1]
        left, top = number % across * width + MARGIN_PX, number // across * height + TITLE_PX
        page.paste(Image.fromarray(colour.repeat(scale, 0).repeat(scale, 1)), (left, top))
        centre = left + (goal[1] + 0.5) * CELL_PX, top + (len(maze.rows) - goal[0] - 0.5) * CELL_PX
        draw.ellipse((centre[0] - 5, centre[1] - 5, centre[0] + 5, centre[1] + 5), outline=GOAL, width=3)
        title = f"{weight[known, number].mean():.2f}" if known.any() else "unknown"
        draw.text((left, top - 13), f"goal-{number}: mean weight {title}", fill="black")
    return page


if __name__ == "__main__":
    sys.exit(main())
