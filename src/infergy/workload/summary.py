"""A trace in figures: exact moments and quantiles from counts of distinct lengths, arrival rate, padding."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from infergy.errors import UsageError
from infergy.workload.clock import TimeUnit
from infergy.workload.faults import check_arrivals, why_untimed
from infergy.workload.table import ARRIVAL_S, Table

TRACE_SCHEMA = "infergy.trace/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """Prompts in static batches, all as long as the longest of their batch: real tokens against padded ones.

    Continuous batching (vLLM) packs tokens of any requests into a step and pads nothing.

    Attributes:
        batch: Requests a batch; the last one may have fewer.
        by_arrival: Whether requests are in order of arrival; else in that of the log.
        waste: Share of `padded_tokens` that is padding, 0 to 1.
        sorted_padded_tokens: With all requests sorted by length first and the batch that is not full placed best: the
            least of any order.
    """

    batch: int
    batches: int
    by_arrival: bool
    real_tokens: int
    padded_tokens: int
    waste: float
    sorted_padded_tokens: int
    sorted_waste: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthSummary:
    """One axis of a trace, in tokens per request.

    Attributes:
        std: Standard deviation of the sample (divided by n − 1); None for one request.
        median: Half-way between the two middle lengths if their number is even.
        p99: 99th percentile, linear between neighbouring lengths.
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
        requests: Requests with output.
        failed_requests: Rows set aside because they have no output, or are of no request to a model.
        time_unit: The unit of the arrivals, where it was inferred; None if the format, the user, or text says it.
        unreadable_rows: Rows set aside because their tokens cannot be read, and lines that are no rows.
        stream_chunks: Rows that are further parts of an answer, of which the last counts.
        input: Whole prompts, cached tokens included.
        output: Generated tokens.
        cached_input_tokens: Prompt tokens that a prefix cache served; None if the log does not report them.
        cached_share: Their share of all prompt tokens, 0 to 1; None if the log does not report them.
        duration_s: From the first arrival to the last; None with the reason in `arrival_reason`.
        arrival_rate_per_s: Requests after the first, divided by the duration.
        arrival_reason: Why duration or rate are unknown; None if both are known.
        attribution: Citation and licence of a shipped trace.
        lengths_from: Where the lengths of a task come from, in words; None for a trace, whose lengths are its own.
        padding: What static batches pad; None if not asked for.
        assumed: What neither names nor rows of the log say, in words, each with the option that says otherwise.
    """

    source: str
    format: str
    requests: int
    failed_requests: int
    unreadable_rows: int
    stream_chunks: int
    input: LengthSummary
    output: LengthSummary
    cached_input_tokens: int | None
    cached_share: float | None
    duration_s: float | None
    arrival_rate_per_s: float | None
    arrival_reason: str | None
    attribution: str | None
    time_unit: TimeUnit | None = None
    lengths_from: str | None = None
    padding: Padding | None = None
    assumed: tuple[str, ...] = ()
    schema: str = TRACE_SCHEMA


def summarise(table: Table, *, lenient: bool) -> tuple[TraceSummary | None, int, int]:
    """Count the rows of a table by distinct length, and find the ends of their arrivals.

    Returns:
        The figures, None if no request has output; the requests without output; the rows that cannot be read.
    """
    x = table.x
    rows = table.rows(lenient=lenient)
    served = (x.col("output_tokens") > 0).fill_null(False)
    by_input, by_output, (facts,) = table.collect(
        rows.filter(served).group_by("input_tokens").agg(x.len().alias("n")),
        rows.group_by("output_tokens").agg(x.len().alias("n")),
        rows.select(*_facts(table, served)),
    )
    outputs = {int(row["output_tokens"] or 0): int(row["n"]) for row in by_output}
    failed = outputs.pop(0, 0)
    requests = sum(outputs.values())
    untimed = 0 if lenient else requests - int(facts.get("timed", requests))
    bad = int(facts["rows"]) - int(facts["good"] or 0) or untimed
    if bad or not outputs:
        return None, failed * (not bad), bad
    inputs = LengthSummary.from_counts((int(row["input_tokens"]), int(row["n"])) for row in by_input)
    cached_tokens, cached_share = _cached(facts, inputs.total)
    duration_s, reason = _duration(table, requests, facts)
    summary = TraceSummary(
        source=table.source.name,
        format=table.layout.name,
        requests=requests,
        failed_requests=failed,
        unreadable_rows=table.unreadable,
        stream_chunks=int(facts.get("chunks") or 0),
        input=inputs,
        output=LengthSummary.from_counts(outputs.items()),
        cached_input_tokens=cached_tokens,
        cached_share=cached_share,
        duration_s=duration_s,
        arrival_rate_per_s=(requests - 1) / duration_s if duration_s else None,
        arrival_reason=reason,
        attribution=None,
        lengths_from=table.source.lengths_from,
    )
    return summary, failed, 0


def _facts(table: Table, served: Any) -> list[Any]:
    """Sums and ends over all rows; `served` is whether a row has output."""
    x = table.x
    facts = [table.good.fill_null(False).cast(x.Int64).sum().alias("good"), x.len().alias("rows")]
    facts += [x.col("chunks").sum().alias("chunks")] if table.layout.chunk else []
    if table.layout.cached:
        cached = x.when(served).then(x.col("cached_tokens"))
        facts += [cached.sum().alias("cached"), cached.count().alias("reported")]
    if table.arrival is not None:
        arrival = x.col(table.arrival)
        arrival = x.when(served & arrival.is_finite() if table.arrival == ARRIVAL_S else served).then(arrival)
        facts += [arrival.min().alias("first"), arrival.max().alias("last"), arrival.count().alias("timed")]
    return facts


def _cached(facts: dict[str, Any], input_tokens: int) -> tuple[int | None, float | None]:
    """Cached tokens and their share of the input; None where they are not reported."""
    if not facts.get("reported"):
        return None, None
    return int(facts["cached"]), int(facts["cached"]) / input_tokens if input_tokens else None


def _duration(table: Table, requests: int, facts: dict[str, Any]) -> tuple[float | None, str | None]:
    """Seconds between the ends, and why there are none or why they give no rate; errors as of `check_arrivals`."""
    if table.arrival == ARRIVAL_S and facts["timed"]:
        check_arrivals(table, facts["first"], facts["last"], facts["timed"])
    reason = why_untimed(table, requests - int(facts.get("timed", 0)), requests)
    if reason is not None:
        return None, reason
    span = facts["last"] - facts["first"]
    duration_s = float(span.total_seconds() if isinstance(span, timedelta) else span)
    return duration_s, None if duration_s else "all requests arrive at the same instant: there is no rate"


def _quantile(ordered: Sequence[tuple[int, int]], n: int, share: int, of: int) -> float:
    """The value at rank (n − 1) × share / of, linear between neighbours as numpy's default; exact in integers."""
    rank, rest = divmod((n - 1) * share, of)
    ends = list(itertools.accumulate(count for _, count in ordered))
    low = ordered[bisect_right(ends, rank)][0]
    return float(low) if rest == 0 else low + (ordered[bisect_right(ends, rank + 1)][0] - low) * rest / of


def find_padding(lengths: Sequence[int], batch: int, *, by_arrival: bool) -> Padding:
    """The padding of batches of `batch` prompts, in the order given and sorted by length.

    Raises:
        UsageError: `batch` is no size of a batch, or there are no prompts.
    """
    if batch < 1:
        raise UsageError.bad_value("--batch", batch, "a whole number of requests, at least 1")
    if not lengths:
        raise UsageError("no requests to put into batches", code="no-requests")
    real = sum(lengths)
    padded = padded_tokens(lengths, batch)
    by_length = _least_padded_tokens(sorted(lengths, reverse=True), batch)
    return Padding(
        batch=batch,
        batches=-(-len(lengths) // batch),
        by_arrival=by_arrival,
        real_tokens=real,
        padded_tokens=padded,
        waste=1 - real / padded if padded else 0.0,
        sorted_padded_tokens=by_length,
        sorted_waste=1 - real / by_length if by_length else 0.0,
    )


def padded_tokens(lengths: Sequence[int], batch: int) -> int:
    """Tokens of all prompts, each as long as the longest of its batch, in the order given."""
    chunks = (lengths[start : start + batch] for start in range(0, len(lengths), batch))
    return sum(max(chunk) * len(chunk) for chunk in chunks)


def _least_padded_tokens(longest_first: Sequence[int], batch: int) -> int:
    """Padded tokens of batches of neighbours in order of length; a batch that is not full, at the best position."""
    rest = len(longest_first) % batch
    before, after = longest_first[::batch], longest_first[rest::batch]
    if not rest:
        return batch * sum(before)
    # Full batches of the longest come before it, and those after it begin `rest` later.
    least = cost = rest * before[0] + batch * sum(after)
    for k in range(len(after)):
        cost += batch * (before[k] - after[k]) + rest * (before[k + 1] - before[k])
        least = min(least, cost)
    return least
