"""The scoreboard: every estimator on every split, by the same folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infergy.errors import MissingError, UsageError
from infergy.score.ours import Infergy, InfergyDatasheet, InfergyPhysics
from infergy.score.protocol import Estimator, Prediction
from infergy.score.rivals import RIVALS
from infergy.score.rows import TEXT_TASKS, Rows
from infergy.score.splits import SPLITS

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[np.float64]]

SCOREBOARD_SCHEMA = "infergy.scoreboard/1"
ESTIMATORS: tuple[Estimator, ...] = (Infergy(), InfergyPhysics(), InfergyDatasheet(), *RIVALS)
NEW_ROWS = "rows"
"""The split of a user's own rows: fitted to all shipped ones."""

MISS = 0.1
BOOTSTRAPS = 1000
TEXT, EVERY = "text", "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How far one estimator is off on one split.

    Attributes:
        split: ``batch``, ``backbone``, ``gpu``, or ``rows``.
        tasks: ``text``, or ``all`` tasks, those with images and video among them.
        rows: How many rows it predicted; `of_rows` how many there were.
        median_ape: Median of |predicted / measured − 1|, as a fraction; `p90_ape` its 90th percentile.
        median_low: Lower end of the 90 % interval of the median over networks drawn again; `median_high` the upper;
            None with fewer than two networks: one tells nothing of others.
        coverage_90: Share of rows within its 90 % intervals; None if it has none.
        interval_score: Mean interval score of these, of log J (Gneiting and Raftery 2007); less is better.
        missing: Why it says nothing; None if it does.
    """

    estimator: str
    title: str
    split: str
    tasks: str
    rows: int
    of_rows: int
    median_ape: float | None = None
    p90_ape: float | None = None
    median_low: float | None = None
    median_high: float | None = None
    coverage_90: float | None = None
    interval_score: float | None = None
    missing: str | None = None
    schema: str = SCOREBOARD_SCHEMA


def score_all(
    rows: Rows,
    energy_j: Column,
    *,
    splits: Sequence[str] = tuple(SPLITS),
    tasks: str = TEXT,
    estimators: Sequence[Estimator] = ESTIMATORS,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Score]:
    """Score estimators on rows, each row predicted by one that has not seen it.

    All rows are learnt from; those of `tasks` are scored.

    Raises:
        UsageError: A split is not known.
    """
    import numpy as np

    found = []
    for split in splits:
        if split not in SPLITS:
            raise UsageError.unknown("split", split, SPLITS)
        folds = list(SPLITS[split](rows))
        held = np.sort(np.concatenate([test for _, test in folds])) if folds else np.array([], dtype=int)
        for estimator in estimators:
            progress(f"{split}: {estimator.title}")
            told = _Told(len(rows))
            try:
                for train, test in folds:
                    told.put(test, estimator.fit(rows.take(train), energy_j[train]).predict(rows.take(test)))
            except MissingError as error:
                found.append(_missing(estimator, split, tasks, str(error)))
            else:
                chosen = held[np.isin(rows.task[held].astype(str), TEXT_TASKS)] if tasks == TEXT else held
                found.append(_score(estimator, split, tasks, rows, energy_j, told, chosen))
    return found


def score_new(
    rows: Rows,
    energy_j: Column,
    new: Rows,
    new_energy_j: Column,
    *,
    estimators: Sequence[Estimator] = ESTIMATORS,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Score]:
    """Score estimators, as fitted on `rows`, on rows that are not among them."""
    import numpy as np

    found = []
    for estimator in estimators:
        progress(f"{NEW_ROWS}: {estimator.title}")
        told, every = _Told(len(new)), np.arange(len(new))
        try:
            told.put(every, estimator.fit(rows, energy_j).predict(new))
        except MissingError as error:
            found.append(_missing(estimator, NEW_ROWS, EVERY, str(error)))
        else:
            found.append(_score(estimator, NEW_ROWS, EVERY, new, new_energy_j, told, every))
    return found


class _Told:
    """What an estimator predicted, row by row."""

    def __init__(self, count: int) -> None:
        import numpy as np

        self.energy_j, self.low_j, self.high_j = (np.full(count, np.nan) for _ in range(3))

    def put(self, places: Any, prediction: Prediction) -> None:
        self.energy_j[places] = prediction.energy_j
        if prediction.low_j is not None and prediction.high_j is not None:
            self.low_j[places], self.high_j[places] = prediction.low_j, prediction.high_j


def _missing(estimator: Estimator, split: str, tasks: str, why: str) -> Score:
    return Score(
        estimator=estimator.name, title=estimator.title, split=split, tasks=tasks, rows=0, of_rows=0, missing=why
    )


def _score(
    estimator: Estimator, split: str, tasks: str, rows: Rows, energy_j: Column, told: _Told, places: Any
) -> Score:
    import numpy as np

    known = places[np.isfinite(told.energy_j[places])]
    blank = Score(
        estimator=estimator.name, title=estimator.title, split=split, tasks=tasks, rows=len(known), of_rows=len(places)
    )
    if not len(known):
        return blank
    ape = np.abs(told.energy_j[known] / energy_j[known] - 1)
    low, high = _bootstrap(ape, rows.backbone[known])
    coverage = interval = None
    if np.isfinite(told.low_j[known]).all():
        y, bottom, top = (np.log(values[known]) for values in (energy_j, told.low_j, told.high_j))
        outside = np.maximum(bottom - y, 0) + np.maximum(y - top, 0)
        coverage = float(np.mean(outside == 0))
        interval = float(np.mean(top - bottom + 2 / MISS * outside))
    return Score(
        estimator=estimator.name,
        title=estimator.title,
        split=split,
        tasks=tasks,
        rows=len(known),
        of_rows=len(places),
        median_ape=float(np.median(ape)),
        p90_ape=float(np.quantile(ape, 0.9)),
        median_low=low,
        median_high=high,
        coverage_90=coverage,
        interval_score=interval,
    )


def _bootstrap(ape: Column, backbone: Column) -> tuple[float, float] | tuple[None, None]:
    """The 90 % interval of the median, networks drawn with replacement: rows of one network err together."""
    import numpy as np

    groups = [ape[backbone == name] for name in sorted(set(backbone))]
    if len(groups) < 2:
        return None, None
    draw = np.random.default_rng(0)
    medians = [
        np.median(np.concatenate([groups[place] for place in draw.integers(len(groups), size=len(groups))]))
        for _ in range(BOOTSTRAPS)
    ]
    return float(np.quantile(medians, 0.05)), float(np.quantile(medians, 0.95))
