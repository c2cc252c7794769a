"""Ours: the step-cost model with its constants fitted, and a Gaussian process over its residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from infergy.cost.constants import prior_fit
from scoreboard.fit import ServedFit, fit_served
from scoreboard.protocol import Prediction
from scoreboard.residual import Residual
from scoreboard.rows import Rows

Column = np.ndarray[Any, np.dtype[np.float64]]

HALF_WIDTH = 0.62
"""Of log energy: 90 % of the 690 rows are within it of the estimate from the datasheet."""


@dataclass(frozen=True, slots=True)
class Infergy:
    """Physics with fitted constants, and the residual of similar rows."""

    name: str = "infergy"
    title: str = "infergy: physics, fitted, and a Gaussian process"
    source: str = "docs/cost.md"

    def fit(self, rows: Rows, energy_j: Column) -> _Fitted:
        """Constants by `fit_served`, then the process over the residuals."""
        served = fit_served(rows, energy_j)
        return _Fitted(served=served, residual=Residual(rows, np.log(energy_j / served.energy_j(rows))))


@dataclass(frozen=True, slots=True)
class InfergyPhysics:
    """Physics with fitted constants alone."""

    name: str = "infergy-physics"
    title: str = "infergy: physics, fitted"
    source: str = "docs/cost.md"

    def fit(self, rows: Rows, energy_j: Column) -> _Fitted:
        """Constants by `fit_served`."""
        return _Fitted(served=fit_served(rows, energy_j), residual=None)


@dataclass(frozen=True, slots=True)
class InfergyDatasheet:
    """Physics with the priors of its constants: nothing is fitted."""

    name: str = "infergy-datasheet"
    title: str = "infergy: physics, datasheet only"
    source: str = "docs/cost.md"

    def fit(self, rows: Rows, energy_j: Column) -> _Fitted:
        """Nothing."""
        return _Fitted(served=ServedFit(fit=prior_fit("vllm")), residual=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitted:
    served: ServedFit
    residual: Residual | None

    def predict(self, rows: Rows) -> Prediction:
        """Energy per output token; without the process, with the interval of estimates from the datasheet."""
        energy_j = self.served.energy_j(rows)
        if self.residual is None:
            half = np.full(len(rows), HALF_WIDTH)
        else:
            mean, half = self.residual.at(rows)
            energy_j = energy_j * np.exp(mean)
        return Prediction(energy_j=energy_j, low_j=energy_j * np.exp(-half), high_j=energy_j * np.exp(half))
