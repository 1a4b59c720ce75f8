"""`python -m bench.twin`: a kinematic twin of the vision stack, to compare ways of sharing data in a minute each.

A toy of the seven lifts on noisy true landmarks (bench/twin_world.py: no images, no physics) trains the project's own
heads, losses and behaviour policy on batches of its own sampler and router, with the options of preset vision-64. What
it says about the order of sharing rules is a hypothesis for the vision stack, not a result. docs/results/twin.md.

Shapes: `B` rows of a batch, `N` = 7 lifts, `K` unseen actions, `L` landmarks.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.twin_config import TwinConfig
from bench.twin_world import HORIZON, LIFTS, SOURCES, ToyReplay, ToyWorld, collect, observe
from data.sampler import BatchStream, Drawn, Sampler, SamplerConfig
from data.sharing import RULES, Scores
from models.acting import best_action
from models.cem import sample_uniform
from models.image_losses import bellman_loss, bellman_target, cloning_loss, conservative_loss
from models.qnetwork import NetworkConfig, bounds
from models.scoring import q_of_tasks
from models.small_network import SmallQNetwork
from models.updates import gradient_step, update_average
from sim.options import Parser, add_options, from_options, run_command
from sim.tasks import TASK_NAMES
from train.image_bc import cloned_weight
from train.image_router import build_router
from train.optimizer import configure_adam
from train.qtopt import SAME_COMMAND
from train.qtopt_config import PRESETS

N, TRAINED = len(LIFTS), torch.tensor(LIFTS)
# Statistics of the router's report -> titles in a table; each the mean over the lifts
COLUMNS = {"shared": "shared", "success": "accepted among those", "auc": "AUC"}


@dataclass(kw_only=True)
class TwinBatch:
    """B transitions relabelled for their target task, as data/batches.py has them; `frame` [B] is that of s."""

    frame: Tensor
    done: Tensor
    success: Tensor
    task_index: Tensor
    source_task_index: Tensor
    episode: Tensor

    @property
    def is_shared(self) -> Tensor:
        """bool [B], collected for another task"""
        return self.source_task_index != self.task_index


def load(replay: ToyReplay, drawn: Drawn) -> TwinBatch:
    """The transitions that a sampler drew."""
    episode = replay.episode_of(drawn.steps)
    source = replay.episode_task[episode]
    return TwinBatch(
        frame=torch.from_numpy(drawn.steps + episode),
        done=torch.from_numpy(replay.steps_to_go(drawn.steps) == 1).float(),
        success=torch.from_numpy(replay.success[episode, drawn.targets]).float(),
        task_index=torch.from_numpy(drawn.targets),
        source_task_index=torch.from_numpy(source),
        episode=torch.from_numpy(episode),
    )


class TwinNetwork(SmallQNetwork):
    """The small network's heads and behaviour policy on features [B, L, landmark + 1] in place of the image's."""

    descriptor = 1

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.trunk = self.describe = self.attend = nn.Identity()  # type: ignore[assignment]

    def encode(self, image: Tensor, gripper: Tensor) -> Tensor:
        return image.flatten(1)

    def score(self, features: Tensor, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        """As the base's, with one matrix product per task where each has as many rows, one after the other."""
        tasks, rows = task_index.unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
        if (rows != rows[0]).any():
            return super().score(features, gripper, action, task_index)
        x = self.combine(features, gripper, action, task_index)
        return self.heads(x.view(len(tasks), -1, x.shape[-1]), tasks).view(x.shape[:2])


class Learner:
    """The vision stack's Q-learner, behaviour policy and router on the twin's data."""

    def __init__(self, config: TwinConfig, replay: ToyReplay) -> None:
        self.config, self.replay, self.options = config, replay, config.training
        torch.manual_seed(config.seed)
        self.network = TwinNetwork(self.options.network)
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.router = build_router(self.options, LIFTS, replay)
        if self.router.episodes is not None:
            self.router.episodes.scores.lag = 0  # no batch is drawn ahead
        optimizer = configure_adam([p for p in self.network.parameters() if p.requires_grad], self.options)
        self.optimizer, self.schedule = optimizer["optimizer"], optimizer["lr_scheduler"]["scheduler"]

    def step(self, batch: TwinBatch, number: int = 0) -> None:
        """One step of Q and the behaviour policy with batch `number`, as train/qtopt.py."""
        options, network, task = self.options, self.network, batch.task_index
        features, gripper, action = self.replay.frames(batch.frame)
        following, next_gripper, _ = self.replay.frames(batch.frame + 1)
        with torch.no_grad():
            _, value = best_action(self.target, following, next_gripper, task, options.acting, self.generator)
        reward = batch.done * batch.success
        target = bellman_target(reward, batch.done, torch.ones_like(reward), value, options.discount)
        candidates = torch.cat([action[:, None], self._unseen_actions(action)], dim=1)
        logits = network.score(features, gripper, candidates, task)
        scores = None
        if self.router.episodes is None and self.router.rule.uses_q:
            with torch.no_grad():
                q_tasks = q_of_tasks(network, features, gripper, action, TRAINED) if self.router.rule.needs else None
            scores = Scores(q=logits[:, 0].detach().sigmoid(), q_tasks=q_tasks)
        weight = self.router.weigh(batch, scores, number=number)
        loss = bellman_loss(logits[:, 0], target, weight)[0]
        loss = loss + options.conservative_weight * conservative_loss(logits[:, 1:], weight)[0]
        cloned = weight * cloned_weight(options.cloned, batch, self.router.chooses(number))
        behaviour = network.behaviour_policy(features, gripper, task)
        loss = loss + cloning_loss(*behaviour, action, bounds(action.device), cloned)
        gradient_step(self.optimizer, loss)
        self.schedule.step()
        update_average(self.target, network, options.target_update_rate)

    @torch.no_grad()
    def score_episodes(self, drawn: Drawn, number: int) -> None:
        """Score the steps that came beside batch `number` for every lift, by the averaged network."""
        if self.router.episodes is None:
            return
        frame = torch.from_numpy(drawn.scored_steps + drawn.scored_episodes)
        q = q_of_tasks(self.target, *self.replay.frames(frame), TRAINED)
        score = q.masked_fill(q.isinf(), torch.nan)[None]
        self.router.episodes.add(number, torch.from_numpy(drawn.scored_episodes), score)

    def _unseen_actions(self, action: Tensor) -> Tensor:
        """Unseen actions of the conservative term [B, K, 5], drawn as train/qtopt.py draws them."""
        options, bound, generator = self.options, bounds(action.device), self.generator
        size, near = len(action), round(options.num_unseen_actions * options.nearby_fraction)
        unseen = sample_uniform((size, options.num_unseen_actions), bound, generator)
        noise = options.nearby_std * bound * torch.randn(size, near, 4, generator=generator)
        unseen[:, :near, :4] = (action[:, None, :4] + noise).clamp(-bound, bound)
        keep = torch.rand(size, near, generator=generator) < SAME_COMMAND
        unseen[:, :near, 4] = torch.where(keep, action[:, 4:5], unseen[:, :near, 4])
        return unseen

    @torch.no_grad()
    def evaluate(self, episodes: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Success rate of each lift [N]."""
        task = np.repeat(np.arange(N), episodes)
        world, generator = ToyWorld(task, rng), torch.Generator().manual_seed(int(rng.integers(2**32)))
        for _ in range(HORIZON):
            alive = np.flatnonzero(~world.done)
            if not len(alive):
                break
            features, gripper = observe(world.state, self.config.noise_m, rng)
            chosen, _ = best_action(
                self.target,
                features[alive].flatten(1),
                gripper[alive],
                torch.from_numpy(task[alive]),
                PRESETS["vision-64"].acting,
                generator,
            )
            action = np.zeros((len(task), 5), np.float32)
            action[alive] = chosen.numpy()
            world.step(action)
        return world.success()[np.arange(len(task)), task].reshape(N, episodes).mean(1)


def run(config: TwinConfig, replay: ToyReplay | None = None) -> dict[str, Any]:
    """Trains and evaluates. Success in percent by lift and on average, and statistics of the shared rows."""
    begin = time.perf_counter()
    replay = replay or collect(SOURCES, config.noise_m, np.random.default_rng([config.seed, 0]))
    learner, options = Learner(config, replay), config.training
    mix = SamplerConfig(
        per_task=options.per_task,
        shared_fraction=options.shared_fraction,
        success_fraction=options.success_fraction,
        balance_shared=options.balance_shared,
        by_episode=options.router.draws_episodes,
    )
    stream = BatchStream(Sampler(replay, LIFTS, RULES[config.rule], mix), config.seed, 0, 0, learner.router.episodes)
    for number, drawn in zip(range(config.steps), stream.draws(), strict=False):
        learner.score_episodes(drawn, number)
        learner.step(load(replay, drawn), number)
    success = 100 * learner.evaluate(config.evaluate_episodes, np.random.default_rng([config.seed, 2]))
    report = learner.router.report(replay.steps_by_outcome(len(TASK_NAMES)), accepted=replay.success)
    statistics = {key: [value for value in report.get(key, []) if value is not None] for key in COLUMNS}
    return {
        "success": dict(zip(SOURCES, success.round(1).tolist(), strict=True)),
        "average": round(float(success.mean()), 1),
        "routing": {key: round(sum(v) / len(v), 3) if v else None for key, v in statistics.items()},
        "seconds": round(time.perf_counter() - begin, 1),
        "config": dataclasses.asdict(config),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown table of results: a row for each configuration, with its average success by seed, their mean, and the
    mean of the statistics."""
    groups: dict[str, list[dict[str, Any]]] = {}
    usual = dataclasses.asdict(TwinConfig())
    for result in results:
        options = result["config"].items()
        name = " ".join(f"{k}={v}" for k, v in options if k != "seed" and (k == "rule" or v != usual[k]))
        groups.setdefault(name.removeprefix("rule="), []).append(result)
    titles = ["arm", "success, % (seed)", "mean", *COLUMNS.values()]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, group in groups.items():
        seeds = ", ".join(f"{each['average']} ({each['config']['seed']})" for each in group)
        cells = [name, seeds, f"{np.mean([each['average'] for each in group]):.1f}"]
        for key in COLUMNS:
            known = [each["routing"][key] for each in group if each["routing"][key] is not None]
            cells.append(f"{np.mean(known):.2f}" if known else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = Parser(prog="python -m bench.twin", description="Compares ways of sharing data in a toy of the lifts.")
    add_options(parser, TwinConfig)
    parser.add_argument("--log", type=Path, metavar="FILE", help="add the result to this file, as a line of JSON")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print a table of such a file, and train nothing")
    options = vars(parser.parse_args())
    log, done = options.pop("log"), options.pop("table")
    config = from_options(TwinConfig, options)
    if done:
        print(table([json.loads(line) for line in done.read_text(encoding="utf-8").splitlines()]))
        return 0
    result = run(config)
    line = json.dumps(result)
    if log:
        with log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
