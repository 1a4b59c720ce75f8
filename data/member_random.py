"""Random numbers of members that are trained side by side: one stream for each seed, which its rules have in common.

The draws of member (rule, seed) depend on its seed alone, whatever trains beside it. Rules with the same seed draw the
same numbers (common random numbers), so that a comparison of rules is a paired one.

Shapes: `E` members, rules outer and seeds inner.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from data.seeding import derive_seed

_seed_of = functools.lru_cache(maxsize=256)(derive_seed)  # streams of an update ask for the same seeds


class MemberRandom:
    """Draws for every member of `rules` rules with these seeds. `numbers` name the stream, such as the purpose and the
    update: the same seeds and numbers draw the same again. On a GPU a draw is one kernel for each seed.

    `begin` turns it into another stream, its generators being kept: a CUDA graph draws from those it was captured
    with, and is told by their seeds what to draw (models/captured.py)."""

    def __init__(self, seeds: Sequence[int], rules: int, device: torch.device | str, *numbers: int) -> None:
        self.members, self.device = rules * len(seeds), device
        self._seeds, self._rules, self._numbers = tuple(seeds), rules, numbers
        self._made: list[torch.Generator] = []
        self._streams: dict[tuple[int, tuple[int, ...]], MemberRandom] = {}

    def begin(self, *numbers: int) -> None:
        """Go on as the stream of these numbers, with the streams made of this one."""
        self._numbers = numbers
        self._seed()
        for (_, purpose), stream in self._streams.items():
            stream.begin(*numbers, *purpose)

    def of_one_rule(self, *numbers: int) -> MemberRandom:
        """The stream of this and further numbers, for the members of one rule, however much the others draw. Asked for
        again it goes on."""
        return self._stream(1, numbers)

    def stream(self, *numbers: int) -> MemberRandom:
        """The stream of this and further numbers, for the same members. Asked for again it goes on."""
        return self._stream(self._rules, numbers)

    def _stream(self, rules: int, numbers: tuple[int, ...]) -> MemberRandom:
        if (rules, numbers) not in self._streams:
            stream = MemberRandom(self._seeds, rules, self.device, *self._numbers, *numbers)
            self._streams[rules, numbers] = stream
        return self._streams[rules, numbers]

    def generators(self) -> Iterator[torch.Generator]:
        """Those that were drawn from, of this stream and of the ones made of it."""
        yield from self._made
        for stream in self._streams.values():
            yield from stream.generators()

    def renew(self) -> None:
        """Draw anew from the start, from other generators."""
        self._made = []
        for stream in self._streams.values():
            stream.renew()

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32 [E, *shape]."""
        return self._of_members([torch.randn(shape, generator=g, device=self.device) for g in self._of_seeds()])

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in [0, 1), [E, *shape]."""
        each = [torch.rand(shape, generator=g, device=self.device, dtype=dtype) for g in self._of_seeds()]
        return self._of_members(each)

    def _of_seeds(self) -> list[torch.Generator]:
        if not self._made:  # most streams of a rule without Q-values are never drawn from
            self._made = [torch.Generator(self.device) for _ in self._seeds]
            self._seed()
        return self._made

    def _seed(self) -> None:
        for seed, generator in zip(self._seeds, self._made, strict=bool(self._made)):
            generator.manual_seed(_seed_of(seed, *self._numbers))

    def _of_members(self, of_seeds: list[Tensor]) -> Tensor:
        return torch.stack(of_seeds * self._rules)
