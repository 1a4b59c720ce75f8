"""Random numbers of members that are trained side by side: one stream for each seed, which its rules have in common.

The draws of member (rule, seed) depend on its seed alone, whatever trains beside it. Rules with the same seed draw the
same numbers (common random numbers), so that a comparison of rules is a paired one.

Shapes: `E` members, rules outer and seeds inner.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from data.seeding import derive_seed

_seed_of = functools.lru_cache(maxsize=256)(derive_seed)  # the rules of an update ask for the same seeds


class MemberRandom:
    """Draws for every member of `rules` rules with these seeds. `numbers` name the stream, such as the purpose and the
    update: the same seeds and numbers draw the same again. On a GPU a draw is one kernel for each seed."""

    def __init__(self, seeds: Sequence[int], rules: int, device: torch.device | str, *numbers: int) -> None:
        self.members, self.device = rules * len(seeds), device
        self._seeds, self._rules, self._numbers = tuple(seeds), rules, numbers
        self._made: list[torch.Generator] = []

    @property
    def generators(self) -> list[torch.Generator]:
        """The generator of each seed."""
        if not self._made:  # most streams of a rule without Q-values are never drawn from
            self._made = [torch.Generator(self.device) for _ in self._seeds]
            for seed, generator in zip(self._seeds, self._made, strict=True):
                generator.manual_seed(_seed_of(seed, *self._numbers))
        return self._made

    def of_one_rule(self, *numbers: int) -> MemberRandom:
        """A stream of its own for the members of one rule, the same for each rule, however much the others draw."""
        return MemberRandom(self._seeds, 1, self.device, *self._numbers, *numbers)

    def stream(self, *numbers: int) -> MemberRandom:
        """Another stream for the same members."""
        return MemberRandom(self._seeds, self._rules, self.device, *self._numbers, *numbers)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32 [E, *shape]."""
        return self._of_members([torch.randn(shape, generator=g, device=self.device) for g in self.generators])

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in [0, 1), [E, *shape]."""
        each = [torch.rand(shape, generator=g, device=self.device, dtype=dtype) for g in self.generators]
        return self._of_members(each)

    def _of_members(self, of_seeds: list[Tensor]) -> Tensor:
        return torch.stack(of_seeds * self._rules)
