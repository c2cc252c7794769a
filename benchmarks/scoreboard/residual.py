"""What the physical model leaves: a Gaussian process over the logarithm of measured over predicted energy.

Similar rows have similar errors (C. E. Rasmussen, C. K. I. Williams, Gaussian Processes for Machine Learning, MIT Press
2006, chapter 2). Near measured rows the process follows them, far away it falls back to the physical model, and its
standard deviation grows with the distance. Amplitudes and lengths below were chosen
once, on all rows of the benchmark, for all splits (`benchmarks/process_amplitudes.py`), and are not fitted in a fold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from infergy.catalog.shape import DTYPE_BYTES
from scoreboard.rows import Rows

Column = np.ndarray[Any, np.dtype[np.float64]]

BATCH_OCTAVES, SERIES_OCTAVES, SIZE_OCTAVES, GPUS_OCTAVES = 9.0, 1.5, 1.2, 0.8
"""Length scales of the covariance, in doublings."""

EVERYWHERE, BATCH, ARCHITECTURE, SIZE, TASK, PRECISION, GPU = 0.1, 0.12, 0.05, 0.1, 0.19, 0.04, 0.08
BACKBONE, SERIES, WITHIN_SERIES, NOISE = 0.03, 0.03, 0.075, 0.028
"""Standard deviations of the parts of the residual's logarithm, by what rows must have in common to share them."""

COVERAGE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Coordinates of rows: logarithms to base 2, and names that are equal or not."""

    batch: Column
    active: Column
    size: Column
    gpus: Column
    names: dict[str, Column]

    @classmethod
    def of(cls, rows: Rows) -> _Places:
        wide = np.array([DTYPE_BYTES.get(str(precision), 2.0) for precision in rows.precision])
        task_gpu = np.array([f"{task} {gpu}" for task, gpu in zip(rows.task, rows.gpu, strict=True)])
        kind = np.array([f"{one} {other}" for one, other in zip(rows.precision, rows.architecture, strict=True)])
        return cls(
            batch=np.log2(rows.batch),
            active=np.log2(rows.active_parameters),
            size=np.log2(rows.total_parameters * wide),
            gpus=np.log2(rows.gpus),
            names={
                "task": task_gpu,
                "kind": kind,
                "gpu": rows.gpu.astype(str),
                "architecture": rows.architecture.astype(str),
                "backbone": rows.backbone.astype(str),
                "series": np.array(rows.series()),
            },
        )

    def covariance(self, other: _Places) -> Column:
        """Between all of these and all of the others, without noise."""

        def near(one: Column, two: Column, octaves: float) -> Column:
            return np.asarray(np.exp(-0.5 * ((one[:, None] - two[None, :]) / octaves) ** 2))

        def same(name: str) -> Column:
            return np.asarray(self.names[name][:, None] == other.names[name][None, :], dtype=float)

        batch = near(self.batch, other.batch, BATCH_OCTAVES)
        gpus = near(self.gpus, other.gpus, GPUS_OCTAVES)
        active = near(self.active, other.active, SIZE_OCTAVES)
        size = active * near(self.size, other.size, SIZE_OCTAVES) * gpus
        shared = EVERYWHERE**2 + batch * (
            BATCH**2
            + ARCHITECTURE**2 * same("architecture")
            + SIZE**2 * size
            + TASK**2 * same("task") * active * gpus
            + PRECISION**2 * same("kind")
            + GPU**2 * same("gpu")
        )
        close = near(self.batch, other.batch, SERIES_OCTAVES)
        series = same("series") * (SERIES**2 + WITHIN_SERIES**2 * close)
        return np.asarray(shared + BACKBONE**2 * same("backbone") * gpus + series)


PRIOR_VARIANCE = sum(
    part**2
    for part in (EVERYWHERE, BATCH, ARCHITECTURE, SIZE, TASK, PRECISION, GPU, BACKBONE, SERIES, WITHIN_SERIES, NOISE)
)


class Residual:
    """The process, given the residuals of some rows.

    Attributes:
        inside: Standard deviations that 90 % of left-out rows are within, their model known; `outside` with all rows of
            their model left out. At least the normal distribution's 1.645.
    """

    def __init__(self, rows: Rows, residual: Column) -> None:
        self._places = _Places.of(rows)
        self._backbones = set(map(str, rows.backbone))
        self._gpus = set(map(str, rows.gpu))
        covariance = self._places.covariance(self._places) + NOISE**2 * np.eye(len(rows))
        self._inverse = np.linalg.inv(covariance)
        self._pull = self._inverse @ residual
        # Of a row left out (Rasmussen and Williams, section 5.4.2), and of all rows of a model at once.
        variance = 1 / np.diag(self._inverse)
        self.inside = _quantile(self._pull * variance / np.sqrt(variance))
        groups = [np.flatnonzero(rows.backbone == name) for name in sorted(self._backbones)]
        off = []
        for group in groups:
            covariance = np.linalg.inv(self._inverse[np.ix_(group, group)])
            off.append(covariance @ self._pull[group] / np.sqrt(np.diag(covariance)))
        self.outside = _quantile(np.concatenate(off)) if len(groups) > 1 else self.inside

    def at(self, rows: Rows) -> tuple[Column, Column]:
        """The expected logarithm at each row, and half the width of its 90 % interval.

        It is 0 on a GPU without rows, since errors of one GPU say little about another's.
        """
        places = _Places.of(rows)
        known_gpu = np.array([str(gpu) in self._gpus for gpu in rows.gpu])
        known = np.array([str(name) in self._backbones for name in rows.backbone]) & known_gpu
        between = places.covariance(self._places)
        mean = between @ self._pull
        variance = PRIOR_VARIANCE - np.einsum("ij,jk,ik->i", between, self._inverse, between, optimize=True)
        variance = np.where(known_gpu, np.maximum(variance, NOISE**2), PRIOR_VARIANCE)
        wide = np.where(known, self.inside, self.outside)
        return np.where(known_gpu, mean, 0.0), np.sqrt(variance) * wide


def _quantile(standardised: Column) -> float:
    return float(max(1.645, np.quantile(np.abs(standardised), COVERAGE)))
