"""`infergy compare`: the joules of two stores, cell by cell, with intervals; a gate for continuous integration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infergy.cli.trace_options import JsonOption, print_json, stdout_console
from infergy.units import count_of, format_percent, format_si

if TYPE_CHECKING:
    from infergy.quality.compare import Comparison, Ratio

EXIT_WORSE = 5


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Measurements to compare with (.jsonl)")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Measurements of the same cells (.jsonl)")],
    fail_if_worse: Annotated[
        str | None,
        typer.Option(
            "--fail-if-worse", help="Exit with 5 if B takes more joules than A by over this (3%), significantly"
        ),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="With --fail-if-worse: judge each cell, not their mean")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the joules of two files of measurements, cell by cell, each with its 95 % interval.

    Example: infergy compare before.jsonl after.jsonl --fail-if-worse 3%
    """
    from infergy.cli.measure import fraction
    from infergy.quality.compare import compare as run_compare
    from infergy.records.store import read_store

    limit = None if fail_if_worse is None else 1 + fraction("--fail-if-worse", fail_if_worse)
    found = run_compare(read_store(a).rows, read_store(b).rows)
    if as_json:
        print_json([found])
    else:
        print_comparison(found)
    if limit is None:
        return
    judged = [cell.ratio for cell in found.cells] if each else [found.overall]
    unknown = [ratio for ratio in judged if ratio.low is None and ratio.value > limit]
    if unknown:
        typer.echo(
            f"not judged: {len(unknown)} over {format_percent(limit - 1)} whose interval is unknown; measure them with "
            "more windows: --max-time 120",
            err=True,
        )
    worse = [ratio for ratio in judged if ratio.is_significant and ratio.value > limit]
    if worse:
        highest = max(ratio.value for ratio in worse)
        typer.echo(
            f"worse: {format_percent(highest - 1, signed=True)} joules, over {format_percent(limit - 1)}", err=True
        )
        raise typer.Exit(EXIT_WORSE)


def print_comparison(found: Comparison) -> None:
    """A table of all compared cells and their mean, and what else to know."""
    from rich import box
    from rich.table import Table

    models = {cell.model for cell in found.cells}
    # One model is told once, not in each line.
    common = models.pop() if len(models) == 1 else None
    title = "Joules a request" if common is None else f"Joules a request, {common}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Cell", no_wrap=True)
    for name in ("A", "B", "B against A", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for cell in found.cells:
        joules = (format_si(cell.a_j, "J"), format_si(cell.b_j, "J"))
        name = cell.cell if common is None else cell.cell.replace(f" {common} ", " ")
        table.add_row(name, *joules, *_ratio(cell.ratio), verdict(cell.ratio))
    table.add_section()
    table.add_row(
        f"mean of {count_of(len(found.cells), 'cell')}", "", "", *_ratio(found.overall), verdict(found.overall)
    )
    stdout_console().print(table)
    for name, cells in (("A", found.only_a), ("B", found.only_b)):
        if cells:
            typer.echo(f"Only in {name}: {count_of(len(cells), 'cell')}, such as {cells[0]}")
    if found.same:
        typer.echo(
            f"Left out: {count_of(len(found.same), 'cell')}, such as {found.same[0]}: both hold the very same row, "
            "which tells nothing"
        )
    for difference in found.differences:
        typer.echo(f"Different: {difference}")


def verdict(ratio: Ratio) -> str:
    """What may be said of a ratio."""
    if ratio.low is None or ratio.high is None:
        return "spread unknown"
    if not ratio.is_significant:
        return "no significant difference"
    return "B takes more" if ratio.value > 1 else "B takes less"


def _ratio(ratio: Ratio) -> tuple[str, str]:
    value = format_percent(ratio.value - 1, signed=True)
    if ratio.low is None or ratio.high is None:
        return value, "unknown"
    return value, f"{format_percent(ratio.low - 1, signed=True)} .. {format_percent(ratio.high - 1, signed=True)}"
