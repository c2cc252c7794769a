"""`infergy replay`: what consecutive requests of a trace take, served as they are: foretold, and then measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infergy.cli.datasheet import read_calibration
from infergy.cli.old_estimate import WIDTH, CalibrationOption, ModelOption, SimulatedOption, TableOption
from infergy.cli.measure import MeterOption, gpu_here, measure_plan
from infergy.cli.trace_options import JsonOption, print_json
from infergy.energy.options import DEFAULT_GPU, DEFAULT_MODEL, MAX_SEQUENCES
from infergy.errors import UsageError
from infergy.records.codec import to_json
from infergy.units import format_duration, format_number, format_percent, format_si

if TYPE_CHECKING:
    from infergy.energy.replay import Replay
    from infergy.records import Measurement, Plan

REQUESTS = 1000


def replay(
    source: Annotated[str, typer.Argument(metavar="TRACE", help="A shipped trace's name, or a file")],
    requests: Annotated[int, typer.Option("--requests", min=2, help="How many, one after the other")] = REQUESTS,
    first: Annotated[int, typer.Option("--first", min=0, help="How many of the trace come before them")] = 0,
    engine: Annotated[str, typer.Option("--engine", "-e", help="vllm, vllm-fp8, vllm-eager, vllm-tp2 …")] = "vllm",
    max_seqs: Annotated[
        int, typer.Option("--max-seqs", min=1, help="Requests served at once, at most (vLLM's max_num_seqs)")
    ] = MAX_SEQUENCES,
    model: ModelOption = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", "-g", help="GPU to plan for [default: the one here, else h200]")
    ] = None,
    table: TableOption = None,
    calibration: CalibrationOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output-file", help="Measure it into this store, then tell both")
    ] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Write the plan here, to measure it elsewhere")] = None,
    rows: Annotated[Path | None, typer.Option("--rows", help="A store that holds it measured: tell both")] = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="With -o: serve it on the simulated GPU")] = False,
    meter: MeterOption = "nvml",
    allow_simulated: SimulatedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Foretell the joules of consecutive requests served all at once, mixed as they are; measure them with -o.

    Example: infergy replay azure-conv-2023 --requests 1000 --engine vllm
    """
    from infergy.energy.load import load_table
    from infergy.energy.replay import held_against, predict_replay
    from infergy.energy.values import server_for
    from infergy.hardware import get_gpu
    from infergy.records.store import read_store

    if engine.partition("-")[0] == "transformers":
        raise UsageError(
            f"--engine {engine}: what is foretold is continuous batching, and transformers pads static batches; to "
            "measure these: infergy study run tasks-mixed -o mine.jsonl"
        )
    chip = get_gpu(gpu or gpu_here() or DEFAULT_GPU).name
    resolved = _plan(source, engine=f"{engine}-s{max_seqs}", model=model, gpu=chip, requests=requests, first=first)
    (cell,) = resolved.cells
    setup = cell.cell.setup
    known = None if calibration is None else read_calibration(calibration, chip, allow_simulated)
    server = server_for(setup, chip, known)
    if server is None:
        raise UsageError(f"{setup.label}: the physical model knows only transformers and vllm, and no speculation")
    found = predict_replay(
        source,
        cell.lengths,
        first=first,
        setup=setup,
        server=server,
        gpu=chip,
        table=load_table(table or (), with_shipped=True, allow_simulated=allow_simulated),
    )
    if plan is not None:
        resolved.save(plan)
        typer.echo(f"{plan}: there: python -m infergy.measure {plan} -o replay.jsonl", err=True)
    if output is not None:
        # What was foretold is told before it can be compared.
        typer.echo(_foretold(found), err=True)
        measure_plan(resolved, output, dry_run=False, simulate=simulate, meter=meter, retry_failed=False, as_json=False)
        rows = output
    if rows is not None:
        row = _row_of(read_store(rows).rows, resolved, rows)
        found = replace(found, measured=held_against(found, row))
    if as_json:
        print_json([found])
    else:
        _print(found, "" if known is None else " and a calibration")


def _plan(source: str, *, engine: str, model: str | None, gpu: str, requests: int, first: int) -> Plan:
    from infergy.measure.grid import make_plan, parse_grid
    from infergy.records import EngineSetup

    name = f"replay:{source}{f'+{first}' if first else ''}"
    block: dict[str, Any] = {"input_tokens": [1], "output_tokens": [1], "batch": [requests], "arrivals": [name]}
    grid = {
        "name": f"replay-{Path(source).stem}",
        "gpu": gpu,
        "model": model or DEFAULT_MODEL,
        "engines": [to_json(EngineSetup.parse_label(engine))],
        "cells": [block],
    }
    return make_plan(parse_grid(grid, "infergy replay"))


def _row_of(rows: Sequence[Measurement], resolved: Plan, path: Path) -> Measurement:
    wanted = resolved.cells[0].cell.id
    found = [row for row in rows if row.cell_id == wanted and row.is_ok]
    if not found:
        raise UsageError(f"{path}: no measured row of {resolved.cells[0].cell}. Measure it: infergy replay … -o {path}")
    return found[-1]


def _foretold(found: Replay) -> str:
    return (
        f"foretold: {format_si(found.energy_j, 'J')}, 90 % {format_si(found.low_j, 'J')} .. "
        f"{format_si(found.high_j, 'J')}, in {format_duration(found.duration_s)}"
    )


def _print(found: Replay, calibrated: str) -> None:
    trace, measured = found.trace, found.measured
    typer.echo(
        f"{trace.source}: {trace.requests:,} requests from {found.first:,} on, {trace.input_tokens:,} input and "
        f"{trace.output_tokens:,} output tokens, all at once"
    )
    typer.echo(
        f"{found.model} on {found.gpu}, {found.engine}: {format_number(found.mean_batch)} run together on average"
    )
    typer.echo(f"  {_foretold(found)}")
    if measured is None:
        basis = f"{found.measured_cells} measured cells" if found.measured_cells else "the datasheet alone"
        typer.echo(
            fill(f"By the physical model given {basis}{calibrated} (docs/replay.md); not measured. To: -o FILE", WIDTH)
        )
        return
    certain = (
        ""
        if measured.low_j is None or measured.high_j is None
        else (f", 95 % {format_si(measured.low_j, 'J')} .. {format_si(measured.high_j, 'J')}")
    )
    where = " (simulated)" if measured.simulated else f" on {', '.join(measured.gpu_uuids)}"
    typer.echo(
        f"  measured: {format_si(measured.energy_j, 'J')}{certain}, in {format_duration(measured.duration_s)}{where}"
    )
    held = "inside" if measured.is_inside else "outside of"
    typer.echo(f"  foretold over measured: {format_percent(measured.off, signed=True)}, {held} the interval")
