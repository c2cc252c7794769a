"""What the study's Tables 1 and 2 say of a trace: exact moments and quantiles from counts of distinct lengths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from infergy.units import count_of
from infergy.workload.faults import arrivals_beyond, is_beyond
from infergy.workload.padding import Padding
from infergy.workload.table import ARRIVAL_S, LONGEST_TOKENS, Table

TRACE_SCHEMA = "infergy.trace/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthSummary:
    """One axis of a trace, in tokens a request.

    Attributes:
        std: Standard deviation of the sample (divided by n − 1); None for one request.
        median: Half-way between the two middle lengths if their number is even.
        p99: 99th percentile, linear between neighbouring lengths.
        longest: Of all requests.
        total: Tokens of all requests.
    """

    mean: float
    std: float | None
    median: float
    p99: float
    longest: int
    total: int

    @classmethod
    def from_counts(cls, counts: Iterable[tuple[int, int]]) -> LengthSummary:
        """From pairs of a length and how many requests have it; the integers make mean and std exact to rounding."""
        ordered = sorted(counts)
        n = sum(count for _, count in ordered)
        total = sum(length * count for length, count in ordered)
        squares = sum(length * length * count for length, count in ordered)
        return cls(
            mean=total / n,
            std=math.sqrt((n * squares - total * total) / (n * (n - 1))) if n > 1 else None,
            median=_quantile(ordered, n, 1, 2),
            p99=_quantile(ordered, n, 99, 100),
            longest=ordered[-1][0],
            total=total,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSummary:
    """A trace in figures: the requests that have output, their lengths, and how fast they arrive.

    Attributes:
        source: Shipped name, path, or kind of frame.
        format: Name of its format.
        requests: Requests with output.
        failed_requests: Requests set aside because they have no output tokens.
        input: Whole prompts, cached tokens included.
        output: Generated tokens.
        cached_input_tokens: Prompt tokens that a prefix cache served; None if the log does not report them.
        cached_share: Their share of all prompt tokens, 0 to 1; None if the log does not report them.
        duration_s: From the first arrival to the last; None with the reason in `arrival_reason`.
        arrival_rate_per_s: Requests after the first, divided by the duration.
        arrival_reason: Why duration or rate are unknown; None if both are known.
        attribution: Citation and licence of a shipped trace.
        lengths_from: Where the lengths of a task come from, in words; None for a trace, whose lengths are its own.
        padding: What static batches pad; None where nobody asked.
    """

    source: str
    format: str
    requests: int
    failed_requests: int
    input: LengthSummary
    output: LengthSummary
    cached_input_tokens: int | None
    cached_share: float | None
    duration_s: float | None
    arrival_rate_per_s: float | None
    arrival_reason: str | None
    attribution: str | None
    lengths_from: str | None = None
    padding: Padding | None = None
    schema: str = TRACE_SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What a pass over a trace gathers for its summary.

    Attributes:
        input: Requests with output by whole prompt, as pairs of length and count.
        output: All requests by output, as pairs of length and count.
        bad: Rows that cannot be meant; the rest is not to be used unless this is 0.
        facts: `cached`, `reported` (rows with a cached figure), `first`, `last`, `timed` (rows with an arrival).
    """

    input: Sequence[tuple[int, int]]
    output: Sequence[tuple[int, int]]
    bad: int
    facts: dict[str, Any]

    @property
    def failed(self) -> int:
        """Requests without output."""
        return sum(count for length, count in self.output if length == 0)

    @property
    def requests(self) -> int:
        """Requests with output."""
        return sum(count for length, count in self.output if length > 0)


def gather(table: Table, *, lenient: bool) -> Lengths:
    """Count the rows of a table by distinct length, and find the ends of their arrivals.

    Memory is bounded by distinct lengths, not by rows.
    """
    x = table.x
    rows = table.declared(lenient=lenient)
    output, uncached = x.col("output_tokens"), x.col("uncached_tokens")
    good = output.is_between(0, LONGEST_TOKENS) & uncached.is_between(0, LONGEST_TOKENS)
    served = (output > 0).fill_null(False)
    facts = [good.fill_null(False).cast(x.Int64).sum().alias("good"), x.len().alias("rows")]
    if table.layout.cached:
        cached = x.when(served).then(x.col("cached_tokens"))
        facts += [cached.sum().alias("cached"), cached.count().alias("reported")]
    if table.arrival is not None:
        arrival = x.when(served).then(x.col(table.arrival))
        facts += [arrival.min().alias("first"), arrival.max().alias("last"), arrival.count().alias("timed")]
    if table.arrival == ARRIVAL_S:
        facts.append(is_beyond(arrival).fill_null(False).any().alias("beyond"))
    by_input, by_output, (found,) = table.collect(
        rows.filter(served).group_by("input_tokens").agg(x.len().alias("n")),
        rows.group_by("output_tokens").agg(x.len().alias("n")),
        rows.select(*facts),
    )
    bad = int(found["rows"]) - int(found["good"] or 0)
    if bad:
        return Lengths(input=(), output=(), bad=bad, facts=found)
    if found.get("beyond"):
        raise arrivals_beyond(table)
    return Lengths(
        input=[(int(row["input_tokens"]), int(row["n"])) for row in by_input],
        output=[(int(row["output_tokens"]), int(row["n"])) for row in by_output],
        bad=0,
        facts=found,
    )


def summarise(table: Table, lengths: Lengths, attribution: str | None) -> TraceSummary:
    """The figures of a trace that has at least one request with output."""
    inputs = LengthSummary.from_counts(lengths.input)
    cached = int(lengths.facts["cached"]) if lengths.facts.get("reported") else None
    duration_s, reason = _duration(table, lengths)
    return TraceSummary(
        source=table.source.name,
        format=table.layout.format,
        requests=lengths.requests,
        failed_requests=lengths.failed,
        input=inputs,
        output=LengthSummary.from_counts((length, n) for length, n in lengths.output if length > 0),
        cached_input_tokens=cached,
        cached_share=cached / inputs.total if cached is not None and inputs.total else None,
        duration_s=duration_s,
        arrival_rate_per_s=(lengths.requests - 1) / duration_s if duration_s else None,
        arrival_reason=reason,
        attribution=attribution,
        lengths_from=table.source.lengths_from,
    )


def read_prompts(table: Table, *, lenient: bool) -> tuple[tuple[list[int], bool], int]:
    """Whole prompts of the requests with output, in order of arrival where each tells its own, else in the log's.

    Returns:
        The lengths and whether they are in order of arrival; and how many rows cannot be meant.
    """
    x = table.x
    output, uncached = x.col("output_tokens"), x.col("uncached_tokens")
    good = output.is_between(0, LONGEST_TOKENS) & uncached.is_between(0, LONGEST_TOKENS)
    rows = table.declared(lenient=lenient)
    ((counted,),) = table.collect(
        rows.select(good.fill_null(False).cast(x.Int64).sum().alias("good"), x.len().alias("rows"))
    )
    if bad := int(counted["rows"]) - int(counted["good"] or 0):
        return ([], False), bad
    wanted = ["input_tokens"] if table.arrival is None else ["input_tokens", table.arrival]
    lengths, *arrivals = table.columns(rows.filter((output > 0).fill_null(False)).select(*wanted), wanted)
    by_arrival = bool(arrivals) and all(arrival is not None for arrival in arrivals[0])
    if by_arrival:
        lengths = [length for _, length in sorted(zip(arrivals[0], lengths, strict=True), key=lambda pair: pair[0])]
    return ([int(length) for length in lengths], by_arrival), 0


def _duration(table: Table, lengths: Lengths) -> tuple[float | None, str | None]:
    """Seconds between the ends, and why there are none or why they give no rate."""
    if table.source.lengths_from is not None:
        return None, "a task has no arrivals"
    if not table.layout.time:
        return None, "no column of arrivals; name one with --time-column NAME"
    names = " or ".join(repr(path) for path in table.layout.time)
    untimed = lengths.requests - int(lengths.facts["timed"])
    if untimed:
        wanted = "numbers or text like 2024-05-10 00:00:00.009930+00:00" if table.is_polars else "numbers or datetimes"
        found = f"{untimed:,} of {count_of(lengths.requests, 'request')} have no arrival in {names}"
        return None, f"{found}; wanted {wanted}, or another column: --time-column NAME"
    span = lengths.facts["last"] - lengths.facts["first"]
    duration_s = float(span.total_seconds() if isinstance(span, timedelta) else span)
    return duration_s, None if duration_s else "all requests arrive at the same instant: there is no rate"


def _quantile(ordered: Sequence[tuple[int, int]], n: int, share: int, of: int) -> float:
    """The value at place (n − 1) × share / of, linear between neighbours as numpy's default; exact in integers."""
    place, rest = divmod((n - 1) * share, of)
    low = _at_rank(ordered, place)
    return float(low) if rest == 0 else low + (_at_rank(ordered, place + 1) - low) * rest / of


def _at_rank(ordered: Iterable[tuple[int, int]], rank: int) -> int:
    """The length of the request at `rank`, counted from 0, when all stand in order of length."""
    seen = 0
    for length, count in ordered:
        seen += count
        if rank < seen:
            return length
    raise ValueError(f"rank {rank} of {seen} requests")
