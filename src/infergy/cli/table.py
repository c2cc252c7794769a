"""`infergy table`: the energy table that estimates read, built from measured rows; and stores put together."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path

import typer

from infergy.cli.options import AllowSimulatedOption, JsonOption, argument, flag, make_group, option, with_options
from infergy.cli.output import print_json
from infergy.units import count_of, format_percent

table = make_group(
    "Build the table that estimates read from measured rows; import runs of others; merge stores.\n\n"
    "Example: infergy table build mine.jsonl -o mine-table.jsonl"
)


@table.command()
@with_options
def build(
    rows: list[Path] = argument("Stores of measured rows (.jsonl)", "ROWS"),
    output: Path = option("The table to write", "-o", "--output-file", default=MISSING),
    alone: bool = flag("Fit these rows only, from the datasheet's priors, without the shipped ones", "--alone"),
    allow_simulated: AllowSimulatedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit the step-cost model to measured rows: each by the steps that its engine's scheduler makes.

    Example: infergy table build mine.jsonl -o mine-table.jsonl
    """
    from infergy.cost.table import write_table
    from infergy.estimates.build import build_table
    from infergy.estimates.servers import outlier_notes, shipped_table

    built = build_table(rows, None if alone else shipped_table(), allow_simulated=allow_simulated)
    write_table(built, output)
    if built.repeated:
        typer.echo(f"{count_of(built.repeated, 'row')} known already or given twice, which counts once", err=True)
    for note in (*built.notes, *outlier_notes(built)):
        typer.echo(note, err=True)
    if as_json:
        fits = {engine: fit.rows for engine, fit in built.fits.items()}
        print_json([{"output": str(output), "entries": len(built.entries), "fits": fits}])
        return
    for engine in sorted({entry.served_by.engine for entry in built.entries}):
        fit = built.fits[engine]
        typer.echo(
            f"{engine}: {count_of(sum(fit.rows.values()), 'row')}; energy within {format_percent(fit.energy_sd)}, time "
            f"within {format_percent(fit.time_sd)} (1 sd)"
        )
    typer.echo(f"{output}: {count_of(len(built.entries), 'entry')}. Use it: infergy estimate TRACE --table {output}")


@table.command("import")
@with_options
def import_runs(
    files: list[Path] = argument("results.json of ML.ENERGY, agg_*.json of InferenceX, emissions.csv", "FILE"),
    output: Path = option("The table to write", "-o", "--output-file", default=MISSING),
    as_json: JsonOption = False,
) -> None:
    """Runs that other tools measured, as a table beside the shipped one; of those that lack a fact, which.

    Example: infergy table import results.json agg_run.json -o theirs-table.jsonl
    """
    from infergy.cost.table import write_table
    from infergy.estimates.foreign_runs import import_runs as read_runs
    from infergy.estimates.servers import outlier_notes, shipped_table

    built, done = read_runs(files, shipped_table())
    write_table(built, output)
    for note in outlier_notes(built):
        typer.echo(note, err=True)
    if as_json:
        print_json([{"output": str(output), "runs": done}])
        return
    for one in done:
        typer.echo(f"{one.file}: {one.run}" + ("" if one.missing is None else f" left out: it lacks {one.missing}"))
    typer.echo(f"{output}: {count_of(len(built.entries), 'entry')}. Use it: infergy estimate TRACE --table {output}")


@table.command()
@with_options
def merge(
    output: Path = argument("The store to write; rows that it has are kept", "OUT"),
    files: list[Path] = argument("Stores of measurements (.jsonl, .jsonl.gz)", "FILE"),
    as_json: JsonOption = False,
) -> None:
    """Put stores together: every row once, whatever their order, and as often as you like.

    Example: infergy table merge all.jsonl part-1.jsonl part-2.jsonl
    """
    from infergy.records.merge import merge as merge_stores

    merged = merge_stores(output, files)
    if as_json:
        print_json([merged])
        return
    for one in merged.files:
        torn = "; its last line is half-written and left out" if one.is_torn else ""
        typer.echo(f"{one.file}: {count_of(one.rows, 'row')}, {one.added} of them new{torn}")
    failed = f", {count_of(merged.failed, 'cell')} failed" if merged.failed else ""
    typer.echo(
        f"{merged.output}: {count_of(merged.before, 'row')} before, {merged.rows} now: "
        f"{count_of(merged.cells, 'cell')} measured{failed}"
    )
