"""A training run on images: dataset, loader, trainer, checkpoints; starts, resumes or refuses."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy

from data.decoded_frames import DecodedFrames, fits
from data.gpu_decoding import gpu_decoder
from data.loader import DeviceLoader, Loader, TimedBatches
from data.replay import Replay
from data.sampler import BatchStream, Sampler, SamplerConfig
from data.sharing import RULES
from models.checkpoint import CheckpointError, check_finite, load_finite, load_weights
from models.image_checkpoint import FORMAT, acting_weights, read_checkpoint
from models.qnetwork import NetworkConfig
from models.small_network import SmallQNetwork
from sim.options import changed
from sim.tasks import TASK_NAMES, task_by_name
from train.callbacks.checkpointing import AtomicCheckpointIO, SaveAtEnd
from train.callbacks.progress import Progress, quiet_lightning
from train.callbacks.throughput import Throughput
from train.image_bc import BehaviourCloning
from train.launch import fit, join_launch
from train.metadata import FREE_TO_CHANGE
from train.precision import resolve_precision
from train.qtopt import QTOpt
from train.qtopt_config import QTOptConfig
from train.run_dir import LAST, LOG, kept_options, lock_run, trained_options, write_options

if TYPE_CHECKING:
    from train.callbacks.validation import Validation

LEARNERS: dict[str, type[QTOpt | BehaviourCloning]] = {"qtopt": QTOpt, "bc": BehaviourCloning}


def train(config: QTOptConfig) -> Path:
    """Train, or resume, until `config.steps`; returns the path of the last checkpoint."""
    replay = Replay(config.data, config.cache_mib * 2**20 // max(1, config.workers))
    if replay.size != config.image_size:
        raise CheckpointError(
            f"{config.data}: frames for {replay.size} px, but the network sees {config.image_size} px"
        )
    environment, first = join_launch(config.devices, config.nodes)
    out = Path(config.out)
    config = _with_present_tasks(config, replay, out, first)
    with lock_run(out, first):
        return _train(config, replay, out, environment, first)


def _train(config: QTOptConfig, replay: Replay, out: Path, environment: ClusterEnvironment, first: bool) -> Path:
    """`first`: whether this is the first process of the training, the only one that prints and writes."""
    chosen, resume = config, _claim(out, config)
    checkpoint: dict[str, Any] = {}
    done = 0
    if resume is not None:
        checkpoint = read_checkpoint(resume)
        metadata = checkpoint["switchyard"]
        done = metadata["steps"]
        if metadata["format"] < FORMAT and done < config.steps:
            raise CheckpointError(
                f"{resume}: begun by an earlier version; train anew in another --out, from its network with "
                f"--start_from {resume}"
            )
        if metadata["renderer"] != replay.renderer:
            raise CheckpointError(
                f"{resume}: trained on {metadata['renderer']} images, {config.data} holds {replay.renderer}"
            )
        notes = [f"{out}: going on from step {done}", _compare_episodes(checkpoint, resume, replay)]
        if done >= config.steps:
            print(f"{resume}: already trained for {done} steps")
            for validation in _validation(replay, config) if first else []:
                validation.play_waiting(done)
            return resume
        if first:
            print("\n".join(line for line in notes if line))
        if config.precision == "auto":
            config = dataclasses.replace(config, precision=metadata.get("precision", "auto"))
    if first:
        write_options(out, chosen)
    lightning.seed_everything(config.seed, verbose=False)
    module = LEARNERS[config.learner](config, replay)
    if resume is not None:
        module.on_load_checkpoint(checkpoint)
        load_weights(module, checkpoint["state_dict"], resume)  # Lightning would too, with a worse error
        for network in (module.network, module.target):
            check_finite(network, resume)
    elif config.start_from:
        _start_from(config, module, replay.renderer)
    quiet_lightning()
    trainer = _trainer(config, out, replay, done, environment)
    fit(trainer, module, _loader(config, replay, module, done, trainer), out, "--lr", resume)
    if first:
        print(f"{out / LAST}: {config.steps} steps; to play it: python -m eval --checkpoint {out / LAST}")
    return out / LAST


def _compare_episodes(checkpoint: dict[str, Any], path: Path, replay: Replay) -> str:
    """A note on a dataset that has changed since the checkpoint, or ''; CheckpointError where episodes that it learned
    from are gone. Checkpoints of early versions do not list their episodes."""
    if "episodes" not in checkpoint:
        return ""
    known, now = checkpoint["episodes"].numpy(), replay.episode_key
    gone = int((~np.isin(known, now)).sum())
    if gone:
        raise CheckpointError(
            f"{path}: learned from other data than {replay.folder} holds: {gone} of its {len(known)} episodes are not "
            "there; choose another --out"
        )
    if len(now) > len(known):
        return f"{replay.folder}: has grown from {len(known)} to {len(now)} episodes, all of which are learned from now"
    return "" if np.array_equal(known, now) else f"{replay.folder}: lists its episodes in another order than before"


def _start_from(config: QTOptConfig, module: QTOpt | BehaviourCloning, renderer: str) -> None:
    """Load the acting network of a checkpoint, or its perception, into all networks of the module; CheckpointError
    where it differs."""
    path, learned = config.start_from, module.network
    checkpoint = read_checkpoint(path)
    metadata, wanted = checkpoint["switchyard"], module.config.network
    found = NetworkConfig(**metadata["network"])
    old, new = dataclasses.asdict(found) | {"renderer": metadata["renderer"]}, dataclasses.asdict(wanted)
    if differs := changed(old, new | {"renderer": renderer}):
        raise CheckpointError(f"{path}: holds another network than this run trains: {differs}")
    weights = acting_weights(checkpoint)
    if config.start_with == "perception":
        if not isinstance(learned, SmallQNetwork):
            raise ValueError("start_with perception: QT-Opt's network has no perception of its own")
        weights = {key: weights[key] if learned.sees(key) else own for key, own in learned.state_dict().items()}
    for network in (module.network, module.target, getattr(module, "lagged", None)):
        if network is not None:
            load_finite(network, weights, path)


def _with_present_tasks(config: QTOptConfig, replay: Replay, out: Path, first: bool) -> QTOptConfig:
    """Resolve the default tasks: those that the run in `out` learns, else those that the dataset holds. Tasks given by
    name are kept."""
    if config.tasks != TASK_NAMES:
        return config
    present = tuple(name for name in TASK_NAMES if (replay.episode_task == task_by_name(name).index).any())
    learned = tuple(trained_options(out).get("tasks", ()))
    tasks, note = present, f"holds episodes of {len(present)} tasks, training those: {', '.join(present)}"
    if learned and set(learned) < set(present):
        new = ", ".join(name for name in present if name not in learned)
        tasks, note = learned, f"holds {new} too, which the run in {out} does not learn"
    if first and tasks != TASK_NAMES:
        print(f"{config.data}: {note}")
    return dataclasses.replace(config, tasks=tasks)


def _claim(out: Path, config: QTOptConfig) -> Path | None:
    """The checkpoint to resume from, or None for a new run; refuses a run with other options."""
    last, found = out / LAST, kept_options(out, config, FREE_TO_CHANGE)
    if config.lr_decay and found and found["steps"] != config.steps:
        raise CheckpointError(
            f"{out}: its learning rate falls over {found['steps']} steps, not {config.steps}; "
            f"to train on, choose another --out with --start-from {last}"
        )
    return last if last.is_file() else None


def _loader(
    config: QTOptConfig, replay: Replay, module: QTOpt | BehaviourCloning, first_step: int, trainer: lightning.Trainer
) -> TimedBatches:
    device = trainer.strategy.root_device
    keeps = config.frames == "device" or (config.frames == "auto" and device.type == "cuda" and fits(replay, device))
    tasks = tuple(task_by_name(name).index for name in config.tasks)
    decoder = gpu_decoder(device) if config.decode != "cpu" and not keeps else None
    if config.decode == "gpu" and not keeps and decoder is None:
        raise ValueError("decode gpu needs a GPU and torchcodec or torchvision; decode auto uses them where they are")
    if decoder is not None and trainer.is_global_zero:
        print(f"{config.data}: JPEG is decoded on the GPU by {decoder[0]}")
    mix = SamplerConfig(
        per_task=config.per_task,
        processes=trainer.world_size,
        shared_fraction=config.shared_fraction,
        success_fraction=config.success_fraction,
        balance_shared=config.balance_shared,
        candidates_per_shared=config.candidates_per_shared if config.router.draws_candidates else 0,
        by_episode=config.router.draws_episodes,
        scored=config.scored_steps,
        n_step=config.n_step,
        decode=decoder is None,
    )
    sampler = Sampler(replay, tasks, RULES[config.rule], mix)
    if config.behaviour_policy and (without := ", ".join(TASK_NAMES[task] for task in sampler.tasks_without_success)):
        if config.learner == "bc" and len(sampler.tasks_without_success) == len(tasks):
            raise ValueError(f"{config.data}: holds no success of {without}: there is nothing to clone")
        if trainer.is_global_zero:
            print(f"{config.data}: holds no success of {without} to clone")
    episodes = module.router.episodes if isinstance(module, QTOpt) else None
    stream = BatchStream(sampler, config.seed, first_step, trainer.global_rank, episodes)
    return DeviceLoader(stream, DecodedFrames(replay, device)) if keeps else Loader(stream, config.workers)


def _trainer(
    config: QTOptConfig, out: Path, replay: Replay, done: int, environment: ClusterEnvironment
) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="auto",
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=_strategy(config),
        precision=resolve_precision(config.precision),  # type: ignore[arg-type]
        max_steps=config.steps,
        limit_train_batches=config.steps,
        use_distributed_sampler=False,
        plugins=[environment, AtomicCheckpointIO()],
        default_root_dir=out,
        logger=TensorBoardLogger(out, name="", version=LOG, purge_step=done + 1 if done else None),
        log_every_n_steps=config.log_every,
        callbacks=[
            Throughput(config.log_every),
            ModelCheckpoint(
                out, filename="last", every_n_train_steps=config.checkpoint_every, enable_version_counter=False
            ),
            SaveAtEnd(out / LAST, config.log_every),
            Progress(config.steps, refresh_rate=min(10, config.log_every)),
            *_validation(replay, config),
        ],
        enable_model_summary=False,
    )


def _strategy(config: QTOptConfig) -> Any:
    if config.devices * config.nodes == 1:
        return "auto"
    return DDPStrategy(timeout=datetime.timedelta(hours=6))  # an evaluation takes time


def _validation(replay: Replay, config: QTOptConfig) -> list[Validation]:
    if not config.evaluate_every:
        return []
    from train.callbacks.validation import Validation  # which needs the simulator and scipy; other trainings do not

    return [Validation(replay, config)]
