"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1801.01290; adaptive temperature: arXiv:1812.05905), which makes the
behaviour policies and replay buffers of the locomotion datasets. The tasks of a body are learned side by side, as one
stacked computation; nothing passes between them.

Shapes: `E` tasks, `B` transitions of each.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from data.transitions import Transitions, record, write_transitions
from models.checkpoint import CheckpointError, load_finite, read_plain
from models.stacked import TanhGaussian, TwinQ
from models.state_losses import alpha_loss, q_target
from models.state_policy import pack_policies, sample_actions
from sim.files import write_atomic
from sim.locomotion import Body, Step, Walk, body_by_name
from sim.options import Parser, add_options, check_choice, check_least, check_seed, from_options, option
from train.callbacks.checkpointing import StopRequest, stopped_at, write_tensors
from train.finite import FiniteCheck, NotFiniteError, check_weights, diverged
from train.precision import PRECISIONS, resolve_precision
from train.process_settings import prepare_process
from train.run_dir import LAST, lock_run, open_run
from train.seeding import derive_seed

RETURNS = "returns.csv"
FORMAT = 1  # of the checkpoint
NETWORKS = ("policy", "q", "target")
FREE_TO_CHANGE = ("out", "steps", "keep_every", "checkpoint_every", "precision")


@dataclass(frozen=True, kw_only=True)
class SACConfig:
    """Every option of `python -m train sac`."""

    body: str = option("walker2d", "of sim/locomotion.py")
    tasks: tuple[str, ...] = option((), "of the body, to learn side by side; default: all")
    out: str = option("runs/walker2d-sac", "folder of the run")
    seed: int = option(0, "of everything")
    steps: int = option(500_000, "of each task's environment, and gradient steps")
    start_steps: int = option(5000, "of random actions first, without learning")
    batch_size: int = option(256, "transitions of each task")
    learning_rate: float = option(3e-4, "of Adam, of policies, Q-functions and temperatures")
    discount: float = option(0.99, "gamma")
    target_rate: float = option(5e-3, "of the running average that gives targets")
    hidden: tuple[int, ...] = option((256, 256), "units of the layers")
    keep_every: int = option(100_000, "steps between policies that are kept; the last is kept too")
    checkpoint_every: int = option(10_000, "steps between checkpoints, from which the same command goes on")
    replay_steps: int = option(109_900, "which are kept as the replay buffer (CDS, table 3)")
    precision: str = option("auto", "of the middle layers: 32-true, bf16-mixed, or auto: what the hardware has")

    def __post_init__(self) -> None:
        for name in self.tasks:
            check_choice("task", name, body_by_name(self.body).task_names)
        check_choice("precision", self.precision, PRECISIONS)
        check_seed(self, "seed")
        check_least(self, 1, "steps", "start_steps", "batch_size", "keep_every", "checkpoint_every", "replay_steps")
        if self.steps <= self.start_steps:
            raise ValueError(f"steps {self.steps}: after start_steps {self.start_steps} none is left to learn by")


# ---------------------------------------------------------------- update


class SAC:
    """Policies, Q-functions and temperatures of the tasks."""

    def __init__(self, config: SACConfig, body: Body, members: int) -> None:
        self.config, self.action_size = config, body.action_size
        self.policy = TanhGaussian(members, body.observation_size, config.hidden, body.action_size)
        self.q = TwinQ(members, body.observation_size, body.action_size, config.hidden)
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.log_alpha = torch.zeros(members, requires_grad=True)
        self.optimizers = [
            torch.optim.Adam(weights, lr=config.learning_rate, fused=True)
            for weights in (self.q.parameters(), [*self.policy.parameters(), self.log_alpha])
        ]

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """One step of everything; the losses [E]. `batch`: observation, action, reward, next_observation, done, each
        [E, B, ...]."""
        state, alpha = batch["observation"], self.log_alpha.exp().detach()[:, None]
        with torch.no_grad():
            next_action, next_density = self.policy.sample(batch["next_observation"], 1, generator)
            next_q = self.target(batch["next_observation"], next_action).amin(0)[..., 0]
            entropy = -alpha * next_density[..., 0]
            target = q_target(batch["reward"], batch["done"], next_q, entropy, self.config.discount)
        q = self.q(state, batch["action"][:, :, None])[..., 0]
        critic = (q - target).square().mean(-1).sum(0)
        action, density = self.policy.sample(state, 1, generator)
        self._step(0, critic.sum())
        self.q.requires_grad_(False)
        best = self.q(state, action).amin(0)[..., 0]
        temperature = alpha_loss(self.log_alpha, density[..., 0], self.action_size)
        actor = (alpha * density[..., 0] - best).mean(-1)
        self._step(1, actor.sum() + temperature)
        self.q.requires_grad_(True)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.q.parameters()), self.config.target_rate)
        return {"target": target.mean(-1), "critic loss": critic, "policy loss": actor, "alpha": alpha[:, 0]}

    def _step(self, which: int, loss: Tensor) -> None:
        self.optimizers[which].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizers[which].step()

    def state(self) -> dict[str, Any]:
        """What a training goes on from: weights by network and name, log_alpha [E], and Adam's state of Q-functions
        and of policies."""
        return {
            "networks": {name: getattr(self, name).state_dict() for name in NETWORKS},
            "log_alpha": self.log_alpha.detach(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """From what `state` gave; CheckpointError where its networks are others."""
        for name in NETWORKS:
            load_finite(getattr(self, name), state["networks"][name], path)
        self.log_alpha.data.copy_(state["log_alpha"])
        for optimizer, found in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(found)


# ---------------------------------------------------------------- the loop


class Memory:
    """Every step of every task, [E, steps, ...], in the columns of data.transitions."""

    def __init__(self, body: Body, tasks: tuple[str, ...], steps: int) -> None:
        self.columns = Transitions.empty(body, len(tasks), steps)
        self.reward = np.zeros((len(tasks), steps), np.float32)
        self.filled, self._body, self._tasks = 0, body, tasks

    def add(self, member: int, before: NDArray[np.float32], step: Step) -> None:
        """One step of one task; `filled` is the caller's to count."""
        task = self._tasks[member]
        record(self.columns, (member, self.filled), before, step, self._body.task_names.index(task))
        self.reward[member, self.filled] = self._body.tasks[task](step.motion)

    def state(self) -> dict[str, Tensor]:
        """What was filled, each [E, filled, ...] by column, and the reward of each task's own steps."""
        columns = {**self.columns, "reward": self.reward}
        return {name: torch.tensor(column[:, : self.filled]) for name, column in columns.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """From what `state` gave. The episodes that were under way end with it."""
        self.filled = state["reward"].shape[1]
        for name, column in {**self.columns, "reward": self.reward}.items():
            column[:, : self.filled] = state[name].numpy()
        self.columns["last"][:, self.filled - 1] = True

    def sample(self, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
        members = np.arange(len(self.reward))[:, None]
        chosen = rng.integers(self.filled, size=(len(members), count))
        names = ("observation", "action", "next_observation")
        batch = {name: torch.from_numpy(self.columns[name][members, chosen]) for name in names}
        batch["reward"] = torch.from_numpy(self.reward[members, chosen])
        return batch | {"done": torch.from_numpy(self.columns["fell"][members, chosen].astype(np.float32))}


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m train sac", description=__doc__)
    add_options(parser, SACConfig)
    print(learn(from_options(SACConfig, vars(parser.parse_args(arguments)))))


def learn(config: SACConfig) -> Path:
    """Train the tasks, or go on from the last checkpoint, with a new episode of each. Writes `policy-STEPS.pt` every
    `keep_every` steps and at the end, `replay.h5` with the first `replay_steps` of each task, and in the end
    `returns.csv`; the folder's path. CheckpointError for a folder of something else, of other options or of more steps;
    DatasetError where another training is at work in it."""
    out = Path(config.out)
    with lock_run(out), StopRequest() as request:
        try:
            _learn(config, out, open_run(out, config, FREE_TO_CHANGE), request)
        except NotFiniteError as error:
            raise diverged(error, out, "--learning-rate") from error
    return out


def _learn(config: SACConfig, out: Path, resume: Path | None, request: StopRequest) -> None:
    body = body_by_name(config.body)
    replay_steps = min(config.replay_steps, config.steps)
    tasks = config.tasks or body.task_names
    torch.manual_seed(config.seed)
    prepare_process()
    fast = resolve_precision(config.precision, on_gpu=False) == "bf16-mixed"
    sac, memory = SAC(config, body, len(tasks)), Memory(body, tasks, config.steps)
    returns: list[str] = []
    if resume is not None:
        returns = _restore(resume, sac, memory, config.steps)
    done = memory.filled
    generator = torch.Generator().manual_seed(derive_seed(config.seed, done))
    rng = np.random.default_rng([config.seed, done])
    walks = [Walk(body) for _ in tasks]
    now = np.stack([walk.reset(derive_seed(config.seed, done, k)) for k, walk in enumerate(walks)])
    total = np.zeros(len(walks))
    finite = FiniteCheck("tasks", tasks, 1)
    for count in tqdm(range(done + 1, config.steps + 1), initial=done, total=config.steps, unit="step", smoothing=0.05):
        action = rng.uniform(-1, 1, (len(walks), body.action_size)).astype(np.float32)
        if count > config.start_steps:
            action = sample_actions(sac.policy, now[:, None], generator)[:, 0]
        for member, walk in enumerate(walks):
            step = walk.step(action[member])
            memory.add(member, now[member], step)
            total[member] += memory.reward[member, memory.filled]
            now[member] = step.observation
            if step.ended:
                returns.append(f"{count},{tasks[member]},{total[member]:.2f}\n")
                now[member], total[member] = walk.reset(), 0.0
        memory.filled += 1
        if count > config.start_steps:
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                losses = sac.update(memory.sample(config.batch_size, rng), generator)
            finite.add(count, losses)
        saves = count % config.checkpoint_every == 0 or count == config.steps or request.number
        if saves or count % config.keep_every == 0:
            check_weights(count, **{name: getattr(sac, name) for name in NETWORKS})
        if count % config.keep_every == 0 or count == config.steps:
            about = {"hidden": list(config.hidden), "algorithm": "SAC", "steps": count, "seed": config.seed}
            write_atomic(out / f"policy-{count}.pt", pack_policies(sac.policy, body, tasks, about))
        if count == replay_steps:
            write_transitions(out / "replay.h5", _replay(memory, body, tasks, config.seed))
        if saves:
            _save(out / LAST, sac, memory, returns)
        if request.number:
            print(stopped_at(out / LAST, count))
            raise SystemExit(128 + request.number)
    write_atomic(out / RETURNS, ("step,task,return\n" + "".join(returns)).encode())


def _save(path: Path, sac: SAC, memory: Memory, returns: list[str]) -> None:
    write_tensors(path, {"sac": FORMAT, **sac.state(), "memory": memory.state(), "returns": returns})


def _restore(path: Path, sac: SAC, memory: Memory, steps: int) -> list[str]:
    """The returns until then."""
    found = read_plain(path)
    if not isinstance(found, dict) or found.get("sac") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of SAC, format {FORMAT}")
    done = found["memory"]["reward"].shape[1]
    if done > steps:
        raise CheckpointError(f"{path}: trained for {done} steps already, {steps} are asked for")
    sac.restore(found, path)
    memory.restore(found["memory"])
    print(f"{path.parent}: {'trained to' if done == steps else 'going on from'} step {done}")
    returns: list[str] = found["returns"]
    return returns


def _replay(memory: Memory, body: Body, tasks: tuple[str, ...], seed: int) -> Transitions:
    """The first steps of every task, one task after another. The episode under way ends with them."""
    kept = {name: column[:, : memory.filled].copy() for name, column in memory.columns.items()}
    kept["last"][:, -1] = True
    columns = {name: column.reshape(-1, *column.shape[2:]) for name, column in kept.items()}
    about = {name: {"kind": "replay", "policy": "SAC", "seed": seed} for name in tasks}
    return Transitions(body=body, columns=columns, about=about)
