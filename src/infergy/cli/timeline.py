"""`infergy timeline`: a cell's power over time, as a picture or as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infergy.cli.trace_options import JsonOption, print_json
from infergy.errors import MissingError, UsageError

if TYPE_CHECKING:
    from infergy.records import Measurement

FORMATS = (".svg", ".png", ".html")


def timeline(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A store of measurements (.jsonl)")],
    cell: Annotated[
        str | None, typer.Option("--cell", help="Begin of a cell's id, or a part of its name [default: the first]")
    ] = None,
    window: Annotated[int, typer.Option("--window", help="Which of the windows that it saw, from 1 on")] = 1,
    output: Annotated[
        Path | None, typer.Option("-o", "--output-file", help=f"Draw it into a file: {', '.join(FORMATS)}")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the power of a cell over time, prefill and decode apart, beside the mean power by the counter.

    Example: infergy timeline mine.jsonl --cell "512→64 × 32" -o cell.svg
    """
    from infergy.records.store import read_store

    if output is not None and output.suffix not in FORMATS:
        raise UsageError.bad_value("-o", str(output), f"a name that ends in one of {', '.join(FORMATS)}")
    row = _choose(read_store(file).rows, cell, file)
    if output is not None:
        save_chart(_chart(row, window), output)
        typer.echo(f"{output}: {row.cell}, window {window} of {len(row.seen_windows)}", err=True)
    if as_json:
        from infergy.report.power_chart import picture

        print_json([picture(row, window)])
    elif output is None:
        from infergy.report.power_chart import draw_text

        typer.echo(draw_text(row, window))


def _choose(rows: tuple[Measurement, ...], cell: str | None, file: Path) -> Measurement:
    measured = [row for row in rows if row.windows]
    if cell is None:
        chosen = [row for row in measured if row.timeline] or measured
    else:
        chosen = [row for row in measured if row.key.startswith(cell) or cell in str(row.cell)]
    if not chosen:
        names = "; ".join(f"{row.key} {row.cell}" for row in measured[:5]) or "none"
        message = f"{file} has no measured cell {cell or ''!r}; there are {len(measured)}: {names} …"
        raise UsageError(message, code="no-rows", path=str(file), cell=cell)
    return chosen[0]


def _chart(row: Measurement, window: int) -> Any:
    from infergy.report.power_chart import draw_chart

    try:
        return draw_chart(row, window)
    except ImportError as error:
        raise MissingError.package("drawing", "altair", "pip install 'infergy[report]'", str(error)) from error


def save_chart(chart: Any, path: Path) -> None:
    """Write an altair chart in the format of the file's name.

    Raises:
        MissingError: The extra ``report`` is not installed.
        UsageError: The file cannot be written.
    """
    try:
        # A page brings its scripts with it: it opens without a network.
        if path.suffix == ".html":
            chart.save(str(path), inline=True)
        else:
            chart.save(str(path), scale_factor=2)
    except ImportError as error:
        raise MissingError.package(
            "drawing", "vl-convert-python", "pip install 'infergy[report]'", str(error)
        ) from error
    except OSError as error:
        raise UsageError.not_writable(path, error) from error
