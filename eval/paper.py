"""Results of the CDS paper (Yu et al. 2021, arXiv:2109.08128), to stand beside ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from eval.intervals import Cell

Row = TypeVar("Row")


def _with_both_readings(rows: dict[str, Row]) -> dict[str, Row]:
    """The paper's CDS beside both of ours: it prints algorithm 1, which is hard, and soft weights (app. C.1)."""
    return {rule: row for name, row in rows.items() for rule in ((name, "cds-hard") if name == "cds" else (name,))}


VISION: dict[str, tuple[float, ...]] = _with_both_readings(
    {  # table 4: success in percent, by task, the average
        "cds": (53.1, 74.0, 71.8, 83.4, 61.4, 65.5, 83.8, 81.0, 85.8, 87.8, 74.8),
        "hipi": (48.3, 64.4, 71.0, 79.0, 62.6, 67.8, 78.8, 77.2, 83.6, 78.0, 71.1),
        "skill": (32.1, 55.9, 68.8, 68.2, 41.5, 50.8, 66.0, 80.8, 78.4, 80.8, 62.3),
        "all": (41.8, 60.1, 70.0, 72.5, 58.5, 57.7, 75.2, 70.8, 78.7, 79.2, 66.4),
        "none": (20.0, 49.7, 60.9, 68.4, 39.1, 49.1, 69.4, 80.3, 86.1, 85.0, 60.8),
    }
)


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """By sharing rule. `returns` (or success in percent): mean and half of the 95% interval of each task and then of
    their average, NaN where the paper has none; `divergence`: KL(pi || pi_beta_eff) of each task."""

    returns: dict[str, tuple[Cell, ...]]
    divergence: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("returns", "divergence"):
            object.__setattr__(self, name, _with_both_readings(getattr(self, name)))


NAN = float("nan")


def _means(*values: float) -> tuple[Cell, ...]:
    return tuple((value, NAN) for value in values)


def _averages(tasks: int, **rules: Cell) -> PaperTable:
    """Of so many tasks, of which the paper has the average alone; `_` for `-` in the name of a rule."""
    blank = ((NAN, NAN),) * tasks
    return PaperTable(returns={rule.replace("_", "-"): (*blank, average) for rule, average in rules.items()})


STATES: dict[tuple[str, str], PaperTable] = {  # by benchmark and recipe, or assignment of a maze's episodes
    ("desk", "published"): PaperTable(
        returns={  # table 3
            "cds": ((58.4, 9.3), (65.3, 27.7), (57.9, 16.2), (98.8, 0.7), (70.1, 8.1)),
            "cds-basic": ((30.1, 16.6), (41.5, 28.2), (39.4, 16.9), (86.3, 0.9), (49.3, 16.0)),
            "hipi": ((26.5, 20.5), (1.3, 5.3), (41.2, 24.9), (62.2, 33.4), (32.8, 18.7)),
            "all": ((34.3, 17.9), (48.3, 27.3), (55.1, 9.4), (100.0, 0.0), (59.4, 5.7)),
            "none": ((14.5, 12.7), (4.0, 6.1), (16.0, 17.5), (99.0, 0.7), (33.4, 8.3)),
        }
    ),
    ("antmaze-large", "undirected"): _averages(  # table 3, these and the next three
        7, cds=(22.8, 4.5), cds_basic=(10.0, 5.9), hipi=(1.3, 2.3), all=(16.7, 7.0), none=(13.3, 8.6)
    ),
    ("antmaze-large", "directed"): _averages(
        7, cds=(24.6, 4.7), cds_basic=(0.0, 0.0), hipi=(11.8, 5.4), all=(20.6, 4.4), none=(19.2, 8.0)
    ),
    ("antmaze-medium", "undirected"): _averages(
        3, cds=(36.7, 6.2), cds_basic=(0.0, 0.0), hipi=(8.6, 3.2), all=(22.9, 3.6), none=(21.6, 7.1)
    ),
    ("antmaze-medium", "directed"): _averages(
        3, cds=(18.5, 6.0), cds_basic=(0.0, 0.0), hipi=(8.3, 9.1), all=(12.4, 5.4), none=(17.0, 3.2)
    ),
    ("walker2d", "published"): PaperTable(
        returns={  # table 3
            "cds": ((1057.9, 121.6), (564.8, 47.7), (1418.2, 138.4), (1013.6, 71.5)),
            "cds-basic": ((968.6, 188.6), (594.5, 22.7), (1501.8, 115.1), (1021.6, 76.9)),
            "hipi": ((695.5, 61.9), (626.0, 48.0), (1603.7, 146.8), (975.1, 45.1)),
            "all": ((701.4, 47.0), (756.7, 76.7), (885.1, 152.9), (781.0, 100.8)),
            "none": ((590.1, 48.6), (614.7, 87.3), (1575.2, 70.9), (926.6, 37.7)),
        },
        divergence={  # table 2
            "cds": (1.49, 6.09, 2.91),
            "cds-basic": (14.31, 8.26, 13.25),
            "all": (7.76, 12.2, 27.5),
            "none": (1.49, 1.91, 3.12),
        },
    ),
    ("walker2d", "medium-replay"): PaperTable(  # table 1
        returns={"all": _means(966.2, 1147.5, 1224.7, 1112.8), "none": _means(998.9, 1298.6, 1603.1, 1300.2)},
        divergence={"all": (10.39, 12.70, 15.89), "none": (3.70, 4.55, 3.57)},
    ),
    ("walker2d", "medium"): PaperTable(  # table 1
        returns={"all": _means(848.7, 600.4, 776.1, 747.7), "none": _means(297.4, 207.5, 351.1, 285.3)},
        divergence={"all": (11.78, 10.13, 21.27), "none": (6.53, 4.44, 5.57)},
    ),
}
