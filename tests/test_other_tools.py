"""The environment used by other programs: forks, unclosed environments, silent imports, Minari's spaces."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from data.export import EXPORTS
from data.replay import Replay
from sim.bullet import pybullet
from sim.camera import Camera, resolve_renderer
from sim.env import PickPlaceEnv
from sim.opengl import OpenGLRenderer
from sim.watch import SheetConfig, WatchConfig, sheet, watch
from sim.world import World

ROOT = Path(__file__).parents[1]
RENDERER = resolve_renderer("auto")
HANG_S = 120  # a process that takes longer hangs

FORK = """
import gc, json, multiprocessing, sys
from gymnasium.vector import AsyncVectorEnv
import sim.camera
from sim.env import PickPlaceEnv

STILL = {"translation": [0.0] * 3, "yaw": 0.0, "command": 0}

def make(renderer=sys.argv[1]):
    return PickPlaceEnv("lift-can", 48, renderer)

def message(call):
    try:
        return str(call())
    except ValueError as error:
        return str(error)

def child(answers):
    global env
    answers_by_use = {
        "reset": message(lambda: env.reset(seed=0)),
        "step": message(lambda: env.step(STILL)),
        "render": message(lambda: env.render()),
        "new": message(lambda: make().reset(seed=0)[1]["task_index"]),
        "tiny": message(lambda: make("tiny").reset(seed=0)[1]["task_index"]),
        "auto": message(lambda: sim.camera.resolve_renderer("auto")),
    }
    sim.camera._why_no_egl.cache_clear()
    answers_by_use["auto again"] = message(lambda: sim.camera.resolve_renderer("auto"))
    del env
    gc.collect()
    answers.put(answers_by_use)

env = make()
env.reset(seed=0)
context = multiprocessing.get_context("fork")
answers = context.Queue()
process = context.Process(target=child, args=(answers,))
process.start()
answers_by_use = answers.get()
process.join()
env.reset(seed=1)
if sys.argv[1] == "egl":
    env.close()
    answers_by_use["vector"] = message(lambda: AsyncVectorEnv([make, make], context="fork").reset(seed=0))
print(json.dumps(answers_by_use))
"""


@pytest.mark.parametrize("renderer", sorted({"tiny", RENDERER}))
def test_a_forked_process_is_refused_the_worlds_and_the_egl_of_its_parent_at_once(renderer):
    command = [sys.executable, "-W", "ignore", "-c", FORK, renderer]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=HANG_S)
    messages = json.loads(done.stdout)
    for use in ("reset", "step", "render"):
        assert messages[use].startswith("this world was started in process ")
        assert 'AsyncVectorEnv(..., context="spawn")' in messages[use]
    assert messages["tiny"] == "5"
    if renderer == "egl":
        assert messages["auto"] == "egl"
        for use in ("new", "auto again", "vector"):
            assert messages[use].startswith("EGL was started in process ")
            assert "\n" not in messages[use]
    else:
        assert messages["new"] == "5"


def clients():
    return sum(pybullet.isConnected(client) for client in range(100))


@pytest.mark.parametrize("renderer", sorted({"tiny", RENDERER}))
def test_an_environment_that_nobody_closes_leaves_nothing_behind(renderer, monkeypatch, tmp_path):
    closed = []
    release = OpenGLRenderer.close
    monkeypatch.setattr(OpenGLRenderer, "close", lambda self: (release(self), closed.append(self)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = clients()
    for seed in range(3):
        env = PickPlaceEnv("lift-can", 48, renderer)
        env.reset(seed=seed)
        assert clients() == before + 1
        assert len(list(tmp_path.iterdir())) == 1
        del env
        assert clients() == before
        assert not list(tmp_path.iterdir())
    assert len(closed) == (3 if renderer == "egl" else 0)


def test_a_world_that_does_not_start_leaves_nothing_behind_and_may_start_later(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = clients()
    env = PickPlaceEnv("lift-can", 48, "tiny")
    with monkeypatch.context() as broken:
        broken.setattr(Camera, "open", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            env.reset(seed=0)
    assert clients() == before
    assert not list(tmp_path.iterdir())
    env.reset(seed=0)
    env.close()


@pytest.mark.parametrize(
    "draw",
    [
        lambda out: watch(WatchConfig(size=64, renderer="tiny", out=f"{out}/film.gif")),
        lambda out: sheet(SheetConfig(size=64, renderer="tiny", out=f"{out}/sheet.png")),
    ],
    ids=["watch", "sheet"],
)
def test_a_film_or_a_sheet_that_fails_closes_its_environment(draw, monkeypatch, tmp_path):
    before = clients()
    monkeypatch.setattr(World, "render", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError) as failed:  # whose frames hold the environment
        draw(tmp_path)
    assert failed.traceback
    assert clients() == before


def test_pybullet_says_nothing_about_its_build():
    done = subprocess.run(
        [sys.executable, "-c", "import sim.env; print('ready')"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert (done.stdout, done.stderr) == ("ready\n", "")


def test_a_pybullet_that_does_not_load_says_why(tmp_path):
    (tmp_path / "pybullet.py").write_text("raise ImportError('libfoo.so is missing')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sim.env"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.endswith("ImportError: libfoo.so is missing\n")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def isNumpyEnabled(): return 0", "ImportError: PyBullet was built without numpy"),
        ("raise ModuleNotFoundError('no pybullet', name='pybullet')", "ModuleNotFoundError: PyBullet is not installed"),
    ],
)
def test_a_pybullet_that_lacks_numpy_or_is_missing_is_refused_with_the_install_command(tmp_path, source, complaint):
    (tmp_path / "pybullet.py").write_text(source)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sim.env"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(complaint)
    assert "--no-build-isolation 'pybullet" in last


def test_minaris_export_has_the_environments_observation_space(write_dataset, make_episode, tmp_path):
    minari = pytest.importorskip("minari")
    replay = Replay(write_dataset(tmp_path / "dataset", [[make_episode()]]))
    EXPORTS["minari"](replay, tmp_path / "out")
    dataset = minari.MinariDataset(tmp_path / "out" / "data")
    (episode,) = dataset
    for name in ("gripper_closed", "gripper_height"):
        assert dataset.observation_space[name] == PickPlaceEnv(image_size=48).observation_space[name]
        assert episode.observations[name].shape == (3, 1)
        assert dataset.observation_space[name].contains(episode.observations[name][0])
