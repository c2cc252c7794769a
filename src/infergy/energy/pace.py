"""Time per output token of measured cells: as engines told it, or as far as batches of other lengths tell.

told        the engine's own stamps, first token to last (`infergy.records.Result.time_per_output_token_s`)
two cells   at one input and batch, two outputs: (T₂ − T₁) / (O₂ − O₁), the nearest shorter output taken
bound       seconds of a batch over its output tokens: prefill is in it, so it is never too short
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from infergy.energy.table import TableCell

TOLD, TWO_CELLS, BOUND = "told", "two cells", "bound"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Time per output token of one cell.

    Attributes:
        seconds: Mean over the requests; of a bound, at most.
        basis: ``told``, ``two cells`` or ``bound``.
    """

    seconds: float
    basis: str


def find_pace(cell: TableCell, cells: Iterable[TableCell]) -> Pace:
    """The pace of `cell`, with the help of the other `cells` of its set-up."""
    if cell.time_per_output_token_s is not None:
        return Pace(seconds=cell.time_per_output_token_s, basis=TOLD)
    shorter = [
        other
        for other in cells
        if (other.input_tokens, other.batch) == (cell.input_tokens, cell.batch)
        and other.output_tokens < cell.output_tokens
    ]
    batch_s = cell.duration_s * cell.batch
    bound = Pace(seconds=batch_s / cell.output_tokens, basis=BOUND)
    if not shorter:
        return bound
    nearest = max(shorter, key=lambda other: other.output_tokens)
    slope_s = (batch_s - nearest.duration_s * nearest.batch) / (cell.output_tokens - nearest.output_tokens)
    return Pace(seconds=slope_s, basis=TWO_CELLS) if 0 < slope_s < bound.seconds else bound
