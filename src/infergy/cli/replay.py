"""`infergy replay`: the requests of a trace on a real engine, at their arrival times: predicted, then measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, cast

import typer

from infergy.cli.measure import gpu_here, measure_plan
from infergy.cli.options import JsonOption, MeterOption, SimulateOption, TraceSelection, seconds_of, with_groups
from infergy.cli.output import NONE, print_json, print_notes, print_table, rejected_notes
from infergy.cli.server_options import MeasuredSelection
from infergy.errors import DataError, InfergyError, UsageError
from infergy.units import count_of, format_duration, format_latency, format_percent, format_si

if TYPE_CHECKING:
    from infergy.estimates.replay import Replay
    from infergy.records import EngineSetup, Plan
    from infergy.workload import Requests

DEFAULT_GPU = "h200"
STANDARD = ("input_tokens", "output_tokens", "arrival_s", "cached_tokens")
OPTIONS = {"start": "--from", "duration": "--for", "output": "--output-file"}
OF_A_PLAN = ("gpu", "output", "simulate", "meter")
"""Options that a plan takes too; rows, which are measured, take --gpu alone."""


@with_groups
def replay(
    source: Annotated[
        str, typer.Argument(metavar="TRACE|PLAN|ROWS", help="A trace, a plan of replays, or rows that measured some")
    ],
    trace: TraceSelection,
    measured: MeasuredSelection,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", "-e", help="vllm, transformers, vllm-eager, vllm-fp8-tp2; repeatable [default: vllm]"),
    ] = None,
    usage_context: Annotated[
        str | None,
        typer.Option("--usage-context", help="server (vllm serve) or llm (the LLM class) [default: server]"),
    ] = None,
    tensor_parallel_size: Annotated[
        int | None, typer.Option("--tensor-parallel-size", "-tp", min=1, help="GPUs that share the model")
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option("--max-num-seqs", min=1, help="Requests at once")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Leave out requests of more input and output tokens")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Name or config.json [default: llama-3.1-8b]")
    ] = None,
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
    from infergy.estimates.servers import DEFAULT_MODEL
    from infergy.records import Plan
    from infergy.records.store import read_store

    path = Path(source)
    kind_of_file = _kind_of(path)
    own = {
        "engine": engine,
        "usage_context": usage_context,
        "tensor_parallel_size": tensor_parallel_size,
        "max_num_seqs": max_num_seqs,
        "max_tokens": max_tokens,
        "model": model,
        "gpu": gpu,
        "plan": plan,
        "output": output,
        "simulate": simulate,
        "meter": None if meter == "nvml" else meter,
    }
    _check_options(path, kind_of_file, {field.name: getattr(trace, field.name) for field in fields(trace)} | own)
    if kind_of_file == "rows":
        rows = read_store(path).rows
        kind = gpu or _gpu_of(rows)
        table = measured.load()
        found = compare_rows(rows, get_gpu(kind).name, table)
        if not found:
            message = f"{path}: no measured replay in it. Measure one: infergy replay TRACE --for 75s -o {path}"
            raise UsageError(message, code="no-rows", path=str(path))
    else:
        kind = get_gpu(gpu or gpu_here() or DEFAULT_GPU).name
        if kind_of_file == "plan":
            resolved = Plan.load(path)
        else:
            setups = _setups(
                engine or ["vllm"],
                usage_context,
                model or DEFAULT_MODEL,
                {"max_sequences": max_num_seqs, "tensor_parallel": tensor_parallel_size},
            )
            resolved = _plan(source, trace, setups, max_tokens=max_tokens, gpu=kind)
        kind = resolved.gpu or kind
        table = measured.load()
        found = [predict(cell, kind, table) for cell in resolved.cells]
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
        print_notes(table.notes)


def _check_options(path: Path, kind_of_file: str, options: Mapping[str, object]) -> None:
    """Reject options that say nothing about a plan, about rows, or about what is not measured.

    Raises:
        UsageError: There are any.
    """
    given = [name for name, value in options.items() if value not in (None, False, [])]
    kept = {"trace": given, "plan": OF_A_PLAN, "rows": ("gpu",)}[kind_of_file]
    why = f"{path}: {'rows say' if kind_of_file == 'rows' else 'a plan says'} what is served"
    wrong = [name for name in given if name not in kept]
    if not wrong and "output" not in given:
        why, wrong = "nothing is measured without -o FILE", [name for name in given if name in ("simulate", "meter")]
    if wrong:
        names = [OPTIONS.get(name, f"--{name.replace('_', '-')}") for name in wrong]
        message = f"{why}; leave out what does not apply: {', '.join(names)}"
        raise UsageError(message, code="option-not-applicable", path=str(path), options=names)


def _setups(
    engines: Sequence[str], usage_context: str | None, model: str, options: Mapping[str, int | None]
) -> list[EngineSetup]:
    """Engine configs of labels: vLLM is its server, as for `estimate`, unless --usage-context says otherwise."""
    from infergy.records import LLM_CLASS, SERVER, EngineSetup

    if usage_context not in (None, SERVER, LLM_CLASS):
        raise UsageError.bad_value("--usage-context", usage_context, f"{SERVER} or {LLM_CLASS}")
    setups = []
    for label in engines:
        parts = EngineSetup.parse_label(label)
        if usage_context == LLM_CLASS and parts.get("usage_context") == SERVER:
            given = {"--engine": label, "--usage-context": usage_context}
            raise UsageError.conflict(given, "they contradict: give one of them")
        if parts["engine"] == "vllm" and parts.get("speculation") is None:
            parts["usage_context"] = usage_context or SERVER
        elif usage_context is not None:
            why = "leave it out: servers of vLLM alone have one"
            raise UsageError.engine_lacks(parts["engine"], "--usage-context", usage_context, why)
        parts |= {name: value for name, value in options.items() if value is not None}
        setups.append(EngineSetup(model=model, **parts))
    return setups


def _plan(
    source: str, trace: TraceSelection, setups: Sequence[EngineSetup], *, max_tokens: int | None, gpu: str
) -> Plan:
    from infergy.measure.replays import Replay as Asked
    from infergy.measure.replays import plan_replays
    from infergy.records.cell import FEWEST_ARRIVALS
    from infergy.workload import find_histogram

    path = Path(source)
    if path.suffix in (".json", ".jsonl") and not path.exists():
        raise DataError.not_found(
            source, "Give a trace, a plan of replays (--plan writes one) or rows that measured some (-o writes them)"
        )
    # What is wrong with a trace or a window of it is reported as every verb does.
    if find_histogram(source) is not None:
        message = f"{source}: a histogram has no requests in order to replay. Give the trace that it was made of"
        raise DataError(message, code="wrong-schema", path=source, found="histogram", expected="trace")
    chosen = _requests(trace, source)
    if len(chosen) < FEWEST_ARRIVALS:
        message = (
            f"{source}: {count_of(len(chosen), 'request')} chosen; a replay is a run of at least {FEWEST_ARRIVALS}. "
            "Choose more: --requests N, or --for TIME"
        )
        raise UsageError(message, code="too-few-requests", trace=source, found=len(chosen), expected=FEWEST_ARRIVALS)
    if chosen.arrival_s is None and not trace.all_at_once:
        reason = chosen.order_reason or "gaps of sessions are not replayed"
        typer.echo(f"{source}: all requests at once: {reason}", err=True)
    start_s = 0.0 if trace.start is None else seconds_of("--from", trace.start)
    is_window = trace.duration is not None and trace.requests is None
    first = 0
    if not is_window and start_s:
        whole = replace(trace, start=None, duration=None, speed=None, requests=None, all_at_once=False)
        arrival_s = _requests(whole, source).arrival_s
        assert arrival_s is not None
        first = int(arrival_s.searchsorted(start_s))
    with TemporaryDirectory() as folder:
        copy = _standard(source, trace, Path(folder))
        asked = Asked(
            source=copy,
            from_s=start_s if is_window else 0.0,
            for_s=seconds_of("--for", trace.duration) if is_window and trace.duration is not None else None,
            speed=1.0 if trace.speed is None else trace.speed,
            timed=not trace.all_at_once and chosen.arrival_s is not None,
            first=first,
            requests=None if is_window else len(chosen),
        )
        try:
            return plan_replays([(setup, asked) for setup in setups], gpu=gpu, max_tokens=max_tokens)
        except InfergyError as error:
            # The user's file is wrong, not our copy of it.
            raise type(error)(str(error).replace(copy, source), code=error.code, **error.fields) from error


def _requests(trace: TraceSelection, source: str) -> Requests:
    from infergy.workload import Trace

    chosen = trace.choose(source)
    return chosen.requests() if isinstance(chosen, Trace) else cast("Requests", chosen)


def _standard(source: str, trace: TraceSelection, folder: Path) -> str:
    """Where the trace is under names that need no options: it, or a copy of its requests in a folder."""
    from infergy.workload import open_trace
    from infergy.workload.tasks import is_task

    reading = trace.reading(trace.requests if is_task(source) else None)
    if not (any(reading.values()) or is_task(source)):
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
        if one.simulated:
            typer.echo("  SIMULATED: measured on a simulated GPU, which says nothing about real ones")
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
