"""`infergy doctor`: what this machine can measure, and what it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from infergy.cli.trace_options import JsonOption, print_json
from infergy.errors import InfergyError, MissingError
from infergy.units import format_bytes, format_si

if TYPE_CHECKING:
    from infergy.measure.doctor import Machine
    from infergy.meters import Meter


def doctor(
    meter: Annotated[str, typer.Option("--with-meter", help="nvml, or a plug-in's name")] = "nvml",
    simulate: Annotated[bool, typer.Option("--simulate", help="Look at a simulated GPU.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell what this machine can measure: GPUs, energy counter, its period, cost of a read, versions, what is missing.

    Example: infergy doctor
    """
    from infergy.measure.doctor import examine

    opened, reason = _open(meter, simulate=simulate)
    found = examine(opened, reason)
    if opened is not None:
        opened.close()
    if as_json:
        print_json([found])
    else:
        _print(found)
    if not found.can_measure:
        raise typer.Exit(MissingError.exit_code)


def _open(name: str, *, simulate: bool) -> tuple[Meter | None, str | None]:
    from infergy.meters import open_meter

    if simulate:
        from infergy.meters.simulated import SteadyMeter

        return SteadyMeter(), None
    try:
        return open_meter(name, None), None
    except InfergyError as error:
        return None, str(error)


def _print(found: Machine) -> None:
    lines = [("infergy", f"{found.infergy}, Python {found.python}, {found.platform}")]
    lines += [("versions", ", ".join(f"{name} {version}" for name, version in found.packages.items()) or "none")]
    lines += [("meters", ", ".join(found.meters))]
    if found.meter is not None:
        under = ", ".join(
            f"{name} {value}" for name, value in (("driver", found.driver), ("CUDA", found.cuda)) if value
        )
        lines.append(("meter", f"{found.meter}, joules of the {found.scope}{', ' + under if under else ''}"))
    for gpu in found.gpus:
        one = gpu.identity
        memory = "" if one.memory_bytes is None else f", {format_bytes(one.memory_bytes)}"
        limit = "" if one.power_limit_w is None else f", limit {one.power_limit_w:g} W"
        lines.append(("GPU", f"{one.uuid}: {one.name} ({gpu.catalogue or 'not in the catalogue'}){memory}{limit}"))
        if gpu.silent:
            lines.append(("", f"the driver does not tell {', '.join(gpu.silent)}"))
    if found.counter_period_s is not None:
        lines.append(("counter", f"ticks every {format_si(found.counter_period_s, 's')}"))
    if found.read_median_s is not None and found.read_worst_s is not None:
        worst = format_si(found.read_worst_s, "s", 2)
        lines.append(("a read", f"takes {format_si(found.read_median_s, 's', 2)} (median), {worst} at worst"))
    lines.append(("CUDA_VISIBLE_DEVICES", found.visible_devices or "not set"))
    lines += [("note", note) for note in found.notes]
    lines += [("missing", what) for what in found.missing]
    width = max(len(head) for head, _ in lines)
    for head, text in lines:
        typer.echo(f"{head:{width}}  {text}")
    typer.echo("This machine can measure." if found.can_measure else "This machine cannot measure.")
