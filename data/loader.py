"""Loading: batches from worker processes, whose decoded pictures pass through shared memory that is used again.

New memory is dear: on a virtual machine the system took 35 to 50 ms to hand out the 47 MB of 60 frames of 512 px, whose
decoding takes 77 ms. So workers decode into a few places that they share with the training, and have each back when
the last tensor on it is gone. Where there is a GPU the pictures are copied into pinned memory, which PyTorch keeps.
"""

from __future__ import annotations

import functools
import multiprocessing as mp
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.batches import Batch, BatchStream

PREFETCH = 2  # batches each worker is asked for ahead
HELD = 2  # batches of the training: the one under way, and the next, which Lightning fetches before
NOWHERE = -1


class Loader:
    """An iterable over the stream's batches, in its order, whatever the number of workers; 0 loads in this process.

    On a machine with a GPU the batches come in pinned memory. `start` is called in each worker with its number."""

    def __init__(self, stream: BatchStream, workers: int, start: Callable[[int], None] | None = None) -> None:
        self._stream, self._workers, self._start = stream, workers, start
        self.waited_s = 0.0  # for batches, in all

    def __iter__(self) -> Iterator[Batch]:
        batches = self._batches()
        while True:
            begin = time.perf_counter()
            batch = next(batches)
            self.waited_s += time.perf_counter() - begin
            yield batch

    def _batches(self) -> Iterator[Batch]:
        """They never end."""
        pin = torch.cuda.is_available()
        if not self._workers:
            yield from (batch.pin_memory() if pin else batch for batch in self._stream)
            return
        count = 0 if pin or not self._stream.sampler.decodes else self._workers * PREFETCH + HELD
        places = Places(count, self._stream.sampler.pictures_shape)
        loader = DataLoader(
            _Filling(self._stream, places),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=self._workers,
            prefetch_factor=PREFETCH,
            worker_init_fn=functools.partial(_begin, self._start),
            pin_memory=pin,
        )
        for sent, place in loader:
            yield sent if place == NOWHERE else places.take(sent, place)


def _begin(start: Callable[[int], None] | None, worker: int) -> None:
    """What a worker does first: see to it that it ends with its parent, then call `start`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(worker)


def _end_with_parent() -> None:
    """torch's own look at the parent does not end a worker whose next batch no longer fits into the pipe. The last
    worker ends first: each holds open what those before it watch."""
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _unchanged(sent: Any) -> Any:
    return sent


class Places:
    """Shared memory for the pictures [P, H, W, 3] of `count` batches, and which of them are in use."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self._pictures = torch.empty((count, *shape), dtype=torch.uint8).share_memory_()
        self._in_use = torch.zeros(count, dtype=torch.uint8).share_memory_()
        self._claiming = mp.Lock()

    def claim(self) -> tuple[int, Tensor | None]:
        """A free place and its memory; nowhere where the training keeps more batches than usual."""
        with self._claiming:
            for place in range(len(self._in_use)):
                if not self._in_use[place]:
                    self._in_use[place] = 1
                    return place, self._pictures[place]
        return NOWHERE, None

    def take(self, sent: dict[str, NDArray[Any]], place: int) -> Batch:
        """The batch of these arrays and the pictures at the place, which is free again when no tensor is on them."""
        array = self._pictures[place].numpy()  # `from_numpy` holds on to it as long as a tensor is on its memory
        pictures = torch.from_numpy(array).permute(0, 3, 1, 2)
        weakref.finalize(array, self._in_use.__setitem__, place, 0).atexit = False
        half = len(pictures) // 2
        rest = {name: torch.from_numpy(values) for name, values in sent.items()}
        return Batch(image=pictures[:half], next_image=pictures[half:], **rest)


class _Filling(IterableDataset[tuple[Batch | dict[str, NDArray[Any]], int]]):
    """In a worker: what batches hold beside the pictures at a place, and the place; or whole batches.

    Small arrays go through the queue as bytes. As tensors each would be a file of shared memory of its own."""

    def __init__(self, stream: BatchStream, places: Places) -> None:
        self._stream, self._places = stream, places

    def __iter__(self) -> Iterator[tuple[Batch | dict[str, NDArray[Any]], int]]:
        info = get_worker_info()
        assert info is not None
        for steps, targets in self._stream.draws(info.id, info.num_workers):
            place, memory = self._places.claim()
            batch = self._stream.sampler.load(steps, targets, memory)
            yield (batch if memory is None else batch.rest()), place
