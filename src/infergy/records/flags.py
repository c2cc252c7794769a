"""Doubts about a row, each with a code, its reason and its cure: a pure function of the row. Standard library only.

A flag never changes a number. What each code means and what to do about it: docs/flags.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, median

from infergy.records.cell import END_VISIT, START_VISIT, visit_key
from infergy.records.environment import GpuState
from infergy.records.measurement import Batch, Measurement, derive
from infergy.records.uncertainty import Uncertainty

TARGET = 0.02
SHORTEST_WINDOW_S = 2.99
"""3 s, and the rounding of clocks."""

FIRST_BATCH_EXCESS = 0.2
"""How much longer than the median of the others the first batch may take: more is compiling, loading or tuning."""

TREND = 0.05
"""How far the mean of the last half of the batches may lie from that of the first."""

TEMPERATURE_CHANGE_C = 25.0
"""Between the states before and after. Leakage grows by about 1 % for 3 °C, but a cold start is not a drift."""

HARMFUL_SLOWDOWNS = frozenset(
    {"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sync_boost"}
)
"""Reasons for which clocks were held down that are no property of the work; being at the power limit is one."""

DRIFT = 0.02
"""How far an anchor's joules may move between the start and the end of its set-up."""

CODES = (
    "uncertain",
    "short-window",
    "first-batch",
    "trend",
    "slowed",
    "temperature",
    "other-process",
    "drift",
    "negative-phase",
)


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
        _short(row),
        _first(row.windows[0].batches),
        _trend(batches),
        _slowed((*row.before, *row.after)),
        _temperature(row),
        _crowded((*row.before, *row.after)),
    )
    return tuple(flag for flag in found if flag is not None)


def find_drift(rows: Sequence[Measurement]) -> dict[str, Flag]:
    """Anchors that moved between the start and the end of their set-up, by the key of the later row."""
    measured = {row.key: row for row in rows if row.windows and row.loaded_idle is not None}
    found: dict[str, Flag] = {}
    for row in measured.values():
        begin = measured.get(visit_key(row.cell_id, START_VISIT))
        if row.visit != END_VISIT or begin is None:
            continue
        was_j, is_j = (_energy_j(one) for one in (begin, row))
        if abs(is_j / was_j - 1) > DRIFT:
            found[row.key] = Flag(
                code="drift",
                reason=f"this anchor took {is_j / was_j - 1:+.1%} joules at the end of its set-up against the start, "
                f"expected ±{DRIFT:.0%}",
                cure="measure the set-up again on a quiet machine; until then its rows differ by as much",
            )
    return found


def _energy_j(row: Measurement) -> float:
    assert row.loaded_idle is not None
    return derive(row.windows, row.loaded_idle).energy_j


def _uncertain(uncertainty: Uncertainty | None, target: float) -> Flag | None:
    cure = "measure the cell again with more windows: --max-time 120"
    if uncertainty is None:
        reason = "one batch in one window, and no like cell to tell how far batches differ"
        return Flag(code="uncertain", reason=reason, cure=cure)
    if uncertainty.half_width <= target:
        return None
    reason = f"the joules are certain to ±{uncertainty.half_width:.1%}, expected ±{target:.1%} or better"
    return Flag(code="uncertain", reason=reason, cure=cure)


def _short(row: Measurement) -> Flag | None:
    shortest_s = min(window.busy_s for window in row.windows)
    if shortest_s >= SHORTEST_WINDOW_S:
        return None
    return Flag(
        code="short-window",
        reason=f"a window of {shortest_s:.2f} s, expected 3 s or more: a tick of the counter is 0.1 s",
        cure="measure the cell again with --min-window 3",
    )


def _first(batches: tuple[Batch, ...]) -> Flag | None:
    if len(batches) < 3:
        return None
    first_s, others_s = batches[0].duration_s, median(batch.duration_s for batch in batches[1:])
    if first_s <= others_s * (1 + FIRST_BATCH_EXCESS):
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


def _slowed(states: tuple[GpuState, ...]) -> Flag | None:
    seen = sorted({reason for state in states for reason in state.slowdowns or ()} & HARMFUL_SLOWDOWNS)
    if not seen:
        return None
    return Flag(
        code="slowed",
        reason=f"the GPU was held down by {', '.join(seen)}, expected none of these",
        cure="see to its cooling and power supply (nvidia-smi -q -d PERFORMANCE), then measure the cell again",
    )


def _temperature(row: Measurement) -> Flag | None:
    before = {state.uuid: state.temperature_c for state in row.before}
    for state in row.after:
        was = before.get(state.uuid)
        if was is None or state.temperature_c is None or abs(state.temperature_c - was) <= TEMPERATURE_CHANGE_C:
            continue
        return Flag(
            code="temperature",
            reason=f"{state.uuid} went from {was:g} to {state.temperature_c:g} °C, expected a change of "
            f"{TEMPERATURE_CHANGE_C:g} °C at most",
            cure="measure the cell again now that it is warm",
        )
    return None


def _crowded(states: tuple[GpuState, ...]) -> Flag | None:
    most = max((state.processes or 0 for state in states), default=0)
    if most <= 1:
        return None
    return Flag(
        code="other-process",
        reason=f"{most} processes on the GPU, expected the engine's alone: its joules hold theirs too",
        cure="end the others (nvidia-smi), then measure the cell again",
    )
