"""`infergy trace`: a request trace in figures (the study's Tables 1 and 2), and in bins (its Figure 7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from infergy.cli.options import (
    BinSelection,
    JsonOption,
    TraceFormat,
    TracesArg,
    option,
    with_options,
)
from infergy.cli.output import UNKNOWN, print_json, print_table, reading_notes
from infergy.errors import UsageError
from infergy.units import count_of, format_duration, format_number, format_percent
from infergy.workload.bins import Histogram
from infergy.workload.histograms import find_histogram
from infergy.workload.tasks import is_task

if TYPE_CHECKING:
    from rich.text import Text

    from infergy.workload import AxisCount, LengthSummary, Padding, TraceSummary

_SHADES = " ░▒▓█"
_HEAT = ("", "on grey15", "on grey30", "on dark_red", "bold on red")
_BAR_WIDTH = 40


@with_options
def trace(
    sources: TracesArg,
    reading: TraceFormat,
    bins: BinSelection,
    spark: str | None = option(
        "With bins: TRACE is a table of this Spark: sc://host:15002, or a master (local[2], spark://host:7077)"
    ),
    batch: int | None = option("Also print the padding of static batches of this size"),
    as_json: JsonOption = False,
) -> None:
    """Describe request traces: requests, lengths, arrival rate; with --bins the counts over bins of lengths.

    With --bins, --json prints a histogram that stands in for the trace.

    Example: infergy trace azure-conv-2023 azure-code-2023

    Counts over the paper's bins: infergy trace azure-conv-2023 --bins paper

    What padding wastes: infergy trace task:translation --batch 32
    """
    is_binned = bins != BinSelection()
    if is_binned or any(find_histogram(source) is not None for source in sources):
        if batch is not None:
            message = "counts over bins have no order of requests that batches could be of"
            raise UsageError.conflict({"--batch": batch, "--bins": bins.bins or "custom"}, message)
        _bins(sources, reading, bins, spark=spark, as_json=as_json)
        return
    if spark is not None:
        message = "--spark counts requests over bins: add --bins powers-of-two"
        raise UsageError(message, code="option-missing", option="--bins", needed_by=["--spark"])
    from infergy.workload import open_trace

    traces = [open_trace(source, **reading.reading(reading.requests, of_task=is_task(source))) for source in sources]
    summaries = [one.describe() for one in traces]
    if batch is not None:
        summaries = [replace(one, padding=opened.padding(batch)) for one, opened in zip(summaries, traces, strict=True)]
    if as_json:
        print_json(summaries)
    else:
        _print(summaries)


def _print(summaries: Sequence[TraceSummary]) -> None:
    heads = ("Trace", "Format", "Requests", "Without output", "Duration", "Arrivals", "Cached input")
    print_table(heads, map(_overview, summaries), title="Requests", left=2)
    _print_lengths("Input tokens per request", summaries, [summary.input for summary in summaries])
    _print_lengths("Output tokens per request", summaries, [summary.output for summary in summaries])
    padded = [(summary.source, summary.padding) for summary in summaries if summary.padding is not None]
    if padded:
        _print_padding(padded)
        typer.echo("Continuous batching (vllm) pads nothing.")
    for summary in summaries:
        for note in _remarks(summary):
            typer.echo(f"{summary.source}: {note}")
        if summary.arrival_reason:
            typer.echo(f"{summary.source}: no arrival rate: {summary.arrival_reason}", err=True)
        if summary.attribution:
            typer.echo(summary.attribution, err=True)


def _remarks(summary: TraceSummary) -> Iterator[str]:
    if summary.lengths_from is not None:
        yield summary.lengths_from
    yield from reading_notes(summary.time_unit, summary.assumed)
    if summary.unreadable_rows:
        yield _unreadable(summary.unreadable_rows)
    if summary.stream_chunks:
        chunks = count_of(summary.stream_chunks, "row")
        yield f"{chunks} that repeat the id of an answer left out: its last counts are taken"


def _overview(one: TraceSummary) -> tuple[str, ...]:
    return (
        one.source,
        one.format,
        f"{one.requests:,}",
        f"{one.failed_requests:,}",
        UNKNOWN if one.duration_s is None else format_duration(one.duration_s),
        UNKNOWN if one.arrival_rate_per_s is None else f"{format_number(one.arrival_rate_per_s)} /s",
        UNKNOWN if one.cached_share is None else format_percent(one.cached_share),
    )


def _print_padding(padded: Sequence[tuple[str, Padding]]) -> None:
    rows = []
    for source, one in padded:
        order = "of arrival" if one.by_arrival else "as in the trace"
        same = f"{one.batches:,}", f"{one.real_tokens:,}"
        rows.append((source, order, *same, f"{one.padded_tokens:,}", format_percent(one.waste)))
        rows.append(("", "by length", *same, f"{one.sorted_padded_tokens:,}", format_percent(one.sorted_waste)))
    title = f"Static batches of {padded[0][1].batch}: each prompt is padded to the longest of its batch"
    print_table(("Trace", "Order", "Batches", "Real tokens", "Padded tokens", "Padding"), rows, title=title, left=2)


def _print_lengths(title: str, summaries: Sequence[TraceSummary], lengths: Sequence[LengthSummary]) -> None:
    rows = (
        (
            summary.source,
            f"{one.mean:,.2f} ± {UNKNOWN if one.std is None else f'{one.std:,.2f}'}",
            f"{one.median:,.10g}",
            f"{one.p99:,.10g}",
            f"{one.longest:,}",
            f"{one.total:,}",
        )
        for summary, one in zip(summaries, lengths, strict=True)
    )
    print_table(("Trace", "Mean ± std", "Median", "p99", "Longest", "Total"), rows, title=title)


def _bins(
    sources: Sequence[str], reading: TraceFormat, bins: BinSelection, *, spark: str | None, as_json: bool
) -> None:
    """Print traces as counts over bins, and real lengths compared with binned ones."""
    from infergy.workload import open_requests

    grid, histograms = bins.grid(), []
    for source in sources:
        options = reading.reading(reading.requests, of_task=is_task(source))
        if spark is None:
            opened = open_requests(source, **options)
        else:
            from infergy.workload.remote import spark_frame

            opened = open_requests(spark_frame(spark, source), name=source, **options)
        if isinstance(opened, Histogram) and not bins.is_of(opened.bins):
            message = f"{source} is a histogram already, over {opened.bins.name} bins. Bin the trace it was made of"
            raise UsageError.conflict(bins.given, message)
        histograms.append(opened if isinstance(opened, Histogram) else opened.histogram(grid))
    if as_json:
        print_json([_with_sums(histogram) for histogram in histograms])
        return
    for histogram in histograms:
        _print_histogram(histogram)


def _with_sums(histogram: Histogram) -> dict[str, Any]:
    """The histogram with the sums that follow from it, for readers without this code."""
    from infergy.records.codec import to_json
    from infergy.workload.bins import HISTOGRAM_SUMS

    return {**to_json(histogram), **{name: getattr(histogram, name) for name in HISTOGRAM_SUMS}}


def _print_histogram(histogram: Histogram) -> None:
    """Rows are input edges, columns output edges; the shade grows with the share of the fullest bin."""
    typer.echo(f"{histogram.source}: requests by input (rows) and output (columns), {histogram.bins.name} bins")
    edges = histogram.bins.output_edges
    cells = {(c.bin.input_tokens, c.bin.output_tokens): c.requests for c in histogram.counts}
    most = max(cells.values(), default=0)
    rows: list[Any] = [
        (
            f"{row.edge:,}",
            *(_heat_cell(cells.get((row.edge, edge), 0), most) for edge in edges),
            _share(row.requests, histogram.requests),
        )
        for row in histogram.along_input()
    ]
    shares = (_share(one.requests, histogram.requests) for one in histogram.along_output())
    print_table(("≤ tokens", *(f"{edge:,}" for edge in edges), "share"), [*rows, None, ("share", *shares, "")], left=0)
    for axis, counts in (("Input", histogram.along_input()), ("Output", histogram.along_output())):
        typer.echo(f"{axis} tokens: real █ and binned ░ (each request as long as its bin's upper edge)")
        _print_axis(counts)
    for line in _notes(histogram):
        typer.echo(line)


def _unreadable(rows: int) -> str:
    return f"{count_of(rows, 'row')} that cannot be read left out; to allow none: --bad-rows 0"


def _heat_cell(requests: int, most: int) -> Text:
    from rich.text import Text

    if not requests:
        return Text("·", style="dim")
    # A square root keeps the small bins apart, which a linear scale would paint alike.
    level = max(1, round((requests / most) ** 0.5 * (len(_SHADES) - 1)))
    return Text(f"{_SHADES[level]} {requests:,}", style=_HEAT[level])


def _print_axis(counts: Sequence[AxisCount]) -> None:
    """One row an edge; the bars share one scale, the most binned tokens of any edge."""
    most = max((one.binned_tokens for one in counts), default=0)
    rows = (
        (
            f"{one.edge:,}",
            f"{one.requests:,}",
            "" if one.mean_tokens is None else f"{one.mean_tokens:,.1f}",
            f"{one.tokens:,}",
            f"{one.binned_tokens:,}",
            _over(one.tokens, one.binned_tokens),
            _bar(one.tokens, one.binned_tokens, most),
        )
        for one in counts
    )
    print_table(("≤ tokens", "Requests", "Real mean", "Real tokens", "Binned tokens", "Over", ""), rows, left=0)


def _bar(real: int, binned: int, most: int) -> str:
    if not most:
        return ""
    full, whole = round(real / most * _BAR_WIDTH), round(binned / most * _BAR_WIDTH)
    return "█" * full + "░" * (whole - full)


def _over(real: int, binned: int) -> str:
    """How far the ceiling over-counts, of the real tokens."""
    return format_percent(binned / real - 1, signed=True) if real else ""


def _share(part: int, whole: int) -> str:
    return format_percent(part / whole) if whole else ""


def _notes(histogram: Histogram) -> list[str]:
    """What the tables do not show: the over-count in total, and which requests are not in a bin."""
    notes = [] if histogram.lengths_from is None else [f"{histogram.source}: {histogram.lengths_from}."]
    totals = []
    for axis in ("input", "output"):
        real, binned = getattr(histogram, f"{axis}_tokens"), getattr(histogram, f"binned_{axis}_tokens")
        over = _over(real, binned)
        totals.append(f"{axis} {real:,} tokens real, {binned:,} binned" + (f" ({over})" if over else ""))
    notes.append(f"In bins: {count_of(histogram.requests, 'request')}; {'; '.join(totals)}.")
    left = histogram.left_out
    if left is None:
        notes.append("Left out: none.")
    else:
        total = histogram.requests + left.requests
        notes.append(
            f"Left out, past the last edge: {left.requests:,} of {count_of(total, 'request')} "
            f"({format_percent(left.requests / total)}) with {left.input_tokens:,} input and "
            f"{left.output_tokens:,} output tokens; the longest have {left.bin.input_tokens:,} and "
            f"{left.bin.output_tokens:,}. To leave none out: --bins powers-of-two"
        )
    if histogram.failed_requests:
        notes.append(f"Set aside: {count_of(histogram.failed_requests, 'request')} without output tokens.")
    if histogram.unreadable_rows:
        notes.append(f"Set aside: {_unreadable(histogram.unreadable_rows)}.")
    if histogram.cached_input_tokens:
        notes.append(
            f"Input is what costs prefill: {histogram.cached_input_tokens:,} tokens from a prefix cache are taken off."
        )
    return notes
