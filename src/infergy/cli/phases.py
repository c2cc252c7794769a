"""`infergy phases`: what prefill and decode took, cell by cell, by pair and by fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infergy.cli.trace_options import JsonOption, print_json, stdout_console
from infergy.units import count_of, format_latency, format_number, format_percent, format_si

if TYPE_CHECKING:
    from infergy.quality.phases import CellPhases, Joules, PhaseEnergy, PhaseFit, SetupPhases


def phases(
    table: Annotated[
        Path | None, typer.Argument(metavar="TABLE", help="Measurements (.jsonl) [default: the shipped table]")
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", "-e", help="Only this engine set-up of the table [default: all]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell prefill and decode apart in measured joules: by cells of one output token, and by a fit; see docs/phases.md.

    Example: infergy phases mine.jsonl --engine vllm
    """
    from infergy.quality.phases import find_phases
    from infergy.records.store import read_store, shipped_store

    path = table or shipped_store()
    report = find_phases(read_store(path).rows, file=str(path if table else path.name), label=engine)
    if as_json:
        print_json([report])
        return
    for setup in report.setups:
        _print(setup)


def _print(setup: SetupPhases) -> None:
    pretended = ", simulated" if setup.simulated else ""
    typer.echo(f"{setup.label} {setup.model} on {setup.gpu}{pretended}; {setup.weights}")
    if any(cell.pair or cell.fit for cell in setup.cells):
        _print_table(setup.cells)
    for line in _notes(setup):
        typer.echo(line)
    typer.echo("")


def _print_table(cells: Sequence[CellPhases]) -> None:
    """Joules a batch, as a line for each cell and each way, with times where the engine told them."""
    from rich import box
    from rich.table import Table

    told = any(cell.time_to_first_token_s is not None for cell in cells)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("Cell", no_wrap=True)
    grid.add_column("By", no_wrap=True)
    times = ("First token", "Each more") if told else ()
    for name in ("Prefill", "Decode", "A decode token", "Share", "Residual", *times):
        grid.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        for row in _rows(cell, with_times=told):
            grid.add_row(*row)
    stdout_console().print(grid)


def _rows(cell: CellPhases, *, with_times: bool) -> list[list[str]]:
    name = f"{cell.input_tokens}→{cell.output_tokens} × {cell.batch}"
    ways = [(way, energy) for way, energy in (("pair", cell.pair), ("fit", cell.fit)) if energy is not None]
    residual = "-" if cell.residual is None else format_percent(cell.residual, signed=True)
    rows = [_figures(way, energy, residual if way == "fit" else "-") for way, energy in ways]
    if not rows:
        rows = [["-", "-", "-", "-", "-", residual]]
    times = [_seconds(cell.time_to_first_token_s), _seconds(cell.time_per_output_token_s)] if with_times else []
    return [
        [name if not place else "", *row, *(times if not place else [""] * len(times))]
        for place, row in enumerate(rows)
    ]


def _figures(way: str, energy: PhaseEnergy, residual: str) -> list[str]:
    token = "-" if energy.decode_token is None else _joules(energy.decode_token)
    mark = "!" if energy.flags else ""
    figures = [_joules(energy.prefill), _joules(energy.decode), token, format_percent(energy.decode_share)]
    return [way + mark, *figures, residual]


def _joules(joules: Joules) -> str:
    value = format_si(joules.value_j, "J")
    if joules.low_j is None or joules.high_j is None:
        return f"{value} ± unknown"
    half_j = max(joules.high_j - joules.value_j, joules.value_j - joules.low_j)
    return f"{value} ± {format_si(half_j, 'J', 2)}"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else format_latency(seconds)


def _notes(setup: SetupPhases) -> list[str]:
    """What stands below the table: the law, its residuals, pairs that are missing, flags."""
    lines = [f"No fit: {setup.fit_missing}"] if setup.fit is None else _law(setup.fit)
    asked = [cell for cell in setup.cells if cell.output_tokens > 1]
    missing = [cell.pair_missing for cell in asked if cell.pair is None]
    if missing:
        lines.append(f"By pair: {len(asked) - len(missing)} of {count_of(len(asked), 'cell')}; {missing[0]}")
    for cell in setup.cells:
        for way, energy in (("pair", cell.pair), ("fit", cell.fit)):
            lines += [
                f"{cell.cell}, by {way}: {flag.code}: {flag.reason}; {flag.cure}"
                for flag in (energy.flags if energy else ())
            ]
    return lines


def _law(fit: PhaseFit) -> list[str]:
    terms = " + ".join(f"{one.name}·{one.formula}" if one.formula != "1" else one.name for one in fit.coefficients)
    lines = [f"Law: joules a batch = {terms}; B requests of I tokens in, O out, S = O − 1"]
    lines += [f"  {one.name} = {_joules(one.joules)} ({one.phase})" for one in fit.coefficients]
    lines += [f"  {one.name} ({one.formula}) is left out: {one.reason}" for one in fit.dropped]
    lines.append(
        f"  {count_of(fit.rows, 'cell')}; residuals: median {format_percent(fit.median_residual)}, worst "
        f"{format_percent(fit.worst_residual, signed=True)} ({fit.worst_cell}); R² {fit.r2:.4f}; error of the law "
        f"itself {format_percent(fit.law_error)}; condition number {format_number(fit.condition, 2)}"
    )
    if fit.mixed is not None:
        lines.append(f"No phases by fit: {fit.mixed}")
    return lines + [f"  {flag.code}: {flag.reason}; {flag.cure}" for flag in fit.flags]
