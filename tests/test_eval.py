"""Evaluation: intervals, results as JSON, and a whole evaluation of the tiny checkpoint in the simulator."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.locks import lock_file
from data.replay import Replay
from data.sampler import Sampler
from eval.__main__ import EvalConfig, averages, data_success, evaluate
from eval.episode_log import LOG as EPISODES
from eval.export import main as export_main
from eval.intervals import wilson
from eval.perception import PerceptionConfig, measure, other_is_nearer
from eval.perception import main as perception_main
from eval.policy import CEMPolicy, EpsilonGreedy, Policy
from eval.results import read_run
from eval.rollout import EpisodeJob, EpisodeOutcome, EvalResult, rollout, summarise
from models.checkpoint import CheckpointError
from models.image_checkpoint import read_checkpoint
from models.small_network import Perception, SmallQNetwork
from sim.actions import BOUNDS
from sim.files import DatasetError
from sim.landmarks import LANDMARKS, OFFSET_UNIT_M
from sim.options import Stopped
from sim.scenes import FACTORS
from sim.state import STATE_SIZE, O
from sim.tasks import TASKS

TASKS_USED = ("lift-banana", "place-bowl")


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (1, 1, 0.2065, 1.0),
        (450, 1000, 0.4194, 0.4810),
    ],
)
def test_the_wilson_interval_has_its_published_values(successes, episodes, low, high):
    assert wilson(successes, episodes) == pytest.approx((low, high), abs=1e-4)


def result(task, successes, episodes, policy="checkpoint"):
    return EvalResult(
        task=task, policy=policy, successes=successes, episodes=episodes, seed=7, checkpoint="a.ckpt", wall_time_s=1.5
    )


def test_a_result_survives_json_and_carries_its_rate_and_interval():
    first = result("lift-can", 5, 10)
    row = json.loads(json.dumps(first.to_json()))
    assert EvalResult.from_json(row) == first
    assert row["success_rate"] == 0.5
    assert (row["low"], row["high"]) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_averages_pool_the_episodes_of_a_skill():
    rows = [result("lift-can", 1, 10), result("lift-milk", 30, 30), result("place-bowl", 2, 4)]
    rows += [result("lift-can", 0, 5, "random")]
    found = averages(rows)
    assert [(row["task"], row["policy"], row["successes"], row["episodes"]) for row in found] == [
        ("average of lift", "checkpoint", 31, 40),
        ("average of lift", "random", 0, 5),
        ("average of place", "checkpoint", 2, 4),
        ("average of all", "checkpoint", 33, 44),
        ("average of all", "random", 0, 5),
    ]
    assert (found[2]["low"], found[2]["high"]) == pytest.approx((0.15, 0.85), abs=1e-3)


def test_outcomes_are_summed_up_per_task_in_the_order_of_the_task_table():
    outcomes = [
        EpisodeOutcome(task=task, number=n, success=success, steps=3, wall_time_s=0.5, film=())
        for n, (task, success) in enumerate([("place-bowl", True), ("lift-can", False), ("lift-can", True)])
    ]
    can, bowl = summarise(outcomes, "random", None, 3)
    assert (can.task, can.successes, can.episodes, can.wall_time_s) == ("lift-can", 1, 2, 1.0)
    assert (bowl.task, bowl.successes, bowl.episodes, bowl.checkpoint) == ("place-bowl", 1, 1, None)


def test_the_datas_own_success_is_that_of_the_episodes_collected_for_the_task(tmp_path, make_episode, write_dataset):
    episodes = [
        make_episode("lift-banana", 1, ("lift-banana",)),
        make_episode("lift-banana", 1, ("lift-can",)),
        make_episode("lift-can", 1, ("lift-banana",)),
    ]
    rows = data_success(Replay(write_dataset(tmp_path / "set", [episodes])), ("lift-banana", "lift-can", "lift-milk"))
    assert [(row.task, row.successes, row.episodes) for row in rows] == [("lift-banana", 1, 2), ("lift-can", 0, 1)]


@pytest.fixture(scope="module")
def evaluation(tiny_checkpoint, tiny_dataset, tmp_path_factory):
    """The folder of one evaluation: an episode each of two tasks by two policies, and the options it was made with."""
    run = tmp_path_factory.mktemp("evaluation") / "run"
    shutil.copytree(Path(tiny_checkpoint).parent, run)
    options = {
        "checkpoint": str(run / "last.ckpt"),
        "episodes": 1,
        "tasks": TASKS_USED,
        "policies": ("checkpoint", "scripted"),
        "workers": 1,
        "data": str(tiny_dataset),
    }
    evaluate(EvalConfig(**options))
    return run, options


def outcomes_of(folder):
    rows = json.loads((folder / "eval.json").read_text())["results"]
    return [(row["task"], row["policy"], row["successes"], row["episodes"]) for row in rows]


def test_an_evaluation_writes_a_row_per_task_and_policy(evaluation):
    run, _ = evaluation
    payload = json.loads((run / "eval.json").read_text())
    rows = [(row["task"], row["policy"]) for row in payload["results"]]
    assert rows == [(task, policy) for policy in ("checkpoint", "scripted") for task in TASKS_USED]
    assert [(row["task"], row["episodes"]) for row in payload["data"]] == [(task, 3) for task in TASKS_USED]
    assert payload["steps"] == 4
    assert payload["renderer"] == "tiny"
    assert payload["randomise"] == list(FACTORS)
    assert payload["split"] == payload["trained_split"] == "train"
    assert all(row["seed"] == 1000 for row in payload["results"])


def test_an_evaluation_keeps_every_episode(evaluation):
    """A line each, the same as in the log beside it."""
    text = (evaluation[0] / "eval.json").read_text()
    episodes = json.loads(text)["episodes"]
    assert len(re.findall(r'^  {"policy": .*"steps": \d+},?$', text, re.MULTILINE)) == len(episodes) == 4
    logged = [json.loads(line) for line in (evaluation[0] / EPISODES).read_text().splitlines()[1:]]
    names = ("policy", "task", "number", "success", "steps")
    by_name = {tuple(row[name] for name in names) for row in logged}
    assert {tuple(row[name] for name in names) for row in episodes} == by_name
    assert {row["seed"] for row in episodes} == {1000}
    for row in json.loads(text)["results"]:
        won = [e["success"] for e in episodes if (e["policy"], e["task"]) == (row["policy"], row["task"])]
        assert (sum(won), len(won)) == (row["successes"], row["episodes"])
    assert read_run(evaluation[0]).counts.keys() == set(TASKS_USED)


def test_the_report_is_one_file_that_needs_nothing_else(evaluation):
    page = (evaluation[0] / "report.html").read_text()
    assert "http" not in re.sub(r'base64,[^"]*', "", page)
    links = re.findall(r'(?:src|href)\s*=\s*["\']?([^"\'\s>]+)', page)
    assert links
    assert all(link.startswith("data:image/") for link in links)
    assert "url(" not in page
    assert "<script" not in page
    assert "<link" not in page


def test_the_report_shows_tasks_intervals_routing_curves_and_films(evaluation):
    page = (evaluation[0] / "report.html").read_text()
    for text in (*TASKS_USED, "95% interval", "Routing", "total loss"):
        assert text in page
    (table,) = re.findall(r"<table><tr><th>task, success.*?</table>", page)
    assert re.findall(r"<th>([^<]*)<br>", table) == ["trained policy", "scripted policy", "the data"]
    for task in TASKS_USED:
        (row,) = re.findall(rf"<tr><td>{task}(.*?)</tr>", table)
        assert len(re.findall(r"<td title='\d of \d'>", row)) == 3
    assert page.count("<figure>") == 2  # the checkpoint's one episode of each task


def test_one_seed_gives_one_result_whatever_the_number_of_workers(evaluation, tmp_path):
    run, options = evaluation
    evaluate(EvalConfig(**{**options, "workers": 2, "out": str(tmp_path)}))
    assert outcomes_of(tmp_path) == outcomes_of(run)
    films = [re.findall(r"base64,([^\"]*)", (folder / "report.html").read_text()) for folder in (run, tmp_path)]
    assert films[0] == films[1]


def test_a_finished_evaluation_may_be_reused_only_with_the_same_options(evaluation, tmp_path, capsys):
    run, options = evaluation
    shutil.copytree(run, tmp_path / "run")
    reusing = {**options, "checkpoint": str(tmp_path / "run" / "last.ckpt"), "policies": ("scripted",), "reuse": True}
    evaluate(EvalConfig(**reusing))
    assert "already there" not in capsys.readouterr().out
    first = (tmp_path / "run" / "report.html").stat().st_mtime_ns
    evaluate(EvalConfig(**reusing))
    assert "already there" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").stat().st_mtime_ns == first
    other = read_checkpoint(tmp_path / "run" / "last.ckpt")  # of as many steps
    other["state_dict"]["target.task_attention"] += 1.0
    torch.save(other, tmp_path / "run" / "last.ckpt")
    evaluate(EvalConfig(**reusing))
    assert "already there" not in capsys.readouterr().out


def test_the_checkpoint_is_read_once_to_play_name_and_hash_it(evaluation, tmp_path, monkeypatch):
    """A training replaces its last checkpoint while it is evaluated."""
    run, options = evaluation
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "last.ckpt"
    played, real = [], rollout

    def replacing(policy, checkpoint, *given):
        path.write_bytes(b"of another step")
        played.append(checkpoint)
        return real(policy, checkpoint, *given)

    monkeypatch.setattr("eval.__main__.rollout", replacing)
    evaluate(EvalConfig(**{**options, "checkpoint": str(path), "policies": ("checkpoint",)}))
    found = json.loads((tmp_path / "run" / "eval.json").read_text())
    before = (run / "last.ckpt").read_bytes()
    assert found["settings"]["checkpoint_sha256"] == hashlib.sha256(before).hexdigest()
    assert [file.content for file in played] == [before]
    assert outcomes_of(tmp_path / "run") == [row for row in outcomes_of(run) if row[1] == "checkpoint"]


def test_an_evaluation_that_is_stopped_goes_on_after_what_it_played(evaluation, tmp_path, monkeypatch, capsys):
    _, options = evaluation
    options = {**options, "out": str(tmp_path), "episodes": 3, "policies": ("checkpoint", "random")}
    real = rollout

    def stopped(policy, checkpoint, world, jobs, workers):
        for number, outcome in enumerate(real(policy, checkpoint, world, jobs, workers)):
            if number == 3 and policy == "random":
                raise Stopped(signal.SIGTERM)
            yield outcome

    with monkeypatch.context() as patch:
        patch.setattr("eval.__main__.rollout", stopped)
        with pytest.raises(Stopped):
            evaluate(EvalConfig(**options))
    out = capsys.readouterr().out
    assert "9 episodes are kept: the same command goes on after them" in out
    assert "1 to 2 a task" in out  # random's, three of six
    assert re.search(r"^average of all( +[\d.]+% \([\d.]+-[\d.]+\)){2}$", out, re.MULTILINE)
    assert not (tmp_path / "eval.json").exists()
    (hidden,) = tmp_path.glob(f".*.{EPISODES}")
    with hidden.open("a") as file:
        file.write('{"policy": "random", "task": "lift-ban')  # a kill cut this line short

    asked = []

    def counting(policy, checkpoint, world, jobs, workers):
        asked.append((policy, [(job.task, job.number, job.filmed) for job in jobs]))
        return real(policy, checkpoint, world, jobs, workers)

    monkeypatch.setattr("eval.__main__.rollout", counting)
    evaluate(EvalConfig(**options))
    assert asked[0] == ("checkpoint", [(task, number, True) for number in (0, 1) for task in TASKS_USED])  # films
    assert asked[1][0] == "random"
    assert len(asked[1][1]) == 3
    resumed = outcomes_of(tmp_path)
    evaluate(EvalConfig(**{**options, "out": str(tmp_path / "whole")}))
    assert outcomes_of(tmp_path / "whole") == resumed
    assert len((tmp_path / EPISODES).read_text().splitlines()) == 1 + 12 + 4  # four were played again for their films
    monkeypatch.setattr("eval.__main__.rollout", lambda *given: pytest.fail(f"{len(given[3])} episodes"))
    with pytest.raises(pytest.fail.Exception, match="6 episodes"):  # a finished one is played anew
        evaluate(EvalConfig(**options))


def test_seen_and_unseen_looks_stand_side_by_side(evaluation, tmp_path, monkeypatch, capsys):
    """Both splits in one table; stopped within the second, the same command goes on after all that was played."""
    _, options = evaluation
    options = {**options, "out": str(tmp_path), "policies": ("random",), "split": "both", "data": ""}
    real = rollout

    def stopped(policy, checkpoint, world, jobs, workers):
        for outcome in real(policy, checkpoint, world, jobs, workers):
            yield outcome
            if world["split"] == "test":
                raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("eval.__main__.rollout", stopped)
        with pytest.raises(Stopped):
            evaluate(EvalConfig(**options))
    out = capsys.readouterr().out
    assert re.search(r"^task +random, seen +random, unseen$", out, re.MULTILINE)
    assert "3 episodes are kept" in out
    assert not list(tmp_path.rglob("eval.json"))

    played = []

    def counting(policy, checkpoint, world, jobs, workers):
        played.append((world["split"], len(jobs)))
        return real(policy, checkpoint, world, jobs, workers)

    monkeypatch.setattr("eval.__main__.rollout", counting)
    assert evaluate(EvalConfig(**options)) == tmp_path / "report.html"
    assert played == [("train", 0), ("test", 1)]
    table = capsys.readouterr().out
    assert re.search(r"^average of all( +[\d.]+% \([\d.]+-[\d.]+\)){2}$", table, re.MULTILINE)
    folders = {"train": tmp_path, "test": tmp_path / "test-split"}
    for split, folder in folders.items():
        assert json.loads((folder / "eval.json").read_text())["split"] == split
        page = (folder / "report.html").read_text()
        heads = re.findall(r"<th>([^<]*)<br>1 a task", page)
        assert heads == ["random policy, seen looks", "random policy, unseen looks"]
    evaluate(EvalConfig(**{**options, "reuse": True}))
    again = capsys.readouterr().out
    assert again.count("(already there)") == 2
    assert table.strip() in again
    (tmp_path / "test-split/eval.json").unlink()
    evaluate(EvalConfig(**{**options, "reuse": True}))  # what is finished is not played again
    assert played[2:] == [("test", 2)]


def test_results_that_cannot_be_written_are_found_before_the_first_episode(evaluation, tmp_path, monkeypatch):
    _, options = evaluation
    monkeypatch.setattr("eval.__main__.rollout", lambda *_: pytest.fail("an episode was played"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        evaluate(EvalConfig(**{**options, "out": str(tmp_path / "file")}))

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("eval.episode_log.write_atomic", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/out/"):
        evaluate(EvalConfig(**{**options, "out": str(tmp_path / "out")}))


def test_two_evaluations_do_not_share_a_folder(evaluation, tmp_path):
    _, options = evaluation
    with lock_file(tmp_path / "eval.lock", ""), pytest.raises(DatasetError, match="another evaluation is at work"):
        evaluate(EvalConfig(**{**options, "out": str(tmp_path)}))


def test_the_table_is_printed_though_nothing_can_be_written_any_more(evaluation, tmp_path, monkeypatch, capsys):
    _, options = evaluation

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("eval.report.write_atomic", full)
    with pytest.raises(OSError, match=r"report\.html"):
        evaluate(EvalConfig(**{**options, "out": str(tmp_path), "policies": ("scripted",)}))
    assert re.search(r"\ntask +scripted +data\n.*\naverage of all +100\.0% \(34", capsys.readouterr().out, re.DOTALL)


def test_acting_with_another_renderer_than_the_trained_one_is_refused_naming_both(tiny_checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="trained on images of renderer tiny, asked to act on egl"):
        evaluate(EvalConfig(checkpoint=str(tiny_checkpoint), out=str(tmp_path / "out"), renderer="egl"))
    assert not (tmp_path / "out").exists()


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.ckpt: no such checkpoint"):
        evaluate(EvalConfig(checkpoint=str(tmp_path / "none.ckpt")))


def test_a_policy_depends_on_image_task_and_generator(tiny_checkpoint, observe):
    policy = CEMPolicy.load(tiny_checkpoint)
    frames = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), dtype=np.uint8)

    def act(image, task, seed):
        return policy.act(observe(image[None]), np.array([task]), np.random.default_rng(seed))

    first = act(frames[0], 0, 0)
    assert first.dtype == np.float32
    assert np.array_equal(first, act(frames[0], 0, 0))
    for other in (act(frames[1], 0, 0), act(frames[0], 7, 0)):
        assert not np.array_equal(first, other)
    assert len({act(frames[0], 0, seed).tobytes() for seed in range(5)}) > 1  # half of the candidates are the mean


def test_a_policy_takes_frames_of_its_own_size_alone(tiny_checkpoint, observe):
    policy = CEMPolicy.load(tiny_checkpoint)
    assert policy.frame_size == 56
    for side, channels, kind in ((64, 3, "uint8"), (56, 4, "uint8"), (56, 3, "float32")):
        named = rf"frames uint8 \[56, 56, 3\], got {kind} \[{side}, {side}, {channels}\]"
        observation = observe(np.zeros((1, side, side, channels), kind))
        with pytest.raises(ValueError, match=named):
            policy.act(observation, np.zeros(1, np.int64), np.random.default_rng(0))


def test_epsilon_greedy_acts_at_random_with_probability_epsilon():
    class Still:
        def act(self, observation, task_index, rng):
            return np.zeros((len(task_index), 5), np.float32)

    task = np.zeros(4000, np.int64)
    for epsilon in (0.0, 0.25):
        action = EpsilonGreedy(Still(), epsilon).act({}, task, np.random.default_rng(0))
        assert (action[:, 0] != 0).mean() == pytest.approx(epsilon, abs=0.03)


def test_what_a_worker_cannot_load_is_named():
    jobs = [EpisodeJob(task="lift-can", number=0, seed=0, filmed=False)]
    with pytest.raises(ValueError, match="no such file: no such checkpoint"):
        list(rollout("checkpoint", "no such file", {"image_size": 48, "renderer": "tiny"}, jobs, 1))


def test_what_is_wrong_is_said_before_the_first_episode(tiny_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="no dataset here"):
        evaluate(EvalConfig(checkpoint=str(tiny_checkpoint), data=str(tmp_path / "none"), episodes=10**6))
    with pytest.raises(ValueError, match="never trained for place-plate"):
        evaluate(EvalConfig(checkpoint=str(tiny_checkpoint), tasks=("place-plate",), episodes=10**6))


def test_the_data_of_another_size_is_no_policys_data(tmp_path, make_episode, write_dataset):
    folder = write_dataset(tmp_path / "set", [[make_episode()]])
    with pytest.raises(ValueError, match="16 px, tiny: not the data of a policy of 64 px, egl"):
        Replay(folder).require(64, "egl")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ("lift-cann",)}, "unknown task 'lift-cann'.*Did you mean 'lift-can'"),
        ({"renderer": "tinny"}, "unknown renderer 'tinny'"),
        ({"tasks": ("lift-can", "lift-can")}, "lift-can is named twice"),
        ({"policies": ("checkpiont",)}, "unknown policy 'checkpiont'.*Did you mean 'checkpoint'"),
        ({"episodes": 0}, "episodes is at least 1"),
        ({"workers": 0}, "workers is at least 1"),
        ({"seed": -1}, "seed is 0 or more"),
    ],
)
def test_an_evaluation_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        EvalConfig(checkpoint="a.ckpt", **wrong)


def test_one_image_at_a_time_gets_the_action_of_a_batch_of_one(tiny_checkpoint):
    image = np.random.default_rng(0).integers(0, 256, (1, 56, 56, 3), dtype=np.uint8)
    gripper = {"gripper_closed": np.ones(1, np.float32), "gripper_height": np.full(1, 0.1, np.float32)}
    observation = {"image": image, **gripper, "state": np.zeros((1, STATE_SIZE), np.float32)}
    expected = CEMPolicy.load(tiny_checkpoint).act(observation, np.array([7]), np.random.default_rng(3))
    policy = Policy.load(tiny_checkpoint, seed=3)
    assert np.array_equal(policy.act(image[0], 1, 0.1, "place-bowl"), expected[0])
    with pytest.raises(ValueError, match="Did you mean 'lift-can'"):
        policy.act(image[0], 1, 0.1, "lift-cann")
    with pytest.raises(ValueError, match="never trained for lift-can, but for lift-banana, place-bowl"):
        policy.act(image[0], 1, 0.1, "lift-can")


def test_the_readmes_python_runs(tiny_checkpoint, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)
    assert "models/trained/vision-64.ckpt" in code
    exec(code.replace("models/trained/vision-64.ckpt", str(tiny_checkpoint)).replace("lift-can", "lift-banana"), {})
    assert capsys.readouterr().out.strip() in ("lifted", "not lifted")


def test_the_exported_programs_are_the_network_and_need_no_switchyard(tiny_checkpoint, tmp_path, capsys):
    """In another process, which knows of torch alone."""
    out = tmp_path / "exported"
    assert export_main(["--checkpoint", str(tiny_checkpoint), "--out", str(out)]) == 0
    assert "trunk.pt2, head.pt2, behaviour_policy.pt2; at most" in capsys.readouterr().out
    torch.manual_seed(0)
    image, gripper = torch.rand(1, 3, 48, 48), torch.tensor([[0.0, 0.1]])
    action, task = torch.rand(1, 8, 5).round(), torch.tensor([TASKS["lift-banana"].index])
    torch.save([image, gripper, action, task], tmp_path / "inputs.pt")
    code = f"""import sys, torch
image, gripper, action, task = torch.load({str(tmp_path / "inputs.pt")!r}, weights_only=True)
trunk, head, policy = (torch.export.load(f"{out}/{{n}}.pt2").module() for n in ("trunk", "head", "behaviour_policy"))
features = trunk(image, gripper)
torch.save([head(features, gripper, action, task), *policy(features, gripper, task)], {str(tmp_path / "found.pt")!r})
assert not any(name.split('.')[0] in ('models', 'sim', 'eval') for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)
    network = CEMPolicy.load(tiny_checkpoint).network
    with torch.no_grad():
        features = network.encode(image, gripper)
        wanted = [network.score(features, gripper, action, task), *network.behaviour_policy(features, gripper, task)]
    for found, value in zip(torch.load(tmp_path / "found.pt", weights_only=True), wanted, strict=True):
        assert (found - value).abs().max() < 1e-3
    metadata = json.loads((out / "metadata.json").read_text())
    assert (metadata["image_size"], metadata["candidates"], metadata["acting"]["by"]) == (48, 8, "emaq")
    assert export_main(["--checkpoint", str(tiny_checkpoint), "--out", str(out)]) == 2  # not empty


def test_a_slim_checkpoint_acts_as_the_whole_one_does(tiny_checkpoint, tmp_path):
    out = tmp_path / "slim.ckpt"
    assert export_main(["--checkpoint", str(tiny_checkpoint), "--out", str(out), "--format", "checkpoint"]) == 0
    assert out.stat().st_size < 0.4 * Path(tiny_checkpoint).stat().st_size
    side = CEMPolicy.load(out).frame_size
    image = np.random.default_rng(0).integers(256, size=(side, side, 3), dtype=np.uint8)
    actions = [Policy.load(path).act(image, 0.0, 0.1, "lift-banana") for path in (out, tiny_checkpoint)]
    assert np.array_equal(*actions)


def test_a_mistaken_identity_is_told_from_an_imprecise_position():
    landmark = torch.zeros(3, LANDMARKS, 6)
    landmark[:, 0, 0], landmark[:, 1, 0], landmark[:, O, 0] = 0.0, 1.0, 0.9  # two objects and a fixture, along x
    present = torch.zeros(3, LANDMARKS + 1, dtype=torch.bool)
    present[:, [0, 1, O, LANDMARKS]] = True
    present[2, 1] = False
    predicted = torch.tensor([[0.4, 0, 0], [0.7, 0, 0], [0.7, 0, 0]])
    assert other_is_nearer(predicted, landmark, present, torch.tensor([0, 0, 0])).tolist() == [False, True, False]
    assert other_is_nearer(predicted, landmark, present, torch.tensor([1, 1, O])).tolist() == [True, False, False]


def test_perception_metrics_of_known_errors(tiny_checkpoint, tiny_dataset, monkeypatch, capsys):
    """With landmarks that are 3 and 4 cm off, and a behaviour policy that is always right."""
    batches = []

    def perceive(self, image, gripper):
        landmark = batches[-1].landmark + torch.tensor([0.03, 0.04, 0, 0, 0, 0]) / OFFSET_UNIT_M
        landmark[:, 0, 5] = 1 - landmark[:, 0, 5]  # wrong for one of seven objects
        return Perception(torch.zeros(0), landmark, torch.zeros(len(image), 1))

    def behaviour_policy(self, features, gripper, task_index):
        action = batches[-1].action
        return action[:, :4] / torch.from_numpy(BOUNDS), torch.nn.functional.one_hot(action[:, 4].long(), 4).float()

    load = Sampler.load
    monkeypatch.setattr(Sampler, "load", lambda *arguments: batches.append(load(*arguments)) or batches[-1])
    monkeypatch.setattr(SmallQNetwork, "perceive", perceive)
    monkeypatch.setattr(SmallQNetwork, "behaviour_policy", behaviour_policy)
    rows = measure(PerceptionConfig(checkpoint=str(tiny_checkpoint), data=str(tiny_dataset)))
    assert [row.task for row in rows] == [*TASKS_USED, "mean"]
    assert rows[0].median_cm == pytest.approx(5, abs=1e-3)
    assert all(row.presence_accuracy == pytest.approx(6 / 7) for row in rows)
    success = [row for row in rows[:-1] if row.command_accuracy == row.command_accuracy]
    assert success
    assert all(row.r2 == pytest.approx((1, 1, 1, 1)) and row.command_accuracy == 1 for row in success)
    assert perception_main(["--checkpoint", "none.ckpt", "--data", str(tiny_dataset)]) == 2
    assert "none.ckpt: no such checkpoint" in capsys.readouterr().err
