"""Joules and seconds a request at any lengths, from the bins that were measured.

A measured bin is taken as it is. Between measured bins the value is interpolated linearly in the logarithms of tokens
and joules: along output within a row of one input length if the row brackets it; else along input between rows that
have a value; else from the two nearest rows or bins outwards. Each value says how it came about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from infergy.energy.table import EnergyTable, Point

MEASURED = "measured"
INTERPOLATED = "interpolated"
EXTRAPOLATED = "extrapolated"

HOLDOUT_OUTPUTS = (8, 64, 512)
"""Outputs that every input was measured at; rows with more of them tell the error of interpolating the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What one request costs in a full batch, and how that is known."""

    energy_j: float
    duration_s: float
    batch: float
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutError:
    """Interpolated against measured, at bins that were measured but held out.

    Attributes:
        bins: How many bins could be held out; with 0 the errors are None.
        median: Median of |interpolated / measured − 1|.
        worst: The largest.
    """

    bins: int
    median: float | None
    worst: float | None


class Surface:
    """The cost of a request over (input, output), on the points of one table."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._rows: dict[int, dict[int, Point]] = {}
        for point in points:
            self._rows.setdefault(point.input_tokens, {})[point.output_tokens] = point

    def at(self, input_tokens: float, output_tokens: float) -> Value | None:
        """The cost of one request; None where nothing measured lies near enough to extend from."""
        point = self._rows.get(int(input_tokens), {}).get(int(output_tokens))
        if point is not None and (point.input_tokens, point.output_tokens) == (input_tokens, output_tokens):
            return _value_of(point)
        inside = self._along_output(input_tokens, output_tokens, outside=False)
        if inside is not None:
            return inside
        return self._along_input(input_tokens, output_tokens)

    def _along_output(self, input_tokens: float, output_tokens: float, *, outside: bool) -> Value | None:
        row = self._rows.get(int(input_tokens)) if float(input_tokens).is_integer() else None
        if row is None:
            return None
        known = [(float(output), _value_of(point)) for output, point in sorted(row.items())]
        return _between(known, output_tokens, outside=outside)

    def _along_input(self, input_tokens: float, output_tokens: float) -> Value | None:
        for outside in (False, True):
            known = []
            for length, row in sorted(self._rows.items()):
                value = _value_of(row[int(output_tokens)]) if output_tokens in row else None
                value = value or self._along_output(length, output_tokens, outside=outside)
                if value is not None:
                    known.append((float(length), value))
            found = _between(known, input_tokens, outside=outside)
            if found is not None:
                return found
            # Past the last row that reaches this output: follow the rows outwards before leaving the outputs.
            found = _between(known, input_tokens, outside=True)
            if found is not None:
                return found
        return None


def holdout_error(table: EnergyTable) -> HoldoutError:
    """The error of interpolating along output, where the truth was measured.

    Rows (input lengths) with all of `HOLDOUT_OUTPUTS` and more between them are reduced to these, interpolated, and
    compared with what was held out.
    """
    errors: list[float] = []
    for length in {point.input_tokens for point in table.points}:
        row = [point for point in table.points if point.input_tokens == length]
        kept = [point for point in row if point.output_tokens in HOLDOUT_OUTPUTS]
        if len(kept) < len(HOLDOUT_OUTPUTS):
            continue
        surface = Surface(kept)
        for point in row:
            if point in kept or not HOLDOUT_OUTPUTS[0] < point.output_tokens < HOLDOUT_OUTPUTS[-1]:
                continue
            guess = surface.at(length, point.output_tokens)
            assert guess is not None
            errors.append(abs(guess.energy_j / point.energy_per_request_j - 1))
    if not errors:
        return HoldoutError(bins=0, median=None, worst=None)
    errors.sort()
    middle = len(errors) // 2
    median = errors[middle] if len(errors) % 2 else (errors[middle - 1] + errors[middle]) / 2
    return HoldoutError(bins=len(errors), median=median, worst=errors[-1])


def _value_of(point: Point) -> Value:
    return Value(
        energy_j=point.energy_per_request_j,
        duration_s=point.duration_per_request_s,
        batch=point.batch,
        method=MEASURED,
    )


def _between(known: list[tuple[float, Value]], place: float, *, outside: bool) -> Value | None:
    """Log-log through the two known values around `place`, or, outside of them, through the nearest two."""
    for at, value in known:
        if at == place:
            return value
    if len(known) < 2:
        return None
    below = [pair for pair in known if pair[0] < place]
    above = [pair for pair in known if pair[0] > place]
    if below and above:
        return _line(below[-1], above[0], place, INTERPOLATED)
    if not outside:
        return None
    first, second = (known[0], known[1]) if above else (known[-2], known[-1])
    return _line(first, second, place, EXTRAPOLATED)


def _line(first: tuple[float, Value], second: tuple[float, Value], place: float, method: str) -> Value:
    share = math.log(place / first[0]) / math.log(second[0] / first[0])

    def mix(a: float, b: float) -> float:
        return math.exp(math.log(a) + share * (math.log(b) - math.log(a)))

    a, b = first[1], second[1]
    worse = EXTRAPOLATED in (a.method, b.method, method)
    return Value(
        energy_j=mix(a.energy_j, b.energy_j),
        duration_s=mix(a.duration_s, b.duration_s),
        batch=max(1.0, mix(a.batch, b.batch)),
        method=EXTRAPOLATED if worse else INTERPOLATED,
    )
