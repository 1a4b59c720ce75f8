"""Files of a campaign that travel: of every finished training its policies, curves and routing, in tar files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.weight_files import WEIGHTS
from eval.campaign import IMAGE_POLICY, TRAINING
from eval.curves import read_curves
from models.checkpoint import RUN_CONFIG, read_plain
from sim.files import read_json, write_atomic
from train.run_dir import LOG
from train.state_run import POLICY, RETURNS, ROUTING

PACK_BYTES, PACKS = 16_000_000, 8
POINTS = 200  # of a curve


def pack(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Write the files anew, those of one training together. `runs`: folders of the trainings, by name."""
    folder.mkdir(exist_ok=True)
    parts: list[list[tuple[str, bytes]]] = [[]]
    for run in runs:
        files = list(_files_of(run))
        size = sum(len(content) for _, content in files)
        if parts[-1] and sum(len(content) for _, content in parts[-1]) + size > PACK_BYTES:
            parts.append([])
        parts[-1] += files
    paths = [folder / f"campaign-{number}.tar" for number in range(len(parts))]
    for path, files in zip(paths, parts, strict=True):
        write_atomic(path, _tar(files))
    for old in set(folder.glob("campaign-*.tar")) - set(paths):
        old.unlink()
    if len(paths) > PACKS:
        print(f"{folder}: {len(paths)} files, more than the {PACKS} that one transfer may hold")
    return paths


def _files_of(run: Path) -> Iterator[tuple[str, bytes]]:
    """Nothing of one that has not finished."""
    if not (run / TRAINING).is_file() or not read_json(run / TRAINING)["finished"]:
        return
    yield f"{run.name}/curves.json", json.dumps(curves(run)).encode()
    if not (run / ROUTING).is_file():  # from images: in the policy
        routing = read_plain(run / IMAGE_POLICY)["switchyard"]["sharing"]
        yield f"{run.name}/{ROUTING}", json.dumps(routing).encode()
    for name in (TRAINING, RUN_CONFIG, IMAGE_POLICY, POLICY, ROUTING, RETURNS, WEIGHTS):
        if (run / name).is_file():
            yield f"{run.name}/{name}", (run / name).read_bytes()


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of everything that a run logged, at most `POINTS` of each."""
    every = read_curves(run / LOG)
    return {
        tag: [(int(x), y) for x, y in points[:: -(-len(points) // POINTS)].tolist()] for tag, points in every.items()
    }


def _tar(files: list[tuple[str, bytes]]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return content.getvalue()
