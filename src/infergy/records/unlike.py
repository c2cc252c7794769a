"""Flags of a row among the others of its engine config: drift of control cells, clocks, environment.

Pure functions of rows. Standard library only. What each code means and what to do about it: docs/flags.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from infergy.records.agreement import MUST, SHOULD, differences, key_of
from infergy.records.cell import END_VISIT, START_VISIT, visit_key
from infergy.records.environment import GpuState
from infergy.records.flags import Flag, name_gpu
from infergy.records.measurement import Measurement
from infergy.records.result import result_of
from infergy.units import HERTZ_PER_MEGAHERTZ, format_percent

DRIFT = 0.02
"""How far the energy of a control cell may change between the start and the end of its engine config."""

CLOCKS = 0.05
"""How far a clock may differ from the median of the rows of its engine config."""

POWER_CAP = "sw_power_cap"
"""At the power limit the SM clock changes by a third from one moment to the next (H200: 1395 to 1980 MHz): it is not
compared there."""


def find_unlike(rows: Sequence[Measurement]) -> list[tuple[tuple[Flag, ...], tuple[str, ...]]]:
    """How each row of one engine config differs from the others, in their order; nothing of failed rows.

    Returns:
        Flags, and GPU, meter, CPU or system where they differ from most rows: GPUs of a kind differ by about 2 %
        (docs/measurements.md), and none of them is the wrong one.

    Raises:
        MeterError: A counter stood still.
    """
    measured = [row for row in rows if row.windows and row.loaded_idle is not None]
    drifted, usual, clocks = _find_drift(measured), _usual_environment(measured), _usual_clocks(measured)
    found: list[tuple[tuple[Flag, ...], tuple[str, ...]]] = []
    # Rows that share an environment differ alike.
    known: dict[tuple[int, int], tuple[Flag | None, tuple[str, ...]]] = {}
    for row in rows:
        if usual is None or not row.windows or row.loaded_idle is None:
            found.append(((), ()))
            continue
        shared = (id(row.environment), id(row.rescaled))
        if shared not in known:
            known[shared] = (_environment(row, usual), tuple(map(str, differences(usual, row, SHOULD))))
        other, differs = known[shared]
        flags = (drifted.get(_place(row)), _clocks(row, *clocks), other)
        found.append((tuple(flag for flag in flags if flag is not None), differs))
    return found


def _place(row: Measurement) -> tuple[str, tuple[str, ...]]:
    """The session and cell, and on which GPUs: each part of a divided engine config has control cells."""
    return row.key, tuple(sorted(row.windows[0].open))


def _find_drift(rows: Sequence[Measurement]) -> dict[tuple[str, tuple[str, ...]], Flag]:
    """Control cells that changed between the start and the end of their engine config, by the later row.

    The start is that on the same GPUs; where there is none, that on any, so that a change of GPU shows.
    """
    measured = {_place(row): row for row in rows}
    anywhere = {row.key: row for row in rows}
    found: dict[tuple[str, tuple[str, ...]], Flag] = {}
    for place, row in measured.items():
        start = visit_key(row.cell_id, START_VISIT)
        begin = measured.get((start, place[1])) or anywhere.get(start)
        if row.visit != END_VISIT or begin is None:
            continue
        was_j, is_j = (result_of(one).energy_j for one in (begin, row))
        change = is_j / was_j - 1
        if abs(change) > DRIFT:
            found[place] = Flag(
                code="drift",
                reason=f"energy of this control cell changed by {format_percent(change, signed=True)} from the start "
                f"of its engine config to the end (limit ±{format_percent(DRIFT)})",
                fix="measure the engine config again on a quiet machine; until then its rows differ by as much",
                value=change,
                limit=DRIFT,
            )
    return found


def _usual_environment(rows: Sequence[Measurement]) -> Measurement | None:
    """The first of those rows whose environment most rows share."""
    if not rows:
        return None
    keys = [key_of(row, (*MUST, *SHOULD)) for row in rows]
    ((usual, _),) = Counter(keys).most_common(1)
    return rows[keys.index(usual)]


def _environment(row: Measurement, usual: Measurement) -> Flag | None:
    found = differences(usual, row, MUST)
    if not found:
        return None
    return Flag(
        code="environment",
        reason=f"differs from most rows of its engine config: {'; '.join(map(str, found))}",
        fix="put these rows into a file of their own: no table takes both",
    )


def _sm_clocks(row: Measurement) -> Iterator[tuple[GpuState, float]]:
    """Clocks after the last batch, of GPUs that were not at their power limit."""
    for state in row.after:
        if state.sm_clock_hz is not None and POWER_CAP not in (state.slowdowns or ()):
            yield state, state.sm_clock_hz


def _memory_clocks(row: Measurement) -> Iterator[tuple[GpuState, float]]:
    for state in row.after:
        if state.memory_clock_hz is not None:
            yield state, state.memory_clock_hz


def _usual_clocks(rows: Sequence[Measurement]) -> tuple[float | None, float | None]:
    """Median SM clock and memory clock of the rows; None where none is reported."""
    found = ([hz for row in rows for _, hz in clocks(row)] for clocks in (_sm_clocks, _memory_clocks))
    sm_hz, memory_hz = (median(one) if one else None for one in found)
    return sm_hz, memory_hz


def _clocks(row: Measurement, sm_hz: float | None, memory_hz: float | None) -> Flag | None:
    for name, clocks, usual_hz in (("SM", _sm_clocks, sm_hz), ("memory", _memory_clocks, memory_hz)):
        for state, hz in clocks(row):
            if usual_hz and abs(hz / usual_hz - 1) > CLOCKS:
                megahertz, usual_mhz = hz / HERTZ_PER_MEGAHERTZ, usual_hz / HERTZ_PER_MEGAHERTZ
                return Flag(
                    code="clocks",
                    reason=f"{name} clock of {name_gpu(row, state.uuid)} {megahertz:.0f} MHz, median of its engine "
                    f"config {usual_mhz:.0f} MHz (limit ±{format_percent(CLOCKS)})",
                    fix="find what set it (nvidia-smi -q -d CLOCK), then measure the cell again",
                    value=hz / usual_hz - 1,
                    limit=CLOCKS,
                )
    return None
