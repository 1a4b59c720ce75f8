"""`python -m train cql --data datasets/walker2d-published.h5 --rules none,cds --seeds 0,1,2`: an offline algorithm with
data sharing on a state benchmark.

All rules and seeds train side by side. Settings that a benchmark has published come from the preset of the benchmark
that the dataset names (train/presets.py); options win over it, and --print-config shows the result. Stopped anywhere,
the same command goes on from the last checkpoint. At the end the run writes policy.pt, which `python -m eval.returns`
plays, and returns.json: the returns of every member's deterministic policy, the returns of pi_beta_eff, the behaviour
policy of its effective data, and its KL from the policy of rule none with the same seed (divergence, CDS, tables 1 and
2) and from the member's own (own_divergence).
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.assignment import assign_tasks
from data.sharing import RULES
from data.transitions import TransitionDataset, read_benchmark, read_transitions
from data.weight_files import WEIGHTS
from eval.returns import EVALUATION_SEED, Results, evaluate
from models.conditioning import CONDITIONERS, Conditioner, Normaliser
from models.policy_files import Member, PolicyFile, load_encoder, pack_policies
from models.state_policies import StatePolicy
from sim.benchmarks.spec import MissingSimulatorError
from sim.files import write_atomic
from sim.options import Parser, add_options, from_options, peek_option
from train.actor_critic import ActorCriticConfig
from train.bc import BC, BCConfig
from train.brac import BRAC, BRACConfig
from train.callbacks.evaluation import add_evaluation, best_of, is_due, last_evaluation, read_evaluations
from train.callbacks.progress import quiet_lightning
from train.cql import CQL, CQLConfig
from train.divergence import SingleTaskPolicy, divergences, fit_behaviour, load_single_task, single_task_of
from train.finite import NotFiniteError
from train.hcsac import CSACConfig, HCSACConfig, MTCSACConfig
from train.iql import IQL, IQLConfig
from train.presets import preset_for
from train.process_settings import prepare_process
from train.run_dir import checkpoint_to_resume, lock_run, write_options
from train.state_algorithm import StateAlgorithm
from train.state_checkpoints import Checkpoints
from train.state_config import StateConfig
from train.state_fit import EVALUATIONS, StateRun, fit_updates
from train.state_weights import write_weights_of
from train.td3_bc import TD3BC, TD3BCConfig

POLICY, ROUTING, RETURNS = "policy.pt", "routing.json", "returns.json"
FREE_TO_CHANGE = (
    "out",
    "data",  # bound by its content, not by where it lies
    "steps",
    "updates_per_step",
    "log_every",
    "checkpoint_every",
    "episodes",
    "evaluate_every",
    "workers",
    "precision",
    "divergence_steps",
    "divergence_from",
)


@dataclass(frozen=True)
class Entry:
    """An algorithm, made of its configuration, the normalised dataset, the normaliser and the conditioner."""

    make: Callable[[Any, TransitionDataset, Normaliser, Conditioner], StateAlgorithm]
    config: type[StateConfig]


ALGORITHMS: dict[str, Entry] = {
    "cql": Entry(CQL, CQLConfig),
    "csac": Entry(CQL, CSACConfig),
    "mtcsac": Entry(CQL, MTCSACConfig),
    "hcsac": Entry(CQL, HCSACConfig),
    "brac": Entry(BRAC, BRACConfig),
    "td3-bc": Entry(TD3BC, TD3BCConfig),
    "iql": Entry(IQL, IQLConfig),
    "bc": Entry(BC, BCConfig),
}


def main(name: str, arguments: list[str]) -> None:
    config, only_prints = parse(name, arguments)
    if only_prints:
        print(json.dumps({"algorithm": name, **dataclasses.asdict(config)}, indent=1))
    else:
        train(name, config)


def parse(name: str, arguments: list[str]) -> tuple[StateConfig, bool]:
    """The options of a command line without `python -m train NAME`, and whether they are only to be printed."""
    kind = ALGORITHMS[name].config
    data = Path(peek_option(arguments, "--data", kind.data))
    preset = preset_for(name, read_benchmark(data).name, kind) if data.is_file() else {}
    parser = Parser(prog=f"python -m train {name}", description=__doc__)
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    add_options(parser, kind, kind(**preset))
    options = vars(parser.parse_args(arguments))
    return _with_folder(name, from_options(kind, options, **preset)), options["print_config"]


def train(name: str, config: StateConfig) -> Path:
    """Train, or go on, until `config.steps`; the path of the results."""
    dataset = assign_tasks(read_transitions(config.data), config.assignment)
    config = _with_folder(name, config)
    out = Path(config.out)
    quiet_lightning()
    prepare_process()
    algorithm = build(name, config, dataset)  # which refuses what makes no sense before there is a folder
    single_task = load_single_task(config, dataset, _tasks(algorithm, dataset))
    with lock_run(out):
        resume = checkpoint_to_resume(out, config, FREE_TO_CHANGE)
        algorithm.to(device := torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        algorithm.shared.start(device)
        checkpoints = Checkpoints(name, algorithm, dataset.digest)
        precision = config.precision

        def played() -> Results:
            file = policy_file(name, config, algorithm, dataset, algorithm.policies())
            return evaluate(file, config.episodes, EVALUATION_SEED, config.workers, f"update {algorithm.updates}")

        if resume is not None:
            kept = checkpoints.restore(resume, config.data)
            precision = kept if precision == "auto" else precision
            done = algorithm.updates >= config.steps
            print(f"{out}: {'trained to' if done else 'going on from'} update {algorithm.updates}")
        write_options(out, config)
        if algorithm.updates < config.steps:
            fit_updates(StateRun(algorithm, config), checkpoints, config, precision, resume is not None, played)
        return _finish(name, config, algorithm, dataset, device, single_task)


def _with_folder(name: str, config: StateConfig) -> StateConfig:
    return dataclasses.replace(config, out=config.out or f"runs/{Path(config.data).stem}-{name}")


def build(name: str, config: StateConfig, dataset: TransitionDataset) -> StateAlgorithm:
    """The algorithm, with a dataset that is normalised where the configuration says so."""
    _check_use(name, config)
    benchmark, digest = dataset.benchmark, dataset.digest if config.encoder else ""
    normaliser = Normaliser.identity(benchmark.observation_size)
    if config.normalise:
        mean, std = dataset.observation_statistics
        normaliser, dataset = Normaliser(mean, std), dataset.normalise(mean, std)
    num_tasks = len(config.tasks or np.unique(dataset.columns["task"]))
    if config.conditioning == "none" and num_tasks > 1:
        raise ValueError(f"conditioning none: one network cannot tell {num_tasks} tasks apart; train one of --tasks")
    if config.encoder:
        conditioner: Conditioner = load_encoder(config.encoder, benchmark, digest)
    else:
        sizes = len(config.members), benchmark.observation_size, len(benchmark.tasks)
        conditioner = CONDITIONERS[config.conditioning](*sizes)
    algorithm = ALGORITHMS[name].make(config, dataset, normaliser, conditioner)
    if len(algorithm.shared.tasks) == 1 and (sharing := [rule for rule in config.rules if rule != "none"]):
        raise ValueError(f"rule {sharing[0]}: one task alone has nothing to share; train more --tasks, or rule none")
    return algorithm


def _check_use(name: str, config: StateConfig) -> None:
    """ValueError for a rule or an option that the algorithm has no use for."""
    for rule in (RULES[each] for each in config.rules):
        if not issubclass(ALGORITHMS[name].config, ActorCriticConfig):
            if rule.uses_q:
                raise ValueError(f"rule {rule.name} weighs by Q-values, and {name} learns none")
            if not rule.reward:
                raise ValueError(f"rule {rule.name} changes rewards alone, and {name} reads none")
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for option in config.unused:
        if getattr(config, option) != defaults[option]:
            raise ValueError(f"{option}: {name} has no use for it")


def _tasks(algorithm: StateAlgorithm, dataset: TransitionDataset) -> tuple[str, ...]:
    """Names of the tasks that are trained."""
    return tuple(dataset.benchmark.task_names[k] for k in algorithm.shared.tasks)


def policy_file(
    name: str, config: StateConfig, algorithm: StateAlgorithm, dataset: TransitionDataset, policy: StatePolicy
) -> PolicyFile:
    """A file of policies of the run's members, on the CPU."""
    tasks = _tasks(algorithm, dataset)
    metadata = {
        "algorithm": name,
        "updates": algorithm.updates,
        "dataset_digest": dataset.digest,
        "recipe": dataset.metadata.get("recipe", ""),
        "config": dataclasses.asdict(config),
    }
    members = tuple(
        Member(name=label, tasks=tasks, rule=rule, seed=seed)
        for label, (rule, seed) in zip(config.member_names, config.members, strict=True)
    )
    on_cpu = copy.deepcopy(policy).cpu()
    return PolicyFile(policy=on_cpu, benchmark=dataset.benchmark, members=members, metadata=metadata)


def _finish(
    name: str,
    config: StateConfig,
    algorithm: StateAlgorithm,
    dataset: TransitionDataset,
    device: torch.device,
    single_task: SingleTaskPolicy | None,
) -> Path:
    """Write the policies, play them, and write the results of every member. `single_task`: another run's policies."""
    out, updates = Path(config.out), algorithm.updates
    learned = policy_file(name, config, algorithm, dataset, algorithm.policies())
    write_atomic(out / POLICY, pack_policies(learned))
    routing = dict(zip(config.member_names, algorithm.shared.report(), strict=True))
    write_atomic(out / ROUTING, json.dumps(routing, indent=1).encode())
    write_weights_of(algorithm, dataset, device, out / WEIGHTS)
    try:
        results = evaluate(learned, config.episodes, EVALUATION_SEED, config.workers)
    except MissingSimulatorError as error:
        print(f"{out / POLICY}: trained, not evaluated: {error}; the same command evaluates it where that is")
        return out / POLICY
    print(results.table())
    evaluations = read_evaluations(out / EVALUATIONS)
    if due := is_due(config.evaluate_every, updates, last_evaluation(evaluations)):
        add_evaluation(out / EVALUATIONS, results, updates)
    for row in results.members:
        row["routing"] = routing[row["name"]]
        if evaluations or due:
            row["best"] = best_of(evaluations, results, row["name"], updates)
    _write(out / RETURNS, results)
    if config.divergence_steps:
        try:
            behaviour = fit_behaviour(algorithm, config.divergence_steps)
        except NotFiniteError as error:
            raise NotFiniteError(
                f"{out}: the behaviour policy of the effective data: {error}; {out / RETURNS} has the returns"
            ) from error
        single_task = single_task or single_task_of(config, algorithm.policies())
        if single_task is None:
            print("no KL of CDS's tables 1 and 2: it needs rule none in a run of stochastic policies: this one, or")
            print("the one whose policy.pt --divergence-from names")
        apart = divergences(algorithm.policies(), single_task, behaviour, dataset, algorithm.shared.tasks)
        behaved = policy_file(name, config, algorithm, dataset, behaviour)
        played = evaluate(behaved, config.episodes, EVALUATION_SEED, config.workers, "evaluate pi_beta_eff")
        for row, values, other in zip(results.members, apart, played.members, strict=True):
            row |= {**values, "behaviour_returns": other["returns"]}
        _write(out / RETURNS, results)
    print(f"{out / RETURNS}: {updates} updates; as a table: python -m eval.tables {out / RETURNS}")
    return out / RETURNS


def _write(path: Path, results: Results) -> None:
    write_atomic(path, json.dumps(results.to_json(), indent=1).encode())
