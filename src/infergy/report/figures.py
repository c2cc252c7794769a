"""The figures of a report, as Vega-Lite charts, in colours and shapes that colour-blind readers tell apart.

Ink is ``currentColor``, so that a page's own colours reach it, in light, dark and print; `for_file` sets it for a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infergy.report.points import Point
from infergy.units import format_latency, format_number, format_percent, format_si

WIDTH, HEIGHT, BAR_HEIGHT = 640, 340, 22
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999999")
"""Okabe and Ito's, those first that stand out on white and on black, and two of Tol's."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [1, 4], [10, 4], [4, 4], [12, 2])
INK, FILE_INK, FILE_PAPER = "currentColor", "#222222", "#FFFFFF"
GRID = "#88888855"
MARGIN = 1.15
"""How far a logarithmic axis goes past what is drawn, as a factor."""

FEWEST_TICKS = 4

FEWEST_ON_LINE = 3
"""Values along the axis from which on marks are joined by a line."""

AXES = {
    "input": "input tokens a request",
    "output": "output tokens a request",
    "batch": "batch: requests at once",
    "rate": "requests a second that arrive",
}
ENERGY_TITLE = "energy, J a request"

TABLE_HEAD = ("Cell", "Series", "J a request", "95 % interval", "s a batch", "W", "GPU", "Flags")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure and the figures' figures.

    Attributes:
        name: Of its files, without a suffix.
        title: What it shows.
        note: What a reader must know, in words.
        spec: Vega-Lite.
        head: Titles of the table's columns.
        table: Its rows, as text.
        points: The rows behind it.
        gpu: The GPU of all of them, where a report has figures of several; else empty.
    """

    name: str
    title: str
    note: str
    spec: Mapping[str, Any]
    head: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    points: tuple[Point, ...]
    gpu: str = ""

    @property
    def heading(self) -> str:
        """What it shows, and on which GPU if that is not plain."""
        return f"{self.title}, on {self.gpu}" if self.gpu else self.title


def draw_sweep(
    name: str,
    title: str,
    note: str,
    points: Sequence[Point],
    series: Sequence[str],
    *,
    x: str,
    lines: str | None = None,
    levels: Sequence[tuple[Point, str]] = (),
    head: tuple[str, ...] = TABLE_HEAD,
    row: Callable[[Point, str], tuple[str, ...]] | None = None,
) -> Figure:
    """Joules a request over lengths or batches, both axes logarithmic, a line a series and `lines` value.

    Args:
        name: Of its files.
        title: What it shows.
        note: What a reader must know.
        points: What is drawn.
        series: Name of each point's series.
        x: ``input``, ``output``, ``batch`` or ``rate``.
        lines: What else parts the lines, ``input`` or ``output``; None for nothing.
        levels: Points that have no place along the axis, each with its series: drawn across all of it.
        head: Titles of the table's columns.
        row: Makes the table's row of a point and its series; None for that of `TABLE_HEAD`.
    """
    row = row or table_row
    values = [_value(point, label, x, lines) for point, label in zip(points, series, strict=True)]
    across = [{"series": label, "joules": point.energy_j, **told(point)} for point, label in levels]
    ticks = _ticks([axis_value(point, x) for point in points])
    order = [f"{value:,}" for value in sorted({axis_value(point, lines) for point in points})] if lines else [""]
    line_title = None if lines is None else AXES[lines]
    chart = _lines(
        values,
        ticks=ticks,
        x_title=AXES[x],
        y_title=ENERGY_TITLE,
        line_title=line_title,
        line_order=order,
        across=across,
    )
    return Figure(
        name=name,
        title=title,
        note=note,
        spec=finish(chart, title),
        head=head,
        table=tuple(row(point, label) for point, label in (*zip(points, series, strict=True), *levels)),
        points=(*points, *(point for point, _ in levels)),
    )


def _value(point: Point, series: str, x: str, lines: str | None) -> dict[str, object]:
    """A point of a sweep as its chart has it."""
    return {
        "series": series,
        "x": axis_value(point, x),
        "line": "" if lines is None else f"{axis_value(point, lines):,}",
        "joules": point.energy_j,
        **interval_of(point.low_j, point.high_j),
        **told(point),
    }


def _lines(
    values: Sequence[Mapping[str, object]],
    *,
    ticks: Sequence[float],
    x_title: str,
    y_title: str,
    line_title: str | None = None,
    line_order: Sequence[str] = ("",),
    share: bool = False,
    across: Sequence[Mapping[str, object]] = (),
) -> Any:
    """Lines with points and intervals; `share` has a linear axis of percentages, `across` are level lines."""
    import altair

    names = list(dict.fromkeys(str(value["series"]) for value in (*values, *across)))
    lowest, highest = ends_of((*values, *across))
    if share:
        y_scale, y_axis = altair.Scale(type="linear"), altair.Axis(format="~%")
    else:
        y_scale = altair.Scale(type="log", domain=[lowest / MARGIN, highest * MARGIN], nice=False)
        y_axis = altair.Axis(format="~s", values=decades(lowest, highest))
    x_axis = altair.Axis(values=list(ticks), format=",~g", labelOverlap=True)
    x_scale = altair.Scale(type="log", base=2, nice=False, padding=12)
    base = inline(values).encode(
        x=altair.X("x:Q", title=x_title, scale=x_scale, axis=x_axis),
        color=colour_of(names),
        detail="line:N",
    )
    dashes = altair.StrokeDash(
        "line:N",
        sort=list(line_order),
        scale=altair.Scale(domain=list(line_order), range=[list(dash) for dash in DASHES[: len(line_order)]]),
        legend=None if line_title is None else altair.Legend(title=line_title, columns=6, symbolSize=900),
    )
    y = altair.Y("joules:Q", title=y_title, scale=y_scale, axis=y_axis)
    # A line goes through the mean of repetitions, which are drawn one by one.
    mean = altair.Y("mean(joules):Q", title=y_title, scale=y_scale, axis=y_axis)
    # Two marks far apart on logarithmic axes would seem to tell what lies between.
    drawn = base.transform_joinaggregate(values_on_line="distinct(x)", groupby=["series", "line"])
    drawn = drawn.transform_filter(f"datum.values_on_line >= {FEWEST_ON_LINE}").mark_line(strokeWidth=1.75)
    drawn = drawn.encode(y=mean, strokeDash=dashes)
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5)
    bars = bars.encode(y=altair.Y("low:Q", title=y_title, scale=y_scale), y2="high:Q")
    # A mark without an interval must not look certain.
    marks = {
        is_known: base.transform_filter(f"isValid(datum.low) == {str(is_known).lower()}")
        .mark_point(filled=is_known, size=55, opacity=1)
        .encode(y=y, shape=shape_of(names), tooltip=tooltips())
        for is_known in dict.fromkeys(value["low"] is not None for value in values)
    }
    layers = [*_levels(across, names, y_scale), drawn, *([bars] if True in marks else []), *marks.values()]
    return altair.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def _levels(values: Sequence[Mapping[str, object]], names: Sequence[str], scale: Any) -> Iterator[Any]:
    """Dashed lines across a chart; nothing without values."""
    import altair

    if values:
        level = inline(values).mark_rule(strokeWidth=1.75, strokeDash=[6, 3])
        yield level.encode(y=altair.Y("joules:Q", scale=scale), color=colour_of(names), tooltip=tooltips())


def ends_of(values: Sequence[Mapping[str, object]]) -> tuple[float, float]:
    """The least and the most that is drawn, intervals included."""
    told = [value.get(name) for value in values for name in ("joules", "low", "high")]
    known = [float(str(one)) for one in told if one is not None]
    return min(known), max(known)


def decades(lowest: float, highest: float) -> list[float]:
    """1, 2 and 5 of each decade between both ends; of more than four decades 1 alone, of a part of one more."""
    first, last = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
    found: list[float] = []
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = (step * 10.0**decade for decade in range(first, last + 1) for step in steps)
        found = [tick for tick in ticks if lowest / MARGIN <= tick <= highest * MARGIN]
        if len(found) >= FEWEST_TICKS:
            break
    return found


def _ticks(values: Sequence[float]) -> list[float]:
    """Where an axis of lengths or batches is labelled: at powers of two, if it has enough of them, else everywhere."""
    every = sorted(set(values))
    even = [value for value in every if value >= 1 and math.log2(value).is_integer()]
    return even if len(even) >= FEWEST_TICKS else every


def draw_shares(
    name: str,
    title: str,
    note: str,
    values: Sequence[Mapping[str, object]],
    *,
    x: str,
    y_title: str,
    lines: str | None,
    head: tuple[str, ...],
    table: Sequence[tuple[str, ...]],
    points: Sequence[Point],
) -> Figure:
    """Fractions over lengths or batches: as `draw_sweep`, the upright axis in percent.

    Values hold ``series``, ``x``, ``line``, ``joules`` (the fraction), ``low``, ``high`` and what a hover tells.
    """
    lined = sorted({str(value["line"]) for value in values}, key=lambda text: int(text.replace(",", "") or 0))
    ticks = sorted({int(str(value["x"])) for value in values})
    chart = _lines(
        values,
        ticks=ticks,
        x_title=AXES[x],
        y_title=y_title,
        line_title=None if lines is None else AXES[lines],
        line_order=lined,
        share=True,
    )
    return Figure(
        name=name,
        title=title,
        note=note,
        spec=finish(chart, title),
        head=head,
        table=tuple(table),
        points=tuple(points),
    )


def draw_bars(values: Sequence[Mapping[str, object]], x_title: str) -> Any:
    """Traces by engine: a bar of joules a request, its bracket, and the ideal as an upright line.

    Values hold ``trace``, ``series`` (the engine), ``joules``, ``low``, ``high`` and ``ideal``, all joules a
    request, the last three None where unknown; `x_title` says what the lines are.
    """
    import altair

    names = list(dict.fromkeys(str(value["series"]) for value in values))
    traces = list(dict.fromkeys(str(value["trace"]) for value in values))
    base = inline(values).encode(
        y=altair.Y("trace:N", sort=traces, title=None, axis=altair.Axis(labelLimit=220)),
        yOffset=altair.YOffset("series:N", sort=names),
        tooltip=tooltips(("trace", "series", "energy", "bracket", "gap to ideal")),
    )
    x_axis = altair.Axis(tickCount=8)
    bars = base.mark_bar().encode(x=altair.X("joules:Q", title=x_title, axis=x_axis), color=colour_of(names))
    brackets = base.transform_filter("isValid(datum.low)").mark_rule(color=INK, strokeWidth=1.5)
    brackets = brackets.encode(x=altair.X("low:Q", title=x_title), x2="high:Q")
    ideals = base.transform_filter("isValid(datum.ideal)").mark_tick(color=INK, thickness=3, opacity=1, size=BAR_HEIGHT)
    ideals = ideals.encode(x=altair.X("ideal:Q", title=x_title))
    height = (BAR_HEIGHT + 8) * len(names) * len(traces) + 20
    layers = [bars]
    layers += [brackets] if any(value["low"] is not None for value in values) else []
    layers += [ideals] if any(value["ideal"] is not None for value in values) else []
    return altair.layer(*layers).properties(width=WIDTH, height=height)


def finish(chart: Any, title: str) -> dict[str, Any]:
    """The chart as Vega-Lite, its ink and paper left to what surrounds it, its title for those who hear it."""
    # Checking it against the schema takes most of a figure's time; tests do that, and open it in Chromium.
    spec: dict[str, Any] = chart.to_dict(validate=False)
    spec["description"] = title
    spec["background"] = "transparent"
    spec["config"] = _config(INK)
    return spec


def for_file(figure: Figure) -> dict[str, Any]:
    """The figure for a file that stands alone: on white, with its title."""
    title = {"text": figure.title, "anchor": "start", "color": FILE_INK, "fontSize": 14}
    if figure.gpu:
        title |= {"subtitle": figure.gpu, "subtitleColor": FILE_INK, "subtitleFontSize": 12}
    spec = _with_ink(dict(figure.spec))
    return {**spec, "background": FILE_PAPER, "config": _config(FILE_INK), "title": title, "padding": 12}


def _with_ink(value: Any) -> Any:
    if isinstance(value, dict):
        # What rows tell is not ink, whatever it says.
        return {key: item if key in ("values", "datasets") else _with_ink(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_ink(item) for item in value]
    return FILE_INK if value == INK else value


def _config(ink: str) -> dict[str, Any]:
    words = {"labelColor": ink, "titleColor": ink}
    return {
        "font": "system-ui, -apple-system, 'DejaVu Sans', Arial, sans-serif",
        "axis": {**words, "gridColor": GRID, "domainColor": ink, "tickColor": ink, "labelFontSize": 12},
        "legend": {**words, "labelLimit": 420, "labelFontSize": 12, "orient": "bottom", "columns": 2},
        "header": words,
        "view": {"stroke": None},
    }


def inline(values: Sequence[Mapping[str, object]]) -> Any:
    """A chart without marks over values that stand in it."""
    import altair

    data: Any = altair.Data
    return altair.Chart(data(values=[dict(value) for value in values]))


def colour_of(names: Sequence[str]) -> Any:
    """Of series, in their order."""
    import altair

    colours = [COLOURS[place % len(COLOURS)] for place in range(len(names))]
    return altair.Color("series:N", sort=list(names), scale=altair.Scale(domain=list(names), range=colours), title=None)


def shape_of(names: Sequence[str]) -> Any:
    """Of series, in their order."""
    import altair

    # The next round of colours has other shapes.
    shapes = [SHAPES[(place + place // len(COLOURS)) % len(SHAPES)] for place in range(len(names))]
    return altair.Shape("series:N", sort=list(names), scale=altair.Scale(domain=list(names), range=shapes), title=None)


def tooltips(fields: Sequence[str] = ("cell", "series", "value", "interval", "batch takes", "power", "flags")) -> Any:
    """What a hover tells."""
    import altair

    return [altair.Tooltip(f"{field}:N") for field in fields]


def axis_value(point: Point, axis: str) -> float:
    """Where a point stands along one of `AXES`; requests a second are those that its run really asks for."""
    load, came_s = point.row.cell.load, point.row.arrival_s
    if axis == "rate":
        return (len(came_s) - 1) / came_s[-1] if came_s and came_s[-1] > 0 else math.inf
    return {"input": load.input_tokens, "output": load.output_tokens, "batch": load.batch}[axis]


def interval_of(low: float | None, high: float | None) -> dict[str, float | None]:
    """Both ends where both are known and can stand on a logarithmic axis."""
    known = low is not None and high is not None and low > 0
    return {"low": low if known else None, "high": high if known else None}


def told(point: Point, *, value: str | None = None, interval: str | None = None) -> dict[str, str]:
    """What a hover tells of a point; its joules a request unless another value is given."""
    return {
        "cell": str(point.row.cell),
        "value": f"{format_si(point.energy_j, 'J')} a request" if value is None else value,
        "interval": _between(point) if interval is None else interval,
        "batch takes": format_latency(point.duration_s),
        "power": f"{format_number(point.power_w)} W",
        "flags": point.doubts,
    }


def _between(point: Point) -> str:
    if point.low_j is None or point.high_j is None:
        return "unknown"
    half = (point.high_j - point.low_j) / 2 / point.energy_j
    return f"{format_si(point.low_j, 'J')} .. {format_si(point.high_j, 'J')} (± {format_percent(half)})"


def table_row(point: Point, series: str) -> tuple[str, ...]:
    """A point under `TABLE_HEAD`."""
    return (
        str(point.row.cell),
        series,
        format_number(point.energy_j),
        _between(point),
        format_number(point.duration_s),
        format_number(point.power_w),
        point.gpu,
        point.doubts,
    )
