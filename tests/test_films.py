"""Films of the state benchmarks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from eval import returns
from sim.benchmarks import films
from sim.benchmarks.spec import MissingSimulatorError
from sim.benchmarks.table import BENCHMARKS
from sim.watch import WatchConfig, watch
from tests.line import LINE

POINT = BENCHMARKS["pointmaze-medium"]


@pytest.fixture
def renders():
    """Skips where MuJoCo cannot render."""
    mujoco = pytest.importorskip("mujoco")
    try:
        films._renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8).close()
    except Exception as error:
        pytest.skip(f"no renderer: {error}")


def stand_still(benchmark):
    return lambda _: np.zeros(benchmark.action_size, np.float32)


@pytest.mark.parametrize("name", ["walker2d", "pointmaze-medium", "dmc-walker", "desk"])
def test_a_film_shows_the_body_at_work(name, renders, monkeypatch):
    pytest.importorskip({"dmc-walker": "dm_control", "desk": "metaworld"}.get(name, "mujoco"))
    monkeypatch.setattr(films, "MAX_FRAMES", 4)
    benchmark, rng = BENCHMARKS[name], np.random.default_rng(0)
    frames = films.film(benchmark, benchmark.task_names[0], lambda _: rng.uniform(-1, 1, benchmark.action_size), 0, 64)
    images = [np.asarray(frame)[:320] for frame in frames]  # enlarged, above the caption
    assert len(images) >= 2
    assert images[0].std() > 5
    assert not np.array_equal(images[0], images[-1])


def test_a_goal_is_drawn_where_it_is_and_ends_the_film_when_it_is_reached(renders, monkeypatch):
    monkeypatch.setattr(films, "MAX_FRAMES", 10)
    frames = films.film(POINT, "goal-0", stand_still(POINT), 0, 128)
    assert len(frames) == 11
    red, green, blue = np.moveaxis(np.asarray(frames[0])[:384].astype(int), -1, 0)
    rows, columns = np.nonzero((red > 100) & (green < 60) & (blue < 90))
    assert len(rows)
    assert columns.mean() > 192  # goal 0: right of the middle, in the lower half
    assert rows.mean() > 192
    controller = POINT.controller.command
    reached = films.film(POINT, "goal-0", lambda seen: controller("goal-0", seen), 0, 64)
    assert 2 < len(reached) < 11
    green = np.asarray(reached[-1])[320:].astype(int)  # the caption
    assert ((green[..., 1] > 200) & (green[..., 0] < 150)).any()


def test_commands_write_films_of_controllers_and_of_policies(renders, tmp_path, monkeypatch):
    monkeypatch.setattr(films, "MAX_FRAMES", 3)
    options = {"benchmark": "pointmaze-medium", "task": "goal-1", "size": 64}
    path = watch(WatchConfig(**options, out=str(tmp_path / "a.gif")))
    assert Image.open(path).n_frames > 1
    film = tmp_path / "b.webp"
    assert returns.main(["--policy", "controller", "--benchmark", "pointmaze-medium", "--film", str(film)]) == 0
    assert Image.open(film).n_frames > 3  # of all three tasks
    with pytest.raises(ValueError, match="scripted does not play walker2d by itself; --policy random does"):
        watch(WatchConfig(benchmark="walker2d", out=str(tmp_path / "c.gif")))


def test_what_cannot_be_filmed_is_said_in_a_line(monkeypatch):
    with pytest.raises(ValueError, match="line is not simulated by MuJoCo"):
        films.film(LINE, "right", stand_still(LINE), 0, 64)
    mujoco = pytest.importorskip("mujoco")

    def fails(*_):
        raise RuntimeError("no EGL device")

    monkeypatch.setattr(mujoco, "Renderer", fails)
    with pytest.raises(MissingSimulatorError, match=r"renders no films here \(no EGL device\); install EGL"):
        films.film(POINT, "goal-0", stand_still(POINT), 0, 64)
