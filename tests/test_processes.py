"""Two processes (gloo, on the CPU) do together what one does with the batches of both."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from bench.step import Step, synthetic_batch
from data.batches import Batch
from data.replay import Replay
from data.sampler import BatchStream, Sampler, SamplerConfig
from data.sharing import RULES
from models.image_checkpoint import read_checkpoint
from sim.tasks import TASK_NAMES, TASKS
from train.qtopt_config import PRESETS

ROOT = Path(__file__).parents[1]
SMALL = replace(PRESETS["demo"], share_after=0, image_size=48, batch_size=12, tasks=TASK_NAMES[:3], random_crop=False)
LARGE = replace(PRESETS["vision-472"], image_size=220, batch_size=4, tasks=TASK_NAMES[:2], random_crop=False)
BY_WEIGHT = {"sharing": "weight", "granularity": "transition"}
CONFIGS = {
    "cds": replace(SMALL, rule="cds", **BY_WEIGHT),
    "cds-hard": SMALL,
    "none": replace(SMALL, rule="none"),
    "qtopt": LARGE,
}
CONFIGS["hipi-partition"] = replace(SMALL, rule="hipi-partition", weigh_own_probability=0.5, **BY_WEIGHT)


class Fixed(Step):
    """The step without random numbers: what it would draw is a function of each row. In float64, because batch
    normalisation over a few images enlarges rounding errors."""

    def forward(self, batch):
        return self.training_step(batch, 0)

    def preprocess(self, frames, stream):
        image, corner = super().preprocess(frames, stream)
        return image.double(), corner

    def _td_target(self, batch, image, generator):
        return (0.8 * batch.reward + 0.1 * batch.gripper[:, 0]).clamp(0, 1)

    def _unseen_actions(self, action, generator):
        moved = action[:, None].repeat(1, 4, 1)
        moved[..., :4] *= torch.tensor([0.5, -0.5, -1, 0], dtype=action.dtype)[:, None]
        return moved


def batch_of(config, rank):
    batch = synthetic_batch(config, torch.Generator().manual_seed(rank))
    values = {f.name: getattr(batch, f.name) for f in fields(Batch)}
    return Batch(**{name: value.double() if value.is_floating_point() else value for name, value in values.items()})


def joined(batches):
    return Batch(**{f.name: torch.cat([getattr(batch, f.name) for batch in batches]) for f in fields(Batch)})


def result(name, batch, wrap=lambda module: module):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        module = Fixed(CONFIGS[name]).double()
        step = wrap(module)  # must live until the gradients are there
        step(batch).backward()
    finally:
        torch.set_default_dtype(torch.float32)
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"gradients": gradients, "buffers": dict(module.named_buffers())}


def work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, config in CONFIGS.items():
        torch.save(result(name, batch_of(config, rank), DistributedDataParallel), f"{folder}/{name}-{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """Folder of what each of two processes found, NAME-RANK.pt."""
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_have_the_gradient_and_the_statistics_of_one_with_both_batches(of_two, name):
    alone = result(name, joined([batch_of(CONFIGS[name], rank) for rank in (0, 1)]))
    assert max(g.abs().max() for g in alone["gradients"].values()) > 1e-2
    for rank in (0, 1):
        found = torch.load(of_two / f"{name}-{rank}.pt", weights_only=True)
        for kind in ("gradients", "buffers"):
            assert found[kind].keys() == alone[kind].keys()
            for key, value in alone[kind].items():
                mine = found[kind][key].double()
                assert torch.allclose(mine, value.double(), rtol=0, atol=1e-5, equal_nan=True), (kind, key)


def test_the_parts_of_two_processes_are_the_batch_of_one_and_hold_no_episode_twice(
    tmp_path, make_episode, write_dataset
):
    tasks = ("lift-can", "place-bowl")
    chosen = [(task, successes) for task in tasks for successes in ((task,), ()) for _ in range(12)]
    episodes = [make_episode(task, 3, successes, number=number) for number, (task, successes) in enumerate(chosen)]
    replay = Replay(write_dataset(tmp_path / "set", [episodes]))
    numbers = tuple(TASKS[task].index for task in tasks)

    def draws(per_task, processes, rank):
        config = SamplerConfig(per_task=per_task, processes=processes)
        stream = BatchStream(Sampler(replay, numbers, RULES["all"], config), 5, rank=rank).draws()
        return [(drawn.steps, drawn.targets) for drawn in islice(stream, 20)]

    for (steps, targets), first, second in zip(draws(8, 1, 0), draws(4, 2, 0), draws(4, 2, 1), strict=True):
        assert len(set(replay.episode_of(steps))) == 16
        assert first[1].tolist() == second[1].tolist() == np.repeat(numbers, 4).tolist()
        both = sorted(zip(np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]]), strict=True))
        assert both == sorted(zip(steps, targets, strict=True))


def test_a_run_of_two_processes_that_goes_on_is_the_one_that_was_not_stopped(tiny_training, tmp_path):
    for name, steps in (("resumed", 2), ("resumed", 3), ("straight", 3)):
        options = {**tiny_training, "tasks": ",".join(tiny_training["tasks"]), "out": tmp_path / name, "devices": 2}
        options |= {"lr_decay": False, "steps": steps}
        values = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        line = [sys.executable, "-m", "train", "--preset", "demo", *values]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    resumed, straight = (read_checkpoint(tmp_path / name / "last.ckpt") for name in ("resumed", "straight"))
    assert resumed["switchyard"]["steps"] == straight["switchyard"]["steps"] == 3
    for key, value in straight["state_dict"].items():
        assert torch.allclose(resumed["state_dict"][key], value, rtol=0, atol=0, equal_nan=True), key
