"""Doubts about a row by itself, each with a code, its reason and its cure: a pure function of the row.

Standard library only. What only shows among the other rows of its set-up: `infergy.records.unlike`.

A flag never changes a number. What each code means and what to do about it: docs/flags.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, median, variance

from infergy.records.environment import GpuState
from infergy.records.latency import backlog_of
from infergy.records.measurement import Measurement, batch_energy_j, derive
from infergy.records.timeline import looking_error_by_gpu, ratio_by_gpu, ratio_by_window
from infergy.records.uncertainty import Uncertainty
from infergy.records.window import Batch

TARGET = 0.02
SHORTEST_WINDOW_S = 2.99
"""3 s, and the rounding of clocks."""

FIRST_BATCH_EXCESS = 0.2
"""How much longer than the median of the others the first batch may take: more is compiling, loading or tuning, unless
a later batch took as long."""

TREND = 0.05
"""How far the mean of the last half of the batches may lie from that of the first."""

FEWEST_FOR_RISE = 6
RISE, RISE_ERRORS = 0.02, 3.0
"""How far the joules of the last half of the windows may lie from those of the first, and in standard errors."""

TEMPERATURE_CHANGE_C = 25.0
"""Between the states before and after. Leakage grows by about 1 % for 3 °C, but a cold start is not a drift."""

HARMFUL_SLOWDOWNS = frozenset(
    {"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sync_boost"}
)
"""Reasons for which clocks were held down that are no property of the work; being at the power limit is one."""

DISAGREEMENT = 0.05
"""How far the joules of the counter may lie from those of the timeline."""

WINDOW_DISAGREEMENT = 0.08
"""The same over one window, of which a sensor that shows power late misplaces up to 3 % at either edge."""

LOOKING_ERRORS = 2.0
"""How many standard errors of a sensor that looks part of the time the two may lie apart, if that is more. They are
taken as if it looked at random: its looks are evenly spaced, and of 170 watched windows of H100 and H200 the median lay
0.35 of them off."""

WATCHED_DISAGREEMENT = 0.25
"""How far joules and watts of a window may both lie, to one side, from those of the watched one, which looking at power
slowed by up to 12 %."""

BEAT, MOST_BEATS = 0.05, 4
"""How near to a whole number of periods of the meter a batch keeps time with it, and to how many at most: longer ones
differ by enough to lose it."""

CODES = (
    "uncertain",
    "interrupted",
    "short-window",
    "first-batch",
    "trend",
    "slowed",
    "temperature",
    "other-process",
    "batch",
    "behind",
    "disagree",
    "rescaled",
    "drift",
    "clocks",
    "environment",
    "negative-phase",
)
"""All codes; last those of `infergy.records.unlike`, and that of `infergy.quality.phases`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A doubt.

    Attributes:
        code: One of `CODES`.
        reason: What was seen and what was expected.
        cure: What to do or type.
    """

    code: str
    reason: str
    cure: str


def find_flags(row: Measurement, uncertainty: Uncertainty | None, *, target: float = TARGET) -> tuple[Flag, ...]:
    """All flags of a row, in the order of `CODES`; none for a failed row, whose failure says it all.

    `uncertainty` is that of `infergy.records.uncertainty.find_uncertainties`; `target` the half-width that is good
    enough, as a fraction.
    """
    if not row.windows:
        return ()
    batches = list(chain.from_iterable(window.batches for window in row.windows))
    found = (
        _uncertain(uncertainty, target),
        _interrupted(row),
        _short(row),
        _first(row.windows[0].batches, longest_s=max(batch.duration_s for batch in batches)),
        _trend(batches) or _rise(row),
        _slowed(row),
        _temperature(row),
        _crowded(row),
        _queued(row),
        _behind(row),
        _disagree(row),
        _rescaled(row),
    )
    return tuple(flag for flag in found if flag is not None)


def _uncertain(uncertainty: Uncertainty | None, target: float) -> Flag | None:
    cure = "measure the cell again with more windows: --max-time 120"
    if uncertainty is None:
        reason = "one batch in one window, and no like cell to tell how far batches differ"
        return Flag(code="uncertain", reason=reason, cure=cure)
    if uncertainty.half_width <= target:
        return None
    reason = f"the joules are certain to ±{uncertainty.half_width:.1%}, expected ±{target:.1%} or better"
    return Flag(code="uncertain", reason=reason, cure=cure)


def _interrupted(row: Measurement) -> Flag | None:
    if row.interrupted is None:
        return None
    return Flag(
        code="interrupted",
        reason=f"after {len(row.windows)} windows, expected more: {row.interrupted.code}: {row.interrupted.message}",
        cure="remove the cause, then measure the cell again into another file",
    )


def _short(row: Measurement) -> Flag | None:
    shortest_s = min(window.busy_s for window in row.windows)
    if shortest_s >= SHORTEST_WINDOW_S:
        return None
    return Flag(
        code="short-window",
        reason=f"a window of {shortest_s:.2f} s, expected 3 s or more: a tick of the counter is 0.1 s",
        cure="measure the cell again with --min-window 3",
    )


def _first(batches: tuple[Batch, ...], longest_s: float) -> Flag | None:
    if len(batches) < 3:
        return None
    first_s, others_s = batches[0].duration_s, median(batch.duration_s for batch in batches[1:])
    if first_s <= others_s * (1 + FIRST_BATCH_EXCESS) or first_s < longest_s:
        return None
    return Flag(
        code="first-batch",
        reason=f"the first batch took {first_s:.3g} s, the others {others_s:.3g} s: something was compiled or loaded",
        cure="measure the cell again; the engine keeps what it compiled",
    )


def _trend(batches: list[Batch]) -> Flag | None:
    if len(batches) < 4:
        return None
    middle = len(batches) // 2
    first_s = fmean(batch.duration_s for batch in batches[:middle])
    last_s = fmean(batch.duration_s for batch in batches[-middle:])
    change = last_s / first_s - 1
    if abs(change) <= TREND:
        return None
    return Flag(
        code="trend",
        reason=f"batches took {change:+.1%} at the end against the begin, expected ±{TREND:.0%}: not steady",
        cure="see what else the host does, then measure the cell again",
    )


def _rise(row: Measurement) -> Flag | None:
    """Joules that grow or fall from window to window while seconds stay: a chip that warms up, or cools."""
    if len(row.windows) < FEWEST_FOR_RISE or row.loaded_idle is None:
        return None
    joules = [batch_energy_j([window], row.loaded_idle) for window in row.windows]
    middle = len(joules) // 2
    first, last = joules[:middle], joules[-middle:]
    change = fmean(last) / fmean(first) - 1
    error = math.sqrt((variance(first) + variance(last)) / middle) / fmean(joules)
    if abs(change) <= max(RISE, RISE_ERRORS * error):
        return None
    return Flag(
        code="trend",
        reason=f"windows took {change:+.1%} joules at the end against the begin, expected ±{RISE:.0%}: not steady",
        cure="measure the cell again now that it is warm",
    )


def _slowed(row: Measurement) -> Flag | None:
    slowed = []
    for uuid, states in _states_by_gpu(row).items():
        seen = sorted({reason for state in states for reason in state.slowdowns or ()} & HARMFUL_SLOWDOWNS)
        if seen:
            slowed.append(f"{name_gpu(row, uuid)} was held down by {', '.join(seen)}")
    if not slowed:
        return None
    return Flag(
        code="slowed",
        reason=f"{'; '.join(slowed)}, expected none of these",
        cure="see to its cooling and power supply (nvidia-smi -q -d PERFORMANCE), then measure the cell again",
    )


def _temperature(row: Measurement) -> Flag | None:
    before = {state.uuid: state.temperature_c for state in row.before}
    changed = []
    for state in row.after:
        was = before.get(state.uuid)
        if was is None or state.temperature_c is None or abs(state.temperature_c - was) <= TEMPERATURE_CHANGE_C:
            continue
        changed.append(f"{name_gpu(row, state.uuid)} went from {was:g} to {state.temperature_c:g} °C")
    if not changed:
        return None
    return Flag(
        code="temperature",
        reason=f"{'; '.join(changed)}, expected a change of {TEMPERATURE_CHANGE_C:g} °C at most",
        cure="measure the cell again now that it is warm",
    )


def _crowded(row: Measurement) -> Flag | None:
    crowded = []
    for uuid, states in _states_by_gpu(row).items():
        most = max(state.processes or 0 for state in states)
        if most > 1:
            crowded.append(f"{most} processes on {name_gpu(row, uuid)}")
    if not crowded:
        return None
    return Flag(
        code="other-process",
        reason=f"{'; '.join(crowded)}, expected the engine's alone: its joules hold theirs too",
        cure="end the others (nvidia-smi), then measure the cell again",
    )


def _states_by_gpu(row: Measurement) -> dict[str, list[GpuState]]:
    found: dict[str, list[GpuState]] = {}
    for state in (*row.before, *row.after):
        found.setdefault(state.uuid, []).append(state)
    return found


def name_gpu(row: Measurement, uuid: str) -> str:
    """A GPU of a row in words: ``the GPU``; of several its place in the engine's order, and its UUID."""
    uuids = [gpu.uuid for gpu in row.environment.gpus]
    if len(uuids) <= 1:
        return "the GPU"
    return f"GPU {uuids.index(uuid)} ({uuid})" if uuid in uuids else uuid


def _queued(row: Measurement) -> Flag | None:
    """Requests that an engine let wait were not one batch: it serves as many as it has places and memory for."""
    load, told = row.cell.load, row.environment.engine
    if load.is_online:
        # A run is no batch; whether requests wait for ever longer, `_behind` tells.
        return None
    places = _whole(told.get("max_num_seqs"))
    blocks, block_tokens = _whole(told.get("kv_cache_blocks")), _whole(told.get("kv_block_size"))
    found = {"its max_num_seqs": places}
    if blocks is not None and block_tokens:
        a_request = -(-(load.input_tokens + load.output_tokens) // block_tokens)
        found["its KV cache"] = blocks // a_request
    for what, most in found.items():
        if most is not None and most < load.batch:
            return Flag(
                code="batch",
                reason=f"asked for a batch of {load.batch}, but {what} takes {most} such requests at once: "
                "the others waited",
                cure=f"measure it with --batch {max(1, most)} or less",
            )
    return None


def _behind(row: Measurement) -> Flag | None:
    """Requests that come faster than they are served, or a run that ends before as many leave as come."""
    backlog = backlog_of(row)
    if backlog is None or not backlog.grows or row.cell.load.arrivals is None:
        return None
    return Flag(
        code="behind",
        reason=f"{backlog.halfway:.0f} requests waited or ran halfway through a run, {backlog.at_end:.0f} at the "
        f"last of {backlog.arrived} more: finished requests fall behind arrivals",
        cure="ask for a lower rate; if the engine has served more a second, for a longer run (a larger batch)",
    )


def _rescaled(row: Measurement) -> Flag | None:
    if row.rescaled is None:
        return None
    return Flag(
        code="rescaled",
        reason=f"its joules were measured on another chip, then scaled {row.rescaled}",
        cure="good for an estimate; for a joule of this chip measure the cell here",
    )


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _disagree(row: Measurement) -> Flag | None:
    """The two witnesses, over all windows and over each: one window that lost joules hides among many."""
    seen = "all windows" if row.watched is None else "the watched window"
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
            return Flag(
                code="disagree",
                reason=f"of {name_gpu(row, uuid)} the counter tells {ratio - 1:+.1%} joules against instant power over "
                f"{where}, expected ±{most:.0%}{_beat(row)}",
                cure="see how its meter follows a load: infergy doctor --meter; then measure the cell again",
            )
    return _lost(row)


def _beat(row: Measurement) -> str:
    """Where batches keep the time of the sensor, it may look at the same part of each: what it tells is no mean."""
    period_s = row.environment.counter_period_s
    batches = [batch.duration_s for window in row.seen_windows for batch in window.batches]
    times = fmean(batches) / period_s if period_s else 0.0
    if period_s is None or not 1 - BEAT <= times <= MOST_BEATS + BEAT or abs(times - round(times)) > BEAT:
        return ""
    return f"; batches of {fmean(batches):.3g} s keep time with its period of {period_s:.3g} s"


def _lost(row: Measurement) -> Flag | None:
    """A window that the timeline did not see, far from the one that it did: its counter may have begun anew.

    Joules that a counter loses or adds are missing from its watts too, by the same share. A slower host moves the two
    apart: more joules for a batch, fewer watts.
    """
    if row.watched is None or row.loaded_idle is None:
        return None
    seen = row.watched.batches[0]
    was = derive([row.watched], row.loaded_idle)
    for number, window in enumerate(row.windows, 1):
        if (window.batches[0].requests, window.batches[0].output_tokens) != (seen.requests, seen.output_tokens):
            return None
        now = derive([window], row.loaded_idle)
        joules, watts = now.energy_j / was.energy_j - 1, now.power_w / was.power_w - 1
        if joules * watts > 0 and min(abs(joules), abs(watts)) > WATCHED_DISAGREEMENT:
            return Flag(
                code="disagree",
                reason=f"window {number} took {joules:+.0%} joules a batch and {watts:+.0%} watts against the watched "
                f"window, expected ±{WATCHED_DISAGREEMENT:.0%}",
                cure="measure the cell again; if it stays, see how its meter follows a load: infergy doctor --meter",
            )
    return None
