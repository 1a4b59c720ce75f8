"""Task conditioning of state networks: a conditioner makes their input from an observation and a task.

Shapes: `E` members, `B` rows of each, `S` observation dimensions, `S'` of the input made from it, `N` tasks.
"""

from __future__ import annotations

import abc

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.encodings import one_hot
from models.stacked import StackedMLP


class Normaliser(nn.Module):
    """(observation - mean) / std, by the statistics of a dataset, [S] each."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("std", torch.from_numpy(std))

    @classmethod
    def identity(cls, size: int) -> Normaliser:
        return cls(np.zeros(size, np.float32), np.ones(size, np.float32))

    def forward(self, observation: Tensor) -> Tensor:
        """[..., S] -> [..., S]"""
        return (observation - self.mean) / self.std


class Conditioner(nn.Module, abc.ABC):
    """Its parameters, if any, are trained with the critic."""

    size: int  # S'

    @abc.abstractmethod
    def forward(self, observation: Tensor, task_index: Tensor) -> Tensor:
        """Observation [E, B, S], task int64 [E, B] -> input of the networks [E, B, S']."""


class Unconditioned(Conditioner):
    """The observation alone: each member serves one task."""

    def __init__(self, members: int, observation_size: int, num_tasks: int) -> None:
        super().__init__()
        self.size = observation_size

    def forward(self, observation: Tensor, task_index: Tensor) -> Tensor:
        return observation


class OneHotTask(Conditioner):
    """The observation and the task's one-hot vector, S' = S + N (CDS, app. C.1)."""

    def __init__(self, members: int, observation_size: int, num_tasks: int) -> None:
        super().__init__()
        self.size, self.num_tasks = observation_size + num_tasks, num_tasks

    def forward(self, observation: Tensor, task_index: Tensor) -> Tensor:
        return torch.cat([observation, one_hot(task_index, self.num_tasks).to(observation.dtype)], -1)


class AddedTaskEmbedding(Conditioner):
    """The observation plus a learned embedding of the task, S' = S (MTCSAC)."""

    def __init__(self, members: int, observation_size: int, num_tasks: int) -> None:
        super().__init__()
        self.size = observation_size
        self.embedding = nn.Parameter(torch.zeros(members, num_tasks, observation_size))

    def forward(self, observation: Tensor, task_index: Tensor) -> Tensor:
        member = torch.arange(len(observation), device=observation.device)[:, None]
        return observation + self.embedding[member, task_index]


class FrozenEncoder(Conditioner):
    """A pretrained representation of the observation, which is not trained further, and the task's one-hot vector."""

    def __init__(self, members: int, observation_size: int, num_tasks: int, layer_sizes: tuple[int, ...] = (256, 256)):
        """`layer_sizes`: units of the encoder's layers; the last is the representation."""
        super().__init__()
        self.layer_sizes = layer_sizes
        self.encoder = StackedMLP(1, observation_size, layer_sizes[:-1], layer_sizes[-1]).requires_grad_(False)
        self.size, self.num_tasks = layer_sizes[-1] + num_tasks, num_tasks

    @torch.no_grad()
    def forward(self, observation: Tensor, task_index: Tensor) -> Tensor:
        encoded = self.encoder(observation.reshape(1, -1, observation.shape[-1])).view(*observation.shape[:-1], -1)
        return torch.cat([encoded, one_hot(task_index, self.num_tasks).to(encoded.dtype)], -1)


CONDITIONERS: dict[str, type[Conditioner]] = {
    "none": Unconditioned,
    "one-hot": OneHotTask,
    "embedding": AddedTaskEmbedding,
    "encoder": FrozenEncoder,
}
