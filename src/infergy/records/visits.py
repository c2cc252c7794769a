"""What like cells of an engine config show of each other: how their windows spread, and how their visits scatter.

Standard library only. A cell that was measured more than once in an engine config was visited, at times apart:

    config    A B C D …    C A D B …    …          each round in an order of its own (`MeasureOptions.repeats`)
    cell C    ──■■────────■■──────────────          two visits of two windows

What lasts longer than a window, such as a host that is slow for half a minute, makes the windows of one visit alike:
their scatter does not show it, that of visits does. The variance between visits, β, is found over all like cells by
the method of moments (DerSimonian and Laird, "Meta-analysis in clinical trials", Control. Clin. Trials 7, 1986): of
visits with T_i of the T seconds of a cell, each second with the relative variance v,

    Q = Σ T_i (m_i / m − 1)²,   E[Q] = (R − 1) v + β (T − Σ T_i² / T)

for R visits of means m_i about the mean m. It adds β Σ (T_i / T)² to the variance of a cell's joules; β itself where
the cell was visited once.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from infergy.records.agreement import pool_key
from infergy.records.cell import GRID_VISIT
from infergy.records.measurement import Measurement
from infergy.records.result import WindowSum, add_up, derive, sum_windows
from infergy.records.window import Window, energy_of


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitScatter:
    """How the visits of one cell scatter.

    Attributes:
        squares_s: Q of the module's text, in seconds.
        degrees_of_freedom: Visits less one.
        weight_s: T − Σ T_i² / T, in seconds.
        seconds: T.
    """

    squares_s: float
    degrees_of_freedom: int
    weight_s: float
    seconds: float

    @property
    def standard_error(self) -> float:
        """Of the mean of the visits, as a fraction, by these visits alone: √(Q / ((R − 1) T))."""
        return math.sqrt(self.squares_s / (self.degrees_of_freedom * self.seconds))


def sum_visits(windows: Sequence[Window], loaded_idle: Window) -> list[list[WindowSum]]:
    """The sums of the windows of each visit.

    Raises:
        MeterError: A counter stood still.
    """
    found: dict[int, list[WindowSum]] = {}
    for window, figures in zip(windows, sum_windows(windows, loaded_idle), strict=True):
        found.setdefault(window.visit, []).append(figures)
    return list(found.values())


def scatter_of(visits: Sequence[Sequence[WindowSum]]) -> VisitScatter | None:
    """How the visits of one cell scatter; None of a single one."""
    if len(visits) < 2:
        return None
    every = list(map(add_up, visits))
    whole = add_up(every)
    return VisitScatter(
        squares_s=sum([visit.busy_s * (visit.batch_j / whole.batch_j - 1) ** 2 for visit in every]),
        degrees_of_freedom=len(visits) - 1,
        weight_s=whole.busy_s - sum([visit.busy_s**2 for visit in every]) / whole.busy_s,
        seconds=whole.busy_s,
    )


def variance_between(scatters: Iterable[VisitScatter | None], variance_s: float) -> tuple[float, int]:
    """The relative variance between visits, β, at least 0, and its degrees of freedom; (0, 0) where none is known.

    Args:
        scatters: Of like cells.
        variance_s: The relative variance of the energy of one second, v.
    """
    known = [scatter for scatter in scatters if scatter is not None]
    degrees = sum(scatter.degrees_of_freedom for scatter in known)
    if not known:
        return 0.0, 0
    excess_s = sum(scatter.squares_s for scatter in known) - degrees * variance_s
    return max(0.0, excess_s / sum(scatter.weight_s for scatter in known)), degrees


def share_of_one_visit(windows: Sequence[Window]) -> float:
    """Σ (T_i / T)²: what is left of the variance between visits in their mean; 1 of a single visit."""
    seconds: dict[int, float] = {}
    for window in windows:
        seconds[window.visit] = seconds.get(window.visit, 0.0) + energy_of(window).busy_s
    return sum([s**2 for s in seconds.values()]) / sum(seconds.values()) ** 2


def number_visits(visits: Iterable[Sequence[Window]]) -> tuple[Window, ...]:
    """The windows of several visits, each with the number of its visit."""
    return tuple(replace(window, visit=number) for number, visit in enumerate(visits, 1) for window in visit)


def join_visits(rows: Iterable[Measurement]) -> list[Measurement]:
    """One row for each measured cell of one GPU and environment, with the windows of all its visits.

    It stands where the first of them stood, and is otherwise the last one. Rows without windows are as they were. Runs
    whose requests came at other times (another seed) are another cell's.

    Raises:
        MeterError: A counter stood still.
    """
    return [group[0] if len(group) == 1 else _join(group) for group in group_visits(rows)]


def group_visits(rows: Iterable[Measurement]) -> Iterable[list[Measurement]]:
    """The visits of each cell, as `join_visits` joins them."""
    groups: dict[object, list[Measurement]] = {}
    for place, row in enumerate(rows):
        is_measured = row.windows and row.loaded_idle is not None
        gpus = tuple(sorted(row.windows[0].open)) if is_measured else ()
        key = (row.cell_id, row.arrival_sha256, pool_key(row), gpus) if is_measured else place
        groups.setdefault(key, []).append(row)
    return groups.values()


def _join(visits: Sequence[Measurement]) -> Measurement:
    first, last = visits[0], visits[-1]
    windows = number_visits(visit.windows for visit in visits)
    assert first.loaded_idle is not None
    seen = next((visit for visit in visits if visit.timeline), last)
    return replace(
        last,
        visit=GRID_VISIT,
        measured_utc=first.measured_utc,
        windows=windows,
        loaded_idle=first.loaded_idle,
        before=first.before,
        result=derive(windows, first.loaded_idle, first.lengths),
        timeline=seen.timeline,
        timeline_reason=seen.timeline_reason,
        watched=seen.watched,
        interrupted=next((visit.interrupted for visit in visits if visit.interrupted), None),
        experts_touched=next((visit.experts_touched for visit in visits if visit.experts_touched is not None), None),
    )


class RangeSums:
    """Sums of values, none below 0, between two places.

    A difference of running sums would lose the digits of small values beside large ones: the sums are kept in two
    parts, the second of what the first has rounded (TwoSum: Knuth, The Art of Computer Programming 2, 4.2.2).
    """

    def __init__(self, values: Iterable[float]) -> None:
        self._high, self._low = array("d", [0.0]), array("d", [0.0])
        high = low = 0.0
        for value in values:
            total = high + value
            added = total - high
            low += (high - (total - added)) + (value - added)
            high = total
            self._high.append(high)
            self._low.append(low)

    def over(self, ranges: Iterable[tuple[int, int]]) -> float:
        """The sum over ranges, each from a place up to, and without, another."""
        high, low = self._high, self._low
        return max(0.0, sum([(high[end] - high[first]) + (low[end] - low[first]) for first, end in ranges]))


LIKE_POWER = 0.15
"""How far the mean power of two cells may differ, as a fraction, for the spread of one to count for the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The relative variance of the energy of one second of batches, and how well it is known.

    Attributes:
        variance_s: Of joules over their mean, times the seconds over which they are taken.
        degrees_of_freedom: Of that estimate, above 0.
        is_of_joules: Whether it comes from the energy of repeated windows, not from the seconds of batches.
    """

    variance_s: float
    degrees_of_freedom: float
    is_of_joules: bool = True


def spread_of(visits: Sequence[Sequence[WindowSum]], windows: Sequence[Window]) -> Spread | None:
    """The spread of the windows of one cell, by visit; None of one batch in one window.

    Of several visits with more than a window each, what the windows of a visit differ by: visits differ by more.
    """
    count = sum(map(len, visits))
    if count > 1:
        if len(visits) == count:
            visits = [[*chain.from_iterable(visits)]]
        squares, degrees = sum(map(_squares_s, visits)), count - len(visits)
        return Spread(variance_s=squares / degrees, degrees_of_freedom=degrees)
    seconds = [batch.duration_s for window in windows for batch in window.batches]
    if len(seconds) < 2:
        return None
    mean_s = sum(seconds) / len(seconds)
    squares = sum(mean_s * (one / mean_s - 1) ** 2 for one in seconds)
    degrees = len(seconds) - 1
    return Spread(variance_s=squares / degrees, degrees_of_freedom=degrees, is_of_joules=False)


def _squares_s(windows: Sequence[WindowSum]) -> float:
    """Squares of the windows' distances from their mean, as fractions, by their seconds."""
    mean_j = add_up(windows).batch_j
    return sum([window.busy_s * (window.batch_j / mean_j - 1) ** 2 for window in windows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What one measured cell contributes to the intervals of others of its engine config.

    Attributes:
        power_w: Its mean power.
        spread: Its own spread; None if unknown.
        scatter: How its visits scatter; None of a single one.
    """

    power_w: float
    spread: Spread | None
    scatter: VisitScatter | None = None


def peer_of(*rows: Measurement) -> Peer | None:
    """The peer of a row, or of several that are visits of one cell (`group_visits`); None if it failed.

    Raises:
        MeterError: A counter stood still.
    """
    visits = [
        visit for row in rows if row.loaded_idle is not None for visit in sum_visits(row.windows, row.loaded_idle)
    ]
    if not visits:
        return None
    whole, rescaled = add_up(chain.from_iterable(visits)), rows[-1].rescaled
    return Peer(
        power_w=whole.energy_j / whole.busy_s * (1.0 if rescaled is None else rescaled.factor),
        spread=spread_of(visits, rows[0].windows),
        scatter=scatter_of(visits),
    )


class Alike:
    """Peers of one engine config: what those show together whose mean power differs by `LIKE_POWER` at most."""

    def __init__(self, peers: Iterable[Peer | None]) -> None:
        ordered = sorted((peer for peer in peers if peer is not None), key=lambda peer: peer.power_w)
        self._powers_w = [peer.power_w for peer in ordered]
        self._places = {id(peer): place for place, peer in enumerate(ordered)}
        self._joules, self._seconds, self._scatters = (
            [RangeSums(column) for column in zip(*map(read, ordered), strict=True)]
            for read in (partial(_of_spread, is_of_joules=True), partial(_of_spread, is_of_joules=False), _of_scatter)
        )
        self._is_scattered = any(peer.scatter is not None for peer in ordered)

    def spread(self, power_w: float, without: Iterable[Peer] = ()) -> Spread | None:
        """Of all peers but some, each weighted by its degrees of freedom; None if none is known.

        Where some have repeated windows, only these count.
        """
        if not self._powers_w:
            return None
        for is_of_joules, columns in ((True, self._joules), (False, self._seconds)):
            degrees, squares = self._sum(columns, power_w, without)
            if degrees:
                return Spread(variance_s=squares / degrees, degrees_of_freedom=degrees, is_of_joules=is_of_joules)
        return None

    def scatters(self, power_w: float, without: Iterable[Peer] = ()) -> list[VisitScatter]:
        """How the visits of all peers but some scatter, as one; empty where none were visited again."""
        if not self._is_scattered:
            return []
        degrees, squares_s, weight_s = self._sum(self._scatters, power_w, without)
        if not degrees:
            return []
        return [VisitScatter(squares_s=squares_s, degrees_of_freedom=int(degrees), weight_s=weight_s, seconds=weight_s)]

    def _sum(self, columns: Sequence[RangeSums], power_w: float, without: Iterable[Peer]) -> list[float]:
        place = bisect_left(self._powers_w, power_w * (1 - LIKE_POWER))
        end = bisect_right(self._powers_w, power_w * (1 + LIKE_POWER))
        ranges = []
        for gap in sorted(self._places[id(peer)] for peer in without):
            if place <= gap < end:
                ranges.append((place, gap))
                place = gap + 1
        ranges.append((place, max(place, end)))
        return [column.over(ranges) for column in columns]


def _of_spread(peer: Peer, *, is_of_joules: bool) -> tuple[float, float]:
    """Degrees of freedom and squares of a spread of joules, or of seconds."""
    if peer.spread is None or peer.spread.is_of_joules != is_of_joules:
        return 0.0, 0.0
    return peer.spread.degrees_of_freedom, peer.spread.variance_s * peer.spread.degrees_of_freedom


def _of_scatter(peer: Peer) -> tuple[float, ...]:
    scatter = peer.scatter
    return (0.0, 0.0, 0.0) if scatter is None else (scatter.degrees_of_freedom, scatter.squares_s, scatter.weight_s)
