"""Cells of one kind against those of another under the same load: what each costs more or less, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import product

from infergy.records import Load
from infergy.records.agreement import ONE_CHANGE, key_of
from infergy.report.points import Point
from infergy.units import format_percent

ENERGY, LATENCY = "energy", "latency"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One cell against another under the same load: a ratio less 1, and its 95 % interval; None where it is unknown.

    Attributes:
        gpu: On which hardware.
    """

    cell: str
    gpu: str
    value: float
    low: float | None
    high: float | None

    @property
    def in_words(self) -> str:
        """The change, and its interval where that is known."""
        value = format_percent(self.value, signed=True)
        if self.low is None or self.high is None:
            return value
        return f"{value} ({format_percent(self.low, signed=True)} .. {format_percent(self.high, signed=True)})"

    @property
    def basis(self) -> str:
        """What its interval is of."""
        return self.cell if self.low is None else f"95 % interval of {self.cell}"


def changes(a: Iterable[Point], b: Iterable[Point], quantity: str = ENERGY) -> list[Change]:
    """Cells of `b` against those of `a` under the same load, but for its arrivals, and in the same environment.

    Each cell of `b` is told once. Where either holds a cell several times, a pair of the same chips counts, else, and
    of several such, the two that were measured soonest after one another: most likely on one host. The interval adds
    the half-widths of both cells' logarithms in quadrature; that of a time is not told.
    """
    places: dict[tuple[object, Load], list[Point]] = {}
    for point in a:
        places.setdefault((key_of(point.row, ONE_CHANGE), _shape(point)), []).append(point)
    cells: dict[tuple[object, Load, str], list[Point]] = {}
    for point in b:
        key = (key_of(point.row, ONE_CHANGE), _shape(point))
        if key in places:
            cells.setdefault((*key, point.row.cell_id), []).append(point)
    return [_change(*_nearest(places[key, load], points), quantity) for (key, load, _), points in cells.items()]


def _nearest(a: list[Point], b: list[Point]) -> tuple[Point, Point]:
    """One of each, of the same chips where both have such, and else of the same time."""

    def distance(pair: tuple[Point, Point]) -> tuple[bool, timedelta]:
        one, other = pair
        return _chips(one) != _chips(other), abs(_time(one) - _time(other))

    return min(product(a, b), key=distance)


def _time(point: Point) -> datetime:
    return datetime.fromisoformat(point.row.measured_utc)


def _chips(point: Point) -> tuple[str, ...]:
    return tuple(gpu.uuid for gpu in point.row.environment.gpus)


def _shape(point: Point) -> Load:
    return replace(point.row.cell.load, arrivals=None)


def _change(a: Point, b: Point, quantity: str) -> Change:
    load = b.row.cell.load
    came = "" if load.arrivals is None else f" {load.arrivals.label}"
    cell = f"{load.input_tokens}→{load.output_tokens} × {load.batch}{came}"
    if quantity == LATENCY:
        return Change(cell=cell, gpu=b.gpu, value=b.duration_s / a.duration_s - 1, low=None, high=None)
    ratio = b.energy_j / a.energy_j
    ends = (a.low_j, a.high_j, b.low_j, b.high_j)
    if any(end is None or end <= 0 for end in ends):
        return Change(cell=cell, gpu=b.gpu, value=ratio - 1, low=None, high=None)
    a_low, a_high, b_low, b_high = (math.log(end) for end in ends if end is not None)
    a_log, b_log = math.log(a.energy_j), math.log(b.energy_j)
    # Below what `b` may fall, above what `a` may rise, and the other way round.
    down, up = math.hypot(b_log - b_low, a_high - a_log), math.hypot(b_high - b_log, a_log - a_low)
    low, high = ratio * math.exp(-down) - 1, ratio * math.exp(up) - 1
    return Change(cell=cell, gpu=b.gpu, value=ratio - 1, low=low, high=high)
