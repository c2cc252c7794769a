"""Few cells that stand for many: cheap to measure again, and unlike each other. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from infergy.errors import UsageError
from infergy.hardware import catalogue_name, get_gpu, model_config
from infergy.records import (
    END_VISIT,
    GRID_VISIT,
    START_VISIT,
    Measurement,
    MeasureOptions,
    Plan,
    PlannedCell,
)

ANCHORS = 3

DEFAULTS = MeasureOptions()
UNKNOWN_S = 10.0
"""Seconds of a batch that nobody has measured."""


def choose_anchors(cells: Sequence[PlannedCell], count: int = ANCHORS) -> list[PlannedCell]:
    """Cells of the shortest third, evenly spread over how long a batch takes."""
    if not cells or not count:
        return []
    short = sorted(cells, key=lambda planned: (planned.forecast_batch_s, planned.key))[: max(count, len(cells) // 3)]
    count = min(count, len(short))
    step = (len(short) - 1) / max(1, count - 1)
    return [short[place] for place in sorted({round(i * step) for i in range(count)})]


def plan_anchors(rows: Sequence[Measurement], label: str) -> Plan:
    """A plan that measures three cells of a table again, of one engine set-up.

    Args:
        rows: The table's rows.
        label: The set-up's label: ``vllm``.

    Raises:
        UsageError: The table has no measured row of that set-up, or its GPU or model is not in the catalogue.
    """
    measured = [row for row in rows if row.is_ok and row.result is not None and not row.cell.load.is_online]
    chosen = [row for row in measured if row.cell.label == label]
    if not chosen:
        labels = sorted({row.cell.label for row in measured})
        raise UsageError.unknown("engine of the table", label, labels, "Name one with --engine", code="unknown-name")
    first = chosen[0]
    # Of several kinds of weights the first one's rows are a set-up of their own.
    alike = [row for row in chosen if row.cell.setup == first.cell.setup]
    name = first.environment.gpus[0].name if first.environment.gpus else "unknown"
    cells = {row.cell_id: _plan(row) for row in alike}
    return Plan(
        name="verify",
        gpu=get_gpu(catalogue_name(name)).name,
        cells=tuple(choose_anchors(list(cells.values()))),
        models={first.cell.setup.model: model_config(first.cell.setup.model)},
        options=MeasureOptions(seed=first.seed),
    )


def plan_again(rows: Sequence[Measurement], cells: Sequence[str], *, target: float) -> Plan:
    """A plan that measures cells of a table again, between anchors of their set-ups.

    Args:
        rows: The table's rows.
        cells: Ids of the cells, in the order in which to measure them.
        target: Half-width that is to be reached, as a fraction; they get twice the time that cells usually have.

    Raises:
        UsageError: The table's GPU or a model is not in the catalogue, or rows are of several kinds of GPU.
    """
    by_id = {row.cell_id: row for row in rows if row.result is not None or row.cell_id in cells}
    setups = list(dict.fromkeys(by_id[cell_id].cell.setup for cell_id in cells))
    planned: list[PlannedCell] = []
    for setup in setups:
        measured = [_plan(row) for row in by_id.values() if row.cell.setup == setup and row.result is not None]
        anchors = choose_anchors(measured)
        again = [_plan(by_id[cell_id]) for cell_id in cells if by_id[cell_id].cell.setup == setup]
        again = [one for one in again if one not in anchors]
        for visit, group in ((START_VISIT, anchors), (GRID_VISIT, again), (END_VISIT, anchors)):
            planned += [replace(one, visit=visit) for one in group]
    names = {gpu.name for row in by_id.values() for gpu in row.environment.gpus}
    if len(names) != 1:
        message = f"the rows are of {', '.join(sorted(names)) or 'no GPU'}; a plan is for one kind. Split them"
        raise UsageError(message, code="several-gpus", gpus=sorted(names))
    return Plan(
        name="again",
        gpu=get_gpu(catalogue_name(names.pop())).name,
        cells=tuple(planned),
        models={setup.model: model_config(setup.model) for setup in setups},
        options=replace(
            DEFAULTS, seed=next(iter(by_id.values())).seed, target=target, max_time_s=2 * DEFAULTS.max_time_s
        ),
    )


def _plan(row: Measurement) -> PlannedCell:
    seconds = UNKNOWN_S if row.result is None else row.result.duration_s
    # Online that of each request, not of all at once.
    first_s = None if row.result is None or row.cell.load.is_online else row.result.time_to_first_token_s
    return PlannedCell(
        cell=row.cell,
        batch_choice=row.batch_choice,
        # Where nobody told, that of the whole batch: the warm-up is to take no longer.
        forecast_prefill_s=seconds if first_s is None else first_s,
        forecast_batch_s=seconds,
        arrival_s=row.arrival_s,
        lengths=row.lengths,
    )
