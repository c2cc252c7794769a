"""Ours: the physical model with its constants fitted, and what it leaves by a Gaussian process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from infergy.energy.calibration import Calibration
from infergy.energy.cell_model import ENGINES_DIFFER
from infergy.energy.datasheet import HALF_WIDTH
from infergy.energy.physics import BY_NAME, Physics
from infergy.score.fit import ServedPhysics, fit_physics
from infergy.score.protocol import Prediction
from infergy.score.residual import Residual
from infergy.score.rows import Rows

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Infergy:
    """Physics with fitted constants, and the residual of rows that are alike."""

    name: str = "infergy"
    title: str = "infergy: physics, fitted, and a Gaussian process"
    source: str = "docs/physics.md"

    def fit(self, rows: Rows, energy_j: Column) -> _Fitted:
        """Constants by `fit_physics`, then the process over what they leave."""
        import numpy as np

        physics = fit_physics(rows, energy_j)
        return _Fitted(physics=physics, residual=Residual(rows, np.log(energy_j / physics.energy_j(rows))))


@dataclass(frozen=True, slots=True)
class InfergyPhysics:
    """Physics with fitted constants alone."""

    name: str = "infergy-physics"
    title: str = "infergy: physics, fitted"
    source: str = "docs/physics.md"

    def fit(self, rows: Rows, energy_j: Column) -> _Fitted:
        """Constants by `fit_physics`."""
        return _Fitted(physics=fit_physics(rows, energy_j), residual=None)


@dataclass(frozen=True, slots=True)
class InfergyDatasheet:
    """Physics with the priors of its constants: nothing is fitted."""

    name: str = "infergy-datasheet"
    title: str = "infergy: physics, datasheet only"
    source: str = "docs/physics.md"

    def fit(self, rows: Rows, energy_j: Column) -> _Fitted:
        """Nothing."""
        return _Fitted(physics=ServedPhysics(physics=Physics(), prompts={}), residual=None)


@dataclass(frozen=True, slots=True)
class InfergyCalibrated:
    """Physics fitted to rows of other GPUs, and a calibration of the GPU at hand; silent of GPUs without one.

    What rows say of all GPUs and what plain kernels say of this one are two accounts of a constant. Each counts by how
    certain it is: the one by how far GPUs differ, the other by its windows and by how far engines' kernels differ.

    Args:
        calibrations: Of different kinds of GPU (`infergy.energy.calibration.load_calibration`).
    """

    calibrations: Sequence[Calibration]
    name: str = "infergy-calibrated"
    title: str = "infergy: physics, fitted, and the GPU calibrated"
    source: str = "docs/calibration.md"

    def fit(self, rows: Rows, energy_j: Column) -> _Calibrated:
        """Constants by `fit_physics`; those of GPUs that no row is of by their calibration too."""
        served = fit_physics(rows, energy_j)
        seen = set(map(str, rows.gpu))
        own = {one.gpu: _factors(served.physics, one) for one in self.calibrations if one.gpu not in seen}
        physics = replace(served.physics, factors={**served.physics.factors, **own})
        return _Calibrated(fitted=_Fitted(physics=replace(served, physics=physics), residual=None), gpus=frozenset(own))


def _factors(fitted: Physics, calibration: Calibration) -> dict[str, float]:
    """By how much a calibrated GPU's constants differ from the fitted ones."""
    found = {}
    for one in calibration.constants:
        differs = BY_NAME[one.name].differs
        if one.windows and differs:
            weight = differs**2 / (differs**2 + one.spread**2 + ENGINES_DIFFER**2)
            found[one.name] = math.exp(weight * math.log(one.value / fitted.values[one.name]))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calibrated:
    """Attributes: `gpus` that were calibrated and of which no row was seen."""

    fitted: _Fitted
    gpus: frozenset[str]

    def predict(self, rows: Rows) -> Prediction:
        """Joules an output token; NaN for other GPUs."""
        import numpy as np

        told = self.fitted.predict(rows)
        known = np.isin(rows.gpu.astype(str), sorted(self.gpus))

        def of_known(values: Column | None) -> Column | None:
            return None if values is None else np.where(known, values, np.nan)

        energy_j = np.where(known, told.energy_j, np.nan)
        return Prediction(energy_j=energy_j, low_j=of_known(told.low_j), high_j=of_known(told.high_j))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitted:
    physics: ServedPhysics
    residual: Residual | None

    def predict(self, rows: Rows) -> Prediction:
        """Joules an output token; without the process, with the interval of estimates by datasheet."""
        import numpy as np

        energy_j = self.physics.energy_j(rows)
        if self.residual is None:
            half = np.full(len(rows), HALF_WIDTH)
        else:
            mean, half = self.residual.at(rows)
            energy_j = energy_j * np.exp(mean)
        return Prediction(energy_j=energy_j, low_j=energy_j * np.exp(-half), high_j=energy_j * np.exp(half))
