"""Options of a training run on images, and the named presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from data.decoded_frames import FRAMES
from data.router_config import ADAPTIVE, BY_RULE, GRANULARITIES, RouterConfig
from data.sharing import REFERENCES, RULES
from models.acting import ActingConfig
from models.cem import CEMConfig
from models.qnetwork import CONDITIONINGS, NetworkConfig
from sim.image_sizes import SMALL_PX
from sim.options import (
    Parser,
    add_options,
    check_choice,
    check_fraction,
    check_least,
    check_seed,
    from_options,
    option,
    peek_option,
)
from sim.tasks import TASK_NAMES, check_tasks
from train.precision import PRECISIONS

LEARNERS = ("qtopt", "bc")
DECODERS = ("auto", "cpu", "gpu")
REFERENCE_OVER = ("batches", "data")
START_WITH = ("network", "perception")
CLONED: dict[str, str] = {  # steps that the behaviour policy clones -> what they are
    "effective": "all, by their weight: pi_beta of D_eff",
    "successes": "own ones of successful episodes, and shared ones by their weight",
    "accepted": "of episodes that the target's detector accepts, own or shared",
}


@dataclass(frozen=True, kw_only=True)
class QTOptConfig:
    """Every option of `python -m train`. Where the defaults are not the papers', docs/vision.md says why."""

    data: str = option("datasets/vision", "folder of the dataset")
    out: str = option("runs/vision", "folder of the run: checkpoints, logs, config")
    seed: int = option(0, "seed of everything")
    start_from: str = option("", "checkpoint whose averaged network this run begins with")
    start_with: str = option("network", f"what of it: {', '.join(START_WITH)}; perception: without Q and policy")
    tasks: tuple[str, ...] = option(TASK_NAMES, "tasks to train")
    image_size: int = option(472, "side of the network's images, px; the dataset's size must match")
    attention_stride: int = option(4, "px per cell of the small network's attention maps: 2, finer, or 4, faster")
    conditioning: str = option("heads", "heads: one final stack per task; one_hot: the task in the vector branch")
    steps: int = option(200_000, "gradient steps")
    batch_size: int = option(32, "transitions per step and device, rounded to the same number for every task")
    lr: float = option(1e-4, "learning rate of Adam")
    lr_decay: bool = option(False, "linear decay of the learning rate to a fiftieth over the steps of the run")
    weight_decay: float = option(7e-5, "L2")
    discount: float = option(0.9, "gamma")
    n_step: int = option(1, "steps of the return before bootstrapping; above 1 it follows the data's actions")
    target_update_rate: float = option(1e-4, "per step, of the averaged weights that give targets and act")
    lagged_target_steps: int = option(6000, "between copies of the target to a second one, for the minimum; 0: none")
    conservative_weight: float = option(1.0, "of the conservative term")
    num_unseen_actions: int = option(16, "sampled per state for the conservative term")
    nearby_fraction: float = option(0.0, "fraction of the unseen actions drawn around the data's action")
    nearby_std: float = option(0.3, "their standard deviation, in units of the action's bounds")
    learner: str = option("qtopt", f"of {', '.join(LEARNERS)}; bc: behaviour cloning of the successes, a baseline")
    behaviour_policy: bool = option(False, "clone the successes, act by its best sample (EMaQ; not in the paper)")
    behaviour_policy_std: float = option(0.1, "standard deviation of those samples, in units of the action's bounds")
    bc_log_prob_weight: float = option(1.0, "of log pi_b beside log Q when choosing among them; 0: by Q alone (EMaQ)")
    landmark_weight: float = option(0.0, "of the auxiliary losses on object positions (not in the paper)")
    cloned: str = option("successes", f"steps that the behaviour policy clones: {', '.join(CLONED)}")
    rule: str = option("cds-hard", f"sharing rule: {', '.join(RULES)}")
    sharing: str = option("sample", "weight: the rule scales the loss of shared transitions; sample: it draws them")
    granularity: str = option("episode", f"unit that is scored: {', '.join(GRANULARITIES)}")
    reference: str = option(BY_RULE, f"to reach: {', '.join(REFERENCES)} of own scores, or as the rule has it")
    percentile: float = option(10.0, "k of the reference percentile, percent from the top")
    reference_over: str = option("batches", "batches: own scores count as often as they are drawn; data: alike")
    sharing_temperature: str = option("absolute", f"tau of soft rules: {', '.join(ADAPTIVE)}, or a number")
    weigh_own_probability: float = option(0.0, "probability that a task's own transitions are weighed too, each step")
    snapshot_every: int = option(1000, "steps between snapshots of the Q-function by which the heuristic shares")
    share_after: int = option(0, "steps before which a rule that uses Q-values chooses nothing")
    score_fraction: float = option(0.25, "steps scored beside a batch, as a fraction of its size (granularity episode)")
    score_visits: int = option(4, "visits over which an episode's score is the mean")
    candidates_per_shared: int = option(8, "drawn for each shared transition (sharing sample, granularity transition)")
    shared_fraction: float = option(0.5, "fraction of each task's batch drawn from other tasks")
    success_fraction: float = option(0.5, "fraction of the own transitions from successful episodes")
    balance_shared: bool = option(False, "success_fraction for shared ones too: the detector chooses (an oracle)")
    cem_samples: int = option(64, "candidates a round")
    cem_elites: int = option(6, "kept to refit")
    cem_iterations: int = option(2, "rounds")
    random_crop: bool = option(True, "crop training images at random, else at the centre as in evaluation")
    photometric: bool = option(False, "augment brightness, contrast, saturation and hue of training images")
    precision: str = option("auto", "32-true, bf16-mixed, or auto: bfloat16 where the hardware has units for it")
    devices: int = option(1, "GPUs or CPU processes per machine")
    nodes: int = option(1, "machines")
    workers: int = option(1, "loader processes")
    cache_mib: int = option(0, "memory for frames that were read, as stored, of each training process")
    frames: str = option(
        "auto", f"of {', '.join(FRAMES)}; device: decoded once and kept there; auto: so on a GPU if it fits"
    )
    decode: str = option("auto", f"of {', '.join(DECODERS)}: where images are decoded; auto: on a GPU if it can")
    checkpoint_every: int = option(1000, "steps between checkpoints")
    log_every: int = option(50, "steps between log lines")
    evaluate_every: int = option(0, "steps between evaluations in the simulator, which select best.ckpt; 0: never")
    evaluate_episodes: int = option(10, "of each task in those")
    q_maps_every: int = option(1000, "steps between maps of Q over the image and of the sharing weights")

    def __post_init__(self) -> None:
        check_tasks(self.tasks)
        check_choice("sharing rule", self.rule, tuple(RULES))
        check_choice("conditioning", self.conditioning, CONDITIONINGS)
        check_choice("learner", self.learner, LEARNERS)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("decoder", self.decode, DECODERS)
        check_choice("frames", self.frames, FRAMES)
        check_choice("part of start_from", self.start_with, START_WITH)
        check_least(
            self,
            0,
            "conservative_weight",
            "landmark_weight",
            "bc_log_prob_weight",
            "behaviour_policy_std",
            "nearby_std",
        )
        if self.batch_size < len(self.tasks):
            raise ValueError(f"a batch of {self.batch_size} cannot hold {len(self.tasks)} tasks")
        check_least(
            self,
            1,
            "steps",
            "n_step",
            "checkpoint_every",
            "log_every",
            "q_maps_every",
            "snapshot_every",
            "evaluate_episodes",
            "candidates_per_shared",
            "score_visits",
            "devices",
            "nodes",
        )
        check_least(
            self,
            0,
            "num_unseen_actions",
            "workers",
            "cache_mib",
            "evaluate_every",
            "share_after",
            "lagged_target_steps",
            "lr",
            "weight_decay",
        )
        check_seed(self, "seed")
        check_choice("cloned", self.cloned, tuple(CLONED))
        check_choice("reference_over", self.reference_over, REFERENCE_OVER)
        check_fraction(
            self,
            "shared_fraction",
            "success_fraction",
            "score_fraction",
            "nearby_fraction",
            "discount",
            "target_update_rate",
        )
        if self.shared_fraction and RULES[self.rule].uses_q and self.per_task * self.devices * self.nodes < 2:
            raise ValueError(f"rule {self.rule} compares shared with own transitions: a batch needs two of each task")
        if self.router.by_episode and not self.scored_steps:
            raise ValueError("granularity episode scores episodes beside the batches: score_fraction is above 0")
        if self.balance_shared and self.sharing == "sample" and RULES[self.rule].uses_q:
            raise ValueError(f"balance_shared and sharing sample by rule {self.rule} both choose what is shared")
        if (self.behaviour_policy or self.landmark_weight) and self.image_size > SMALL_PX[1]:
            raise ValueError("behaviour_policy and landmark_weight need the small network (48-128 px)")
        if self.learner == "bc" and not self.behaviour_policy:
            raise ValueError("learner bc trains the behaviour policy alone: it needs behaviour_policy")
        if self.learner == "bc" and RULES[self.rule].uses_q:
            raise ValueError(f"rule {self.rule} weighs by Q-values, and learner bc learns none: try --rule none")
        _ = self.network, self.acting, self.router  # their own checks

    @property
    def per_task(self) -> int:
        """Transitions for each task in the batch of one process."""
        return max(1, round(self.batch_size / len(self.tasks)))

    @property
    def scored_steps(self) -> int:
        """Steps scored beside the batch of one process."""
        if not self.router.by_episode or not self.score_fraction:
            return 0
        return max(1, round(self.score_fraction * self.per_task * len(self.tasks)))

    @property
    def network(self) -> NetworkConfig:
        return NetworkConfig(
            image_size=self.image_size,
            num_tasks=len(TASK_NAMES),
            conditioning=self.conditioning,
            attention_stride=self.attention_stride,
            behaviour_policy=self.behaviour_policy,
        )

    @property
    def acting(self) -> ActingConfig:
        cem = CEMConfig(samples=self.cem_samples, elites=self.cem_elites, iterations=self.cem_iterations)
        by = "behaviour_policy" if self.learner == "bc" else "emaq" if self.behaviour_policy else "cem"
        return ActingConfig(
            by=by,
            cem=cem,
            behaviour_policy_std=self.behaviour_policy_std,
            bc_log_prob_weight=self.bc_log_prob_weight,
        )

    @property
    def router(self) -> RouterConfig:
        return RouterConfig(
            rule=self.rule,
            sharing=self.sharing,
            granularity=self.granularity,
            reference=self.reference,
            percentile=self.percentile,
            temperature=self.sharing_temperature,
            weigh_own_probability=self.weigh_own_probability,
            share_after=self.share_after,
        )


_VISION_472 = QTOptConfig()
_VISION_64 = replace(
    _VISION_472,
    image_size=64,
    attention_stride=2,
    steps=12_000,
    batch_size=160,
    lr=2e-3,
    lr_decay=True,
    weight_decay=0.0,
    target_update_rate=0.005,
    lagged_target_steps=0,
    cem_samples=16,
    cem_elites=4,
    nearby_fraction=0.5,
    conservative_weight=0.03,
    landmark_weight=0.3,
    behaviour_policy=True,
    photometric=True,
    share_after=500,
    workers=2,
)
_DEMO = replace(
    _VISION_64,
    data="datasets/demo",
    out="runs/demo",
    attention_stride=4,
    cloned="accepted",
    steps=1500,
    share_after=500,
    batch_size=120,
    target_update_rate=0.02,
    random_crop=False,
    photometric=False,
    workers=1,
    checkpoint_every=250,
    log_every=20,
)

_ONLINE = replace(
    _DEMO,
    lr=1e-3,
    lr_decay=False,
    target_update_rate=0.01,
    random_crop=True,
    rule="none",
    shared_fraction=0.0,
)

PRESETS: dict[str, QTOptConfig] = {
    "demo": _DEMO,
    "online": _ONLINE,
    "vision-64": _VISION_64,
    "vision-472": _VISION_472,
}


def parse(arguments: list[str], description: str | None = None) -> tuple[QTOptConfig, bool]:
    """The options of a command line without `python -m train`, and whether they are only to be printed."""
    name = peek_option(arguments, "--preset", "vision-472")
    preset = PRESETS[check_choice("preset", name, tuple(PRESETS))]
    parser = Parser(prog="python -m train", description=description)
    parser.add_argument("--preset", default=name, help=f"named defaults: {', '.join(PRESETS)} (default {name})")
    parser.add_argument(
        "--print-config", "--print_config", action="store_true", help="print the resolved configuration and stop"
    )
    add_options(parser, QTOptConfig, preset)
    options = vars(parser.parse_args(arguments))
    return from_options(QTOptConfig, options, **asdict(preset)), options["print_config"]
