"""`infergy verify`: how this GPU compares with a table, from a few of its cells measured again; and a table for it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infergy.cli.measure import gpu_here
from infergy.cli.trace_options import JsonOption, print_json
from infergy.errors import UsageError
from infergy.units import count_of, format_percent

if TYPE_CHECKING:
    from infergy.records import Measurement

DEFAULT_ENGINE = "vllm"
SUGGESTED = "rescaled.jsonl"


def verify(
    table: Annotated[
        Path | None, typer.Argument(metavar="TABLE", help="Measurements (.jsonl) [default: what ships of this GPU]")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", "-e", help="Engine set-up of the table")] = DEFAULT_ENGINE,
    output: Annotated[
        Path | None, typer.Option("-o", "--output-file", help="Keep the rows here [default: verify-TIME.jsonl]")
    ] = None,
    meter: Annotated[str, typer.Option("--meter", help="nvml, or a plug-in's name")] = "nvml",
    simulate: Annotated[bool, typer.Option("--simulate", help="Use a simulated GPU, which says nothing.")] = False,
    rows: Annotated[
        Path | None, typer.Option("--rows", help="Rows that verify has measured before; measures nothing.")
    ] = None,
    rescale: Annotated[
        Path | None,
        typer.Option("--rescale", help="Write a table for this GPU: joules times the ratio, each row marked."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With --rescale: also if there is no significant difference.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure three cells of a table on this GPU, and tell how its joules compare; --rescale makes a table for it.

    Example: infergy verify mine.jsonl --engine vllm --rescale here.jsonl
    """
    from infergy.cli.compare import print_comparison
    from infergy.quality.compare import compare
    from infergy.records.store import read_store, shipped_store

    if rescale is not None and rescale.exists():
        message = f"{rescale}: there is such a file already. Name a new one: --rescale OTHER.jsonl"
        raise UsageError(message, code="file-exists", path=str(rescale))
    if rows is not None and output is not None:
        raise UsageError.conflict(
            {"--rows": rows, "-o": output}, "the rows are measured already, so there is nothing to write: leave out -o"
        )
    stored = read_store(table or shipped_store(_gpu(rows, simulate=simulate))).rows
    path = rows or _measure(stored, engine, output, meter=meter, simulate=simulate)
    measured = read_store(path).rows
    wanted = {row.cell_id for row in measured}
    found = compare([row for row in stored if row.cell_id in wanted], measured)
    if as_json:
        print_json([found])
    else:
        print_comparison(found)
        if found.overall.is_significant:
            change = format_percent(found.overall.value - 1, signed=True)
            typer.echo(f"This GPU takes {change} joules against the table; its rows are in {path}")
        else:
            typer.echo(f"This GPU and the table do not differ significantly; its rows are in {path}")
    if rescale is not None:
        _rescale(stored, measured, rescale, force=force, as_json=as_json)
    elif found.overall.is_significant and not as_json and _is_of_one_chip(stored, measured):
        words = ["infergy", "verify", *([str(table)] if table else []), "--rows", str(path), "--rescale", SUGGESTED]
        typer.echo(f"To make a table for this GPU, its joules scaled and marked: {shlex.join(words)}")


def _gpu(rows: Path | None, *, simulate: bool) -> str | None:
    """Which GPU is verified: that of rows measured before, else that at hand; None if nobody tells."""
    from infergy.hardware import catalogue_name
    from infergy.records.store import read_store

    if rows is None:
        return None if simulate else gpu_here()
    names = [gpu.name for row in read_store(rows).rows for gpu in row.environment.gpus]
    return catalogue_name(names[0]) if names else None


def _is_of_one_chip(stored: Sequence[Measurement], measured: Sequence[Measurement]) -> bool:
    """Whether the table's rows of the set-ups measured are of one chip, or one group: else no factor holds."""
    setups = {row.cell.setup for row in measured}
    return len({tuple(gpu.uuid for gpu in row.environment.gpus) for row in stored if row.cell.setup in setups}) == 1


def _measure(stored: Sequence[Measurement], engine: str, output: Path | None, *, meter: str, simulate: bool) -> Path:
    """Measure the anchors; returns where their rows are."""
    from infergy.cli.progress import run_sweep
    from infergy.measure.anchors import plan_anchors

    path = output or Path(f"verify-{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl")
    run_sweep(plan_anchors(stored, engine), path, simulate=simulate, meter=meter, retry_failed=True, as_json=False)
    return path


def _rescale(
    stored: Sequence[Measurement], measured: Sequence[Measurement], path: Path, *, force: bool, as_json: bool
) -> None:
    """Write the rescaled table, and say what is in it and how to use it."""
    from infergy.quality.rescale import rescale
    from infergy.records.store import create_store

    made = rescale(stored, measured, force=force)
    create_store(path, made.rows)
    counts = {setup: sum(row.cell.setup == setup for row in made.rows) for setup, _ in made.factors}
    for setup, mark in made.factors:
        typer.echo(f"{path}: {count_of(counts[setup], 'row')} of {setup.label} {setup.model} {mark}", err=as_json)
    if made.left_out:
        typer.echo(
            f"{count_of(made.left_out, 'row')} of other set-ups are left out: verify each with --engine", err=as_json
        )
    simulated = " --allow-simulated" if any(row.simulated for row in made.rows) else ""
    typer.echo(f"To estimate with it: infergy estimate TRACE --table {shlex.quote(str(path))}{simulated}", err=as_json)
