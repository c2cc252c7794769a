"""`infergy bins`: a trace as a histogram, and what rounding lengths up does to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from infergy.cli.trace_options import (
    BinsOption,
    CachedColumnOption,
    FormatOption,
    InputColumnOption,
    JsonOption,
    OutputColumnOption,
    SourcesArg,
    TimeColumnOption,
    bins_of,
    columns_of,
)
from infergy.units import format_percent

if TYPE_CHECKING:
    from infergy.workload import Histogram

BAR_WIDTH = 30


def bins(
    sources: SourcesArg,
    bins: BinsOption = "powers-of-two",
    format: FormatOption = None,  # noqa: A002
    input_column: InputColumnOption = None,
    output_column: OutputColumnOption = None,
    time_column: TimeColumnOption = None,
    cached_column: CachedColumnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the histogram of traces over bins, and real beside binned lengths (the study's Figure 7).

    Example: infergy bins azure-code-2023 --bins paper
    """
    from infergy.records.codec import to_json
    from infergy.workload import open_trace

    columns = columns_of(input_column, output_column, time_column, cached_column)
    for source in sources:
        histogram = open_trace(source, format=format, columns=columns).histogram(bins_of(bins))
        if as_json:
            typer.echo(json.dumps(to_json(histogram)))
        else:
            _print(histogram)


def _print(histogram: Histogram) -> None:
    typer.echo(
        f"{histogram.source}: {histogram.requests:,} requests in {len(histogram.counts)} {histogram.bins.name} bins"
    )
    if histogram.failed_requests:
        typer.echo(f"  {histogram.failed_requests:,} requests without output are set aside")
    if histogram.left_out is not None:
        share = histogram.left_out.requests / (histogram.left_out.requests + histogram.requests)
        typer.echo(
            f"  {histogram.left_out.requests:,} requests ({format_percent(share)}) lie past the last bin "
            "and are left out; --bins powers-of-two leaves nobody out"
        )
    _print_counts(histogram)
    for axis in ("input", "output"):
        _print_axis(histogram, axis)


def _print_counts(histogram: Histogram) -> None:
    """Requests of each bin: input edges down, output edges across."""
    counts = {(c.bin.input_tokens, c.bin.output_tokens): c.requests for c in histogram.counts}
    edges = histogram.bins.output_edges
    typer.echo("\n  requests   output ≤" + "".join(f"{edge:>8}" for edge in edges))
    for edge in histogram.bins.input_edges:
        row = [counts.get((edge, output), 0) for output in edges]
        typer.echo(f"  input ≤ {edge:>11}" + "".join(f"{count or '·':>8}" for count in row))


def _print_axis(histogram: Histogram, axis: str) -> None:
    """Tokens by edge, as they are and as the ceiling counts them."""
    real: dict[int, int] = {}
    binned: dict[int, int] = {}
    for count in histogram.counts:
        edge = getattr(count.bin, f"{axis}_tokens")
        real[edge] = real.get(edge, 0) + getattr(count, f"{axis}_tokens")
        binned[edge] = binned.get(edge, 0) + edge * count.requests
    total_real, total_binned = sum(real.values()), sum(binned.values())
    over = format_percent(total_binned / total_real - 1, signed=True) if total_real else "unknown"
    typer.echo(
        f"\n  {axis} tokens: {total_real:,} real, {total_binned:,} binned ({over})   █ real  ░ added by rounding up"
    )
    longest = max(binned.values())
    for edge in sorted(binned):
        full, whole = (round(tokens / longest * BAR_WIDTH) for tokens in (real[edge], binned[edge]))
        typer.echo(f"  ≤ {edge:>8} {'█' * full}{'░' * (whole - full):<{BAR_WIDTH - full}} {binned[edge]:>14,}")
