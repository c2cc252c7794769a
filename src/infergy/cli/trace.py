"""`infergy trace`: what the study's Tables 1 and 2 say of a request trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from infergy.cli.trace_options import (
    CachedColumnOption,
    FormatOption,
    InputColumnOption,
    JsonOption,
    OutputColumnOption,
    RequestsOption,
    SeedOption,
    SourcesArg,
    TimeColumnOption,
    TimeUnitOption,
    TokenizerOption,
    columns_of,
    print_json,
    stdout_console,
    task_of,
)
from infergy.units import format_duration, format_number, format_percent

if TYPE_CHECKING:
    from rich.table import Table

    from infergy.workload import LengthSummary, Padding, TraceSummary

_UNKNOWN = "unknown"

BatchOption = Annotated[
    int | None, typer.Option("--batch", help="Tell what static batches of so many prompts pad, too")
]


def trace(
    sources: SourcesArg,
    format: FormatOption = None,  # noqa: A002
    input_column: InputColumnOption = None,
    output_column: OutputColumnOption = None,
    time_column: TimeColumnOption = None,
    cached_column: CachedColumnOption = None,
    time_unit: TimeUnitOption = None,
    batch: BatchOption = None,
    requests: RequestsOption = None,
    seed: SeedOption = None,
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe request traces: requests, lengths (mean ± std, median, p99, longest), arrival rate.

    Example: infergy trace azure-conv-2023 azure-code-2023

    What padding wastes: infergy trace task:translation --batch 32
    """
    from infergy.workload import open_trace

    columns = columns_of(input_column, output_column, time_column, cached_column, time_unit)
    task = task_of(requests, seed, tokenizer)
    traces = [open_trace(source, format=format, columns=columns, task=task) for source in sources]
    summaries = [one.describe() for one in traces]
    if batch is not None:
        summaries = [replace(told, padding=one.padding(batch)) for told, one in zip(summaries, traces, strict=True)]
    if as_json:
        print_json(summaries)
        return
    _print(summaries)


def _print(summaries: Sequence[TraceSummary]) -> None:
    console = stdout_console()
    console.print(_overview(summaries))
    console.print(_lengths("Input tokens a request", summaries, [summary.input for summary in summaries]))
    console.print(_lengths("Output tokens a request", summaries, [summary.output for summary in summaries]))
    padded = [(summary.source, summary.padding) for summary in summaries if summary.padding is not None]
    if padded:
        console.print(_padding(padded))
        console.print("Continuous batching (vllm) pads nothing.")
    for summary in summaries:
        if summary.lengths_from is not None:
            console.print(f"{summary.source}: {summary.lengths_from}", markup=False, soft_wrap=True)
        if summary.arrival_reason:
            typer.echo(f"{summary.source}: no arrival rate: {summary.arrival_reason}", err=True)
        if summary.attribution:
            typer.echo(summary.attribution, err=True)


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("Trace", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _overview(summaries: Sequence[TraceSummary]) -> Table:
    table = _table("Requests", "Format", "Requests", "Without output", "Duration", "Arrivals", "Cached input")
    for one in summaries:
        table.add_row(
            one.source,
            one.format,
            f"{one.requests:,}",
            f"{one.failed_requests:,}",
            _UNKNOWN if one.duration_s is None else format_duration(one.duration_s),
            _UNKNOWN if one.arrival_rate_per_s is None else f"{format_number(one.arrival_rate_per_s)} /s",
            _UNKNOWN if one.cached_share is None else format_percent(one.cached_share),
        )
    return table


def _padding(padded: Sequence[tuple[str, Padding]]) -> Table:
    title = f"Static batches of {padded[0][1].batch}: each prompt is padded to the longest of its batch"
    table = _table(title, "Order", "Batches", "Real tokens", "Padded tokens", "Padding")
    for source, one in padded:
        order = "of arrival" if one.by_arrival else "as it comes"
        same = f"{one.batches:,}", f"{one.real_tokens:,}"
        table.add_row(source, order, *same, f"{one.padded_tokens:,}", format_percent(one.waste))
        table.add_row("", "by length", *same, f"{one.sorted_padded_tokens:,}", format_percent(one.sorted_waste))
    return table


def _lengths(title: str, summaries: Sequence[TraceSummary], lengths: Sequence[LengthSummary]) -> Table:
    table = _table(title, "Mean ± std", "Median", "p99", "Longest", "Total")
    for summary, one in zip(summaries, lengths, strict=True):
        table.add_row(
            summary.source,
            f"{one.mean:,.2f} ± {_UNKNOWN if one.std is None else f'{one.std:,.2f}'}",
            f"{one.median:,.10g}",
            f"{one.p99:,.10g}",
            f"{one.longest:,}",
            f"{one.total:,}",
        )
    return table
