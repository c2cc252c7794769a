"""`infergy breakdown`: where the energy of serving a trace goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from infergy.cli.options import ExplainOption, JsonOption, TraceArg, TraceSelection, option, with_options
from infergy.cli.output import (
    DRAW_HELP,
    check_picture,
    print_json,
    print_notes,
    run_notes,
    save_picture,
    title_of,
    trace_notes,
)
from infergy.cli.server_options import MeasuredSelection, ServerSelection
from infergy.errors import UsageError
from infergy.units import format_number, format_percent, format_si

if TYPE_CHECKING:
    from infergy.estimates.breakdown import Breakdown, Part

COLUMNS = 36
RESIDUE = 1e-6
"""Share below which a part is what rounding leaves."""
BLOCK, GAP = "█", " "


@with_options
def breakdown(
    source: TraceArg,
    trace: TraceSelection,
    servers: ServerSelection,
    measured: MeasuredSelection,
    output: Path | None = option(DRAW_HELP, "-o", "--output-file"),
    explain: ExplainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Break down the energy of serving a trace: by what time is spent on, by source, and by activity.

    Example: infergy breakdown azure-conv-2023 --engine transformers -o breakdown.svg
    """
    from infergy.estimates.breakdown import break_down

    check_picture(output)
    specs = servers.specs()
    if output is not None and len(specs) > 1:
        raise UsageError.bad_value("-o", str(output), f"one server to draw, not {len(specs)}")
    sample, table = trace.open(source), measured.load()
    found = [break_down(sample, spec, table) for spec in specs]
    if output is not None:
        save_picture(lambda: _draw(found[0]), output)
        typer.echo(f"{output}: {found[0].estimate.engine}", err=True)
    if as_json:
        print_json(found)
    elif output is None:
        for one in found:
            _print(one, explain=explain)


def _draw(found: Breakdown) -> Any:
    from infergy.report.trace_figures import draw_waterfall

    return draw_waterfall(found)


def _print(found: Breakdown, *, explain: bool) -> None:
    one = found.estimate
    typer.echo(
        f"{title_of(found.trace, one)}; {one.engine}, {one.model} on {one.gpu}: {format_si(found.energy_j, 'J')}"
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
    if explain:
        known = {part.name: part.meaning for parts in titles.values() for part in parts}
        print_notes(f"{name}: {meaning}" for name, meaning in known.items())
    print_notes((*found.notes, *trace_notes(found.trace), *run_notes([one])))


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
