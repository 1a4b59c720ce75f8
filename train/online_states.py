"""The loop of online learners of states: act in every task's environment, remember, learn, save.

It makes the behaviour policies and the replay buffers of the offline datasets. The tasks of a benchmark are learned
side by side, as one stacked computation; nothing passes between them. Stopped anywhere, the same command goes on.

Shapes: `E` tasks learned side by side.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from data.replay_buffer import ReplayBuffer
from data.seeding import derive_seed
from data.transitions import SCHEMA_1, write_transitions
from models.checkpoint import CheckpointError, load_finite, read_plain
from models.conditioning import Normaliser, Unconditioned
from models.policy_files import Member, PolicyFile, pack_policies
from models.state_policies import StatePolicy, TanhGaussianPolicy
from sim.benchmarks.spec import Benchmark
from sim.benchmarks.table import benchmark_by_name
from sim.files import write_atomic
from train.callbacks.checkpointing import StopRequest, stopped_at, write_tensors
from train.finite import FiniteCheck, NotFiniteError, check_weights, diverged
from train.precision import resolve_precision
from train.process_settings import prepare_process
from train.run_dir import LAST, checkpoint_to_resume, lock_run, write_options

RETURNS, REPLAY = "returns.csv", "replay.h5"
FORMAT = 2  # of the checkpoint
FREE_TO_CHANGE = ("out", "steps", "keep_every", "checkpoint_every", "precision")


class OnlineAlgorithm(abc.ABC):
    """`networks` by name, and the policy among them. `state` and `restore`: all that learning goes on from."""

    networks: dict[str, torch.nn.Module]
    optimizers: list[torch.optim.Optimizer]
    policy: TanhGaussianPolicy

    @abc.abstractmethod
    def act(self, observation: NDArray[np.float32], generator: torch.Generator) -> NDArray[np.float32]:
        """Exploring actions [E, A] at observations [E, S]."""

    @abc.abstractmethod
    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """One update from a batch of data.replay_buffer; values [E] that have to stay finite."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values: weights by network and name, and the optimizers' state."""
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """From what `state` gave; CheckpointError where its networks are others."""
        for name, network in self.networks.items():
            load_finite(network, state["networks"][name], path)
        for optimizer, found in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(found)


def learn(name: str, config: Any, make: Any, rates: str) -> Path:
    """Train the tasks, or go on from the last checkpoint, with a new episode of each; the folder's path.

    Writes `policy-STEPS.pt` every `keep_every` steps and at the end, `replay.h5` with the first `replay_steps` of each
    task, and `returns.csv`. `make(config, benchmark, members)`: the algorithm. CheckpointError for a folder of
    something else, of other options or of more steps; DatasetError where another training is at work in it."""
    out = Path(config.out)
    with lock_run(out), StopRequest() as request:
        try:
            _learn(name, config, make, out, checkpoint_to_resume(out, config, FREE_TO_CHANGE), request)
        except NotFiniteError as error:
            raise diverged(error, out, rates) from error
    return out


def _learn(name: str, config: Any, make: Any, out: Path, resume: Path | None, request: StopRequest) -> None:
    benchmark = benchmark_by_name(config.benchmark)
    replay_steps = min(config.replay_steps, config.steps)
    tasks: tuple[str, ...] = config.tasks or benchmark.task_names
    torch.manual_seed(config.seed)
    prepare_process()
    fast = resolve_precision(config.precision, on_gpu=False) == "bf16-mixed"
    algorithm: OnlineAlgorithm = make(config, benchmark, len(tasks))
    buffer = ReplayBuffer(benchmark, tasks, config.steps)
    kept = {task: {"kind": "replay", "policy": name, "seed": config.seed} for task in tasks}
    returns: list[str] = []
    if resume is not None:
        returns = _restore(resume, name, algorithm, buffer, config.steps)
    write_options(out, config)
    done = buffer.filled
    if done >= replay_steps and not (out / REPLAY).is_file():
        write_transitions(out / REPLAY, buffer.first(replay_steps, kept))
    generator = torch.Generator().manual_seed(derive_seed(config.seed, done))
    rng = np.random.default_rng([config.seed, done])
    envs = [benchmark.make_env() for _ in tasks]
    seeds = [derive_seed(config.seed, done, k) for k in range(len(tasks))]
    now = np.stack([env.reset(task, seed) for env, task, seed in zip(envs, tasks, seeds, strict=True)])
    total = np.zeros(len(envs))
    finite = FiniteCheck("tasks", tasks, 1)
    for count in tqdm(range(done + 1, config.steps + 1), initial=done, total=config.steps, unit="step", smoothing=0.05):
        action = rng.uniform(-1, 1, (len(envs), benchmark.action_size)).astype(np.float32)
        if count > config.start_steps:
            action = algorithm.act(now, generator)
        for member, env in enumerate(envs):
            step = env.step(action[member])
            ended = buffer.add(member, now[member], action[member], step)
            total[member] += buffer.reward[member, buffer.filled]
            now[member] = step.observation
            if ended:
                returns.append(f"{count},{tasks[member]},{total[member]:.2f}\n")
                now[member], total[member] = env.reset(tasks[member]), 0.0
        buffer.filled += 1
        if count > config.start_steps and count % config.update_every == 0:
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                batch = buffer.sample(config.batch_size, rng)
                batch["reward"] *= config.reward_scale
                losses = algorithm.update(batch, generator)
            finite.add(count, losses)
        saves = count % config.checkpoint_every == 0 or count == config.steps or request.number
        if saves or count % config.keep_every == 0:
            check_weights(count, **algorithm.networks)
        if count % config.keep_every == 0 or count == config.steps:
            metadata = {"algorithm": name, "steps": count, "seed": config.seed}
            file = _policies(algorithm.policy, benchmark, tasks, metadata)
            write_atomic(out / f"policy-{count}.pt", pack_policies(file))
        if count == replay_steps:
            write_transitions(out / REPLAY, buffer.first(replay_steps, kept))
        if saves:
            content = {"algorithm": name, "format": FORMAT, **algorithm.state()}
            write_tensors(out / LAST, content | {"buffer": buffer.state(), "returns": returns})
        if request.number:
            print(stopped_at(out / LAST, count))
            raise SystemExit(128 + request.number)
    write_atomic(out / RETURNS, ("step,task,return\n" + "".join(returns)).encode())


def _policies(
    network: TanhGaussianPolicy, benchmark: Benchmark, tasks: Sequence[str], metadata: dict[str, Any]
) -> PolicyFile:
    """A member for each task."""
    conditioner = Unconditioned(len(tasks), benchmark.observation_size, len(benchmark.tasks))
    policy = StatePolicy(Normaliser.identity(benchmark.observation_size), conditioner, network)
    members = tuple(Member(name=task, tasks=(task,), seed=metadata["seed"]) for task in tasks)
    return PolicyFile(policy=policy, benchmark=benchmark, members=members, metadata=metadata)


def _restore(path: Path, name: str, algorithm: OnlineAlgorithm, buffer: ReplayBuffer, steps: int) -> list[str]:
    """The returns until then."""
    found = read_plain(path)
    if isinstance(found, dict) and found.get("sac") == 1:
        found = _from_format_1(found)
    if not isinstance(found, dict) or (found.get("algorithm"), found.get("format")) != (name, FORMAT):
        raise CheckpointError(f"{path}: not a checkpoint of {name}, format {FORMAT}")
    done = found["buffer"]["reward"].shape[1]
    if done > steps:
        raise CheckpointError(f"{path}: trained for {done} steps already, {steps} are asked for")
    algorithm.restore(found, path)
    buffer.restore(found["buffer"])
    print(f"{path.parent}: {'trained to' if done == steps else 'going on from'} step {done}")
    returns: list[str] = found["returns"]
    return returns


def _from_format_1(found: dict[str, Any]) -> dict[str, Any]:
    """When SAC on walker2d was all there was."""
    networks = {
        name: {key.replace("body.", "mlp.", 1): value for key, value in weights.items()}
        for name, weights in found["networks"].items()
    }
    names = {old: new for new, old in SCHEMA_1.items()}
    buffer = {names.get(name, name): value for name, value in found["memory"].items()}
    buffer["done"] = buffer["terminated"]
    return {**found, "algorithm": "SAC", "format": FORMAT, "networks": networks, "buffer": buffer}
