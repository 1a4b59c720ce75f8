"""Sources of episodes: mixes of policies, and checkpoints among them."""

from __future__ import annotations

import hashlib
import shutil

import pytest

from data.check import check
from data.collect import collect
from data.plan import CollectConfig
from data.shards import read_shard
from eval.policy import exploring
from sim.files import DatasetError


def test_a_mix_gives_each_source_its_episodes(tmp_path, tiny_collection, tiny_checkpoint):
    mix = tmp_path / "mix.toml"
    mix.write_text(
        f"""
        [[source]]
        tasks = ["lift-banana"]
        noise = 0.5
        episodes = 3
        [[source]]
        tasks = ["lift-banana", "place-bowl"]
        policy = "checkpoint"
        checkpoint = "{tiny_checkpoint}"
        noise = 0.2
        episodes = 1
        """
    )
    options = {key: value for key, value in tiny_collection.items() if key not in ("tasks", "episodes")}
    manifest = collect(CollectConfig(out=str(tmp_path / "set"), mix=str(mix), **options), exploring)
    held = {entry.name: (entry.policy, len(entry.task)) for entry in manifest.shards}
    assert held == {
        "lift-banana-0-000000.h5": ("crude", 2),
        "lift-banana-0-000002.h5": ("crude", 1),
        "lift-banana-1-000000.h5": ("checkpoint", 1),
        "place-bowl-1-000000.h5": ("checkpoint", 1),
    }
    _, tables, attributes = read_shard(tmp_path / "set" / "place-bowl-1-000000.h5")
    assert attributes["checkpoint_sha256"] == hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert tables["episode/noise"] == pytest.approx([0.2])
    assert check(tmp_path / "set").wrong == ()


def test_a_source_that_asks_for_fewer_is_refused(tmp_path, tiny_collection):
    options = {key: value for key, value in tiny_collection.items() if key not in ("tasks", "episodes")}
    for number, (first, second) in enumerate([(2, 1), (1, 4)]):
        mix = tmp_path / f"mix-{number}.toml"
        sources = [("lift-banana", first), ("place-bowl", second)]
        mix.write_text("".join(f'[[source]]\ntasks = ["{task}"]\nepisodes = {count}\n' for task, count in sources))
        if not number:
            collect(CollectConfig(out=str(tmp_path / "set"), mix=str(mix), **options), exploring)
    with pytest.raises(DatasetError, match="was asked for 2 episodes, now for 1"):
        collect(CollectConfig(out=str(tmp_path / "set"), mix=str(mix), **options), exploring)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"holds no \[\[source\]\] table"),
        ("[[source]]\n", "episodes is a whole number"),
        ("[[source]]\nepisodes = 2.5", "episodes is a whole number"),
        ('[[source]]\nepisodes = 2\ntasks = "lift-can"', "tasks is a list of names"),
        ('[[source]]\nepisodes = 2\npolicy = "crud"', "Did you mean 'crude'"),
        ("[[source]]\nepisode = 2", "Did you mean 'episodes'"),
        ("[[source", "Expected"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused_by_its_file(tmp_path, text, message):
    (tmp_path / "mix.toml").write_text(text)
    with pytest.raises(ValueError, match=rf"mix\.toml: .*{message}"):
        CollectConfig(out=str(tmp_path / "set"), mix=str(tmp_path / "mix.toml"))


def test_a_checkpoint_that_changed_since_is_refused(tmp_path, tiny_collection, tiny_checkpoint):
    checkpoint = shutil.copy(tiny_checkpoint, tmp_path / "last.ckpt")
    options = {**tiny_collection, "policy": "checkpoint", "checkpoint": str(checkpoint), "noise": 0.1, "episodes": 2}
    collect(CollectConfig(out=str(tmp_path / "set"), **options), exploring)
    with checkpoint.open("ab") as file:
        file.write(b"x")
    with pytest.raises(DatasetError, match="other options: checkpoint_sha256"):
        collect(CollectConfig(out=str(tmp_path / "set"), **{**options, "episodes": 4}))
