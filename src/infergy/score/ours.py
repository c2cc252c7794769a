"""Ours: the physical model with its constants fitted, and what it leaves by a Gaussian process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infergy.energy.datasheet import HALF_WIDTH
from infergy.energy.physics import Physics
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitted:
    physics: ServedPhysics
    residual: Residual | None

    def predict(self, rows: Rows) -> Prediction:
        """Joules an output token; without rows to learn from, with the interval of estimates by datasheet."""
        import numpy as np

        energy_j = self.physics.energy_j(rows)
        if self.residual is None:
            half = np.full(len(rows), HALF_WIDTH)
        else:
            mean, half = self.residual.at(rows)
            energy_j = energy_j * np.exp(mean)
        return Prediction(energy_j=energy_j, low_j=energy_j * np.exp(-half), high_j=energy_j * np.exp(half))
