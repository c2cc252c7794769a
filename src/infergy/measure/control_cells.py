"""Control cells: few, cheap to measure again and unlike each other; and plans that measure cells of a table again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from infergy.catalog import catalog_name, get_gpu, model_config
from infergy.errors import UsageError
from infergy.records import (
    END_VISIT,
    GRID_VISIT,
    START_VISIT,
    EngineSetup,
    Measurement,
    MeasureOptions,
    Plan,
    PlannedCell,
)

CONTROL_CELLS = 3

UNKNOWN_S = 10.0
"""Seconds of a batch that was never measured."""


def choose_control_cells(cells: Sequence[PlannedCell], count: int = CONTROL_CELLS) -> list[PlannedCell]:
    """Cells of the shortest third, evenly spread over how long a batch takes."""
    if not cells or not count:
        return []
    short = sorted(cells, key=lambda planned: (planned.forecast_batch_s, planned.key))[: max(count, len(cells) // 3)]
    count = min(count, len(short))
    step = (len(short) - 1) / max(1, count - 1)
    return [short[place] for place in sorted({round(i * step) for i in range(count)})]


def plan_control_cells(rows: Sequence[Measurement], label: str) -> Plan:
    """A plan that measures three cells of a table again, of the engine config with a label such as ``vllm``.

    Raises:
        UsageError: The table has no measured row of that engine config, or its GPU or model is not in the catalog.
    """
    measured = [row for row in rows if row.is_ok and row.result is not None and not row.cell.load.is_online]
    labels = {row.cell.label for row in measured}
    if label not in labels:
        raise UsageError.unknown(
            "engine of the table", label, sorted(labels), "Name one with --engine", code="unknown-name"
        )
    first = next(row for row in measured if row.cell.label == label)
    # Of several kinds of weights the first one's rows are an engine config of their own.
    cells = {row.cell_id: _plan(row) for row in measured if row.cell.setup == first.cell.setup}
    name = first.environment.gpus[0].name if first.environment.gpus else "unknown"
    options = MeasureOptions(seed=first.seed)
    return _plan_of("verify", name, choose_control_cells(list(cells.values())), options)


def plan_again(rows: Sequence[Measurement], cells: Sequence[str], *, target: float) -> Plan:
    """A plan that measures cells of a table again, between control cells of their engine configs.

    Args:
        rows: The table's rows.
        cells: Ids of the cells, in the order in which to measure them.
        target: Half-width that is to be reached, as a fraction; they get twice the time that cells usually have.

    Raises:
        UsageError: The table's GPU or a model is not in the catalog, or rows are of several kinds of GPU.
    """
    by_id = {row.cell_id: row for row in rows if row.result is not None or row.cell_id in cells}
    gpu = _only_gpu(list(by_id.values()))
    wanted: dict[EngineSetup, list[PlannedCell]] = {}
    for cell_id in cells:
        wanted.setdefault(by_id[cell_id].cell.setup, []).append(_plan(by_id[cell_id]))
    planned: list[PlannedCell] = []
    for setup, again in wanted.items():
        measured = [_plan(row) for row in by_id.values() if row.cell.setup == setup and row.result is not None]
        planned += _with_controls(again, choose_control_cells(measured))
    defaults = MeasureOptions(seed=next(iter(by_id.values())).seed, target=target)
    return _plan_of("again", gpu, planned, replace(defaults, max_time_s=2 * defaults.max_time_s))


def _only_gpu(rows: Sequence[Measurement]) -> str:
    names = {gpu.name for row in rows for gpu in row.environment.gpus}
    if len(names) != 1:
        message = f"the rows are of {', '.join(sorted(names)) or 'no GPU'}; a plan is for one kind. Split them"
        raise UsageError(message, code="several-gpus", gpus=sorted(names))
    return names.pop()


def _with_controls(cells: Sequence[PlannedCell], controls: Sequence[PlannedCell]) -> Iterator[PlannedCell]:
    others = [one for one in cells if one not in controls]
    for visit, group in ((START_VISIT, controls), (GRID_VISIT, others), (END_VISIT, controls)):
        yield from (replace(one, visit=visit) for one in group)


def _plan_of(name: str, gpu: str, cells: Sequence[PlannedCell], options: MeasureOptions) -> Plan:
    models = {one.cell.setup.model: model_config(one.cell.setup.model) for one in cells}
    return Plan(name=name, gpu=get_gpu(catalog_name(gpu)).name, cells=tuple(cells), models=models, options=options)


def _plan(row: Measurement) -> PlannedCell:
    seconds = UNKNOWN_S if row.result is None else row.result.duration_s
    # Online it is each request's, not that of all at once.
    first_s = None if row.result is None or row.cell.load.is_online else row.result.time_to_first_token_s
    return PlannedCell(
        cell=row.cell,
        batch_choice=row.batch_choice,
        # Where it is unknown, the whole batch: the warm-up must not take longer.
        forecast_prefill_s=seconds if first_s is None else first_s,
        forecast_batch_s=seconds,
        arrival_s=row.arrival_s,
        lengths=row.lengths,
        links=row.links,
    )
