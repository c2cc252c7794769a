"""Which rows an estimator sees, and which it must predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from infergy.score.rows import Rows

if TYPE_CHECKING:
    import numpy as np

    Places = np.ndarray[Any, np.dtype[np.int64]]

    Fold = tuple[Places, Places]

BATCH_FOLDS = 5


def by_batch(rows: Rows) -> Iterator[Fold]:
    """Held-out batch: inner points of each series by batch, a fifth at a time; its end points are always seen."""
    import numpy as np

    series = rows.series()
    inner = []
    for one in np.unique(series):
        places = np.flatnonzero(series == one)
        inner += list(places[np.argsort(rows.batch[places], kind="stable")][1:-1])
    held = np.array(inner)
    fold = np.random.default_rng(0).permutation(len(held)) % BATCH_FOLDS
    for number in range(BATCH_FOLDS):
        test = np.sort(held[fold == number])
        yield np.setdiff1d(np.arange(len(rows)), test), test


def by_backbone(rows: Rows) -> Iterator[Fold]:
    """All rows of one network left out, whatever variant of it."""
    return _by(rows.backbone)


def by_gpu(rows: Rows) -> Iterator[Fold]:
    """All rows of one kind of GPU left out."""
    return _by(rows.gpu)


def _by(names: Any) -> Iterator[Fold]:
    import numpy as np

    for name in sorted(set(names)):
        yield np.flatnonzero(names != name), np.flatnonzero(names == name)


SPLITS: Mapping[str, Callable[[Rows], Iterator[Fold]]] = {"batch": by_batch, "backbone": by_backbone, "gpu": by_gpu}
