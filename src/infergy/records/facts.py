"""Facts of how a row was measured that predict no error beyond its interval. Standard library only.

Which of these were compared with replicates, and what came of it: benchmarks/flags.py, docs/flags.md.

Idle power, three ways:

    bare       before the engine was loaded: what the board draws anyway
    loaded     with the model in memory and nothing to do
    between    right after requests, before clocks have fallen: the settled tail of each window, and from its closing
               tick to the next one's opening
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from infergy.records.measurement import Measurement
from infergy.records.result import idle_power_by_gpu_w, result_of, sum_windows
from infergy.records.window import Tick, Window
from infergy.units import format_percent, format_si

FEWEST_FOR_DRIFT = 4
"""Batches or windows whose halves are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFacts:
    """How a row was measured; fractions are relative changes from the first half to the last.

    Attributes:
        shortest_window_s: Seconds of batches of the shortest window; a tick of the counter is 0.1 s or less.
        batch_time_drift: Of the mean batch time; None of fewer than four batches.
        energy_drift: Of the mean energy per batch of the windows; None of fewer than four.
        first_batch_ratio: Duration of the first batch over the median of the others; None of fewer than three.
        temperature_change_c: Largest change of a GPU from before the windows to after; None if not reported.
        rescaled: Factor and GPU of a row that was rescaled; None of others.
        differs: GPU, meter, CPU or system, where they differ from most rows of the engine config.
    """

    windows: int
    shortest_window_s: float
    batch_time_drift: float | None
    energy_drift: float | None
    first_batch_ratio: float | None
    temperature_change_c: float | None
    rescaled: str | None
    differs: tuple[str, ...]

    def __str__(self) -> str:
        drifts = {"batch time drift": self.batch_time_drift, "energy drift": self.energy_drift}
        parts = [f"windows {self.windows}, shortest {format_si(self.shortest_window_s, 's')}"]
        parts += [f"{name} {format_percent(drift, signed=True)}" for name, drift in drifts.items() if drift is not None]
        if self.first_batch_ratio is not None:
            parts.append(f"first batch × {self.first_batch_ratio:.2f}")
        if self.temperature_change_c is not None:
            parts.append(f"temperature {self.temperature_change_c:+g} °C")
        return ", ".join((*parts, *([f"rescaled {self.rescaled}"] if self.rescaled else []), *self.differs))


def find_facts(row: Measurement, differs: tuple[str, ...] = ()) -> RowFacts | None:
    """How a row was measured; None of a failed one.

    Raises:
        MeterError: A counter stood still.
    """
    if not row.windows:
        return None
    idle, seconds = row.loaded_idle, [batch.duration_s for window in row.windows for batch in window.batches]
    sums = [] if idle is None else sum_windows(row.windows, idle)
    return RowFacts(
        windows=len(row.windows),
        shortest_window_s=min(window.busy_s for window in row.windows),
        batch_time_drift=_drift(seconds),
        energy_drift=_drift([window.batch_j for window in sums]),
        first_batch_ratio=seconds[0] / median(seconds[1:]) if len(seconds) > 2 else None,
        temperature_change_c=max(_heating_c(row), key=abs, default=None),
        rescaled=None if row.rescaled is None else str(row.rescaled),
        differs=differs,
    )


def _heating_c(row: Measurement) -> Iterator[float]:
    before = {state.uuid: state.temperature_c for state in row.before}
    for state in row.after:
        if state.temperature_c is not None and (was_c := before.get(state.uuid)) is not None:
            yield state.temperature_c - was_c


def _drift(values: Sequence[float]) -> float | None:
    half = len(values) // 2
    return fmean(values[-half:]) / fmean(values[:half]) - 1 if len(values) >= FEWEST_FOR_DRIFT else None


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
    bare_w, loaded_w = (None if one is None else sum(idle_power_by_gpu_w(one).values()) * factor for one in windows)
    between_w = _between_w(row)
    return IdlePower(bare_w=bare_w, loaded_w=loaded_w, between_w=None if between_w is None else between_w * factor)


def _between_w(row: Measurement) -> float | None:
    """Mean power after the windows' batches, each GPU on its own edges; None if unknown."""
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
    """Energy per batch above what the idle, loaded GPUs would have taken; None if the row failed.

    Gross joules, `Result.energy_j`, are the default everywhere: idle power is paid for too.

    Raises:
        MeterError: A counter stood still.
    """
    if not row.windows or row.loaded_idle is None:
        return None
    result, loaded_w = result_of(row), find_idle_power(row).loaded_w
    return None if loaded_w is None else result.energy_j - result.duration_s * loaded_w
