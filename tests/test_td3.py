"""TD3 on states: that it learns, when its policy moves, its files, and that it goes on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import tensor

from data.transitions import read_transitions
from models.checkpoint import read_plain
from models.policy_files import load_policies
from models.state_policies import DeterministicPolicy
from sim.benchmarks.table import BENCHMARKS
from train.online_states import learn
from train.td3 import TD3, TD3Config

WALKER2D = BENCHMARKS["walker2d"]


def batch_of(generator, members=2, rows=64):
    """One-step episodes whose reward is the first number of the action, or its opposite."""
    action = torch.rand(members, rows, 6, generator=generator) * 2 - 1
    seen = torch.randn(members, rows, 17, generator=generator)
    reward = 5 * action[..., 0] * tensor([[1.0], [-1.0]])
    done = torch.ones(members, rows)
    return {"observation": seen, "next_observation": seen, "action": action, "reward": reward, "done": done}


def test_each_task_learns_which_way_pays():
    torch.manual_seed(0)
    td3 = TD3(TD3Config(lr=3e-3, hidden_sizes=(32, 32)), WALKER2D, 2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        td3.update(batch_of(generator), generator)
    state = np.random.default_rng(0).normal(size=(2, 50, 17)).astype(np.float32)
    action = td3.policy.action(torch.from_numpy(state))
    assert action[0, :, 0].mean() > 0.5
    assert action[1, :, 0].mean() < -0.5


def test_an_update_is_the_papers():
    """The target by the smoothed action of the target policy and the lower of two Q; the policy's loss by the first."""
    torch.manual_seed(0)
    td3 = TD3(TD3Config(hidden_sizes=(32, 32), policy_delay=1, policy_noise=0.8, discount=0.9), WALKER2D, 2)
    batch = batch_of(torch.Generator().manual_seed(1)) | {"done": torch.zeros(2, 64)}
    batch["next_observation"] = batch["observation"] + 1
    noise = torch.randn(batch["action"].shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        next_action = td3.target_policy.action(batch["next_observation"]) + (0.8 * noise).clamp(-0.5, 0.5)
        next_q = td3.target(batch["next_observation"], next_action.clamp(-1, 1)[:, :, None])[..., 0]
        target = batch["reward"] + 0.9 * torch.minimum(*next_q)
        q = td3.q(batch["observation"], batch["action"][:, :, None])[..., 0]
        own = td3.policy.action(batch["observation"])
    found = td3.update(batch, torch.Generator().manual_seed(2))
    with torch.no_grad():
        gain = td3.q(batch["observation"], own[:, :, None])[0, ..., 0].mean(-1)  # of the critic that was updated first
    assert torch.allclose(found["critic loss"], ((q - target) ** 2).mean(-1).sum(0), atol=1e-5)
    assert torch.allclose(found["policy loss"], -gain, atol=1e-5)


def test_the_policy_and_the_targets_move_in_every_other_update():
    td3 = TD3(TD3Config(hidden_sizes=(32, 32)), WALKER2D, 2)
    generator, moved = torch.Generator().manual_seed(0), []
    for _ in range(4):
        before = [next(each.parameters()).clone() for each in (td3.policy, td3.target, td3.target_policy)]
        td3.update(batch_of(generator), generator)
        after = [next(each.parameters()) for each in (td3.policy, td3.target, td3.target_policy)]
        moved.append([not torch.equal(a, b) for a, b in zip(before, after, strict=True)])
    assert moved == [[False] * 3, [True] * 3] * 2


def test_a_run_leaves_policies_and_replay_and_goes_on(tmp_path, capsys):
    pytest.importorskip("mujoco")
    options = {"start_steps": 40, "replay_steps": 50, "batch_size": 8, "hidden_sizes": (16, 16)}
    config = TD3Config(out=str(tmp_path), tasks=("jump", "run-forward"), steps=61, **options)
    learn("TD3", config, TD3, "--lr")
    file = load_policies(tmp_path / "policy-61.pt")
    assert type(file.policy.network) is DeterministicPolicy
    assert file.metadata == {"steps": 61, "algorithm": "TD3", "seed": 0}
    replay = read_transitions(tmp_path / "replay.h5")
    assert np.bincount(replay.columns["task"], minlength=3).tolist() == [50, 0, 50]
    assert replay.metadata["jump"]["policy"] == "TD3"
    assert read_plain(tmp_path / "last.ckpt")["updates"] == 21
    learn("TD3", dataclasses.replace(config, steps=64), TD3, "--lr")
    assert "going on from step 61" in capsys.readouterr().out
    assert read_plain(tmp_path / "last.ckpt")["updates"] == 24


@pytest.mark.parametrize("wrong", [{"policy_delay": 0}, {"noise_clip": -1.0}, {"steps": 10}])
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TD3Config(**wrong)
