"""How long requests took, on average and each by itself, and whether the engine kept up. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infergy.units import format_number, format_si

if TYPE_CHECKING:
    from infergy.records.measurement import Measurement
    from infergy.records.window import Batch

BEHIND_SHARE, BEHIND_ERRORS = 0.1, 2.0
"""How many of the requests of a run's second half may be left over, as a share of them and in standard errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTimes:
    """Of each request of a run, in the order of arrival, in seconds to the microsecond.

    Attributes:
        first_token_s: From its own arrival to its first token, as its client sees it.
        finished_s: From its own arrival to its last token.
        engine: What the engine's own clock says of the same, where it is known.
    """

    first_token_s: tuple[float, ...]
    finished_s: tuple[float, ...]
    engine: EngineTimes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTimes:
    """Where the time of each request of a run passes, in seconds after its own arrival, to the microsecond.

    Attributes:
        submitted_s: When it was handed to the engine's front end: how late the client was.
        queued_s: When the engine's scheduler got it.
        scheduled_s: When it was first scheduled.
        first_token_s: When its first token was there in the engine.
        finished_s: When its last token was there in the engine.
    """

    submitted_s: tuple[float, ...]
    queued_s: tuple[float, ...]
    scheduled_s: tuple[float, ...]
    first_token_s: tuple[float, ...]
    finished_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounts:
    """What an engine counted over a run.

    Attributes:
        steps: Steps that its scheduler reported.
        preemptions: How often a request that ran was put back to wait.
        cached_tokens: Prompt tokens that its prefix cache had, over all requests.
        peak_running: Requests in progress, at most.
        peak_waiting: Requests waiting to be scheduled, at most.
        peak_cache_share: Share of the KV cache's blocks in use, at most, 0 to 1.
    """

    steps: int
    preemptions: int
    cached_tokens: int
    peak_running: int
    peak_waiting: int
    peak_cache_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Seconds that half, nine in ten, and ninety-nine in a hundred requests do not exceed."""

    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Percentiles over the requests of all runs of a row.

    Attributes:
        first_token: From arrival to first token.
        per_output_token: From first token to last over the tokens after the first; None for one output token.
        end_to_end: From arrival to last token.
    """

    first_token: Percentiles
    per_output_token: Percentiles | None
    end_to_end: Percentiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """Requests that had arrived and were not finished.

    Attributes:
        arrived: Requests that arrived in the second half of a run.
        halfway: Waiting or running when the run's second half began, mean over the runs.
        at_end: The same when the last request arrived.
    """

    arrived: int
    halfway: float
    at_end: float

    @property
    def grows(self) -> bool:
        """Whether so many more were left over that it is no chance: the engine falls behind the arrivals.

        Counts of a queue that is steady scatter like Poisson's, with a variance equal to their mean.
        """
        more = self.at_end - self.halfway
        return more > BEHIND_SHARE * self.arrived and more > BEHIND_ERRORS * math.sqrt(self.at_end + self.halfway)


def mean_first_token_s(batches: Sequence[Batch]) -> float | None:
    """Seconds from arrival to first token, mean over all requests; None if any batch lacks it."""
    waited_s = 0.0
    for batch in batches:
        if batch.first_token_s is None:
            return None
        waited_s += batch.requests * batch.first_token_s
    return waited_s / sum(batch.requests for batch in batches)


def mean_per_output_token_s(batches: Sequence[Batch]) -> float | None:
    """(last token − first token) / (output tokens − 1), mean over the requests of a cell, whose outputs are alike."""
    decode_s, tokens = 0.0, 0
    for batch in batches:
        if batch.first_token_s is None or batch.finished_s is None:
            return None
        decode_s += batch.requests * (batch.finished_s - batch.first_token_s)
        tokens += batch.output_tokens - batch.requests
    return decode_s / tokens if tokens else None


def find_latency(batches: Sequence[Batch], outputs: Sequence[int] = ()) -> Latency | None:
    """Percentiles over all requests; None offline, and if any batch lacks it.

    Args:
        batches: Runs of the same requests.
        outputs: Output tokens of each request of a run; where empty, those of all requests are alike.
    """
    first: list[float] = []
    finished: list[float] = []
    paces: list[float] = []
    for batch in batches:
        times = batch.times
        if times is None:
            return None
        first += times.first_token_s
        finished += times.finished_s
        made = outputs or (batch.output_tokens // batch.requests,) * batch.requests
        trios = zip(times.first_token_s, times.finished_s, made, strict=True)
        paces += [(last_s - first_s) / (tokens - 1) for first_s, last_s, tokens in trios if tokens > 1]
    if not first:
        return None
    return Latency(
        first_token=percentiles(first),
        per_output_token=percentiles(paces) if paces else None,
        end_to_end=percentiles(finished),
    )


def percentiles(values: Iterable[float]) -> Percentiles:
    """By nearest rank: values that were seen; at least one."""
    ranked = sorted(values)
    p50_s, p90_s, p99_s = (ranked[math.ceil(share * len(ranked) / 100) - 1] for share in (50, 90, 99))
    return Percentiles(p50_s=p50_s, p90_s=p90_s, p99_s=p99_s)


def find_backlog(arrival_s: Sequence[float], runs: Sequence[RequestTimes]) -> Backlog | None:
    """How many requests waited or ran halfway through the arrivals and at the last.

    None without runs, and where all requests arrive at once.

    Args:
        arrival_s: When each request of a run arrived.
        runs: Runs of these requests.
    """
    if not runs or len(arrival_s) < 2 or arrival_s[-1] <= arrival_s[0]:
        return None
    half = len(arrival_s) // 2

    def left(at: int, times: RequestTimes) -> int:
        """Of the requests before `at` those that were not finished when it arrived."""
        pairs = zip(arrival_s[:at], times.finished_s[:at], strict=True)
        return sum(came_s + took_s > arrival_s[at] for came_s, took_s in pairs)

    last = len(arrival_s) - 1
    return Backlog(
        arrived=last - half,
        halfway=sum(left(half, times) for times in runs) / len(runs),
        at_end=sum(left(last, times) for times in runs) / len(runs),
    )


def backlog_of(row: Measurement) -> Backlog | None:
    """That of an online row, whose runs have the same arrivals.

    None offline, where requests wait for answers, and if the engine did not report it.
    """
    times = [batch.times for window in row.windows for batch in window.batches]
    known = [one for one in times if one is not None]
    arrival_s = () if row.waits_for_answers or len(known) < len(times) else row.arrival_s
    return find_backlog(arrival_s, known)


def describe_serving(row: Measurement) -> str:
    """What an online row reached, in words; empty offline and for a failed row."""
    arrivals, result = row.cell.load.arrivals, row.result
    if arrivals is None or result is None or result.requests_per_s is None:
        return ""
    span_s = 0.0 if row.waits_for_answers else row.arrival_s[-1]
    asked = f" of {format_number((len(row.arrival_s) - 1) / span_s)}" if span_s > 0 else ""
    reached = f"{format_number(result.requests_per_s)}{asked} requests/s"
    tokens = f"{format_number(result.output_tokens_per_s)} output tokens/s"
    latency = result.latency
    if latency is None:
        return f"{reached}, {tokens}; the engine reported no times"
    parts = {"first token": latency.first_token, "token": latency.per_output_token, "whole": latency.end_to_end}
    waits = [
        f"{name} {' / '.join(format_si(s, 's') for s in (part.p50_s, part.p90_s, part.p99_s))}"
        for name, part in parts.items()
        if part is not None
    ]
    return f"{reached}, {tokens}; p50 / p90 / p99: {', '.join(waits)}"
