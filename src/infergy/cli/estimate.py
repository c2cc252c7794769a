"""`infergy estimate`: the joules of a trace under each engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infergy.cli.trace_options import (
    BinsOption,
    CachedColumnOption,
    FormatOption,
    InputColumnOption,
    JsonOption,
    OutputColumnOption,
    SourcesArg,
    TimeColumnOption,
    columns_of,
)
from infergy.units import format_number, format_percent, format_si

if TYPE_CHECKING:
    from collections.abc import Callable

    from infergy.energy import Estimate, TraceEstimate

UNKNOWN = "—"


def estimate(
    sources: SourcesArg,
    model: Annotated[str, typer.Option("--model", "-m", help="Model with measured rows")] = "llama-3.1-8b",
    gpu: Annotated[str, typer.Option("--gpu", "-g", help="GPU with measured rows")] = "h200",
    engine: Annotated[
        list[str] | None, typer.Option("--engine", "-e", help="Engine to show; repeat for more [default: all]")
    ] = None,
    table: Annotated[
        list[Path] | None,
        typer.Option("--table", "-t", help="Your own measurements (.jsonl), put before the shipped ones"),
    ] = None,
    bins: BinsOption = "powers-of-two",
    method: Annotated[
        str, typer.Option("--method", help="ceiling (the study's) or mean (each bin at its mean lengths)")
    ] = "ceiling",
    ideal: Annotated[
        str, typer.Option("--ideal", help="dense, paper (the vendor's headline peak) or roofline")
    ] = "dense",
    rare: Annotated[
        str, typer.Option("--rare", help="fractional or whole: bins with fewer requests than a batch")
    ] = "fractional",
    allow_simulated: Annotated[
        bool, typer.Option("--allow-simulated", help="Take rows of a simulated GPU as well")
    ] = False,
    format: FormatOption = None,  # noqa: A002
    input_column: InputColumnOption = None,
    output_column: OutputColumnOption = None,
    time_column: TimeColumnOption = None,
    cached_column: CachedColumnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the energy of a request trace from measured tables, engine by engine.

    Example: infergy estimate azure-conv-2023 --method mean
    """
    from infergy.energy import estimate as run
    from infergy.records.codec import to_json
    from infergy.workload import open_trace

    columns = columns_of(input_column, output_column, time_column, cached_column)
    for source in sources:
        result = run(
            open_trace(source, format=format, columns=columns),
            model=model,
            gpu=gpu,
            engines=engine,
            tables=table or (),
            bins=bins,
            method=method,
            ideal=ideal,
            rare=rare,
            allow_simulated=allow_simulated,
        )
        typer.echo(json.dumps(to_json(result)) if as_json else render(result))


def render(result: TraceEstimate) -> str:
    """The estimate for a person: figures first, then how each was obtained."""
    trace, first = result.trace, result.estimates[0]
    lines = [
        f"{trace.source}: {trace.requests:,} requests, {trace.input_tokens:,} input and {trace.output_tokens:,} "
        "output tokens",
        f"{first.model} on {first.provenance.gpu}, method {first.method}, {result.bins.name} bins",
        "",
    ]
    simulated = ", ".join(e.engine for e in result.estimates if e.provenance.is_simulated)
    if simulated:
        lines.append(f"SIMULATED: the rows of {simulated} come from a model of a GPU and say nothing of a real one")
    lines += _figures(result)
    lines += ["", "How these numbers were obtained"]
    lines += [f"  {line}" for line in _notes(result)]
    return "\n".join(lines)


def _figures(result: TraceEstimate) -> list[str]:
    rows: list[tuple[str, Callable[[Estimate], str]]] = [
        ("energy", lambda e: f"{format_number(e.energy_wh, 4)} Wh"),
        ("between", lambda e: f"{_wh(e.low_j)} and {_wh(e.high_j)}"),
        ("J per request", lambda e: format_number(e.energy_per_request_j)),
        ("J per output token", lambda e: format_number(e.energy_per_output_token_j)),
        ("GPU-hours", lambda e: format_number(e.gpu_hours)),
        ("tokens/s (output)", lambda e: f"{format_number(e.tokens_per_s)} ({format_number(e.output_tokens_per_s)})"),
        ("mean watts", lambda e: format_number(e.power_w)),
        ("gap to the ideal", lambda e: _fraction(e.gap_to_ideal, signed=True)),
        (f"saving on {result.baseline}", lambda e: _fraction(e.saving_vs_baseline)),
        ("requests in measured bins", lambda e: format_percent(e.coverage)),
        ("output tokens in measured bins", lambda e: format_percent(e.coverage_output_tokens)),
    ]
    width = 24
    lines = [f"{'':32}" + "".join(f"{estimate.engine:>{width}}" for estimate in result.estimates)]
    lines += [f"{name:32}" + "".join(f"{show(e):>{width}}" for e in result.estimates) for name, show in rows]
    return lines


def _notes(result: TraceEstimate) -> list[str]:
    trace, first = result.trace, result.estimates[0]
    notes = [f"ideal: {format_si(result.ideal.energy_j, 'J')}; {result.ideal.basis}"]
    if first.method == "ceiling":
        notes.append("energy: Σ N/B × joules of a batch, each request at its bin's upper corner (2504.17674)")
    else:
        notes.append("energy: each request at the mean lengths of its bin's requests, interpolated")
    notes.append(f"rare: {first.provenance.rare_rule}")
    notes.append(
        "between: every request at its bin's floor, and at its ceiling in whole batches, with errors of 3 % a bin"
    )
    if trace.left_out_requests:
        notes.append(
            f"left out: {trace.left_out_requests:,} requests past the last bin; --bins powers-of-two takes them"
        )
    if trace.failed_requests:
        notes.append(f"set aside: {trace.failed_requests:,} requests without output")
    if trace.cached_input_tokens:
        notes.append(f"prefix cache: {trace.cached_input_tokens:,} cached input tokens are not charged")
    for estimate in result.estimates:
        notes += _engine_notes(estimate)
    return notes


def _engine_notes(estimate: Estimate) -> list[str]:
    where = estimate.provenance
    hold = where.holdout
    error = (
        f"interpolating along output is off by {format_percent(hold.median)} (median), {format_percent(hold.worst)} "
        f"(worst) over {hold.bins} measured bins held out"
        if hold.median is not None and hold.worst is not None
        else "the error of interpolation is unknown: no row was measured at more outputs"
    )
    notes = [
        f"{estimate.engine}: {where.bins_measured} bins measured, {where.measured_utc[:10]}, {', '.join(where.tables)}",
        f"  {', '.join(where.packages)}; driver {where.driver}; {where.weights}",
        f"  {format_percent(estimate.interpolated)} of requests in interpolated, "
        f"{format_percent(estimate.extrapolated)} in extrapolated bins; {error}",
        f"  {where.batch_rule}",
    ]
    if estimate.uncovered_requests:
        notes.append(f"  {estimate.uncovered_requests:,} requests have no value and are not in these joules")
    return notes


def _wh(energy_j: float | None) -> str:
    from infergy.units import to_wh

    return UNKNOWN if energy_j is None else f"{format_number(to_wh(energy_j))}"


def _fraction(value: float | None, *, signed: bool = False) -> str:
    return UNKNOWN if value is None else format_percent(value, signed=signed)
