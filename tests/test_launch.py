"""Who launched a training, and how its processes end together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

from data.replay import Replay
from models.image_checkpoint import read_checkpoint
from tests.test_interruptions import group_has_ended, wait_until
from train.launch import join_launch
from train.qtopt_config import QTOptConfig
from train.qtopt_run import train

ROOT = Path(__file__).parents[1]
VARIABLES = ("SLURM_", "TORCHELASTIC_", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "RANK", "MASTER_")


def slurm(tasks, number):
    ids = {"NTASKS": tasks, "NTASKS_PER_NODE": tasks, "PROCID": number, "LOCALID": number, "NODEID": 0, "JOB_ID": 1}
    return {f"SLURM_{key}": str(value) for key, value in ids.items()} | {"SLURM_JOB_NAME": "sweep"}


def elastic(processes, rank):
    variables = {"WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    return {key: str(value) for key, value in variables.items()} | {"TORCHELASTIC_RUN_ID": "1"}


@pytest.fixture
def launched(monkeypatch):
    """`join_launch` under these variables of a launcher."""
    rank = rank_zero_only.rank

    def join(variables, devices, nodes):
        for name in [name for name in os.environ if name.startswith(VARIABLES)]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return join_launch(devices, nodes)

    yield join
    rank_zero_only.rank = rank


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "kind", "first"),
    [
        ({}, 1, 1, LightningEnvironment, True),
        ({}, 2, 1, LightningEnvironment, True),
        ({"LOCAL_RANK": "1"}, 1, 1, LightningEnvironment, True),
        ({"LOCAL_RANK": "1"}, 2, 1, LightningEnvironment, True),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, 2, 1, LightningEnvironment, False),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "1"}, 1, 1, LightningEnvironment, True),
        ({"NODE_RANK": "1", "GROUP_RANK": "1"}, 2, 1, LightningEnvironment, True),
        ({"NODE_RANK": "1"}, 2, 2, LightningEnvironment, False),
        (slurm(2, 1), 1, 1, LightningEnvironment, True),
        (slurm(2, 1), 2, 1, SLURMEnvironment, False),
        (slurm(2, 0), 2, 1, SLURMEnvironment, True),
        ({k: v for k, v in slurm(2, 0).items() if "PER_NODE" not in k}, 2, 1, SLURMEnvironment, True),
        ({"TORCHELASTIC_RUN_ID": "1"}, 2, 1, LightningEnvironment, True),
        (slurm(4, 3), 2, 1, LightningEnvironment, True),
        (elastic(2, 1), 1, 1, LightningEnvironment, True),
        (elastic(2, 1), 2, 1, TorchElasticEnvironment, False),
        (elastic(2, 0), 2, 1, TorchElasticEnvironment, True),
        (slurm(2, 1) | elastic(4, 0), 2, 2, TorchElasticEnvironment, True),
    ],
)
def test_a_launchers_variables_count_where_it_launched_this_training(launched, variables, devices, nodes, kind, first):
    environment, leads = launched(variables, devices, nodes)
    assert type(environment) is kind
    assert leads is first
    assert (rank_zero_only.rank == 0) is first
    if kind is SLURMEnvironment:
        assert not environment.auto_requeue
    if kind is LightningEnvironment and first:
        assert not environment.creates_processes_externally
        assert environment.local_rank() == environment.node_rank() == 0


def test_the_second_training_of_a_sweep_is_a_whole_training(launched, tiny_checkpoint, tiny_training, tmp_path):
    launched(slurm(2, 1) | {"LOCAL_RANK": "1"}, 1, 1)
    rank_zero_only.rank = 1  # as lightning has it after its import under such variables
    path = train(QTOptConfig(out=str(tmp_path / "run"), **tiny_training))
    assert path.read_bytes() == tiny_checkpoint.read_bytes()
    assert {"config.json", "last.ckpt", "log", "train.lock"} <= {entry.name for entry in path.parent.iterdir()}


def command(options):
    values = {key: ",".join(value) if isinstance(value, tuple) else str(value) for key, value in options.items()}
    return [sys.executable, "-m", "train", "--preset", "demo", *(t for k, v in values.items() for t in (f"--{k}", v))]


def ended(options, seconds=90):
    """(exit status, its output) of a training, which leaves no process behind."""
    running = subprocess.Popen(
        command(options), cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output = running.communicate(timeout=seconds)[0]
        assert wait_until(lambda: group_has_ended(running.pid), 30), output
    finally:
        if not group_has_ended(running.pid):
            os.killpg(running.pid, signal.SIGKILL)
    return running.returncode, output


@pytest.fixture
def damaged(tiny_dataset, tmp_path):
    """A copy of the tiny dataset in which every frame of one shard is damaged."""
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_dataset, folder)
    row = Replay(folder).shards[0].entry
    path = folder / row.name
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    content[row.at["frame/image"] + 100 :: 500] ^= 255
    path.write_bytes(content.tobytes())
    return folder, path


@pytest.mark.parametrize("processes", [{"workers": 2}, {"workers": 1, "devices": 2}])
def test_an_error_of_a_loader_ends_every_process_with_one_line(damaged, tiny_training, tmp_path, processes):
    folder, path = damaged
    options = {**tiny_training, **processes, "data": folder, "out": tmp_path / "run", "steps": 400}
    status, output = ended({**options, "lr_decay": False})
    assert status == 2, output
    assert f"error: {path}: damaged shard" in output
    assert "Traceback" not in output


FAILING = """
import json, os, sys
from train.qtopt_config import QTOptConfig
from train.qtopt_run import train
if os.environ.get("LOCAL_RANK") == "1":
    sys.exit("error: the second process cannot begin")
if __name__ == "__main__":
    train(QTOptConfig(**json.loads(sys.argv[1])))
"""


def test_a_process_that_fails_before_it_joins_the_others_ends_the_training(tiny_training, tmp_path):
    (tmp_path / "script.py").write_text(FAILING)
    options = json.dumps({**tiny_training, "devices": 2, "out": str(tmp_path / "run")})
    line = [sys.executable, tmp_path / "script.py", options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 1  # of the second process
    assert "error: the second process cannot begin" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_loader_process_that_is_killed_ends_the_training_with_one_line(tiny_training, tmp_path):
    options = {**tiny_training, "workers": 1, "steps": 5000, "lr_decay": False, "out": tmp_path / "run"}
    running = subprocess.Popen(command(options), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert wait_until((tmp_path / "run" / "last.ckpt").is_file, 60)
    (worker,) = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    output = running.communicate(timeout=60)[0]
    assert running.returncode == 2, output
    assert "error: a loader process died" in output
    assert "Traceback" not in output


def test_checkpoints_do_not_pass_through_the_temporary_folder(tiny_training, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    path = train(QTOptConfig(out=str(tmp_path / "run"), **{**tiny_training, "steps": 1}))
    assert read_checkpoint(path)["switchyard"]["steps"] == 1
