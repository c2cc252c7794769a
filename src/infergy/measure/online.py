"""Online cells as a grid asks for them, resolved: when requests arrive, and what serving them takes by forecast.

Of a replay, how long its requests are. Standard library only, but where a trace is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from infergy.errors import UsageError
from infergy.hardware import Gpu, ModelShape
from infergy.hardware.draft import Draft
from infergy.hardware.serving import play
from infergy.measure.forecast import forecast_load
from infergy.records import Arrivals, Cell, EngineSetup, Load, PlannedCell
from infergy.records.arrivals import REPLAY, TRACE
from infergy.workload.arrivals import (
    DIGEST_LENGTH,
    draw_times,
    hash_lengths,
    hash_times,
    trace_lengths,
    trace_times,
)


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


def resolve_arrivals(load: Load, seed: int) -> Run:
    """The run that a load asks for.

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
    lengths = trace_lengths(source, arrivals.first, load.batch)
    named = replace(arrivals, trace=Path(source).name, digest=hash_lengths(lengths)[:DIGEST_LENGTH])
    longest_in, longest_out = (max(tokens) for tokens in zip(*lengths, strict=True))
    load = replace(load, arrivals=named, input_tokens=longest_in, output_tokens=longest_out)
    return Run(load=load, arrival_s=(0.0,) * load.batch, lengths=lengths)


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
    setup: EngineSetup,
    run: Run,
    reason: str,
    shape: ModelShape,
    gpu: Gpu,
    draft: Draft | None = None,
) -> PlannedCell:
    """An online cell with its forecast: its requests, played.

    Raises:
        UsageError: Not even one request fits the memory.
    """
    load = run.load
    cell = Cell(setup=setup, load=load)
    played = play(shape, gpu, setup, run.lengths or (load.lengths,) * load.batch, run.arrival_s, draft)
    if played is None:
        least = "a static batch" if setup.engine == "transformers" else "one of its requests"
        raise UsageError(f"{cell}: not {least} fits {gpu.title}")
    # What a warm-up hands over at once.
    usual = load if not run.lengths else replace(load, input_tokens=round(fmean(tokens for tokens, _ in run.lengths)))
    prefill = forecast_load(setup, shape, gpu, replace(usual, output_tokens=1), draft)
    return PlannedCell(
        cell=cell,
        batch_choice=reason,
        forecast_prefill_s=prefill.prefill_s,
        forecast_batch_s=played.duration_s,
        arrival_s=run.arrival_s,
        lengths=run.lengths,
    )
