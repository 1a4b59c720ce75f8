"""An update that is captured as a CUDA graph: one launch instead of hundreds.

What is captured must not wait for the device, copy from pageable memory, or depend on anything but tensors that stay
where they are; `HostTransfers` finds what does. On a CPU the same function is called as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WARM_UP = 3  # updates as they are, before one is captured
TRANSFERS = (  # operators, by how their names begin
    "_local_scalar_dense",  # item
    "_unique",
    "equal",
    "is_nonzero",
    "lift_fresh",  # torch.tensor
    "masked_select",
    "nonzero",
    "repeat_interleave.Tensor",
    "unique",
)
Result = TypeVar("Result")


class Chance(Protocol):
    """Where a computation draws random numbers from."""

    @property
    def device(self) -> torch.device | str: ...

    def generators(self) -> Iterable[torch.Generator]:
        """Those that it has drawn from."""
        ...


class Recording(Protocol):
    """A computation that can be repeated with the same tensors."""

    def record(self, compute: Callable[[], Result]) -> Result:
        """Run it once; its results, which `replay` overwrites."""
        ...

    def replay(self) -> None: ...


class GraphRecording:
    """As a CUDA graph, which draws random numbers from the given generators by the seeds they have when it is
    replayed."""

    def __init__(self, chance: Chance) -> None:
        self._graph = torch.cuda.CUDAGraph()
        for generator in chance.generators():
            self._graph.register_generator_state(generator)

    def record(self, compute: Callable[[], Result]) -> Result:
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            result = compute()
        self._graph.replay()
        return result

    def replay(self) -> None:
        self._graph.replay()


class Captured(Generic[Result]):
    """Calls `compute`; on a GPU from the fourth call of a phase on by a recording of it."""

    records = True

    def __init__(
        self,
        compute: Callable[[], Result],
        chance: Chance,
        optimizers: Sequence[torch.optim.Optimizer],
        recording: Callable[[Chance], Recording] | None = None,
    ) -> None:
        """`recording`: how it is recorded; default: a CUDA graph on a GPU, nothing on a CPU."""
        self._compute, self._chance, self._optimizers = compute, chance, optimizers
        on_gpu = torch.device(chance.device).type == "cuda"
        self._recording = recording or (GraphRecording if on_gpu else None)
        self._calls: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, tuple[Recording, Result]] = {}
        self._stream = torch.cuda.Stream() if on_gpu else None  # a capture wants what warmed up on another stream

    @property
    def recorded(self) -> int:
        """How many phases are."""
        return len(self._recorded)

    @classmethod
    @contextlib.contextmanager
    def refused(cls) -> Iterator[None]:
        """Nothing is recorded meanwhile, for a comparison."""
        cls.records = False
        yield
        cls.records = True

    def __call__(self, phase: Hashable) -> Result:
        """`phase`: what the computation depends on besides tensors; each is recorded for itself."""
        if phase in self._recorded:
            recording, result = self._recorded[phase]
            recording.replay()
            return result
        self._calls[phase] = self._calls.get(phase, 0) + 1
        if self._recording is None or self._calls[phase] <= WARM_UP or not self.records:
            return self._as_it_is()
        return self._record(phase)

    def _as_it_is(self) -> Result:
        if self._stream is None:
            return self._compute()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._compute()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _record(self, phase: Hashable) -> Result:
        assert self._recording is not None
        for group in (group for optimizer in self._optimizers for group in optimizer.param_groups):
            group["capturable"] = True
            group["lr"] = self._readable(group["lr"])
        try:
            recording = self._recording(self._chance)
            result = recording.record(self._compute)
        except RuntimeError as error:
            self._recording = None
            with HostTransfers() as found:
                result = self._as_it_is()
            cause = ", ".join(found.names) or str(error).splitlines()[0]
            print(f"updates are not captured as a CUDA graph, and slower: {cause}")
            return result
        self._recorded[phase] = recording, result
        return result

    def _readable(self, rate: float | Tensor) -> Tensor:
        """A learning rate as a tensor, so that a schedule changes what a recording reads: float32 for a GPU's Adam; a
        CPU's takes the number as it is."""
        device = torch.device(self._chance.device)
        return torch.tensor(float(rate), dtype=torch.float32 if device.type == "cuda" else torch.float64, device=device)


class Held:
    """Keeps tensors by name on a device, new values in the same memory, from which a captured computation reads them.
    Where nothing is captured (`still` is False) they are only moved there."""

    def __init__(self, device: torch.device, still: bool) -> None:
        self._device, self._still = device, still
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, values: Tensor) -> Tensor:
        """ValueError where they have another shape than before."""
        if values.device != self._device and self._device.type == "cuda":
            values = values.contiguous().pin_memory()
        if not self._still:
            return values.to(self._device, non_blocking=True)
        if name not in self._kept:
            self._kept[name] = torch.empty_like(values, device=self._device)
        kept = self._kept[name]
        if kept.shape != values.shape:
            raise ValueError(f"{name} of a step has shape {list(values.shape)}, of earlier ones {list(kept.shape)}")
        return kept.copy_(values, non_blocking=True)


class HostTransfers(TorchDispatchMode):
    """Notes the `names` of operators that wait for the device, or that bring numbers of the host to it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::")
        given = [each for each in tree_leaves(args) if isinstance(each, Tensor)]
        devices = {each.device for each in [*given, *tree_leaves(result)] if isinstance(each, Tensor) and each.dim()}
        by_mask = name.startswith("index") and any(each.dtype == torch.bool for each in given[1:])
        if name.startswith(TRANSFERS) or len(devices) > 1 or by_mask:
            self.names.append(str(func))
        return result
