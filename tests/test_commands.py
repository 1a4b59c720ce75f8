"""The commands as a user types them: help, mistakes, signals, locales, and what learning from disk imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.__main__
import eval.__main__
import sim.__main__
import train.__main__
from sim.options import run_command
from train.state_run import ALGORITHMS

ROOT = Path(__file__).parents[1]
MAIN = {
    "data": data.__main__.main,
    "train": train.__main__.main,
    "eval": eval.__main__.main,
    "sim": sim.__main__.main,
}


@pytest.fixture
def typed(capsys):
    """Runs `python -m ...` in this process -> (exit status, stdout, stderr), each on one line."""

    def run(line):
        name, *arguments = line.split()
        try:
            status = MAIN[name](arguments)
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, " ".join(printed.out.split()), " ".join(printed.err.split())

    return run


def test_every_offline_algorithm_is_a_command():
    assert set(train.__main__.OFFLINE) == set(ALGORITHMS)


@pytest.mark.parametrize(
    ("line", "mentions"),
    [
        ("data --help", "collect"),
        ("data collect --help", "--episodes-per-shard"),
        ("train --help", "--preset"),
        ("train --preset demo --help", "default demo"),
        ("eval --help", "--checkpoint"),
        ("sim watch --help", "--policy"),
    ],
)
def test_help_is_given_and_is_no_error(typed, line, mentions):
    status, out, _ = typed(line)
    assert status == 0
    assert mentions in out


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (
            "train --preset demoo",
            "unknown preset 'demoo': choose from demo, online, vision-64, vision-472. Did you mean 'demo'?",
        ),
        (
            "train --preset demo --rule csd",
            "unknown sharing rule 'csd': choose from none, all, skill, cds, cds-hard,",
        ),
        ("train --preset demo --tasks lift-cann", "Did you mean 'lift-can'?"),
        ("train --preset demo --image_sise 64", "unknown option '--image_sise'"),
        ("train --preset demo --image_sise 64", "Did you mean '--image_size'?"),
        ("train --preset demo --steps many", "invalid int value: 'many'"),
        ("train --preset demo --behaviour-policy maybe", "'maybe' is not true or false"),
        ("train --preset demo --data nowhere --out nowhere", "no dataset here"),
        ("data collect --out nowhere --tasks lift-cann", "unknown task 'lift-cann'"),
        ("data collect --out nowhere --renderer tinny", "Did you mean 'tiny'?"),
        ("data collect --out nowhere --episode_per_shard 3", "Did you mean '--episodes_per_shard'?"),
        ("data collect --episodes 3", "--out is required"),
        ("data colect", "choose from"),
        ("data info nowhere", "nowhere: no dataset here"),
        ("eval --checkpoint nowhere.ckpt", "nowhere.ckpt: no such checkpoint"),
        ("eval --checkpoints nowhere.ckpt", "Did you mean '--checkpoint'?"),
        ("eval --checkpoint nowhere.ckpt --tasks lift-cann", "Did you mean 'lift-can'?"),
        ("eval --checkpoint nowhere.ckpt --policies scriptd", "unknown policy 'scriptd'"),
        ("eval --checkpoint nowhere.ckpt --split tset", "unknown split 'tset'"),
        ("eval --checkpoint nowhere.ckpt --randomise lihgt", "Did you mean 'light'?"),
        ("data collect --out nowhere --randomise sise", "Did you mean 'size'?"),
        ("sim watch --task lift-cann", "Did you mean 'lift-can'?"),
        (
            "sim watch --policy scriptd",
            "unknown policy 'scriptd': choose from scripted, crude, random. Did you mean 'scripted'?",
        ),
        ("sim watch --out nowhere/film.mp4", "unknown file format '.mp4': choose from .gif, .webp, .png"),
    ],
)
def test_a_mistake_exits_with_2_and_says_what_would_be_right(typed, line, complaint):
    status, _, err = typed(line)
    assert status == 2
    assert complaint in err
    assert "Traceback" not in err
    assert not Path("nowhere").exists()


def test_a_mistake_typed_in_a_shell_exits_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "train", "--preset", "demoo"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Did you mean 'demo'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_print_config_prints_the_preset_with_what_was_overridden(typed):
    status, out, _ = typed(
        "train --preset demo --print_config --lr 0.25 --tasks lift-can,place-bowl --behaviour-policy no"
    )
    assert status == 0
    config = json.loads(out)
    assert config["lr"] == 0.25
    assert config["tasks"] == ["lift-can", "place-bowl"]
    assert config["behaviour_policy"] is False
    assert config["image_size"] == 64
    assert config["data"] == "datasets/demo"


@pytest.mark.parametrize("preset", ["demo", "vision-64", "vision-472"])
def test_every_preset_resolves_with_hyphens_and_underscores_alike(typed, preset):
    for spelling in ("--batch-size", "--batch_size"):
        status, out, _ = typed(f"train --preset {preset} --print_config {spelling} 77")
        assert status == 0
        assert json.loads(out)["batch_size"] == 77


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_watch_writes_a_film_of_every_step_with_the_detected_tasks_drawn_in(typed, tmp_path, suffix):
    path = tmp_path / "films" / f"can{suffix}"
    line = f"sim watch --task lift-can --policy scripted --size 160 --renderer tiny --out {path} --window no"
    status, out, _ = typed(line)
    assert status == 0
    assert out.endswith(str(path))
    with Image.open(path) as film:
        assert film.size == (320, 364)  # enlarged, for the caption
        assert film.n_frames >= 6
        first = np.asarray(film.convert("RGB")).copy()
        film.seek(film.n_frames - 1)
        last = np.asarray(film.convert("RGB")).astype(int)
    green = (last[320:, :, 1] - last[320:, :, 0]) > 50
    assert green.any()  # the words "detected: lift-can"
    assert not ((first[320:, :, 1].astype(int) - first[320:, :, 0]) > 50).any()


def test_watch_without_a_display_that_answers_writes_the_film_and_says_so(typed, tmp_path, monkeypatch):
    monkeypatch.setenv("DISPLAY", ":99")
    path = tmp_path / "film.gif"
    status, out, err = typed(f"sim watch --policy random --size 64 --renderer tiny --out {path}")
    assert status == 0
    assert out.endswith(str(path))
    assert "no window: " in err
    assert path.is_file()


def test_a_sheet_shows_scenes_of_every_task(typed, tmp_path):
    status, _, _ = typed(f"sim sheet --rows 2 --size 64 --renderer tiny --out {tmp_path / 'sheet.png'}")
    assert status == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (5 * 64, 4 * (64 + 22))


def test_info_prints_the_content_of_a_dataset(typed, tiny_dataset):
    status, out, _ = typed(f"data info {tiny_dataset}")
    assert status == 0
    assert "6 episodes" in out
    assert "lift-banana" in out


def test_a_damaged_dataset_is_one_line_on_the_terminal(typed, tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    status, _, err = typed(f"data info {tmp_path}")
    assert status == 2
    assert err.startswith("error: ")
    assert "manifest.json" in err


@pytest.mark.parametrize(
    "line",
    [
        "train --preset demo --data nowhere --out nowhere --seed",
        "train qtopt-online --task lift-can --out nowhere --seed",
        "train sac --out nowhere --seed",
        "train cql --data nowhere --out nowhere --seeds 0,",
        "data collect --out nowhere --seed",
        "data collect-state --out nowhere --seed",
        "data split nowhere nowhere/a nowhere/b --seed",
        "eval --checkpoint nowhere.ckpt --out nowhere --seed",
        "sim watch --window no --out nowhere/film.gif --seed",
        "sim sheet --out nowhere/sheet.png --seed",
    ],
)
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused_before_anything_is_made(typed, line, seed):
    status, _, err = typed(f"{line}{'' if line.endswith(',') else ' '}{seed}")
    assert status == 2
    assert "seed" in err
    assert str(seed) in err
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    "line", ["sim watch --window no --size 48 --renderer tiny --out {}", "sim sheet --size 48 --out {}"]
)
def test_a_folder_in_the_place_of_an_image_is_refused_before_anything_is_drawn(typed, tmp_path, monkeypatch, line):
    monkeypatch.setattr("sim.env.PickPlaceEnv.reset", lambda *_, **__: pytest.fail("an episode began"))
    (tmp_path / "x.png").mkdir()
    status, _, err = typed(line.format(tmp_path / "x.png"))
    assert status == 2
    assert f"Is a directory: '{tmp_path}/x.png'" in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_a_training_runs_under_a_locale_of_ascii_alone(tiny_training, tmp_path):
    values = {**tiny_training, "tasks": ",".join(tiny_training["tasks"]), "steps": 1, "out": tmp_path / "r\u00fch"}
    options = [text for key, value in values.items() for text in (f"--{key}", str(value))]
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    line = [sys.executable, "-m", "train", "--preset", "demo", *options]
    done = subprocess.run(line, cwd=ROOT, env={**os.environ, **ascii_only}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"1 steps" in done.stdout
    assert (tmp_path / "r\u00fch" / "last.ckpt").is_file()


def test_an_error_is_printed_on_a_terminal_that_lacks_a_letter(tmp_path):
    """A folder name that is not ASCII, in an ASCII locale."""
    folder = tmp_path / "d\u00e4ta"
    folder.mkdir()
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-m", "data", "info", folder], cwd=ROOT, env={**os.environ, **ascii_only}, capture_output=True
    )
    assert done.returncode == 2
    assert b"no dataset here" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_ends_a_command_with_its_status(number, capsys):
    default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, default)  # a shell's background job begins with some ignored
    try:
        assert run_command(lambda: signal.raise_signal(number)) == 128 + number
        assert signal.getsignal(number) is default
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_signal_that_the_parent_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert run_command(lambda: signal.raise_signal(signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_learning_from_disk_loads_no_simulator():
    """A machine that only trains has neither PyBullet nor MuJoCo nor gymnasium."""
    code = (
        "import sys; import data.replay, train.qtopt, train.qtopt_run, train.__main__; "
        "simulator = ('pybullet', 'pybullet_data', 'mujoco', 'gymnasium', 'moderngl', 'trimesh'); "
        "print([name for name in simulator if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
