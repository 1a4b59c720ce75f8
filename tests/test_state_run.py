"""A run of an offline algorithm on states: results, going on, refusals."""

from __future__ import annotations

import dataclasses
import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.transitions import TransitionDataset, empty_columns, write_transitions
from eval.returns import Results
from eval.tables import tables
from models.checkpoint import CheckpointError
from models.policy_files import load_policies
from sim.benchmarks.spec import MissingSimulatorError
from sim.benchmarks.table import BENCHMARKS
from tests.conftest import SMALL_STATE_RUN as SMALL
from tests.conftest import small_state_config
from tests.line import LINE
from train import state_run
from train.bc import BCConfig
from train.callbacks.evaluation import EvaluateEvery, best_of, read_evaluations
from train.cql import CQL, CQLConfig
from train.finite import NotFiniteError
from train.presets import PRESETS, preset_for
from train.sac import SACConfig
from train.state_run import ALGORITHMS, train
from train.td3 import TD3Config

WALKER2D = BENCHMARKS["walker2d"]
KINDS = list({entry.make: name for name, entry in reversed(ALGORITHMS.items())}.values())  # a name of each class
PHASES = {"brac": {"bc_steps": 3, "warm_start_steps": 2, "share_after": 4}}


@pytest.fixture
def unplayed(monkeypatch):
    """Without MuJoCo's episodes."""

    def evaluate(file, *_):
        weight = file.policy.network.mlp.layers[0].weight.detach().double().abs().sum()  # tells policies apart
        rows = [
            {"name": m.name, "rule": m.rule, "seed": m.seed, "returns": {task: [float(weight)] for task in m.tasks}}
            for m in file.members
        ]
        return Results(
            header={**file.metadata, "benchmark": "walker2d", "metric": "return", "episodes": 1, "evaluation_seed": 1},
            members=rows,
        )

    monkeypatch.setattr(state_run, "evaluate", evaluate)


def test_a_finished_run_is_evaluated_again_by_the_same_command(transitions, tmp_path, unplayed):
    write_transitions(tmp_path / "states.h5", transitions)
    config = CQLConfig(
        **{**SMALL, "data": str(tmp_path / "states.h5"), "out": str(tmp_path / "run"), "rules": ("cds",)}
    )
    first = json.loads(train("cql", config).read_text())
    (tmp_path / "run" / "returns.json").unlink()
    again = json.loads(train("cql", config).read_text())
    assert first == again
    member = first["members"][0]
    assert set(member["own_divergence"]) == set(member["behaviour_returns"]) == set(WALKER2D.task_names)
    assert member["returns"]["jump"] != member["behaviour_returns"]["jump"]


def test_a_warning_is_said_once(transitions, tmp_path, unplayed, monkeypatch, capsys):
    write_transitions(tmp_path / "states.h5", transitions)
    monkeypatch.setattr(CQL, "warning", lambda *_: "none-0: at its bound")
    options = {**SMALL, "rules": ("none",), "steps": 8, "divergence_steps": 0}  # four times logged
    train("cql", CQLConfig(**{**options, "data": str(tmp_path / "states.h5"), "out": str(tmp_path / "run")}))
    assert capsys.readouterr().err.count("update 2: none-0: at its bound") == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bc", {"reward_scale": 10.0}, "reward_scale: bc has no use for it"),
        ("bc", {"rules": ("uds",)}, "rule uds changes rewards alone, and bc reads none"),
        ("cql", {"rules": ("none", "cds"), "tasks": ("jump",)}, "rule cds: one task alone has nothing to share"),
    ],
)
def test_rules_and_options_without_use_are_refused(transitions, name, options, message):
    with pytest.raises(ValueError, match=message):
        state_run.build(name, small_state_config(name, **{"rules": ("none",)} | options), transitions)


def test_without_mujoco_a_run_is_trained_and_says_so(transitions, tmp_path, monkeypatch, capsys):
    def missing(*_):
        raise MissingSimulatorError("walker2d needs MuJoCo")

    monkeypatch.setattr(state_run, "evaluate", missing)
    write_transitions(tmp_path / "states.h5", transitions)
    config = CQLConfig(**{**SMALL, "data": str(tmp_path / "states.h5"), "out": str(tmp_path / "run")})
    assert train("cql", config).name == "policy.pt"
    assert "trained, not evaluated: walker2d needs MuJoCo" in capsys.readouterr().out


def test_ctrl_c_keeps_the_update_under_way_and_the_run_goes_on_from_there(transitions, tmp_path, monkeypatch, unplayed):
    write_transitions(tmp_path / "states.h5", transitions)
    options = {**SMALL, "data": str(tmp_path / "states.h5"), "steps": 8, "rules": ("cds",)}
    real = CQL.update

    def interrupted(self):
        if self.updates == 4:
            signal.raise_signal(signal.SIGINT)
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(CQL, "update", interrupted)
        with pytest.raises(SystemExit):
            train("cql", CQLConfig(**options, out=str(tmp_path / "stopped")))
    assert torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["updates"] == 6
    for name in ("stopped", "straight"):
        train("cql", CQLConfig(**options, out=str(tmp_path / name)))
    stopped, straight = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("stopped", "straight")
    )
    assert all(torch.equal(stopped["state_dict"][key], value) for key, value in straight["state_dict"].items())


def test_a_run_does_not_go_on_from_other_data(transitions, tmp_path, unplayed):
    config = CQLConfig(**{**SMALL, "data": str(tmp_path / "states.h5"), "out": str(tmp_path / "run")})
    write_transitions(tmp_path / "states.h5", transitions)
    train("cql", config)
    other = {**transitions.columns, "observation": transitions.columns["observation"] * 2}
    write_transitions(tmp_path / "states.h5", dataclasses.replace(transitions, columns=other))
    before = (tmp_path / "run" / "config.json").read_bytes()
    (tmp_path / "states.h5").rename(tmp_path / "other.h5")
    with pytest.raises(CheckpointError, match=r"learned from other data than .*other\.h5 holds now"):
        train("cql", dataclasses.replace(config, data=str(tmp_path / "other.h5")))
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_observations_that_are_not_normalised_bind_a_run_to_its_data_too(transitions, tmp_path, unplayed):
    options = {**SMALL, "normalise": False, "out": str(tmp_path / "run")}
    write_transitions(tmp_path / "states.h5", transitions)
    train("cql", CQLConfig(**options, data=str(tmp_path / "states.h5")))
    (tmp_path / "states.h5").rename(tmp_path / "moved.h5")
    train("cql", CQLConfig(**options, data=str(tmp_path / "moved.h5")))
    other = {**transitions.columns, "action": transitions.columns["action"] * 0.5}
    write_transitions(tmp_path / "moved.h5", dataclasses.replace(transitions, columns=other))
    with pytest.raises(CheckpointError, match=r"learned from other data than .*moved\.h5 holds now"):
        train("cql", CQLConfig(**options, data=str(tmp_path / "moved.h5")))


@pytest.mark.parametrize("algorithm", KINDS)
def test_a_run_that_diverges_says_so_and_leaves_no_checkpoint_of_it(transitions, tmp_path, algorithm):
    write_transitions(tmp_path / "states.h5", transitions)
    rate = "lr" if algorithm == "bc" else "critic_lr"
    options = {"steps": 40, rate: 1e30, "data": str(tmp_path / "states.h5"), "rules": ("none",)}
    words = rf"step \d+: .* NaN or infinite; nothing was saved; a lower --{rate.replace('_', '-')}"
    with pytest.raises(NotFiniteError, match=words):
        train(
            algorithm, small_state_config(algorithm, **options, **PHASES.get(algorithm, {}), out=str(tmp_path / "run"))
        )
    assert not (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize("algorithm", KINDS)
def test_going_on_is_bit_for_bit_the_run_that_was_not_stopped(transitions, tmp_path, unplayed, algorithm):
    path, rules = tmp_path / "states.h5", ("none", "all" if algorithm == "bc" else "cds")
    write_transitions(path, transitions)
    options = {"data": str(path), "rules": rules, "seeds": (0, 1), "checkpoint_every": 2, **PHASES.get(algorithm, {})}
    for name, steps in (("stopped", 4), ("stopped", 8), ("straight", 8)):
        train(algorithm, small_state_config(algorithm, **options, out=str(tmp_path / name), steps=steps))
    stopped, straight = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("stopped", "straight")
    )
    assert stopped["updates"] == straight["updates"] == 8
    board = EventAccumulator(str(tmp_path / "straight" / "log"))
    board.Reload()
    assert {f"routing/{rule}-{seed}/weights" for rule in rules for seed in (0, 1)} <= set(board.Tags()["images"])
    logged = [event.step for event in board.Scalars(f"{rules[1]}-1/{'cloning' if algorithm == 'bc' else 'bellman'}")]
    assert logged == ([4, 6, 8] if algorithm == "brac" else [2, 4, 6, 8])  # in two steps the behaviour policy alone
    assert all(torch.equal(stopped["state_dict"][key], value) for key, value in straight["state_dict"].items())
    with pytest.raises(ValueError, match=r"already holds a run with other options: shared_fraction 0.5 \(now 0.4\)"):
        train(algorithm, small_state_config(algorithm, **options, out=str(tmp_path / "stopped"), shared_fraction=0.4))


@pytest.fixture
def earning(unplayed, monkeypatch):
    """What members earn falls with every update."""
    fake = state_run.evaluate

    def evaluate(file, *more):
        results = fake(file, *more)
        for row in results.members:
            row["returns"] = {task: [10.0 - file.metadata["updates"]] for task in row["returns"]}
        return results

    monkeypatch.setattr(state_run, "evaluate", evaluate)


def evaluated(folder, transitions, steps, name="run"):
    write_transitions(folder / "states.h5", transitions)
    options = {"data": str(folder / "states.h5"), "out": str(folder / name), "rules": ("none",), "seeds": (0, 1)}
    path = train("cql", small_state_config("cql", **options, steps=steps, evaluate_every=4, divergence_steps=0))
    return json.loads(path.read_text()), read_evaluations(folder / name / "evaluations.json")


def test_the_best_evaluation_is_reported_beside_the_last(transitions, tmp_path, earning):
    """Played every four of ten updates: after four, eight, and at the end."""
    found, listed = evaluated(tmp_path, transitions, 10)
    assert [each["updates"] for each in listed] == [4, 8]
    for row in found["members"]:
        assert row["returns"]["jump"] == [0.0]
        assert row["best"] == {"updates": 4, "returns": {key: [6.0] for key in WALKER2D.task_names}}
    table = tables([tmp_path / "run" / "returns.json"])
    assert "| return in the best evaluation | none |" in table
    assert table.count("| jump | 6.0 ± 0.0 |") == table.count("| jump | 0.0 ± 0.0 |") == 1


def test_the_best_evaluation_does_not_depend_on_where_a_run_was_stopped(transitions, tmp_path, earning):
    straight = evaluated(tmp_path, transitions, 10)
    for steps in (4, 6, 10):
        resumed = evaluated(tmp_path, transitions, steps, "resumed")
    assert resumed[1] == straight[1]
    assert [each["best"] for each in resumed[0]["members"]] == [each["best"] for each in straight[0]["members"]]


def test_evaluations_of_other_numbers_of_episodes_are_not_compared():
    rows = [{"name": "a", "returns": {"jump": [value]}} for value in (9.0, 2.0, 1.0)]
    listed = [{"updates": 4 * k, "episodes": 3 - k, "members": [row]} for k, row in enumerate(rows[:2], 1)]
    last = Results(header={"episodes": 1}, members=[rows[2]])
    assert best_of(listed, last, "a", 10) == {"updates": 8, "returns": {"jump": [2.0]}}


def test_what_a_killed_run_played_after_its_checkpoint_or_was_killed_in_is_played_again(tmp_path):
    """Its checkpoint is of update 8, as is the evaluation in which it was killed."""
    path, played = tmp_path / "evaluations.json", []
    path.write_text(json.dumps([{"updates": updates, "episodes": 1, "members": []} for updates in (4, 12)]))
    play = lambda: played.append(1) or Results(header={"episodes": 1}, members=[])  # noqa: E731
    EvaluateEvery(path, 4, play).on_train_start(SimpleNamespace(logger=None), SimpleNamespace(done_steps=8))
    assert [each["updates"] for each in read_evaluations(path)] == [4, 8]
    assert len(played) == 1


def test_hcsac_shares_what_is_among_the_tasks_best_by_a_renewed_q_function(transitions, tmp_path):
    """What the report says of itself stays whatever the benchmark's row says of CDS."""
    write_transitions(tmp_path / "states.h5", transitions)
    found = state_run.parse("hcsac", ["--data", str(tmp_path / "states.h5")])[0]
    assert (found.percentile, found.weigh_own_probability, found.conditioning) == (5.0, 0.0, "embedding")
    assert found.snapshot_every == 10 * found.evaluate_every == found.steps // 10 == 60_000
    assert state_run.parse("csac", ["--data", found.data])[0].steps == found.steps / 2  # of one task
    assert found.sharing_temperature_clip == (5.0, float("inf"))  # of walker2d's row
    assert [state_run.parse(name, ["--data", found.data])[0].per_task for name in ("csac", "mtcsac")] == [1024, 512]


def test_a_checkpoint_of_a_version_that_shared_otherwise_is_refused(transitions, tmp_path, unplayed):
    write_transitions(tmp_path / "states.h5", transitions)
    config = CQLConfig(**{**SMALL, "data": str(tmp_path / "states.h5"), "out": str(tmp_path / "run")})
    train("cql", config)
    path = tmp_path / "run" / "last.ckpt"
    torch.save({**torch.load(path, weights_only=True), "format": 6}, path)
    with pytest.raises(CheckpointError, match=r"begun by an earlier version"):
        train("cql", dataclasses.replace(config, steps=5))


def test_results_name_what_they_are_of_and_the_policies_can_be_loaded(transitions, tmp_path, unplayed):
    write_transitions(tmp_path / "states.h5", transitions)
    options = {**SMALL, "data": str(tmp_path / "states.h5"), "out": str(tmp_path / "run"), "rules": ("none", "cds")}
    found = json.loads(train("cql", CQLConfig(**options)).read_text())
    assert found["dataset_digest"] == transitions.digest
    assert (found["benchmark"], found["algorithm"], found["updates"]) == ("walker2d", "cql", 4)
    assert found["config"]["critic_lr"] == 3e-4
    file = load_policies(tmp_path / "run" / "policy.pt")
    assert [member.name for member in file.members] == ["none-0", "cds-0"]
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    weight = file.member(1).policy.network.mlp.layers[0].weight
    assert torch.equal(weight, checkpoint["policy.mlp.layers.0.weight"][1:])


def test_the_preset_is_that_of_the_benchmark_the_dataset_names(transitions, tmp_path, capsys):
    ant = BENCHMARKS["ant"]
    columns = empty_columns(ant, 4)
    columns["episode_end"][-1] = True
    write_transitions(tmp_path / "ant.h5", TransitionDataset(benchmark=ant, columns=columns, metadata={}))
    write_transitions(tmp_path / "walker2d.h5", transitions)

    def resolved(*options):
        state_run.main("cql", [*options, "--print-config"])
        return json.loads(capsys.readouterr().out)

    found = resolved("--data", str(tmp_path / "ant.h5"))
    assert (found["conservative_weight"], found["sharing_temperature_clip"]) == (5.0, [10.0, 25.0])
    found = resolved("--data", str(tmp_path / "walker2d.h5"))
    assert (found["conservative_weight"], found["sharing_temperature_clip"]) == (1.0, [5.0, float("inf")])
    assert resolved("--data", str(tmp_path / "ant.h5"), "--conservative-weight", "2")["conservative_weight"] == 2.0


def test_every_benchmark_has_a_preset():
    assert PRESETS.keys() == BENCHMARKS.keys()
    for row in PRESETS.values():
        for name, options in row.items():
            kinds = {
                "sac": SACConfig,
                "td3": TD3Config,
                "sharing": CQLConfig,
                **{key: entry.config for key, entry in ALGORITHMS.items()},
            }
            assert options.keys() <= {field.name for field in dataclasses.fields(kinds[name])}
    with pytest.raises(ValueError, match="unknown preset of benchmark 'pond'"):
        preset_for("cql", "pond", CQLConfig)


def test_behaviour_cloning_refuses_rules_that_weigh_by_q(transitions, tmp_path):
    write_transitions(tmp_path / "states.h5", transitions)
    with pytest.raises(ValueError, match="rule cds weighs by Q-values, and bc learns none"):
        train("bc", BCConfig(data=str(tmp_path / "states.h5"), out=str(tmp_path / "run"), rules=("cds",)))


def test_the_report_counts_the_successes_among_what_is_shared():
    columns = empty_columns(LINE, 8)
    columns["quantity/place"][:] = [2, 2, 1, 0, 0, 1, 1, 2]
    columns["task"][:] = np.arange(8) // 4
    columns["episode_end"][-1] = True
    dataset = TransitionDataset(benchmark=LINE, columns=columns, metadata={})
    assert dataset.steps_by_outcome.tolist() == [[[2, 3], [3, 3]], [[2, 1], [1, 1]]]
    torch.manual_seed(0)
    cql = state_run.build("cql", CQLConfig(**{**SMALL, "rules": ("all",)}), dataset)
    cql.shared.start("cpu")
    for number in range(400):
        random = cql.config.random("cpu", 9, number)
        cql.shared.begin(number)
        cql.shared.weigh(cql.shared.sample(random), None, random)
    (report,) = cql.shared.report()
    assert report["success"] == pytest.approx([1 / 4, 1 / 4], abs=0.04)
    assert report["shared"] == [0.5, 0.5]
