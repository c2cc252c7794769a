"""What the physical model leaves: a Gaussian process over the logarithm of measured over predicted energy.

Similar rows have similar errors (C. E. Rasmussen, C. K. I. Williams, Gaussian Processes for Machine Learning, MIT Press
2006). Near measured rows the process follows them, far away it falls back to the physical model, and its standard
deviation grows with the distance. Its amplitudes are the most probable ones of the rows that it was given (section 5.4.1):
a fold's are chosen without the rows that are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from infergy.catalog.shape import DTYPE_BYTES
from scoreboard.rows import Rows

Column = np.ndarray[Any, np.dtype[np.float64]]

BATCH, SERIES, SIZE, GPUS = 2.5, 1.5, 1.2, 0.8
"""Length scales of the covariance, in doublings."""
USUAL, USUAL_SD = 0.05, 1.0
"""Median of an amplitude before rows are seen, and standard deviation of its logarithm."""
LARGEST = 0.5
"""Of a residual: that of a row which no constant explains says no more of its neighbours."""
NOISE = "noise"
EVALUATIONS = 25
Z90 = 1.645


class Residual:
    """The process, given the residuals of some rows."""

    def __init__(self, rows: Rows, residual: Column) -> None:
        self._rows = rows
        parts = covariances(rows, rows) | {NOISE: np.eye(len(rows))}
        clipped = np.clip(residual, -LARGEST, LARGEST)
        self._amplitudes = _most_probable(parts, clipped)
        self._inverse = np.linalg.inv(sum(self._amplitudes[name] ** 2 * part for name, part in parts.items()))
        self._pull = self._inverse @ clipped

    def at(self, rows: Rows) -> tuple[Column, Column]:
        """The expected logarithm at each row, and half the width of its 90 % interval."""
        parts = covariances(rows, self._rows)
        between = sum(self._amplitudes[name] ** 2 * part for name, part in parts.items())
        variance = sum(amplitude**2 for amplitude in self._amplitudes.values())
        variance = variance - np.einsum("ij,jk,ik->i", between, self._inverse, between, optimize=True)
        return between @ self._pull, Z90 * np.sqrt(variance)


def covariances(rows: Rows, others: Rows) -> dict[str, Column]:
    """Parts of the covariance between rows and others, of amplitude 1, by what they must have in common to share them."""

    def near(values: Column, other: Column, doublings: float) -> Column:
        return np.asarray(np.exp(-0.5 * ((np.log2(values)[:, None] - np.log2(other)[None, :]) / doublings) ** 2))

    def same(*names: str) -> Column:
        pairs = (getattr(rows, name)[:, None] == getattr(others, name)[None, :] for name in names)
        return np.asarray(np.logical_and.reduce(list(pairs)), dtype=float)

    def size_of(these: Rows) -> Column:
        wide = np.array([DTYPE_BYTES.get(str(name), 2.0) for name in these.precision])
        return np.asarray(these.total_parameters * wide)

    batch, gpus = near(rows.batch, others.batch, BATCH), near(rows.gpus, others.gpus, GPUS)
    active = near(rows.active_parameters, others.active_parameters, SIZE)
    series = np.asarray(np.array(rows.series())[:, None] == np.array(others.series())[None, :], dtype=float)
    return {
        "kind": same("precision", "architecture", "gpu") * batch,
        "size": active * near(size_of(rows), size_of(others), SIZE) * gpus * batch,
        "task": same("task", "gpu") * active * gpus * batch,
        "network": same("backbone"),
        "series": series,
        "within series": series * near(rows.batch, others.batch, SERIES),
    }


def _most_probable(parts: Mapping[str, Column], residual: Column) -> dict[str, float]:
    """The amplitude of each part."""
    from scipy.optimize import minimize

    def objective(logs: Column) -> tuple[float, Column]:
        variances = np.exp(2 * logs)
        root = np.linalg.cholesky(
            sum(variance * part for variance, part in zip(variances, parts.values(), strict=True))
        )
        inverse = np.linalg.inv(root)
        inverse = inverse.T @ inverse
        pull, away = inverse @ residual, (logs - np.log(USUAL)) / USUAL_SD
        slope = np.outer(pull, pull) - inverse
        slopes = [-variance * np.sum(slope * part) for variance, part in zip(variances, parts.values(), strict=True)]
        loss = 0.5 * residual @ pull + np.log(np.diag(root)).sum() + 0.5 * away @ away
        return float(loss), np.array(slopes) + away / USUAL_SD

    start = np.full(len(parts), np.log(USUAL))
    best = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": EVALUATIONS})
    return dict(zip(parts, np.exp(best.x).tolist(), strict=True))
