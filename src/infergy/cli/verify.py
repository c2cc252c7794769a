"""`infergy verify`: how this GPU compares with a table, from three of its cells measured again."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from infergy.cli.trace_options import JsonOption, print_json
from infergy.units import format_percent

DEFAULT_ENGINE = "vllm"


def verify(
    table: Annotated[
        Path | None, typer.Argument(metavar="TABLE", help="Measurements (.jsonl) [default: the shipped table]")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", "-e", help="Engine set-up of the table")] = DEFAULT_ENGINE,
    output: Annotated[
        Path | None, typer.Option("-o", "--output-file", help="Keep the rows here [default: verify-TIME.jsonl]")
    ] = None,
    meter: Annotated[str, typer.Option("--meter", help="nvml, or a plug-in's name")] = "nvml",
    simulate: Annotated[bool, typer.Option("--simulate", help="Use a simulated GPU, which says nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure three cells of a table on this GPU, and tell how its joules compare.

    Example: infergy verify mine.jsonl --engine vllm
    """
    from infergy.cli.compare import print_comparison
    from infergy.cli.measure import run_sweep
    from infergy.energy.compare import compare
    from infergy.energy.load import shipped_tables
    from infergy.measure.anchors import plan_anchors
    from infergy.records.store import read_store

    rows = read_store(table or shipped_tables()[0]).rows
    plan = plan_anchors(rows, engine)
    path = output or Path(f"verify-{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl")
    run_sweep(plan, path, simulate=simulate, meter=meter, retry_failed=True, as_json=False)
    wanted = {planned.cell.id for planned in plan.cells}
    found = compare([row for row in rows if row.cell_id in wanted], read_store(path).rows)
    if as_json:
        print_json([found])
        return
    print_comparison(found)
    if found.overall.is_significant:
        change = format_percent(found.overall.value - 1, signed=True)
        typer.echo(f"This GPU takes {change} joules against the table; its rows are in {path}")
    else:
        typer.echo(f"This GPU and the table do not differ significantly; its rows are in {path}")
