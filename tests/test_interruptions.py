"""Interruptions by a kill or a full disk: no process stays, and the same command completes a collection."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from data.check import check
from data.replay import Replay

ROOT = Path(__file__).parents[1]


def test_a_full_disk_is_named_and_what_is_finished_stays(tmp_path):
    """The system refuses to let a file grow beyond 200 kB, as it refuses to fill a disk: no shard of twenty fits."""
    folder = tmp_path / "full"
    options = ["--tasks", "lift-can", "--episodes-per-shard", "20"]
    subprocess.run([*command(folder, 20), *options], cwd=ROOT, capture_output=True, check=True)
    finished = {path.name: path.read_bytes() for path in folder.iterdir()}
    line = f"ulimit -f 200; trap '' XFSZ; exec {shlex.join([*command(folder, 60), *options])}"
    full = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert full.returncode == 2
    assert re.search(rf"error: .*File too large: '{folder}/\S+\.h5'", full.stderr), full.stderr
    assert "Traceback" not in full.stderr
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {**kept, "collect.json": finished["collect.json"]} == finished
    assert check(folder).wrong == ()


def command(folder, episodes):
    values = {
        "out": folder,
        "episodes": episodes,
        "size": 48,
        "workers": 2,
        "renderer": "tiny",
        "episodes_per_shard": 4,
    }
    return [sys.executable, "-m", "data", "collect", *(str(v) for key in values for v in (f"--{key}", values[key]))]


def wait_until(happened, seconds):
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.05)
    return happened()


def group_has_ended(group):
    """Whether no process of the group runs (what has ended but was not waited for does not count)."""
    states = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        states += [fields[0]] if int(fields[2]) == group else []
    return all(state in "ZX" for state in states)


def test_a_killed_collection_leaves_no_worker_behind_and_the_same_command_completes_it(tmp_path, tiny_dataset):
    """The parent gets SIGKILL, so it can tell its workers nothing."""
    folder, episodes = tmp_path / "killed", 60
    killed = subprocess.Popen(
        command(folder, episodes),
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert wait_until(lambda: len(list(folder.glob("*.h5"))) >= 2, 60)
        killed.kill()
        killed.wait()
        workers_ended = wait_until(lambda: group_has_ended(killed.pid), 30)
    finally:
        if not group_has_ended(killed.pid):
            os.killpg(killed.pid, signal.SIGKILL)
    assert len(list(folder.glob("*.h5"))) < 15
    again = subprocess.run(command(folder, episodes), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert Replay(folder).num_episodes == episodes
    assert check(folder).wrong == ()
    assert workers_ended, "workers went on collecting after their parent was killed"


def test_a_killed_worker_is_replaced(tmp_path, tiny_dataset):
    folder, episodes = tmp_path / "killed", 60
    running = subprocess.Popen(command(folder, episodes), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert wait_until(lambda: len(list(folder.glob("*.h5"))) >= 1, 60)
    os.kill(children(running.pid)[-1], signal.SIGKILL)
    out = running.communicate(timeout=120)[0].decode()
    assert running.returncode == 0, out
    assert Replay(folder).num_episodes == episodes
    assert check(folder).wrong == ()


LOADING = """
import sys, time
from data.sampler import BatchStream, Sampler, SamplerConfig
from data.loader import Loader
from data.replay import Replay
from data.sharing import RULES
from sim.tasks import TASKS
sampler = Sampler(Replay(sys.argv[1]), (TASKS["lift-banana"].index,), RULES["none"], SamplerConfig(per_task=2000))
for batch in Loader(BatchStream(sampler, 0), 2):
    print("loaded", flush=True)
    time.sleep(1000)
"""


def test_a_killed_training_leaves_no_loading_worker_behind(tiny_dataset):
    """Batches are so large that the next no longer fit into the pipe between worker and training."""
    training = subprocess.Popen(
        [sys.executable, "-c", LOADING, tiny_dataset], cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE
    )
    try:
        assert training.stdout.readline() == b"loaded\n"
        training.kill()
        training.wait()
        assert wait_until(lambda: group_has_ended(training.pid), 30)
    finally:
        if not group_has_ended(training.pid):
            os.killpg(training.pid, signal.SIGKILL)


def children(parent):
    """Worker processes, oldest first (and not multiprocessing's own helper)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields, line = stat.read_text().rpartition(")")[2].split(), (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == parent and "spawn_main" in line:
            found.append(int(stat.parent.name))
    return sorted(found)
