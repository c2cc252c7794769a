"""The mark of a row whose joules stand for another GPU of the same kind. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescaled:
    """A factor found by measuring a few cells of a set-up again; the row's raw facts stay as they were measured.

    Attributes:
        factor: Joules on the other GPU over those of the row's own, above 0.
        low: Lower end of the 95 % interval in which the factor of a cell lies that was not measured again.
        high: Upper end.
        gpu: The driver's name of the GPU for which the joules now stand.
        chips: Its UUID, or those of several GPUs.
        cells: Ids of the cells that were measured again.
        measured_utc: ISO 8601 instant at which the last of them was measured.
    """

    factor: float
    low: float
    high: float
    gpu: str
    chips: tuple[str, ...]
    cells: tuple[str, ...]
    measured_utc: str

    @property
    def half_width(self) -> float:
        """The farther end of the interval from the factor, as a fraction of it."""
        return max(self.high / self.factor - 1, 1 - self.low / self.factor)

    def __str__(self) -> str:
        return f"× {self.factor:.4f} ({self.low:.4f} .. {self.high:.4f}) for {', '.join(self.chips)}"
