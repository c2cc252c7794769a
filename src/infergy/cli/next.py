"""`infergy next`: which cells to measure next, so that the energy of a trace is known better soonest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import typer

from infergy.cli.measure import gpu_here
from infergy.cli.options import JsonOption, TraceArg, TraceSelection, fraction, option, seconds_of, with_options
from infergy.cli.output import WIDTH, print_json, print_table, run_notes, trace_notes
from infergy.cli.server_options import MeasuredSelection, ServerSelection
from infergy.errors import UsageError
from infergy.units import count_of, format_duration, format_percent, format_si

if TYPE_CHECKING:
    from infergy.estimates.next_cells import CellChoice, NextCell, NextCells
    from infergy.estimates.servers import OpenServer
    from infergy.measure.grid import Grid
    from infergy.records import Plan
    from infergy.workload.requests import Sample

STOPPED = {
    "target_reached": "every interval is within the target",
    "budget_spent": "the budget takes no further cell",
    "nothing_helps": "no further cell would narrow an interval by much",
}


@with_options
def next_cells(
    source: TraceArg,
    trace: TraceSelection,
    servers: ServerSelection,
    measured: MeasuredSelection,
    budget: str = option("GPU time to spend: 90s, 5m, 1h", default="5m", metavar="TIME"),
    target: str = option("Enough once half the 90 % interval of the energy is within this share", default="5%"),
    output: Path | None = option("Write the plan here, to measure", "-o", "--output-file"),
    as_json: JsonOption = False,
) -> None:
    """Choose the cells whose measurement narrows the interval of a trace's energy soonest, the most useful first.

    Example: infergy next azure-code-2023 --engine vllm-fp8 --budget 5m -o next.json
    """
    from infergy.estimates.next_cells import choose_next
    from infergy.estimates.servers import open_server

    budget_s, enough = seconds_of("--budget", budget), fraction("--target", target)
    if servers.gpu is None and servers.compare is None:
        here = gpu_here()
        servers = servers if here is None else replace(servers, gpu=[here])
    specs, sample = servers.specs(), trace.open(source)
    table = measured.load()
    opened = [open_server(spec, table) for spec in specs]
    found = choose_next(
        sample,
        specs,
        table,
        budget_s=budget_s,
        target=enough,
        choices=[_measurable(sample, server) for server in opened],
    )
    if output is not None and found.cells:
        _plan_of(found, opened).save(output)
        typer.echo(
            f"{output}: {count_of(len(found.cells), 'cell')}. Next: infergy measure {output} -o mine.jsonl", err=True
        )
    if as_json:
        print_json([found])
    else:
        _print(found)


def _measurable(sample: Sample, server: OpenServer) -> list[CellChoice]:
    """The cells that can be planned."""
    from infergy.estimates.next_cells import cell_choices
    from infergy.measure.grid import make_plan
    from infergy.records.engine_setup import WEIGHT_ONLY

    if server.setup.dtype in WEIGHT_ONLY:
        reason = f"weights in {server.setup.dtype} are estimated, not measured; give --precision bfloat16 or fp8"
        message = f"{server.setup.label}: {reason}"
        raise UsageError(message, code="not-supported", server=server.setup.label, reason=reason)
    kept, reason = [], ""
    for choice in cell_choices(sample, server):
        try:
            make_plan(_grid(server, choice))
        except UsageError as error:
            reason = str(error)
            continue
        kept.append(choice)
    if not kept:
        message = f"{server.setup.label}: no cell like this trace can be measured: {reason}"
        raise UsageError(message, code="not-supported", server=server.setup.label, reason=reason)
    return kept


def _grid(server: OpenServer, cell: CellChoice | NextCell) -> Grid:
    """A grid of one cell, in the order in which it is asked for."""
    from infergy.estimates.servers import loaded_setup
    from infergy.measure.grid import parse_grid

    setup = loaded_setup(server.setup)
    engine: dict[str, Any] = {
        name: getattr(setup, name) for name in ("engine", "dtype", "cuda_graphs", "tensor_parallel", "compiled")
    }
    block = {
        "input_tokens": [cell.input_tokens],
        "output_tokens": [cell.output_tokens],
        "batch": [cell.batch],
    }
    content = {
        "name": "next",
        "gpu": server.spec.gpu,
        "model": server.spec.model,
        "engines": [engine],
        "cells": [block],
        "options": {"shuffle": False, "anchors": 0},
    }
    return parse_grid(content, "infergy next")


def _plan_of(found: NextCells, servers: Sequence[OpenServer]) -> Plan:
    """The chosen cells, each engine's most useful first."""
    from infergy.measure.grid import make_plan

    return make_plan(*(_grid(servers[cell.server], cell) for cell in found.cells))


def _print(found: NextCells) -> None:
    typer.echo(f"{found.trace.source}: {count_of(found.trace.requests, 'request')}")
    for server in found.servers:
        one = server.estimate
        after = f"with the cells below ± {format_percent(server.half_width_after)}, " if found.cells else ""
        typer.echo(
            f"{one.engine}, {one.model} on {one.gpu}: {format_si(server.energy_j, 'J')} ± "
            f"{format_percent(server.half_width)} (90 %), by {count_of(server.measured, 'measured row')} of it; "
            f"{after}at best ± {format_percent(server.half_width_least)}"
        )
    size = "No cell to measure"
    if found.cells:
        rows = (
            (
                cell.engine,
                f"{cell.input_tokens:,}",
                f"{cell.output_tokens:,}",
                f"{cell.batch}",
                format_duration(cell.batch_s),
                format_duration(cell.cost_s),
                format_percent(cell.half_width),
            )
            for cell in found.cells
        )
        print_table(("Engine", "Input", "Output", "Batch", "Batch takes", "Measuring", "Then ±"), rows)
        size = f"{count_of(len(found.cells), 'cell')}, about {format_duration(found.cost_s)}, loading included"
    advice = "write the cells above with -o next.json, then infergy measure next.json -o mine.jsonl"
    advice = advice if found.cells else "give a larger --budget"
    notes = (*trace_notes(found.trace), *run_notes([server.estimate for server in found.servers], advice))
    for line in (f"{size}; {STOPPED[found.stopped]}", *notes):
        typer.echo(fill(line, WIDTH))
