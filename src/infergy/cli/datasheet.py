"""`infergy estimate --method datasheet`: a trace on GPUs that nobody measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import typer

from infergy.cli.trace_options import print_json, stdout_console
from infergy.errors import UsageError
from infergy.units import format_duration, format_percent, format_si

if TYPE_CHECKING:
    from infergy.energy.calibration import Calibration
    from infergy.energy.datasheet import DatasheetEstimate
    from infergy.energy.table import EnergyTable
    from infergy.workload import Trace
    from infergy.workload.bins import Bins, Histogram

WIDTH = 100


def refuse_with_datasheet(options: Mapping[str, object]) -> None:
    """Refuse options that ask for measurements.

    Raises:
        UsageError: One of them was given.
    """
    for name, value in options.items():
        if value:
            raise UsageError(f"{name} asks for measurements, --method datasheet uses none. Leave one of them out")


def print_from_datasheet(
    traces: Sequence[Trace | Histogram],
    *,
    model: str,
    gpu: str,
    gpus: int,
    precision: str,
    bins: str | Bins | None,
    max_batch_s: float,
    as_json: bool,
    calibration: str | None = None,
    allow_simulated: bool = False,
) -> None:
    """Estimate and print each trace, with the constants of a calibration where one is given.

    Raises:
        UsageError: The calibration is of another GPU, or of a simulated one that was not asked for.
    """
    from infergy.energy.datasheet import estimate_from_datasheet

    found_here = None if calibration is None else read_calibration(calibration, gpu, allow_simulated)
    found = [
        estimate_from_datasheet(
            trace,
            model=model,
            gpu=gpu,
            gpus=gpus,
            precision=precision,
            bins=bins,
            max_batch_s=max_batch_s,
            calibration=found_here,
        )
        for trace in traces
    ]
    if as_json:
        print_json(found)
        return
    for one in found:
        _print(one)


def is_measured(table: EnergyTable, model: str | None, gpu: str) -> bool:
    """Whether there are rows of this model, None for any, on this GPU."""
    from infergy.hardware import catalogue_name

    models = {found.lower() for found in table.models(catalogue_name(gpu))}
    return bool(models) and (model is None or model.lower() in models)


def read_calibration(name: str, gpu: str, allow_simulated: bool) -> Calibration:
    """The constants of a shipped calibration or a file, of the kind of GPU that is asked for.

    Raises:
        UsageError: None ships by that name, or they are of another GPU, or of a simulated one that was not asked for.
        DataError: The file is missing, foreign or damaged.
    """
    from infergy.energy.calibration import load_calibration
    from infergy.hardware.gpus import get_gpu

    found = load_calibration(name, get_gpu(gpu))
    if found.simulated and not allow_simulated:
        raise UsageError(
            f"--calibration {name} is of a simulated GPU, which says nothing about real ones. "
            "To see it work: --allow-simulated"
        )
    return found


def _how(found: DatasheetEstimate) -> str:
    if "CALIBRATED" in found.basis:
        return "by the GPU's calibration: NO MODEL WAS MEASURED"
    return "by datasheet: NOTHING OF THIS WAS MEASURED"


def _print(found: DatasheetEstimate) -> None:
    from rich import box
    from rich.table import Table

    console = stdout_console()
    trace = found.trace
    many = "one" if found.gpus == 1 else str(found.gpus)
    console.print(
        f"{trace.source}: {trace.requests:,} requests, {trace.input_tokens:,} input and "
        f"{trace.output_tokens:,} output tokens\n"
        f"{found.model} in {found.precision} on {many} {found.gpu}, {_how(found)}",
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    rows = (
        ("Energy", format_si(found.energy_j, "J")),
        ("  low .. high, 90 %", f"{format_si(found.low_j, 'J')} .. {format_si(found.high_j, 'J')}"),
        ("Energy a request", format_si(found.energy_per_request_j, "J")),
        ("Energy an output token", format_si(found.energy_per_output_token_j, "J")),
        ("Time, one batch after the other", format_duration(found.duration_s)),
        (
            "Mean power",
            f"{format_si(found.power_w, 'W')}, {format_percent(found.power_w / found.limit_w)} of the limit",
        ),
        ("Batches of up to", str(found.largest_batch)),
    )
    for row in rows:
        table.add_row(*row)
    console.print(table)
    typer.echo(fill(found.basis, min(console.width, WIDTH)))
