"""`infergy bins`: the histogram that an estimate is made of, and what binning does to lengths (Figure 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infergy.cli.trace_options import (
    BinsOption,
    CachedColumnOption,
    FormatOption,
    InputColumnOption,
    InputEdgesOption,
    JsonOption,
    OutputColumnOption,
    OutputEdgesOption,
    RequestsOption,
    SeedOption,
    SourceArg,
    TokenizerOption,
    bins_of,
    columns_of,
    print_json,
    stdout_console,
    task_of,
)
from infergy.units import count_of, format_percent
from infergy.workload.bins import HISTOGRAM_SUMS, POWERS_OF_TWO, Histogram

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from infergy.workload import AxisCount

SparkOption = Annotated[
    str | None,
    typer.Option(
        "--spark", help="SOURCE is a table of this Spark: sc://host:15002, or a master (local[2], spark://host:7077)"
    ),
]
_SHADES = " ░▒▓█"
_HEAT = ("", "on grey15", "on grey30", "on dark_red", "bold on red")
_BAR_WIDTH = 40


def bins(
    source: SourceArg,
    bins: BinsOption = POWERS_OF_TWO,
    input_edges: InputEdgesOption = None,
    output_edges: OutputEdgesOption = None,
    format: FormatOption = None,  # noqa: A002
    input_column: InputColumnOption = None,
    output_column: OutputColumnOption = None,
    cached_column: CachedColumnOption = None,
    requests: RequestsOption = None,
    seed: SeedOption = None,
    tokenizer: TokenizerOption = None,
    spark: SparkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a trace as counts over bins, and real lengths against binned ones; as --json it stands in for the trace.

    Example: infergy bins azure-conv-2023 --bins paper
    """
    from infergy.workload import open_requests

    grid = bins_of(bins, input_edges, output_edges)
    columns = columns_of(input_column, output_column, None, cached_column)
    task = task_of(requests, seed, tokenizer)
    held = source if spark is None else _in_spark(spark, source)
    opened = open_requests(held, format=format, columns=columns, task=task, name=None if spark is None else source)
    histogram = opened if isinstance(opened, Histogram) else opened.histogram(grid)
    if as_json:
        print_json([_with_sums(histogram)])
        return
    console = stdout_console()
    console.print(
        f"{histogram.source}: requests by input (rows) and output (columns), {histogram.bins.name} bins", soft_wrap=True
    )
    console.print(_heat_table(histogram))
    for axis, counts in (("Input", histogram.along_input()), ("Output", histogram.along_output())):
        console.print(f"{axis} tokens: real █ against binned ░ (each request as long as its bin's upper edge)")
        console.print(_axis_table(counts))
    for line in _notes(histogram):
        console.print(line, soft_wrap=True)


def _in_spark(where: str, table: str) -> Any:
    from infergy.workload.remote import spark_frame

    return spark_frame(where, table)


def _with_sums(histogram: Histogram) -> dict[str, Any]:
    """The histogram with the sums that follow from it, for readers without this code."""
    from infergy.records.codec import to_json

    return {**to_json(histogram), **{name: getattr(histogram, name) for name in HISTOGRAM_SUMS}}


def _heat_table(histogram: Histogram) -> Table:
    """Rows are input edges, columns output edges; the shade grows with the share of the fullest bin."""
    from rich import box
    from rich.table import Table

    grid = histogram.bins
    cells = {(c.bin.input_tokens, c.bin.output_tokens): c.requests for c in histogram.counts}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("≤ tokens", justify="right", no_wrap=True)
    for edge in grid.output_edges:
        table.add_column(f"{edge:,}", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    most = max(cells.values(), default=0)
    for row in histogram.along_input():
        shown = [_heat_cell(cells.get((row.edge, edge), 0), most) for edge in grid.output_edges]
        table.add_row(f"{row.edge:,}", *shown, _share(row.requests, histogram.requests))
    table.add_section()
    table.add_row("share", *(_share(one.requests, histogram.requests) for one in histogram.along_output()), "")
    return table


def _heat_cell(requests: int, most: int) -> Text:
    from rich.text import Text

    if not requests:
        return Text("·", style="dim")
    # A square root keeps the small bins apart, which a linear scale would paint alike.
    level = max(1, round((requests / most) ** 0.5 * (len(_SHADES) - 1)))
    return Text(f"{_SHADES[level]} {requests:,}", style=_HEAT[level])


def _axis_table(counts: Sequence[AxisCount]) -> Table:
    """One row an edge; the bars share one scale, the most binned tokens of any edge."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("≤ tokens", "Requests", "Real mean", "Real tokens", "Binned tokens", "Over"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    most = max((one.binned_tokens for one in counts), default=0)
    for one in counts:
        table.add_row(
            f"{one.edge:,}",
            f"{one.requests:,}",
            "" if one.mean_tokens is None else f"{one.mean_tokens:,.1f}",
            f"{one.tokens:,}",
            f"{one.binned_tokens:,}",
            _over(one.tokens, one.binned_tokens),
            _bar(one.tokens, one.binned_tokens, most),
        )
    return table


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
    """What the tables do not show: the over-count in total, and who is not in a bin."""
    given = _totals("input", histogram.input_tokens, histogram.binned_input_tokens)
    output = _totals("output", histogram.output_tokens, histogram.binned_output_tokens)
    notes = [] if histogram.lengths_from is None else [f"{histogram.source}: {histogram.lengths_from}."]
    notes += [f"In bins: {count_of(histogram.requests, 'request')}; {given}; {output}."]
    left = histogram.left_out
    if left is None:
        notes.append("Left out: nobody.")
    else:
        everyone = histogram.requests + left.requests
        notes.append(
            f"Left out, past the last edge: {left.requests:,} of {count_of(everyone, 'request')} "
            f"({format_percent(left.requests / everyone)}) with {left.input_tokens:,} input and "
            f"{left.output_tokens:,} output tokens; the longest have {left.bin.input_tokens:,} and "
            f"{left.bin.output_tokens:,}. To leave nobody out: --bins powers-of-two"
        )
    if histogram.failed_requests:
        notes.append(f"Set aside: {count_of(histogram.failed_requests, 'request')} without output tokens.")
    if histogram.cached_input_tokens:
        notes.append(
            f"Input is what costs prefill: {histogram.cached_input_tokens:,} tokens from a prefix cache are taken off."
        )
    return notes


def _totals(axis: str, real: int, binned: int) -> str:
    over = _over(real, binned)
    return f"{axis} {real:,} tokens real, {binned:,} binned" + (f" ({over})" if over else "")
