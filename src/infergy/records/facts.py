"""What a row shows of how it was measured, none of which predicts an error beyond its interval. Standard library only.

Which of these were compared with replicates, and what came of it: benchmarks/flags.py, docs/flags.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from infergy.records.measurement import Measurement, batch_energy_j
from infergy.units import format_percent, format_si

FEWEST_FOR_DRIFT = 4
"""Batches or windows of which the halves are compared."""


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
    before = {state.uuid: state.temperature_c for state in row.before}
    changes = [
        state.temperature_c - was
        for state in row.after
        if state.temperature_c is not None and (was := before.get(state.uuid)) is not None
    ]
    energy_j = [] if idle is None else [batch_energy_j([window], idle) for window in row.windows]
    return RowFacts(
        windows=len(row.windows),
        shortest_window_s=min(window.busy_s for window in row.windows),
        batch_time_drift=_drift(seconds),
        energy_drift=_drift(energy_j),
        first_batch_ratio=seconds[0] / median(seconds[1:]) if len(seconds) > 2 else None,
        temperature_change_c=max(changes, key=abs, default=None),
        rescaled=None if row.rescaled is None else str(row.rescaled),
        differs=differs,
    )


def _drift(values: Sequence[float]) -> float | None:
    half = len(values) // 2
    return fmean(values[-half:]) / fmean(values[:half]) - 1 if len(values) >= FEWEST_FOR_DRIFT else None
