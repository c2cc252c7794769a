"""Which rows an estimator sees, and which it must predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from scoreboard.rows import Rows

Places = np.ndarray[Any, np.dtype[np.int64]]
Fold = tuple[Places, Places]

BATCH_FOLDS = 5
"""Inner points held out together lie this far apart in their series, so that each keeps both its neighbours. Where the
first lies is drawn for each series: else one `max_num_seqs` would be left out of all series at once."""


def by_batch(rows: Rows) -> Iterator[Fold]:
    """Held-out batch: every fifth inner point of each series; its neighbours and the end points are always seen."""
    series = np.array(rows.series())
    fold, rng = np.full(len(rows), -1), np.random.default_rng(0)
    for name in np.unique(series):
        places = np.flatnonzero(series == name)
        inner = places[np.argsort(rows.batch[places], kind="stable")][1:-1]
        fold[inner] = (np.arange(len(inner)) + rng.integers(BATCH_FOLDS)) % BATCH_FOLDS
    for number in range(BATCH_FOLDS):
        if (fold == number).any():
            yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)


def by_backbone(rows: Rows) -> Iterator[Fold]:
    """All rows of one network left out, whatever variant of it."""
    return _by(rows.backbone)


def by_gpu(rows: Rows) -> Iterator[Fold]:
    """All rows of one kind of GPU left out."""
    return _by(rows.gpu)


def _by(names: Any) -> Iterator[Fold]:
    for name in sorted(set(names)):
        yield np.flatnonzero(names != name), np.flatnonzero(names == name)


SPLITS: Mapping[str, Callable[[Rows], Iterator[Fold]]] = {"batch": by_batch, "backbone": by_backbone, "gpu": by_gpu}
