"""How a counter and a power field respond to load steps: pure functions of what was read. Standard library.

A field that shows the mean over its last ``w`` seconds, ``d`` seconds late, responds to a load step at time 0 by a ramp

    1          ______
    0  _______/           g(y) = (y - d) / w, clamped to [0, 1]
              d  d+w

where ``y`` is the time of a change of the field. Steps at other moments of the field's period give other points of the
same ramp, so that ``w`` and ``d`` are found far finer than the field changes (equivalent-time sampling). Where ``w`` is
shorter than the period, the sensor samples part of the time: arXiv 2312.02741 found 25 ms of each 100 ms on A100 and
H100.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, linear_regression, median, quantiles, stdev

from infergy.records import Tick

Point = tuple[float, float]
"""Seconds and a value."""

MICROJOULES_PER_JOULE = 1e6
TOLERANCE = 0.1
FEWEST = 5
MOST_POINTS = 600


@dataclass(frozen=True, slots=True)
class Step:
    """The load went on at `time_s`, after it had been off since `off_s`, and stayed on until `end_s`."""

    off_s: float
    time_s: float
    end_s: float


def middle_90(values: Sequence[float]) -> tuple[float, float]:
    """The 5th and the 95th percentile, interpolated."""
    low, *_, high = quantiles(values, n=20, method="inclusive")
    return low, high


def is_regular(intervals_s: Sequence[float], gap_s: float) -> bool:
    """Whether nine tenths of the intervals are within a tenth of the median, but for a read's gap at either end."""
    middle_s = median(intervals_s)
    return all(abs(edge_s - middle_s) <= TOLERANCE * middle_s + 2 * gap_s for edge_s in middle_90(intervals_s))


def step_j(*runs: Sequence[Tick]) -> float | None:
    """The greatest common divisor of all increments, in joules, to a microjoule; None if all are equal."""
    counts = [[round(tick.energy_j * MICROJOULES_PER_JOULE) for tick in run] for run in runs]
    increments = {later - earlier for run in counts for earlier, later in pairwise(run)}
    return math.gcd(*increments) / MICROJOULES_PER_JOULE if len(increments) > 1 else None


def counter_shifts_s(ticks: Sequence[Tick], steps: Sequence[Step], settle_s: float) -> list[float]:
    """How late the counter shows each step, in seconds: where the lines through the ticks before and after it meet.

    Ticks within `settle_s` after a change of the load are left out.
    """
    shifts: list[float] = []
    for step in steps:
        before = [t for t in ticks if step.off_s + settle_s <= t.time_s <= step.time_s]
        after = [t for t in ticks if step.time_s + settle_s <= t.time_s <= step.end_s]
        if len(before) < 2 or len(after) < 2:
            continue
        low, high = (
            linear_regression([t.time_s for t in part], [t.energy_j for t in part]) for part in (before, after)
        )
        if high.slope > low.slope:
            shifts.append((low.intercept - high.intercept) / (high.slope - low.slope) - step.time_s)
    return shifts


def share_from_scatter(shifts_s: Sequence[float], period_s: float) -> float | None:
    """About which share of each period a counter samples; None from under 5 shifts.

    A counter that takes the end of its period for the whole shows a step at a random moment of the period early by up
    to what it skips, uniformly: the standard deviation is the skipped time over √12.
    """
    if len(shifts_s) < FEWEST:
        return None
    return max(0.0, 1 - math.sqrt(12) * stdev(shifts_s) / period_s)


def changes(samples: Sequence[Point]) -> list[Point]:
    """The samples that differ from the one before."""
    return [later for earlier, later in pairwise(samples) if later[1] != earlier[1]]


def field_period_s(samples: Sequence[Point]) -> float | None:
    """Median time between two changes; None if there are under 5, or if most samples change."""
    moved = changes(samples)
    if len(moved) <= FEWEST or len(moved) > len(samples) / 2:
        return None
    return median(later[0] - earlier[0] for earlier, later in pairwise(moved))


def response(samples: Sequence[Point], steps: Sequence[Step], *, only_changes: bool) -> list[Point]:
    """Points of the step response: seconds since the step, and the share of it that shows.

    Each step is scaled by the last third of the times before and after it.
    """
    points: list[Point] = []
    for step in steps:
        before = _values(samples, step.time_s - (step.time_s - step.off_s) / 3, step.time_s)
        after = _values(samples, step.end_s - (step.end_s - step.time_s) / 3, step.end_s)
        if not before or not after:
            continue
        low, high = fmean(before), fmean(after)
        if high <= low:
            continue
        part = [one for one in samples if step.time_s <= one[0] <= step.end_s]
        chosen = changes(part) if only_changes else part
        points += [(time_s - step.time_s, (value - low) / (high - low)) for time_s, value in chosen]
    points.sort()
    return points[:: max(1, math.ceil(len(points) / MOST_POINTS))]


def fit_ramp(points: Sequence[Point]) -> tuple[float, float] | None:
    """Delay and length of the ramp that fits best, in seconds: least squares on ever finer grids; None from under 5."""
    if len(points) < FEWEST:
        return None
    span_s = points[-1][0]
    best = (0.0, 0.0)
    reach_s = span_s
    while reach_s > 1e-4:
        grid_s = [reach_s * i / 8 for i in range(-8, 9)]
        tried = {(max(0.0, best[0] + d), max(0.0, best[1] + w)) for d in grid_s for w in grid_s}
        best = min(sorted(tried), key=lambda ramp: _misfit(points, *ramp))
        reach_s /= 3
    return best


def integral_j(samples: Sequence[Point], start_s: float, end_s: float) -> float | None:
    """Energy between two times by the trapezoidal rule, power at both ends interpolated; None beyond the samples."""
    if len(samples) < 2 or samples[0][0] > start_s or samples[-1][0] < end_s:
        return None
    energy_j = 0.0
    for (a_s, a_w), (b_s, b_w) in pairwise(samples):
        low_s, high_s = max(a_s, start_s), min(b_s, end_s)
        if high_s > low_s:
            slope = (b_w - a_w) / (b_s - a_s)
            energy_j += (high_s - low_s) * (a_w + slope * ((low_s + high_s) / 2 - a_s))
    return energy_j


def _misfit(points: Sequence[Point], delay_s: float, length_s: float) -> float:
    def ramp(time_s: float) -> float:
        late_s = time_s - delay_s
        return 0.0 if late_s <= 0 else 1.0 if late_s >= length_s else late_s / length_s

    return sum((shown - ramp(time_s)) ** 2 for time_s, shown in points)


def _values(samples: Sequence[Point], start_s: float, end_s: float) -> list[float]:
    return [value for time_s, value in samples if start_s <= time_s <= end_s]
