"""Soft actor-critic on states: its terms, its files, and that it learns."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import tensor

from data.__main__ import main as data_main
from data.transitions import SCHEMA_1, TransitionDataset, empty_columns, read_transitions, write_transitions
from models.checkpoint import CheckpointError, read_plain
from models.policy_files import load_policies
from models.state_losses import alpha_loss
from sim.benchmarks.table import BENCHMARKS
from train import online_states
from train.sac import SAC, SACConfig

WALKER2D = BENCHMARKS["walker2d"]


def learn(config):
    return online_states.learn("SAC", config, SAC, "--lr")


def test_the_temperature_rises_while_the_entropy_is_below_its_target():
    log_alpha = tensor([0.0, 0.0], requires_grad=True)
    log_density = tensor([[-1.0, -3.0], [5.0, 7.0]])  # entropies 2 and -6
    alpha_loss(log_alpha, log_density, 4).backward()
    assert log_alpha.grad.tolist() == [2 + 4, -6 + 4]


def test_the_temperature_is_tuned_on_the_rows_that_count():
    log_alpha = tensor([0.0, 0.0, 0.0], requires_grad=True)
    log_density = tensor([[-1.0, -3.0], [5.0, 7.0], [5.0, 7.0]])
    alpha_loss(log_alpha, log_density, 4, tensor([[1.0, 0.0], [0.25, 0.75], [0.0, 0.0]])).backward()
    assert log_alpha.grad.tolist() == [1 + 4, -6.5 + 4, 0]  # entropies 1, and -(5 + 3 * 7) / 4; nothing counts


def test_each_task_learns_which_way_pays():
    """One-step episodes whose reward is the first number of the action, or its opposite."""
    torch.manual_seed(0)
    sac = SAC(SACConfig(lr=3e-3, hidden_sizes=(32, 32)), WALKER2D, 2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        action = torch.rand(2, 64, 6, generator=generator) * 2 - 1
        batch = {
            "observation": torch.randn(2, 64, 17, generator=generator),
            "action": action,
            "done": torch.ones(2, 64),
        }
        batch |= {"reward": 5 * action[..., 0] * tensor([[1.0], [-1.0]]), "next_observation": batch["observation"]}
        sac.update(batch, generator)
    state = np.random.default_rng(0).normal(size=(2, 50, 17)).astype(np.float32)
    action = sac.policy(torch.from_numpy(state))[0].tanh()
    assert action[0, :, 0].mean() > 0.5
    assert action[1, :, 0].mean() < -0.5
    assert (sac.log_alpha < 0).all()  # there is more entropy at first than is wanted


def test_a_run_leaves_policies_returns_and_the_replay_of_each_task(tmp_path):
    pytest.importorskip("mujoco")
    options = {
        "steps": 60,
        "start_steps": 40,
        "keep_every": 30,
        "replay_steps": 50,
        "batch_size": 8,
        "hidden_sizes": (16, 16),
    }
    config = SACConfig(out=str(tmp_path), tasks=("jump", "run-forward"), **options)
    learn(config)
    replay = read_transitions(tmp_path / "replay.h5")
    assert np.bincount(replay.columns["task"], minlength=3).tolist() == [50, 0, 50]
    assert replay.columns["task"][0] == WALKER2D.task_index("jump")
    going = ~replay.columns["episode_end"][:-1]
    assert np.array_equal(replay.columns["next_observation"][:-1][going], replay.columns["observation"][1:][going])
    assert replay.columns["episode_end"][49]
    assert np.abs(replay.columns["action"]).max() <= 1
    assert sorted(each.name for each in tmp_path.glob("*.pt")) == ["policy-30.pt", "policy-60.pt"]
    file = load_policies(tmp_path / "policy-60.pt")
    assert file.benchmark is WALKER2D
    assert [member.tasks for member in file.members] == [("jump",), ("run-forward",)]
    assert file.metadata == {"steps": 60, "algorithm": "SAC", "seed": 0}
    seen, index = np.zeros((2, 3, 17), np.float32), np.zeros((2, 3), np.int64)
    assert file.policy.explore(seen, index, torch.Generator().manual_seed(0)).shape == (2, 3, 6)
    assert (tmp_path / "returns.csv").read_text().startswith("step,task,return\n")
    again = learn(dataclasses.replace(config, out=str(tmp_path / "again")))
    assert np.array_equal(read_transitions(again / "replay.h5").columns["action"], replay.columns["action"])


def test_a_training_that_goes_on_keeps_what_it_learned_and_what_it_learned_from(tmp_path, capsys, monkeypatch):
    pytest.importorskip("mujoco")
    options = {"start_steps": 40, "replay_steps": 80, "batch_size": 8, "hidden_sizes": (16, 16), "out": str(tmp_path)}
    short = SACConfig(steps=60, tasks=("jump", "run-forward"), **options)
    learn(short)
    first, policy = read_transitions(tmp_path / "replay.h5"), (tmp_path / "policy-60.pt").read_bytes()
    (tmp_path / "replay.h5").unlink()
    learn(short)
    assert "trained to step 60" in capsys.readouterr().out
    assert read_transitions(tmp_path / "replay.h5").digest == first.digest
    assert (tmp_path / "policy-60.pt").read_bytes() == policy

    saved, seen, update = read_plain(tmp_path / "last.ckpt"), [], SAC.update
    monkeypatch.setattr(SAC, "update", lambda *given: (seen.append(copy.deepcopy(given[0].state())), update(*given))[1])
    learn(dataclasses.replace(short, steps=80))
    assert "going on from step 60" in capsys.readouterr().out
    assert len(seen) == 20
    torch.testing.assert_close(seen[0], {name: saved[name] for name in seen[0]}, rtol=0, atol=0)
    assert not torch.equal(*(each["networks"]["q"]["mlp.layers.0.weight"] for each in seen[:2]))
    reward = read_plain(tmp_path / "last.ckpt")["buffer"]["reward"]
    assert torch.equal(reward[:, :60], saved["buffer"]["reward"])
    whole = read_transitions(tmp_path / "replay.h5").columns
    for name, column in first.columns.items():
        of_task = [values.reshape(2, -1, *values.shape[1:]) for values in (column, whole[name])]
        assert np.array_equal(of_task[0], of_task[1][:, :60]), name
    with pytest.raises(CheckpointError, match="trained for 80 steps already, 60 are asked for"):
        learn(short)
    with pytest.raises(CheckpointError, match="other options: batch_size"):
        learn(dataclasses.replace(short, steps=90, batch_size=4))


def test_a_training_that_was_killed_goes_on_from_its_last_checkpoint(tmp_path, capsys, monkeypatch):
    pytest.importorskip("mujoco")
    config = SACConfig(
        steps=70,
        start_steps=40,
        checkpoint_every=50,
        batch_size=8,
        hidden_sizes=(16, 16),
        tasks=("jump",),
        out=str(tmp_path),
    )
    update, updates = SAC.update, []

    def killed(*given):
        updates.append(update(*given))
        if len(updates) == 15:
            raise KeyboardInterrupt
        return updates[-1]

    with monkeypatch.context() as patch:
        patch.setattr(SAC, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            learn(config)
    buffer = read_plain(tmp_path / "last.ckpt")["buffer"]
    assert all(len(column.untyped_storage()) == column.numel() * column.itemsize for column in buffer.values())
    assert buffer["reward"].shape == (1, 50)
    learn(config)
    assert "going on from step 50" in capsys.readouterr().out


def test_a_dataset_has_each_task_from_its_own_source(tmp_path, capsys):
    pytest.importorskip("mujoco")
    options = {"steps": 45, "start_steps": 40, "replay_steps": 45, "batch_size": 8, "hidden_sizes": (16, 16)}
    learn(SACConfig(out=str(tmp_path), tasks=("run-forward", "jump"), **options))
    sources = [f"run-forward={tmp_path}/replay.h5:30", f"jump={tmp_path}/policy-45.pt:25"]
    line = ["collect-state", "--out", str(tmp_path / "set.h5"), "--sources"]
    for name in ("set.h5", "again.h5"):
        line[2] = str(tmp_path / name)
        assert data_main([*line, ",".join(sources)]) == 0
    found, again = (read_transitions(tmp_path / name) for name in ("set.h5", "again.h5"))
    assert all(np.array_equal(found.columns[name], again.columns[name]) for name in found.columns)
    replay = read_transitions(tmp_path / "replay.h5")
    assert np.bincount(found.columns["task"]).tolist() == [30, 0, 25]
    assert np.array_equal(found.columns["action"][:30], replay.columns["action"][:30])
    assert found.columns["episode_end"][[29, 54]].all()
    assert found.metadata["run-forward"]["kind"] == "replay"
    assert (found.metadata["jump"]["kind"], found.metadata["jump"]["policy_steps"]) == ("policy", 45)
    capsys.readouterr()
    assert data_main(["info", str(tmp_path / "set.h5")]) == 0
    assert re.search(r"run-forward +30 .*replay\n", capsys.readouterr().out)
    columns = empty_columns(BENCHMARKS["ant"], 10)
    columns["episode_end"][-1] = True
    write_transitions(tmp_path / "ant.h5", TransitionDataset(benchmark=BENCHMARKS["ant"], columns=columns, metadata={}))
    for wrong, message in (
        (f"jump={tmp_path}/replay.h5:46", "holds 45 steps of walker2d's task jump, not 46"),
        (f"jump={tmp_path}/none.h5:46", "none.h5: no such replay"),
        (f"jump={tmp_path}/ant.h5:5", "ant.h5: holds transitions of ant, not of walker2d"),
        (f"run-backward={tmp_path}/policy-45.pt:5", "none for run-backward"),
        ("jump=x.pt", "a source is TASK=FILE:STEPS"),
    ):
        assert data_main([*line, wrong]) == 2
        assert message in capsys.readouterr().err


def test_rewards_are_learned_from_scaled_and_kept_as_they_are(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    seen, update = [], SAC.update
    monkeypatch.setattr(SAC, "update", lambda *given: (seen.append(given[1]["reward"].clone()), update(*given))[1])
    options = {"tasks": ("jump",), "steps": 41, "start_steps": 40, "batch_size": 8, "hidden_sizes": (16,)}
    runs = [
        learn(SACConfig(out=str(tmp_path / str(k)), reward_scale=scale, **options)) for k, scale in enumerate((1, 0.5))
    ]
    assert torch.equal(seen[1], 0.5 * seen[0])
    assert len({(run / "returns.csv").read_text() for run in runs}) == 1
    with pytest.raises(ValueError, match="reward_scale is above 0"):
        SACConfig(reward_scale=0.0)


def test_what_is_no_file_of_policies_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="holds no policies"):
        load_policies(tmp_path / "x.pt")
    with pytest.raises(CheckpointError):
        load_policies(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ("jmp",)}, "Did you mean 'jump'"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 5000}, "none is left"),
        ({"discount": 1.5}, "between 0 and 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SACConfig(**wrong)


def test_a_checkpoint_of_before_goes_on(tmp_path, capsys):
    """Format 1: SAC on walker2d alone, with other names of weights and columns."""
    pytest.importorskip("mujoco")
    options = {"start_steps": 40, "batch_size": 8, "hidden_sizes": (16, 16), "out": str(tmp_path), "tasks": ("jump",)}
    learn(SACConfig(steps=50, **options))
    new = read_plain(tmp_path / "last.ckpt")
    names = {new_name: old_name for new_name, old_name in SCHEMA_1.items() if new_name in new["buffer"]}
    memory = {names.get(name, name): column for name, column in new["buffer"].items() if name != "done"}
    networks = {
        name: {key.replace("mlp.", "body.", 1): weight for key, weight in weights.items()}
        for name, weights in new["networks"].items()
    }
    rest = {name: new[name] for name in ("log_alpha", "optimizers", "returns")}
    torch.save({"sac": 1, **rest, "networks": networks, "memory": memory}, tmp_path / "last.ckpt")
    learn(SACConfig(steps=60, **options))
    assert "going on from step 50" in capsys.readouterr().out
    assert (tmp_path / "policy-60.pt").is_file()


@pytest.mark.parametrize("name", ["walker2d-expert"])
def test_policies_of_the_first_format_act_as_they_did(name):
    """The files that come along were written before there were conditioners."""
    path = Path(__file__).parents[1] / f"models/trained/{name}.pt"
    found, file = read_plain(path), load_policies(path)
    assert [member.tasks for member in file.members] == [(task,) for task in found["switchyard_policies"]["tasks"]]
    observation = np.random.default_rng(0).normal(size=(len(file.members), 4, 17)).astype(np.float32)
    x, weights = torch.from_numpy(observation), found["state_dict"]
    for k in range(3):
        x = torch.baddbmm(weights[f"body.layers.{k}.bias"], x, weights[f"body.layers.{k}.weight"])
        x = x.relu() if k < 2 else x
    action = file.policy.act(observation, np.zeros(observation.shape[:2], np.int64))
    assert np.allclose(action, x[..., :6].tanh(), atol=1e-5)
