"""What an estimator of joules is: something that is fitted to rows and then predicts others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from infergy.score.rows import Rows

    Column = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Joules of all GPUs an output token, a row each; NaN where the estimator says nothing.

    Attributes:
        energy_j: The median of what is expected.
        low_j: Lower end of the 90 % interval; None if the estimator has none. `high_j` likewise.
    """

    energy_j: Column
    low_j: Column | None = None
    high_j: Column | None = None


class Fitted(Protocol):
    """An estimator that has seen rows."""

    def predict(self, rows: Rows) -> Prediction:
        """Joules an output token of each row."""
        ...


class Estimator(Protocol):
    """A way to estimate."""

    @property
    def name(self) -> str:
        """What `--json` calls it."""
        ...

    @property
    def title(self) -> str:
        """What it is, for a table."""
        ...

    @property
    def source(self) -> str:
        """Where its form and constants are from."""
        ...

    def fit(self, rows: Rows, energy_j: Column) -> Fitted:
        """Whatever it learns from rows and their joules an output token; nothing, where its constants are published."""
        ...
