"""Files of state policies: several members in one network, for anything to load and play."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.checkpoint import CheckpointError, Source, load_finite, read_plain, to_bytes
from models.conditioning import CONDITIONERS, FrozenEncoder, Normaliser
from models.state_policies import POLICIES, StatePolicy
from sim.benchmarks.spec import Benchmark
from sim.benchmarks.table import BENCHMARKS
from sim.options import check_choice

FORMAT = 2
KEY = "switchyard_policies"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One member of a policy's network, and the tasks that it was trained for."""

    name: str
    tasks: tuple[str, ...]
    rule: str = ""  # sharing rule
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PolicyFile:
    """`policy` has a member in its first dimension for each of `members`. `metadata`: plain values, such as the
    algorithm, its configuration, the dataset's digest."""

    policy: StatePolicy
    benchmark: Benchmark
    members: tuple[Member, ...]
    metadata: dict[str, Any]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that at least one member was trained for, in the benchmark's order."""
        trained = {task for member in self.members for task in member.tasks}
        return tuple(name for name in self.benchmark.task_names if name in trained)

    def named(self, name: str) -> PolicyFile:
        """One member alone; ValueError where there is none of the name."""
        names = [member.name for member in self.members]
        return self.member(names.index(check_choice("member", name, names)))

    def member(self, number: int) -> PolicyFile:
        """One member alone."""
        policy = copy.deepcopy(self.policy)
        for module in policy.modules():
            for name, weight in module.named_parameters(recurse=False):
                if len(self.members) > 1 and weight.shape[0] == len(self.members):
                    alone = nn.Parameter(weight[number : number + 1].clone(), requires_grad=False)
                    setattr(module, name, alone)
        return dataclasses.replace(self, policy=policy, members=self.members[number : number + 1])


def pack_policies(file: PolicyFile) -> bytes:
    """The content of a file that `load_policies` reads: tensors and plain values."""
    policy = file.policy
    conditioning = next(name for name, kind in CONDITIONERS.items() if type(policy.conditioner) is kind)
    header = {
        "format": FORMAT,
        "benchmark": file.benchmark.name,
        "tasks": list(file.benchmark.task_names),  # order of the one-hot vector
        "members": [dataclasses.asdict(member) | {"tasks": list(member.tasks)} for member in file.members],
        "conditioning": conditioning,
        "policy": next(name for name, kind in POLICIES.items() if type(policy.network) is kind),
        "hidden_sizes": list(policy.network.hidden_sizes),
        "metadata": file.metadata,
    }
    if isinstance(policy.conditioner, FrozenEncoder):
        header["encoder_sizes"] = list(policy.conditioner.layer_sizes)
    return to_bytes({KEY: header, "state_dict": policy.state_dict()})


def load_policies(path: Source) -> PolicyFile:
    """CheckpointError for any other file, or one of a benchmark that this version lacks."""
    found = read_plain(path)
    header = found.get(KEY) if isinstance(found, dict) else None
    if not isinstance(header, dict) or header.get("format") not in (1, FORMAT):
        raise CheckpointError(f"{path}: holds no policies for states; a run on states writes policy.pt")
    if header["format"] == 1:
        return _load_format_1(path, header, found["state_dict"])
    benchmark = BENCHMARKS.get(header["benchmark"])
    if benchmark is None or tuple(header["tasks"]) != benchmark.task_names:
        raise CheckpointError(
            f"{path}: made for {header['benchmark']} with tasks {header['tasks']}, not in this version"
        )
    members = tuple(Member(**{**member, "tasks": tuple(member["tasks"])}) for member in header["members"])
    sizes = {"layer_sizes": tuple(header["encoder_sizes"])} if "encoder_sizes" in header else {}
    kind = header.get("policy", "gaussian")  # files of before have no other
    policy = _build(benchmark, len(members), header["conditioning"], kind, tuple(header["hidden_sizes"]), **sizes)
    load_finite(policy, found["state_dict"], path)
    return PolicyFile(
        policy=policy.requires_grad_(False), benchmark=benchmark, members=members, metadata=header["metadata"]
    )


def _build(
    benchmark: Benchmark, members: int, conditioning: str, policy: str, hidden_sizes: tuple[int, ...], **sizes: Any
) -> StatePolicy:
    size, num_tasks = benchmark.observation_size, len(benchmark.tasks)
    conditioner = CONDITIONERS[conditioning](members, size, num_tasks, **sizes)
    network = POLICIES[policy](members, conditioner.size, hidden_sizes, benchmark.action_size)
    return StatePolicy(Normaliser.identity(size), conditioner, network)


def _load_format_1(path: Source, header: dict[str, Any], weights: dict[str, Any]) -> PolicyFile:
    """SAC's policies of before: a member for each of `tasks`, observations as they are."""
    benchmark = BENCHMARKS.get(header["body"])
    if benchmark is None or not set(header["tasks"]) <= set(benchmark.task_names):
        raise CheckpointError(f"{path}: made for {header['body']} with tasks {header['tasks']}, which this lacks")
    members = tuple(Member(name=task, tasks=(task,), seed=header["seed"]) for task in header["tasks"])
    policy = _build(benchmark, len(members), "none", "gaussian", tuple(header["hidden"]))
    load_finite(policy.network, {"mlp." + key.removeprefix("body."): value for key, value in weights.items()}, path)
    metadata = {name: header[name] for name in ("algorithm", "steps", "seed")}
    return PolicyFile(policy=policy.requires_grad_(False), benchmark=benchmark, members=members, metadata=metadata)


def pack_encoder(encoder: FrozenEncoder, benchmark: Benchmark, dataset_digest: str) -> bytes:
    """The content of a file that `load_encoder` reads, of an encoder of observations normalised over that dataset."""
    header = {"format": 1, "benchmark": benchmark.name, "layer_sizes": list(encoder.layer_sizes)}
    header["dataset_digest"] = dataset_digest
    return to_bytes({"switchyard_encoder": header, "state_dict": encoder.state_dict()})


def load_encoder(path: Source, benchmark: Benchmark, dataset_digest: str) -> FrozenEncoder:
    """A pretrained encoder of the benchmark's observations, as the dataset normalises them; CheckpointError for any
    other file."""
    found = read_plain(path)
    header = found.get("switchyard_encoder") if isinstance(found, dict) else None
    if not isinstance(header, dict) or header.get("format") != 1:
        raise CheckpointError(f"{path}: holds no encoder of states of format 1")
    if header["benchmark"] != benchmark.name:
        raise CheckpointError(f"{path}: encodes observations of {header['benchmark']}, not of {benchmark.name}")
    if header["dataset_digest"] != dataset_digest:
        raise CheckpointError(f"{path}: was pretrained on another dataset, which normalises observations otherwise")
    encoder = FrozenEncoder(1, benchmark.observation_size, len(benchmark.tasks), tuple(header["layer_sizes"]))
    load_finite(encoder, found["state_dict"], path)
    return encoder
