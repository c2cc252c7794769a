"""Cells that were measured more than once in an engine config, at times apart (visits). Standard library only.

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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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
