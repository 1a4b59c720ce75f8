"""Data pipeline: loader throughput against raw JPEG decoding and other loaders, memory, opening time, and cost of an
episode as a dataset grows.

The loaders alternate block by block over the same episodes at 472 px (frames of 512), random transitions, two processes
each; a ratio is the median over the pairs. Raw decoding is simplejpeg over the same bytes, already in memory, in as
many processes. The PNG peer keeps a pickle of two PNG images for each transition; the HDF5 peer keeps raw frames, like
robomimic, at eight times the bytes.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import multiprocessing as mp
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from bench.report import Row
from data import codec
from data.collect import Collector, collect
from data.loader import Loader
from data.manifest import Manifest, write_manifest
from data.plan import CollectConfig, ShardJob
from data.replay import Replay
from data.sampler import BatchStream, Sampler, SamplerConfig
from data.shards import Episode, ManifestEntry, write_shard
from data.sharing import RULES
from sim.state import SceneState
from sim.tasks import TASK_NAMES, detect_successes

WORKERS = 2
WARM = 16  # batches
PER_TASK = 3  # 30 transitions, 60 frames a batch
ROOT = Path(__file__).parents[1]
ATTRIBUTES = {"renderer": "tiny", "size": 64, "split": "train", "randomise": "all", "seed": 0}
TINY = Manifest(size=8, frame_size=8, renderer="none", split="train", randomise=(), shards=())


def run(quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-") as name:
        work = Path(name)
        return [
            *_loaders(work, quick),
            *_memory(work, quick),
            *_opening(work, quick),
            *_growing(work, quick),
        ]


# ---------------------------------------------------------------------- loaders


def _loaders(work: Path, quick: bool) -> list[Row]:
    episodes, batches, rounds = (10, 4, 1) if quick else (60, 100, 7)
    folder = work / "vision"
    collect(CollectConfig(out=str(folder), episodes=episodes, size=472, workers=WORKERS))
    replay = Replay(folder)
    frames = np.concatenate([list(replay.frames_of(episode)) for episode in range(replay.num_episodes)])
    stored = sum(shard.entry.bytes for shard in replay.shards)
    png, hdf5 = work / "png", work / "raw.h5"
    _write_png(replay, png)
    _write_hdf5(replay, hdf5)
    loaders: dict[str, Callable[[], Iterator[int]]] = {
        "raw": lambda: _raw(replay, frames, batches),
        "ours": lambda: _deliver(Loader(_stream(replay), WORKERS), batches),
        "png": lambda: _deliver(_workers(_PNG(png)), batches),
        "hdf5": lambda: _deliver(_workers(_HDF5(hdf5)), batches),
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(rounds):
        for name, start in loaders.items():
            rates[name].append(_rate(start()))
    middle = {name: statistics.median(values) for name, values in rates.items()}

    def ratio(peer: str) -> float:
        return statistics.median(a / b for a, b in zip(rates["ours"], rates[peer], strict=True))

    size = f"{replay.frame_size} px, {WORKERS} processes, {rounds} rounds"
    each = stored / len(frames)  # bytes
    disk = f"{each / 1e3:.0f} kB a frame; 100,000 episodes of 25 steps: {each * 2.6e6 / 1e9:.0f} GB"
    sizes = sum(path.stat().st_size for path in png.iterdir()) / stored, hdf5.stat().st_size / stored
    return [
        Row(
            name="frames delivered at 472 px, vs raw JPEG decoding",
            value=middle["ours"],
            unit="frames/s",
            peer=middle["raw"],
            ratio=ratio("raw"),
            target=0.8,
            note=f"{size}; floor {1e3 * WORKERS / middle['raw']:.2g} ms a frame and process; {disk}",
        ),
        Row(
            name="vs a pickle of PNG images for each transition",
            value=middle["ours"],
            unit="frames/s",
            peer=middle["png"],
            ratio=ratio("png"),
            target=3.0,
            note=f"the peer takes {sizes[0]:.1f} times the bytes",
        ),
        Row(
            name="vs raw frames in HDF5, as robomimic keeps them",
            value=middle["ours"],
            unit="frames/s",
            peer=middle["hdf5"],
            ratio=ratio("hdf5"),
            note=f"the peer takes {sizes[1]:.1f} times the bytes, here all in the page cache",
        ),
    ]


def _rate(counts: Iterator[int]) -> float:
    """Frames per second after WARM batches, which pay for process start and fresh memory."""
    for _ in range(WARM):
        next(counts)
    begin = time.perf_counter()
    total = sum(counts)
    return total / (time.perf_counter() - begin)


def _stream(replay: Replay) -> BatchStream:
    tasks = tuple(range(len(TASK_NAMES)))
    return BatchStream(Sampler(replay, tasks, RULES["all"], SamplerConfig(per_task=PER_TASK)), seed=0)


def _workers(stream: IterableDataset[torch.Tensor]) -> DataLoader[torch.Tensor]:
    return DataLoader(stream, batch_size=None, num_workers=WORKERS)


def _deliver(loader: Iterable[Sized], batches: int) -> Iterator[int]:
    for batch in itertools.islice(loader, batches + WARM):
        yield 2 * len(batch)


def _raw(replay: Replay, frames: NDArray[np.int64], batches: int) -> Iterator[int]:
    """Decode as many frames as the batches hold into one buffer."""
    rng = np.random.default_rng(0)
    count = 2 * PER_TASK * len(TASK_NAMES)
    images = [frame.image for frame in replay.read(rng.choice(frames, min(len(frames), 400), replace=False))]
    context = mp.get_context("fork")
    with context.Pool(WORKERS, initializer=_hold, initargs=(images,)) as pool:
        yield from pool.imap_unordered(_decode, [count] * (batches + WARM))


def _hold(images: list[bytes]) -> None:
    _decode.images = images  # type: ignore[attr-defined]


def _decode(count: int) -> int:
    images: list[bytes] = _decode.images  # type: ignore[attr-defined]
    frame = codec.decode(images[0])
    for number in range(count):
        codec.decode(images[number % len(images)], frame)
    return count


def _write_png(replay: Replay, folder: Path) -> None:
    folder.mkdir()
    number = 0
    for episode in range(replay.num_episodes):
        files = []
        for image in replay.images(replay.frames_of(episode)):
            out = io.BytesIO()
            Image.fromarray(image).save(out, "png")
            files.append(out.getvalue())
        for first, second in itertools.pairwise(files):
            (folder / f"{number}.pkl").write_bytes(pickle.dumps({"image": first, "next_image": second}))
            number += 1


class _PNG(IterableDataset[torch.Tensor]):
    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.iterdir())

    def __iter__(self) -> Iterator[torch.Tensor]:
        rng = np.random.default_rng(os.getpid())
        while True:
            pair = []
            for number in rng.integers(len(self._files), size=PER_TASK * len(TASK_NAMES)):
                row = pickle.loads(self._files[number].read_bytes())
                pair.append(np.stack([np.array(Image.open(io.BytesIO(row[key]))) for key in ("image", "next_image")]))
            yield torch.from_numpy(np.stack(pair))


def _write_hdf5(replay: Replay, path: Path) -> None:
    with h5py.File(path, "w") as file:
        for episode in range(replay.num_episodes):
            file[f"data/demo_{episode}/obs/image"] = replay.images(replay.frames_of(episode))


class _HDF5(IterableDataset[torch.Tensor]):
    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[torch.Tensor]:
        rng = np.random.default_rng(os.getpid())
        with h5py.File(self._path) as file:
            demos = [file[f"data/{name}/obs/image"] for name in file["data"]]
            while True:
                pair = []
                for number in rng.integers(len(demos), size=PER_TASK * len(TASK_NAMES)):
                    step = rng.integers(len(demos[number]) - 1)
                    pair.append(demos[number][step : step + 2])
                yield torch.from_numpy(np.stack(pair))


# ---------------------------------------------------------------------- memory


def _memory(work: Path, quick: bool) -> list[Row]:
    """Memory of a training whose cache holds a tenth of its dataset, and of one whose cache holds all of it."""
    episodes, steps = (20, 10) if quick else (600, 400)
    folder = work / "small"
    collect(CollectConfig(out=str(folder), episodes=episodes, size=64, workers=WORKERS))
    size = sum(shard.entry.bytes for shard in Replay(folder).shards) / 2**20
    limits = {"tenth": max(1, int(size / 10)), "all": int(2 * size) + 1}
    marks = {name: _training_mib(folder, work / name, limit, steps) for name, limit in limits.items()}
    begin, end = marks["tenth"]
    return [
        Row(
            name="growth of a training with a cache of a tenth of its dataset",
            value=end - begin,
            unit="MiB",
            most=16,
            target_of="value",
            note=f"limit {limits['tenth']} of {size:.0f} MiB; {begin:.0f} -> {end:.0f} MiB, all processes, from a "
            f"third of {steps} steps to their end; with room for all {marks['all'][0]:.0f} -> {marks['all'][1]:.0f}",
        )
    ]


def _training_mib(data: Path, out: Path, limit_mib: int, steps: int) -> tuple[float, float]:
    """Median memory (MiB) after a third of the training time, and at its end."""
    options = {"preset": "online", "data": data, "out": out, "steps": steps, "cache-mib": limit_mib, "workers": WORKERS}
    command = [sys.executable, "-m", "train", *(str(v) for k, value in options.items() for v in (f"--{k}", value))]
    marks = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as training:
        while training.poll() is None:
            time.sleep(0.5)
            with contextlib.suppress(OSError):  # a process that ended meanwhile
                marks.append(_proportional_mib(training.pid))
    if training.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {training.returncode}")
    third = len(marks) // 3
    return statistics.median(marks[third : third + 10]), statistics.median(marks[-14:-4])


def _proportional_mib(process: int) -> float:
    """Proportional set size (PSS) of a process and its children: shared pages count once."""
    total = 0
    children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()
    for each in (process, *children):
        for line in Path(f"/proc/{each}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


# ---------------------------------------------------------------------- opening


OPEN = """
import json, re, sys, time
from data.replay import Replay
begin = time.perf_counter()
replay = Replay(sys.argv[1])
seconds = time.perf_counter() - begin
frame = replay.read([replay.frames_of(replay.num_episodes - 1)[-1]])
peak_kib = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps([seconds, peak_kib / 1024, replay.num_episodes]))
"""


def _opening(work: Path, quick: bool) -> list[Row]:
    """Open 4,000 shards of 25 episodes of 25 steps, with tiny images; all are hard links to one file."""
    count, episodes, steps = (40, 25, 25) if quick else (4000, 25, 25)
    folder = work / "large"
    folder.mkdir()
    state = np.stack([SceneState.empty().vector] * (steps + 1))
    image = codec.encode(np.zeros((8, 8, 3), np.uint8))
    made = [
        Episode(
            task_index=number % len(TASK_NAMES),
            number=number,
            terminated=False,
            noise=0.0,
            action=np.zeros((steps, 5), np.float32),
            state=state,
            verdict=detect_successes(SceneState(state)),
            frames=(image,) * (steps + 1),
        )
        for number in range(episodes)
    ]
    entry = write_shard(folder / "shard-0.h5", made, {**ATTRIBUTES, "policy": "none", "source": 0})
    for number in range(1, count):
        os.link(folder / "shard-0.h5", folder / f"shard-{number}.h5")
    entries = tuple(replace(entry, name=f"shard-{number}.h5") for number in range(count))
    write_manifest(folder, replace(TINY, shards=entries))
    answers = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", OPEN, str(folder)], cwd=ROOT, check=True, capture_output=True, text=True
        )
        answers.append(json.loads(done.stdout))
    seconds, mib = (statistics.median(values) for values in list(zip(*answers, strict=True))[:2])
    what = f"opening {count} shards, {int(answers[0][2])} episodes"
    return [
        Row(name=what, value=seconds, unit="s", most=2.0, target_of="value", note="and a frame read"),
        Row(name=f"{what}: memory", value=mib, unit="MiB", most=300, target_of="value", note="peak, with all imports"),
    ]


# ---------------------------------------------------------------------- growing


def _growing(work: Path, quick: bool) -> list[Row]:
    """Cost of the first shards of a collection and of the same shards after a thousand episodes, manifest included."""
    total, again, per_shard = (40, 1, 10) if quick else (1000, 10, 10)
    config = CollectConfig(out=str(work / "growing"), size=64, tasks=("lift-can",), episodes=total, renderer="tiny")
    (work / "growing").mkdir()
    collector = Collector(work / "growing", config, ATTRIBUTES, [{}], work)
    entries: list[ManifestEntry] = []

    def make(number: int) -> float:
        begin = time.perf_counter()
        job = ShardJob(source=0, task="lift-can", first=number * per_shard, last=(number + 1) * per_shard)
        entries.append(collector(job)[1])
        write_manifest(work / "growing", replace(TINY, shards=tuple(entries)))
        return time.perf_counter() - begin

    make(0)  # the first reset builds the world
    early = [make(number) for number in range(again)]
    for number in range(again, total // per_shard):
        make(number)
    late = [make(number) for number in range(again)]
    ratio = statistics.median(b / a for a, b in zip(early, late, strict=True))
    return [
        Row(
            name=f"cost of an episode after {total} of them, vs the first",
            value=1e3 * statistics.median(late) / per_shard,
            unit="ms/episode",
            peer=1e3 * statistics.median(early) / per_shard,
            ratio=ratio,
            most=1.05,
            note=f"the same {again} shards made at the beginning and again at the end",
        )
    ]
