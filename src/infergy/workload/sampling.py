"""Traces too long to simulate whole: windows drawn over their time, and how far sums over them may be off.

    slots of equal length ──▶ strata of consecutive slots ──▶ two slots drawn from each ──▶ windows with weights

Stratified random sampling without replacement (Cochran, Sampling Techniques, 1977, chapter 5). One pass finds the sums
of all slots, so the standard error of a weighted sum over windows is known, not estimated. Memory is bounded by slots
and by the requests drawn. All at once the windows are one, which stands for the tokens of the trace.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from infergy.errors import UsageError
from infergy.workload.bins import Histogram
from infergy.workload.histograms import all_counts, requests_of_histogram
from infergy.workload.requests import WHOLE_REQUESTS, Requests, Sample, SetAside, Window, whole  # fmt: skip

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from infergy.workload.table import Table

    Integers = NDArray[np.int64]
    Floats = NDArray[np.float64]

_NORMAL_90 = 1.6449
_FEWEST_WINDOWS = 24
_MORE = 1.2
_NEARLY_ALL = 0.8
_SLOTS, _MOST_SLOTS = 256, 10_000
_SHORTEST_S, _LONGEST_S = 60.0, 600.0
_SLOT = "slot"


def sample_table(
    table: Table, *, lenient: bool, seed: int, error: float, whole_requests: int
) -> tuple[Sample | None, int, int]:
    """Windows of a table, by time, or by order where arrivals are unknown; of its rows only those drawn are in memory.

    Args:
        table: Rows that polars reads.
        lenient: See `Table.declared`.
        seed: Of the random sample.
        error: Half-width of the 90 % interval of summed tokens, relative, that is to be met; 0 to 1.
        whole_requests: Up to so many requests are taken whole.

    Returns:
        The sample, failed rows and unreadable rows, as of `reading.read_requests`.
    """
    import polars as pl

    from infergy.workload.reading import read_requests

    if not 0 < error < 1:
        raise UsageError.bad_value("error", error, "between 0 and 1, as 0.01")
    if table.collect(table.frame.select(rows=pl.len()))[0][0]["rows"] > whole_requests:
        facts = _facts(table, lenient=lenient)
        if facts["bad"]:
            return None, facts["failed"], facts["bad"]
        sample = None
        if facts["requests"] > whole_requests:
            sample = _sampled(table, facts, lenient=lenient, seed=seed, error=error)
        if sample is not None:
            return sample, facts["failed"], 0
    requests, failed, bad = read_requests(table, lenient=lenient)
    return None if requests is None else whole(requests), failed, bad


def _facts(table: Table, *, lenient: bool) -> dict[str, Any]:
    """Counts, sums and ends of the requests of a table, in one streaming pass."""
    import polars as pl

    from infergy.workload.faults import arrivals_missing, check_arrivals
    from infergy.workload.reading import is_bad, unlinked
    from infergy.workload.table import ARRIVAL_S

    with_output = (pl.col("output_tokens") > 0).fill_null(False)
    served = with_output & (pl.col("input_tokens") > 0)
    queries = {
        "unreadable": pl.lit(table.unreadable),
        "bad": is_bad().sum(),
        "failed": (pl.col("output_tokens") == 0).sum(),
        "without_input": with_output.sum() - served.sum(),
        "requests": served.sum(),
        **{name: pl.col(name).filter(served).sum() for name in ("input_tokens", "output_tokens")},
        **{name: (lacks & served).sum() for name, lacks in unlinked(table).items()},
    }
    if table.layout.chunk is not None:
        queries["chunks"] = pl.col("chunks").sum()
    if table.arrival is not None:
        arrival = pl.col(ARRIVAL_S).filter(served & pl.col(ARRIVAL_S).is_finite())
        queries |= {"first": arrival.min(), "last": arrival.max(), "timed": arrival.len()}
        queries["out_of_order"] = (arrival.diff() < 0).sum()
    (facts,) = table.collect(table.rows(lenient=lenient).select(**queries))[0]
    if table.arrival is not None and not lenient:
        facts["bad"] = facts["bad"] or facts["requests"] - facts["timed"]
    if facts["bad"]:
        return facts
    if facts.get("timed"):
        check_arrivals(table, facts["first"], facts["last"], facts["timed"])
        if facts["timed"] < facts["requests"]:
            raise arrivals_missing(table, facts["requests"] - facts["timed"], facts["requests"])
        facts["duration_s"] = facts["last"] - facts["first"]
    return facts


def _sampled(table: Table, facts: Mapping[str, Any], *, lenient: bool, seed: int, error: float) -> Sample | None:
    """Windows of a table of known facts; None if all of it is to be taken."""
    import numpy as np
    import polars as pl

    from infergy.workload.faults import ROW
    from infergy.workload.reading import build, collect
    from infergy.workload.table import ARRIVAL_S

    slots = divide(facts["requests"], facts.get("duration_s"))
    rows = table.rows(lenient=lenient).with_row_index(ROW, offset=1)
    rows = rows.filter(pl.col("output_tokens") > 0, pl.col("input_tokens") > 0)
    if slots.is_timed:
        slot = ((pl.col(ARRIVAL_S) - facts["first"]) / slots.size).floor().cast(pl.Int64)
        rows = rows.with_columns(slot.clip(upper_bound=slots.count - 1).alias(_SLOT))  # the last request ends the last
    else:
        rows = rows.with_row_index(_SLOT).with_columns(pl.col(_SLOT).cast(pl.Int64) // int(slots.size))
    sums = np.zeros((slots.count, 2))
    for row in table.collect(rows.group_by(_SLOT).agg(pl.col("input_tokens", "output_tokens").sum()))[0]:
        sums[row[_SLOT]] = row["input_tokens"], row["output_tokens"]
    draw = draw_slots(sums, error=error, seed=seed)
    if draw is None:
        return None
    kept = collect(table, rows.filter(pl.col(_SLOT).is_in(draw.slots.tolist())))
    groups = kept.partition_by(_SLOT, as_dict=True, maintain_order=True)
    origin_s = facts["first"] if slots.is_timed else None
    parts = [build(table, groups.get((slot,), kept.clear()), origin_s=origin_s) for slot in draw.slots.tolist()]
    return Sample(
        source=table.source.name,
        windows=slots.windows(parts, draw),
        requests=facts["requests"],
        input_tokens=facts["input_tokens"],
        output_tokens=facts["output_tokens"],
        duration_s=facts.get("duration_s"),
        relative_se=draw.relative_se,
        set_aside=SetAside(**{field.name: facts[field.name] for field in fields(SetAside) if field.name in facts}),
    )


def sample_histogram(histogram: Histogram, *, whole_requests: int = WHOLE_REQUESTS) -> Sample:
    """The requests of a histogram; above `whole_requests` each bin's share, in one window that stands for the rest."""
    requests = requests_of_histogram(histogram, at_most=whole_requests)
    bins = all_counts(histogram)
    total = sum(count.requests for count in bins)
    sample = whole(requests)
    if total <= whole_requests:
        return sample
    weight = total / len(requests)
    inputs, outputs = sum(count.input_tokens for count in bins), sum(count.output_tokens for count in bins)
    pairs = (sample.input_tokens, inputs), (sample.output_tokens, outputs)
    relative_se = max(abs(weight * drawn - true) / max(true, 1) for drawn, true in pairs)
    windows = (replace(sample.windows[0], weight=weight),)
    own = replace(sample, windows=windows, relative_se=relative_se)
    return replace(own, requests=total, input_tokens=inputs, output_tokens=outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Parts of equal length that a trace is divided into.

    Attributes:
        count: How many; the last may have fewer requests.
        size: Seconds of a slot, or its requests if not `is_timed`.
        is_timed: Whether slots divide time; else they divide the order of requests.
    """

    count: int
    size: float
    is_timed: bool

    def windows(self, parts: Sequence[Requests], draw: Draw) -> tuple[Window, ...]:
        """The requests of the slots drawn as windows, their arrivals in seconds after the start of their slot."""
        starts = [slot * self.size if self.is_timed else None for slot in draw.slots.tolist()]
        duration_s, weights = self.size if self.is_timed else None, draw.weights.tolist()
        moved = [part if at is None else part.starting_at(at) for part, at in zip(parts, starts, strict=True)]
        return tuple(
            Window(requests=part, start_s=start_s, duration_s=duration_s, weight=weight)
            for part, start_s, weight in zip(moved, starts, weights, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draw:
    """Slots drawn, ascending, the number of slots that each stands for, and the standard error that this leaves."""

    slots: Integers
    weights: Floats
    relative_se: float


def divide(requests: int, duration_s: float | None) -> Slots:
    """Slots of a trace: of time, or of its order where its duration is unknown or 0."""
    if duration_s:
        count = max(1, math.ceil(duration_s / min(max(duration_s / _SLOTS, _SHORTEST_S), _LONGEST_S)))
        count = min(count, _MOST_SLOTS)
        return Slots(count=count, size=duration_s / count, is_timed=True)
    size = -(-requests // _SLOTS)
    return Slots(count=-(-requests // size), size=size, is_timed=False)


def draw_slots(sums: Floats, *, error: float, seed: int) -> Draw | None:
    """Draw as few slots as keep the error of all columns' sums, two from each stratum of consecutive slots.

    Args:
        sums: Of each slot, not negative; shape (slots, columns).
        error: Half-width of the 90 % interval of the sum of a column, relative, that is to be met.
        seed: Of the draw.

    Returns:
        None if nearly all slots would be drawn. The relative standard error is the largest of the columns, which no
        positive combination of them exceeds.
    """
    import numpy as np

    windows = _FEWEST_WINDOWS
    while windows < _NEARLY_ALL * len(sums):
        strata = np.array_split(np.arange(len(sums)), windows // 2)
        relative_se = _relative_se([sums[stratum] for stratum in strata])
        if _NORMAL_90 * relative_se <= error:
            source = np.random.default_rng(seed)
            pairs = [np.sort(source.choice(stratum, 2, replace=False)) for stratum in strata]
            weights = np.repeat([len(stratum) / 2 for stratum in strata], 2)
            return Draw(slots=np.concatenate(pairs), weights=weights, relative_se=relative_se)
        windows = math.ceil(windows * _MORE / 2) * 2
    return None


def _relative_se(strata: Sequence[Floats]) -> float:
    """Of the sums over all strata if two slots of each are drawn; the largest of the columns."""
    variance = sum(len(s) * (len(s) - 2) / 2 * s.var(axis=0, ddof=1) for s in strata)
    totals = sum(s.sum(axis=0) for s in strata)
    return float(max(math.sqrt(v) / t if t else 0.0 for v, t in zip(variance, totals, strict=True)))
