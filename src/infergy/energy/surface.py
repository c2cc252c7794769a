"""Joules and seconds of one request over all lengths, from the cells that were measured.

Curves are drawn in log space, log J over log tokens, as monotone cubics through all values in line (PCHIP: Fritsch and
Butland, SIAM J. Sci. Stat. Comput. 5, 1984; SciPy's `PchipInterpolator`). In this order:

1. measured        the cell itself
2. interpolated    along output, between measured outputs of a measured input
3. interpolated    along input, between inputs that have a value by 1 or 2
4. extrapolated    along the measured input's own outputs, or else along input between or past inputs that are carried
                   to this output; past the last cell, and before the first, as many joules a token as between the two
                   nearest: a straight line in plain space
5. None            fewer than two cells in line with it

Joules a request are nearly a + b × tokens, which is convex in log space: straight lines there lie 16 to 30 % above the
measured truth at outputs of 128 and 256 when 8, 64 and 512 are known (Llama-3.1-8B, H200), the cubic 1 to 11 %.
What drawing gets wrong for a table is told by `surface_errors`, from cells that are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from statistics import median

from infergy.energy.table import SetupTable, TableCell

MEASURED = "measured"
MODELLED = "modelled"
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
        how: ``measured``, ``interpolated`` or ``extrapolated``; or ``modelled`` (`infergy.energy.values`).
        axes: Along which axes it was interpolated.
        octaves_past: How far it was extrapolated past the last cell: doublings of tokens, over both axes.
        octaves_before: How far it was extrapolated before the first cell: halvings of tokens, over both axes.
        error: Half the width of its 95 % interval as a fraction, where the model tells it; None of a curve's value.
    """

    energy_j: float
    duration_s: float
    batch: int
    doubt: float
    how: str
    axes: frozenset[str] = frozenset()
    octaves_past: float = 0.0
    octaves_before: float = 0.0
    error: float | None = None


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
        past: Of extrapolation, for each doubling past the last cell, along either axis.
        before: Of extrapolation, for each halving before the first cell, along either axis.
        repeat: Of measuring a cell again, on another chip of the same kind.
        modelled: Of the physical model, given all other cells.
    """

    output: SurfaceError | None
    input: SurfaceError | None
    past: SurfaceError | None
    before: SurfaceError | None
    repeat: SurfaceError | None = None
    modelled: SurfaceError | None = None

    def of(self, value: SurfaceValue) -> float | None:
        """The largest error to expect of `value`, as a fraction; None if nothing tells how far drawing may be off.

        The errors of all that was done to draw it, multiplied; that of measuring again as far as it is known.
        """
        steps = [(self.past, value.octaves_past), (self.before, value.octaves_before)]
        steps += [(self.output if axis == "output" else self.input, 1.0) for axis in value.axes]
        factor = 1 + self.repeat.maximum if self.repeat else 1.0
        if value.error is not None:
            return factor * (1 + value.error) - 1
        for error, times in steps:
            if error is None and times:
                return None
            factor *= (1 + error.maximum) ** times if error else 1.0
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
        drawn = ((i, _within(points, output_tokens, "output")) for i, points in self._rows.items())
        inside = _within([_Point(i, value) for i, value in drawn if value is not None], input_tokens, "input")
        if inside is not None:
            return inside
        if len(row) >= 2:
            return _extend(row, output_tokens)
        carried = ((i, _carry(points, output_tokens)) for i, points in self._rows.items())
        column = [_Point(i, value) for i, value in carried if value is not None]
        inside = _within(column, input_tokens, "input")
        if inside is not None or len(column) < 2:
            return inside
        return _extend(column, input_tokens)

    def rows(self) -> Iterator[tuple[int, Sequence[tuple[float, SurfaceValue]]]]:
        """Measured inputs, each with its measured (output, value) in ascending order."""
        for input_tokens, points in self._rows.items():
            yield input_tokens, [(point.tokens, point.value) for point in points]


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
        past=_summary(
            [error for line in (*along_output, *along_input) for error in line.leave_end_out(last=True)],
            "the longest input or output left out of those measured in line; batches change with them",
        ),
        before=_summary(
            [error for line in (*along_output, *along_input) for error in line.leave_end_out(last=False)],
            "the shortest input or output left out of those measured in line",
        ),
    )


def repeat_error(setup: SetupTable) -> SurfaceError | None:
    """How far the same cells lie apart in any two files of one environment; None if no two hold the same cell.

    Each two are compared, not the extremes of all: those lie further apart the more chips were measured. Of a cell in
    many files the median of its pairs counts once.
    """
    environments = {facts.source: facts.environment for facts in setup.sources}
    same: dict[tuple[object, ...], list[TableCell]] = {}
    for cell in setup.cells:
        key = (cell.input_tokens, cell.output_tokens, cell.batch, environments[cell.source])
        same.setdefault(key, []).append(cell)
    apart = [errors for errors in map(_distances, same.values()) if errors]
    basis = "the same cells in another file, measured on another chip or again on this one"
    found = _summary([error for errors in apart for error in errors], basis)
    usual = (median(error.distance for error in errors) for errors in apart)
    return found and replace(found, points=len(apart), median=median(usual))


def _distances(cells: Sequence[TableCell]) -> list[_Error]:
    """Of one load measured in several files, of each two."""
    return [
        _Error(
            max(one.energy_j, other.energy_j) / min(one.energy_j, other.energy_j) - 1,
            f"{one.input_tokens}→{one.output_tokens}, batch {one.batch}",
        )
        for one, other in combinations(cells, 2)
        if one.source != other.source
    ]


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

    def leave_end_out(self, *, last: bool) -> Iterator[_Error]:
        if len(self.points) >= 3:
            end, next_to_it = (self.points[-1], self.points[-2]) if last else self.points[:2]
            error = self.compare(end, self.points[:-1] if last else self.points[1:])
            octaves = abs(math.log2(end.tokens / next_to_it.tokens))
            yield _Error((1 + error.distance) ** (1 / octaves) - 1, error.place)

    def compare(self, truth: _Point, others: Sequence[_Point]) -> _Error:
        drawn = _within(others, truth.tokens, self.axis) or _extend(others, truth.tokens)
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
            return _draw(points, low, tokens, axis)
    return next((point.value for point in points if point.tokens == tokens), None)


def _carry(points: Sequence[_Point], tokens: float) -> SurfaceValue | None:
    """The value of a row of outputs at `tokens`, extrapolated if need be; None if one point alone lies elsewhere."""
    inside = _within(points, tokens, "output")
    return _extend(points, tokens) if inside is None and len(points) >= 2 else inside


def _extend(points: Sequence[_Point], tokens: float) -> SurfaceValue:
    """The straight line through the nearest two of at least two ascending points, past either end of them."""
    is_past = tokens > points[-1].tokens
    end, inner = (points[-1], points[-2]) if is_past else (points[0], points[1])
    value = end.value
    octaves = abs(math.log2(tokens / end.tokens))

    def line(at_end: float, at_inner: float) -> float:
        # More tokens never cost less, and half the tokens at least half: neither end of a line may run away.
        slope = max(0.0, (at_inner - at_end) / (inner.tokens - end.tokens))
        return max(at_end + slope * (tokens - end.tokens), at_end * min(1.0, tokens / end.tokens))

    return SurfaceValue(
        energy_j=line(value.energy_j, inner.value.energy_j),
        duration_s=line(value.duration_s, inner.value.duration_s),
        # A batch beyond the measured ones is never assumed: nobody has seen it run.
        batch=value.batch,
        doubt=max(value.doubt, inner.value.doubt),
        how=EXTRAPOLATED,
        axes=value.axes,
        octaves_past=value.octaves_past + (octaves if is_past else 0.0),
        octaves_before=value.octaves_before + (0.0 if is_past else octaves),
    )


def _draw(points: Sequence[_Point], low: int, tokens: float, axis: str) -> SurfaceValue:
    """The value at `tokens` between the points `low` and `low` + 1, on the curve through all points."""
    near, far = points[low], points[low + 1]
    a, b = near.value, far.value
    share = math.log(tokens / near.tokens) / math.log(far.tokens / near.tokens)
    x = [math.log(point.tokens) for point in points]
    return SurfaceValue(
        energy_j=math.exp(_cubic(x, [math.log(p.value.energy_j) for p in points], low, math.log(tokens))),
        duration_s=math.exp(_cubic(x, [math.log(p.value.duration_s) for p in points], low, math.log(tokens))),
        batch=max(1, int(a.batch ** (1 - share) * b.batch**share + 1e-9)),
        doubt=max(a.doubt, b.doubt),
        how=EXTRAPOLATED if EXTRAPOLATED in (a.how, b.how) else INTERPOLATED,
        axes=a.axes | b.axes | {axis},
        octaves_past=max(a.octaves_past, b.octaves_past),
        octaves_before=max(a.octaves_before, b.octaves_before),
    )


def _cubic(x: Sequence[float], y: Sequence[float], low: int, at: float) -> float:
    """The monotone cubic through (x, y) between knots `low` and `low` + 1."""
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
