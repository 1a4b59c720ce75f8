"""Data loader: worker processes decode batches into reusable buffers of shared memory.

Fresh memory is expensive: on a virtual machine the system took 35 to 50 ms to allocate the 47 MB of 60 frames of
512 px, whose decoding takes 77 ms. So workers decode into a few slots shared with the training process; a slot is free
again when the last tensor on it is gone. Slots are anonymous memory inherited by forked workers: nothing of it is in
/dev/shm, which is 64 MB in a container. With a GPU, images are copied to pinned memory, which PyTorch caches; workers
then send tensors, through /dev/shm if it has room for them.
"""

from __future__ import annotations

import abc
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
from torch.utils.data import DataLoader, Dataset

from data.batches import Batch, split_images
from data.decoded_frames import DecodedFrames
from data.sampler import BatchStream, Drawn
from sim.options import leave_signals

SHARED_MEMORY = "/dev/shm"
PREFETCH = 2  # batches that each worker prepares ahead
HELD = 2  # batches held by the training: the current one, and the next, which Lightning prefetches
DRAWN_AHEAD = 64  # batches, at most, that are drawn before a batch is learned from
NO_SLOT = -1


class TimedBatches(abc.ABC):
    """Endless batches, and the time spent waiting for them."""

    waited_s = 0.0  # in all

    def __iter__(self) -> Iterator[Batch]:
        batches = self._batches()
        while True:
            begin = time.perf_counter()
            batch = next(batches)
            self.waited_s += time.perf_counter() - begin
            yield batch

    @abc.abstractmethod
    def _batches(self) -> Iterator[Batch]:
        """Endless."""


class Loader(TimedBatches):
    """Iterable over the stream's batches, in the same order for any number of workers; 0 loads in this process.

    Batches are drawn in this process, so that they may depend on the training, and loaded by the workers. They are in
    pinned memory if there is a GPU. File and memory errors of a worker are raised here unchanged."""

    def __init__(self, stream: BatchStream, workers: int) -> None:
        """ValueError for more workers than batches may be drawn ahead."""
        if workers > DRAWN_AHEAD - HELD:
            raise ValueError(f"at most {DRAWN_AHEAD - HELD} loader processes, got {workers}")
        self._stream, self._workers = stream, workers

    def _batches(self) -> Iterator[Batch]:
        pin = torch.cuda.is_available()
        if not self._workers:
            yield from (batch.pin_memory() if pin else batch for batch in self._stream)
            return
        prefetch = min(PREFETCH, (DRAWN_AHEAD - HELD) // self._workers)
        shape, count = self._stream.sampler.images_shape, self._workers * prefetch + HELD
        sends_tensors = pin and _has_room(count * math.prod(shape))
        slots = ImageSlots(0 if sends_tensors or not self._stream.sampler.decodes else count, shape)
        loader = DataLoader(
            _WorkerBatches(self._stream, slots, sends_tensors),
            sampler=_Draws(self._stream),
            batch_size=None,
            collate_fn=_identity,
            num_workers=self._workers,
            prefetch_factor=prefetch,
            worker_init_fn=_init_worker,
            multiprocessing_context="fork",  # the slots are inherited
            pin_memory=sends_tensors,
        )
        for sent, slot in loader:
            if isinstance(sent, Exception):
                raise sent
            batch = sent if isinstance(sent, Batch) else slots.take(sent, slot)
            yield batch.pin_memory() if pin and not sends_tensors else batch


class DeviceLoader(TimedBatches):
    """The same batches, of frames that are on the device already."""

    def __init__(self, stream: BatchStream, frames: DecodedFrames) -> None:
        self._stream, self._frames = stream, frames

    def _batches(self) -> Iterator[Batch]:
        return (self._stream.sampler.gather(drawn, self._frames) for drawn in self._stream.draws())


def _has_room(size: int) -> bool:
    """Whether twice as many bytes are free in /dev/shm."""
    try:
        free = os.statvfs(SHARED_MEMORY)
    except OSError:
        return False
    return free.f_bavail * free.f_frsize > 2 * size


def _init_worker(worker: int) -> None:
    """Ignore the signals that stop a training, which handles them, and exit with the parent process.

    torch's own watchdog does not end a worker whose next batch no longer fits into the pipe. The last worker ends
    first: each holds open the pipes that earlier workers watch."""
    leave_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in this thread and those started below
    for wait in (_end_with_parent, _end_by_parent):
        threading.Thread(target=wait, daemon=True).start()


def _end_with_parent() -> None:
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _end_by_parent() -> None:
    """Exit on a SIGTERM of the parent, which sends it before it joins the worker; a batch queue sends SIGTERM to all
    processes of a job, which a worker ignores."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _identity(sent: Any) -> Any:
    return sent


class ImageSlots:
    """Shared memory for the images [2 B, H, W, 3] of `count` batches, with a flag for each slot in use."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        memory = mmap.mmap(-1, max(1, count * math.prod(shape)))
        self._images = torch.frombuffer(memory, dtype=torch.uint8)[: count * math.prod(shape)].view(count, *shape)
        self._in_use = mmap.mmap(-1, max(1, count))  # a byte for each slot
        try:
            self._lock = mp.Lock()
        except OSError as error:
            raise OSError(error.errno, error.strerror, SHARED_MEMORY) from error

    def acquire(self) -> tuple[int, Tensor | None]:
        """A free slot and its memory; (NO_SLOT, None) if the training holds more batches than usual."""
        with self._lock:
            for slot in range(len(self._images)):
                if not self._in_use[slot]:
                    self._in_use[slot] = 1
                    return slot, self._images[slot]
        return NO_SLOT, None

    def take(self, sent: dict[str, NDArray[Any]], slot: int) -> Batch:
        """The batch of these arrays and of the images in the slot, if any, which is free when no tensor is on it."""
        if slot == NO_SLOT:
            return Batch(**{name: torch.from_numpy(values) for name, values in sent.items()})
        array = self._images[slot].numpy()  # `from_numpy` references it as long as a tensor is on its memory
        images = torch.from_numpy(array).permute(0, 3, 1, 2)
        weakref.finalize(array, self._in_use.__setitem__, slot, 0).atexit = False
        rest = {name: torch.from_numpy(values) for name, values in sent.items()}
        return Batch(**split_images(images, len(sent["task_index"])), **rest)


class _Draws:
    """What is loaded for each batch, drawn when a worker is given it."""

    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Drawn]:
        return self._stream.draws()


class _WorkerBatches(Dataset[tuple[Batch | dict[str, NDArray[Any]] | Exception, int]]):
    """Runs in a worker and loads what was drawn, (batch, slot): the arrays of a batch without its images, which are in
    the slot; the whole batch without a slot; or the error that ends the training.

    Arrays go through the queue as bytes. Each tensor would be a shared-memory file of its own."""

    def __init__(self, stream: BatchStream, slots: ImageSlots, sends_tensors: bool) -> None:
        self._sampler, self._slots, self._sends_tensors = stream.sampler, slots, sends_tensors

    def __getitem__(self, drawn: Drawn) -> tuple[Batch | dict[str, NDArray[Any]] | Exception, int]:
        try:
            slot, memory = self._slots.acquire()
            batch = self._sampler.load(drawn, memory)
            return (batch if self._sends_tensors else batch.arrays(images=memory is None)), slot
        except (ValueError, OSError, MemoryError) as error:  # torch sends others with their traceback
            return error, NO_SLOT
