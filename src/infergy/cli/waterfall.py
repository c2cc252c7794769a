"""`infergy waterfall`: where a trace's joules go, from an ideal to what was measured."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infergy.cli.old_estimate import WIDTH, GpuOption, MaxBatchOption, ModelOption, SimulatedOption, TableOption
from infergy.cli.timeline import FORMATS, save_chart
from infergy.cli.trace_options import FormatOption, JsonOption, print_json
from infergy.energy.options import MAX_BATCH_S
from infergy.errors import MissingError, UsageError
from infergy.units import format_duration, format_number, format_percent, format_si

if TYPE_CHECKING:
    from infergy.energy.waterfall import Waterfall

DEFAULT_ENGINE = "vllm"
COLUMNS = 40
BLOCK, GAP = "█", " "


def waterfall(
    source: Annotated[str, typer.Argument(metavar="TRACE", help="A shipped trace's name, or a file")],
    engine: Annotated[str, typer.Option("--engine", "-e", help="Which configuration")] = DEFAULT_ENGINE,
    model: ModelOption = None,
    gpu: GpuOption = None,
    table: TableOption = None,
    max_batch_s: MaxBatchOption = MAX_BATCH_S,
    allow_simulated: SimulatedOption = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output-file", help=f"Draw it into a file: {', '.join(FORMATS)}")
    ] = None,
    format: FormatOption = None,  # noqa: A002 - the option's name
    as_json: JsonOption = False,
) -> None:
    """Break a trace's joules down: ideal, memory, ceiling bins, launch overhead, the rest, and idle gaps online.

    Example: infergy waterfall azure-conv-2023 --engine transformers -o waterfall.svg
    """
    from infergy.energy.estimate import PriceOptions
    from infergy.energy.waterfall import find_waterfall
    from infergy.workload import Trace, open_requests

    if output is not None and output.suffix not in FORMATS:
        raise UsageError(f"-o {output}: the name must end in one of {', '.join(FORMATS)}")
    trace = open_requests(source, format=format)
    options = PriceOptions(
        model=model, gpu=gpu, tables=tuple(table or ()), allow_simulated=allow_simulated, max_batch_s=max_batch_s
    )
    # A histogram tells of no arrivals, so of no idle gaps.
    duration_s = trace.describe().duration_s if isinstance(trace, Trace) else None
    found = find_waterfall(trace, engine, options, duration_s)
    if output is not None:
        save_chart(_chart(found), output)
        typer.echo(f"{output}: {found.engine}", err=True)
    if as_json:
        print_json([found])
    elif output is None:
        _print(found)


def _chart(found: Waterfall) -> Any:
    from infergy.report.waterfall import draw_waterfall

    try:
        return draw_waterfall(found)
    except ImportError as error:
        raise MissingError(f"drawing needs altair: pip install 'infergy[report]' ({error})") from error


def _print(found: Waterfall) -> None:
    typer.echo(
        f"{found.trace.source}: {found.priced_requests:,} requests; {found.engine}, {found.model} on {found.gpu}"
    )
    if found.trace.lengths_from is not None:
        typer.echo(fill(found.trace.lengths_from, WIDTH))
    lines = [(step.name, step.energy_j, step.total_j - step.energy_j, step.total_j) for step in found.steps]
    lines.append(("measured offline", found.energy_j, 0.0, found.energy_j))
    if found.idle is not None:
        online_j = found.energy_j + found.idle.energy_j
        lines.append(("idle between arrivals", found.idle.energy_j, found.energy_j, online_j))
    highest_j = max(max(begin, end) for _, _, begin, end in lines)
    width = max(len(name) for name, *_ in lines)
    for name, energy_j, begin_j, end_j in lines:
        bar = _bar(min(begin_j, end_j), max(begin_j, end_j), highest_j)
        share = format_percent(energy_j / found.energy_j)
        typer.echo(f"  {name:{width}}  {bar}  {format_si(energy_j, 'J'):>8}  {share:>8}")
    if found.idle is not None:
        gaps = found.idle
        typer.echo(
            f"Online, as requests arrived: {gaps.gpus} GPU{'s' if gaps.gpus > 1 else ''}, "
            f"{format_duration(gaps.idle_s)} idle at {format_number(gaps.idle_w)} W"
        )
    elif found.idle_reason is not None:
        typer.echo(f"Idle between arrivals: unknown, for {found.idle_reason}")
    for step in found.steps:
        typer.echo(fill(f"{step.name}: {step.basis}", WIDTH, initial_indent="- ", subsequent_indent="  "))
    for note in found.notes:
        typer.echo(fill(note, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False))


def _bar(low_j: float, high_j: float, highest_j: float) -> str:
    """A bar from `low_j` to `high_j` on a scale of `COLUMNS`, at least one block."""
    begin = round(low_j / highest_j * COLUMNS)
    end = max(begin + 1, round(high_j / highest_j * COLUMNS))
    return (GAP * max(0, begin) + BLOCK * (end - begin)).ljust(COLUMNS)[: COLUMNS + 1]
