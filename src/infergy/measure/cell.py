"""One cell: the only place where an engine and a meter meet.

load engine ── idle window ──┐ once a set-up; another idle window before loading
                             │
for each cell                ▼
  prompts   warm-up   watched window   state   tick lead   batch batch …   state   settle   tick   tick   row
────────────■■■■■─────■■■■■■■■■■■──────────────|.......■■■■■■■■■■■■■■■■............|......|──────────────
                      power seen               open                    last token   settled  close
                                               └────── repeated until the joules are certain ──────┘

Power is looked at in a window of its own, which counts for no joules: to look can slow an engine down. It also warms
the chip as the work itself does.

Between the last token and the settled tick the counter tells what it tells late; from there to the closing tick it
tells what the GPU draws between batches, at which the idle parts are priced. The lead is idle time of random length, so
that batches begin and end anywhere in a period of the counter: one that looks at a part of each period only
(arXiv 2312.02741) then errs to either side, and windows that differ show by how much.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import fmean

from infergy.engines import Completion, EngineOutOfMemoryError, Session, Work
from infergy.errors import EngineError, GpuLostError, InfergyError, MeterError
from infergy.measure.environment import Surroundings
from infergy.measure.plausible import demand_plausible_window
from infergy.measure.timeline import NOBODY, Witness
from infergy.measure.warmup import WARMUP_OUTPUT_TOKENS, make_work, warm_up
from infergy.meters import LATE_S, Meter, settle, sharp_tick
from infergy.records import (
    END_VISIT,
    START_VISIT,
    STATUS_FAILED,
    STATUS_OK,
    Batch,
    Failure,
    GpuState,
    Measurement,
    MeasureOptions,
    PlannedCell,
    Window,
    derive,
)
from infergy.records.latency import RequestTimes
from infergy.records.timeline import PowerTimeline
from infergy.records.uncertainty import FEWEST_WINDOWS, Peer, is_certain, scatters_at, spread_at
from infergy.records.visits import number_visits
from infergy.workload.load_generator import hash_prompts, hash_times, make_prompts

SETTLE_S = 1.0
"""Wait before the idle window, so that the power of the last batch is not in it."""

MICROSECOND_DIGITS = 6

LEAD_S = 0.1
"""Longest lead, where the counter's period is not known."""


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
    witness: Witness = NOBODY,
    earlier: Sequence[Sequence[Window]] = (),
    *,
    is_watched: bool = False,
) -> Measurement:
    """Warm up, look at power, and measure windows until the joules are certain enough or the time is up.

    What the `peers`, the cells of the set-up that were measured before, tell of its spread saves windows, and so do
    those of `earlier` visits of the cell; `is_watched` if one of them has a timeline. What fails after a whole window
    ends the cell with the windows it has; the row's `interrupted` says why.

    Raises:
        EngineError: The engine failed before a window was whole, or did not return the tokens it was asked for.
        MeterError: The counter failed before a window was whole.
    """
    load = planned.cell.load
    prompts = make_prompts(load, surroundings.vocabulary, options.seed, planned.lengths)
    outputs = tuple(tokens for _, tokens in planned.lengths)
    work = make_work(prompts, outputs or load.output_tokens, load.decoding, planned.arrival_s)
    warmed = warm_up(session, meter, planned, work, options)
    seen = _watch(session, meter, planned, work, options, loaded_idle, witness, is_watched=is_watched)
    rule = _Enough(planned, options, loaded_idle, peers, earlier)

    before = meter.states()
    measured_utc = datetime.now(UTC).isoformat(timespec="milliseconds")
    windows: list[Window] = []
    leads = random.Random(f"{options.seed} {planned.key}")
    longest_s = surroundings.environment.counter_period_s or LEAD_S
    # A counter that tells late would tell of what ran before in the window.
    meter.clock.sleep(LATE_S)
    interrupted: Failure | None = None
    while not interrupted and not rule.is_met(windows):
        try:
            window, after = _measure_window(session, meter, work, options, leads.uniform(0, longest_s))
            demand_plausible_window(window, loaded_idle, meter.gpus)
        except (EngineError, MeterError) as error:
            if not windows:
                raise
            interrupted = failure_of(error)
        else:
            windows.append(window)
    return replace(
        _blank(planned, options, surroundings, STATUS_OK),
        measured_utc=measured_utc,
        prompt_sha256=hash_prompts(prompts),
        windows=tuple(windows),
        loaded_idle=loaded_idle,
        before=before,
        after=after,
        warmup_s=warmed.seconds,
        experts_touched=warmed.experts_touched,
        result=derive(windows, loaded_idle, planned.lengths),
        interrupted=interrupted,
        timeline=seen.timeline,
        timeline_reason=seen.reason,
        watched=seen.window,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """The watched window and its timeline, or why there is none."""

    reason: str | None
    window: Window | None = None
    timeline: tuple[PowerTimeline, ...] = ()


def _watch(
    session: Session,
    meter: Meter,
    planned: PlannedCell,
    work: Work,
    options: MeasureOptions,
    loaded_idle: Window,
    witness: Witness,
    *,
    is_watched: bool,
) -> _Seen:
    """One window of the cell's work, or of the begin of it where a batch takes long, while the witness looks."""
    if is_watched:
        return _Seen(reason="an earlier visit was watched")
    witness.begin()
    if witness.reason is not None:
        return _Seen(reason=witness.reason)
    shown = _begin_of(work, planned, options)
    try:
        window, _ = _measure_window(session, meter, shown, replace(options, min_batches=1), 0.0)
        demand_plausible_window(window, loaded_idle, meter.gpus)
    except (EngineError, MeterError):
        # Nobody may look into the windows of the next cell.
        witness.stop()
        raise
    timeline = witness.take(
        min(tick.time_s for tick in window.open.values()), max(tick.time_s for tick in window.close.values())
    )
    reason = witness.reason
    if blind_s := max((one.longest_gap_s for one in timeline if not one.is_whole), default=0.0):
        reason = f"nobody looked for {blind_s:.1f} s; see whether the host was overloaded"
    return _Seen(reason=reason, window=window if timeline else None, timeline=timeline)


def _begin_of(work: Work, planned: PlannedCell, options: MeasureOptions) -> Work:
    """The same prompts with as many output tokens as a long batch is to take; all of them if it is not long.

    Of a run of arrivals, the requests that come until then; of a replay, a part of its requests.
    """
    if planned.cell.load.is_online:
        came = max(1, bisect_right(work.arrival_s, options.long_batch_s))
        if planned.lengths:
            came = max(1, int(came * min(1.0, options.long_batch_s / planned.forecast_batch_s)))
        return replace(
            work,
            prompts=work.prompts[:came],
            output_tokens=work.output_tokens[:came],
            arrival_s=work.arrival_s[:came],
        )
    decode_s = planned.forecast_batch_s - planned.forecast_prefill_s
    # What is compiled is compiled for one length of the cache.
    if planned.forecast_batch_s <= options.long_batch_s or decode_s <= 0 or planned.cell.setup.compiled:
        return work
    share = max(0.0, options.long_batch_s - planned.forecast_prefill_s) / decode_s
    output = max(
        min(planned.cell.load.output_tokens, WARMUP_OUTPUT_TOKENS), int(planned.cell.load.output_tokens * share)
    )
    return make_work(work.prompts, output, work.decoding)


def _measure_window(
    session: Session, meter: Meter, work: Work, options: MeasureOptions, lead_s: float
) -> tuple[Window, tuple[GpuState, ...]]:
    """One window, and the state of each GPU after its last batch."""
    opened = sharp_tick(meter)
    meter.clock.sleep(lead_s)
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
    return window, after


class _Enough:
    """When a visit has windows enough: the last of R visits when the joules are certain or the time is up.

    An earlier one, the r-th, leaves the later ones their share: of the time, of the fewest windows, and of the target,
    for r visits of R leave √(R / r) times the half-width.
    """

    def __init__(
        self,
        planned: PlannedCell,
        options: MeasureOptions,
        loaded_idle: Window,
        peers: Sequence[Peer | None],
        earlier: Sequence[Sequence[Window]],
    ) -> None:
        is_anchor = planned.visit in (START_VISIT, END_VISIT)
        self._share = 1.0 if is_anchor else min(1.0, planned.round / options.repeats)
        self._options, self._loaded_idle, self._peers, self._earlier = options, loaded_idle, peers, earlier

    def is_met(self, windows: Sequence[Window]) -> bool:
        """Whether these windows of the visit, beside those of earlier visits, are enough; there is one at least."""
        if not windows:
            return False
        every = number_visits([*self._earlier, windows])
        if sum(window.busy_s for window in every) >= self._options.max_time_s * self._share:
            return True
        power_w = derive(every, self._loaded_idle).power_w
        return is_certain(
            every,
            self._loaded_idle,
            spread_at(power_w, self._peers),
            self._options.target / math.sqrt(self._share),
            scatters_at(power_w, self._peers),
            math.ceil(FEWEST_WINDOWS * self._share),
        )


def failure_of(error: InfergyError) -> Failure:
    """An error in the words of the row."""
    codes: tuple[tuple[type[InfergyError], str], ...] = (
        (EngineOutOfMemoryError, "out_of_memory"),
        (WrongTokensError, "tokens"),
        # Not even the engine can go on; a new child tells whether the GPU came back.
        (GpuLostError, "gpu_lost"),
        (MeterError, "meter"),
    )
    return Failure(code=next((code for kind, code in codes if isinstance(error, kind)), "engine"), message=str(error))


def failed_cell(
    planned: PlannedCell, options: MeasureOptions, surroundings: Surroundings, failure: Failure
) -> Measurement:
    """The row of a cell that has no number, with its reason."""
    return replace(_blank(planned, options, surroundings, STATUS_FAILED), failure=failure)


def measure_idle(meter: Meter, seconds: float) -> Window:
    """A window over the idle GPU, at least `seconds` long, after it has settled."""
    meter.clock.sleep(SETTLE_S)
    opened = sharp_tick(meter)
    meter.clock.sleep(seconds)
    closed = sharp_tick(meter)
    return Window(
        open=opened.ticks,
        close=closed.ticks,
        edge_uncertainty_s=max(opened.uncertainty_s, closed.uncertainty_s),
    )


def _run_batches(session: Session, meter: Meter, work: Work, options: MeasureOptions) -> tuple[Batch, ...]:
    clock = meter.clock
    batches: list[Batch] = []
    begun_s = clock.now_s()
    while True:
        start_s = clock.now_s()
        completion = session.run(work)
        end_s = clock.now_s()
        batches.append(_count(work, completion, start_s + completion.prepared_s, end_s))
        is_long = end_s - start_s >= options.long_batch_s
        enough = is_long or len(batches) >= options.min_batches
        if enough and end_s - begun_s >= options.min_window_s:
            return tuple(batches)


def _count(work: Work, completion: Completion, start_s: float, end_s: float) -> Batch:
    asked = tuple(len(prompt) for prompt in work.prompts)
    if completion.input_tokens != asked or completion.output_tokens != work.output_tokens:
        raise WrongTokensError(
            f"asked for {sum(asked)} input and {sum(work.output_tokens)} output tokens in {len(asked)} requests, "
            f"got {sum(completion.input_tokens)} and {sum(completion.output_tokens)} "
            f"in {len(completion.output_tokens)}: energy per token would be wrong",
            code="wrong-tokens",
            expected=[sum(asked), sum(work.output_tokens)],
            found=[sum(completion.input_tokens), sum(completion.output_tokens)],
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
    )


def _times(work: Work, completion: Completion) -> RequestTimes | None:
    """Those of each request where requests differ, in arrival or length: else all of a batch are alike."""
    first_s, finished_s = completion.first_token_s, completion.finished_s
    is_alike = not any(work.arrival_s) and len(set(zip(map(len, work.prompts), work.output_tokens, strict=True))) == 1
    if first_s is None or finished_s is None or is_alike:
        return None
    first, finished = (tuple(round(one, MICROSECOND_DIGITS) for one in times) for times in (first_s, finished_s))
    return RequestTimes(first_token_s=first, finished_s=finished, engine=completion.engine_times)


def _blank(planned: PlannedCell, options: MeasureOptions, surroundings: Surroundings, status: str) -> Measurement:
    return Measurement(
        cell_id=planned.cell.id,
        visit=planned.visit,
        cell=planned.cell,
        status=status,
        batch_choice=planned.batch_choice,
        arrival_s=planned.arrival_s,
        arrival_sha256=hash_times(planned.arrival_s) if planned.arrival_s else None,
        lengths=planned.lengths,
        measured_utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
        seed=options.seed,
        simulated=surroundings.is_simulated,
        environment=surroundings.environment,
    )
