"""`infergy trace`: what a request log holds."""

from __future__ import annotations

import json

import typer

from infergy.cli.trace_options import (
    CachedColumnOption,
    FormatOption,
    InputColumnOption,
    JsonOption,
    OutputColumnOption,
    SourcesArg,
    TimeColumnOption,
    columns_of,
)
from infergy.units import format_duration, format_number, format_percent


def trace(
    sources: SourcesArg,
    format: FormatOption = None,  # noqa: A002
    input_column: InputColumnOption = None,
    output_column: OutputColumnOption = None,
    time_column: TimeColumnOption = None,
    cached_column: CachedColumnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe request traces: counts, lengths (mean ± std, median, p99) and arrival rate.

    Example: infergy trace azure-conv-2023 azure-code-2023
    """
    from infergy.records.codec import to_json
    from infergy.workload import open_trace

    columns = columns_of(input_column, output_column, time_column, cached_column)
    for source in sources:
        opened = open_trace(source, format=format, columns=columns)
        summary = opened.describe()
        if as_json:
            typer.echo(json.dumps(to_json(summary)))
            continue
        failed = f", {summary.failed_requests:,} without output set aside" if summary.failed_requests else ""
        typer.echo(f"{summary.source} ({summary.format}): {summary.requests:,} requests{failed}")
        if summary.duration_s is None or summary.arrival_rate is None:
            typer.echo(f"  arrivals: unknown, {summary.duration_reason}")
        else:
            rate = format_number(summary.arrival_rate)
            typer.echo(f"  arrivals: {rate} requests/s over {format_duration(summary.duration_s)}")
        typer.echo(f"  {'tokens':7} {'mean ± std':>22} {'median':>8} {'p99':>8} {'longest':>8} {'total':>15}")
        for name, axis in (("input", summary.input), ("output", summary.output)):
            spread = f"{axis.mean:,.2f} ± {axis.std:,.2f}"
            typer.echo(
                f"  {name:7} {spread:>22} {axis.median:8,.0f} {axis.p99:8,.0f} {axis.longest:8,} {axis.total:15,}"
            )
        if summary.cached_input_tokens:
            share = summary.cached_input_tokens / (summary.cached_input_tokens + summary.input.total)
            typer.echo(
                f"  {format_percent(share)} of input tokens came from a prefix cache and are not in these figures"
            )
        if opened.attribution:
            typer.echo(f"  {opened.attribution}")
