"""Power timelines of a cell: what a power sensor showed while the counter counted. Standard library only.

The counter gives the total, the timeline the shape: prefill and decode, idle parts, a GPU that another one waits for.
Where the energy of both differs, one of them is wrong (a counter that was reset in mid-window shows nowhere else).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infergy.records.measurement import Measurement
    from infergy.records.window import Window

MILLISECONDS_PER_SECOND = 1000
LONGEST_GAP_S = 0.5
"""A timeline with a longer gap gives no energy: what happened in it is unknown."""

WATTS_DIGITS = 1
"""Power is kept to a tenth of a watt: a sensor's noise is larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerTimeline:
    """Instant power of one GPU over a cell, kept where it changed.

    Attributes:
        uuid: Which GPU.
        start_s: When the first value was seen, on the clock of the ticks.
        offsets_ms: When each value was first seen, in milliseconds after `start_s`, ascending.
        power_w: The values. Each holds until the next one.
        end_s: Until when it reaches.
        every_s: Time between two looks that was asked for.
        longest_gap_s: Longest time between two looks: what happened in it is unknown.
    """

    uuid: str
    start_s: float
    offsets_ms: tuple[int, ...]
    power_w: tuple[float, ...]
    end_s: float
    every_s: float
    longest_gap_s: float

    def energy_j(self, start_s: float, end_s: float) -> float | None:
        """Joules from `start_s` to `end_s`; None if the timeline does not reach over both.

        Each value holds until the next: a sensor shows what it saw last. So energy is late by up to a period of
        the sensor, as that of a counter, and a window that closes some time after its last token has them all.
        """
        if start_s < self.start_s or end_s > self.end_s or not self.power_w:
            return None
        times_s = [self.start_s + offset / MILLISECONDS_PER_SECOND for offset in self.offsets_ms]
        first = max(0, bisect_right(times_s, start_s) - 1)
        energy_j = 0.0
        for place in range(first, len(times_s)):
            until_s = times_s[place + 1] if place + 1 < len(times_s) else end_s
            if times_s[place] >= end_s:
                break
            energy_j += self.power_w[place] * (min(until_s, end_s) - max(times_s[place], start_s))
        return energy_j

    def shown_w(self, start_s: float, end_s: float) -> list[float]:
        """The values that were first seen from `start_s` to `end_s`, in watts."""
        times_s = (self.start_s + offset / MILLISECONDS_PER_SECOND for offset in self.offsets_ms)
        return [watts for time_s, watts in zip(times_s, self.power_w, strict=True) if start_s <= time_s <= end_s]

    @property
    def is_whole(self) -> bool:
        """Whether no gap between two looks, or before the end, was longer than `LONGEST_GAP_S`."""
        return self.longest_gap_s <= LONGEST_GAP_S


def make_timeline(
    uuid: str, looks: Sequence[tuple[float, float]], start_s: float, end_s: float, every_s: float
) -> PowerTimeline | None:
    """The timeline of one GPU out of looks at its sensor.

    Args:
        uuid: Which GPU.
        looks: Seconds and watts of each look, in order; those long before and after are left out.
        start_s: From when it is to reach.
        end_s: Until when.
        every_s: Time between two looks that was asked for.

    Returns:
        None if there was no look in that time.
    """
    before = [look for look in looks if look[0] <= start_s][-1:]
    inside = before + [look for look in looks if start_s < look[0] <= end_s]
    if not inside:
        return None
    first_s = inside[0][0]
    offsets_ms: list[int] = []
    power_w: list[float] = []
    for time_s, watts in inside:
        shown_w = round(watts, WATTS_DIGITS)
        if not power_w or shown_w != power_w[-1]:
            offsets_ms.append(round((time_s - first_s) * MILLISECONDS_PER_SECOND))
            power_w.append(shown_w)
    times_s = [time_s for time_s, _ in inside]
    gaps = [later - earlier for earlier, later in zip(times_s, [*times_s[1:], end_s], strict=True)]
    return PowerTimeline(
        uuid=uuid,
        start_s=first_s,
        offsets_ms=tuple(offsets_ms),
        power_w=tuple(power_w),
        end_s=end_s,
        every_s=every_s,
        longest_gap_s=max(gaps),
    )


def ratio_by_gpu(row: Measurement) -> Mapping[str, float]:
    """Energy of the counter over those of the timeline, over all it saw, by UUID; empty where it cannot be totals.

    Raises:
        MeterError: A counter stood still.
    """
    found: dict[str, float] = {}
    for timeline in row.timeline:
        pair = _joules(timeline, row.seen_windows)
        if pair is not None:
            found[timeline.uuid] = pair[0] / pair[1]
    return found


def looking_error_by_gpu(row: Measurement, windows: Iterable[Window]) -> Mapping[str, float]:
    """How far the energy of each timeline may be off because its sensor looks part of the time, by UUID.

    The standard error of the mean of the values shown while batches ran, as a fraction, as if each were a look at a
    moment drawn at random; 0 of fewer than two.
    """
    spans = [(window.batches[0].start_s, window.batches[-1].end_s) for window in windows if window.batches]
    found: dict[str, float] = {}
    for timeline in row.timeline:
        shown_w = [watts for span in spans for watts in timeline.shown_w(*span)]
        mean_w = fmean(shown_w) if len(shown_w) > 1 else 0.0
        found[timeline.uuid] = stdev(shown_w) / math.sqrt(len(shown_w)) / mean_w if mean_w else 0.0
    return found


def ratio_by_window(row: Measurement) -> Iterator[tuple[int, str, float]]:
    """Of each window, from 1 on, and each GPU the energy of the counter over those of the timeline, where totals.

    Raises:
        MeterError: A counter stood still.
    """
    for number, window in enumerate(row.seen_windows, 1):
        for timeline in row.timeline:
            pair = _joules(timeline, [window])
            if pair is not None:
                yield number, timeline.uuid, pair[0] / pair[1]


def ratio(row: Measurement) -> float | None:
    """Energy of all counters over those of all timelines; None where one of them is not totals.

    Raises:
        MeterError: A counter stood still.
    """
    pairs = [_joules(timeline, row.seen_windows) for timeline in row.timeline]
    known = [pair for pair in pairs if pair is not None]
    if not known or len(known) < len(pairs):
        return None
    return sum(counter_j for counter_j, _ in known) / sum(shape_j for _, shape_j in known)


def _joules(timeline: PowerTimeline, windows: Iterable[Window]) -> tuple[float, float] | None:
    """Joules by the counter and by the timeline; None where the latter does not reach over a window, or shows none."""
    if not timeline.is_whole:
        return None
    counter_j = shape_j = 0.0
    for window in windows:
        tick, close = window.open.get(timeline.uuid), window.close.get(timeline.uuid)
        if tick is None or close is None:
            return None
        energy_j = timeline.energy_j(tick.time_s, close.time_s)
        if energy_j is None:
            return None
        counter_j += window.energy_by_gpu_j[timeline.uuid]
        shape_j += energy_j
    return (counter_j, shape_j) if shape_j > 0 else None
