"""Values of a row that contradict others of it, or that no release wrote: a damaged or edited line, found when read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from infergy.errors import DataError, MeterError
from infergy.records.cell import Cell
from infergy.records.window import Batch, Window

if TYPE_CHECKING:
    from infergy.records.measurement import Measurement

Misfit = tuple[str, object, str]
"""Key, value, and what is expected."""


def reject_impossible(row: Measurement, place: str) -> None:
    """Reject a row whose values cannot be meant.

    Raises:
        DataError: There is one; the message names its key.
    """
    advice = f"Remove the line, and measure {row.cell_id} ({row.cell}) again"
    for key, value, expected in _misfits(row):
        raise DataError.bad_field(place, key, value, f"{expected}. {advice}")
    for key, window in _windows(row):
        try:
            _ = window.energy_by_gpu_j, window.tail_power_by_gpu_w
        except MeterError as error:
            message = f"{place}: {key}: {error}. {advice}"
            raise DataError(message, code="bad-row", place=place, key=key, reason=error.code) from error


def _windows(row: Measurement) -> Iterator[tuple[str, Window]]:
    for index, window in enumerate(row.windows):
        yield f"windows[{index}]", window
    for key in ("watched", "loaded_idle", "bare_idle", "loading"):
        if (one := getattr(row, key)) is not None:
            yield key, one


def _misfits(row: Measurement) -> Iterator[Misfit]:
    if row.cell_id != row.cell.id:
        yield "cell_id", row.cell_id, f"{row.cell.id}, the id of its cell"
    for name in ("windows", "loaded_idle") if row.is_ok else ():
        if not getattr(row, name):
            yield name, None, "a window, for status is ok"
    for line in row.timeline:
        if len(line.offsets_ms) != len(line.power_w):
            yield "timeline.power_w", f"{len(line.power_w)} values", f"{len(line.offsets_ms)}, as in offsets_ms"
    for key, window in _windows(row):
        yield from _misfits_of_window(row, window, key)
        most = max((batch.requests for batch in window.batches), default=0)
        if row.is_ok and row.cell.load.is_online and len(row.arrival_s) < most:
            yield "arrival_s", f"{len(row.arrival_s)} values", f"{most}, one for each request"


def _misfits_of_window(row: Measurement, window: Window, key: str) -> Iterator[Misfit]:
    gpus = sorted(row.windows[0].open if row.windows else window.open)
    for edge in ("open", "close"):
        if gpus != sorted(getattr(window, edge)) or not gpus:
            yield f"{key}.{edge}", sorted(getattr(window, edge)), f"a tick of each GPU: {', '.join(gpus)}"
    if not set(window.settled) <= set(gpus):
        yield f"{key}.settled", sorted(window.settled), f"ticks of {', '.join(gpus)}"
    if not window.batches and key not in ("loaded_idle", "bare_idle", "loading"):
        yield f"{key}.batches", [], "at least one"
    first, last = max(t.time_s for t in window.open.values()), min(t.time_s for t in window.close.values())
    for number, batch in enumerate(window.batches):
        place = f"{key}.batches[{number}]"
        yield from _misfits_of_batch(row.cell, batch, place)
        if not first <= batch.start_s <= batch.end_s <= last:
            yield f"{place}.end_s", batch.end_s, f"{batch.start_s} to {last}, within its window"


def _misfits_of_batch(cell: Cell, batch: Batch, key: str) -> Iterator[Misfit]:
    for name in ("requests", "input_tokens", "output_tokens"):
        if getattr(batch, name) < 1:
            yield f"{key}.{name}", getattr(batch, name), "at least 1"
    if not cell.load.is_online and batch.requests != cell.load.batch:
        yield f"{key}.requests", batch.requests, f"{cell.load.batch}, the batch of its cell"
    if batch.times is not None and not batch.requests == len(batch.times.first_token_s) == len(batch.times.finished_s):
        yield f"{key}.times", f"of {len(batch.times.finished_s)} requests", f"of {batch.requests}, as the batch"
