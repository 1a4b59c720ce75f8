"""Directed and undirected readings of one file of a maze, and the weights that rules give over its plane."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.assignment import assign_tasks
from data.transitions import TransitionDataset, empty_columns, write_transitions
from data.weight_files import WeightFile, read_weights, write_weights
from eval import weights
from eval.returns import Results
from sim.benchmarks.mazes import MAZES, MEDIUM, POINT_MEDIUM, POSITION
from sim.benchmarks.table import BENCHMARKS
from sim.files import DatasetError
from tests.conftest import SMALL_STATE_RUN as SMALL
from tests.line import LINE
from train import state_run, state_weights
from train.cql import CQLConfig
from train.presets import PRESETS


def maze_dataset(ends, length=4):
    """An episode for each place (m) where one ends; all were collected for goal 0."""
    columns = empty_columns(POINT_MEDIUM, length * len(ends))
    columns["episode_end"][length - 1 :: length] = True
    place = columns[f"quantity/{POSITION}"]
    place[length - 1 :: length] = ends
    columns["observation"][:, :2] = place
    columns["action"][:] = np.random.default_rng(0).uniform(-1, 1, columns["action"].shape)
    return TransitionDataset(benchmark=POINT_MEDIUM, columns=columns, metadata={})


def tasks_of_episodes(dataset, length=4):
    task = dataset.columns["task"].reshape(-1, length)
    assert (task == task[:, :1]).all()
    return task[:, 0].tolist()


def test_a_directed_episode_is_of_the_goal_nearest_to_its_end():
    goals = [MEDIUM.middle(cell) for cell in MEDIUM.goals]
    dataset = maze_dataset([goals[2] + 1.0, goals[0] - 3.0, goals[1], goals[1] * 0.9 + goals[0] * 0.1])
    directed = assign_tasks(dataset, "directed")
    assert tasks_of_episodes(directed) == [2, 0, 1, 1]
    assert tasks_of_episodes(assign_tasks(dataset, "collected")) == [0] * 4
    assert len({dataset.digest, directed.digest}) == 2  # a run is bound to its reading


def test_undirected_episodes_are_of_all_tasks_alike_and_always_the_same():
    dataset = maze_dataset(np.zeros((60, 2)))
    found = tasks_of_episodes(assign_tasks(dataset, "undirected"))
    assert np.bincount(found).tolist() == [20, 20, 20]
    assert found == tasks_of_episodes(assign_tasks(dataset, "undirected"))
    assert found != sorted(found)


def test_tasks_without_goals_have_no_directed_reading():
    dataset = TransitionDataset(benchmark=LINE, columns=empty_columns(LINE, 2), metadata={})
    with pytest.raises(ValueError, match="tasks of line have no goal"):
        assign_tasks(dataset, "directed")


def test_every_maze_is_found_by_the_name_of_its_benchmark():
    for name, benchmark in BENCHMARKS.items():
        maze = MAZES.get(name)
        assert (maze is not None) == (POSITION in benchmark.quantities)
        if maze is not None:
            assert len(maze.goals) == len(benchmark.tasks)


def test_a_run_writes_the_weights_of_its_rules_and_a_command_shows_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(state_weights, "WEIGHED_ROWS", 40)
    monkeypatch.setattr(state_weights, "ROWS_AT_ONCE", 7)
    evaluated = []
    monkeypatch.setattr(state_run, "evaluate", lambda *_: evaluated.append(1) or Results(header={}, members=[]))
    dataset = maze_dataset(np.random.default_rng(1).uniform(0, 20, (30, 2)))
    write_transitions(tmp_path / "maze.h5", dataset)
    options = {**SMALL, **PRESETS["pointmaze-medium"]["sharing"], "rules": ("none", "cds", "hipi"), "seeds": (0, 1)}
    data, out = str(tmp_path / "maze.h5"), str(tmp_path / "run")
    config = CQLConfig(**{**options, "data": data, "out": out, "assignment": "undirected", "divergence_steps": 0})
    state_run.train("cql", config)
    found = read_weights(tmp_path / "run" / "weights.h5")
    assert found.members == ("cds-0", "cds-1", "hipi-0", "hipi-1")
    assert found.weight.shape == (4, 40, 3)
    assert np.array_equal(found.row, np.linspace(0, 119, 40).astype(int))
    assert found.dataset_digest == assign_tasks(dataset, "undirected").digest
    assert set(np.unique(found.of_rule("hipi") * 2)) <= {0, 1, 2}  # 0 or 1 in each of two seeds
    assert np.array_equal(found.weight[2:].sum(2), np.ones((2, 40)))  # the task of the highest Q
    (tmp_path / "run" / "weights.h5").unlink()
    state_run.train("cql", config)  # again, with nothing left to train
    again = read_weights(tmp_path / "run" / "weights.h5")
    assert np.array_equal(again.weight, found.weight)
    assert len(evaluated) == 2
    capsys.readouterr()
    assert weights.main([out]) == 0
    text = capsys.readouterr().out
    assert text.count("\n| goal-") == 6
    assert f"{out}/weights-cds.png: the weights" in text
    (tmp_path / "maze.h5").unlink()
    assert weights.main([out]) == 2
    assert "maze.h5: no such dataset" in capsys.readouterr().err


class Known:
    """A scorer whose Q-values are known."""

    def __init__(self, batch):
        self.batch = batch

    def q(self):
        return self.batch.action[..., 0] + 10 * self.batch.task_index

    def q_tasks(self):
        return self.q()[..., None] + torch.zeros(3).index_fill(0, torch.tensor(1), 1.0)


def test_weights_are_those_of_the_statistics_as_they_stand():
    dataset = assign_tasks(maze_dataset(np.zeros((6, 2))), "undirected")
    clip = PRESETS["pointmaze-medium"]["sharing"]
    config = CQLConfig(**{**SMALL, **clip, "rules": ("cds", "skill", "hipi"), "sharing_temperature": "2.0"})
    algorithm = state_run.build("cql", replace(config, data=""), dataset)
    shared, random = algorithm.shared, config.random("cpu", 1)
    shared.start("cpu")
    router = shared.routers[0]
    router.transitions.own[..., :2], router.transitions.own_weight[..., :2] = torch.tensor([0.0, 1.0]), 1.0
    router.transitions.own_count += 2  # own scores 0 and 1: the median is a half
    before = {key: value.clone() for key, value in shared.state_dict().items()}
    rows = torch.tensor([0, 5, 23])
    found = shared.weights_of(rows, lambda batch, _: Known(batch), random, updates=5)
    q = torch.from_numpy(dataset.columns["action"])[rows, :1] + 10 * torch.arange(3)
    assert found[0].numpy() == pytest.approx(torch.sigmoid((q - 0.5) / 2).numpy(), abs=1e-5)
    own = torch.nn.functional.one_hot(torch.from_numpy(dataset.columns["task"])[rows], 3)
    assert torch.equal(found[1].long(), own)  # each of these tasks is a skill of its own
    assert torch.equal(found[2], torch.tensor([0.0, 1.0, 0.0]).expand(3, 3))
    assert all(torch.equal(before[key], value) for key, value in shared.state_dict().items())
    router.forget()
    assert shared.weights_of(rows, lambda batch, _: Known(batch), random, updates=5)[0].isnan().all()


def test_tasks_that_are_not_trained_share_nothing_and_rules_that_wait_weigh_nothing():
    dataset = assign_tasks(maze_dataset(np.zeros((6, 2))), "undirected")
    clip = PRESETS["pointmaze-medium"]["sharing"]
    tasks = ("goal-0", "goal-1")
    config = CQLConfig(**{**SMALL, **clip, "rules": ("all", "hipi"), "tasks": tasks, "share_after": 9})
    algorithm = state_run.build("cql", replace(config, data=""), dataset)
    algorithm.shared.start("cpu")
    rows = torch.arange(24)
    for updates, weighs in ((8, False), (9, True)):
        found = algorithm.shared.weights_of(rows, lambda batch, _: Known(batch), config.random("cpu", 1), updates)
        trained = torch.from_numpy(dataset.columns["task"])[rows] < 2
        assert torch.equal(found[0], trained[:, None] * torch.tensor([1.0, 1.0, 0.0]))
        assert found[1].any() == weighs
        assert not found[:, ~trained].any()


def test_weights_are_drawn_where_their_transitions_are():
    corner, goal = MEDIUM.middle((1, 1)), MEDIUM.middle(MEDIUM.goals[0])
    dataset = maze_dataset(np.stack([corner, goal]), length=1)
    weight = np.array([[1.0, 0.0, np.nan], [0.0, 1.0, np.nan]], np.float32)
    page = np.asarray(weights.draw_weights(MEDIUM, dataset, np.arange(2), weight))

    def colour(number, cell):
        left, top = number * (8 * weights.CELL_PX + 2 * weights.MARGIN_PX) + weights.MARGIN_PX, weights.TITLE_PX
        panel = page[top : top + 8 * weights.CELL_PX, left : left + 8 * weights.CELL_PX][::-1]
        bin_px = weights.CELL_PX // weights.BINS
        middle = (np.array(cell) * weights.BINS + weights.BINS // 2) * bin_px + 1  # of the cell; its bin is above
        return tuple(panel[tuple(middle)].tolist())

    low, high = (tuple(each.astype(int).tolist()) for each in (weights.LOW, weights.HIGH))
    assert [colour(number, (1, 1)) for number in range(3)] == [high, low, weights.UNKNOWN]
    assert colour(1, MEDIUM.goals[0]) == high
    assert colour(0, (0, 0)) == weights.WALL
    assert colour(0, (3, 3)) == weights.UNKNOWN


def ones(assignment, dataset_digest):
    """A file of one member's weights of four transitions."""
    return WeightFile(
        row=np.arange(4),
        weight=np.ones((1, 4, 3), np.float16),
        members=("cds-0",),
        rules=("cds",),
        assignment=assignment,
        dataset_digest=dataset_digest,
    )


def test_a_damaged_file_of_weights_is_refused(tmp_path):
    write_weights(path := tmp_path / "weights.h5", ones("collected", "x"))
    assert np.array_equal(read_weights(path).of_rule("cds"), np.ones((4, 3)))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DatasetError, match=r"weights\.h5: not a file of weights, or a damaged one"):
        read_weights(path)
    path.unlink()
    with pytest.raises(DatasetError, match="no such file; a run whose rules share by Q-values writes it"):
        read_weights(path)


def test_a_run_is_refused_with_another_reading(tmp_path, capsys):
    dataset = maze_dataset(np.zeros((6, 2)))
    write_transitions(tmp_path / "maze.h5", dataset)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"data": str(tmp_path / "maze.h5")}), encoding="utf-8")
    write_weights(tmp_path / "run" / "weights.h5", ones("directed", assign_tasks(dataset, "undirected").digest))
    assert weights.main([str(tmp_path / "run")]) == 2
    assert "maze.h5: not the dataset of" in capsys.readouterr().err
    (tmp_path / "run" / "config.json").unlink()
    assert weights.main([str(tmp_path / "run")]) == 2
    assert "without config.json, which names its dataset; give --data" in capsys.readouterr().err
