"""`infergy waterfall`: where the energy of serving a trace goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infergy.cli.estimate import WIDTH
from infergy.cli.groups import with_groups
from infergy.cli.notes import run_notes, trace_notes
from infergy.cli.server_options import MeasuredSelection, ServerSelection, TraceSelection
from infergy.cli.timeline import FORMATS, save_chart
from infergy.cli.trace_options import JsonOption, print_json
from infergy.errors import MissingError, UsageError
from infergy.units import count_of, format_number, format_percent, format_si

if TYPE_CHECKING:
    from infergy.estimates.breakdown import Breakdown, Part

COLUMNS = 36
RESIDUE = 1e-6
"""Share below which a part is what rounding leaves."""
BLOCK, GAP = "█", " "


@with_groups
def waterfall(
    source: Annotated[str, typer.Argument(metavar="TRACE", help="A shipped trace's name, or a file")],
    trace: TraceSelection,
    servers: ServerSelection,
    measured: MeasuredSelection,
    output: Annotated[
        Path | None, typer.Option("-o", "--output-file", help=f"Draw it into a file: {', '.join(FORMATS)}")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each part is")] = False,
    as_json: JsonOption = False,
) -> None:
    """Break down the energy of serving a trace: by what time is spent on, by source, and by activity.

    Example: infergy waterfall azure-conv-2023 --engine transformers -o waterfall.svg
    """
    from infergy.estimates.breakdown import break_down

    if output is not None and output.suffix not in FORMATS:
        raise UsageError.bad_value("-o", str(output), f"a name that ends in one of {', '.join(FORMATS)}")
    specs = servers.specs()
    if output is not None and len(specs) > 1:
        raise UsageError.bad_value("-o", str(output), f"one server, of which a picture is, not {len(specs)}")
    sample, table = trace.open(source), measured.load()
    found = [break_down(sample, spec, table) for spec in specs]
    if output is not None:
        save_chart(_chart(found[0]), output)
        typer.echo(f"{output}: {found[0].estimate.engine}", err=True)
    if as_json:
        print_json(found)
    elif output is None:
        for one in found:
            _print(one, explain=explain)


def _chart(found: Breakdown) -> Any:
    from infergy.report.trace_figures import draw_waterfall

    try:
        return draw_waterfall(found)
    except ImportError as error:
        raise MissingError.package("drawing", "altair", "pip install 'infergy[report]'", str(error)) from error


def _print(found: Breakdown, *, explain: bool) -> None:
    one = found.estimate
    how = "as they arrive" if one.served is not None else "all at once"
    typer.echo(
        f"{found.trace.source}: {count_of(found.trace.requests, 'request')} {how}; {one.engine}, {one.model} on "
        f"{one.gpu}: {format_si(found.energy_j, 'J')}"
    )
    typer.echo(
        f"FLOPs of the requests at the dense peak and TDP: {format_si(found.ideal_j, 'J')}; the run takes "
        f"{format_number(found.energy_j / found.ideal_j)} times that"
    )
    titles = {"by what time is spent on": found.by_time, "by source": found.by_source, "by activity": found.by_activity}
    width = max(len(part.name) for parts in titles.values() for part in parts)
    for title, parts in titles.items():
        typer.echo(f"{title}:")
        _bars(parts, found.energy_j, width)
    known = {part.name: part.meaning for parts in titles.values() for part in parts} if explain else {}
    for text in (
        *(f"{name}: {meaning}" for name, meaning in known.items()),
        *found.notes,
        *trace_notes(found.trace),
        *run_notes([one]),
    ):
        typer.echo(fill(text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False))


def _bars(parts: Sequence[Part], energy_j: float, width: int) -> None:
    begin_j = 0.0
    for part in parts:
        if part.energy_j < RESIDUE * energy_j:
            continue
        begin, end = (round(joules / energy_j * COLUMNS) for joules in (begin_j, begin_j + part.energy_j))
        # The smallest part is seen too.
        end = max(end, begin + 1)
        bar = (GAP * begin + BLOCK * (end - begin)).ljust(COLUMNS)
        share = format_percent(part.energy_j / energy_j)
        typer.echo(f"  {part.name:{width}}  {bar}  {format_si(part.energy_j, 'J'):>8}  {share:>8}")
        begin_j += part.energy_j
