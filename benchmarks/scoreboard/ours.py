"""Ours: the step-cost model with its constants fitted, and a Gaussian process over its residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from infergy.cost.calibration import Calibration, narrow
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
        return _Fitted(served=ServedFit(fit=prior_fit("vllm"), prompts={}), residual=None)


@dataclass(frozen=True, slots=True)
class InfergyCalibrated:
    """Physics fitted to rows of other GPUs, and a calibration of the GPU at hand; NaN for GPUs without one.

    Rows of other GPUs and plain kernels of this one are two estimates of a constant, weighted by their variances: the one
    by how GPUs differ, the other by its windows and by how engines' kernels differ.

    Args:
        calibrations: Of different kinds of GPU (`infergy.cost.calibration.load_calibration`).
    """

    calibrations: Sequence[Calibration]
    name: str = "infergy-calibrated"
    title: str = "infergy: physics, fitted, and the GPU calibrated"
    source: str = "docs/calibration.md"

    def fit(self, rows: Rows, energy_j: Column) -> _Calibrated:
        """Constants by `fit_served`; those of GPUs without rows by their calibration too."""
        served = fit_served(rows, energy_j)
        seen = set(map(str, rows.gpu))
        return _Calibrated(
            of_gpu={
                calibration.gpu: _Fitted(
                    served=replace(served, fit=narrow(served.fit, calibration.gpu, calibration.measured)),
                    residual=None,
                )
                for calibration in self.calibrations
                if calibration.gpu not in seen
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calibrated:
    """Attributes: `of_gpu` the fit of each GPU that was calibrated and of which no row was seen."""

    of_gpu: Mapping[str, _Fitted]

    def predict(self, rows: Rows) -> Prediction:
        """Energy per output token; NaN for other GPUs."""
        energy_j, low_j, high_j = (np.full(len(rows), np.nan) for _ in range(3))
        for gpu, fitted in self.of_gpu.items():
            of_gpu = np.flatnonzero(rows.gpu == gpu)
            if len(of_gpu):
                predicted = fitted.predict(rows.take(of_gpu))
                energy_j[of_gpu], low_j[of_gpu], high_j[of_gpu] = (
                    predicted.energy_j,
                    predicted.low_j,
                    predicted.high_j,
                )
        return Prediction(energy_j=energy_j, low_j=low_j, high_j=high_j)


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
