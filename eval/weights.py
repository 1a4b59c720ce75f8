"""`python -m eval.weights RUN`: what the sharing rules of an offline run on states made of its data.

Prints, for each rule that shares by Q-values, the mean weight of each task's transitions (columns) for each task
(rows), over seeds (CDS, table 6); of a maze it also draws the weights over the plane for each goal (figure 4), a PNG
beside the run's policies for each rule.
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
from sim.benchmarks.mazes import CELL_M, POSITION, Maze, maze_of
from sim.files import DatasetError, read_json
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
    config = read_json(run / RUN_CONFIG)
    dataset = assign_tasks(read_transitions(data or config["data"]), config.get("assignment", "collected"))
    if dataset.digest != file.dataset_digest:
        raise DatasetError(f"{data or config['data']}: not the dataset of {run}")
    print(weights_table(file, dataset))
    maze = maze_of(dataset.benchmark.name)
    for rule in dict.fromkeys(file.rules) if maze else ():
        assert maze is not None
        picture = draw_weights(maze, dataset, file.row, file.of_rule(rule))
        picture.save(path := run / f"weights-{rule}.png")
        print(f"{path}: the weights of each place for each goal (red)")


def weights_table(file: WeightFile, dataset: TransitionDataset) -> str:
    """Markdown of the mean weight by target (row) and source (column); `-` without transitions of a source."""
    names, source = dataset.benchmark.task_names, dataset.columns["task"][file.row]
    parts = []
    for rule in dict.fromkeys(file.rules):
        weight = file.of_rule(rule)
        lines = [f"| weight by {rule}, for | from {' | '.join(names)} |", "|---|" + "---|" * len(names)]
        for target, name in enumerate(names):
            means = [weight[source == k, target] for k in range(len(names))]
            cells = [f"{each.mean():.2f}" if len(each) else "-" for each in means]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def draw_weights(
    maze: Maze, dataset: TransitionDataset, row: NDArray[np.int64], weight: NDArray[np.float32]
) -> Image.Image:
    """A panel for each goal: the mean weight [P, N] of the transitions in each part of a cell."""
    rows, columns = len(maze.rows), len(maze.rows[0])
    place = dataset.quantities[POSITION][row] / CELL_M + (maze.start[1] + 0.5, maze.start[0] + 0.5)  # cells
    bins = np.clip((place * BINS).astype(int), 0, (columns * BINS - 1, rows * BINS - 1))
    flat = bins[:, 1] * columns * BINS + bins[:, 0]
    count = np.bincount(flat, minlength=rows * columns * BINS**2)
    width, height = columns * CELL_PX + 2 * MARGIN_PX, rows * CELL_PX + MARGIN_PX + TITLE_PX
    across = min(4, len(maze.goals))
    page = Image.new("RGB", (width * across, height * -(-len(maze.goals) // across)), "white")
    draw = ImageDraw.Draw(page)
    for number, goal in enumerate(maze.goals):
        left, top = number % across * width + MARGIN_PX, number // across * height + TITLE_PX
        total = np.bincount(flat, weights=weight[:, number], minlength=len(count))
        mean = (total / np.maximum(count, 1)).reshape(rows * BINS, columns * BINS, 1)
        colour = np.where(count.reshape(mean.shape) > 0, LOW + mean * (HIGH - LOW), np.array(UNKNOWN)).astype(np.uint8)
        panel = Image.fromarray(colour).resize((columns * CELL_PX, rows * CELL_PX), Image.Resampling.NEAREST)
        page.paste(panel, (left, top))
        for y, text in enumerate(maze.rows):
            for x, character in enumerate(text):
                if character == "#":
                    corner = left + x * CELL_PX, top + y * CELL_PX
                    draw.rectangle((*corner, corner[0] + CELL_PX - 1, corner[1] + CELL_PX - 1), fill=WALL)
        centre = left + (goal[1] + 0.5) * CELL_PX, top + (goal[0] + 0.5) * CELL_PX
        draw.ellipse((centre[0] - 5, centre[1] - 5, centre[0] + 5, centre[1] + 5), outline=GOAL, width=3)
        draw.text((left, top - 13), f"goal-{number}: mean weight {weight[:, number].mean():.2f}", fill="black")
    return page


if __name__ == "__main__":
    sys.exit(main())
