"""Flags of a row by itself: its figures may be wrong by more than its interval. A pure function of the row.

Standard library only. What only shows among the other rows of its engine config: `infergy.records.unlike`; what is a
fact and no flag: `infergy.records.check`. Which flags predict an error: benchmarks/flags.py, docs/flags.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from statistics import fmean

from infergy.records.environment import processes_by_gpu, slowdowns_by_gpu
from infergy.records.measurement import Measurement
from infergy.records.result import Result, derive, result_of
from infergy.records.timeline import looking_error_by_gpu, ratio_by_gpu, ratio_by_window
from infergy.records.uncertainty import Uncertainty
from infergy.units import count_of, format_percent, parse_count

FEWEST_WINDOWS, WIDE = 3, 0.02
"""Windows and half-width from which on windows differ by more than their interval allows for: it is the target of
measuring, which a steady cell reaches. The interval of fewer windows is wide because little is known, and contains
replicates."""

DISAGREEMENT = 0.05
"""How far the energy of the counter may differ from that of the power timeline."""

WINDOW_DISAGREEMENT = 0.08
"""The same over one window: a sensor that lags misplaces up to 3 % at either edge."""

LOOKING_ERRORS = 2.0
"""How many standard errors of a sensor that samples part of the time the two may differ by, if that is more. They are
taken as if it sampled at random: its samples are evenly spaced, and of 170 sampled windows of H100 and H200 the median
was 0.35 of them off."""

CHANGED, NOTHING = 0.02, 1e-3
"""How far the figures that stand in a row may lie from those of its raw facts, as a share and beside it: releases may
derive them otherwise."""

FIGURES = tuple(
    each.name for each in fields(Result) if each.name not in ("energy_by_gpu_j", "power_by_gpu_w", "latency")
)
"""Fields of a result that are numbers, or None."""

LATE_S = 0.1
"""How long a client may be held up."""

LOST = 0.25
"""How far energy and power of a window may both differ, to one side, from the sampled one's: sampling slows by 12 %."""

METER_FIX = "test the meter (infergy doctor --meter), then measure the cell again"

BEAT, MOST_BEATS = 0.05, 4
"""How near to a whole number of periods of the sensor a batch must last to be sampled at the same part, and of how many
at most: longer batches differ by enough."""

CODES = {
    "uncertain": "the 95 % interval is unknown or wider than --target",
    "unsteady": "repeated windows differ: one replicate in five lies outside the interval",
    "interrupted": "the engine or the counter failed: fewer windows than planned",
    "slowed": "clocks were lowered by heat, hardware or a power brake",
    "other-process": "another process ran on the GPU: its energy is counted too",
    "batch": "the engine cannot run the batch at once: requests waited",
    "token-counts": "the server gave no token counts of some requests, or such as cannot be",
    "client": "requests were sent again, or late: times are not the server's alone",
    "disagree": "the energy counter and the power sampler disagree",
    "changed": "the figures in the row do not follow from its ticks and batches: one of the two was edited",
    "drift": "a control cell changed between start and end",
    "clocks": "clocks differ from those of the other rows of the engine config",
    "environment": "driver, packages, power limit or options differ: no table takes both",
    "negative-phase": "a phase has less than 0 J",
}
"""All flags and what they mean; `drift`, `clocks` and `environment` are raised by `infergy.records.unlike`,
`negative-phase` by `infergy.quality.phases`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A reason why a figure may be wrong by more than its interval.

    Attributes:
        code: One of `CODES`.
        reason: What was measured and what was expected.
        fix: What to do or type.
        value: What was measured, where it is a number; a fraction unless `reason` has another unit.
        limit: The value from which on it is flagged; None where there is none.
    """

    code: str
    reason: str
    fix: str
    value: float | None = None
    limit: float | None = None


def find_flags(row: Measurement, uncertainty: Uncertainty | None, *, target: float | None = None) -> tuple[Flag, ...]:
    """All flags of a row, in the order of `CODES`; none for a failed row, whose failure is reported instead.

    `uncertainty` is that of `infergy.records.uncertainty.find_uncertainties`; `target` the widest half-width wanted, as
    a fraction, None for any.
    """
    if not row.windows:
        return ()
    found = (
        _uncertain(uncertainty, target),
        _unsteady(row, uncertainty),
        _interrupted(row),
        _slowed(row),
        _crowded(row),
        _queued(row),
        *_served(row),
        _disagree(row),
        _changed(row),
    )
    return tuple(flag for flag in found if flag is not None)


def _uncertain(uncertainty: Uncertainty | None, target: float | None) -> Flag | None:
    if target is None or (uncertainty is not None and uncertainty.half_width <= target):
        return None
    half = None if uncertainty is None else uncertainty.half_width
    interval = "unknown" if half is None else f"±{format_percent(half)}"
    return Flag(
        code="uncertain",
        reason=f"95 % interval {interval}, target ±{format_percent(target)}",
        fix="measure the cell again with more windows: --max-time 120",
        value=half,
        limit=target,
    )


def _unsteady(row: Measurement, uncertainty: Uncertainty | None) -> Flag | None:
    count = len(row.windows)
    if uncertainty is None or count < FEWEST_WINDOWS or uncertainty.half_width <= WIDE:
        return None
    half = uncertainty.half_width
    return Flag(
        code="unsteady",
        reason=f"95 % interval ±{format_percent(half)} after {count} windows (limit ±{format_percent(WIDE)})",
        fix="look for other work on the host (small batches wait for the CPU), then measure the cell again",
        value=half,
        limit=WIDE,
    )


def _interrupted(row: Measurement) -> Flag | None:
    if row.interrupted is None:
        return None
    reason = f"stopped after {len(row.windows)} windows: {row.interrupted.code}: {row.interrupted.message}"
    return Flag(
        code="interrupted", reason=reason, fix="remove the cause, then measure the cell again into another file"
    )


def _slowed(row: Measurement) -> Flag | None:
    slowed = [
        f"clocks of {name_gpu(row, uuid)} were lowered by {', '.join(reasons)}"
        for uuid, reasons in slowdowns_by_gpu((*row.before, *row.after)).items()
    ]
    if not slowed:
        return None
    fix = "check cooling and power supply (nvidia-smi -q -d PERFORMANCE), then measure the cell again"
    return Flag(code="slowed", reason="; ".join(slowed), fix=fix)


def _crowded(row: Measurement) -> Flag | None:
    most = processes_by_gpu((*row.before, *row.after))
    crowded = [f"{count} processes on {name_gpu(row, uuid)}" for uuid, count in most.items() if count > 1]
    if not crowded:
        return None
    fix = "end the others (nvidia-smi lists them), then measure the cell again"
    reason = f"{'; '.join(crowded)}, expected one"
    return Flag(code="other-process", reason=reason, fix=fix, value=max(most.values()), limit=1)


def name_gpu(row: Measurement, uuid: str) -> str:
    """A GPU of a row in words: ``the GPU``; of several its place in the engine's order, and its UUID."""
    uuids = [gpu.uuid for gpu in row.environment.gpus]
    if len(uuids) <= 1:
        return "the GPU"
    return f"GPU {uuids.index(uuid)} ({uuid})" if uuid in uuids else uuid


def _queued(row: Measurement) -> Flag | None:
    """Whether the engine has sequences and KV cache enough for the batch: if not, requests waited."""
    load, options = row.cell.load, row.environment.engine
    if load.is_online:
        # The requests of a run need not fit at once.
        return None
    sequences = parse_count(options.get("max_num_seqs"))
    blocks, block_tokens = parse_count(options.get("kv_cache_blocks")), parse_count(options.get("kv_block_size"))
    largest = {"max_num_seqs": sequences}
    if blocks is not None and block_tokens:
        blocks_per_request = -(-(load.input_tokens + load.output_tokens) // block_tokens)
        largest["the KV cache"] = blocks // blocks_per_request
    for what, most in largest.items():
        if most is not None and most < load.batch:
            return Flag(
                code="batch",
                reason=f"batch of {load.batch}, but {what} allows {most} such requests at once: the others waited",
                fix=f"measure it with --batch {max(1, most)} or less",
                value=load.batch,
                limit=most,
            )
    return None


def _served(row: Measurement) -> Iterator[Flag]:
    """What the client of a server saw that ran already."""
    served = [batch.served for window in row.windows for batch in window.batches if batch.served is not None]
    wrong = sum(one.uncounted + one.inconsistent for one in served)
    if wrong:
        missing = sum(one.uncounted for one in served)
        yield Flag(
            code="token-counts",
            reason=f"of {count_of(row.cell.load.batch, 'request')} {missing} without usage, {wrong - missing} with "
            "counts that contradict what was sent or received",
            fix="do not use energy per token; look at the usage that the server reports",
            value=wrong / row.cell.load.batch,
            limit=0.0,
        )
    late_s, retries = max((one.late_s for one in served), default=0.0), sum(one.retries for one in served)
    if late_s > LATE_S or retries:
        yield Flag(
            code="client",
            reason=f"{count_of(retries, 'request')} sent again, client up to {late_s:.2g} s late (limit {LATE_S:g} s)",
            fix="lower the rate (--speed, --rate), limit --max-concurrency, or run the client on another machine",
            value=late_s,
            limit=LATE_S,
        )


def _disagree(row: Measurement) -> Flag | None:
    """Counter and power sampler, over all windows and over each: one window that lost energy hides among many.

    The counter of a module covers more than the sampled power of its GPU.
    """
    if row.environment.scope == "gpu-module":
        return None
    seen = "all windows" if row.watched is None else "the sampled window"
    errors = looking_error_by_gpu(row, row.seen_windows)
    ratios = [
        (seen, uuid, ratio, max(DISAGREEMENT, LOOKING_ERRORS * errors[uuid]))
        for uuid, ratio in ratio_by_gpu(row).items()
    ]
    if row.watched is None:
        for number, uuid, ratio in ratio_by_window(row):
            error = looking_error_by_gpu(row, row.windows[number - 1 : number])[uuid]
            ratios.append((f"window {number}", uuid, ratio, max(WINDOW_DISAGREEMENT, LOOKING_ERRORS * error)))
    for where, uuid, ratio, most in ratios:
        if abs(ratio - 1) > most:
            reason = (
                f"energy counter of {name_gpu(row, uuid)} differs by {format_percent(ratio - 1, signed=True)} from "
                f"sampled power over {where} (limit ±{format_percent(most)}){_beat(row)}"
            )
            return Flag(code="disagree", reason=reason, fix=METER_FIX, value=ratio - 1, limit=most)
    return _lost(row)


def _changed(row: Measurement) -> Flag | None:
    """Figures beside the raw facts, for readers without this code, that are not theirs."""
    if row.result is None:
        return None
    now = result_of(row)
    if now == row.result:
        return None
    for name in FIGURES:
        stated, value = getattr(row.result, name), getattr(now, name)
        # Rows of older releases lack some.
        is_known = stated is not None and value is not None
        if is_known and not abs(stated - value) <= CHANGED * abs(value) + NOTHING:
            return Flag(
                code="changed",
                reason=f"result.{name} is {stated:.6g}, by its windows {value:.6g} (limit ±{format_percent(CHANGED)})",
                fix="restore the row from a copy, or measure the cell again",
                value=stated / value - 1 if value else None,
                limit=CHANGED,
            )
    return None


def _beat(row: Measurement) -> str:
    """Where batches last a multiple of the sensor's period, it samples the same part of each: a possible cause."""
    period_s = row.environment.counter_period_s
    batches = [batch.duration_s for window in row.seen_windows for batch in window.batches]
    times = fmean(batches) / period_s if period_s else 0.0
    if period_s is None or not 1 - BEAT <= times <= MOST_BEATS + BEAT or abs(times - round(times)) > BEAT:
        return ""
    return f"; batches of {fmean(batches):.3g} s last a multiple of its period of {period_s:.3g} s"


def _lost(row: Measurement) -> Flag | None:
    """A window without samples, far from the one with: its counter may have lost energy.

    Energy that is lost or added changes power by the same share; a slow host raises energy per batch and lowers power.
    """
    if row.watched is None or row.loaded_idle is None:
        return None
    seen, was = row.watched.batches[0], derive([row.watched], row.loaded_idle)
    for number, window in enumerate(row.windows, 1):
        if (window.batches[0].requests, window.batches[0].output_tokens) != (seen.requests, seen.output_tokens):
            return None
        now = derive([window], row.loaded_idle)
        energy, power = now.energy_j / was.energy_j - 1, now.power_w / was.power_w - 1
        if energy * power > 0 and min(abs(energy), abs(power)) > LOST:
            change = (
                f"{format_percent(energy, signed=True)} energy per batch, {format_percent(power, signed=True)} power"
            )
            reason = f"window {number} against the sampled one: {change} (limit ±{format_percent(LOST)})"
            return Flag(code="disagree", reason=reason, fix=METER_FIX, value=energy, limit=LOST)
    return None
