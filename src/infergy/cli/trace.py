"""`infergy trace`: what the study's Tables 1 and 2 say of a request trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from infergy.cli.trace_options import (
    CachedColumnOption,
    FormatOption,
    InputColumnOption,
    JsonOption,
    OutputColumnOption,
    SourcesArg,
    TimeColumnOption,
    TimeUnitOption,
    columns_of,
    print_json,
    stdout_console,
)
from infergy.units import format_duration, format_number, format_percent

if TYPE_CHECKING:
    from rich.table import Table

    from infergy.workload import LengthSummary, TraceSummary

_UNKNOWN = "unknown"


def trace(
    sources: SourcesArg,
    format: FormatOption = None,  # noqa: A002
    input_column: InputColumnOption = None,
    output_column: OutputColumnOption = None,
    time_column: TimeColumnOption = None,
    cached_column: CachedColumnOption = None,
    time_unit: TimeUnitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe request traces: requests, lengths (mean ± std, median, p99, longest), arrival rate.

    Example: infergy trace azure-conv-2023 azure-code-2023
    """
    from infergy.workload import open_trace

    columns = columns_of(input_column, output_column, time_column, cached_column, time_unit)
    summaries = [open_trace(source, format=format, columns=columns).describe() for source in sources]
    if as_json:
        print_json(summaries)
        return
    _print(summaries)


def _print(summaries: Sequence[TraceSummary]) -> None:
    console = stdout_console()
    console.print(_overview(summaries))
    console.print(_lengths("Input tokens a request", summaries, [summary.input for summary in summaries]))
    console.print(_lengths("Output tokens a request", summaries, [summary.output for summary in summaries]))
    for summary in summaries:
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
