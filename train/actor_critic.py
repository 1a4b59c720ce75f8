"""What the actor-critic algorithms on states have in common: policies, twin Q-functions, and scores by these for the
sharing rules.

Shapes: `E` members, `B` transitions of all target tasks, `K` actions, `S` and `A` dimensions of a conditioned state and
an action.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from data.member_random import MemberRandom
from data.shared_batches import SharedBatches
from data.state_batches import StateBatch
from data.transitions import TransitionDataset
from models.conditioning import Conditioner, Normaliser
from models.stacked import TwinQ, initialise_weights
from models.state_policies import StatePolicy, TanhGaussianPolicy
from models.updates import frozen, update_average
from sim.options import check_fraction, option
from train.seeding import MemberStream
from train.state_algorithm import StateAlgorithm
from train.state_config import StateConfig
from train.state_scorer import ConditionedQ, CriticScorer


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(StateConfig):
    """Options that every actor-critic algorithm on states has."""

    critic_lr: float = option(3e-4, "learning rate of Adam, Q-functions")
    actor_lr: float = option(3e-4, "learning rate of Adam, policies")
    discount: float = option(0.99, "gamma")
    target_update_rate: float = option(5e-3, "weight of the new network in the target's running average")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "discount", "target_update_rate")


class ActorCritic(StateAlgorithm):
    """`target` is the running average of the critic `q`; `shared` samples, relabels and weighs batches."""

    config: ActorCriticConfig
    num_policy_actions = 10  # whose mean Q rule cds-basic compares with
    _trained: Tensor  # bool [N], which tasks are

    def __init__(
        self,
        config: ActorCriticConfig,
        dataset: TransitionDataset,
        normaliser: Normaliser,
        conditioner: Conditioner,
        policy: type[TanhGaussianPolicy] = TanhGaussianPolicy,
    ) -> None:
        """Observations of `dataset` are normalised already."""
        super().__init__(config)
        members, action_size = len(config.members), dataset.benchmark.action_size
        self.normaliser, self.conditioner = normaliser, conditioner
        sizes = members, conditioner.size, config.hidden_sizes
        first = config.random("cpu", MemberStream.FIRST_WEIGHTS)
        self.policy = initialise_weights(policy(*sizes, action_size), members, first.uniform)
        q = TwinQ(members, conditioner.size, action_size, config.hidden_sizes)
        self.q = initialise_weights(q, members, first.uniform)
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.shared = SharedBatches(dataset, config, lambda: self.conservative_q(self.target))
        trained = torch.zeros(len(dataset.benchmark.tasks), dtype=torch.bool)
        trained[list(self.shared.tasks)] = True
        self.register_buffer("_trained", trained, persistent=False)
        critic = [*self.q.parameters(), *self.conditioner.parameters()]
        self.critic_optimizer = torch.optim.Adam(critic, lr=config.critic_lr, fused=True)
        self.optimizers = [self.critic_optimizer]

    # ---------------------------------------------------------------- parts of an update

    def sample_batch(self) -> tuple[StateBatch, Tensor]:
        """Batches of all members and their weights [E, B]."""
        self.shared.score_episodes(self.score, self.random)
        return self.shared.sample_weighted(self.score, self.random)

    def states(self, batch: StateBatch) -> tuple[Tensor, Tensor]:
        """Conditioned states and next states, [E, B, S] each; the latter without a gradient."""
        state = self.conditioner(batch.observation, batch.task_index)
        return state, self.conditioner(batch.next_observation, batch.task_index).detach()

    def frozen_q(self, state: Tensor, action: Tensor) -> Tensor:
        """Q of actions [E, B, K, A], [2, E, B, K], whose gradient goes to the actions alone."""
        with frozen(self.q):
            found: Tensor = self.q(state.detach(), action)
        return found

    def update_target(self) -> None:
        update_average(self.target, self.q, self.config.target_update_rate)

    # ---------------------------------------------------------------- scores

    def conservative_q(self, q: TwinQ) -> ConditionedQ:
        """The Q-function of a critic by which rules share. It is as conservative as the algorithm makes it."""
        return ConditionedQ(self.conditioner, q)

    def penalty(self, state: Tensor) -> Tensor | float:
        """Subtracted from Q at states [E, B, S] for a conservative estimate, [E, B]."""
        return 0.0

    @torch.no_grad()
    def score(self, batch: StateBatch, random: MemberRandom) -> CriticScorer:
        """The scorer of a batch that is not learned from (yet)."""
        state = self.conditioner(batch.observation, batch.task_index)
        needed = any(rule.needs == "q_policy" for rule in self.shared.rules)
        noise = random.normal(state.shape[1], self.num_policy_actions * needed, self.policy.action_size)
        actions = self.policy.actions(state, noise)
        q = self.q.values(state, torch.cat([batch.action[:, :, None], actions], 2))
        return self.scorer(batch, q[..., 0], q[..., 1:], self.penalty(state))

    def scorer(
        self, batch: StateBatch, q_data: Tensor, q_actions: Tensor, penalty: Tensor | float = 0.0
    ) -> CriticScorer:
        """From Q-values that are known: of the data's actions [2, E, B], of the policy's [2, E, B, K]."""
        return CriticScorer(
            q_function=self.conservative_q(self.q),
            batch=batch,
            trained=self._trained,
            q_data=q_data,
            q_actions=q_actions,
            penalty=penalty,
        )

    # ---------------------------------------------------------------- what a run asks for

    def policies(self) -> StatePolicy:
        return StatePolicy(self.normaliser, self.conditioner, self.policy)
