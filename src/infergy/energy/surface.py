"""Joules and seconds of one request over all lengths, from the cells that were measured.

Curves are drawn in log space, log J over log tokens, as monotone cubics through all values in line (PCHIP: Fritsch and
Butland, SIAM J. Sci. Stat. Comput. 5, 1984; SciPy's `PchipInterpolator`). In this order:

1. measured        the cell itself
2. interpolated    along output, between measured outputs of a measured input
3. interpolated    along input, between inputs that have a value by 1 or 2
4. extrapolated    along the tangent at the last value of one axis: the axis whose last value is closer in log space,
                   output if both are as close; where neither axis has two, along output first and then along input
5. None            fewer than two cells in line with it

Joules a request are nearly a + b × tokens, which is convex in log space: straight lines there lie 16 to 30 % above the
measured truth at outputs of 128 and 256 when 8, 64 and 512 are known (Llama-3.1-8B, H200), the cubic 1 to 11 %.
What drawing gets wrong for a table is told by `surface_errors`, from cells that are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from infergy.energy.table import TableCell

MEASURED = "measured"
INTERPOLATED = "interpolated"
EXTRAPOLATED = "extrapolated"

HELD_OUT_ROW = (8, 16, 32, 64, 128, 256, 512)
"""An input row with all of these outputs tells the error of interpolation along output …"""

HELD_OUT_KEPT = (8, 64, 512)
"""… when of these only the latter are kept: the spacing at which other rows are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceValue:
    """One request at some lengths.

    Attributes:
        energy_j: Joules a request.
        duration_s: Seconds a request.
        batch: Requests served at once; between cells, whole and never beyond both neighbours'.
        doubt: How far the cells it rests on may be off, as a fraction.
        how: ``measured``, ``interpolated`` or ``extrapolated``.
        axes: Along which axes it was drawn: empty if measured.
        octaves: How far it was extrapolated: doublings or halvings of tokens past the last cell, over both axes.
    """

    energy_j: float
    duration_s: float
    batch: int
    doubt: float
    how: str
    axes: frozenset[str] = frozenset()
    octaves: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceError:
    """How far values drawn from neighbours lie from measured ones that were left out.

    Attributes:
        points: How many measured values were compared.
        median: Median distance as a fraction: the larger of drawn and measured over the smaller, less 1.
        maximum: Largest distance.
        worst: Where the largest is.
        basis: What was left out.
        is_full: Whether whole rows of outputs were held out at the spacing at which others are measured.
    """

    points: int
    median: float
    maximum: float
    worst: str
    basis: str
    is_full: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceErrors:
    """The errors of a surface by how a value is drawn; None where no cell can be left out to tell.

    Attributes:
        output: Of interpolation along output; `input` along input.
        extrapolation: For each octave past the last cell, along either axis.
    """

    output: SurfaceError | None
    input: SurfaceError | None
    extrapolation: SurfaceError | None

    def of(self, value: SurfaceValue) -> float | None:
        """The largest error to expect of `value`, as a fraction; 0 if it was measured, None if nothing tells."""
        if value.how == MEASURED:
            return 0.0
        if value.how == EXTRAPOLATED:
            error = self.extrapolation
            return None if error is None else float((1 + error.maximum) ** value.octaves - 1)
        factor = 1.0
        for axis in value.axes:
            error = self.output if axis == "output" else self.input
            if error is None:
                return None
            factor *= 1 + error.maximum
        return factor - 1


@dataclass(frozen=True, slots=True)
class _Point:
    tokens: float
    value: SurfaceValue


class Surface:
    """Joules and seconds a request as a function of input and output tokens."""

    def __init__(self, cells: Mapping[tuple[int, int], TableCell]) -> None:
        self._rows: dict[int, list[_Point]] = {}
        for (input_tokens, output_tokens), cell in sorted(cells.items()):
            value = SurfaceValue(
                energy_j=cell.energy_j,
                duration_s=cell.duration_s,
                batch=cell.batch,
                doubt=cell.doubt,
                how=MEASURED,
            )
            self._rows.setdefault(input_tokens, []).append(_Point(output_tokens, value))

    def at(self, input_tokens: float, output_tokens: float) -> SurfaceValue | None:
        """The value at some lengths, at least one token each; None where fewer than two cells are in line.

        Deterministic, and exact where measured.
        """
        row = self._rows.get(int(input_tokens), []) if input_tokens == int(input_tokens) else []
        inside = _within(row, output_tokens, "output")
        if inside is not None:
            return inside
        column = self._column(output_tokens)
        inside = _within(column, input_tokens, "input")
        if inside is not None:
            return inside
        return self._extrapolate(row, column, input_tokens, output_tokens)

    def rows(self) -> Iterator[tuple[int, Sequence[tuple[float, SurfaceValue]]]]:
        """Measured inputs, each with its measured (output, value) in ascending order."""
        for input_tokens, points in self._rows.items():
            yield input_tokens, [(point.tokens, point.value) for point in points]

    def _column(self, output_tokens: float) -> list[_Point]:
        """All inputs that have a value at `output_tokens` without extrapolation."""
        drawn = ((i, _within(row, output_tokens, "output")) for i, row in self._rows.items())
        return [_Point(i, value) for i, value in drawn if value is not None]

    def _extrapolate(
        self, row: Sequence[_Point], column: Sequence[_Point], input_tokens: float, output_tokens: float
    ) -> SurfaceValue | None:
        choices = [
            (_distance(points, tokens), points, tokens, axis)
            for points, tokens, axis in ((row, output_tokens, "output"), (column, input_tokens, "input"))
            if len(points) >= 2
        ]
        if choices:
            # min() keeps the first of equals: output.
            _, points, tokens, axis = min(choices, key=lambda choice: choice[0])
            return _extend(points, tokens, axis)
        # Neither axis holds two values: carry every row out to this output, then draw along input.
        carried = [
            _Point(i, _extend(points, output_tokens, "output")) for i, points in self._rows.items() if len(points) >= 2
        ]
        drawn = _within(carried, input_tokens, "input")
        if drawn is None and len(carried) >= 2:
            drawn = _extend(carried, input_tokens, "input")
        return drawn


def surface_errors(cells: Mapping[tuple[int, int], TableCell]) -> SurfaceErrors:
    """What drawing from neighbours would have said of measured cells, had they been left out."""
    columns: dict[float, list[_Point]] = {}
    along_output: list[_Line] = []
    for input_tokens, row in Surface(cells).rows():
        along_output.append(_Line("output", f"input {input_tokens}", tuple(_Point(o, value) for o, value in row)))
        for output_tokens, value in row:
            columns.setdefault(output_tokens, []).append(_Point(input_tokens, value))
    along_input = [_Line("input", f"output {o:g}", tuple(column)) for o, column in sorted(columns.items())]
    return SurfaceErrors(
        output=_holdout_error(along_output),
        input=_summary(
            [error for line in along_input for error in line.leave_inner_out()],
            "each input left out in turn of those measured at one output",
        ),
        extrapolation=_summary(
            [error for line in (*along_output, *along_input) for error in line.leave_last_out()],
            "the longest input or output left out of those measured in line",
        ),
    )


def borrow_errors(errors: SurfaceErrors, label: str, others: Mapping[str, SurfaceErrors]) -> SurfaceErrors:
    """Take another set-up's error along output, the largest there is, where this one has no full row to tell it.

    Args:
        errors: What the cells of `label` tell by themselves.
        label: The set-up, for the words.
        others: Errors of other set-ups of the same model on the same GPU, by their labels.
    """
    if errors.output is not None and errors.output.is_full:
        return errors
    full = [(name, other.output) for name, other in others.items() if other.output is not None and other.output.is_full]
    if not full:
        return errors
    name, worst = max(full, key=lambda named: named[1].maximum)
    basis = f"{worst.basis}, of {name}: {label} has no full row of outputs"
    return replace(errors, output=replace(worst, basis=basis))


def holdout_error(cells: Mapping[tuple[int, int], TableCell]) -> SurfaceError | None:
    """The error of interpolation along output.

    From rows where all of `HELD_OUT_ROW` was measured, when of them only `HELD_OUT_KEPT` is kept; without such a row,
    from leaving out each inner output in turn; None if there is none.
    """
    return surface_errors(cells).output


def _holdout_error(lines: Sequence[_Line]) -> SurfaceError | None:
    full = [line for line in lines if set(HELD_OUT_ROW) <= {point.tokens for point in line.points}]
    if not full:
        inner = [error for line in lines for error in line.leave_inner_out()]
        return _summary(inner, "each output left out in turn of those measured at one input")
    errors: list[_Error] = []
    for line in full:
        kept = [point for point in line.points if point.tokens in HELD_OUT_KEPT]
        held_out = [point for point in line.points if point.tokens in set(HELD_OUT_ROW) - set(HELD_OUT_KEPT)]
        errors += [line.compare(point, kept) for point in held_out]
    where = " and ".join(line.name.removeprefix("input ") for line in full)
    basis = f"at input {where}, outputs drawn from {', '.join(map(str, HELD_OUT_KEPT))} alone"
    return _summary(errors, basis, is_full=True)


@dataclass(frozen=True, slots=True)
class _Error:
    distance: float
    place: str


@dataclass(frozen=True, slots=True)
class _Line:
    """Measured points along one axis, ascending."""

    axis: str
    name: str
    points: tuple[_Point, ...]

    def leave_inner_out(self) -> Iterator[_Error]:
        for i in range(1, len(self.points) - 1):
            yield self.compare(self.points[i], [*self.points[:i], *self.points[i + 1 :]])

    def leave_last_out(self) -> Iterator[_Error]:
        if len(self.points) >= 3:
            error = self.compare(self.points[-1], self.points[:-1])
            octaves = math.log2(self.points[-1].tokens / self.points[-2].tokens)
            yield _Error((1 + error.distance) ** (1 / octaves) - 1, error.place)

    def compare(self, truth: _Point, others: Sequence[_Point]) -> _Error:
        drawn = _within(others, truth.tokens, self.axis) or _extend(others, truth.tokens, self.axis)
        ratio = drawn.energy_j / truth.value.energy_j
        return _Error(max(ratio, 1 / ratio) - 1, f"{self.name}, {self.axis} {truth.tokens:g}")


def _summary(errors: Sequence[_Error], basis: str, *, is_full: bool = False) -> SurfaceError | None:
    if not errors:
        return None
    worst = max(errors, key=lambda error: error.distance)
    return SurfaceError(
        points=len(errors),
        median=median(error.distance for error in errors),
        maximum=worst.distance,
        worst=worst.place,
        basis=basis,
        is_full=is_full,
    )


def _within(points: Sequence[_Point], tokens: float, axis: str) -> SurfaceValue | None:
    """The value on a curve through ascending points; None outside of it."""
    for low, (a, b) in enumerate(pairwise(points)):
        if a.tokens < tokens < b.tokens:
            return _draw(points, low, tokens, INTERPOLATED, axis)
    return next((point.value for point in points if point.tokens == tokens), None)


def _extend(points: Sequence[_Point], tokens: float, axis: str) -> SurfaceValue:
    """The tangent at the nearest end of at least two ascending points."""
    return _draw(points, 0 if tokens < points[0].tokens else len(points) - 2, tokens, EXTRAPOLATED, axis)


def _distance(points: Iterable[_Point], tokens: float) -> float:
    return min(abs(math.log(tokens / point.tokens)) for point in points)


def _draw(points: Sequence[_Point], low: int, tokens: float, how: str, axis: str) -> SurfaceValue:
    """The value at `tokens` by the piece of the curve between the points `low` and `low` + 1."""
    near, far = points[low], points[low + 1]
    a, b = near.value, far.value
    share = math.log(tokens / near.tokens) / math.log(far.tokens / near.tokens)
    bounded = min(1.0, max(0.0, share))
    x = [math.log(point.tokens) for point in points]
    return SurfaceValue(
        energy_j=math.exp(_cubic(x, [math.log(p.value.energy_j) for p in points], low, math.log(tokens))),
        duration_s=math.exp(_cubic(x, [math.log(p.value.duration_s) for p in points], low, math.log(tokens))),
        # A batch beyond the neighbours' is never assumed: nobody has seen it run.
        batch=max(1, int(a.batch ** (1 - bounded) * b.batch**bounded + 1e-9)),
        doubt=max(a.doubt, b.doubt),
        how=EXTRAPOLATED if EXTRAPOLATED in (how, a.how, b.how) else INTERPOLATED,
        axes=a.axes | b.axes | {axis},
        octaves=max(a.octaves, b.octaves) + abs(math.log2(far.tokens / near.tokens) * (share - bounded)),
    )


def _cubic(x: Sequence[float], y: Sequence[float], low: int, at: float) -> float:
    """The monotone cubic through (x, y) between knots `low` and `low` + 1; beyond them, the tangent at the end."""
    if at < x[low]:
        return y[low] + _slope(x, y, low) * (at - x[low])
    if at > x[low + 1]:
        return y[low + 1] + _slope(x, y, low + 1) * (at - x[low + 1])
    width = x[low + 1] - x[low]
    t = (at - x[low]) / width
    straight = y[low] + t * (y[low + 1] - y[low])
    secant = (y[low + 1] - y[low]) / width
    # Hermite's form about the straight line: how far the slopes at either knot bend it.
    left, right = _slope(x, y, low) - secant, _slope(x, y, low + 1) - secant
    return straight + width * t * (1 - t) * ((1 - t) * left - t * right)


def _slope(x: Sequence[float], y: Sequence[float], knot: int) -> float:
    """The slope of the monotone cubic at a knot: 0 at a local extreme, else the neighbours' weighted harmonic mean."""
    if len(x) == 2:
        return (y[1] - y[0]) / (x[1] - x[0])
    if knot in (0, len(x) - 1):
        # The last knot is the first one of the mirrored curve.
        ends = (0, 1, 2) if knot == 0 else (-1, -2, -3)
        return _end_slope([x[i] for i in ends], [y[i] for i in ends])
    before, after = x[knot] - x[knot - 1], x[knot + 1] - x[knot]
    rise_before, rise_after = (y[knot] - y[knot - 1]) / before, (y[knot + 1] - y[knot]) / after
    if rise_before * rise_after <= 0:
        return 0.0
    weight_before, weight_after = 2 * after + before, after + 2 * before
    return (weight_before + weight_after) / (weight_before / rise_before + weight_after / rise_after)


def _end_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope at the first of three knots of the parabola through them, limited so that the cubic is monotone."""
    near, far = x[1] - x[0], x[2] - x[1]
    rise_near, rise_far = (y[1] - y[0]) / near, (y[2] - y[1]) / far
    slope = ((2 * near + far) * rise_near - near * rise_far) / (near + far)
    if slope * rise_near <= 0:
        return 0.0
    if rise_near * rise_far <= 0 and abs(slope) > 3 * abs(rise_near):
        return 3 * rise_near
    return slope
