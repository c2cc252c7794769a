"""Online cells as a grid asks for them, resolved: when requests arrive, and what serving them takes by forecast.

Standard library only, but where a trace is read.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from infergy.errors import UsageError
from infergy.hardware import Gpu, ModelShape
from infergy.hardware.draft import Draft
from infergy.hardware.serving import play
from infergy.measure.forecast import forecast_load
from infergy.records import Arrivals, Cell, Load, PlannedCell
from infergy.records.arrivals import TRACE
from infergy.workload.arrivals import DIGEST_LENGTH, draw_times, hash_times, trace_times


def resolve_arrivals(load: Load, seed: int) -> tuple[Load, tuple[float, ...]]:
    """The load, its trace named by what its times are, and when each of its requests arrives; no times offline.

    Raises:
        DataError: A trace has no times, or too few.
    """
    arrivals = load.arrivals
    if arrivals is None:
        return load, ()
    if arrivals.law != TRACE:
        return load, draw_times(arrivals, load.batch, seed)
    source = str(arrivals.trace)
    times = trace_times(source, load.batch, arrivals)
    # A path is this machine's; what tells two logs apart are their times.
    named = replace(arrivals, trace=Path(source).name, digest=hash_times(times)[:DIGEST_LENGTH])
    return replace(load, arrivals=named), times


def online_sizes(arrivals: Arrivals, batch: list[int] | str, *, paired: bool) -> list[int]:
    """How many requests each run of a block of cells has.

    Raises:
        UsageError: Its batch is chosen by memory, or it asks for pairs.
    """
    if isinstance(batch, str):
        raise UsageError(
            f"{arrivals.label} and batch = {batch!r}: online the batch is the number of requests of a run; give numbers"
        )
    if paired:
        raise UsageError(f"{arrivals.label} and paired = true: online, prefill and decode of many requests overlap")
    return batch


def plan_online(
    cell: Cell,
    reason: str,
    arrival_s: tuple[float, ...],
    shape: ModelShape,
    gpu: Gpu,
    draft: Draft | None = None,
) -> PlannedCell:
    """An online cell with its forecast: its arrivals, played.

    Raises:
        UsageError: Not even one request fits the memory.
    """
    setup, load = cell.setup, cell.load
    played = play(shape, gpu, setup, load.input_tokens, load.output_tokens, arrival_s, draft)
    if played is None:
        raise UsageError(f"{cell}: not one of its requests fits {gpu.title}")
    # What a warm-up hands over at once.
    prefill = forecast_load(setup, shape, gpu, load, draft)
    return PlannedCell(
        cell=cell,
        batch_choice=reason,
        forecast_prefill_s=prefill.prefill_s,
        forecast_batch_s=played.duration_s,
        arrival_s=arrival_s,
    )
