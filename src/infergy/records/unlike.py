"""Doubts about a row among the others of its set-up: it drifted, its clocks or its environment are others'.

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
from infergy.records.measurement import Measurement, result_of
from infergy.units import HERTZ_PER_MEGAHERTZ

DRIFT = 0.02
"""How far an anchor's joules may move between the start and the end of its set-up."""

CLOCKS = 0.05
"""How far a clock may lie from the median of the set-up's rows."""

POWER_CAP = "sw_power_cap"
"""At the power limit the SM clock floats by a third from one moment to the next (H200: 1395 to 1980 MHz): it says
nothing there."""


def find_unlike(rows: Sequence[Measurement]) -> list[tuple[Flag, ...]]:
    """The flags of each row of one engine set-up among the others, in their order; none for failed rows.

    Raises:
        MeterError: A counter stood still.
    """
    measured = [row for row in rows if row.windows and row.loaded_idle is not None]
    drifted = _find_drift(measured)
    usual = _usual_environment(measured)
    clocks = _usual_clocks(measured)
    found: list[tuple[Flag, ...]] = []
    for row in rows:
        if usual is None or not row.windows or row.loaded_idle is None:
            found.append(())
            continue
        flags = (drifted.get(_place(row)), _clocks(row, *clocks), _environment(row, usual))
        found.append(tuple(flag for flag in flags if flag is not None))
    return found


def _place(row: Measurement) -> tuple[str, tuple[str, ...]]:
    """Which visit of which cell it is, and on which chips: parts of a divided set-up have anchors each."""
    return row.key, tuple(sorted(row.windows[0].open))


def _find_drift(rows: Sequence[Measurement]) -> dict[tuple[str, tuple[str, ...]], Flag]:
    """Anchors that moved between the start and the end of their set-up, by the later row.

    The start is that on the same chips; where there is none, that on any, so that a change of chips shows.
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
        if abs(is_j / was_j - 1) > DRIFT:
            found[place] = Flag(
                code="drift",
                reason=f"this anchor took {is_j / was_j - 1:+.1%} joules at the end of its set-up against the start, "
                f"expected ±{DRIFT:.0%}",
                cure="measure the set-up again on a quiet machine; until then its rows differ by as much",
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
    must = differences(usual, row, MUST)
    found = must or differences(usual, row, SHOULD)
    if not found:
        return None
    cure = (
        "put these rows into a file of their own: no estimate takes both"
        if must
        else "measure all cells of a set-up on one chip and one host, or bear with a few percent"
    )
    return Flag(
        code="environment",
        reason=f"unlike the most rows of its set-up: {'; '.join(map(str, found))}",
        cure=cure,
    )


def _sm_clocks(row: Measurement) -> Iterator[tuple[GpuState, float]]:
    """Clocks after the last batch, of GPUs that their power limit did not hold down."""
    for state in row.after:
        if state.sm_clock_hz is not None and POWER_CAP not in (state.slowdowns or ()):
            yield state, state.sm_clock_hz


def _memory_clocks(row: Measurement) -> Iterator[tuple[GpuState, float]]:
    for state in row.after:
        if state.memory_clock_hz is not None:
            yield state, state.memory_clock_hz


def _usual_clocks(rows: Sequence[Measurement]) -> tuple[float | None, float | None]:
    """Median SM clock and memory clock of the rows; None where none tells."""
    found = ([hz for row in rows for _, hz in clocks(row)] for clocks in (_sm_clocks, _memory_clocks))
    sm_hz, memory_hz = (median(one) if one else None for one in found)
    return sm_hz, memory_hz


def _clocks(row: Measurement, sm_hz: float | None, memory_hz: float | None) -> Flag | None:
    for name, clocks, usual_hz in (("SM", _sm_clocks, sm_hz), ("memory", _memory_clocks, memory_hz)):
        for state, hz in clocks(row):
            if usual_hz is not None and abs(hz / usual_hz - 1) > CLOCKS:
                return Flag(
                    code="clocks",
                    reason=f"the {name} clock of {name_gpu(row, state.uuid)} was {_megahertz(hz)}, that of the other "
                    f"rows of its set-up {_megahertz(usual_hz)}, expected ±{CLOCKS:.0%}",
                    cure="see who set it (nvidia-smi -q -d CLOCK), then measure the cell again",
                )
    return None


def _megahertz(hertz: float) -> str:
    return f"{hertz / HERTZ_PER_MEGAHERTZ:.0f} MHz"
