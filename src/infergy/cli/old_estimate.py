"""`infergy estimate`: what traces cost in joules under each engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from infergy.cli.datasheet import is_measured, print_from_datasheet, read_calibration, refuse_with_datasheet
from infergy.cli.trace_options import (
    BinsOption,
    CachedColumnOption,
    FormatOption,
    InputColumnOption,
    InputEdgesOption,
    JsonOption,
    OutputColumnOption,
    OutputEdgesOption,
    RequestsOption,
    SeedOption,
    SourcesArg,
    TimeColumnOption,
    TimeUnitOption,
    TokenizerOption,
    bins_of,
    columns_of,
    print_json,
    stdout_console,
    task_of,
)
from infergy.energy.options import (
    BASELINE,
    CEILING,
    DATASHEET,
    DEFAULT_GPU,
    DEFAULT_MODEL,
    DENSE,
    FRACTIONAL,
    MAX_BATCH_S,
)
from infergy.errors import UsageError
from infergy.records import DEFAULT_DTYPE
from infergy.units import format_number, format_percent, format_si
from infergy.workload.bins import POWERS_OF_TWO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from infergy.energy.answer import Estimate, Provenance, SourceUse, TraceEstimate

WIDTH = 100
UNKNOWN = "unknown"
DRAWN = ("modelled", "interpolated", "extrapolated")
"""How bins without a measured cell get their values: shares of an estimate."""

ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Model that was measured [default: that of --table, or llama-3.1-8b]"),
]
GpuOption = Annotated[
    str | None, typer.Option("--gpu", "-g", help="GPU that was measured [default: that of --table, or h200]")
]
EngineOption = Annotated[
    list[str] | None,
    typer.Option("--engine", "-e", help="transformers, vllm, …; repeat for more [default: all that were measured]"),
]
TableOption = Annotated[
    list[str] | None,
    typer.Option("--table", "-t", help="Your own measurements (.jsonl), to count before the shipped ones; repeatable"),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="ceiling prices each request at the upper corner of its bin (arXiv 2504.17674), mean at the mean lengths "
        "of its bin; by the measured cell, else by the physical model given all cells. table: ceiling, cells and "
        "curves alone; physics: mean, the model alone; datasheet: where nothing was measured "
        "[default: ceiling, or datasheet where nothing was]",
    ),
]
IdealOption = Annotated[
    str,
    typer.Option(
        "--ideal",
        help="dense: FLOPs at the dense peak and TDP; paper: at the vendor's headline peak; roofline: FLOPs or bytes",
    ),
]
RareOption = Annotated[
    str,
    typer.Option("--rare", help="N requests cost N/B of a batch of B (fractional), or whole batches (whole)"),
]
BaselineOption = Annotated[str, typer.Option("--baseline", help="Engine against which savings are told")]
MaxBatchOption = Annotated[
    float,
    typer.Option("--max-batch-s", help="Of several measured batch sizes, the largest that took at most so long counts"),
]
SimulatedOption = Annotated[
    bool, typer.Option("--allow-simulated", help="Use rows of a simulated GPU; they say nothing about real ones")
]


GpusOption = Annotated[
    int, typer.Option("--gpus", help="By datasheet: GPUs that share the model; measured ones: --engine vllm-tp2")
]
PrecisionOption = Annotated[
    str,
    typer.Option("--precision", help="By datasheet: bfloat16, float16, fp8 or mxfp4; measured ones: --engine vllm-fp8"),
]

CalibrationOption = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="NAME|FILE",
        help="The GPU's own constants for the physical model: shipped (h100-sxm), or made by infergy calibrate",
    ),
]


def estimate(
    sources: SourcesArg,
    model: ModelOption = None,
    gpu: GpuOption = None,
    engine: EngineOption = None,
    table: TableOption = None,
    bins: BinsOption = POWERS_OF_TWO,
    input_edges: InputEdgesOption = None,
    output_edges: OutputEdgesOption = None,
    method: MethodOption = None,
    ideal: IdealOption = DENSE,
    rare: RareOption = FRACTIONAL,
    baseline: BaselineOption = BASELINE,
    max_batch_s: MaxBatchOption = MAX_BATCH_S,
    gpus: GpusOption = 1,
    precision: PrecisionOption = "bfloat16",
    calibration: CalibrationOption = None,
    allow_simulated: SimulatedOption = False,
    format: FormatOption = None,  # noqa: A002 - the option's name
    input_column: InputColumnOption = None,
    output_column: OutputColumnOption = None,
    time_column: TimeColumnOption = None,
    cached_column: CachedColumnOption = None,
    time_unit: TimeUnitOption = None,
    requests: RequestsOption = None,
    seed: SeedOption = None,
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the energy of request traces from measured tables, engine by engine, beside an ideal, or by datasheet.

    Example: infergy estimate azure-conv-2023
    """
    from infergy.energy.estimate import estimate as run_estimate
    from infergy.energy.load import load_table
    from infergy.workload import open_requests

    edges = bins_of(bins, input_edges, output_edges)
    columns = columns_of(input_column, output_column, time_column, cached_column, time_unit)
    task = task_of(requests, seed, tokenizer)
    traces = [open_requests(source, format=format, columns=columns, task=task) for source in sources]
    tables = load_table(table or (), with_shipped=True, allow_simulated=allow_simulated)
    is_other = gpus != 1 or precision != DEFAULT_DTYPE
    if method is None and not table and not engine and (is_other or not is_measured(tables, model, gpu or DEFAULT_GPU)):
        method = DATASHEET
    if method == DATASHEET:
        refuse_with_datasheet({"--table": table, "--engine": engine})
        print_from_datasheet(
            traces,
            model=model or DEFAULT_MODEL,
            gpu=gpu or DEFAULT_GPU,
            gpus=gpus,
            precision=precision,
            bins=edges,
            max_batch_s=max_batch_s,
            as_json=as_json,
            calibration=calibration,
            allow_simulated=allow_simulated,
        )
        return
    if is_other:
        raise UsageError("--gpus and --precision are for what nobody measured; measured: --engine vllm-tp2, vllm-fp8")
    # Tables hold one GPU's rows, unless --gpu says whose.
    known = None if calibration is None else read_calibration(calibration, gpu or DEFAULT_GPU, allow_simulated)
    answers = [
        run_estimate(
            trace,
            model=model,
            gpu=gpu,
            engines=engine or None,
            tables=tables,
            bins=edges,
            method=method or CEILING,
            ideal=ideal,
            rare=rare,
            baseline=baseline,
            max_batch_s=max_batch_s,
            calibration=known,
        )
        for trace in traces
    ]
    if as_json:
        print_json(answers)
        return
    console = stdout_console()
    console.width = min(console.width, WIDTH)
    for answer in answers:
        _print(answer, console)


def _print(answer: TraceEstimate, console: Console) -> None:
    trace = answer.trace
    console.print(
        f"{trace.source}: {trace.requests:,} requests, {trace.input_tokens:,} input and "
        f"{trace.output_tokens:,} output tokens",
        markup=False,
        soft_wrap=True,
    )
    if trace.lengths_from is not None:
        console.print(fill(trace.lengths_from, console.width), markup=False, soft_wrap=True)
    first = answer.estimates[0]
    how = f"method {first.method}, {answer.bins.name} bins"
    console.print(f"{first.model} on {_gpus(answer.estimates)}, {how}", markup=False)
    console.print(_table(answer))
    for text in _doubts(answer.estimates):
        console.print(text, markup=False)
    console.print(_ideal_line(answer), markup=False)
    console.print("How each number was obtained", style="bold")
    for text in (*answer.notes, *_provenance_lines(answer.estimates)):
        # Not rich's wrapping: it would neither indent nor leave file names whole.
        lines = fill(text, console.width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
        console.print(lines, markup=False, soft_wrap=True)


def _gpus(estimates: Sequence[Estimate]) -> str:
    """The GPU by its title, and how many of them if all engines use as many."""
    from infergy.hardware import find_gpu_by_driver_name

    name = estimates[0].gpu
    known = find_gpu_by_driver_name(name)
    counts = {one.gpus for one in estimates}
    count = f"{'one' if counts == {1} else counts.pop()} " if len(counts) == 1 else ""
    return f"{count}{name if known is None else known.title}"


_Figure = Callable[["Estimate"], str]


def _table(answer: TraceEstimate) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for one in answer.estimates:
        table.add_column(one.engine + (" (simulated)" if one.provenance.simulated else ""), justify="right")
    drawn = {how for how in DRAWN if any(getattr(one, how) for one in answer.estimates)}
    for name, figure in _figures(answer.baseline, drawn):
        table.add_row(name, *[figure(one) for one in answer.estimates])
    requests = answer.trace.requests
    if any(one.priced_requests < requests for one in answer.estimates):
        shares = [1 - one.priced_requests / requests for one in answer.estimates]
        table.add_row("Requests without a price", *[format_percent(share) for share in shares])
    return table


def _figures(baseline: str, drawn: set[str]) -> list[tuple[str, _Figure]]:
    """The rows of the table; of the ways in which values were drawn, those that any engine needs."""
    return [
        ("Energy", lambda e: _number(e.energy_wh, " Wh")),
        ("", lambda e: _si(e.energy_j, "J")),
        ("  90 %, as priced", _interval),
        ("  low .. high", _bracket),
        ("Energy a request", lambda e: _si(e.energy_per_request_j, "J")),
        ("Energy an output token", lambda e: _si(e.energy_per_output_token_j, "J")),
        ("GPU-hours", lambda e: _number(e.gpu_hours)),
        ("Output tokens a second", lambda e: _number(e.output_tokens_per_s)),
        ("All tokens a second", lambda e: _number(e.tokens_per_s)),
        ("Mean power", lambda e: _number(e.power_w, " W")),
        ("Gap to the ideal", lambda e: _percent(e.gap_to_ideal, signed=True)),
        (f"Saving against {baseline}", lambda e: "-" if e.engine == baseline else _percent(e.saving_vs_baseline)),
        ("Requests in measured bins", lambda e: format_percent(e.coverage)),
        *[(f"  {how}", partial(_share, how)) for how in DRAWN if how in drawn],
        ("Output tokens in measured bins", lambda e: format_percent(e.coverage_output_tokens)),
    ]


def _share(how: str, one: Estimate) -> str:
    return format_percent(getattr(one, how))


def _interval(one: Estimate) -> str:
    if one.interval_low_j is None:
        return UNKNOWN
    return f"{_si(one.interval_low_j, 'J')} .. {_si(one.interval_high_j, 'J')}"


def _bracket(one: Estimate) -> str:
    if one.low_j is None and one.high_j is None:
        return UNKNOWN
    return f"{_si(one.low_j, 'J')} .. {_si(one.high_j, 'J')}"


def _number(value: float | None, unit: str = "") -> str:
    return UNKNOWN if value is None else f"{format_number(value)}{unit}"


def _si(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else format_si(value, unit)


def _percent(value: float | None, *, signed: bool = False) -> str:
    return UNKNOWN if value is None else format_percent(value, signed=signed)


def _doubts(estimates: Iterable[Estimate]) -> list[str]:
    """Why figures are unknown; figures, and engines, with one reason share a line."""
    engines: dict[str, list[str]] = {}
    for one in estimates:
        figures: dict[str, list[str]] = {}
        named = (
            ("energy", one.energy_reason),
            ("90 %", one.interval_reason),
            ("low", one.low_reason),
            ("high", one.high_reason),
            ("gap", one.gap_reason),
            ("saving", one.saving_reason),
        )
        for name, reason in named:
            if reason is not None:
                figures.setdefault(reason, []).append(name)
        for reason, names in figures.items():
            engines.setdefault(f"{', '.join(names)} unknown: {reason}", []).append(one.engine)
    return [f"{', '.join(labels)}: {text}" for text, labels in engines.items()]


def _ideal_line(answer: TraceEstimate) -> str:
    if answer.ideal is None:
        return f"Ideal: unknown ({answer.ideal_reason})"
    return f"Ideal: {format_si(answer.ideal.energy_j, 'J')}: {answer.ideal.basis}"


def _provenance_lines(estimates: Iterable[Estimate]) -> list[str]:
    lines = []
    for one in estimates:
        lines += [f"{one.engine}: {text}" for text in _source_lines(one.provenance)]
        lines.append(f"{one.engine}: batch {_batches(one)}; {one.provenance.weights}")
    return lines


def _source_lines(provenance: Provenance) -> list[str]:
    lines = []
    for use in provenance.sources:
        versions = ", ".join(f"{name} {version}" for name, version in use.packages.items()) or "versions unknown"
        days = dict.fromkeys(stamp[:10] for stamp in (use.measured_from, use.measured_to))
        lengths = "1 measured length" if use.lengths == 1 else f"{use.lengths} measured lengths"
        lines.append(
            f"{lengths} from {use.file}, {' to '.join(days)}, {', '.join(use.gpu_uuids)}{_limit(use)}, "
            f"driver {use.driver or 'unknown'}, {versions}"
        )
    return lines


def _limit(use: SourceUse) -> str:
    limits = sorted({limit for limit in use.power_limits_w if limit is not None})
    return "".join(f" at {limit:g} W" for limit in limits)


def _batches(one: Estimate) -> str:
    """The sizes of batches in the trace's bins, and how they were chosen."""
    sizes = [b.batch for b in one.bins if b.batch is not None]
    told = "; ".join(f"{choice.text}: {choice.lengths}" for choice in one.provenance.batch_choices)
    between = " to ".join(f"{size}" for size in sorted({min(sizes), max(sizes)})) if sizes else UNKNOWN
    return f"{between}, the largest in time at each length ({told})"
