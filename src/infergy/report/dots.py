"""Figures of a mark for each place of a list, where no axis orders the places: tasks, configurations, precisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infergy.report.figures import (
    MARGIN,
    WIDTH,
    Figure,
    colour_of,
    decades,
    ends_of,
    finish,
    inline,
    interval_of,
    shape_of,
    told,
    tooltips,
)
from infergy.report.points import Point

ROW_HEIGHT = 20
"""Pixels between two series at one place."""

NEAR = 8
"""Highest over lowest up to which an axis is linear from 0, so that lengths are joules; past it logarithmic."""

PLACE_GAP = 0.3
"""Share of a place's height that is left free between it and the next."""


def draw_dots(
    name: str,
    title: str,
    note: str,
    values: Sequence[Mapping[str, object]],
    *,
    x_title: str,
    head: tuple[str, ...],
    table: Sequence[tuple[str, ...]],
    points: Sequence[Point],
) -> Figure:
    """Joules at each place, a mark a series, with intervals, on an axis from 0, or a logarithmic one if far apart.

    Args:
        name: Of its files.
        title: What it shows.
        note: What a reader must know.
        values: Each with ``place``, ``series``, ``joules``, ``low``, ``high`` and what a hover tells.
        x_title: Of the axis, with its unit.
        head: Titles of the table's columns.
        table: Its rows.
        points: The rows behind it.
    """
    import altair

    names = list(dict.fromkeys(str(value["series"]) for value in values))
    places = list(dict.fromkeys(str(value["place"]) for value in values))
    lowest, highest = ends_of(values)
    if highest < lowest * NEAR:
        scale, axis = (
            altair.Scale(type="linear", domain=[0, highest * MARGIN], nice=False),
            altair.Axis(format="~s", tickCount=8),
        )
    else:
        scale = altair.Scale(type="log", domain=[lowest / MARGIN, highest * MARGIN], nice=False)
        axis = altair.Axis(format="~s", values=decades(lowest, highest))
    base = inline(values).encode(
        y=altair.Y("place:N", sort=places, title=None, axis=altair.Axis(labelLimit=340, grid=True)),
        color=colour_of(names),
    )
    if len({(value["place"], value["series"]) for value in values}) > len(places):
        apart = altair.Scale(paddingOuter=PLACE_GAP)
        base = base.encode(yOffset=altair.YOffset("series:N", sort=names, scale=apart))
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5)
    bars = bars.encode(x=altair.X("low:Q", title=x_title, scale=scale, axis=axis), x2="high:Q")
    # A mark without an interval must not look certain.
    marks: list[Any] = [
        base.transform_filter(f"isValid(datum.low) == {str(is_known).lower()}")
        .mark_point(filled=is_known, size=55, opacity=1)
        .encode(
            x=altair.X("joules:Q", title=x_title, scale=scale, axis=axis),
            shape=shape_of(names),
            tooltip=tooltips(),
        )
        for is_known in dict.fromkeys(value["low"] is not None for value in values)
    ]
    layers = [*([bars] if any(value["low"] is not None for value in values) else []), *marks]
    height = ROW_HEIGHT * len(places) * max(2, len(names)) + ROW_HEIGHT
    chart = altair.layer(*layers).properties(width=WIDTH, height=height)
    return Figure(
        name=name,
        title=title,
        note=note,
        spec=finish(chart, title),
        head=head,
        table=tuple(table),
        points=tuple(points),
    )


def place_values(points: Sequence[Point], series: Sequence[str], places: Sequence[str]) -> list[dict[str, object]]:
    """Points as `draw_dots` has them, each in its series and at its place."""
    return [
        {
            "place": place,
            "series": label,
            "joules": point.energy_j,
            **interval_of(point.low_j, point.high_j),
            **told(point),
        }
        for point, label, place in zip(points, series, places, strict=True)
    ]
