"""`infergy calibrate`: the step-cost model's constants for this GPU, in a few minutes and without a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from infergy.cli.options import JsonOption, option, with_options
from infergy.cli.output import print_json, print_notes, print_table
from infergy.units import count_of, format_number, format_percent, format_si

if TYPE_CHECKING:
    from infergy.catalog.gpus import Gpu
    from infergy.cost.calibration import Calibration
    from infergy.cost.calibration_fit import Calibrated

DEFAULT_FILE = Path("calibration.jsonl")
BUDGET = "4m"


@with_options
def calibrate(
    output: Path = option(
        "Keep the windows here; what it holds is not measured again.", "-o", "--output-file", default=DEFAULT_FILE
    ),
    budget: str = option("Time for it, 90s or 3m; the most informative windows come first.", default=BUDGET),
    gpu: str | None = option(
        "The GPU's datasheet: a name or a TOML file [default: by the driver's name]", "--gpu", "-g"
    ),
    simulate: str | None = option("Calibrate a simulated GPU, which says nothing.", metavar="GPU"),
    show: str | None = option("Measure nothing: show what a file or a shipped one says.", metavar="NAME|FILE"),
    as_json: JsonOption = False,
) -> None:
    """Measure what this GPU takes for copies, products, attention and launches, and fit the step-cost model to it.

    Needs torch and a GPU that counts its energy, no model. Example: infergy calibrate -o h200.jsonl --budget 4m
    """
    from infergy.cost.calibration import load_calibration
    from infergy.measure.calibrate import parse_budget, run_here

    known = _gpu_named(gpu)
    path: Path | str = output if show is None else show
    if show is None:
        _reject_invalid(known, simulate)
        run_here(output, budget_s=parse_budget(budget), simulate=simulate, report=_report)
    found = load_calibration(path, known)
    if as_json:
        print_json([found])
        return
    _print(found, path)


def _gpu_named(gpu: str | None) -> Gpu | None:
    from infergy.catalog.gpus import get_gpu

    return None if gpu is None else get_gpu(gpu)


def _reject_invalid(known: Gpu | None, simulate: str | None) -> None:
    """Reject before measuring what the fit would reject after it.

    Raises:
        UsageError: The simulated GPU is not the GPU `known`, or there is none of that name.
    """
    from infergy.catalog.gpus import get_gpu
    from infergy.cost.calibration import reject_other

    if known is not None and simulate is not None:
        reject_other(get_gpu(simulate).title, known)


def _report(text: str) -> None:
    typer.echo(text, err=True)


def _print(found: Calibration, path: Path | str) -> None:
    simulated = " SIMULATED: this says nothing about real hardware" if found.simulated else ""
    days = dict.fromkeys(stamp[:10] for stamp in (found.measured_from, found.measured_to))
    typer.echo(
        f"{found.title} ({', '.join(found.uuids)}): {count_of(found.windows, 'window')}, {' to '.join(days)}{simulated}"
    )
    heads = ("Constant", "Datasheet", "Calibrated", "±", "90 %", "Windows", "")
    print_table(heads, (_row(one) for one in found.constants))
    print_notes(found.notes)
    _report(f"to use it: infergy estimate LOG --gpu {found.gpu} --model MODEL --calibration {path}")


def _row(one: Calibrated) -> list[str]:
    figures = [_figure(one, value) for value in (one.prior, one.value)]
    if not one.windows:
        return [one.name, figures[0], "as datasheet", format_percent(one.sd), "-", "0", _unit(one)]
    between = f"{_figure(one, one.low)} .. {_figure(one, one.high)}"
    return [one.name, *figures, format_percent(one.sd), between, str(one.windows), _unit(one)]


def _figure(one: Calibrated, value: float) -> str:
    return format_si(value, one.unit) if one.unit in ("s", "J") else format_number(value)


def _unit(one: Calibrated) -> str:
    return "" if one.unit in ("s", "J") else one.unit
