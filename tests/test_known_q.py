"""A small problem whose Q* is known, seen through images: the learned Q is the known one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from bench.step import Step, synthetic_batch
from models.images import crop
from sim.actions import CLOSE, OPEN, TERMINATE
from train.qtopt_config import PRESETS

# Three places in a row. Open goes on by one, close back, terminate at the last place succeeds; motion does nothing.
PLACES, COMMANDS, COPIES, DISCOUNT = 3, 4, 3, 0.8
CONFIG = replace(
    PRESETS["demo"],
    image_size=48,
    batch_size=PLACES * COMMANDS * COPIES,
    tasks=("lift-can",),
    rule="none",
    shared_fraction=0.0,
    behaviour_policy=False,
    landmark_weight=0.0,
    conservative_weight=0.0,
    num_unseen_actions=0,
    discount=DISCOUNT,
    target_update_rate=0.1,
    lagged_target_steps=5,
    lr=3e-3,
    random_crop=True,
)
STEPS = 240


def known_q():
    """[place, command]"""
    value = DISCOUNT ** np.arange(PLACES - 1, -1, -1.0)
    place = np.arange(PLACES)
    q = np.repeat(DISCOUNT * value[:, None], COMMANDS, axis=1)  # no command: it stays
    q[:, CLOSE] = DISCOUNT * value[np.maximum(place - 1, 0)]
    q[:, OPEN] = DISCOUNT * value[np.minimum(place + 1, PLACES - 1)]
    q[:, TERMINATE] = place == PLACES - 1
    return q


def render(place, side):
    """A bright square that stands where the place is."""
    image = torch.full((len(place), 3, side, side), 40, dtype=torch.uint8)
    for frame, k in zip(image, place.tolist(), strict=True):
        frame[:, 20:30, 4 + 12 * k : 14 + 12 * k] = 220
    return image


def transitions(generator):
    """Every place and command some times, with other motions."""
    batch = synthetic_batch(CONFIG, generator)
    place = torch.arange(PLACES).repeat_interleave(COMMANDS * COPIES)
    command = torch.arange(COMMANDS).repeat(PLACES * COPIES)
    following = (place + (command == OPEN).long() - (command == CLOSE).long()).clamp(0, PLACES - 1)
    ends = command == TERMINATE
    action = torch.cat([batch.action[:, :4], command[:, None].float()], dim=1)
    side = batch.image.shape[-1]
    reward = (ends & (place == PLACES - 1)).float()
    images = {"image": render(place, side), "next_image": render(following, side)}
    still = torch.zeros_like(batch.gripper)
    values = {"action": action, "reward": reward, "done": ends.float(), "gripper": still, "next_gripper": still}
    return replace(batch, **images, **values, success=reward)


def test_the_learned_q_is_the_known_one():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    module = Step(CONFIG)
    adam = module.configure_optimizers()["optimizer"]
    for step in range(STEPS):
        adam.param_groups[0]["lr"] = CONFIG.lr * (1 - step / STEPS)
        module.update(transitions(generator), adam)
    batch = transitions(generator)
    with torch.no_grad():
        q = module.target(crop(batch.image, 48), batch.gripper, batch.action, batch.task_index).sigmoid()
    learned = q.view(PLACES, COPIES, COMMANDS).numpy()
    assert np.abs(learned - known_q()[:, None]).max() < 0.03
