"""`python -m eval.routing --checkpoint runs/x/last.ckpt --data datasets/x --task lift-can`: data shared with a task.

Writes a page with the films of the other tasks' episodes of the highest and lowest weight for the task, by the sharing
rule with the checkpoint's Q-function and router state. Also the report's section on routing.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data import codec
from data.episode_router import area_under_roc
from data.replay import Replay
from data.router import effective_steps
from data.scoring import scores_for
from data.sharing import RULES, RuleContext, Scores, q_value
from eval import charts
from eval.policy import CEMPolicy
from models.cem import sample_uniform
from models.checkpoint import CheckpointError
from models.images import crop
from models.qnetwork import bounds
from models.scoring import ImageScorer
from sim.files import check_writable, write_atomic
from sim.options import Parser, add_options, check_least, check_seed, from_options, option, run_command
from sim.state import SceneState
from sim.tasks import TASK_NAMES, TASKS, check_tasks

FRAMES_AT_ONCE = 200
UNSEEN = 16  # actions that estimate the expected Q of the policy


@dataclass(frozen=True, kw_only=True)
class RoutingConfig:
    """Every option of `python -m eval.routing`."""

    checkpoint: str = field(metadata={"help": "of a run that shared by Q-values"})
    data: str = field(metadata={"help": "its dataset"})
    task: str = field(metadata={"help": "the target"})
    out: str = option("", "page to write; default: routing-TASK.html beside the checkpoint")
    episodes: int = option(400, "of other tasks, sampled at random; the page shows the two ends")
    shown: int = option(12, "episodes shown at each end")
    seed: int = option(0, "of the sample")

    def __post_init__(self) -> None:
        check_tasks((self.task,))
        check_least(self, 1, "episodes", "shown")
        check_seed(self, "seed")


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.routing", description=__doc__)
    add_options(parser, RoutingConfig)
    options = vars(parser.parse_args(arguments))
    return run_command(lambda: print(show(from_options(RoutingConfig, options))))


# ---------------------------------------------------------------- the report's section


def routing_section(sharing: dict[str, Any]) -> str:
    """HTML heat map, table and drift of sharing weights; `sharing`: from the checkpoint's metadata."""
    rule, weights = sharing["rule"], sharing["weights"]
    parts = [
        "<h2>Routing: mean weight of source (column) for target (row)</h2>",
        charts.matrix("target", TASK_NAMES, weights),
        f"<p class=note>Rule {rule}. 1 on the diagonal: a task's own data count in full.</p>",
    ]
    if sharing.get("steps"):
        parts.append(_table(sharing))
    history = sharing.get("history", [])
    if RULES[rule].uses_q and len(history) > 1:
        steps = [step for step, _ in history]
        past = np.array([each for _, each in history], float)  # [points, N, N], NaN where nothing was sampled
        past[:, np.eye(len(TASK_NAMES), dtype=bool)] = np.nan  # own data
        highest = float(np.nanmax(past, initial=0.0))
        curves = []
        for i, task in enumerate(TASK_NAMES):
            lines = {source: np.stack([steps, past[:, i, j]], 1) for j, source in enumerate(TASK_NAMES)}
            curves.append(charts.curve(f"{task}: weight of each source", lines, (0.0, highest)))
        parts += ["<h3>Drift</h3>", charts.legend(TASK_NAMES), f"<div class=curves>{''.join(curves)}</div>"]
    return "".join(parts)


def _table(sharing: dict[str, Any]) -> str:
    rule = RULES[sharing["rule"]]
    names = {"shared": "shared part of its batches, %", "success": "successes among the shared, %"}
    names["auc"] = "area under the ROC curve of others' scores"
    if rule.reference:
        names["reference"] = "own Q to reach" if rule.score is q_value else "own Q(s, a) - E Q(s, a'), mean"
        names["temperature"] = "temperature"
    names = {key: name for key, name in names.items() if key in sharing}
    out = ["<table><tr><th>task<th>own steps<th>effective steps", *(f"<th>{name}" for name in names.values()), "</tr>"]
    effective = effective_steps(sharing["weights"], sharing["steps"])
    for i, task in enumerate(TASK_NAMES):
        values = ((sharing[key][i], 100 if key in ("shared", "success") else 1) for key in names)
        cells = ["-" if value is None else f"{value * unit:.3g}" for value, unit in values]
        out.append(f"<tr><td>{task}<td>{sharing['steps'][i]:,.0f}<td>{effective[i]:,.0f}")
        out += [f"<td>{cell}" for cell in cells]
    return "".join(out) + (
        "</table><p class=note>Effective steps: own steps, plus every shared step by its mean weight. Successes: the "
        "fraction of what is shared, by weight, that the row's detector accepts. ROC: how well the scores of other "
        "tasks' episodes tell those that it accepts from the rest.</p>"
    )


# ---------------------------------------------------------------- the page of episodes


@dataclass(frozen=True, kw_only=True)
class RoutedEpisode:
    """Mean weight and Q of another task's episode for the target task."""

    episode: int
    weight: float
    q: float


def show(config: RoutingConfig) -> Path:
    """Write the page; returns its path."""
    policy, replay = CEMPolicy.load(config.checkpoint), Replay(config.data)
    sharing, target = policy.metadata["sharing"], TASKS[config.task].index
    if not RULES[sharing["rule"]].uses_q or "config" not in sharing:
        raise CheckpointError(f"{config.checkpoint}: shares by rule {sharing['rule']}, which weighs no episodes by Q")
    if config.task not in policy.metadata["trained_tasks"]:
        raise CheckpointError(f"{config.checkpoint}: was not trained for {config.task}")
    replay.require(policy.network.config.image_size, policy.metadata["renderer"])
    trained = [TASKS[name].index for name in policy.metadata["trained_tasks"] if name != config.task]
    others = np.flatnonzero(np.isin(replay.episode_task, trained))
    if not len(others):
        raise CheckpointError(f"{config.checkpoint}: was trained for {config.task} alone, which shares with none")
    path = Path(config.out or Path(config.checkpoint).parent / f"routing-{config.task}.html")
    check_writable(path)
    rng = np.random.default_rng(config.seed)
    drawn = rng.choice(others, min(config.episodes, len(others)), replace=False)
    routed = sorted(weigh_episodes(policy, replay, drawn, target), key=lambda each: -each.weight)
    success = np.array([bool(replay.success[each.episode, target]) for each in routed])
    weight, q = (np.array([getattr(each, name) for each in routed]) for name in ("weight", "q"))
    area = area_under_roc(q[success], q[~success])
    parts = [
        f"<h1>Data shared with {config.task}</h1><p class=note>{config.checkpoint}, rule {sharing['rule']}: "
        f"{len(routed)} episodes of other tasks, sampled at random. Mean weight {weight.mean():.3f}; of the "
        f"{success.sum()} that its detector accepts {_mean(weight[success])}, of the others {_mean(weight[~success])}. "
        f"Area under the ROC curve of Q: {'-' if math.isnan(area) else f'{area:.2f}'}. {_compared(sharing, target)}</p>"
    ]
    shown = min(config.shown, -(-len(routed) // 2))
    for title, ends in (("Most shared", routed[:shown]), ("Least shared", routed[-shown:][::-1])):
        films = "".join(_film(replay, each, target) for each in ends)
        parts.append(f"<h2>{title}</h2><div class=films>{films}</div>")
    write_atomic(path, charts.page(f"Switchyard: {config.task}", parts))
    return path


@torch.no_grad()
def weigh_episodes(policy: CEMPolicy, replay: Replay, episodes: NDArray[np.int64], target: int) -> list[RoutedEpisode]:
    """Mean weight and Q of each episode's steps for the target task, by the target network's Q.

    Training uses Q of the learning network, or of a snapshot (heuristic), and takes hipi-partition's sum over whole
    batches; here it is over these steps."""
    sharing = policy.metadata["sharing"]
    rule = RULES[sharing["rule"]]
    steps = [np.array(replay.frames_of(int(episode)))[:-1] for episode in episodes]
    scores = _score(policy, replay, np.concatenate(steps), target)
    reference = sharing["reference"][target] if rule.reference else 0.0
    if reference is None:
        raise CheckpointError(f"{TASK_NAMES[target]} has been given nothing yet: rule {rule.name} has compared no step")
    assert rule.score is not None
    score, q_tasks = rule.score(scores), scores.q_tasks
    ends = np.cumsum([len(each) for each in steps])[:-1].tolist()
    if sharing["config"]["granularity"] == "episode":
        score, q_tasks = _means(score, ends), None if q_tasks is None else _means(q_tasks, ends)
    context = RuleContext(
        reference=torch.full_like(score, reference),
        temperature=torch.full_like(score, sharing["temperature"][target]),
        target=torch.full_like(score, target, dtype=torch.int64),
        q_tasks=q_tasks,
    )
    weight = rule.weight(score, context)
    pairs = zip(episodes.tolist(), weight.tensor_split(ends), scores.q.tensor_split(ends), strict=True)
    return [RoutedEpisode(episode=episode, weight=float(w.mean()), q=float(q.mean())) for episode, w, q in pairs]


def _means(values: Tensor, ends: list[int]) -> Tensor:
    """Replace each row of [S, ...] by the mean over its episode."""
    return torch.cat([each.mean(0, keepdim=True).expand_as(each) for each in values.tensor_split(ends)])


def _score(policy: CEMPolicy, replay: Replay, numbers: NDArray[np.int64], target: int) -> Scores:
    """Scores of the stored actions at these frames."""
    parts = []
    for some in np.array_split(numbers, -(-len(numbers) // FRAMES_AT_ONCE)):
        stored = replay.read(some)
        state = SceneState(np.stack([frame.state for frame in stored]))
        gripper = np.stack([state["gripper_closed"], state["gripper_position"][:, 2]], axis=1)
        action = torch.from_numpy(np.stack([frame.action for frame in stored]))
        frames = np.stack([codec.decode(frame.image) for frame in stored])
        parts.append(_score_frames(policy, frames, torch.from_numpy(gripper), action, target))
    return Scores.concatenate(parts)


def _score_frames(policy: CEMPolicy, frames: NDArray[np.uint8], gripper: Tensor, action: Tensor, target: int) -> Scores:
    """The scores that the rule needs."""
    network, tasks = policy.network, torch.full((len(action),), target)
    image = crop(torch.from_numpy(frames).permute(0, 3, 1, 2), network.config.image_size)
    features = network.encode(image, gripper)
    unseen = sample_uniform((len(action), UNSEEN), bounds(action.device), torch.Generator().manual_seed(0))
    logits = network.score(features, gripper, torch.cat([action[:, None], unseen], 1), tasks).float()
    scorer = ImageScorer(
        network=network,
        image=image,
        features=features,
        gripper=gripper,
        action=action,
        task_index=tasks,
        tasks=torch.tensor([TASKS[name].index for name in policy.metadata["trained_tasks"]]),
        logits=logits,
    )
    rule = dataclasses.replace(RULES[policy.metadata["sharing"]["rule"]], snapshot=False)  # by the Q-function that acts
    (scores,) = scores_for([rule], scorer)
    assert scores is not None
    return scores


def _compared(sharing: dict[str, Any], target: int) -> str:
    """Reference and temperature of the rule, for the page."""
    if not RULES[sharing["rule"]].reference:
        return ""
    reference, temperature = (sharing[key][target] for key in ("reference", "temperature"))
    return f"Reference, from own steps: {reference:.2f}; temperature: {temperature:.2f}."


def _mean(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.3f}" if len(values) else "-"


def _film(replay: Replay, routed: RoutedEpisode, target: int) -> str:
    source = TASK_NAMES[replay.episode_task[routed.episode]]
    success = replay.success[routed.episode, target]
    verdict = f"<b class={'yes' if success else 'no'}>{'accepted' if success else 'not accepted'}</b>"
    frames = list(replay.images(replay.frames_of(routed.episode)))
    return (
        f"<figure>{charts.film(frames, source)}<figcaption>weight {routed.weight:.2f}, Q {routed.q:.2f}: of {source}, "
        f"episode {routed.episode}, {verdict}</figcaption></figure>"
    )


if __name__ == "__main__":
    sys.exit(main())
