"""`infergy study`: the shipped studies, one beside each figure or table of the paper; what they take; running one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infergy.cli.measure import (
    EngineOption,
    GpuOption,
    MaxTimeOption,
    ModelOption,
    gpu_here,
    measure_plan,
    resolve,
)
from infergy.cli.trace_options import stdout_console
from infergy.units import count_of, format_duration, format_si

if TYPE_CHECKING:
    from rich.table import Table

    from infergy.measure.studies import Study, StudySize

study = typer.Typer(
    help="The shipped studies: one beside each figure or table of arXiv 2504.17674.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ListGpuOption = Annotated[str | None, typer.Option("--gpu", "-g", help="Forecast for this GPU [default: the study's]")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Its smaller grid; the full one goes on from its store.")]


@study.command("list")
def list_studies(
    model: ModelOption = None,
    gpu: ListGpuOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table")] = False,
) -> None:
    """List the studies: figure, cells, forecast time and energy, full and quick; what is measured and what cannot be.

    Example: infergy study list --gpu a100-80gb-sxm
    """
    from infergy.hardware import canonical_name, get_gpu, get_model
    from infergy.measure.studies import StudyList, describe_study, study_names

    changes: dict[str, Any] = {}
    if gpu is not None:
        changes["gpu"] = get_gpu(gpu).name
    if model is not None:
        get_model(model)
        changes["model"] = model if model.endswith((".json", ".toml")) else canonical_name(model)
    measured = _measured()
    found = StudyList(studies=tuple(describe_study(name, changes, measured) for name in study_names()))
    if as_json:
        from infergy.records.codec import to_json

        typer.echo(json.dumps(to_json(found), indent=1, allow_nan=False))
        return
    console = stdout_console()
    console.print(_table(found.studies))
    for one in found.studies:
        if one.reason is not None:
            reason = f"needs {', '.join(one.needs)}" if one.needs else one.reason
            console.print(f"{one.name}: not runnable yet: {reason}", markup=False, soft_wrap=True)
        elif one.quick_reason is not None:
            console.print(f"{one.name}: no quick grid: {one.quick_reason}", markup=False, soft_wrap=True)
    console.print(UNMEASURED, markup=False, soft_wrap=True)
    typer.echo(
        "Measured: cells with a row in the shipped tables of that GPU. Time and energy are forecasts of the model that "
        "estimates use. Run one: infergy study run NAME --quick -o mine.jsonl",
        err=True,
    )


UNMEASURED = "Figure 7, lengths before and after binning, needs no measuring: infergy bins TRACE --bins paper"


def _measured() -> Mapping[str, frozenset[str]]:
    """Ids of the cells that have a row in a shipped table, by GPU."""
    from infergy.hardware import catalogue_name
    from infergy.records.store import read_store, shipped_rows

    cells: dict[str, frozenset[str]] = {}
    for path in shipped_rows():
        for row in read_store(path).rows:
            if row.is_ok and row.environment.gpus:
                gpu = catalogue_name(row.environment.gpus[0].name)
                cells[gpu] = cells.get(gpu, frozenset()) | {row.cell_id}
    return cells


def _table(studies: tuple[Study, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("Study", "Of the paper"):
        table.add_column(name, overflow="fold")
    for name in ("Cells", "Measured", "Time", "Energy", "Quick", "Time", "Energy"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in studies:
        measured = "-" if one.full is None else f"{one.full.measured}"
        cells, *cost = _figures(one.full)
        table.add_row(one.name, one.figure or "-", cells, measured, *cost, *_figures(one.quick))
    return table


def _figures(size: StudySize | None) -> tuple[str, str, str]:
    if size is None:
        return "-", "-", "-"
    return f"{size.cells}", format_duration(size.forecast_s), format_si(size.forecast_energy_j, "J")


@study.command("run")
def run_study(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="A shipped study, or a grid (.toml) of your own; of several, what they share is measured once",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output-file", help="The store: one JSON row a cell; resumed if it exists.")
    ] = None,
    quick: QuickOption = False,
    model: ModelOption = None,
    gpu: GpuOption = None,
    engine: EngineOption = None,
    max_time: MaxTimeOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan (with --json, as a file for a bare node); measure nothing."),
    ] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Use a simulated GPU; its rows are marked and say nothing of real ones.")
    ] = False,
    meter: Annotated[str, typer.Option("--meter", help="Who reads joules: nvml, or a plug-in.")] = "nvml",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try cells again that failed before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each finished row on stdout as it comes.")] = False,
) -> None:
    """Measure studies, as infergy measure does; interrupted, the same command resumes.

    Example: infergy study run engines precision --quick -o mine.jsonl
    """
    resolved = resolve(
        names,
        quick=quick or None,
        model=model,
        gpu=gpu if gpu or simulate else gpu_here(),
        engines=engine,
        max_time=max_time,
    )
    if not dry_run:
        from infergy.measure.studies import size_of

        size = size_of(resolved)
        typer.echo(
            f"{resolved.name}: {count_of(size.cells, 'cell')}, forecast {format_duration(size.forecast_s)} and "
            f"{format_si(size.forecast_energy_j, 'J')} on {resolved.gpu}",
            err=True,
        )
    measure_plan(
        resolved,
        output,
        dry_run=dry_run,
        simulate=simulate,
        meter=meter,
        retry_failed=retry_failed,
        as_json=as_json,
    )
