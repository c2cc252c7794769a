"""`infergy replay`: the requests of a trace on a real engine, at their arrival times: predicted, then measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from infergy.cli.measure import gpu_here, measure_plan
from infergy.cli.options import JsonOption, MeterOption, SimulateOption, TraceSelection, seconds_of, with_groups
from infergy.cli.output import NONE, print_json, print_table, rejected_notes
from infergy.cli.server_options import MeasuredSelection
from infergy.errors import DataError, InfergyError, UsageError
from infergy.units import count_of, format_duration, format_latency, format_percent, format_si

if TYPE_CHECKING:
    from infergy.estimates.replay import Replay
    from infergy.records import Plan

DEFAULT_GPU = "h200"
STANDARD = ("input_tokens", "output_tokens", "arrival_s", "cached_tokens")
OPTIONS = {"start": "--from", "duration": "--for"}


@with_groups
def replay(
    source: Annotated[
        str, typer.Argument(metavar="TRACE|PLAN|ROWS", help="A trace, a plan of replays, or rows that measured some")
    ],
    trace: TraceSelection,
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
    simulate: SimulateOption = False,
    meter: MeterOption = "nvml",
    as_json: JsonOption = False,
) -> None:
    """Predict the energy and latencies of a window of a trace on a real engine, and measure them with -o.

    Example: infergy replay azure-conv-2023 --from 10m --for 75s --speed 3 -o replays.jsonl
    """
    from infergy.catalog import get_gpu
    from infergy.estimates.replay import compare_rows, predict
    from infergy.records import Plan
    from infergy.records.store import read_store

    table = measured.load()
    path = Path(source)
    kind_of_file = _kind_of(path)
    given = [field.name for field in fields(trace) if getattr(trace, field.name) not in (None, False)]
    if kind_of_file != "trace" and given:
        options = ", ".join(OPTIONS.get(name, f"--{name.replace('_', '-')}") for name in given)
        message = f"{path}: {kind_of_file} say what was served; leave out options of a trace: {options}"
        raise UsageError(message, code="option-not-applicable", path=str(path), options=given)
    if kind_of_file == "rows":
        rows = read_store(path).rows
        kind = gpu or _gpu_of(rows)
        found = compare_rows(rows, get_gpu(kind).name, table)
        if not found:
            message = f"{path}: no measured replay in it. Measure one: infergy replay TRACE --for 75s -o {path}"
            raise UsageError(message, code="no-rows", path=str(path))
    else:
        kind = get_gpu(gpu or gpu_here() or DEFAULT_GPU).name
        if kind_of_file == "plan":
            resolved = Plan.load(path)
        else:
            engines = engine or ["vllm-server"]
            resolved = _plan(
                source, trace, engines, max_num_seqs=max_num_seqs, max_tokens=max_tokens, model=model, gpu=kind
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
            measure_plan(resolved, output, simulate=simulate, meter=meter)
            ids = {cell.cell.id for cell in resolved.cells}
            rows = tuple(row for row in read_store(output).rows if row.cell_id in ids)
            found = compare_rows(rows, kind, table) or found
    if as_json:
        print_json(found)
    else:
        _print(found)


def _plan(
    source: str,
    trace: TraceSelection,
    engines: Sequence[str],
    *,
    max_num_seqs: int | None,
    max_tokens: int | None,
    model: str,
    gpu: str,
) -> Plan:
    from infergy.measure.replays import Replay as Asked
    from infergy.measure.replays import plan_replays
    from infergy.records import EngineSetup

    path = Path(source)
    if path.suffix in (".json", ".jsonl") and not path.exists():
        raise DataError.not_found(
            source, "Give a trace, a plan of replays (--plan writes one) or rows that measured some (-o writes them)"
        )
    # What is wrong with a trace or a window of it is reported as every verb does.
    trace.choose(source)
    bound = {} if max_num_seqs is None else {"max_sequences": max_num_seqs}
    setups = [EngineSetup(model=model, **{**EngineSetup.parse_label(label), **bound}) for label in engines]
    with TemporaryDirectory() as folder:
        copy = _standard(source, trace, Path(folder))
        asked = Asked(
            source=copy,
            from_s=0.0 if trace.start is None else seconds_of("--from", trace.start),
            for_s=None if trace.duration is None else seconds_of("--for", trace.duration),
            speed=1.0 if trace.speed is None else trace.speed,
            timed=not trace.all_at_once,
            requests=trace.requests,
        )
        try:
            return plan_replays([(setup, asked) for setup in setups], gpu=gpu, max_tokens=max_tokens)
        except InfergyError as error:
            # The user's file is wrong, not our copy of it.
            raise type(error)(str(error).replace(copy, source)) from error


def _standard(source: str, trace: TraceSelection, folder: Path) -> str:
    """Where the trace is under names that need no options: it, or a copy of its requests in a folder."""
    from infergy.workload import open_trace

    reading = trace.reading(None)
    if not any(reading.values()):
        return source
    frame = open_trace(source, **reading).frame
    wanted = [name for name in STANDARD if name in frame.collect_schema().names()]
    # A replay is called after the file's name.
    copy = folder / Path(source).name
    frame.select(wanted).collect().write_parquet(copy)
    return str(copy)


def _kind_of(path: Path) -> str:
    """``rows``, ``plan`` or ``trace``, by the first line and the names in it."""
    if path.suffix not in (".json", ".jsonl") or not path.is_file():
        return "trace"
    with path.open(encoding="utf-8", errors="replace") as file:
        begin = file.read(4096)
    if path.suffix == ".json":
        return "plan" if '"cells"' in begin or '"schema"' in begin else "trace"
    return "rows" if '"cell_id"' in begin else "trace"


def _gpu_of(rows: Sequence[object]) -> str:
    from infergy.catalog import catalog_name
    from infergy.records import Measurement

    names = {
        catalog_name(row.environment.gpus[0].name)
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
    for one in found:
        typer.echo(
            f"{one.cell}: {count_of(one.requests, 'request')}, {one.input_tokens:,} input and "
            f"{count_of(one.output_tokens, 'output token')}"
        )
        for note in rejected_notes({"predicted": one.predicted}):
            typer.echo(f"  {note}")
        if not one.compared:
            typer.echo(f"  predicted: {_energy(one)}; not measured: -o FILE measures it")
            continue
        inside = "inside" if one.is_inside else "outside"
        typer.echo(f"  measured energy {inside} the 90 % interval: {_energy(one)}")
        rows = []
        for figure in one.compared:
            shown = partial(format_si, unit="J") if figure.name.endswith("_j") else format_latency
            name = figure.name.replace("_s", "").replace("_j", "")
            measured = NONE if figure.measured is None else shown(figure.measured)
            error = NONE if figure.error is None else format_percent(figure.error, signed=True)
            rows.append((name, shown(figure.predicted), measured, error))
        print_table(("", "predicted", "measured", "error"), rows)
