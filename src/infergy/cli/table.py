"""`infergy table`: the energy table that estimates read, built from measured rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infergy.cli.trace_options import JsonOption, print_json
from infergy.units import count_of, format_percent

table = typer.Typer(no_args_is_help=True, help="Build the table that estimates read from measured rows.")


@table.command()
def build(
    rows: Annotated[list[Path], typer.Argument(metavar="ROWS", help="Stores of measured rows (.jsonl)")],
    output: Annotated[Path, typer.Option("-o", "--output-file", help="The table to write")],
    alone: Annotated[
        bool, typer.Option("--alone", help="From the datasheet's priors, without what the shipped rows showed")
    ] = False,
    allow_simulated: Annotated[
        bool, typer.Option("--allow-simulated", help="Use rows of a simulated GPU; they say nothing about real ones")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fit the step-cost model to measured rows: each by the steps that its engine's scheduler makes.

    Example: infergy table build mine.jsonl -o mine-table.jsonl
    """
    from infergy.cost.table import write_table
    from infergy.estimates.build import build_table
    from infergy.estimates.servers import shipped_table

    found = build_table(rows, None if alone else shipped_table(), allow_simulated=allow_simulated)
    entries = found.entries
    write_table(found, output)
    if found.repeated:
        typer.echo(f"{count_of(found.repeated, 'row')} known already or given twice, which counts once", err=True)
    if as_json:
        print_json(
            [{"output": str(output), "entries": len(entries), "fits": {k: f.rows for k, f in found.fits.items()}}]
        )
        return
    engines = sorted({entry.served_by.engine for entry in entries})
    for engine in engines:
        fit = found.fits[engine]
        typer.echo(
            f"{engine}: {count_of(sum(fit.rows.values()), 'row')}; energy within {format_percent(fit.energy_sd)}, time "
            f"within {format_percent(fit.time_sd)} (1 sd)"
        )
    typer.echo(f"{output}: {count_of(len(entries), 'entry')}. Use it: infergy estimate TRACE --table {output}")
