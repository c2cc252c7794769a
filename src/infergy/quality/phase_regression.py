"""A regression of a batch's joules, linear in what its two phases do, fitted to the cells of one engine config.

    E = a0 + a1·B·I + a2·B·I²                    prefill: B requests of I input tokens
      + b0·S + b1·B·S + b2·B·S·(I + O/2)         decode: S = O − 1 steps to O output tokens

Each term is one of `infergy.cost.step`: a1 and b1 the matmuls of a token (2 FLOPs per weight),
a2 the attention of a prompt to itself, b0 the weights read once a step (and the launching of its kernels), b2 the KV
cache read at the mean context I + O/2, a0 what a batch costs whatever is in it. Base power enters through the seconds
that each takes. Where a phase is held up now by one resource, now by another (a roofline: the larger of two times), the
regression is a compromise, as its residuals show.

Cells are weighted by their relative error: 1 / (E² (σ² + δ²)), with σ measured and δ that of the regression itself, the
smallest that explains the residuals (Paule and Mandel, "Consensus values and weighting factors", J. Res. NBS 87, 1982).
Intervals are Student's, from the covariance of the weighted least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median
from typing import TYPE_CHECKING

from infergy.records import Load
from infergy.records.uncertainty import student_t

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    Array = NDArray[float64]

PREFILL, DECODE = "prefill", "decode"

SPARE_ROWS = 2
"""Rows beyond one a term: residuals that nothing but the terms explain say nothing."""

LEAST_SHARE = 0.01
"""A term counts only if this share of its column, or more, is no mixture of the columns before it: below, joules known
to 1 % in 45 cells would leave its part of them unknown by 15 %."""

MIXED = 0.05
"""The phases are unknown where a term that was left out consists of the other phase by this share or more."""

LEAST_ERROR = 1e-6
"""Stands for a relative error of nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One term of the regression.

    Attributes:
        name: As in the module's formula.
        phase: ``prefill`` or ``decode``.
        formula: What it multiplies.
        count: The same as a function of the load.
    """

    name: str
    phase: str
    formula: str
    count: Callable[[Load], float]


TERMS = (
    Term(name="a0", phase=PREFILL, formula="1", count=lambda load: 1.0),
    Term(name="a1", phase=PREFILL, formula="B·I", count=lambda load: load.batch * load.input_tokens),
    Term(name="a2", phase=PREFILL, formula="B·I²", count=lambda load: load.batch * load.input_tokens**2),
    Term(name="b0", phase=DECODE, formula="S", count=lambda load: load.output_tokens - 1),
    Term(name="b1", phase=DECODE, formula="B·S", count=lambda load: load.batch * (load.output_tokens - 1)),
    Term(
        name="b2",
        phase=DECODE,
        formula="B·S·(I + O/2)",
        count=lambda load: load.batch * (load.output_tokens - 1) * (load.input_tokens + load.output_tokens / 2),
    ),
)
FEWEST_ROWS = len(TERMS) + SPARE_ROWS

_BY_IMPORTANCE = (1, 4, 3, 0, 5, 2)
"""Indices in `TERMS`, in the order in which they are kept where the cells do not identify all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One measured cell.

    Attributes:
        energy_j: Joules per batch, above 0.
        error: Relative standard error of them; None where it is unknown.
    """

    load: Load
    energy_j: float
    error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A term that the cells do not identify, and why."""

    name: str
    formula: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """The fitted regression.

    Attributes:
        values_j: A coefficient for each of `TERMS`; 0 for those that were dropped.
        covariance: Of the coefficients, in J².
        degrees: Of freedom: rows less terms.
        error: δ, the regression's own relative error, of a cell's joules.
        condition: Condition number of the weighted columns, each scaled to length 1.
        mixed: Why the phases cannot be separated; None if they can.
    """

    values_j: Array
    covariance: Array
    degrees: int
    error: float
    condition: float
    dropped: tuple[Dropped, ...]
    mixed: str | None

    def fitted_j(self, load: Load) -> float:
        """Joules per batch by the regression."""
        return float(_row(load) @ self.values_j)

    def phase_j(self, load: Load, phase: str) -> tuple[float, float]:
        """Energy of one phase of a batch, and the half-width of their 95 % interval, with the regression's error."""
        import numpy as np

        row = _row(load) * np.array([term.phase == phase for term in TERMS])
        value = float(row @ self.values_j)
        return value, self._half(float(row @ self.covariance @ row) + (self.error * value) ** 2)

    def coefficient_j(self, index: int) -> tuple[float, float]:
        """The coefficient of one of `TERMS`, and the half-width of its 95 % interval."""
        return float(self.values_j[index]), self._half(float(self.covariance[index, index]))

    def _half(self, variance: float) -> float:
        return student_t(self.degrees) * sqrt(max(0.0, variance))


def fit_phases(rows: Sequence[Observed]) -> Regression:
    """Fit the regression to at least `FEWEST_ROWS` cells of one engine config."""
    import numpy as np

    energy_j = np.array([row.energy_j for row in rows])
    known = [row.error for row in rows if row.error is not None]
    # A cell of unknown spread weighs as the least certain of the others.
    unknown = max(known, default=0.0)
    errors = np.array([max(unknown if row.error is None else row.error, LEAST_ERROR) for row in rows])
    relative = np.array([_row(row.load) for row in rows]) / energy_j[:, None]
    kept, dropped, mixed = _choose(relative)
    columns = relative[:, kept]
    lengths = np.linalg.norm(columns, axis=0)
    degrees = len(rows) - len(kept)
    error = _own_error(columns / lengths, errors, degrees)
    weighted = columns / lengths / np.hypot(errors, error)[:, None]
    inverse = np.linalg.pinv(weighted)
    values, covariance = np.zeros(len(TERMS)), np.zeros((len(TERMS), len(TERMS)))
    values[kept] = inverse @ (1 / np.hypot(errors, error)) / lengths
    covariance[np.ix_(kept, kept)] = inverse @ inverse.T / np.outer(lengths, lengths)
    scaled = weighted / np.linalg.norm(weighted, axis=0)
    return Regression(
        values_j=values,
        covariance=covariance,
        degrees=degrees,
        error=error,
        condition=float(np.linalg.cond(scaled)),
        dropped=dropped,
        mixed=mixed,
    )


def describe_residuals(fit: Regression, rows: Sequence[Observed]) -> tuple[list[float], float, float]:
    """Relative residual of each row (fitted over measured, less 1), their median size, and R² of the joules."""
    fitted_j = [fit.fitted_j(row.load) for row in rows]
    residuals = [fitted / row.energy_j - 1 for fitted, row in zip(fitted_j, rows, strict=True)]
    mean_j = sum(row.energy_j for row in rows) / len(rows)
    missed = sum((row.energy_j - fitted) ** 2 for fitted, row in zip(fitted_j, rows, strict=True))
    total = sum((row.energy_j - mean_j) ** 2 for row in rows)
    r2 = 1 - missed / total if total else 1.0
    return residuals, median(map(abs, residuals)), r2


def _row(load: Load) -> Array:
    import numpy as np

    return np.array([term.count(load) for term in TERMS], dtype=np.float64)


def _choose(relative: Array) -> tuple[list[int], tuple[Dropped, ...], str | None]:
    """The indices of the terms that the cells identify, ascending, those that they do not, and whether phases mix."""
    import numpy as np

    kept: list[int] = []
    dropped: dict[int, Dropped] = {}
    mixed: str | None = None
    for index in _BY_IMPORTANCE:
        term, column = TERMS[index], relative[:, index]
        length = float(np.linalg.norm(column))
        if not length:
            reason = "no cell has any of it: all have one output token"
            dropped[index] = Dropped(name=term.name, formula=term.formula, reason=reason)
            continue
        unit = column / length
        basis = relative[:, kept] / np.linalg.norm(relative[:, kept], axis=0)
        shares = np.linalg.lstsq(basis, unit, rcond=None)[0] if kept else np.zeros(0)
        if not kept or float(np.linalg.norm(unit - basis @ shares)) >= LEAST_SHARE:
            kept.append(index)
            continue
        alike = [TERMS[other] for other, share in zip(kept, shares, strict=True) if abs(share) >= MIXED]
        names = " and ".join(f"{other.name} ({other.formula})" for other in alike)
        dropped[index] = Dropped(name=term.name, formula=term.formula, reason=f"in these cells it goes with {names}")
        if any(other.phase != term.phase for other in alike):
            mixed = (
                f"in these cells {term.name} ({term.formula}) goes with {names}: give the grid more lengths and batches"
            )
    return sorted(kept), tuple(dropped[index] for index in sorted(dropped)), mixed


def _own_error(columns: Array, errors: Array, degrees: int) -> float:
    """δ: the least for which the weighted squares of the residuals are as many as the degrees of freedom."""
    import numpy as np

    def squares(error: float) -> float:
        weights = 1 / np.hypot(errors, error)
        values = np.linalg.lstsq(columns * weights[:, None], weights, rcond=None)[0]
        return float(np.sum(((columns @ values - 1) * weights) ** 2))

    if squares(0.0) <= degrees:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if squares(middle) > degrees else (low, middle)
    return high
