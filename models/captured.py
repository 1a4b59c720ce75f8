"""An update that is captured as a CUDA graph: one launch instead of hundreds.

What is captured must not wait for the device, copy from pageable memory, or depend on anything but tensors that stay
where they are; `HostTransfers` finds what does. On a CPU the same function is called as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WARM_UP = 3  # updates as they are, before one is captured
KEPT_PHASES = 2  # with a recording
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


class RandomSource(Protocol):
    """Where a computation draws random numbers from."""

    @property
    def device(self) -> torch.device | str: ...

    def generators(self) -> Iterable[torch.Generator]:
        """Those that it has drawn from."""
        ...

    def renew(self) -> None:
        """Replace them by new ones in the state that they had when the computation began."""
        ...


class Recording(Protocol):
    """A computation that can be repeated with the same tensors."""

    def record(self, compute: Callable[[], Result]) -> Result:
        """Run it once; its results, which `replay` overwrites."""
        ...

    def replay(self) -> None: ...


class GraphRecording:
    """As a CUDA graph, which draws random numbers from the generators by the seeds they have when it is replayed."""

    def __init__(self, random: RandomSource) -> None:
        self._graph = torch.cuda.CUDAGraph()
        for generator in random.generators():
            self._graph.register_generator_state(generator)

    def record(self, compute: Callable[[], Result]) -> Result:
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                result = compute()
        finally:
            torch.cuda.set_stream(stream)  # earlier versions of torch leave another one where a capture fails
        self._graph.replay()
        return result

    def replay(self) -> None:
        self._graph.replay()


@dataclass
class _Phase(Generic[Result]):
    calls: int = 0
    returned: bool = False
    recorded: tuple[Recording, Result] | None = None


class Captured(Generic[Result]):
    """Calls `compute`; on a GPU from the fourth call of a phase on by a recording of it. A recording is dropped when
    its phase ends, unless phases alternate: then those of the latest two stay."""

    enabled = True

    def __init__(
        self,
        compute: Callable[[], Result],
        random: RandomSource,
        optimizers: Sequence[torch.optim.Optimizer],
        recording: Callable[[RandomSource], Recording] | None = None,
    ) -> None:
        """`recording`: how it is recorded; default: a CUDA graph on a GPU, nothing on a CPU."""
        self._compute, self._random, self._optimizers = compute, random, optimizers
        self._device = torch.device(random.device)
        on_gpu = self._device.type == "cuda"
        self._recording = recording or (GraphRecording if on_gpu else None)
        self._phases: dict[Hashable, _Phase[Result]] = {}  # the latest last
        self._phase = _Phase[Result]()
        # A capture wants what warmed up on another stream than the usual one.
        self._stream = torch.cuda.Stream(self._device) if on_gpu else None

    @property
    def recorded(self) -> bool:
        return self._phase.recorded is not None

    @classmethod
    @contextlib.contextmanager
    def disabled(cls) -> Iterator[None]:
        """Nothing is recorded meanwhile, for a comparison."""
        cls.enabled = False
        try:
            yield
        finally:
            cls.enabled = True

    def __call__(self, phase: Hashable) -> Result:
        """`phase`: what the computation depends on besides tensors."""
        if self._recording is None:
            return self._eager()
        self._enter(phase)
        with torch.cuda.device(self._device) if self._stream else contextlib.nullcontext():
            if self._phase.recorded is not None:
                recording, result = self._phase.recorded
                recording.replay()
                return result
            self._make_capturable()
            self._phase.calls += 1
            if self._phase.calls <= WARM_UP or not self.enabled:
                return self._eager()
            return self._record()

    def _enter(self, key: Hashable) -> None:
        """Go on in a phase, which may be the one before."""
        phase = self._phases.pop(key, None)
        if phase is not self._phase:
            if not self._phase.returned:
                self._phase.recorded = None
            if phase is not None:
                phase.returned = True
        self._phase = self._phases[key] = phase or _Phase()
        for old in list(self._phases.values())[:-KEPT_PHASES]:
            old.recorded = None

    def _eager(self) -> Result:
        if self._stream is None:
            return self._compute()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._compute()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _record(self) -> Result:
        assert self._recording is not None
        try:
            recording = self._recording(self._random)
            result = recording.record(self._compute)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
        else:
            self._phase.recorded = recording, result
            return result
        self._recording = None  # outside of the handler, which would keep the tensors of the failed capture
        self._random.renew()
        with HostTransfers() as found:
            result = self._eager()
        names = ", ".join(dict.fromkeys(found.names))
        print(f"updates are not captured as a CUDA graph, and slower: {names or reason}")
        return result

    def _make_capturable(self) -> None:
        """Learning rates become tensors, so that a schedule changes what a recording reads: float32 for a GPU's Adam; a
        CPU's takes the number as it is."""
        kind = torch.float32 if self._device.type == "cuda" else torch.float64
        for group in (group for optimizer in self._optimizers for group in optimizer.param_groups):
            group["capturable"] = True
            if not isinstance(group["lr"], Tensor) or group["lr"].device.type != self._device.type:
                group["lr"] = torch.tensor(float(group["lr"]), dtype=kind, device=self._device)


class StaticInputs:
    """Keeps tensors by name on a device, new values in the same memory, from which a captured computation reads them.
    Where nothing is captured (`static` is False) they are only moved there."""

    def __init__(self, device: torch.device, static: bool) -> None:
        self._device, self._static = device, static
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, values: Tensor) -> Tensor:
        """ValueError where they have another shape than before."""
        if values.device.type == "cpu" and self._device.type == "cuda":
            values = values.contiguous().pin_memory()
        if not self._static:
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
