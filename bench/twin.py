"""`python -m bench.twin`: a kinematic twin of the vision stack, to compare ways of sharing data in a minute each.

A toy of the seven lifts on noisy true landmarks (bench/twin_world.py: no images, no physics) trains the project's own
heads, losses, behaviour policy and sharing rules with the options of preset vision-64. What it says about the order of
sharing rules is a hypothesis for the vision stack, not a result. docs/results/twin.md.

Shapes: `B` rows of a batch, `E` episodes, `N` = 7 lifts, `K` unseen actions, `M` frames of an episode that are scored.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.twin_sharing import CLONES, N, TwinBatch, TwinConfig, TwinSampler, episode_weights
from bench.twin_world import HORIZON, LIFTS, SOURCES, ToyEpisodes, ToyWorld, collect, observe
from data.router import Router, RouterConfig
from data.sharing import RULES, Scores
from models.acting import best_action
from models.cem import sample_uniform
from models.image_losses import bellman_loss, bellman_target, cloning_loss, conservative_loss
from models.qnetwork import NetworkConfig, bounds
from models.scoring import q_of_tasks
from models.small_network import SmallQNetwork
from models.updates import gradient_step, update_average
from sim.options import (
    Parser,
    add_options,
    from_options,
    run_command,
)
from sim.tasks import TASK_NAMES
from train.optimizer import configure_adam
from train.qtopt_config import PRESETS, QTOptConfig

SAME_COMMAND = 0.7  # as in train/qtopt.py, which would import Lightning
STATISTICS_FROM = 0.5  # of the run: rows drawn and weights are averaged over the rest


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
    """The vision stack's Q-learner and behaviour policy on the twin's data."""

    def __init__(self, config: TwinConfig, data: ToyEpisodes) -> None:
        self.config, self.data = config, data
        self.options: QTOptConfig = dataclasses.replace(
            PRESETS["vision-64"],
            steps=config.steps,
            landmark_weight=0.0,
            num_unseen_actions=config.candidates,
            cem_samples=config.candidates,
        )
        torch.manual_seed(config.seed)
        self.network = TwinNetwork(self.options.network)
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.generator = torch.Generator().manual_seed(config.seed)
        router = RouterConfig(
            rule=config.rule,
            percentile=config.percentile,
            temperature=config.sharing_temperature,
            granularity=config.granularity,
        )
        self.router = Router(router, len(TASK_NAMES), num_episodes=len(data.task))
        optimizer = configure_adam([p for p in self.network.parameters() if p.requires_grad], self.options)
        self.optimizer, self.schedule = optimizer["optimizer"], optimizer["lr_scheduler"]["scheduler"]

    def step(self, batch: TwinBatch) -> Tensor:
        """One step of Q and the behaviour policy, as train/qtopt.py. The weights of the rows, [B]."""
        data, options, network, task = self.data, self.options, self.network, batch.task_index
        now = torch.from_numpy(batch.rows)
        features, gripper, action = (part[now] for part in (data.features.flatten(1), data.gripper, data.action))
        following, next_gripper = data.features.flatten(1)[now + 1], data.gripper[now + 1]
        with torch.no_grad():
            _, value = best_action(self.target, following, next_gripper, task, options.acting, self.generator)
        reward = batch.done * batch.success
        target = bellman_target(reward, batch.done, torch.ones_like(reward), value, options.discount)
        candidates = torch.cat([action[:, None], self._unseen_actions(action)], dim=1)
        logits = network.score(features, gripper, candidates, task)
        weight = self._weigh(batch, features, gripper, action, logits.detach())
        loss = bellman_loss(logits[:, 0], target, weight)[0]
        loss = loss + options.conservative_weight * conservative_loss(logits[:, 1:], weight)[0]
        cloned = CLONES[self.config.clone](batch.success, task == batch.source_task_index)
        behaviour = network.behaviour_policy(features, gripper, task)
        loss = loss + cloning_loss(*behaviour, action, bounds(action.device), weight * cloned)
        gradient_step(self.optimizer, loss)
        self.schedule.step()
        update_average(self.target, network, options.target_update_rate)
        return weight

    def _weigh(self, batch: TwinBatch, features: Tensor, gripper: Tensor, action: Tensor, logits: Tensor) -> Tensor:
        """Weights [B]: the router's, or 1 where the rule chose the rows."""
        if self.config.mode != "weight":
            return torch.ones_like(batch.success)
        with torch.no_grad():
            tasks = q_of_tasks(self.network, features, gripper, action, LIFTS) if self.router.rule.needs else None
        return self.router.weigh(batch, Scores(q=logits[:, 0].sigmoid(), q_tasks=tasks))

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
    def score_episodes(self) -> Tensor:
        """Mean Q of every episode for every lift [N, E], by the target network at M frames of each."""
        data, frames = self.data, self.config.score_frames
        place = (np.arange(frames) + 0.5) / frames
        rows = torch.from_numpy((data.first[:, None] + (place * data.length[:, None]).astype(np.int64)).ravel())
        parts = [
            q_of_tasks(self.target, data.features[part].flatten(1), data.gripper[part], data.action[part], LIFTS)
            for part in rows.split(1024)  # type: ignore[no-untyped-call]
        ]
        return torch.cat(parts)[:, list(LIFTS)].view(-1, frames, N).mean(1).T

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


def area_under_curve(score: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Probability that a positive scores higher than a negative, ties counting half; NaN without both."""
    order = np.sort(score)
    rank = (np.searchsorted(order, score, "left") + np.searchsorted(order, score, "right") + 1) / 2
    pairs = positive.sum() * (~positive).sum()
    least = positive.sum() * (positive.sum() + 1) / 2
    return float((rank[positive].sum() - least) / pairs) if pairs else float("nan")


def run(config: TwinConfig, data: ToyEpisodes | None = None) -> dict[str, Any]:
    """Trains and evaluates. Success in percent by lift and on average, and statistics of the shared rows."""
    begin = time.perf_counter()
    data = data or collect(SOURCES, config.noise_m, np.random.default_rng([config.seed, 0]))
    learner, sampler, rng = Learner(config, data), TwinSampler(data, config), np.random.default_rng([config.seed, 1])
    own, accepted = torch.from_numpy(sampler.own), torch.from_numpy(data.success.T.copy())
    routes = config.mode != "weight" and (RULES[config.rule].uses_q or config.mode == "top-tenth")
    sums = np.zeros((2, 2))  # rows and their weights, of other and of accepted episodes
    counted = 0
    for step in range(config.steps):
        if routes and step >= config.warm_up and (step - config.warm_up) % config.score_every == 0:
            weight = episode_weights(learner.score_episodes(), own, accepted, config)
            sampler.route(weight.numpy(), fill=config.rule != "cds")
        batch = sampler.draw(rng)
        weight = learner.step(batch)
        if step >= STATISTICS_FROM * config.steps:
            shared = batch.task_index != batch.source_task_index
            for outcome in (0, 1):
                kept = weight[shared & (batch.success == outcome)]
                sums[:, outcome] += [len(kept), float(kept.sum())]
            counted += len(weight)
    success = 100 * learner.evaluate(config.episodes, np.random.default_rng([config.seed, 2]))
    score = learner.score_episodes().numpy()
    curves = [area_under_curve(score[i][~sampler.own[i]], data.success[~sampler.own[i], i]) for i in range(N)]
    weights = sums[1] / np.maximum(sums[0], 1)
    return {
        "success": dict(zip(SOURCES, success.round(1).tolist(), strict=True)),
        "average": round(float(success.mean()), 1),
        "shared_rows": round(float(sums[0].sum() / counted), 3),
        "accepted_drawn": round(float(sums[0, 1] / max(1.0, sums[0].sum())), 3),
        "accepted_learned": round(float(sums[1, 1] / max(1e-9, sums[1].sum())), 3),
        "weight_accepted": round(float(weights[1]), 3),
        "weight_others": round(float(weights[0]), 3),
        "auc": round(float(np.nanmean(curves)), 3),
        "seconds": round(time.perf_counter() - begin, 1),
        "config": dataclasses.asdict(config),
    }


COLUMNS = ("shared_rows", "accepted_drawn", "accepted_learned", "weight_accepted", "weight_others", "auc")


def table(results: list[dict[str, Any]]) -> str:
    """Markdown table of results: a row for each configuration, with its average success by seed and the mean of the
    other statistics."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        options = result["config"]
        usual = {field.name: field.default for field in dataclasses.fields(TwinConfig)} | {"seed": options["seed"]}
        name = " ".join(f"{key}={value}" for key, value in options.items() if key == "rule" or value != usual[key])
        groups.setdefault(name.removeprefix("rule="), []).append(result)
    lines = ["| arm | success, % (seed) | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    for name, group in groups.items():
        success = ", ".join(f"{each['average']} ({each['config']['seed']})" for each in group)
        means = [f"{np.mean([each[key] for each in group]):.2f}" for key in COLUMNS]
        lines.append(f"| {name} | {success} | " + " | ".join(means) + " |")
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
