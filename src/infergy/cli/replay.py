"""`infergy replay`: very requests of a trace on a real engine, at their arrival times: predicted, then measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from infergy.cli.groups import with_groups
from infergy.cli.measure import MeterOption, gpu_here, measure_plan
from infergy.cli.notes import rejected_notes
from infergy.cli.server_options import MeasuredSelection
from infergy.cli.trace_options import (
    AllAtOnceOption,
    FirstOption,
    FormatOption,
    ForOption,
    FromOption,
    InputColumnOption,
    JsonOption,
    OutputColumnOption,
    SpeedOption,
    TimeColumnOption,
    TimeUnitOption,
    columns_of,
    open_requests_options,
    print_json,
    seconds_of,
    stdout_console,
)
from infergy.errors import DataError, InfergyError, UsageError
from infergy.units import count_of, format_duration, format_latency, format_percent, format_si

if TYPE_CHECKING:
    from infergy.estimates.replay import Replay
    from infergy.records import Plan

DEFAULT_GPU = "h200"
STANDARD = ("input_tokens", "output_tokens", "arrival_s")
OPTIONS = {"start": "--from", "duration": "--for"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedTrace:
    """Which requests of a trace, and how its columns are called."""

    format: FormatOption = None
    input_column: InputColumnOption = None
    output_column: OutputColumnOption = None
    time_column: TimeColumnOption = None
    time_unit: TimeUnitOption = None
    start: FromOption = None
    duration: ForOption = None
    speed: SpeedOption = None
    requests: Annotated[int | None, typer.Option("--requests", min=2, help="How many, without --for")] = None
    first: FirstOption = None
    all_at_once: AllAtOnceOption = False

    def check(self, source: str) -> None:
        """Find out what is wrong with a trace or a window of it, as every verb does.

        Raises:
            UsageError: An option out of range, or no request in the window.
            DataError: The source cannot be read.
        """
        path = Path(source)
        if path.suffix in (".json", ".jsonl") and not path.exists():
            raise DataError.not_found(
                source,
                "Give a trace, a plan of replays (--plan writes one) or rows that measured some (-o writes them)",
            )
        open_requests_options(source, **{field.name: getattr(self, field.name) for field in fields(self)})

    def given(self) -> list[str]:
        """Names of what was given."""
        return [field.name for field in fields(self) if getattr(self, field.name) not in (None, False)]

    def standard(self, source: str, folder: Path) -> str:
        """Where the trace stands under names that need no options: it, or a copy of its requests in a folder."""
        columns = columns_of(self.input_column, self.output_column, self.time_column, None, self.time_unit)
        if self.format is None and columns is None:
            return source
        from infergy.workload import open_trace

        frame = open_trace(source, format=self.format, columns=columns).frame
        wanted = [name for name in STANDARD if name in frame.collect_schema().names()]
        # A replay is called after the file's name.
        copy = folder / Path(source).name
        frame.select(wanted).collect().write_parquet(copy)
        return str(copy)


@with_groups
def replay(
    source: Annotated[
        str, typer.Argument(metavar="TRACE|PLAN|ROWS", help="A trace, a plan of replays, or rows that measured some")
    ],
    trace: ReplayedTrace,
    measured: MeasuredSelection,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", "-e", help="vllm-server, vllm, vllm-server-fp8; repeatable [default: vllm-server]"),
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option("--max-num-seqs", min=1, help="Requests at once")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Leave out requests of more input and output tokens")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Name or config.json")] = "llama-3.1-8b",
    gpu: Annotated[
        str | None, typer.Option("--gpu", "-g", help="GPU to predict for [default: the one here, else h200]")
    ] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Write the plan here, to measure it elsewhere")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output-file", help="Measure it into this store, then print both")
    ] = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="With -o: serve it on the simulated GPU")] = False,
    meter: MeterOption = "nvml",
    as_json: JsonOption = False,
) -> None:
    """Predict what a window of a trace takes on a real engine, and measure it with -o: energy and latencies.

    Example: infergy replay azure-conv-2023 --from 10m --for 75s --speed 3 -o replays.jsonl
    """
    from infergy.estimates.replay import compare_rows, predict
    from infergy.hardware import get_gpu
    from infergy.records import Plan
    from infergy.records.store import read_store

    table = measured.load()
    path = Path(source)
    kind_of_file = _kind_of(path)
    if kind_of_file != "trace" and trace.given():
        options = ", ".join(OPTIONS.get(name, f"--{name.replace('_', '-')}") for name in trace.given())
        message = f"{path}: {kind_of_file} say what was served; leave out options of a trace: {options}"
        raise UsageError(message, code="option-not-applicable", path=str(path), options=list(trace.given()))
    if kind_of_file == "rows":
        rows = read_store(path).rows
        kind = gpu or _gpu_of(rows)
        found = compare_rows(rows, get_gpu(kind).name, table)
        if not found:
            message = f"{path}: no measured replay in it. Measure one: infergy replay TRACE --for 75s -o {path}"
            raise UsageError(message, code="no-rows", path=str(path))
    else:
        kind = get_gpu(gpu or gpu_here() or DEFAULT_GPU).name
        resolved = (
            Plan.load(path)
            if kind_of_file == "plan"
            else _plan(
                source,
                trace,
                engines=engine or ["vllm-server"],
                max_num_seqs=max_num_seqs,
                max_tokens=max_tokens,
                model=model,
                gpu=kind,
            )
        )
        found = [predict(cell, resolved.gpu or kind, table) for cell in resolved.cells]
        if plan is not None:
            resolved.save(plan)
            typer.echo(
                f"{plan}: on the machine with the GPU: python -m infergy.measure {plan} -o replays.jsonl", err=True
            )
        if output is not None:
            for one in found:
                typer.echo(f"predicted {one.cell}: {_energy(one)}", err=True)
            measure_plan(
                resolved, output, dry_run=False, simulate=simulate, meter=meter, retry_failed=False, as_json=False
            )
            ids = {cell.cell.id for cell in resolved.cells}
            rows = tuple(row for row in read_store(output).rows if row.cell_id in ids)
            found = compare_rows(rows, kind, table) or found
    if as_json:
        print_json(found)
    else:
        _print(found)


def _plan(
    source: str,
    trace: ReplayedTrace,
    *,
    engines: Sequence[str],
    max_num_seqs: int | None,
    max_tokens: int | None,
    model: str,
    gpu: str,
) -> Plan:
    from infergy.measure.replays import Replay as Asked
    from infergy.measure.replays import plan_replays
    from infergy.records import EngineSetup

    trace.check(source)
    setups = [EngineSetup(model=model, **{**EngineSetup.parse_label(one), **_bound(max_num_seqs)}) for one in engines]
    with TemporaryDirectory() as folder:
        copy = trace.standard(source, Path(folder))
        asked = Asked(
            source=copy,
            from_s=0.0 if trace.start is None else seconds_of("--from", trace.start),
            for_s=None if trace.duration is None else seconds_of("--for", trace.duration),
            speed=1.0 if trace.speed is None else trace.speed,
            timed=not trace.all_at_once,
            first=trace.first or 0,
            requests=trace.requests,
        )
        try:
            return plan_replays([(setup, asked) for setup in setups], gpu=gpu, max_tokens=max_tokens)
        except InfergyError as error:
            # The user's file is wrong, not our copy of it.
            raise type(error)(str(error).replace(copy, source)) from error


def _kind_of(path: Path) -> str:
    """``rows``, ``plan`` or ``trace``, by the first line and the names in it."""
    if path.suffix not in (".json", ".jsonl") or not path.is_file():
        return "trace"
    with path.open(encoding="utf-8", errors="replace") as file:
        begin = file.read(4096)
    if path.suffix == ".json":
        return "plan" if '"cells"' in begin or '"schema"' in begin else "trace"
    return "rows" if '"cell_id"' in begin else "trace"


def _bound(max_num_seqs: int | None) -> dict[str, int]:
    return {} if max_num_seqs is None else {"max_sequences": max_num_seqs}


def _gpu_of(rows: Sequence[object]) -> str:
    from infergy.hardware import catalogue_name
    from infergy.records import Measurement

    names = {
        catalogue_name(row.environment.gpus[0].name)
        for row in rows
        if isinstance(row, Measurement) and row.environment.gpus
    }
    if len(names) != 1:
        message = f"rows of several GPUs: {', '.join(sorted(names))}. Name one with --gpu"
        raise UsageError(message, code="several-gpus", gpus=sorted(names))
    return names.pop()


def _energy(one: Replay) -> str:
    run = one.predicted
    return (
        f"{format_si(run.energy_j, 'J')} (90 % interval {format_si(run.low_j, 'J')} .. {format_si(run.high_j, 'J')}) "
        f"in {format_duration(run.duration_s)}"
    )


def _print(found: Sequence[Replay]) -> None:
    from rich import box
    from rich.table import Table

    console = stdout_console()
    for one in found:
        console.print(
            f"{one.cell}: {count_of(one.requests, 'request')}, {one.input_tokens:,} input and "
            f"{count_of(one.output_tokens, 'output token')}",
            markup=False,
            soft_wrap=True,
        )
        for note in rejected_notes({"predicted": one.predicted}):
            console.print(f"  {note}", markup=False, soft_wrap=True)
        if not one.compared:
            console.print(f"  predicted: {_energy(one)}; not measured: -o FILE measures it", markup=False)
            continue
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("")
        for name in ("predicted", "measured", "error"):
            table.add_column(name, justify="right")
        for figure in one.compared:
            shown = partial(format_si, unit="J") if figure.name.endswith("_j") else format_latency
            table.add_row(
                figure.name.replace("_s", "").replace("_j", ""),
                shown(figure.predicted),
                "-" if figure.measured is None else shown(figure.measured),
                "-" if figure.error is None else format_percent(figure.error, signed=True),
            )
        console.print(table)
        inside = "inside" if one.is_inside else "outside"
        console.print(f"  measured energy {inside} the 90 % interval: {_energy(one)}", markup=False)
