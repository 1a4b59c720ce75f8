"""Loading: batches from worker processes, whose decoded pictures pass through shared memory that is used again.

New memory is dear: on a virtual machine the system took 35 to 50 ms to hand out the 47 MB of 60 frames of 512 px, whose
decoding takes 77 ms (docs/data.md). So each worker decodes into one of a few places that it shares with the training,
and has it back when the last tensor on it is gone.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.batches import Batch, BatchStream

PREFETCH = 2  # batches each worker is asked for ahead
PLACES = PREFETCH + 2  # of a worker: one batch is trained on, and the trainer may hold the next
NOWHERE = -1


class Loader:
    """An iterable over the stream's batches, in its order, whatever the number of workers; 0 loads in this process.

    On a machine with a GPU the batches come in pinned memory. `start` is called in each worker with its number."""

    def __init__(self, stream: BatchStream, workers: int, start: Callable[[int], None] | None = None) -> None:
        self._stream, self._workers, self._start = stream, workers, start

    def __iter__(self) -> Iterator[Batch]:
        pin = torch.cuda.is_available()
        if not self._workers:
            yield from (batch.pin_memory() if pin else batch for batch in self._stream)
            return
        places = _Places(self._workers, self._stream.sampler.pictures_shape)
        loader = DataLoader(
            _Filling(self._stream, places),
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=PREFETCH,
            worker_init_fn=self._start,
        )
        for batch, place in loader:
            whole = batch if place == NOWHERE else places.take(batch, place, pin)
            yield whole.pin_memory() if pin else whole


class _Places:
    """Shared memory for the pictures [P, H, W, 3] of so many batches, and which of them are in use."""

    def __init__(self, workers: int, shape: tuple[int, ...]) -> None:
        count = workers * PLACES
        memory = torch.UntypedStorage._new_shared(count * math.prod(shape))  # share_memory_ would fill all of it
        self._pictures = torch.empty(0, dtype=torch.uint8).set_(memory).view(count, *shape)
        self._in_use = torch.zeros(count, dtype=torch.uint8).share_memory_()

    def claim(self, worker: int) -> tuple[int, Tensor | None]:
        """A free place of this worker and its memory; nowhere if the training keeps more batches than there are."""
        for place in range(worker * PLACES, (worker + 1) * PLACES):
            if not self._in_use[place]:
                self._in_use[place] = 1
                return place, self._pictures[place]
        return NOWHERE, None

    def take(self, batch: Batch, place: int, copied: bool) -> Batch:
        """The batch with its pictures; the place is free again when nobody holds them, at once if they are `copied`."""
        array = self._pictures[place].numpy()  # `from_numpy` holds on to it as long as a tensor is on its memory
        pictures = torch.from_numpy(array).permute(0, 3, 1, 2)
        weakref.finalize(array, self._in_use.__setitem__, place, 0).atexit = False
        if copied:
            pictures = pictures.pin_memory()
        return replace(batch, image=pictures[: len(batch)], next_image=pictures[len(batch) :])


class _Filling(IterableDataset[tuple[Batch, int]]):
    """In a worker: batches whose pictures lie at a place, and which."""

    def __init__(self, stream: BatchStream, places: _Places) -> None:
        self._stream, self._places = stream, places

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        info = get_worker_info()
        assert info is not None
        nothing = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
        sampler = self._stream.sampler
        for steps, targets in self._stream.draws(info.id, info.num_workers):
            place, memory = self._places.claim(info.id) if sampler.decodes else (NOWHERE, None)
            batch = sampler.load(steps, targets, memory)
            yield batch if memory is None else replace(batch, image=nothing, next_image=nothing), place
