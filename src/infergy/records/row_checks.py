"""Values of a row that no device can have, or that contradict others of it: a damaged or edited line, found when read.

What is measured is checked by the same rules before it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING

from infergy.errors import DataError, MeterError
from infergy.records.cell import Load, request_misfits
from infergy.records.environment import GpuIdentity
from infergy.records.result import idle_power_by_gpu_w
from infergy.records.window import Batch, Window, energy_of

if TYPE_CHECKING:
    from infergy.records.measurement import Measurement

Misfit = tuple[str, object, str]
"""Key, value, and what is expected."""

MOST_OF_LIMIT = 2.0
"""Highest mean power, over the enforced limit. An H200 showed 825 W at a limit of 700 W for some milliseconds, never
over seconds."""
LEAST_OF_IDLE = 0.5
"""Lowest mean power, over that of the loaded, idle device."""
BOARD, LEAST_W, MOST_W = "gpu-board", 1.0, 2000.0
"""The scope of one GPU's energy, and between which powers any such board lies, idle or at work, whatever its limit."""
LONGEST_EDGE_S = 1.0
"""Of an edge whose counter is polled, also in a window that is shorter."""
LATE_S = 0.001
"""How far past the end of a batch its last token may lie: the two are read from different clocks."""
SENSORS = {"power_w": 5000.0, "temperature_c": 200.0, "sm_clock_hz": 1e10, "memory_clock_hz": 1e11}
"""What no sensor of a GPU shows more of."""
VISIT = re.compile(r"start|end|grid(-\d{1,9})?")
IDLE = ("loaded_idle", "bare_idle", "loading")
"""Windows without batches."""


def reject_impossible(row: Measurement, place: str) -> None:
    """Reject a row whose values cannot be meant.

    Raises:
        DataError: There is one; the message names its key.
    """
    for key, value, expected in _misfits(row):
        raise DataError.bad_field(place, key, value, f"{expected}. {_advice(row)}")
    for key, window in _windows(row):
        try:
            idle = {} if row.loaded_idle is None or key in IDLE else idle_power_by_gpu_w(row.loaded_idle)
            # Idle time counts at the power of a tail, which must be one.
            power_w = {gpu.uuid: gpu.energy_j / gpu.duration_s for gpu in energy_of(window).gpus}
            check_power(power_w, row.environment.gpus, idle, scope=row.environment.scope)
        except MeterError as error:
            message = f"{place}: {key}: {error}. {_advice(row)}"
            raise DataError(message, code="bad-row", place=place, key=key, reason=error.code) from error


def _advice(row: Measurement) -> str:
    return f"Remove the line, and measure {row.cell_id} ({row.cell}) again"


def check_power(
    power_by_gpu_w: Mapping[str, float],
    gpus: Sequence[GpuIdentity],
    idle_w: Mapping[str, float],
    *,
    scope: str | None = None,
) -> None:
    """Reject a mean power below half of idle power or above twice the limit; unknown ones are no bound.

    A counter that fell by more than a window adds, or stopped, shows at once (`infergy.records.window`). Falls and
    jumps within a window only show in its mean power. With `scope` what no board draws is rejected too.

    Raises:
        MeterError: The mean power of a device lies outside of what it can draw.
    """
    limit_w = {gpu.uuid: gpu.power_limit_w for gpu in gpus}
    for uuid, power_w in power_by_gpu_w.items():
        most_w, reason = limit_w.get(uuid), None
        if most_w is not None and power_w > MOST_OF_LIMIT * most_w:
            reason = f", expected at most {MOST_OF_LIMIT:g} times its limit of {most_w:g} W: it jumped"
        elif scope == BOARD and not LEAST_W <= power_w <= MOST_W:
            reason = f", expected {LEAST_W:g} to {MOST_W:g} W of a board"
        elif power_w < LEAST_OF_IDLE * idle_w.get(uuid, 0.0):
            reason = (
                f" while it worked, {idle_w[uuid]:.4g} W when idle: it began again or stood still for a part of the "
                "window"
            )
        if reason is not None:
            message = (
                f"the energy counter of {uuid} gives a mean power of {power_w:.4g} W{reason}. "
                "Measure again; if it stays, see how it follows a load: infergy doctor --meter"
            )
            raise MeterError(message, code="counter-wrong", uuid=uuid, power_w=power_w)


def _windows(row: Measurement) -> Iterator[tuple[str, Window]]:
    for index, window in enumerate(row.windows):
        yield f"windows[{index}]", window
    for key in ("watched", *IDLE):
        if (one := getattr(row, key)) is not None:
            yield key, one


def _misfits(row: Measurement) -> Iterator[Misfit]:
    load = row.cell.load
    yield from _misfits_of_facts(row)
    yield from request_misfits(_served(row, load), row.arrival_s, row.lengths, row.links)
    yield from _misfits_of_sensors(row)
    tokens = map(sum, zip(*row.lengths, strict=True)) if row.lengths else [load.batch * each for each in load.lengths]
    whole = (load.batch, *tokens)
    for key, window in _windows(row):
        yield from _misfits_of_edges(row, window, key)
        yield from _misfits_of_order(window, key)
        for number, batch in enumerate(window.batches):
            if (batch.requests, batch.input_tokens, batch.output_tokens) != whole:
                yield from _misfits_of_counts(row, batch, f"{key}.batches[{number}]")
            yield from _misfits_of_batch(batch, f"{key}.batches[{number}]")


def _served(row: Measurement, load: Load) -> Load:
    """The load of a row; a server that runs already may have served other lengths than its cell asks for."""
    if not row.is_of_endpoint:
        return load
    longest = (max(1, *own) for own in zip(*row.lengths, strict=True))
    return replace(load, **dict(zip(("input_tokens", "output_tokens"), longest, strict=False)))


def _misfits_of_facts(row: Measurement) -> Iterator[Misfit]:
    if row.cell_id != row.cell.id:
        yield "cell_id", row.cell_id, f"{row.cell.id}, the id of its cell"
    if row.status not in ("ok", "failed") or row.is_ok != (row.failure is None):
        yield "status", row.status, "ok, or failed with its `failure`"
    if not is_instant(row.measured_utc):
        yield "measured_utc", row.measured_utc, "an instant, as 2026-01-31T12:00:00.000+00:00"
    for name in ("windows", "loaded_idle") if row.is_ok else ():
        if not getattr(row, name):
            yield name, None, "a window, for status is ok"
    if (row.experts_touched or 0.0) > 1:
        yield "experts_touched", row.experts_touched, "a share, 0 to 1"
    if (factor := row.rescaled) is not None and not 0 < factor.low <= factor.factor <= factor.high:
        yield "rescaled.factor", factor.factor, f"more than 0, from {factor.low} to {factor.high}"
    if not VISIT.fullmatch(row.visit):
        yield "visit", row.visit, "grid, grid-2 and so on, start or end"


def _misfits_of_sensors(row: Measurement) -> Iterator[Misfit]:
    for key, states in (("before", row.before), ("after", row.after)):
        for state in states:
            for name, most in SENSORS.items():
                if (value := getattr(state, name)) is not None and value > most:
                    yield f"{key}.{name}", value, f"at most {most:g}"
    for line in row.timeline:
        if len(line.offsets_ms) != len(line.power_w):
            yield "timeline.power_w", f"{len(line.power_w)} values", f"{len(line.offsets_ms)}, as in offsets_ms"
        if max(line.power_w, default=0.0) > SENSORS["power_w"]:
            yield "timeline.power_w", max(line.power_w), f"at most {SENSORS['power_w']:g}"
        times_ms = (0, *line.offsets_ms, 1000 * (line.end_s - line.start_s) + 1)
        if any(later < earlier for earlier, later in pairwise(times_ms)):
            yield "timeline.offsets_ms", line.offsets_ms[:3], "ascending times, before end_s"


def is_instant(text: str) -> bool:
    """Whether a text is a date and time with its zone."""
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _misfits_of_edges(row: Measurement, window: Window, key: str) -> Iterator[Misfit]:
    """Windows are over the same GPUs, and hold batches unless they are over idle ones."""
    gpus = (row.windows[0] if row.windows else window).open.keys()
    for edge in ("open", "close"):
        if not gpus or getattr(window, edge).keys() != gpus:
            yield f"{key}.{edge}", sorted(getattr(window, edge)), f"a tick of each GPU: {', '.join(sorted(gpus))}"
    if not window.settled.keys() <= gpus:
        yield f"{key}.settled", sorted(window.settled), f"ticks of {', '.join(sorted(gpus))}"
    if not window.batches and key not in IDLE:
        yield f"{key}.batches", [], "at least one"
    if window.visit < 1 or window.edge_uncertainty_s > max(LONGEST_EDGE_S, *window.duration_by_gpu_s.values()):
        yield f"{key}.edge_uncertainty_s", window.edge_uncertainty_s, "less than its window"


def _misfits_of_order(window: Window, key: str) -> Iterator[Misfit]:
    """Its batches lie within it one after the other, and settled ticks between the last of them and its end."""
    now_s = max([tick.time_s for tick in window.open.values()])
    last_s = min([tick.time_s for tick in window.close.values()])
    for number, batch in enumerate(window.batches):
        if not now_s <= batch.start_s < batch.end_s <= last_s:
            expected = f"{now_s} to {last_s}, within its window and after the batch before"
            yield f"{key}.batches[{number}].end_s", batch.end_s, expected
        now_s = batch.end_s
    for uuid, tick in window.settled.items():
        if not now_s <= tick.time_s <= window.close[uuid].time_s:
            yield f"{key}.settled.{uuid}.time_s", tick.time_s, f"{now_s} to {last_s}, after the last batch"
        if tick.energy_j < (opened_j := window.open[uuid].energy_j):
            yield f"{key}.settled.{uuid}.energy_j", tick.energy_j, f"at least {opened_j}, as at `open`"


def _misfits_of_batch(batch: Batch, key: str) -> Iterator[Misfit]:
    """Times of a batch, and of its requests, out of order or past its end."""
    if batch.times is not None:
        if not batch.requests == len(batch.times.first_token_s) == len(batch.times.finished_s):
            yield f"{key}.times", f"of {len(batch.times.finished_s)} requests", f"of {batch.requests}, as the batch"
        yield from _misfits_of_times(batch, f"{key}.times")
    late_s, times_s = batch.duration_s + LATE_S, [s for s in (batch.first_token_s, batch.finished_s) if s is not None]
    if times_s and not times_s[0] <= times_s[-1] <= late_s:
        yield f"{key}.finished_s", times_s[-1], f"after the first token, within the {batch.duration_s} s of the batch"
    if (drafts := batch.drafts) is not None and drafts.accepted_tokens > drafts.drafted_tokens:
        yield f"{key}.drafts.accepted_tokens", drafts.accepted_tokens, f"at most the {drafts.drafted_tokens} drafted"


def _misfits_of_times(batch: Batch, key: str) -> Iterator[Misfit]:
    """Times of requests that are out of order, past the end, or not those of the means beside them."""
    assert batch.times is not None
    first_s, finished_s = batch.times.first_token_s, batch.times.finished_s
    latest_s = max(finished_s, default=0.0)
    if any(late < early - LATE_S for early, late in zip(first_s, finished_s, strict=True)):
        yield f"{key}.first_token_s", max(first_s), "not after finished_s of the same request"
    if latest_s > batch.duration_s + LATE_S:
        yield f"{key}.finished_s", latest_s, f"at most the {batch.duration_s} s of its batch"
    for name, each in (("first_token_s", first_s), ("finished_s", finished_s)):
        mean_s = getattr(batch, name)
        if mean_s is not None and abs(fmean(each) - mean_s) > LATE_S:
            yield f"{key}.{name}", fmean(each), f"{mean_s} s on average, as of the batch"


def _misfits_of_counts(row: Measurement, batch: Batch, key: str) -> Iterator[Misfit]:
    """Requests or tokens that a batch of the cell has not, or a part of one has more of."""
    load, lengths = row.cell.load, row.lengths
    # The watched window may stop sooner, online with fewer requests.
    is_whole = not key.startswith("watched")
    asked = {"requests": batch.requests if load.is_online and not is_whole else load.batch}
    for axis, name in enumerate(("input_tokens", "output_tokens")):
        asked[name] = sum(pair[axis] for pair in lengths) if lengths else batch.requests * load.lengths[axis]
    for name, most in asked.items():
        value, least = getattr(batch, name), most if is_whole or name == "requests" else 1
        if not max(1, least) <= value <= most:
            yield f"{key}.{name}", value, f"{most}, as its cell asks, and at least 1"
