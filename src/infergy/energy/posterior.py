"""Joules of any cell of a set-up, from none to all of its cells measured: the physical model, given what was measured.

    log J, log s  =  model(constants)  +  residual  +  noise of measuring
    constants ~ N(prior, spread²)          residual ~ GP(0, offset² + amplitude² exp(−½ Σ (Δ log₂ axis / octaves)²))

A part of the residual is that of the chip: it is independent from chip to chip, the rest is common to all of a kind.
What is told is told of one chip: of those that measured the best ranked file the one of most cells.

The constants are estimated at their likeliest by Gauss-Newton, with the model made linear there; then they, the
residual and the noise are jointly normal, and joules anywhere, their standard deviation and how errors of two cells
hang together follow in closed form (C. E. Rasmussen, C. K. I. Williams, Gaussian Processes for Machine Learning, MIT
Press 2006, sections 2.2 and 2.7: explicit basis functions with a normal prior). Without a cell it is the datasheet's
prior; one cell moves constants and residual as far as they are uncertain, no further; among many it interpolates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infergy.energy.cell_model import CellModel, Server
from infergy.energy.table import TableCell

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[np.float64]]

OCTAVES = (3.5, 2.5, 1.5)
"""Over how many doublings of input, output and batch residuals are still alike."""

ENERGY_AMPLITUDE, TIME_AMPLITUDE = 0.05, 0.06
"""Standard deviations of the part of the residual that fades with distance, and below of the part that does not.

Likeliest on the shipped cells of either engine, the energy's widened from 0.035 so that intervals hold better past the
cells: see docs/physics.md.
"""
ENERGY_OFFSET, TIME_OFFSET = 0.04, 0.05

CHIP_OFFSET, CHIP_AMPLITUDE = 0.02, 0.02
"""What of both is the chip's, and its host's, of joules and seconds alike.

Likeliest for the shipped cells of vLLM on H100s, which ten chips of three hosts measured: see docs/physics.md.
"""

LEAST_NOISE = 0.004
"""Standard deviation of the logarithm of measured joules, at least."""

TIME_NOISE = 0.01

STEP = 0.02
"""Of a constant's logarithm, for derivatives."""

ROUNDS = 8
ENOUGH = 1e-3
FEWEST_LEFT_OUT = 8
"""Cells without which leaving each out tells too little of how wide intervals must be."""

NORMAL_90 = 1.645


@dataclass(frozen=True, slots=True, kw_only=True)
class Modelled:
    """Cells by the model.

    Attributes:
        energy_j: Joules a request; `duration_s` its seconds.
        spread: Standard deviation of the logarithm of `energy_j`.
    """

    energy_j: Column
    duration_s: Column
    spread: Column


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A measured cell, told by all others.

    Attributes:
        error: Logarithm of told over measured joules.
        standardised: `error` over the standard deviation it was told with, noise of measuring included.
    """

    cell: TableCell
    error: float
    standardised: float


class Posterior:
    """The model of one server, given cells that were measured on it.

    Args:
        server: What serves.
        measured: Its cells; of several at one length and batch the best ranked counts.

    Attributes:
        cells: The cells that count.
        left_out: Each of them, told by the others.
        half_width: By how many standard deviations 90 % of left-out cells lie off, at least the normal's 1.645.
        log_likelihood: Of the joules and seconds of the cells, but for a constant; 0 without any.
    """

    def __init__(self, server: Server, measured: Sequence[TableCell] = ()) -> None:
        import numpy as np

        self._server = server
        self._constants = server.constants
        self._prior = np.array([one.spread**2 for one in self._constants])
        best: dict[tuple[int, int, int], TableCell] = {}
        for cell in sorted(measured, key=lambda cell: cell.rank):
            best.setdefault((cell.input_tokens, cell.output_tokens, cell.batch), cell)
        self.cells = tuple(best.values())
        self._places = np.array(list(best), dtype=float).reshape(-1, 3)
        numbers = {chips: number for number, chips in enumerate(dict.fromkeys(cell.chips for cell in self.cells))}
        self._chips = np.array([numbers[cell.chips] for cell in self.cells])
        first = [numbers[cell.chips] for cell in self.cells if cell.rank == self.cells[0].rank]
        self._told_of = max(first, key=first.count, default=0)
        self._factors = np.zeros(len(self._constants))
        self._slopes = np.zeros((0, len(self._constants)))
        self._inverse = np.zeros((0, 0))
        self._pull = np.zeros(0)
        self.log_likelihood = 0.0
        if self.cells:
            self._condition()
        self.left_out = tuple(self._leave_out())
        told = [abs(one.standardised) for one in self.left_out]
        self.half_width = max(NORMAL_90, float(np.quantile(told, 0.9))) if len(told) >= FEWEST_LEFT_OUT else NORMAL_90

    def at(self, cells: Column) -> Modelled:
        """What to expect of n cells: rows of input tokens, output tokens and batch."""
        import numpy as np

        mean, covariance = self._joint(cells)
        count = len(cells)
        return Modelled(
            energy_j=np.exp(mean[:count]),
            duration_s=np.exp(mean[count:]),
            spread=np.sqrt(np.maximum(np.diag(covariance)[:count], 0.0)),
        )

    def covariance(self, cells: Column) -> Column:
        """Of the logarithms of joules, then of seconds, of n cells, of shape (2n, 2n), without noise of measuring."""
        return self._joint(cells)[1]

    def noise(self, count: int) -> Column:
        """Variances of the logarithms of joules and seconds that measuring `count` cells once more would have."""
        import numpy as np

        known = [_noise(cell) for cell in self.cells]
        energy = float(np.median(known)) if known else 2 * LEAST_NOISE
        return np.concatenate([np.full(count, energy**2), np.full(count, energy**2 + TIME_NOISE**2)])

    def _condition(self) -> None:
        """Constants at their likeliest, and what is left by the residual."""
        import numpy as np

        logs = [[np.log(cell.energy_j) for cell in self.cells], [np.log(cell.duration_s) for cell in self.cells]]
        measured = np.concatenate(logs)
        energy = np.array([_noise(cell) for cell in self.cells])
        noise = np.diag(np.concatenate([energy**2, energy**2 + TIME_NOISE**2]))
        residual = self._residual(self._places, self._places, self._chips[:, None] != self._chips) + noise
        model = CellModel(self._server, self._places)
        for _ in range(ROUNDS):
            told, slopes = self._linear(model)
            covariance = (slopes * self._prior) @ slopes.T + residual
            target = measured - told + slopes @ self._factors
            step = self._prior * (slopes.T @ np.linalg.solve(covariance, target)) - self._factors
            # No constant changes by more than e-fold in one round: far away the straight lines mean little.
            largest = float(np.abs(step).max())
            self._factors = self._factors + step * min(1.0, 1.0 / max(largest, ENOUGH))
            if largest < ENOUGH:
                break
        told, self._slopes = self._linear(model)
        self._inverse = np.linalg.inv((self._slopes * self._prior) @ self._slopes.T + residual)
        off = measured - told + self._slopes @ self._factors
        self._pull = self._inverse @ off
        self.log_likelihood = 0.5 * float(np.linalg.slogdet(self._inverse)[1] - off @ self._pull)

    def _linear(self, model: CellModel) -> tuple[Column, Column]:
        """The model's logarithms at the present constants, (2n,), and their derivatives by them, (2n, constants)."""
        import numpy as np

        steps = STEP * np.eye(len(self._constants))
        found = model.logs(self._factors + np.vstack([0 * steps[:1], steps, -steps]), self._constants)
        up, down = np.split(found[1:], 2)
        return found[0], (up - down).T / (2 * STEP)

    def _joint(self, cells: Column) -> tuple[Column, Column]:
        told, slopes = self._linear(CellModel(self._server, cells))
        own = (slopes * self._prior) @ slopes.T + self._residual(cells, cells, False)
        if not self.cells:
            return told, own
        residual = self._residual(cells, self._places, self._chips != self._told_of)
        shared = (slopes * self._prior) @ self._slopes.T + residual
        mean = told - slopes @ self._factors + shared @ self._pull
        return mean, own - shared @ self._inverse @ shared.T

    def _leave_out(self) -> list[LeftOut]:
        """Of each cell, its joules and seconds at once (Rasmussen and Williams, section 5.4.2, for pairs)."""
        import numpy as np

        found = []
        for place, cell in enumerate(self.cells):
            pair = [place, place + len(self.cells)]
            spread = np.linalg.inv(self._inverse[np.ix_(pair, pair)])
            off = -(spread @ self._pull[pair])[0]
            found.append(LeftOut(cell=cell, error=float(off), standardised=float(off / np.sqrt(spread[0, 0]))))
        return found

    @staticmethod
    def _residual(one: Column, other: Column, are_of_two_chips: Any) -> Column:
        """Joules' residuals among each other, seconds' among each other, and none between the two.

        Args:
            one: n cells, rows of input tokens, output tokens and batch; `other` m of them.
            other: See there.
            are_of_two_chips: Of each pair, whether different chips measured it; broadcasts to (n, m).
        """
        import numpy as np

        distance = (np.log2(one)[:, None, :] - np.log2(other)[None, :, :]) / np.array(OCTAVES)
        near = np.exp(-0.5 * (distance**2).sum(axis=2))
        none = np.zeros_like(near)
        apart = np.where(are_of_two_chips, CHIP_OFFSET**2 + CHIP_AMPLITUDE**2 * near, 0.0)
        energy = ENERGY_OFFSET**2 + ENERGY_AMPLITUDE**2 * near - apart
        seconds = TIME_OFFSET**2 + TIME_AMPLITUDE**2 * near - apart
        return np.block([[energy, none], [none, seconds]])


def _noise(cell: TableCell) -> float:
    """Standard deviation of the logarithm of measured joules, from the half-width of a 95 % interval."""
    return max(LEAST_NOISE, cell.doubt / 1.96)
