"""How long a plan will take, by the forecasts that it carries. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable

from infergy.catalog import get_gpu
from infergy.catalog.gpus import IDLE_SHARE
from infergy.errors import UsageError
from infergy.records import EngineSetup, MeasureOptions, Plan, PlannedCell

LOAD_S = {"transformers": 20.0, "vllm": 100.0}
"""Seconds until an engine config of an 8B model is loaded, as seen on an H200 (vllm with graph capture)."""

WINDOWS = 2.0
"""Windows a cell, on average: the first cells of an engine config take four, most later ones one."""

HANG_FACTOR = 10.0
"""Forecasts are rough; what takes ten times as long hangs."""

EDGE_S = 0.5
"""The wait for a tick, the start delay, the states, and the tail until it has settled and was measured."""


def cell_s(planned: PlannedCell, options: MeasureOptions) -> float:
    """Forecast seconds of one cell: warm-up, and windows of as many batches as their rule asks for."""
    busy_s, windows = _work(planned, options)
    return busy_s + windows * EDGE_S


def _work(planned: PlannedCell, options: MeasureOptions) -> tuple[float, float]:
    """Seconds of one cell in which the engine works, and how many windows that makes."""
    batch_s = planned.forecast_batch_s
    fewest = 1 if batch_s >= options.long_batch_s else options.min_batches
    batches = max(fewest, math.ceil(options.min_window_s / batch_s)) if batch_s > 0 else fewest
    windows = 1.0 if batches * batch_s >= options.max_time_s else max(1.0, WINDOWS / options.repeats)
    busy_s = min(planned.forecast_prefill_s, options.warmup_s) + windows * batches * batch_s
    watched_s = watch_s(batch_s, options) if planned.round == 1 else 0.0
    return busy_s + watched_s, windows + (watched_s > 0)


def watch_s(batch_s: float, options: MeasureOptions) -> float:
    """Seconds of the batches of a cell's watched window, at most the limit; 0 without a timeline."""
    if options.timeline_s <= 0:
        return 0.0
    if batch_s >= options.long_batch_s:
        return options.long_batch_s
    return max(1, math.ceil(options.min_window_s / batch_s)) * batch_s if batch_s > 0 else options.min_window_s


def longest_s(planned: PlannedCell, options: MeasureOptions) -> float:
    """The most that a cell may take by its forecast: windows until the time is up, and one more."""
    return cell_s(planned, options) + options.max_time_s


def patience_s(forecast_s: float, options: MeasureOptions) -> float:
    """How long an engine may report nothing before it counts as hung."""
    return HANG_FACTOR * forecast_s + options.hang_s


def setup_s(setup: EngineSetup, options: MeasureOptions) -> float:
    """Forecast seconds of loading an engine config and taking idle power before and after."""
    return LOAD_S.get(setup.engine, 0.0) + 2 * options.idle_s


def total_s(groups: Iterable[tuple[EngineSetup, list[PlannedCell]]], options: MeasureOptions) -> float:
    """Forecast seconds of all cells, grouped by engine config."""
    return sum(setup_s(setup, options) + sum(cell_s(planned, options) for planned in cells) for setup, cells in groups)


def total_j(plan: Plan) -> float:
    """Forecast energy of all GPUs for measuring a plan: its batches, and idle power while nothing is served.

    Raises:
        UsageError: A cell has no forecast energy.
    """
    idle_w = IDLE_SHARE * get_gpu(plan.gpu).tdp_w
    joules = 0.0
    for setup, cells in plan.by_setup().items():
        waiting_s = setup_s(setup, plan.options)
        for planned in cells:
            if planned.forecast_batch_j is None:
                message = (
                    f"{plan.name}: a release made it that did not forecast energy; make it again: infergy measure GRID "
                    "--plan FILE"
                )
                raise UsageError(message, code="plan-incomplete", plan=plan.name, missing="energy")
            busy_s, windows = _work(planned, plan.options)
            waiting_s += windows * EDGE_S
            joules += busy_s * planned.forecast_batch_j / planned.forecast_batch_s
        joules += waiting_s * idle_w * setup.tensor_parallel
    return joules
