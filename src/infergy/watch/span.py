"""Two readings of counters and metrics, and what lies between them: rates, energy per token, percentiles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from infergy.meters.ticks import LATE_S
from infergy.watch.counters import CounterTick
from infergy.watch.metrics import Histogram, Page

FEWEST_S, FEWEST_TOKENS = 10.0, 500
"""Of energy per token: below, edges and the tokens of single steps weigh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Counters and metrics at one moment.

    Attributes:
        ticks: The last tick of each GPU's counter, by UUID.
        page: The metrics; None where there are none, for `reason`.
        page_s: When they were read, by the meter's clock, to `late_s` either way.
        segment: How often the server began again: counts of two segments cannot be compared.
    """

    time_s: float
    ticks: Mapping[str, CounterTick]
    page: Page | None
    page_s: float
    late_s: float
    segment: int
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyPerToken:
    """Energy per token, in the bounds that errors of edges and counts leave; None where they leave no most."""

    value_j: float
    least_j: float
    most_j: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """All that lies between two readings."""

    readings: Sequence[Reading]

    @property
    def seconds(self) -> float:
        """From the first to the last metrics."""
        return self.readings[-1].page_s - self.readings[0].page_s

    @property
    def answered(self) -> Sequence[Reading]:
        """The readings with metrics: what was counted between two of them is known, whatever lay between."""
        return [reading for reading in self.readings if reading.page is not None]

    def count(self, *names: str) -> float | None:
        """What counters grew by, added up; None where one is not on both pages."""
        first, last = self.readings[0].page, self.readings[-1].page
        if first is None or last is None or not all(n in p.counters for n in names for p in (first, last)):
            return None
        return sum(sum(last.counters[name].values()) - sum(first.counters[name].values()) for name in names)

    def rate(self, *names: str) -> float | None:
        """What counters grow by per second, added up."""
        count = self.count(*names)
        return None if count is None or self.seconds <= 0 else count / self.seconds

    def grown(self, name: str) -> Histogram:
        """What a histogram grew by; empty where it is not known."""
        pages = self.readings[0].page, self.readings[-1].page
        first, last = (None if page is None else page.histograms.get(name) for page in pages)
        if first is None or last is None:
            return Histogram({}, 0.0)
        counts = {edge: count - first.counts.get(edge, 0.0) for edge, count in last.counts.items()}
        return Histogram(counts, last.total - first.total)

    def percentile(self, name: str, share: float) -> float | None:
        """Of a histogram, evenly within a bucket; None where nothing came. Past the last edge: that edge."""
        grown = self.grown(name).counts
        wanted, below, edge_below = share * max(grown.values(), default=0.0), 0.0, 0.0
        if not wanted:
            return None
        for edge, count in grown.items():
            if count >= wanted and count > below:
                width = 0.0 if math.isinf(edge) else edge - edge_below
                return edge_below + width * (wanted - below) / (count - below)
            below, edge_below = count, edge
        return edge_below

    def per_token(self, *names: str) -> EnergyPerToken | None:
        """Energy of all GPUs over tokens of these counters; None where one or the other is not known."""
        first, last = self.readings[0], self.readings[-1]
        count, power_w = self.count(*names), power_between(first, last)
        if not count or power_w is None or self.seconds <= 0:
            return None
        value_j = power_w * self.seconds / count
        edges = [(first.ticks[uuid], tick) for uuid, tick in last.ticks.items()]
        late = max((a.late_s + b.late_s) / (b.time_s - a.time_s) for a, b in edges)
        late += (first.late_s + last.late_s) / self.seconds
        # Ticks come before pages, and what they report before that: where power changes, it is not that of the tokens.
        waits_s = (end.page_s + end.late_s - tick.time_s for end in (first, last) for tick in end.ticks.values())
        before_s = LATE_S + max(waits_s)
        known = [power for pair in pairwise(self.readings) if (power := power_between(*pair)) is not None]
        late += before_s * (max(known) - min(known)) / (power_w * self.seconds) if known else 0.0
        more, less = (self._uncounted(reading, names) / count for reading in (last, first))
        most_j = value_j * (1 + late) / (1 - less) if less < 1 else None
        return EnergyPerToken(value_j=value_j, least_j=value_j * max(0.0, 1 - late) / (1 + more), most_j=most_j)

    def _uncounted(self, reading: Reading, names: Sequence[str]) -> float:
        """Tokens at most that were computed for running requests and not counted yet, when metrics were read."""
        page = reading.page
        running = 1.0 if page is None else page.gauges.get("running", 1.0)
        if page is None or not page.at_end & set(names):
            # A token of each, and of a prompt that is computed in parts.
            return running + ("input_tokens" in names and (self.percentile("input_lengths", 1.0) or 0.0))
        return running * max(Span(readings=pair).count(*names) or 0.0 for pair in pairwise(self.answered))


def powers_between(first: Reading, last: Reading) -> dict[str, float]:
    """Mean power of each GPU between ticks; without those whose counter has a gap, or did not tick."""
    pairs = {uuid: (first.ticks[uuid], tick) for uuid, tick in last.ticks.items() if uuid in first.ticks}
    return {
        uuid: (b.energy_j - a.energy_j) / (b.time_s - a.time_s)
        for uuid, (a, b) in pairs.items()
        if a.gaps == b.gaps and b.time_s > a.time_s
    }


def power_between(first: Reading, last: Reading) -> float | None:
    """Mean power of all GPUs; None where that of one is not known."""
    powers_w = powers_between(first, last)
    return sum(powers_w.values()) if powers_w and powers_w.keys() == last.ticks.keys() else None


def enough_of(readings: Iterable[Reading], fewest_s: float, fewest_tokens: float = 0) -> Span | None:
    """The shortest span up to now of one segment with so many seconds and output tokens; None if there is none."""
    *_, last = known = [*readings]
    if last.page is None:
        return None
    for index in range(len(known) - 2, -1, -1):
        first = known[index]
        if first.segment != last.segment:
            return None
        span = Span(readings=known[index:])
        if (
            first.page is not None
            and span.seconds >= fewest_s
            and (span.count("output_tokens") or 0.0) >= fewest_tokens
        ):
            return span
    return None
