"""CSAC, MTCSAC and HCSAC (Bu, Wang and Xue 2024, a project report): CQL with wide networks on dm_control's walker. They
are configurations of CQL (train/cql.py), no algorithms of their own.

CSAC learns one task, MTCSAC all of them by a learned embedding that is added to the state, HCSAC adds heuristic
relabelling: of others' transitions those whose Q reaches the top 5% of the task's own, by a Q-function that is renewed
every 100 epochs, and relabelled with the target task's reward. The report does not tell how long an epoch is: here 300
updates for each task, 300,000 transitions in batches of 1024.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.options import option
from train.cql import CQLConfig

EPOCH = 300  # updates, with one task
BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class CSACConfig(CQLConfig):
    """Every option of `python -m train csac`; defaults: section 3.1 of the report."""

    data: str = option("datasets/dmc-walker-published.h5", "file of transitions; its benchmark chooses the preset")
    rules: tuple[str, ...] = option(("none",), "sharing rules, trained side by side")
    steps: int = option(1000 * EPOCH, "updates")
    per_task: int = option(BATCH, "transitions of each task in a batch")
    hidden_sizes: tuple[int, ...] = option((1024, 1024, 1024), "units of the hidden layers")
    conditioning: str = option("none", "task conditioning of the networks")
    target_update_rate: float = option(0.01, "weight of the new network in the target's running average")
    conservative_weight: float = option(10.0, "beta, beside half the squared error, as the report has both (eq. 8)")
    percentile: float = option(5.0, "k of the reference percentile, percent from the top")
    weigh_own_probability: float = option(0.0, "that a task's own transitions are weighed too")
    evaluate_every: int = option(10 * EPOCH, "updates between further evaluations, of which the best is reported too")
    divergence_steps: int = option(0, "to fit the effective behaviour policy at the end; 0: it is not")


@dataclass(frozen=True, kw_only=True)
class MTCSACConfig(CSACConfig):
    """Every option of `python -m train mtcsac`; of two tasks."""

    steps: int = option(2000 * EPOCH, "updates")
    per_task: int = option(BATCH // 2, "transitions of each task in a batch")
    conditioning: str = option("embedding", "task conditioning of the networks")
    evaluate_every: int = option(20 * EPOCH, "updates between further evaluations, of which the best is reported too")


@dataclass(frozen=True, kw_only=True)
class HCSACConfig(MTCSACConfig):
    """Every option of `python -m train hcsac`."""

    rules: tuple[str, ...] = option(("heuristic",), "sharing rules, trained side by side")
    snapshot_every: int = option(200 * EPOCH, "updates between snapshots of the Q-function")
