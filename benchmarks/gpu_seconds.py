"""GPU time that the shipped tables took, beside what other protocols would have taken for the same cells.

Counted from measured batch times and their spread; no GPU needed. Loading an engine costs all of them the same and is
left out. Beside the time stands how many cells are certain to ± 2 % after it, by the same spread.

    infergy, as measured    warm-ups and windows of the rows, edges included
    infergy, to ± 2 %       a window for the power timeline, which counts for no joules; then windows of 3 s or two batches,
                            edges included, as many as each row's own spread asks for, until --max-time (60 s of batches)
                            is over
    five windows of 10 s    five windows, each of whole batches until 10 s are over
    the study's protocol    arXiv 2504.17674: 1,024 examples (4,096 above batch 256), three runs, 20 warm-up batches
"""

from __future__ import annotations

import math
from collections.abc import Callable

from infergy.measure.forecast import EDGE_S, watch_s
from infergy.records import Measurement, MeasureOptions
from infergy.records.store import read_store, shipped_store
from infergy.records.uncertainty import STOPPING_FACTOR, Uncertainty, find_uncertainties, student_t
from infergy.units import format_duration

OPTIONS = MeasureOptions()

Seconds = tuple[float, float]
"""Of the GPU in all, and of the batches that are measured."""


def half_width(row: Measurement, found: Uncertainty | None, measured_s: float) -> float:
    """What the row's spread leaves after so many seconds of batches; of an unknown spread, everything."""
    if found is None:
        return math.inf
    busy_s = sum(window.busy_s for window in row.windows)
    return found.spread * math.sqrt(busy_s / measured_s) * student_t(None) * STOPPING_FACTOR


def as_measured(row: Measurement, _: Uncertainty | None) -> Seconds:
    seen = [] if row.watched is None else [row.watched]
    spans = [max(window.duration_by_gpu_s.values()) for window in (*seen, *row.windows)]
    return sum(spans) + (row.warmup_s or 0.0), sum(window.busy_s for window in row.windows)


def to_target(row: Measurement, found: Uncertainty | None) -> Seconds:
    """At least one window."""
    assert row.result is not None
    batch_s = row.result.duration_s
    is_long = batch_s >= OPTIONS.long_batch_s
    window_s = batch_s if is_long else max(OPTIONS.min_batches, math.ceil(OPTIONS.min_window_s / batch_s)) * batch_s
    windows = 1
    while windows * window_s < OPTIONS.max_time_s and half_width(row, found, windows * window_s) > OPTIONS.target:
        windows += 1
    watched_s = watch_s(batch_s, OPTIONS) + EDGE_S
    return watched_s + windows * (window_s + EDGE_S) + (row.warmup_s or 0.0), windows * window_s


def five_windows(row: Measurement, _: Uncertainty | None) -> Seconds:
    assert row.result is not None
    batch_s = row.result.duration_s
    measured_s = 5 * math.ceil(10 / batch_s) * batch_s
    return measured_s + (row.warmup_s or 0.0), measured_s


def the_study(row: Measurement, _: Uncertainty | None) -> Seconds:
    assert row.result is not None
    batch = row.cell.load.batch
    measured_s = 3 * math.ceil((4096 if batch > 256 else 1024) / batch) * row.result.duration_s
    return 20 * row.result.duration_s + measured_s, measured_s


PROTOCOLS: dict[str, Callable[[Measurement, Uncertainty | None], Seconds]] = {
    "infergy, as measured": as_measured,
    "infergy, to ± 2 %": to_target,
    "five windows of 10 s": five_windows,
    "the study's protocol": the_study,
}


def show(name: str, rows: list[Measurement], found: list[Uncertainty | None]) -> None:
    print(f"{name}: {len(rows)} cells")
    costs = {
        protocol: [ask(row, one) for row, one in zip(rows, found, strict=True)] for protocol, ask in PROTOCOLS.items()
    }
    ours = sum(seconds for seconds, _ in costs["infergy, to ± 2 %"])
    for protocol, pairs in costs.items():
        total_s = sum(seconds for seconds, _ in pairs)
        certain = sum(
            half_width(row, one, measured_s) <= OPTIONS.target
            for row, one, (_, measured_s) in zip(rows, found, pairs, strict=True)
        )
        print(f"  {protocol:22} {format_duration(total_s):>12} {total_s / ours:6.1f} × ours  {certain:3} to ± 2 %")


def main() -> None:
    rows = [row for row in read_store(shipped_store()).rows if row.is_ok]
    every: list[Measurement] = []
    intervals: list[Uncertainty | None] = []
    for engine in sorted({row.cell.setup.engine for row in rows}):
        group = [row for row in rows if row.cell.setup.engine == engine]
        found = find_uncertainties(group)
        show(engine, group, found)
        every += group
        intervals += found
    show("all", every, intervals)


if __name__ == "__main__":
    main()
