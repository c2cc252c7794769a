"""`infergy run -- COMMAND`: the energy of any program."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from infergy.cli.measure import check_meter
from infergy.cli.options import MeterOption, SimulateOption, argument, flag, option, with_options
from infergy.errors import MeterError, UsageError
from infergy.files import append_line, check_output
from infergy.processes import ENDING
from infergy.units import format_duration, format_number, format_si, without_secrets

if TYPE_CHECKING:
    from infergy.measure.block import BlockEnergy

DEFAULT_IDLE_S = 2.0


@with_options
def run_command(
    command: list[str] = argument("The program and its arguments", "COMMAND"),
    output: Path | None = option("Append one JSON line per run to this file", "-o", "--output-file"),
    runs: int = option("Number of measured runs", default=1, min=1),
    warmup: int = option("Number of unmeasured runs before them", default=0, min=0),
    idle: float = option("Seconds of idle power before each run; 0 for none", default=DEFAULT_IDLE_S, min=0),
    gpus: int | None = option("GPUs to count [default: all visible]", min=1),
    meter: MeterOption = "nvml",
    simulate: SimulateOption = False,
    explain: bool = flag("Also print the UUID of each GPU", "--explain"),
    as_json: bool = flag("Print one JSON line per run; the program's stdout goes to stderr", "--json"),
) -> None:
    """Measure the energy of any program: infergy run [OPTIONS] -- COMMAND.

    It exits as the program does, or with 3 where the counter gave no energy.

    Example: infergy run --runs 3 -- python serve_once.py
    """
    from infergy.measure.block import BLOCK_SCHEMA, window
    from infergy.meters.simulated import SteadyMeter
    from infergy.records.codec import to_json

    check_meter(meter, simulate=simulate)
    if output is not None:
        check_output(output, "file of infergy run", f'"{BLOCK_SCHEMA.partition("/")[0]}/')
    stdout = sys.stderr if as_json else None
    for _ in range(warmup):
        _run(command, stdout)
    code, lacks = 0, False
    for number in range(1, runs + 1):
        source = SteadyMeter(count=gpus or 1) if simulate else meter
        # Before and after the command no process of its own is there.
        with window(
            without_secrets(" ".join(command)), gpus=gpus, idle_s=idle, meter=source, own_processes=0
        ) as measured:
            code = _run(command, stdout)
        line = json.dumps(to_json(measured.result), allow_nan=False)
        if output is not None:
            append_line(output, line)
        if as_json:
            typer.echo(line)
        else:
            _print(measured.result, f"run {number}/{runs}: " if runs > 1 else "", explain=explain)
        lacks |= measured.result.energy_j is None
        if code:
            break
    raise typer.Exit(code or MeterError.exit_code * lacks)


def _run(command: Sequence[str], stdout: Any) -> int:
    """Run it to its end and pass on what ends us; returns its exit code, 128 + N for signal N as a shell does."""
    process: subprocess.Popen[bytes] | None = None
    is_ended = False

    def end(*_: object) -> None:
        nonlocal is_ended
        is_ended = True
        if process is not None:
            process.terminate()

    # Before it starts: else a signal in between would end us alone.
    kept = {number: signal.signal(number, end) for number in ENDING if signal.getsignal(number) != signal.SIG_IGN}
    try:
        process = subprocess.Popen(command, stdout=stdout)
        if is_ended:
            process.terminate()
        while True:
            # Ctrl-C reaches the program too; we wait for what it makes of it.
            with suppress(KeyboardInterrupt):
                code = process.wait()
                return 128 - code if code < 0 else code
    except OSError as error:
        message = f"cannot run {command[0]!r}: {error.strerror}. Give a program and its arguments"
        raise UsageError(message, code="command-not-run", command=command[0], reason=error.strerror) from error
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _print(result: BlockEnergy, prefix: str, *, explain: bool) -> None:
    if result.energy_j is None or result.low_j is None or result.high_j is None or result.power_w is None:
        typer.echo(f"{prefix}no energy: {result.reason}", err=True)
        return
    between = f"{format_si(result.low_j, 'J')} .. {format_si(result.high_j, 'J')}"
    text = (
        f"{prefix}{format_si(result.energy_j, 'J')} ({between}) in {format_duration(result.duration_s)}, "
        f"{format_number(result.power_w)} W"
    )
    if result.net_j is not None and result.idle_power_w is not None:
        text += f"; {format_si(result.net_j, 'J')} above idle ({format_number(result.idle_power_w)} W)"
    typer.echo(text, err=True)
    if len(result.energy_by_gpu_j) > 1:
        for index, (uuid, energy_j) in enumerate(result.energy_by_gpu_j.items()):
            watts = format_number(result.power_by_gpu_w[uuid])
            name = f"GPU {index} ({uuid})" if explain else f"GPU {index}"
            typer.echo(f"  {name}: {format_si(energy_j, 'J')}, {watts} W", err=True)
    for warning in result.warnings:
        typer.echo(f"  {warning}", err=True)
