"""GPU time that the shipped tables took, beside what other protocols would have taken for the same cells.

Counted from measured batch times; no GPU needed. Loading an engine costs all of them the same and is left out.

    infergy, as measured    warm-ups and windows of the rows, edges included
    infergy, to ± 2 %       windows of 3 s or two batches, as many as the row's own spread asks for at 95 %
    five windows of 10 s    five windows, each of whole batches until 10 s are over
    the study's protocol    arXiv 2504.17674: 1,024 examples (4,096 above batch 256), three runs, 20 warm-up batches
"""

from __future__ import annotations

import math
from collections.abc import Callable

from infergy.energy.load import shipped_tables
from infergy.records import Measurement
from infergy.records.store import read_store
from infergy.records.uncertainty import STOPPING_FACTOR, Uncertainty, find_uncertainties, student_t
from infergy.units import format_duration

TARGET = 0.02
WINDOW_S = 3.0


def as_measured(row: Measurement, _: Uncertainty | None) -> float:
    spans = [max(window.duration_by_gpu_s.values()) for window in row.windows]
    return sum(spans) + (row.warmup_s or 0.0)


def to_target(row: Measurement, found: Uncertainty | None) -> float:
    """Seconds until the spread's share of the half-width is below the target, at least one window."""
    assert row.result is not None
    batch_s = row.result.duration_s
    fewest_s = batch_s if batch_s >= 5 else max(2, math.ceil(WINDOW_S / batch_s)) * batch_s
    busy_s = sum(window.busy_s for window in row.windows)
    spread = found.spread if found else 0.0
    needed_s = busy_s * (spread * student_t(None) * STOPPING_FACTOR / TARGET) ** 2
    return math.ceil(max(1.0, needed_s / fewest_s)) * fewest_s + (row.warmup_s or 0.0)


def five_windows(row: Measurement, _: Uncertainty | None) -> float:
    assert row.result is not None
    batch_s = row.result.duration_s
    return 5 * math.ceil(10 / batch_s) * batch_s + (row.warmup_s or 0.0)


def the_study(row: Measurement, _: Uncertainty | None) -> float:
    assert row.result is not None
    batch = row.cell.load.batch
    batches = math.ceil((4096 if batch > 256 else 1024) / batch)
    return (20 + 3 * batches) * row.result.duration_s


PROTOCOLS: dict[str, Callable[[Measurement, Uncertainty | None], float]] = {
    "infergy, as measured": as_measured,
    "infergy, to ± 2 %": to_target,
    "five windows of 10 s": five_windows,
    "the study's protocol": the_study,
}


def main() -> None:
    rows = [row for row in read_store(shipped_tables()[0]).rows if row.is_ok]
    for engine in sorted({row.cell.setup.engine for row in rows}):
        group = [row for row in rows if row.cell.setup.engine == engine]
        found = find_uncertainties(group)
        certain = sum(one is not None and one.half_width <= TARGET for one in found)
        print(f"{engine}: {len(group)} cells, {certain} certain to ± {TARGET:.0%} as measured")
        ours = sum(to_target(row, one) for row, one in zip(group, found, strict=True))
        for name, protocol in PROTOCOLS.items():
            seconds = sum(protocol(row, one) for row, one in zip(group, found, strict=True))
            print(f"  {name:22} {format_duration(seconds):>12} {seconds / ours:6.1f} × infergy to ± 2 %")


if __name__ == "__main__":
    main()
