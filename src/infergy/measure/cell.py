"""One cell: the only place where an engine and a meter meet.

load engine ── idle window ──┐ once an engine config; another idle window before loading
                             │
for each cell                ▼
  prompts   warm-up   watched window   state   tick delay   batch batch …   state   settle   tick   tick   row
────────────■■■■■─────■■■■■■■■■■■──────────────|.........■■■■■■■■■■■■■■■............|......|──────────────
                      power sampled            open                      last token settled  close
                                               └────── repeated until the energy is certain ─────┘

Power is sampled in a window of its own, whose energy does not count: reading it can slow an engine down. It also warms
the GPU as the work itself does.

Between the last token and the settled tick the counter reports what it reports late; from there to the closing tick it
reports what the GPU draws between batches, which is subtracted for the idle parts. The start delay is idle time of
random length, so that batches begin and end anywhere in a period of the counter: one that samples a part of each period
only (arXiv 2312.02741) then errs to either side, and the scatter of windows shows by how much.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from statistics import fmean
from typing import Any

from infergy.engines import Completion, EngineOutOfMemoryError, Session, Work
from infergy.errors import DataError, EngineError, GpuLostError, InfergyError, MeterError
from infergy.measure.environment import Surroundings
from infergy.measure.power_sampler import NO_SAMPLER, PowerSampler
from infergy.measure.warmup import WARMUP_OUTPUT_TOKENS, make_work, warm_up
from infergy.meters import LATE_S, Meter, settle, sharp_tick
from infergy.meters.ticks import Edge
from infergy.records import (
    END_VISIT,
    START_VISIT,
    STATUS_FAILED,
    STATUS_OK,
    Batch,
    Failure,
    GpuIdentity,
    GpuState,
    Measurement,
    MeasureOptions,
    PlannedCell,
    Window,
    derive,
)
from infergy.records.cell import Links
from infergy.records.latency import RequestTimes
from infergy.records.row_checks import check_power, reject_impossible
from infergy.records.uncertainty import FEWEST_WINDOWS, is_certain
from infergy.records.visits import Alike, Peer, number_visits
from infergy.workload.load_generator import hash_prompts, hash_times, make_prompts

SETTLE_S = 1.0
"""Wait before the idle window, so that the power of the last batch is not in it."""

MICROSECOND_DIGITS = 6

START_DELAY_S = 0.1
"""Longest start delay where the counter's period is not known."""


class WrongTokensError(EngineError):
    """The engine returned other token counts than it was asked for."""


def measure_cell(
    session: Session,
    meter: Meter,
    planned: PlannedCell,
    options: MeasureOptions,
    surroundings: Surroundings,
    loaded_idle: Window,
    peers: Sequence[Peer | None] = (),
    sampler: PowerSampler = NO_SAMPLER,
    earlier: Sequence[Sequence[Window]] = (),
    *,
    is_watched: bool = False,
) -> Measurement:
    """Warm up, sample power, and measure windows until the energy is certain enough or the time is up.

    Fewer windows are needed where the scatter of `peers`, cells of the engine config that were measured before, is
    known, and after `earlier` visits of the cell; `is_watched` if one of them has a timeline. What fails after a window
    ends the cell with the windows it has; the row's `interrupted` says why.

    Raises:
        EngineError: The engine failed before a window was whole, or did not return the tokens it was asked for.
        MeterError: The counter failed before a window was whole.
        DataError: What was measured contradicts itself.
    """
    work = work_of(planned, options, surroundings.vocabulary)
    warmup_s, experts_touched = warm_up(session, meter, planned, work, options)
    seen = _watch(session, meter, planned, work, options, loaded_idle, sampler, is_watched=is_watched)
    before = meter.states()
    measured_utc = datetime.now(UTC).isoformat(timespec="milliseconds")
    # A counter that reports late would add energy of what ran before.
    meter.clock.sleep(LATE_S)
    delays = random.Random(f"{options.seed} {planned.key}")
    longest_s = surroundings.environment.counter_period_s or START_DELAY_S
    windows: list[Window] = []
    interrupted: Failure | None = None
    while not interrupted and not (windows and _is_enough(windows, earlier, planned, options, loaded_idle, peers)):
        delay_s = delays.uniform(0, longest_s)
        try:
            window, after = _measure_window(session, meter, work, options, loaded_idle, delay_s)
            windows.append(window)
        except (EngineError, MeterError) as error:
            if not windows:
                raise
            interrupted = failure_of(error)
    served = windows[0].batches[0].served
    lengths = planned.lengths if served is None else served.lengths
    row = replace(
        _row(planned, options, surroundings, STATUS_OK),
        lengths=lengths,
        measured_utc=measured_utc,
        prompt_sha256=hash_prompts(work.prompts),
        windows=tuple(windows),
        loaded_idle=loaded_idle,
        before=before,
        after=after,
        warmup_s=warmup_s,
        experts_touched=experts_touched,
        result=derive(windows, loaded_idle, lengths),
        interrupted=interrupted,
        **seen,
    )
    # A row that cannot be read again would take the whole store with it.
    reject_impossible(row, "what was measured")
    return row


def work_of(planned: PlannedCell, options: MeasureOptions, vocabulary: int) -> Work:
    """The requests of a cell, token ids below `vocabulary`."""
    load = planned.cell.load
    prompts = make_prompts(load, vocabulary, options.seed, planned.lengths, planned.links)
    outputs, links = tuple(tokens for _, tokens in planned.lengths), planned.links or Links()
    work = make_work(prompts, outputs or load.output_tokens, load.decoding, planned.arrival_s)
    return replace(work, after=links.after, gap_s=links.gap_s)


def _watch(
    session: Session,
    meter: Meter,
    planned: PlannedCell,
    work: Work,
    options: MeasureOptions,
    loaded_idle: Window,
    sampler: PowerSampler,
    *,
    is_watched: bool,
) -> dict[str, Any]:
    """A window of the cell's work, or of its begin where a batch takes long, with its power timeline: row fields."""
    if is_watched:
        return {"timeline_reason": "an earlier visit was watched"}
    sampler.begin()
    if sampler.reason is not None:
        return {"timeline_reason": sampler.reason}
    try:
        watched = _begin_of(work, planned, options)
        window, _ = _measure_window(session, meter, watched, replace(options, min_batches=1), loaded_idle)
    except (EngineError, MeterError):
        # Nothing may sample during the windows of the next cell.
        sampler.stop()
        raise
    open_s = min(tick.time_s for tick in window.open.values())
    timeline = sampler.take(open_s, max(tick.time_s for tick in window.close.values()))
    reason = sampler.reason
    if gap_s := max((one.longest_gap_s for one in timeline if not one.is_whole), default=0.0):
        reason = f"no sample for {gap_s:.1f} s; see whether the host was overloaded"
    return {"timeline": timeline, "timeline_reason": reason, "watched": window if timeline else None}


def _begin_of(work: Work, planned: PlannedCell, options: MeasureOptions) -> Work:
    """The same prompts with as many output tokens as a long batch may take; all of them if it is not long.

    Of a run of arrivals, the requests that come until then; of a replay, a part of its requests.
    """
    load = planned.cell.load
    if load.is_online:
        count = max(1, bisect_right(work.arrival_s, options.long_batch_s))
        if planned.lengths:
            count = max(1, int(count * min(1.0, options.long_batch_s / planned.forecast_batch_s)))
        return replace(
            work,
            prompts=work.prompts[:count],
            output_tokens=work.output_tokens[:count],
            arrival_s=work.arrival_s[:count],
            after=work.after[:count],
            gap_s=work.gap_s[:count],
        )
    decode_s = planned.forecast_batch_s - planned.forecast_prefill_s
    # What is compiled is compiled for one length of the cache.
    if planned.forecast_batch_s <= options.long_batch_s or decode_s <= 0 or planned.cell.setup.compiled:
        return work
    share = max(0.0, options.long_batch_s - planned.forecast_prefill_s) / decode_s
    output = max(min(load.output_tokens, WARMUP_OUTPUT_TOKENS), int(load.output_tokens * share))
    return make_work(work.prompts, output, work.decoding)


def _is_enough(
    windows: Sequence[Window],
    earlier: Sequence[Sequence[Window]],
    planned: PlannedCell,
    options: MeasureOptions,
    loaded_idle: Window,
    peers: Sequence[Peer | None],
) -> bool:
    """Whether a visit has enough windows: the last of R visits when the energy is certain or the time is up.

    The r-th leaves the later ones their share of the time, of the fewest windows and of the target: r visits of R have
    √(R / r) times the half-width.
    """
    share = 1.0 if planned.visit in (START_VISIT, END_VISIT) else min(1.0, planned.round / options.repeats)
    every = number_visits([*earlier, windows])
    if sum(window.busy_s for window in every) >= options.max_time_s * share:
        return True
    power_w = derive(every, loaded_idle).power_w
    like, target = Alike(peers), options.target / math.sqrt(share)
    fewest = math.ceil(FEWEST_WINDOWS * share)
    return is_certain(every, loaded_idle, like.spread(power_w), target, like.scatters(power_w), fewest)


def measure_idle(meter: Meter, seconds: float) -> Window:
    """A window over the idle GPU, at least `seconds` long, after it has settled."""
    meter.clock.sleep(SETTLE_S)
    opened = sharp_tick(meter)
    meter.clock.sleep(seconds)
    return window_since(opened, meter)


def window_since(opened: Edge, meter: Meter) -> Window:
    """A window without batches, from an edge to the next tick."""
    closed = sharp_tick(meter)
    uncertainty_s = max(opened.uncertainty_s, closed.uncertainty_s)
    return Window(open=opened.ticks, close=closed.ticks, edge_uncertainty_s=uncertainty_s)


def _measure_window(
    session: Session, meter: Meter, work: Work, options: MeasureOptions, loaded_idle: Window, delay_s: float = 0.0
) -> tuple[Window, tuple[GpuState, ...]]:
    """One possible window, and the state of each GPU after its last batch; its first batch begins after `delay_s`."""
    opened = sharp_tick(meter)
    meter.clock.sleep(delay_s)
    batches = _run_batches(session, meter, work, options)
    after = meter.states()
    settled, closed = settle(meter, batches[-1].end_s)
    window = Window(
        open=opened.ticks,
        close=closed.ticks,
        edge_uncertainty_s=max(edge.uncertainty_s for edge in (opened, settled, closed)),
        batches=batches,
        settled=settled.ticks,
    )
    check_window(window, loaded_idle, meter.gpus)
    return window, after


def _run_batches(session: Session, meter: Meter, work: Work, options: MeasureOptions) -> tuple[Batch, ...]:
    clock = meter.clock
    batches: list[Batch] = []
    begun_s = clock.now_s()
    while True:
        start_s = clock.now_s()
        completion = session.run(work)
        end_s = clock.now_s()
        batches.append(count_batch(work, completion, start_s + completion.prepared_s, end_s))
        is_long = end_s - start_s >= options.long_batch_s
        if (is_long or len(batches) >= options.min_batches) and end_s - begun_s >= options.min_window_s:
            return tuple(batches)


def count_batch(work: Work, completion: Completion, start_s: float, end_s: float) -> Batch:
    """What an engine made of `work`.

    Raises:
        WrongTokensError: It did not make the tokens that it was asked for, and is no server that counts its own.
    """
    asked = tuple(len(prompt) for prompt in work.prompts)
    is_as_asked = completion.input_tokens == asked and completion.output_tokens == work.output_tokens
    if completion.served is None and not is_as_asked:
        expected = [sum(asked), sum(work.output_tokens)]
        found = [sum(completion.input_tokens), sum(completion.output_tokens)]
        raise WrongTokensError(
            f"asked for {expected[0]} input and {expected[1]} output tokens in {len(asked)} requests, got {found[0]} "
            f"and {found[1]} in {len(completion.output_tokens)}: energy per token would be wrong",
            code="wrong-tokens",
            expected=expected,
            found=found,
        )
    first_s, finished_s = completion.first_token_s, completion.finished_s
    return Batch(
        start_s=start_s,
        end_s=end_s,
        requests=len(completion.output_tokens),
        input_tokens=sum(completion.input_tokens),
        output_tokens=sum(completion.output_tokens),
        first_token_s=fmean(first_s) if first_s else None,
        last_first_token_s=max(first_s) if first_s else None,
        finished_s=fmean(finished_s) if finished_s else None,
        times=_times(work, completion),
        drafts=completion.drafts,
        counts=completion.counts,
        served=completion.served,
    )


def _times(work: Work, completion: Completion) -> RequestTimes | None:
    """Each request's own times where requests differ, in arrival or length."""
    first_s, finished_s = completion.first_token_s, completion.finished_s
    is_alike = not work.is_timed and len(set(zip(map(len, work.prompts), work.output_tokens, strict=True))) == 1
    if first_s is None or finished_s is None or is_alike:
        return None
    first, finished = (tuple(round(time, MICROSECOND_DIGITS) for time in times) for times in (first_s, finished_s))
    return RequestTimes(first_token_s=first, finished_s=finished, engine=completion.engine_times)


def check_window(window: Window, loaded_idle: Window, gpus: Sequence[GpuIdentity]) -> None:
    """Reject a window of work whose stamps are out of order or whose mean power cannot be.

    Raises:
        MeterError: A counter or a clock stood still or ran backwards, or power lies outside of what a device can draw.
    """
    stamps_s = [max(tick.time_s for tick in window.open.values())]
    for batch in window.batches:
        stamps_s += [batch.start_s, batch.end_s]
    stamps_s += [min(tick.time_s for tick in edge.values()) for edge in (window.settled, window.close) if edge]
    for earlier_s, later_s in pairwise(stamps_s):
        if later_s < earlier_s:
            message = (
                f"the clock went back by {earlier_s - later_s:.3f} s within a window; expected one that only grows. "
                "Measure again; if it stays, see whether this machine is paused or moved while it runs"
            )
            raise MeterError(message, code="clock-wrong", back_s=earlier_s - later_s)
    check_power(derive([window], loaded_idle).power_by_gpu_w, gpus, loaded_idle.power_by_gpu_w)


def failure_of(error: InfergyError) -> Failure:
    """The failure that a row records for an error."""
    codes: tuple[tuple[type[InfergyError], str], ...] = (
        (EngineOutOfMemoryError, "out_of_memory"),
        (WrongTokensError, "tokens"),
        # The engine cannot go on either; a new child finds whether the GPU came back.
        (GpuLostError, "gpu_lost"),
        (MeterError, "meter"),
        (DataError, "meter"),
    )
    return Failure(code=next((code for kind, code in codes if isinstance(error, kind)), "engine"), message=str(error))


def failed_cell(
    planned: PlannedCell, options: MeasureOptions, surroundings: Surroundings, failure: Failure
) -> Measurement:
    """The row of a cell that has no energy, with its reason."""
    return replace(_row(planned, options, surroundings, STATUS_FAILED), failure=failure)


def _row(planned: PlannedCell, options: MeasureOptions, surroundings: Surroundings, status: str) -> Measurement:
    return Measurement(
        cell_id=planned.cell.id,
        visit=planned.visit,
        cell=planned.cell,
        status=status,
        batch_choice=planned.batch_choice,
        arrival_s=planned.arrival_s,
        arrival_sha256=hash_times(planned.arrival_s) if planned.arrival_s else None,
        lengths=planned.lengths,
        links=planned.links,
        measured_utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
        seed=options.seed,
        simulated=surroundings.is_simulated,
        environment=surroundings.environment,
    )
