"""A trained Q-network as a policy: `CEMPolicy.load("runs/demo/last.ckpt").act(observation, task_index, rng)`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.acting import ActingConfig, best_action
from models.captured import Captured, StaticInputs
from models.cem import CEMConfig
from models.checkpoint import CheckpointError, CheckpointFile, Source, load_finite
from models.image_checkpoint import acting_weights, read_checkpoint
from models.images import crop
from models.networks import build_network
from models.qnetwork import NetworkConfig, QNetwork
from sim import policies
from sim.image_sizes import frame_size
from sim.policies import Observation, RandomPolicy
from sim.tasks import task_by_name


class Search:
    """The search for the actions of so many frames. On a GPU it is captured as a CUDA graph (models/captured.py)."""

    def __init__(self, network: QNetwork, acting: ActingConfig, device: torch.device, **options: Any) -> None:
        """`options` of Captured."""
        self.device, self._network, self._acting = device, network, acting
        self._generator = torch.Generator(device)
        self._inputs = StaticInputs(device, static=device.type == "cuda" or bool(options))
        self._captured = Captured(self._compute, self, [], **options)

    def generators(self) -> tuple[torch.Generator]:
        return (self._generator,)

    def renew(self) -> None:
        self._generator = torch.Generator(self.device).manual_seed(self._seed)

    @torch.no_grad()
    def __call__(self, seed: int, frames: Tensor, gripper: Tensor, task_index: Tensor) -> Tensor:
        """Actions [B, 5] for frames uint8 [B, H, H, 3], gripper readings [B, 2] and tasks int64 [B]."""
        self._seed = seed
        self._generator.manual_seed(seed)
        self._frames, self._gripper = self._inputs("frames", frames), self._inputs("gripper", gripper)
        self._tasks = self._inputs("tasks", task_index)
        return self._captured(())

    def _compute(self) -> Tensor:
        image = crop(self._frames.permute(0, 3, 1, 2), self._network.config.image_size)
        features = self._network.encode(image, self._gripper)
        return best_action(self._network, features, self._gripper, self._tasks, self._acting, self._generator)[0]


@dataclass
class CEMPolicy:
    """Batched policy that acts by the averaged network of a checkpoint; `metadata` is the checkpoint's."""

    network: QNetwork
    acting: ActingConfig
    metadata: dict[str, Any]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self._searches: dict[int, Search] = {}  # by the number of frames

    @classmethod
    def load(
        cls,
        path: Source,
        renderer: str | None = None,
        image_size: int | None = None,
        device: torch.device | str = "cpu",
    ) -> CEMPolicy:
        """Read a checkpoint; refuses one that was trained for another renderer or image size, naming both sides."""
        checkpoint = read_checkpoint(path)
        metadata = checkpoint["switchyard"]
        network_config = NetworkConfig(**metadata["network"])
        if renderer is not None and renderer != metadata["renderer"]:
            raise CheckpointError(
                f"{path}: trained on images of renderer {metadata['renderer']}, asked to act on {renderer}"
            )
        if image_size is not None and image_size != network_config.image_size:
            raise CheckpointError(f"{path}: trained at {network_config.image_size} px, asked to act at {image_size} px")
        network = build_network(network_config)
        load_finite(network, acting_weights(checkpoint), path)
        acting = ActingConfig(**{**metadata["acting"], "cem": CEMConfig(**metadata["acting"]["cem"])})
        return cls(network.eval().to(device), acting, metadata, torch.device(device))

    @property
    def frame_size(self) -> int:
        """Side of the input frames of `act`, px."""
        return frame_size(self.network.config.image_size)

    @property
    def env_options(self) -> dict[str, Any]:
        """Arguments of `PickPlaceEnv` that match its training data: image size, renderer, randomisation, split."""
        metadata = self.metadata
        return {
            "image_size": self.frame_size,
            "renderer": metadata["renderer"],
            "randomise": tuple(metadata["randomise"]),
            "split": metadata["split"],
        }

    def act(
        self, observation: Observation, task_index: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Actions float32 [B, 5] (sim/actions.py) for frames uint8 [B, H, H, 3] of `frame_size` px; ValueError for
        other sizes or types."""
        frames, side = observation["image"], self.frame_size
        if frames.dtype != np.uint8 or frames.shape[1:] != (side, side, 3):
            raise ValueError(
                f"this policy cuts its {self.network.config.image_size} px out of frames uint8 [{side}, {side}, 3], "
                f"got {frames.dtype} {list(frames.shape[1:])}: make the environment with **policy.env_options"
            )
        gripper = torch.from_numpy(np.stack([observation["gripper_closed"], observation["gripper_height"]], axis=1))
        tasks = torch.from_numpy(np.asarray(task_index, np.int64))
        if len(tasks) not in self._searches:
            self._searches[len(tasks)] = Search(self.network, self.acting, self.device)
        search = self._searches[len(tasks)]
        return search(int(rng.integers(2**62)), torch.from_numpy(frames), gripper, tasks).cpu().numpy()


class Policy:
    """Policy for single observations: `Policy.load("runs/demo/last.ckpt").act(image, gstatus, gheight, "lift-can")`."""

    def __init__(self, batched: CEMPolicy, seed: int = 0) -> None:
        self._batched, self._rng = batched, np.random.default_rng(seed)

    @classmethod
    def load(cls, path: Source, seed: int = 0, device: torch.device | str = "cpu") -> Policy:
        """Read a checkpoint; CheckpointError where it cannot be used. `seed`: of the search for actions."""
        return cls(CEMPolicy.load(path, device=device), seed)

    @property
    def env_options(self) -> dict[str, Any]:
        """Arguments of `PickPlaceEnv` that match its training data."""
        return self._batched.env_options

    def act(
        self,
        image: NDArray[np.uint8],
        gstatus: float | NDArray[np.float32],
        gheight: float | NDArray[np.float32],
        task: str,
    ) -> NDArray[np.float32]:
        """The action float32 [5] (sim/actions.py): translation (m), yaw (rad), command.

        `image` uint8 [H, H, 3] of `env_options["image_size"]` px; `gstatus`: whether the gripper is closed, 0 or 1;
        `gheight`: its height above the table, m; both are numbers or arrays of one. ValueError for an image of another
        size, or a task it was not trained for."""
        index, trained = task_by_name(task).index, self._batched.metadata["trained_tasks"]
        if task not in trained:
            raise ValueError(f"this policy was never trained for {task}, but for {', '.join(trained)}")
        closed, height = (np.reshape(np.float32(value), 1) for value in (gstatus, gheight))
        observation = Observation(
            image=np.asarray(image)[None],
            gripper_closed=closed,
            gripper_height=height,
            state=np.zeros((1, 0), np.float32),
        )
        return self._batched.act(observation, np.array([index]), self._rng)[0]


@dataclass
class EpsilonGreedy:
    """Epsilon-greedy exploration: with probability `epsilon` an action is `RandomPolicy`'s (QT-Opt, sec. 4.3)."""

    greedy: policies.Policy
    epsilon: float

    def act(
        self, observation: Observation, task_index: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        action = self.greedy.act(observation, task_index, rng)
        explores = rng.random(len(task_index)) < self.epsilon
        return np.where(explores[:, None], RandomPolicy().act(observation, task_index, rng), action)


def exploring(path: str, sha256: str, frame_size: int, renderer: str) -> Callable[[float], EpsilonGreedy]:
    """Load the policy of a checkpoint for collection; the result makes an epsilon-greedy policy from epsilon.
    CheckpointError where SHA-256, frame size or renderer differ."""
    torch.set_num_threads(1)  # the collecting workers share the cores
    checkpoint = CheckpointFile.of(path)
    if checkpoint.sha256 != sha256:
        raise CheckpointError(f"{path}: changed since this collection began")
    greedy = CEMPolicy.load(checkpoint, renderer)
    if greedy.frame_size != frame_size:
        raise CheckpointError(f"{checkpoint}: acts on frames of {greedy.frame_size} px, not of {frame_size} px")
    return functools.partial(EpsilonGreedy, greedy)
