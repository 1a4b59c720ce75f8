"""Randomness of a training step on images, a function of (seed, process, step) alone: a resumed run repeats it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from data.batches import Batch
from data.seeding import derive_seed
from models.captured import StaticInputs
from models.images import Augmentation
from sim.tasks import TASK_NAMES
from train.qtopt_config import QTOptConfig
from train.seeding import RandomStream

PREPROCESSED = {RandomStream.IMAGE: "image", RandomStream.NEXT_IMAGE: "next_image"}  # and the field of a batch


class StepRandom:
    """Numbers of a large size come from generators on the device, which are kept; the others are drawn before a step
    and moved there."""

    uniform: Tensor  # [1, N] of the router, the same in every process

    def __init__(self, config: QTOptConfig, rank: int, device: torch.device, inputs: StaticInputs) -> None:
        self.device, self._config, self._rank, self._inputs = device, config, rank, inputs
        self._generators: dict[RandomStream, torch.Generator] = {}
        self._augmentations: dict[RandomStream, Augmentation] = {}
        self._step = 0

    def begin(self, step: int, batch: Batch, streams: Iterable[RandomStream]) -> None:
        """Prepare a step on this batch, with augmentations of these streams."""
        self._step, config = step, self._config
        for stream, generator in self._generators.items():
            generator.manual_seed(self.seed(stream))
        for stream in streams:
            frames = getattr(batch, PREPROCESSED[stream])
            drawn = Augmentation.draw(
                frames, config.image_size, self.seed(stream), config.random_crop, config.photometric
            )
            corner = self._inputs(f"{stream.name} corner", drawn.corner)
            factors = None if drawn.factors is None else self._inputs(f"{stream.name} factors", drawn.factors)
            self._augmentations[stream] = Augmentation(corner, factors)
        routing = torch.Generator().manual_seed(derive_seed(config.seed, step, RandomStream.ROUTING))
        self.uniform = self._inputs("uniform", torch.rand(1, len(TASK_NAMES), generator=routing))

    def renew(self) -> None:
        """Draw anew from the start of the step, from other generators."""
        self._generators.clear()

    def seed(self, stream: RandomStream) -> int:
        """Seed of one purpose in this step."""
        return derive_seed(self._config.seed, self._rank, self._step, stream)

    def generator(self, stream: RandomStream) -> torch.Generator:
        """The generator of one purpose, on the device."""
        if stream not in self._generators:
            self._generators[stream] = torch.Generator(self.device).manual_seed(self.seed(stream))
        return self._generators[stream]

    def generators(self) -> Iterator[torch.Generator]:
        """Those that were drawn from."""
        yield from self._generators.values()

    def augmentation(self, stream: RandomStream, count: int) -> Augmentation:
        """Of the first `count` images."""
        drawn = self._augmentations[stream]
        return Augmentation(drawn.corner[:count], None if drawn.factors is None else drawn.factors[:count])
