"""Loading: batches from worker processes, whose decoded pictures pass through shared memory that is used again.

New memory is dear: on a virtual machine the system took 35 to 50 ms to hand out the 47 MB of 60 frames of 512 px, whose
decoding takes 77 ms. So workers decode into a few places that they share with the training, and have each back when
the last tensor on it is gone. The places are anonymous memory that forked workers inherit: nothing of it is in
/dev/shm, of which a container has 64 MB. Where there is a GPU the pictures are copied into pinned memory, which PyTorch
keeps; workers then send tensors, through /dev/shm if that has room for them.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing as mp
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.batches import Batch, BatchStream
from sim.options import leave_signals

SHARED_MEMORY = "/dev/shm"
PREFETCH = 2  # batches each worker is asked for ahead
HELD = 2  # batches of the training: the one under way, and the next, which Lightning fetches before
NOWHERE = -1


class Loader:
    """An iterable over the stream's batches, in its order, whatever the number of workers; 0 loads in this process.

    On a machine with a GPU the batches come in pinned memory. An error of a file or of memory in a worker is raised
    here as it is."""

    def __init__(self, stream: BatchStream, workers: int) -> None:
        self._stream, self._workers = stream, workers
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
        shape, count = self._stream.sampler.pictures_shape, self._workers * PREFETCH + HELD
        sends_tensors = pin and _has_room(count * math.prod(shape))
        places = Places(0 if sends_tensors or not self._stream.sampler.decodes else count, shape)
        loader = DataLoader(
            _Filling(self._stream, places, sends_tensors),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=self._workers,
            prefetch_factor=PREFETCH,
            worker_init_fn=_begin,
            multiprocessing_context="fork",  # the places are inherited
            pin_memory=sends_tensors,
        )
        for sent, place in loader:
            if isinstance(sent, Exception):
                raise sent
            batch = sent if isinstance(sent, Batch) else places.take(sent, place)
            yield batch.pin_memory() if pin and not sends_tensors else batch


def _has_room(size: int) -> bool:
    """Whether so many bytes fit into what processes share files by."""
    try:
        free = os.statvfs(SHARED_MEMORY)
    except OSError:
        return False
    return free.f_bavail * free.f_frsize > 2 * size


def _begin(worker: int) -> None:
    """What a worker does first: leave the signals that stop a training to the training, and end with it.

    torch's own look at the parent does not end a worker whose next batch no longer fits into the pipe. The last worker
    ends first: each holds open what those before it watch."""
    leave_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of this and of the threads that begin here
    for wait in (_end_with_parent, _end_by_parent):
        threading.Thread(target=wait, daemon=True).start()


def _end_with_parent() -> None:
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _end_by_parent() -> None:
    """SIGTERM ends a worker if it comes from its parent, which sends it before it waits for the end; a batch queue
    sends it to all processes of a job."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _unchanged(sent: Any) -> Any:
    return sent


class Places:
    """Shared memory for the pictures [P, H, W, 3] of `count` batches, and which of them are in use."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        memory = mmap.mmap(-1, max(1, count * math.prod(shape)))
        self._pictures = torch.frombuffer(memory, dtype=torch.uint8)[: count * math.prod(shape)].view(count, *shape)
        self._in_use = mmap.mmap(-1, max(1, count))  # a byte each, 1 while it is
        try:
            self._claiming = mp.Lock()
        except OSError as error:
            raise OSError(error.errno, error.strerror, SHARED_MEMORY) from error

    def claim(self) -> tuple[int, Tensor | None]:
        """A free place and its memory; nowhere where the training keeps more batches than usual."""
        with self._claiming:
            for place in range(len(self._pictures)):
                if not self._in_use[place]:
                    self._in_use[place] = 1
                    return place, self._pictures[place]
        return NOWHERE, None

    def take(self, sent: dict[str, NDArray[Any]], place: int) -> Batch:
        """The batch of these arrays and the pictures at the place, if they are at one, which is free again when no
        tensor is on them."""
        if place == NOWHERE:
            return Batch(**{name: torch.from_numpy(values) for name, values in sent.items()})
        array = self._pictures[place].numpy()  # `from_numpy` holds on to it as long as a tensor is on its memory
        pictures = torch.from_numpy(array).permute(0, 3, 1, 2)
        weakref.finalize(array, self._in_use.__setitem__, place, 0).atexit = False
        half = len(pictures) // 2
        rest = {name: torch.from_numpy(values) for name, values in sent.items()}
        return Batch(image=pictures[:half], next_image=pictures[half:], **rest)


class _Filling(IterableDataset[tuple[Batch | dict[str, NDArray[Any]] | Exception, int]]):
    """In a worker: what batches hold beside the pictures at a place, and the place; whole batches where there is none;
    or the error that ends it.

    Arrays go through the queue as bytes. As tensors each would be a file of shared memory of its own."""

    def __init__(self, stream: BatchStream, places: Places, sends_tensors: bool) -> None:
        self._stream, self._places, self._sends_tensors = stream, places, sends_tensors

    def __iter__(self) -> Iterator[tuple[Batch | dict[str, NDArray[Any]] | Exception, int]]:
        info = get_worker_info()
        assert info is not None
        try:
            for steps, targets in self._stream.draws(info.id, info.num_workers):
                place, memory = self._places.claim()
                batch = self._stream.sampler.load(steps, targets, memory)
                yield (batch if self._sends_tensors else batch.arrays(pictures=memory is None)), place
        except (ValueError, OSError, MemoryError) as error:  # others come with their traceback, as torch sends them
            yield error, NOWHERE
