"""`infergy calibrate`: the physical model's constants for this GPU, in a few minutes and without a model."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from infergy.cli.trace_options import JsonOption, print_json, stdout_console
from infergy.errors import UsageError
from infergy.units import format_duration, format_number, format_percent, format_si

if TYPE_CHECKING:
    from infergy.energy.calibration import Calibrated, Calibration
    from infergy.hardware.gpus import Gpu

DEFAULT_FILE = Path("calibration.jsonl")
SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
WIDTH = 100


def calibrate(
    output: Annotated[
        Path, typer.Option("-o", "--output-file", help="Keep the windows here; what it holds is not measured again.")
    ] = DEFAULT_FILE,
    budget: Annotated[
        str, typer.Option("--budget", help="Time for it, 90s or 3m; the most telling windows come first.")
    ] = "4m",
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", "-g", help="The GPU's datasheet: a name or a TOML file [default: by the driver's name]"),
    ] = None,
    simulate: Annotated[
        str | None, typer.Option("--simulate", metavar="GPU", help="Calibrate a simulated GPU, which says nothing.")
    ] = None,
    show: Annotated[
        Path | None, typer.Option("--show", metavar="FILE", help="Measure nothing: show what a file says.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what this GPU takes for copies, products, attention and launches, and fit the physical model to it.

    Needs torch and a GPU that counts its energy, no model. Example: infergy calibrate -o h200.jsonl --budget 4m
    """
    from infergy.energy.calibration import load_calibration

    chip = _chip(gpu)
    path = output if show is None else show
    if show is None:
        _measure(output, _seconds_of(budget), chip, simulate)
    found = load_calibration(path, chip)
    if as_json:
        print_json([found])
        return
    _print(found, path)


def _chip(gpu: str | None) -> Gpu | None:
    from infergy.hardware.gpus import get_gpu

    return None if gpu is None else get_gpu(gpu)


def _seconds_of(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([smh]?)", text.strip())
    if found is None:
        raise UsageError(f"--budget takes seconds, minutes or hours: 90s, 3m, 1h; found {text!r}")
    return float(found[1]) * SECONDS[found[2]]


def _measure(path: Path, budget_s: float, chip: Gpu | None, simulate: str | None) -> None:
    """Measure what the file lacks, told on stderr."""
    from infergy.energy.calibration import refuse_other
    from infergy.hardware.gpus import find_gpu_by_driver_name
    from infergy.measure.calibrate import calibrate as run
    from infergy.measure.stations import simulated_stations, stations_here

    single, pair = stations_here() if simulate is None else simulated_stations(simulate)
    try:
        identity = single.meter.gpus[0]
        if chip is not None:
            refuse_other(identity.name, chip)
        elif simulate is None and find_gpu_by_driver_name(identity.name) is None:
            _tell(
                f"{identity.name} is not in the catalogue: what is measured is kept; for the constants describe it "
                f'in a TOML file with title = "{identity.name}" (docs/models.md), and give it with --gpu'
            )
        _tell(f"{identity.name}, {identity.uuid}: at most {format_duration(budget_s)}, into {path}")
        for event in run(single, pair, path, budget_s=budget_s):
            place = f"{event.number:3}/{event.total} " if event.number else ""
            _tell(f"{place}{event.text}")
    finally:
        for station in (single, pair):
            if not isinstance(station, str):
                station.meter.close()


def _tell(text: str) -> None:
    typer.echo(text, err=True)


def _print(found: Calibration, path: Path) -> None:
    from rich import box
    from rich.table import Table

    console = stdout_console()
    pretended = " SIMULATED: this says nothing about real hardware" if found.simulated else ""
    days = dict.fromkeys(stamp[:10] for stamp in (found.measured_from, found.measured_to))
    typer.echo(f"{found.title} ({', '.join(found.uuids)}): {found.windows} windows, {' to '.join(days)}{pretended}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Constant", no_wrap=True)
    for name in ("Datasheet", "Calibrated", "±", "90 %", "Windows"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Unit", no_wrap=True)
    for one in found.constants:
        table.add_row(*_row(one))
    console.print(table)
    for figure in found.seen:
        typer.echo(f"{figure.name}: {format_si(figure.value, figure.unit)} ({figure.window})")
    for note in found.notes:
        typer.echo(fill(note, WIDTH, initial_indent="- ", subsequent_indent="  "))
    _tell(f"to use it: infergy estimate LOG --method datasheet --gpu {found.gpu} --model MODEL --calibration {path}")


def _row(one: Calibrated) -> list[str]:
    figures = [_figure(one, value) for value in (one.prior, one.value)]
    if not one.windows:
        return [one.name, figures[0], "as datasheet", format_percent(one.spread), "-", "0", _unit(one)]
    between = f"{_figure(one, one.low)} .. {_figure(one, one.high)}"
    return [one.name, *figures, format_percent(one.spread), between, str(one.windows), _unit(one)]


def _figure(one: Calibrated, value: float) -> str:
    return format_si(value, "s") if one.unit == "s" else format_number(value)


def _unit(one: Calibrated) -> str:
    return "" if one.unit == "s" else one.unit
