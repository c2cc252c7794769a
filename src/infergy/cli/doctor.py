"""`infergy doctor`: what can be measured on this machine, how well, and what to type for what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from infergy.cli.options import JsonOption, SimulateOption, flag, option, with_options
from infergy.cli.output import UNKNOWN, print_json
from infergy.errors import MissingError, UsageError
from infergy.units import format_bytes, format_duration, format_number, format_percent, format_si

if TYPE_CHECKING:
    from infergy.measure.doctor import Diagnosis, GpuFound, MeterFound
    from infergy.records.behaviour import FieldBehaviour, MeterBehaviour

EXIT_MISSING = 3


@with_options
def doctor(
    meter: bool = flag("Switch a load on the first GPU on and off; report how its meter follows", "--meter"),
    output: Path | None = option("With --meter: write the result to this JSON file", "-o", "--output-file"),
    simulate: SimulateOption = False,
    explain: bool = flag("Also print UUIDs, and what each GPU answers", "--explain"),
    as_json: JsonOption = False,
) -> None:
    """Report what can be measured on this machine, how well, and what is missing; exit with 3 if nothing can be.

    Example: infergy doctor --meter -o meter.json
    """
    if output is not None:
        _check(output, meter=meter)
    found = _simulated(meter) if simulate else _real(meter)
    if output is not None and found.behaviour is not None:
        found.behaviour.save(output)
    if as_json:
        print_json([found])
    else:
        _print(found, explain=explain)
    if not found.can_measure or (meter and found.behaviour is None):
        raise typer.Exit(EXIT_MISSING)


def _check(output: Path, *, meter: bool) -> None:
    """Reject before the GPU is loaded what would fail after it."""
    if not meter:
        message = f"-o {output} keeps the result of --meter: infergy doctor --meter -o {output}"
        raise UsageError(message, code="option-missing", option="--meter", needed_by=["-o"])
    from infergy.records.behaviour import MeterBehaviour

    MeterBehaviour.check_output(output)


def _simulated(with_behaviour: bool) -> Diagnosis:
    from infergy.measure.doctor import SIMULATED_FULL_W, diagnose_simulated, simulated_gpu
    from infergy.measure.loads import SimulatedLoad
    from infergy.measure.square_wave import measure_behaviour
    from infergy.meters.simulated import SimulatedMeter

    gpu = simulated_gpu()
    meter = SimulatedMeter(gpu)
    found = diagnose_simulated(meter)
    if not with_behaviour:
        return found
    return replace(found, behaviour=measure_behaviour(meter, SimulatedLoad(gpu, SIMULATED_FULL_W)))


def _real(with_behaviour: bool) -> Diagnosis:
    from infergy.measure.doctor import diagnose

    found = diagnose()
    nvml = next(meter for meter in found.meters if meter.name == "nvml")
    if not with_behaviour:
        return found
    if not nvml.is_usable:
        typer.echo(f"--meter needs the meter nvml: {nvml.reason}", err=True)
        return found
    return replace(found, behaviour=_behaviour())


def _behaviour() -> MeterBehaviour:
    from infergy.measure.loads import TorchLoad
    from infergy.measure.square_wave import Wave, measure_behaviour
    from infergy.meters.nvml import NvmlMeter

    meter = NvmlMeter.open(1)
    try:
        load: TorchLoad | None = TorchLoad(meter.gpus[0].uuid)
    except MissingError as error:
        typer.echo(f"without a load: {error}", err=True)
        load = None
    if load is not None:
        typer.echo(f"{meter.gpus[0].name}: about {format_duration(Wave().duration_s)} of load, on and off", err=True)
    try:
        return measure_behaviour(meter, load)
    finally:
        meter.close()


def _print(found: Diagnosis, *, explain: bool) -> None:
    for line in (*_machine(found), "Meters"):
        typer.echo(line)
    for outcome, group in groupby(found.meters, key=_outcome):
        typer.echo(f"  {', '.join(one.name for one in group)}: {outcome}")
    typer.echo("GPUs" if found.gpus else "GPUs: none reported by NVML")
    for gpu in found.gpus:
        _print_gpu(gpu, explain=explain)
    for line in _surroundings(found):
        typer.echo(line)
    if found.behaviour is not None:
        _print_behaviour(found.behaviour, explain=explain)


def _machine(found: Diagnosis) -> Iterator[str]:
    if found.can_measure:
        usable = ", ".join(meter.name for meter in found.meters if meter.is_usable)
        yield f"Energy can be measured here, with {usable}."
    else:
        yield "Nothing can be measured here. Try the simulated GPU: infergy doctor --simulate --meter"
    yield f"infergy {found.infergy}, Python {found.python}, {found.platform}, {found.cpu or 'unknown CPU'}"
    if found.driver is not None:
        yield f"NVIDIA driver {found.driver}, CUDA up to {found.cuda or UNKNOWN}"
    if found.simulated:
        yield "SIMULATED: what follows comes from a model and says nothing about real hardware"


def _surroundings(found: Diagnosis) -> Iterator[str]:
    yield from (f"{name}={value}" for name, value in found.variables.items() if value is not None)
    yield from (f"{one.path} may not be read: {one.fix}" for one in found.permissions if not one.is_granted)
    have = [f"{name} {version}" for name, version in found.packages.items() if version is not None]
    yield f"Packages: {', '.join(have) or 'none of those that measuring uses'}"
    yield from ["Not installed"] if found.missing else []
    yield from (f"  {one.what}, for {one.purpose}: {one.fix}" for one in found.missing)
    yield from (f"Warning: {warning}" for warning in found.warnings)


def _outcome(meter: MeterFound) -> str:
    """The same words for all meters that lack the same thing, so that they share a line."""
    if meter.is_usable:
        return f"yes, {meter.scope}"
    return f"no: {(meter.reason or UNKNOWN).replace(f'meter {meter.name} ', '')}"


def _print_gpu(found: GpuFound, *, explain: bool) -> None:
    gpu = found.gpu
    index = "-" if found.index is None else found.index
    facts = [
        gpu.name,
        gpu.uuid if explain else None,
        "not in the catalog (infergy list gpus)" if found.catalog is None else f"{found.catalog} in the catalog",
        None if gpu.memory_bytes is None else format_bytes(gpu.memory_bytes),
        None if found.is_visible else "hidden by CUDA_VISIBLE_DEVICES",
    ]
    typer.echo(f"  {index}: {', '.join(fact for fact in facts if fact)}")
    typer.echo(f"     power limit {_power_limit(found)}")
    typer.echo(f"     energy counter: {_counter(found)}")
    # What it does not answer limits what is measured; what it answers does not.
    for verb, wanted in (("answers", True), ("does not answer", False))[not explain :]:
        names = [name.replace("_", " ") for name, answers in found.answers.items() if answers is wanted]
        if names:
            typer.echo(f"     {verb}: {', '.join(names)}")


def _counter(found: GpuFound) -> str:
    if found.reason is not None:
        return f"no: {found.reason}"
    times = f"{_seconds(found.read_median_s)}, at worst {_seconds(found.read_worst_s)} of {found.reads}"
    return f"moves each {_seconds(found.counter_period_s)}; a read takes {times}"


def _power_limit(found: GpuFound) -> str:
    low_w, high_w, limit_w = found.power_limit_low_w, found.power_limit_high_w, found.gpu.power_limit_w
    limit = UNKNOWN if limit_w is None else f"{format_number(limit_w)} W"
    if low_w is None or high_w is None:
        return limit
    return f"{limit} of {format_number(low_w)} to {format_number(high_w)} W"


def _print_behaviour(found: MeterBehaviour, *, explain: bool) -> None:
    counter = found.counter
    typer.echo(f"Meter of {found.gpu.uuid if explain else found.gpu.name}, load: {found.load or 'none'}")
    regular = {True: "regular", False: "IRREGULAR", None: "regularity unknown"}[counter.is_regular]
    typer.echo(
        f"  counter: moves each {_seconds(counter.period_s)} ({_seconds(counter.period_low_s)} to "
        f"{_seconds(counter.period_high_s)} in nine of ten of {counter.intervals}; {regular}), in steps of "
        f"{UNKNOWN if counter.step_j is None else format_si(counter.step_j, 'J')}"
    )
    typer.echo(
        f"           shows a load step after {_seconds(counter.delay_s)}; "
        f"looks {_share(counter.sampled_share)} of the time"
    )
    _print_field("instant power", found.instant_power)
    _print_field("average power", found.average_power)
    typer.echo("  counter over the integral of instant power")
    for one in found.agreements:
        half_s = one.half_period_s
        name = one.load if half_s is None else f"on and off for {format_si(half_s, 's')} each"
        instant = UNKNOWN if one.instant_w is None else f"{format_number(one.instant_w)} W"
        ratio = UNKNOWN if one.ratio is None else format_number(one.ratio)
        typer.echo(f"    {name}: {ratio} ({format_number(one.counter_w)} W over {instant})")
    for reason in found.reasons:
        typer.echo(f"  {reason}")


def _print_field(name: str, found: FieldBehaviour) -> None:
    share = "" if found.sampled_share is None else f"; covers at most {_share(found.sampled_share)} of the time"
    typer.echo(f"  {name}: changes each {_seconds(found.period_s)}{share}")
    typer.echo(
        f"           begins to move {_seconds(found.delay_s)} after a load step, rises in {_seconds(found.rise_s)} "
        f"as a mean over {_seconds(found.averaged_s)} does"
    )


def _seconds(value: float | None) -> str:
    return UNKNOWN if value is None else format_si(value, "s")


def _share(value: float | None) -> str:
    return "an unknown share" if value is None else format_percent(value)
