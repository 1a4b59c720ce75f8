"""Campaigns: many trainings within a given time, files that travel, and their evaluation elsewhere."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data.transitions import write_transitions
from eval.campaign import PlayConfig, play
from eval.campaign import main as play_campaign
from eval.policy import CEMPolicy
from models.image_checkpoint import read_checkpoint
from sim.files import read_json
from tests.conftest import SMALL_STATE_RUN, TINY_TASKS
from train import campaign, campaign_files
from train.campaign import CampaignConfig, read_campaign, run

STATES = " ".join(
    f"--{key.replace('_', '-')} {','.join(map(str, value)) if isinstance(value, tuple) else value}"
    for key, value in (SMALL_STATE_RUN | {"divergence_steps": 0, "episodes": 2}).items()
)


@pytest.fixture
def images(tiny_training):
    """Arguments of the tiny training."""
    values = {key: ",".join(value) if isinstance(value, tuple) else value for key, value in tiny_training.items()}
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in values.items())


def write(path, *tables, head="at_once = 2"):
    path.write_text("\n".join([head, *(f"[[training]]\n{table}" for table in tables)]))
    return path


def test_a_campaign_trains_packs_and_is_played_elsewhere(tmp_path, transitions, images, monkeypatch, capsys):
    pytest.importorskip("mujoco")
    write_transitions(tmp_path / "states.h5", transitions)
    file = write(
        tmp_path / "both.toml",
        f'name = "states"\narguments = "cql --data {tmp_path}/states.h5 {STATES}"\nover = {{ rules = ["none,all"] }}',
        f'name = "images"\narguments = "{images}"\nover = {{ rule = ["none"], seed = [3] }}',
    )
    out = tmp_path / "campaign"
    trainings = run(file, CampaignConfig(out=str(out)))
    assert [(each.name, each.state) for each in trainings] == [
        ("states-none,all", "finished"),
        ("images-none-3", "finished"),
    ]
    with tarfile.open(out / "pack" / "campaign-0.tar") as tar:
        assert {name.split("/")[1] for name in tar.getnames() if name.startswith("images")} == {
            "training.json",
            "config.json",
            "curves.json",
            "routing.json",
            "policy.ckpt",
        }
        curves = json.load(tar.extractfile("states-none,all/curves.json"))
        assert json.load(tar.extractfile("images-none-3/routing.json"))["rule"] == "none"
        assert set(json.load(tar.extractfile("states-none,all/routing.json"))) == {"none-0", "all-0"}
    assert [step for step, _ in curves["none-0/bellman"]] == [2, 4]
    half, whole = (read_checkpoint(out / "images-none-3" / name) for name in ("policy.ckpt", "last.ckpt"))
    assert {value.dtype for value in half["state_dict"].values() if value.is_floating_point()} == {torch.float16}
    assert CEMPolicy.load(out / "images-none-3" / "policy.ckpt").network.training is False
    assert half["switchyard"] == whole["switchyard"]
    told = capsys.readouterr().out.split("python -m eval.campaign ")[1].splitlines()[0].split()
    seconds = [each.seconds for each in trainings]
    start = campaign._start
    monkeypatch.setattr(campaign, "_start", None)
    again = run(file, CampaignConfig(out=str(out), minutes=1.0))  # nothing is left to do
    assert [(each.state, each.seconds) for each in again] == [("finished", each) for each in seconds]
    monkeypatch.setattr(campaign, "_start", start)
    file.write_text(file.read_text().replace("--steps 4 --batch-size", "--steps 5 --batch-size"))
    run(file, CampaignConfig(out=str(out)))
    with tarfile.open(out / "pack" / "campaign-0.tar") as tar:
        policy = torch.load(tar.extractfile("images-none-3/policy.ckpt"), weights_only=True)
    assert policy["switchyard"]["steps"] == 5
    monkeypatch.setattr(campaign, "_start", None)
    play_campaign([*told, "--out", str(tmp_path / "played"), "--episodes", "1", "--workers", "1"])
    rows = {row["name"]: row["results"] for row in json.loads((tmp_path / "played" / "campaign.json").read_text())}
    assert set(rows["states-none,all"]) == {
        f"{member} {task}" for member in ("none-0", "all-0") for task in ("run-forward", "run-backward", "jump")
    }
    assert set(TINY_TASKS) <= set(rows["images-none-3"])
    states = tmp_path / "played" / "states-none,all"
    assert read_json(states / "returns.json")["episodes"] == 2  # which the training played
    assert read_json(states / "played-1.json")["episodes"] == 1
    assert (
        rows["states-none,all"]["all-0 jump"] == read_json(states / "played-1.json")["members"][1]["returns"]["jump"][0]
    )
    assert "images-none-3" in capsys.readouterr().out


def test_at_its_limit_a_campaign_stops_and_keeps_checkpoints(tmp_path, transitions, monkeypatch):
    """The limit is reached when there is a checkpoint."""
    write_transitions(tmp_path / "states.h5", transitions)
    arguments = f"cql --data {tmp_path}/states.h5 {STATES} --steps 10000000 --checkpoint-every 20"
    file = write(tmp_path / "long.toml", f'name = "long"\narguments = "{arguments}"\nover = {{ seeds = [0, 1] }}')
    file.write_text(file.read_text().replace("at_once = 2", "at_once = 1"))
    out = tmp_path / "campaign"
    clock = SimpleNamespace(
        monotonic=lambda: 1e6 * (out / "long-0" / "last.ckpt").exists() + time.monotonic(), sleep=time.sleep
    )
    monkeypatch.setattr(campaign, "time", clock)
    trainings = run(file, CampaignConfig(out=str(out), minutes=1000.0))
    assert [each.state for each in trainings] == ["stopped", "waiting"]
    assert torch.load(out / "long-0" / "last.ckpt", weights_only=True)["updates"] > 0
    with tarfile.open(out / "pack" / "campaign-0.tar") as tar:
        assert tar.getnames() == []


def test_what_cannot_end_in_time_or_fit_is_refused_before_it_starts(tmp_path, transitions, images, monkeypatch):
    write_transitions(tmp_path / "states.h5", transitions)
    monkeypatch.setattr(campaign, "_start", None)
    states = f'name = "a"\narguments = "cql --data {tmp_path}/states.h5 --steps 6000"\nsteps_per_s = 10'
    file = write(tmp_path / "slow.toml", states, states.replace('"a"', '"b"'))
    with pytest.raises(ValueError, match=r"2 trainings need about 10\.0 minutes, 2 at once, more than 9"):
        run(file, CampaignConfig(out=str(tmp_path / "run")))
    monkeypatch.setattr(campaign, "free_bytes", lambda device: 1e5)
    file = write(tmp_path / "large.toml", f'name = "a"\narguments = "{images} --frames device"')
    with pytest.raises(ValueError, match=r"2 trainings at once hold 0\.0 GiB of frames, 0\.0 GiB are free on cpu"):
        run(file, CampaignConfig(out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("at_once = 0\n[[training]]", "a campaign holds at_once, 1 or more"),
        ("speed = 3", "a campaign holds at_once"),
        ("at_once = ", "not TOML"),
        ('[[training]]\nname = "a"', "a training has a name and arguments"),
        ('[[training]]\nname = "a"\nargument = ""', "Did you mean 'arguments'"),
        ('[[training]]\nname = "a"\narguments = "sac"', "unknown algorithm of a campaign 'sac'"),
        ('[[training]]\nname = "a"\narguments = "--rule cdss"', "Did you mean 'cds'"),
        (2 * '[[training]]\nname = "a"\narguments = "--rule cds"\n', "two trainings have the same name"),
    ],
)
def test_a_file_that_is_no_campaign_is_refused(tmp_path, text, message):
    (tmp_path / "file.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_campaign(tmp_path / "file.toml", tmp_path)


def test_files_are_filled_up_to_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign_files, "PACK_BYTES", 1000)
    monkeypatch.setattr(campaign_files, "curves", lambda run: {})
    packed = []
    for number, size in enumerate((300, 300, 700, 10)):
        (run_of := tmp_path / str(number)).mkdir()
        (run_of / "policy.pt").write_bytes(bytes(size))
        (run_of / "routing.json").write_text("{}")
        (run_of / "training.json").write_text('{"finished": true}')
        packed.append(run_of)
    paths = campaign_files.pack(packed, tmp_path / "pack")
    held = []
    for path in paths:
        with tarfile.open(path) as tar:
            held.append(sorted({name.split("/")[0] for name in tar.getnames()}))
    assert held == [["0", "1"], ["2", "3"]]
    assert len(campaign_files.pack(packed[:1], tmp_path / "pack")) == len(list((tmp_path / "pack").iterdir())) == 1


def test_a_damaged_pack_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no campaign-\*\.tar"):
        play(PlayConfig(pack=str(tmp_path)))
    (tmp_path / "campaign-0.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"campaign-0\.tar: damaged"):
        play(PlayConfig(pack=str(tmp_path), out=str(tmp_path / "out")))


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "docs" / "results").glob("campaign-*.toml")))
def test_the_campaigns_of_the_results_pages_fit_in_nine_minutes(file, tmp_path):
    trainings, at_once = read_campaign(file, tmp_path)
    campaign.check_time(trainings, at_once, 9.0)  # which refuses others
    assert all(training.steps_per_s for training in trainings)
