"""A training step without trainer and loader, and an action selection, timed in this process with their FLOPs.

The step is that of `train.qtopt.QTOpt`: decoding, crops, Bellman target by CEM, losses, backward, Adam, averages.
"""

from __future__ import annotations

import contextlib
import functools
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.io import encode_jpeg

from data.batches import Batch, split_images
from data.episode_scores import Episodes
from eval.policy import Search
from models.cem import sample_uniform
from models.images import crop
from models.norm import Blocks
from models.qnetwork import NetworkConfig, bounds
from models.qtopt_network import QTOptNetwork
from sim.image_sizes import frame_size
from sim.landmarks import LANDMARK_SIZE, LANDMARKS, POINTS
from sim.tasks import TASK_NAMES, TASKS
from train.callbacks.throughput import ceiling_flops_per_s
from train.qtopt import QTOpt
from train.qtopt_config import QTOptConfig
from train.seeding import RandomStream

NUM_THREADS = 2
JPEG_QUALITY = 95
CANDIDATES = 128
EPISODES = 1000  # of the dataset, for a router that scores them


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training configuration, its precision (32-true or bf16-mixed), the number of timed steps after a warm-up (0:
    the warm-up is timed), and the implementation of the step, one of `WAYS`."""

    config: QTOptConfig
    precision: str
    num_steps: int = 0
    way: str = "ours"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Measurement of a `Case`: step time, FLOPs of a step, FLOP rate of a large matrix product in the same process, and
    the fraction of step time that routing took."""

    step_s: float
    flops: int
    ceiling_flops_per_s: float
    peak_gib: float
    batch: int
    routing: float


class TimedRouting:
    """Mixin that sums up the time of a module's routing."""

    routing_s = 0.0

    def _route(self, *given: Any) -> Tensor:
        with self._timed():
            weight: Tensor = super()._route(*given)  # type: ignore[misc]
        return weight

    def _score_episodes(self, *given: Any) -> None:
        with self._timed():
            super()._score_episodes(*given)  # type: ignore[misc]

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():  # which nothing may wait for
            yield
            return
        wait()
        begin = time.perf_counter()
        yield
        wait()
        self.routing_s += time.perf_counter() - begin


class Step(TimedRouting, QTOpt):
    """QTOpt without a trainer: counts its own steps, does not log. Its dataset is a list of episodes."""

    steps_done = 0

    def __init__(self, config: QTOptConfig) -> None:
        task = np.resize([TASKS[name].index for name in config.tasks], EPISODES)
        super().__init__(config, episodes=Episodes(task=task, length=np.full(EPISODES, 10)))

    @property
    def global_step(self) -> int:
        return self.steps_done

    def update(self, batch: Batch, optimizer: torch.optim.Optimizer, precision: str = "32-true") -> Tensor:
        """One step, as Lightning does it; its loss."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = self.training_step(batch, self.steps_done)
        if loss is not None:  # else it was a captured one, the whole step
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            self.average()
        self.finish(self.steps_done + 1)
        self.steps_done += 1
        return self.last_loss

    def log(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        pass


class UsualOrder(Step):
    """The step in PyTorch's default memory format (channels first)."""

    def __init__(self, config: QTOptConfig) -> None:
        super().__init__(config)
        self.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def preprocess(self, frames: Tensor, stream: RandomStream) -> tuple[Tensor, Tensor]:
        image, corner = super().preprocess(frames, stream)
        return image.contiguous(), corner


class Compiled(Step):
    """The step with trunks compiled by torch.compile."""

    def __init__(self, config: QTOptConfig) -> None:
        super().__init__(config)
        for network in (self.network, self.target, self.lagged):
            if network is not None:
                network.trunk.compile()  # type: ignore[union-attr]


class PlainNetwork(QTOptNetwork):
    """Straightforward QT-Opt network: a map per candidate, then convolutions, then batch normalisation, unfused."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, Blocks):
                module.forward = functools.partial(nn.Sequential.forward, module)  # type: ignore[method-assign]

    def _prepare(self, features: Tensor) -> Any:
        return features

    def _merge(self, features: Any, vector: Tensor) -> Tensor:
        return self.join_norm(self.join((features[:, None] + vector[..., None, None]).flatten(0, 1)))


class Plain(UsualOrder):
    """The straightforward step of QT-Opt's network: unfused, average weight by weight."""

    def __init__(self, config: QTOptConfig) -> None:
        super().__init__(config)
        for name in ("network", "target", "lagged"):
            plain = PlainNetwork(config.network)
            plain.load_state_dict(getattr(self, name).state_dict())
            setattr(self, name, plain if name == "network" else plain.requires_grad_(False).eval())

    @torch.no_grad()
    def average(self) -> None:
        for old, new in zip(self.target.parameters(), self.network.parameters(), strict=True):
            rate = self.config.target_update_rate
            old.copy_((1 - rate) * old + rate * new)
        for buffer, current in zip(self.target.buffers(), self.network.buffers(), strict=True):
            buffer.copy_(current)


WAYS = {"ours": Step, "usual order": UsualOrder, "compiled": Compiled, "plain": Plain}


def measure(case: Case) -> Measurement:
    device = _start()
    kind = torch.bfloat16 if case.precision == "bf16-mixed" else torch.float32
    config = replace(case.config, log_every=10**9)  # a step that logs does more
    module = WAYS[case.way](config).to(device)
    optimizer = module.configure_optimizers()["optimizer"]
    batch = synthetic_batch(case.config, torch.Generator().manual_seed(0), encoded=True)
    before = ceiling_flops_per_s(kind, device)

    def step() -> None:
        module.update(batch.to(device), optimizer, case.precision)

    with FlopCounterMode(display=False) as counter:
        first_s = _median_s(step, 1)
    if case.num_steps:
        step()  # torch.compile compiles now, because not under the counter above
    module.routing_s, begin = 0.0, time.perf_counter()
    step_s = _median_s(step, case.num_steps) if case.num_steps else first_s
    routing = module.routing_s / (time.perf_counter() - begin)
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return Measurement(
        step_s=step_s,
        flops=counter.get_total_flops(),
        ceiling_flops_per_s=max(before, ceiling_flops_per_s(kind, device)),
        peak_gib=peak / 2**30,
        batch=len(batch),
        routing=routing,
    )


@torch.no_grad()
def acting(config: QTOptConfig, precision: str, trials: int) -> tuple[float, float, float]:
    """Seconds of: an action for one image; one pass of the trunk; one pass of as many candidates."""
    device = _start()
    network = Step(config).target.to(device)
    side = config.image_size
    frames = torch.randint(256, (1, frame_size(side), frame_size(side), 3), dtype=torch.uint8)
    image = crop(frames.permute(0, 3, 1, 2), side).to(device)
    gripper, task = torch.rand(1, 2, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    search = Search(network, config.acting, torch.device(device))
    candidates = sample_uniform((1, CANDIDATES), bounds(torch.device(device)), None)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
        features = network.encode(image, gripper)
        calls: tuple[Callable[[], Any], ...] = (
            lambda: search(0, frames, gripper, task),
            lambda: network.encode(image, gripper),
            lambda: network.score(features, gripper, candidates, task),
        )
        for call in calls * (1 if device == "cpu" else 5):  # on a GPU the search is captured meanwhile
            call()
        times_s = [[_median_s(call, 1) for call in calls] for _ in range(trials)]  # in turn: the machine is not quiet
    action_s, trunk_s, candidates_s = (statistics.median(each) for each in zip(*times_s, strict=True))
    return action_s, trunk_s, candidates_s


def _start() -> str:
    torch.set_num_threads(NUM_THREADS)
    torch.manual_seed(0)
    return "cuda" if torch.cuda.is_available() else "cpu"


def _median_s(call: Callable[[], Any], times: int) -> float:
    times_s = []
    for _ in range(times):
        wait()
        begin = time.perf_counter()
        call()
        wait()
        times_s.append(time.perf_counter() - begin)
    return statistics.median(times_s)


def wait() -> None:
    if _on_gpu():
        torch.cuda.synchronize()


_on_gpu = functools.cache(torch.cuda.is_available)  # which looks for the driver each time


def synthetic_batch(config: QTOptConfig, generator: torch.Generator, encoded: bool = False) -> Batch:
    """Random transitions in the loader's form: grouped by task, some shared, half of the own ones successful.

    `encoded`: images are JPEG files of blocks, as from a loader that leaves decoding to `Batch.to`."""
    per_task = config.per_task
    size = per_task * len(config.tasks)
    place = torch.arange(size) % per_task
    shared = place >= per_task - round(per_task * config.shared_fraction)
    task = torch.arange(len(config.tasks)).repeat_interleave(per_task)
    side_px = frame_size(config.image_size)
    scored = config.scored_steps
    images = torch.randint(256, (2 * size + scored, 3, side_px, side_px), dtype=torch.uint8, generator=generator)
    files: list[Tensor] = []
    if encoded:
        blocks = images[:, :, ::16, ::16].repeat_interleave(16, -1).repeat_interleave(16, -2)
        files = encode_jpeg(list(blocks[..., :side_px, :side_px]), JPEG_QUALITY)
    success = (place % 2 == 0).float()
    done = (torch.rand(size, generator=generator) < 0.08).float()
    gripper = torch.rand(2, size, 2, generator=generator)
    return Batch(
        **split_images(images, size),
        gripper=gripper[0],
        next_gripper=gripper[1],
        action=sample_uniform((size,), bounds(torch.device("cpu")), generator),
        reward=done * success,
        done=done,
        n_step=torch.ones(size),
        steps_to_go=torch.ones(size),
        success=success,
        landmark=torch.randn(size, LANDMARKS, LANDMARK_SIZE, generator=generator),
        point=torch.rand(size, POINTS, 2, generator=generator),
        point_present=torch.ones(size, POINTS, dtype=torch.bool),
        task_index=task,
        source_task_index=torch.where(shared, (task + 1) % len(TASK_NAMES), task),
        episode=torch.arange(size),
        is_shared=shared,
        score_gripper=torch.rand(scored, 2, generator=generator),
        score_action=sample_uniform((scored,), bounds(torch.device("cpu")), generator),
        score_episode=torch.arange(scored),
        **({"encoded": torch.cat(files), "encoded_size": torch.tensor([len(f) for f in files])} if files else {}),
    )
