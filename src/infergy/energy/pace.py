"""Time per output token of measured cells: as engines told it, or as far as batches of other lengths tell.

told        the engine's own stamps, first token to last (`infergy.records.Result.time_per_output_token_s`)
two cells   at one input and batch, two outputs: (T₂ − T₁) / (O₂ − O₁), the nearest shorter output taken
bound       seconds of a batch over its output tokens: prefill is in it, so it is never too short
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from infergy.energy.price import NO_VALUE, BinEnergy
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


def in_pace(cells: Sequence[TableCell], tpot_s: float) -> Iterator[TableCell]:
    """The cells that keep the bound; where none of a length does, the smallest batch, which comes nearest."""
    lengths: dict[tuple[int, int], list[TableCell]] = {}
    for cell in cells:
        lengths.setdefault((cell.input_tokens, cell.output_tokens), []).append(cell)
    for group in lengths.values():
        kept = [cell for cell in group if find_pace(cell, cells).seconds <= tpot_s]
        yield from kept or [min(group, key=lambda cell: cell.batch)]


def share_within(bins: Iterable[BinEnergy], paces: Mapping[tuple[int, int], Pace], tpot_s: float) -> float:
    """Share of the priced requests whose bin keeps the bound: as its cell, or the cells around it, all do."""
    kept = known = 0
    for one in bins:
        if one.how == NO_VALUE:
            continue
        known += one.requests
        around = _around((one.input_tokens, one.output_tokens), paces)
        kept += one.requests if all(paces[place].seconds <= tpot_s for place in around) else 0
    return kept / known if known else 0.0


def _around(place: tuple[int, int], measured: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    """The measured lengths that enclose a place, nearest first along each axis; itself where it was measured."""
    known = set(measured)
    if place in known:
        return {place}
    inputs = sorted({one for one, _ in known})
    found: set[tuple[int, int]] = set()
    for near in _nearest(place[0], inputs):
        outputs = sorted(out for one, out in known if one == near)
        found |= {(near, out) for out in _nearest(place[1], outputs)}
    return found


def _nearest(value: float, sorted_values: Sequence[int]) -> set[int]:
    below = [one for one in sorted_values if one <= value][-1:]
    above = [one for one in sorted_values if one >= value][:1]
    return {*below, *above}
