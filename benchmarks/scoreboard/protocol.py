"""The protocol of estimators: fitted to rows, they predict the energy of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from scoreboard.rows import Rows

Column = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Energy of all GPUs per output token in J, row by row; NaN where the estimator makes no prediction.

    Attributes:
        energy_j: The median.
        low_j: Lower end of the 90 % interval; None if the estimator has none. `high_j` the upper.
    """

    energy_j: Column
    low_j: Column | None = None
    high_j: Column | None = None


class Fitted(Protocol):
    """An estimator that has seen rows."""

    def predict(self, rows: Rows) -> Prediction:
        """Energy per output token of each row."""
        ...


class Estimator(Protocol):
    """A method of estimating."""

    @property
    def name(self) -> str:
        """Its name in JSON."""
        ...

    @property
    def title(self) -> str:
        """Its description in tables."""
        ...

    @property
    def source(self) -> str:
        """The source of its form and constants."""
        ...

    def fit(self, rows: Rows, energy_j: Column) -> Fitted:
        """Fit to rows and their energy per output token, unless its constants are published."""
        ...
