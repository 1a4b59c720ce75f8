"""`make bench-gpu`: what the learners reach on a GPU, in a few minutes, on a machine that only trains: torch,
torchvision, lightning, numpy, h5py and tensorboard are enough (`python -m bench --only gpu`). On a CPU it shows that it
runs.

Rates of CQL are of its updates alone; rates from images are of whole training runs, from a dataset of synthetic
pictures, as their own log tells them. Captured updates are compared with plain ones in float32.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.io import encode_jpeg

from bench.own_lowdim import synthetic
from bench.report import Row
from bench.step import Step, acting, synthetic_batch, wait
from data.manifest import Manifest, write_manifest
from data.shards import Episode, write_shard
from eval.curves import read_curves
from models.captured import Captured
from sim.image_sizes import frame_size
from sim.state import SceneState
from sim.tasks import TASK_NAMES
from train.cql import CQLConfig
from train.precision import resolve_precision
from train.qtopt_config import PRESETS
from train.qtopt_run import train
from train.run_dir import LOG
from train.state_algorithm import StateAlgorithm
from train.state_run import build

RULES = ("none", "all", "cds", "cds-basic", "hipi")
LEAST_UPDATES_PER_S = {1: 600.0, 15: 5000.0}  # by members
LEAST_STEPS_PER_S, LEAST_SAMPLES_PER_S, MOST_WAITING_PERCENT, MOST_ACTING_MS = 150.0, 1100.0, 5.0, 3.0
MOST_DIFFERENCE = 1e-4
STEPS = 10  # of a synthetic episode


def run(quick: bool) -> list[Row]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-") as name:
        return [
            _updates(device, ("none",), 1, quick),
            _updates(device, RULES, 1 if quick else 3, quick),
            *_training(Path(name), "vision-64", quick),
            *_training(Path(name), "vision-472", quick),
            _acting(quick),
            _same_states(device, quick),
            _same_images(device, quick),
        ]


# ---------------------------------------------------------------------- states


def _updates(device: str, rules: tuple[str, ...], seeds: int, quick: bool) -> Row:
    """Member-updates per second of CQL at the sizes of CDS on walker2d."""
    algorithm, members = _cql(device, rules, seeds, 2000 if quick else 146_000), len(rules) * seeds
    fast = resolve_precision("auto") == "bf16-mixed"
    updates = 2 if quick else 300
    with _precision(device, fast):
        for _ in range(5):  # the fourth is captured
            algorithm.update()
        begin = time.perf_counter()
        for _ in range(updates):
            algorithm.update()
        wait()
    rate = members * updates / (time.perf_counter() - begin)
    return Row(
        name=f"CQL, {members} member(s) of {len(rules)} rule(s), {'bfloat16' if fast else 'float32'}",
        value=rate,
        unit="member-updates/s",
        target=LEAST_UPDATES_PER_S.get(members) if device == "cuda" else None,
        target_of="value",
        note="as a CUDA graph" if algorithm.is_captured else "not captured",
    )


def _cql(device: str, rules: tuple[str, ...], seeds: int, steps: int, **options: Any) -> StateAlgorithm:
    config = CQLConfig(rules=rules, seeds=tuple(range(seeds)), **options)
    algorithm = build("cql", config, synthetic(steps)).to(device)
    algorithm.shared.start(device)
    return algorithm


def _precision(device: str, fast: bool) -> contextlib.AbstractContextManager[Any]:
    """As Lightning's."""
    return torch.autocast(device, torch.bfloat16, cache_enabled=False) if fast else contextlib.nullcontext()


# ---------------------------------------------------------------------- images


def _training(work: Path, preset: str, quick: bool) -> list[Row]:
    """A run of the training command's own function, by its log."""
    config, small = PRESETS[preset], preset == "vision-64"
    side = config.image_size if not quick or small else 220
    batch = 20 if quick else 256 if small else 64
    data, out = work / f"data-{preset}", work / preset
    _write_dataset(data, side, episodes=10 if quick else 1000 if small else 100)
    steps, log_every = (4, 2) if quick else (600, 100) if small else (120, 20)
    run = replace(config, data=str(data), out=str(out), image_size=side, batch_size=batch, steps=steps)
    train(replace(run, log_every=log_every, checkpoint_every=10**6, q_maps_every=10**6))
    data_ms, compute_ms = (_logged(out, f"time/{name}") for name in ("data_ms", "compute_ms"))
    step_ms = statistics.median(a + b for a, b in zip(data_ms, compute_ms, strict=True))
    waiting = 100 * statistics.median(a / (a + b) for a, b in zip(data_ms, compute_ms, strict=True))
    on_gpu = torch.cuda.is_available()
    rate = Row(
        name=f"training run, {preset}, batch {batch}",
        value=1000 / step_ms * (1 if small else batch),
        unit="steps/s" if small else "samples/s",
        target=(LEAST_STEPS_PER_S if small else LEAST_SAMPLES_PER_S) if on_gpu else None,
        target_of="value",
    )
    most = MOST_WAITING_PERCENT if on_gpu else None
    return [rate, Row(name="  of it waiting for data", value=waiting, unit="%", most=most, target_of="value")]


def _logged(run: Path, name: str) -> list[float]:
    """Values in the log of a run, without the first, in which it warms up, where there are others."""
    values: list[float] = read_curves(run / LOG)[name][:, 1].tolist()
    return values[1:] or values


def _write_dataset(folder: Path, size: int, episodes: int) -> None:
    """Episodes of random coloured blocks, half of them successful, equally many of each task."""
    folder.mkdir(parents=True)
    rng, side = np.random.default_rng(0), frame_size(size)
    attributes = {"policy": "none", "renderer": "none", "seed": 0, "source": 0, "checkpoint_sha256": "", "size": size}
    attributes |= {"randomise": "none", "split": "train"}
    made = [_episode(rng, number, side) for number in range(episodes)]
    entry = write_shard(folder / "shard-00000.h5", made, attributes)
    about = {"size": size, "frame_size": side, "renderer": "none", "randomise": (), "split": "train"}
    write_manifest(folder, Manifest(**about, shards=(entry,)))  # type: ignore[arg-type]


def _episode(rng: np.random.Generator, number: int, side: int) -> Episode:
    blocks = rng.integers(256, size=(STEPS + 1, 3, side // 8 + 1, side // 8 + 1), dtype=np.uint8)
    frames = blocks.repeat(8, 2).repeat(8, 3)[:, :, :side, :side]
    task, verdict = number % len(TASK_NAMES), np.zeros((STEPS + 1, len(TASK_NAMES)), np.bool_)
    verdict[-1, task] = number // len(TASK_NAMES) % 2 == 0
    action = rng.uniform(-0.05, 0.05, (STEPS, 5)).astype(np.float32)
    action[:, 4] = 0
    return Episode(
        task_index=task,
        number=number,
        terminated=True,
        noise=0.0,
        action=action,
        state=np.stack([SceneState.empty().vector] * (STEPS + 1)),
        verdict=verdict,
        frames=tuple(encode_jpeg(torch.from_numpy(frame)).numpy().tobytes() for frame in frames),
    )


def _acting(quick: bool) -> Row:
    side = 220 if quick else 472
    config = replace(PRESETS["vision-472"], image_size=side, batch_size=20)
    action_s, trunk_s, candidates_s = acting(config, resolve_precision("auto"), 3 if quick else 20)
    return Row(
        name=f"an action at {side} px, 2 x 64 candidates",
        value=1000 * action_s,
        unit="ms",
        most=MOST_ACTING_MS if torch.cuda.is_available() else None,
        target_of="value",
        note=f"trunk alone {1000 * trunk_s:.2g} ms, 128 candidates alone {1000 * candidates_s:.2g} ms",
    )


# ---------------------------------------------------------------------- captured and plain


def _same_states(device: str, quick: bool) -> Row:
    """The values that are logged."""

    def learner() -> tuple[Callable[[], Tensor], Callable[[], bool]]:
        algorithm = _cql(device, RULES, 1, 2000, hidden_sizes=(32, 32), per_task=16)

        def update() -> Tensor:
            return torch.cat([*algorithm.update().values()]).clone()

        return update, lambda: algorithm.is_captured

    return _difference("states", learner, 5 if quick else 100)


def _same_images(device: str, quick: bool) -> Row:
    """The loss."""
    config = replace(PRESETS["vision-64"], batch_size=20, precision="32-true", log_every=10**9)

    def learner() -> tuple[Callable[[], Tensor], Callable[[], bool]]:
        torch.manual_seed(0)
        module = Step(config).to(device)
        optimizer, generator = module.configure_optimizers()["optimizer"], torch.Generator().manual_seed(0)
        if device == "cuda":
            module.capture(optimizer)

        def update() -> Tensor:
            return module.update(synthetic_batch(config, generator).to(device), optimizer).clone()

        return update, lambda: module.is_captured

    return _difference("images", learner, 2 if quick else 100)


def _difference(name: str, learner: Callable[[], tuple[Callable[[], Tensor], Callable[[], bool]]], updates: int) -> Row:
    """Of what captured and plain updates give, relative to the greater of 1 and its size. A comparison of plain updates
    on a GPU has no value."""
    update, is_captured = learner()
    captured = torch.stack([update() for _ in range(updates)])
    with Captured.disabled():
        update, _ = learner()
        plain = torch.stack([update() for _ in range(updates)])
    valid = is_captured() or not torch.cuda.is_available()
    return Row(
        name=f"captured and plain updates from {name}, float32: greatest relative difference of a loss",
        value=((captured - plain).abs() / plain.abs().clamp(min=1)).max().item() if valid else None,
        unit="",
        most=MOST_DIFFERENCE,
        target_of="value",
        note=f"{updates} updates" + ("" if is_captured() else "; nothing was captured"),
    )
