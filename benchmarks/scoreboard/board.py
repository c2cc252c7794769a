"""Every estimator on every split, by the same folds: predictions of held-out rows, and scores of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infergy.errors import MissingError
from scoreboard.ours import Infergy, InfergyDatasheet, InfergyPhysics
from scoreboard.protocol import Estimator, Prediction
from scoreboard.rivals import RIVALS
from scoreboard.rows import TEXT_TASKS, Rows
from scoreboard.splits import SPLITS, Places

Column = np.ndarray[Any, np.dtype[np.float64]]

SCOREBOARD_SCHEMA = "infergy.scoreboard/1"
ESTIMATORS: tuple[Estimator, ...] = (Infergy(), InfergyPhysics(), InfergyDatasheet(), *RIVALS)
NEW_ROWS = "rows"
"""The split of a user's own rows: predicted by estimators fitted to all rows of the benchmark."""

ALPHA = 0.1
BOOTSTRAPS = 1000
TEXT, EVERY = "text", "all"
TASKS = (TEXT, EVERY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How far one estimator is off on one split.

    Attributes:
        split: ``batch``, ``backbone``, ``gpu``, or ``rows``.
        tasks: ``text``, or ``all`` tasks, with images and video.
        rows: Number of rows that it predicted; `of_rows` the number to predict.
        median_ape: Median of |predicted / measured − 1|, as a fraction; `p90_ape` its 90th percentile.
        median_low: Lower end of the 90 % bootstrap interval of the median over models; `median_high` the upper; None with
            fewer than two models.
        coverage_90: Share of rows within its 90 % intervals; None if it has none.
        interval_score: Mean interval score of these, of log energy (Gneiting and Raftery 2007); less is better.
        missing: Why it predicts nothing; None if it does.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupError:
    """The errors of held-out rows that are equal in some columns, as fractions with their sign."""

    split: str
    group: tuple[str, ...]
    rows: int
    median_ape: float
    p90_ape: float
    median_error: float
    lowest_error: float
    highest_error: float


def predict_held_out(estimator: Estimator, rows: Rows, energy_j: Column, split: str) -> tuple[Prediction, Places]:
    """Predictions of all rows, NaN where a row is in no test fold, and the places of the rows that are in one.

    Raises:
        MissingError: The estimator needs a package that is not installed.
    """
    energy, low, high = (np.full(len(rows), np.nan) for _ in range(3))
    tested = [np.array([], dtype=int)]
    for train, test in SPLITS[split](rows):
        fold = estimator.fit(rows.take(train), energy_j[train]).predict(rows.take(test))
        tested.append(test)
        energy[test] = fold.energy_j
        if fold.low_j is not None and fold.high_j is not None:
            low[test], high[test] = fold.low_j, fold.high_j
    return Prediction(energy_j=energy, low_j=low, high_j=high), np.sort(np.concatenate(tested))


def of_tasks(rows: Rows, places: Places, tasks: str) -> Places:
    """Those of `places` whose rows are of ``text`` tasks, or of ``all``."""
    return places[np.isin(rows.task[places].astype(str), TEXT_TASKS)] if tasks == TEXT else places


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

    Estimators are fitted to rows of all tasks; those of `tasks` are scored.
    """
    scores = []
    for split in splits:
        for estimator in estimators:
            progress(f"{split}: {estimator.title}")
            try:
                prediction, held_out = predict_held_out(estimator, rows, energy_j, split)
            except MissingError as error:
                scores.append(_missing(estimator, split, tasks, str(error)))
            else:
                places = of_tasks(rows, held_out, tasks)
                scores.append(_score(estimator, split, tasks, rows, energy_j, prediction, places))
    return scores


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
    scores = []
    for estimator in estimators:
        progress(f"{NEW_ROWS}: {estimator.title}")
        try:
            prediction = estimator.fit(rows, energy_j).predict(new)
        except MissingError as error:
            scores.append(_missing(estimator, NEW_ROWS, EVERY, str(error)))
        else:
            scores.append(_score(estimator, NEW_ROWS, EVERY, new, new_energy_j, prediction, np.arange(len(new))))
    return scores


def group_errors(
    estimator: Estimator, rows: Rows, energy_j: Column, *, split: str, columns: Sequence[str], tasks: str = TEXT
) -> list[GroupError]:
    """The errors of one estimator's held-out rows, group by group of equal values in `columns` of `Rows`."""
    prediction, held_out = predict_held_out(estimator, rows, energy_j, split)
    places = of_tasks(rows, held_out, tasks)
    groups: dict[tuple[str, ...], list[int]] = {}
    for place in places[np.isfinite(prediction.energy_j[places])]:
        groups.setdefault(tuple(f"{getattr(rows, name)[place]}".removesuffix(".0") for name in columns), []).append(
            place
        )
    errors = {group: prediction.energy_j[among] / energy_j[among] - 1 for group, among in sorted(groups.items())}
    return [
        GroupError(
            split=split,
            group=group,
            rows=len(error),
            median_ape=float(np.median(np.abs(error))),
            p90_ape=float(np.quantile(np.abs(error), 0.9)),
            median_error=float(np.median(error)),
            lowest_error=float(error.min()),
            highest_error=float(error.max()),
        )
        for group, error in errors.items()
    ]


def _missing(estimator: Estimator, split: str, tasks: str, why: str) -> Score:
    return Score(
        estimator=estimator.name, title=estimator.title, split=split, tasks=tasks, rows=0, of_rows=0, missing=why
    )


def _score(
    estimator: Estimator, split: str, tasks: str, rows: Rows, energy_j: Column, predicted: Prediction, places: Any
) -> Score:
    known = places[np.isfinite(predicted.energy_j[places])]
    median = p90 = low = high = coverage = interval = None
    if len(known):
        ape = np.abs(predicted.energy_j[known] / energy_j[known] - 1)
        median, p90 = float(np.median(ape)), float(np.quantile(ape, 0.9))
        low, high = _bootstrap(ape, rows.backbone[known])
        coverage, interval = _interval_scores(energy_j, predicted, known)
    return Score(
        estimator=estimator.name,
        title=estimator.title,
        split=split,
        tasks=tasks,
        rows=len(known),
        of_rows=len(places),
        median_ape=median,
        p90_ape=p90,
        median_low=low,
        median_high=high,
        coverage_90=coverage,
        interval_score=interval,
    )


def _interval_scores(energy_j: Column, predicted: Prediction, known: Any) -> tuple[float, float] | tuple[None, None]:
    """Coverage and mean interval score of an estimator's 90 % intervals; None if it has none."""
    if predicted.low_j is None or predicted.high_j is None or not np.isfinite(predicted.low_j[known]).all():
        return None, None
    y, low, high = (np.log(values[known]) for values in (energy_j, predicted.low_j, predicted.high_j))
    outside = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    return float(np.mean(outside == 0)), float(np.mean(high - low + 2 / ALPHA * outside))


def _bootstrap(ape: Column, backbone: Column) -> tuple[float, float] | tuple[None, None]:
    """The 90 % interval of the median, models drawn with replacement: errors of one model are correlated."""
    groups = [ape[backbone == name] for name in sorted(set(backbone))]
    if len(groups) < 2:
        return None, None
    rng = np.random.default_rng(0)
    medians = [
        np.median(np.concatenate([groups[place] for place in rng.integers(len(groups), size=len(groups))]))
        for _ in range(BOOTSTRAPS)
    ]
    return float(np.quantile(medians, 0.05)), float(np.quantile(medians, 0.95))
