"""How large a batch may be: what memory takes, and what a grid allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from infergy.errors import UsageError
from infergy.hardware import Gpu, ModelShape, largest_batch
from infergy.hardware.models import Draft
from infergy.measure.predict import GpuWork, forecast_load
from infergy.records import Cell, EngineSetup, Load, PlannedCell

BATCH_STEP = 8
"""A chosen batch is rounded down to a multiple of this: CUDA graphs are captured for such sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchChoice:
    """A batch size and how it came about, in words."""

    batch: int
    reason: str


def plan_cell(cell: Cell, reason: str, shape: ModelShape, gpu: Gpu, draft: Draft | None = None) -> PlannedCell:
    """A cell with its forecast."""
    cost = forecast_load(cell.setup, shape, gpu, cell.load, draft)
    return PlannedCell(
        cell=cell,
        batch_choice=reason,
        forecast_prefill_s=cost.prefill_s,
        forecast_batch_s=cost.batch_s,
        forecast_batch_j=cost.batch_j,
    )


def choose_batch(
    setup: EngineSetup,
    shape: ModelShape,
    gpu: Gpu,
    load: Load,
    max_batch: int | None,
    max_batch_s: float | None,
    draft: Draft | None = None,
) -> BatchChoice:
    """The largest batch that the memory takes, under two more limits, and which of them held.

    Args:
        setup: What serves.
        shape: The model.
        gpu: The GPU.
        load: Its lengths and decoding; whatever its batch is.
        max_batch: Never more requests than this.
        max_batch_s: Never more than this many seconds of forecast GPU work a batch.
        draft: The model that drafts for it; None without.

    Raises:
        UsageError: Not even one request fits.
    """
    limit = largest_batch(
        shape,
        gpu,
        load.input_tokens,
        load.output_tokens,
        engine=setup.engine,
        dtype=setup.dtype,
        tensor_parallel=setup.tensor_parallel,
        draft=draft,
    )
    # Each beam is a sequence of its own.
    fits = limit.batch // load.decoding.beams
    if fits < 1:
        message = (
            f"{setup.label}: not one request of {load.input_tokens} input and {load.output_tokens} output tokens fits "
            f"{gpu.title}: {limit.reason}"
        )
        raise UsageError(
            message, code="does-not-fit", model=setup.model, gpu=gpu.name, setup=setup.label, reason=limit.reason
        )
    batch, reason = fits, "largest that fits the memory"
    if max_batch is not None and batch > max_batch:
        batch, reason = max_batch, f"largest allowed, {max_batch} (memory would take {fits})"
    if max_batch_s is not None:
        work = GpuWork(setup, shape, gpu, draft)

        def gpu_s(size: int) -> float:
            return work.seconds(replace(load, batch=size))

        if gpu_s(batch) > max_batch_s:
            batch = _bisect(gpu_s, batch, max_batch_s)
            held = f"at most {max_batch_s:g} s of GPU work"
            if batch == 1 and gpu_s(1) > max_batch_s:
                reason = f"one request alone is forecast to take more than {max_batch_s:g} s of GPU work"
            else:
                reason = f"largest forecast to take {held} (memory would take {fits})"
    return BatchChoice(batch=batch if batch < BATCH_STEP else batch - batch % BATCH_STEP, reason=reason)


def _bisect(seconds: Callable[[int], float], high: int, limit_s: float) -> int:
    """The largest size below `high` within `limit_s`; 1 if none is."""
    low = 1
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if seconds(middle) <= limit_s else (low, middle)
    return low
