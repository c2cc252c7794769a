"""Idle power three ways, and what a row takes above it: pure functions of the row. Standard library only.

bare       before the engine was loaded: what the board draws anyway
loaded     with the model in memory and nothing to do
between    right after requests, before clocks have fallen: the settled tail of each window, and from its closing tick
           to the next one's opening
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from infergy.records.measurement import Measurement, result_of
from infergy.records.window import Tick, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class IdlePower:
    """Watts of all GPUs of a row while no request ran; None where it was not taken.

    Attributes:
        bare_w: Before the engine was loaded.
        loaded_w: With the model loaded.
        between_w: After the batches of the windows.
    """

    bare_w: float | None
    loaded_w: float | None
    between_w: float | None


def find_idle_power(row: Measurement) -> IdlePower:
    """The three idle powers of a row, times the factor of a rescaled one.

    Raises:
        MeterError: A counter stood still.
    """
    # What a GPU takes above idle must not turn on which part of it was scaled.
    factor = 1.0 if row.rescaled is None else row.rescaled.factor
    windows = (row.bare_idle, row.loaded_idle)
    bare_w, loaded_w = (None if one is None else sum(one.power_by_gpu_w.values()) * factor for one in windows)
    between_w = _between_w(row)
    return IdlePower(bare_w=bare_w, loaded_w=loaded_w, between_w=None if between_w is None else between_w * factor)


def _between_w(row: Measurement) -> float | None:
    """Mean power after the windows' batches, each GPU on its own edges; None where nothing tells it."""
    joules: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for uuid, begin, end in _rests(row.windows):
        if end.energy_j <= begin.energy_j:
            # Between windows a counter may start again: no joule of a batch is in it.
            continue
        joules[uuid] = joules.get(uuid, 0.0) + end.energy_j - begin.energy_j
        seconds[uuid] = seconds.get(uuid, 0.0) + end.time_s - begin.time_s
    if not seconds or not all(seconds.values()):
        return None
    return sum(joules[uuid] / seconds[uuid] for uuid in joules)


def _rests(windows: Sequence[Window]) -> Iterator[tuple[str, Tick, Tick]]:
    """Between which ticks each GPU had nothing to do: the settled tails, and from one window to the next."""
    for window in windows:
        for uuid, tick in window.settled.items():
            yield uuid, tick, window.close[uuid]
    for earlier, later in pairwise(windows):
        for uuid, tick in earlier.close.items():
            yield uuid, tick, later.open[uuid]


def net_energy_j(row: Measurement) -> float | None:
    """Joules a batch above what the idle, loaded GPUs would have taken; None if the row failed.

    Gross joules, `Result.energy_j`, are the default everywhere: somebody pays for idle power too.

    Raises:
        MeterError: A counter stood still.
    """
    if not row.windows or row.loaded_idle is None:
        return None
    result, loaded_w = result_of(row), find_idle_power(row).loaded_w
    return None if loaded_w is None else result.energy_j - result.duration_s * loaded_w
