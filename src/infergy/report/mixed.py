"""Tasks whose prompts have lengths of their own: padded static batches beside continuous batching."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from infergy.report.dots import draw_dots, place_values
from infergy.report.figures import ENERGY_TITLE, TABLE_HEAD, Figure, table_row
from infergy.report.ours import Evidence
from infergy.report.points import Point, name_series
from infergy.units import count_of, format_percent
from infergy.workload.summary import find_padding
from infergy.workload.tasks import PREFIX, find_task, is_task

HEAD = (*TABLE_HEAD, "Padding")
NOTE = (
    "Each prompt has a length of its own, drawn by the published moments (docs/tasks.md). transformers pads those of a "
    "static batch to the longest, as the table tells; vLLM pads nothing. -s32: so many requests at once. "
    "Thin lines: 95 % intervals, where they are longer than the marks. Hollow marks: interval unknown, or down to 0."
)


def draw_mixed(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    """A figure for each model; nothing without replayed tasks."""
    asked = [point for point in evidence.replays if is_task(_source(point))]
    for number, model in enumerate(dict.fromkeys(point.model for point in asked), 1):
        points = [point for point in asked if point.model == model]
        points.sort(key=lambda point: (_source(point), _label(point), point.batch))
        title = f"{model}: energy a request by task, prompts of mixed lengths"
        series = name_series(points, {one.row.cell_id: _label(one) for one in points}, title=title, mixed=mixed)
        places = [f"{find_task(_source(one)).title}, {count_of(one.batch, 'request')}" for one in points]
        yield draw_dots(
            "tasks-mixed" if number == 1 else f"tasks-mixed-{number}",
            title,
            NOTE,
            place_values(points, series, places),
            x_title=ENERGY_TITLE,
            head=HEAD,
            table=[(*table_row(one, label), _padding(one)) for one, label in zip(points, series, strict=True)],
            points=points,
        )


def _source(point: Point) -> str:
    arrivals = point.row.cell.load.arrivals
    return PREFIX if arrivals is None else str(arrivals.trace)


def _label(point: Point) -> str:
    """The set-up and how tokens are chosen, without what is replayed."""
    return replace(point.row.cell, load=replace(point.row.cell.load, arrivals=None)).label


def _padding(point: Point) -> str:
    """Share of the prompt tokens worked on that no request asked for."""
    setup = point.row.cell.setup
    if setup.engine != "transformers":
        return "none"
    lengths = [tokens for tokens, _ in point.row.lengths]
    return format_percent(find_padding(lengths, setup.max_sequences or len(lengths), by_arrival=True).waste)
