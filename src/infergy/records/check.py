"""Rows with their intervals, flags and facts. A pure function of rows. Standard library only.

Facts of how a row was measured predict no error beyond its interval. Which were compared with replicates, and what came
of it: benchmarks/flags.py, docs/flags.md.

Idle power, three ways:

    bare       before the engine was loaded: what the board draws anyway
    loaded     with the model in memory and nothing to do
    between    right after requests, before clocks have fallen: the settled tail of each window, and from its closing
               tick to the next one's opening
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from infergy.records.flags import Flag, find_flags
from infergy.records.latency import Backlog, Latency, backlog_of, describe_serving
from infergy.records.measurement import Measurement
from infergy.records.result import idle_power_by_gpu_w, result_of, sum_windows
from infergy.records.timeline import ratio
from infergy.records.uncertainty import Uncertainty, each_uncertainty
from infergy.records.unlike import find_unlike
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


CHECK_SCHEMA = "infergy.check/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRow:
    """A row, its interval, its flags and its facts.

    Attributes:
        cell: The cell in words.
        energy_j: Energy per batch, gross; None if the cell failed.
        net_energy_j: Energy per batch above loaded idle; None if the cell failed.
        idle: Idle power, taken three ways.
        uncertainty: Its 95 % interval; None if unknown.
        flags: Why its figures may be wrong by more than the interval.
        facts: How it was measured; None if the cell failed.
        failure: Why the cell has no number; None if it has one.
        energy_by_gpu_j: Energy per batch of each GPU, by UUID in the engine's order; empty if the cell failed.
        power_by_gpu_w: Mean power of each while batches ran.
        timeline_ratio: Energy of the counters over those of the power timelines; None where there are none.
        imbalance: Largest less smallest energy of a GPU, over their mean; None with one GPU. No flag: GPUs differ, and
            so do their shares of the work.
        requests_per_s: Requests finished per second; None if the cell failed.
        latency: Percentiles over the requests of an online cell; None offline, and if the engine did not report it.
        backlog: Requests left over halfway through its arrivals and at the last; None then too.
        serving: What an online cell reached, in words; None offline.
    """

    cell_id: str
    cell: str
    energy_j: float | None
    net_energy_j: float | None
    idle: IdlePower
    uncertainty: Uncertainty | None
    flags: tuple[Flag, ...]
    facts: RowFacts | None
    failure: str | None
    energy_by_gpu_j: Mapping[str, float]
    power_by_gpu_w: Mapping[str, float]
    imbalance: float | None
    timeline_ratio: float | None
    requests_per_s: float | None = None
    latency: Latency | None = None
    backlog: Backlog | None = None
    serving: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFile:
    """All rows of a store, in its order."""

    file: str
    rows: tuple[CheckedRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What `infergy check --json` prints."""

    files: tuple[CheckedFile, ...]
    schema: str = CHECK_SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class FlaggedRow:
    """A row, its 95 % interval (None if unknown), its flags, and in what it differs from its engine config's rows."""

    row: Measurement
    uncertainty: Uncertainty | None
    flags: tuple[Flag, ...]
    differs: tuple[str, ...]

    @property
    def is_flagged_or_failed(self) -> bool:
        """Whether it is flagged, or failed."""
        return bool(self.flags) or self.row.failure is not None


def flag_rows(rows: Sequence[Measurement], *, target: float | None = None) -> Iterator[FlaggedRow]:
    """Flags of rows, in their order, each compared with the rows of its engine config.

    `target` is the widest half-width wanted, as a fraction; wider rows are flagged ``uncertain``.

    Raises:
        MeterError: A counter stood still.
    """
    groups: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((row.cell.setup, row.environment.weights), []).append(place)
    compared: dict[int, tuple[tuple[Flag, ...], tuple[str, ...]]] = {}
    for places in groups.values():
        compared |= zip(places, find_unlike([rows[place] for place in places]), strict=True)
    # Rows of other weights count too: the intervals are those that estimates carry.
    for place, (row, uncertainty) in enumerate(zip(rows, each_uncertainty(rows), strict=True)):
        unlike, differs = compared[place]
        flags = (*find_flags(row, uncertainty, target=target), *unlike)
        yield FlaggedRow(row=row, uncertainty=uncertainty, flags=flags, differs=differs)


def check_rows(rows: Sequence[Measurement], *, target: float | None = None) -> tuple[CheckedRow, ...]:
    """As `flag_rows`, with figures and facts of each row.

    Raises:
        MeterError: A counter stood still.
    """
    return tuple(map(describe_row, flag_rows(rows, target=target)))


def describe_row(flagged: FlaggedRow) -> CheckedRow:
    """A row with its figures and facts.

    Raises:
        MeterError: A counter stood still.
    """
    row = flagged.row
    return CheckedRow(
        cell_id=row.cell_id,
        cell=str(row.cell),
        net_energy_j=net_energy_j(row),
        idle=find_idle_power(row),
        uncertainty=flagged.uncertainty,
        flags=flagged.flags,
        facts=find_facts(row, flagged.differs),
        failure=None if row.failure is None else f"{row.failure.code}: {row.failure.message}",
        timeline_ratio=ratio(row),
        backlog=backlog_of(row),
        serving=describe_serving(row) or None,
        **_figures(row),
    )


def _figures(row: Measurement) -> dict[str, Any]:
    """The fields of a `CheckedRow` that follow from the row's result."""
    if not row.windows or row.loaded_idle is None:
        return {"energy_j": None, "energy_by_gpu_j": {}, "power_by_gpu_w": {}, "imbalance": None}
    result = result_of(row)
    # Windows list the GPUs in the order in which they ticked.
    order = {gpu.uuid: index for index, gpu in enumerate(row.environment.gpus)}
    uuids = sorted(result.energy_by_gpu_j, key=lambda uuid: order.get(uuid, len(order)))
    energies_j = result.energy_by_gpu_j.values()
    mean_j = sum(energies_j) / len(energies_j)
    return {
        "energy_j": result.energy_j,
        "energy_by_gpu_j": {uuid: result.energy_by_gpu_j[uuid] for uuid in uuids},
        "power_by_gpu_w": {uuid: result.power_by_gpu_w[uuid] for uuid in uuids},
        "imbalance": (max(energies_j) - min(energies_j)) / mean_j if len(energies_j) > 1 else None,
        "requests_per_s": result.requests_per_s,
        "latency": result.latency,
    }
