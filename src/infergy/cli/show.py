"""`infergy show` and `infergy report`: power over time, prefill and decode apart; figures and claims in one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from infergy.cli.options import (
    AllowSimulatedOption,
    JsonOption,
    TraceSelection,
    argument,
    make_group,
    option,
    with_options,
)
from infergy.cli.output import DRAW_HELP, NONE, check_picture, print_json, print_table, save_picture
from infergy.errors import MissingError, UsageError
from infergy.units import count_of, format_latency, format_number, format_percent, format_si

if TYPE_CHECKING:
    from infergy.quality.phases import CellPhases, Joules, PhaseEnergy, PhaseFit, SetupPhases
    from infergy.records import Measurement

PAPER = "paper"
DEFAULT_FOLDER = Path("infergy-report")

show = make_group(
    "Show measured rows: power over time, or prefill and decode apart.\n\nExample: infergy show timeline mine.jsonl"
)


@show.command()
@with_options
def timeline(
    file: Path = argument("A store of measurements (.jsonl)", "ROWS"),
    cell: str | None = option("Start of a cell's id, or a part of its name [default: the first]"),
    window: int = option("Number of the window, from 1 on", default=1),
    output: Path | None = option(DRAW_HELP, "-o", "--output-file"),
    as_json: JsonOption = False,
) -> None:
    """Show the power of a cell over time, prefill and decode apart, and the mean power by the counter.

    Example: infergy show timeline mine.jsonl --cell "512→64 × 32" -o cell.svg
    """
    from infergy.records.store import read_store

    check_picture(output)
    row = _choose(read_store(file).rows, cell, file)
    if output is not None:
        save_picture(lambda: _draw(row, window), output)
        typer.echo(f"{output}: {row.cell}, window {window} of {len(row.seen_windows)}", err=True)
    if as_json:
        from infergy.report.power_chart import picture

        print_json([picture(row, window)])
    elif output is None:
        from infergy.report.power_chart import draw_text

        typer.echo(draw_text(row, window))


def _choose(rows: Sequence[Measurement], cell: str | None, file: Path) -> Measurement:
    """The first measured row of a cell; of any cell, one with a power timeline if there is one."""
    measured = [row for row in rows if row.windows]
    if cell is None:
        chosen = sorted(measured, key=lambda row: not row.timeline)
    else:
        chosen = [row for row in measured if row.key.startswith(cell) or cell in str(row.cell)]
    if not chosen:
        names = "; ".join(f"{row.key} {row.cell}" for row in measured[:5]) or "none"
        message = f"{file} has no measured cell {cell or ''!r}; there are {len(measured)}: {names} …"
        raise UsageError(message, code="no-rows", path=str(file), cell=cell)
    return chosen[0]


def _draw(row: Measurement, window: int) -> Any:
    from infergy.report.power_chart import draw_chart

    return draw_chart(row, window)


@show.command()
@with_options
def phases(
    rows: Path | None = argument("Measurements (.jsonl) [default: the shipped table]", "ROWS", default=None),
    engine: str | None = option("This engine config only [default: all]", "--engine", "-e"),
    as_json: JsonOption = False,
) -> None:
    """Show the energy of prefill and decode apart: by cells of one output token, and by a fit; see docs/phases.md.

    Example: infergy show phases mine.jsonl --engine vllm
    """
    from infergy.quality.phases import find_phases
    from infergy.records.store import read_store, shipped_store

    path = rows or shipped_store()
    report = find_phases(read_store(path).rows, file=str(path if rows else path.name), label=engine)
    if as_json:
        print_json([report])
        return
    for setup in report.setups:
        _print(setup)


def _print(setup: SetupPhases) -> None:
    simulated = ", simulated" if setup.simulated else ""
    typer.echo(f"{setup.label} {setup.model} on {setup.gpu}{simulated}; {setup.weights}")
    if any(cell.pair or cell.fit for cell in setup.cells):
        _print_cells(setup.cells)
    for line in _notes(setup):
        typer.echo(line)
    typer.echo("")


def _print_cells(cells: Sequence[CellPhases]) -> None:
    """Energy per batch, a row for each cell and each way, with times where the engine reports them."""
    with_times = any(cell.time_to_first_token_s is not None for cell in cells)
    times = ("First token", "Each more") if with_times else ()
    heads = ("Cell", "By", "Prefill", "Decode", "A decode token", "Share", "Residual", *times)
    print_table(heads, (row for cell in cells for row in _rows(cell, with_times=with_times)), left=2)


def _rows(cell: CellPhases, *, with_times: bool) -> list[list[str]]:
    name = f"{cell.input_tokens}→{cell.output_tokens} × {cell.batch}"
    ways = [(way, energy) for way, energy in (("pair", cell.pair), ("fit", cell.fit)) if energy is not None]
    residual = NONE if cell.residual is None else format_percent(cell.residual, signed=True)
    rows = [_figures(way, energy, residual if way == "fit" else NONE) for way, energy in ways]
    if not rows:
        rows = [[NONE, NONE, NONE, NONE, NONE, residual]]
    times = [_seconds(cell.time_to_first_token_s), _seconds(cell.time_per_output_token_s)] if with_times else []
    return [
        [name if not place else "", *row, *(times if not place else [""] * len(times))]
        for place, row in enumerate(rows)
    ]


def _figures(way: str, energy: PhaseEnergy, residual: str) -> list[str]:
    token = NONE if energy.decode_token is None else _joules(energy.decode_token)
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
    return NONE if seconds is None else format_latency(seconds)


def _notes(setup: SetupPhases) -> list[str]:
    """The lines below the table: the regression, its residuals, missing pairs, flags."""
    lines = [f"No fit: {setup.fit_missing}"] if setup.fit is None else _law(setup.fit)
    asked = [cell for cell in setup.cells if cell.output_tokens > 1]
    missing = [cell.pair_missing for cell in asked if cell.pair is None]
    if missing:
        lines.append(f"By pair: {len(asked) - len(missing)} of {count_of(len(asked), 'cell')}; {missing[0]}")
    for cell in setup.cells:
        for way, energy in (("pair", cell.pair), ("fit", cell.fit)):
            lines += [
                f"{cell.cell}, by {way}: {flag.code}: {flag.reason}; {flag.fix}"
                for flag in (energy.flags if energy else ())
            ]
    return lines


def _law(fit: PhaseFit) -> list[str]:
    terms = " + ".join(f"{one.name}·{one.formula}" if one.formula != "1" else one.name for one in fit.coefficients)
    lines = [f"Regression: J per batch = {terms}; B requests of I tokens in, O out, S = O − 1"]
    lines += [f"  {one.name} = {_joules(one.joules)} ({one.phase})" for one in fit.coefficients]
    lines += [f"  {one.name} ({one.formula}) is left out: {one.reason}" for one in fit.dropped]
    lines.append(
        f"  {count_of(fit.rows, 'cell')}; residuals: median {format_percent(fit.median_residual)}, worst "
        f"{format_percent(fit.worst_residual, signed=True)} ({fit.worst_cell}); R² {fit.r2:.4f}; "
        f"error of the regression itself {format_percent(fit.law_error)}; "
        f"condition number {format_number(fit.condition, 2)}"
    )
    if fit.mixed is not None:
        lines.append(f"No phases by fit: {fit.mixed}")
    return lines + [f"  {flag.code}: {flag.reason}; {flag.fix}" for flag in fit.flags]


@with_options
def report(
    sources: list[str] = argument("paper for all that ships, or stores of measurements (.jsonl)", "SOURCE"),
    *,
    trace: TraceSelection,
    output: Path = option("Where to write", "-o", "--output-folder", default=DEFAULT_FOLDER),
    traces: list[str] | None = option("Estimate this trace from the stores; repeat for more", "--trace"),
    mixed: str | None = option(
        "Rows of environments that must not be mixed in one figure: split into series, or refuse "
        "[default: refuse; paper: split]"
    ),
    model: str | None = option("Of the estimated traces [default: the one that was measured]", "--model", "-m"),
    gpu: str | None = option("Of the estimated traces [default: the one that was measured]", "--gpu", "-g"),
    allow_simulated: AllowSimulatedOption = False,
) -> None:
    """Write one page that needs no network, the same as Markdown, and each figure as PNG and SVG.

    Example: infergy report paper -o infergy-report
    """
    if PAPER in sources and len(sources) > 1:
        message = "paper stands for all that ships, alone: infergy report paper, or infergy report FILE …"
        raise UsageError(message, code="bad-usage")
    try:
        from infergy.measure.studies import study_cells
        from infergy.report.page import build_report, write_report

        built = build_report(
            [] if sources == [PAPER] else [Path(source) for source in sources],
            traces=[trace.open(source) for source in traces or ()],
            mixed=mixed,
            model=model,
            gpu=gpu,
            allow_simulated=allow_simulated,
            planned=study_cells if sources == [PAPER] else None,
        )
        paths = write_report(built, output)
    except ImportError as error:
        raise MissingError.package(
            "drawing", "altair and vl-convert", "pip install 'infergy[report]'", str(error)
        ) from error
    for path in paths:
        typer.echo(str(path))
    if built.missing:
        typer.echo(f"not measured yet: {', '.join(study.name for study in built.missing)}", err=True)
