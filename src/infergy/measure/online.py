"""Online cells as a grid asks for them, resolved: when requests arrive, and what serving them takes by forecast.

Of a replay, how long its requests are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from infergy.errors import DataError, UsageError
from infergy.hardware import Gpu, ModelShape
from infergy.hardware.draft import Draft
from infergy.measure.predict import forecast_run
from infergy.records import Arrivals, Cell, EngineSetup, Load, PlannedCell
from infergy.records.load import FEWEST_ARRIVALS, REPLAY, TRACE
from infergy.serving.setups import memory_fault
from infergy.workload.load_generator import (
    DIGEST_LENGTH,
    draw_times,
    hash_lengths,
    hash_times,
    trace_lengths,
    trace_times,
)

MICROSECOND_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A load, its trace named by what is in it.

    Attributes:
        arrival_s: When each of its requests arrives; empty offline.
        lengths: Input and output tokens of each request of a replay; empty where all are alike.
    """

    load: Load
    arrival_s: tuple[float, ...] = ()
    lengths: tuple[tuple[int, int], ...] = ()


def resolve_arrivals(load: Load, seed: int, max_tokens: int | None = None) -> Run:
    """The run that a load asks for; of a window of a replay, the requests of more tokens than `max_tokens` left out.

    Raises:
        DataError: A trace has no times, or too few requests.
    """
    arrivals = load.arrivals
    if arrivals is None:
        return Run(load=load)
    if arrivals.law not in (TRACE, REPLAY):
        return Run(load=load, arrival_s=draw_times(arrivals, load.batch, seed))
    # A path is this machine's; what tells two logs apart are their times and lengths.
    source = str(arrivals.trace)
    if arrivals.law == TRACE:
        times = trace_times(source, load.batch, arrivals)
        named = replace(arrivals, trace=Path(source).name, digest=hash_times(times)[:DIGEST_LENGTH])
        return Run(load=replace(load, arrivals=named), arrival_s=times)
    return _resolve_replay(load, arrivals, max_tokens)


def _resolve_replay(load: Load, arrivals: Arrivals, max_tokens: int | None) -> Run:
    source = str(arrivals.trace)
    times: tuple[float, ...] = ()
    if arrivals.for_s is None and not arrivals.timed:
        lengths = trace_lengths(source, arrivals.first, load.batch)
    else:
        times, lengths = timed_requests(arrivals, load.batch, max_tokens)
    content = hash_lengths(lengths)
    if arrivals.timed:
        content = hashlib.sha256(f"{content} {hash_times(times)}".encode()).hexdigest()
    longest_in, longest_out = (max(tokens) for tokens in zip(*lengths, strict=True))
    load = replace(
        load,
        arrivals=replace(arrivals, trace=Path(source).name, digest=content[:DIGEST_LENGTH]),
        input_tokens=longest_in,
        output_tokens=longest_out,
        batch=len(lengths),
    )
    return Run(load=load, arrival_s=times if arrivals.timed else (0.0,) * len(lengths), lengths=lengths)


def timed_requests(
    arrivals: Arrivals, count: int, max_tokens: int | None
) -> tuple[tuple[float, ...], tuple[tuple[int, int], ...]]:
    """Arrivals and lengths of a part of a trace that has times, in the order of arrival.

    A window holds the requests that arrive from `from_s` on, in seconds after the first request of the trace, until
    `for_s` × `speed` seconds later. Failed requests are not among them.

    Args:
        arrivals: A replay with a window, or with its own times.
        count: Requests of a replay without a window.
        max_tokens: Requests of more input and output tokens are left out; None keeps all.

    Returns:
        Seconds after the first of these requests, divided by `speed`, in whole microseconds; input and output tokens.

    Raises:
        DataError: The trace has no times, or fewer than two requests there, or than `count`.
    """
    import polars

    from infergy.workload.trace import open_trace

    source = str(arrivals.trace)
    frame = open_trace(source).frame
    if "arrival_s" not in frame.collect_schema().names():
        message = f"{source}: it has no times of arrival, and so no window. Choose by number: --requests 1000"
        raise DataError(message, code="no-arrivals", trace=source)
    columns = ("arrival_s", "input_tokens", "output_tokens")
    asked = polars.col("output_tokens") > 0, polars.col("input_tokens") > 0, polars.col("arrival_s").is_not_null()
    rows = frame.filter(*asked).select(*columns).sort("arrival_s", maintain_order=True).collect()
    if arrivals.for_s is not None:
        after_s = polars.col("arrival_s") - rows["arrival_s"].min()
        rows = rows.filter(after_s >= arrivals.from_s, after_s < arrivals.from_s + arrivals.for_s * arrivals.speed)
    else:
        rows = rows.slice(arrivals.first, count)
    if max_tokens is not None:
        rows = rows.filter(polars.col("input_tokens") + polars.col("output_tokens") <= max_tokens)
    if len(rows) < FEWEST_ARRIVALS or (arrivals.for_s is None and max_tokens is None and len(rows) < count):
        message = f"{source}: {len(rows)} requests for {arrivals.label}. Choose another part of the trace"
        raise DataError(
            message, code="too-few-requests", trace=source, found=len(rows), expected=count, arrivals=arrivals.label
        )
    first_s = rows["arrival_s"][0]
    times = (round((time_s - first_s) / arrivals.speed, MICROSECOND_DIGITS) for time_s in rows["arrival_s"])
    return tuple(times), tuple(rows.select("input_tokens", "output_tokens").rows())


def online_sizes(arrivals: Arrivals, batch: list[int] | str, *, paired: bool) -> list[int]:
    """How many requests each run of a block of cells has.

    Raises:
        UsageError: Its batch is chosen by memory, or it asks for pairs.
    """
    if arrivals.for_s is not None:
        # The window says how many; what stands here until it is read is replaced.
        return [FEWEST_ARRIVALS]
    if isinstance(batch, str):
        raise UsageError.conflict(
            {"arrivals": arrivals.label, "batch": batch},
            "online the batch is the number of requests of a run; give numbers",
        )
    if paired:
        raise UsageError.conflict(
            {"arrivals": arrivals.label, "paired": True}, "online, prefill and decode of many requests overlap"
        )
    return batch


def plan_online(
    setup: EngineSetup,
    run: Run,
    reason: str,
    shape: ModelShape,
    gpu: Gpu,
    draft: Draft | None = None,
) -> PlannedCell:
    """An online cell with its forecast: its requests, served in simulation.

    Raises:
        UsageError: Not even one request fits the memory.
    """
    load = run.load
    cell = Cell(setup=setup, load=load)
    lengths = run.lengths or (load.lengths,) * load.batch
    if memory_fault(setup, shape, gpu, lengths, draft, together=False) is not None:
        least = "a static batch" if setup.engine == "transformers" else "one of its requests"
        message = f"{cell}: not {least} fits {gpu.title}"
        raise UsageError(message, code="does-not-fit", model=setup.model, gpu=gpu.name, setup=setup.label)
    cost = forecast_run(setup, shape, gpu, lengths, run.arrival_s, draft)
    return PlannedCell(
        cell=cell,
        batch_choice=reason,
        forecast_prefill_s=cost.prefill_s,
        forecast_batch_s=cost.batch_s,
        forecast_batch_j=cost.batch_j,
        arrival_s=run.arrival_s,
        lengths=run.lengths,
    )
