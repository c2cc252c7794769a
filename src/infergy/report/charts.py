"""Figures as Vega-Lite charts, in colours and shapes that colour-blind readers can distinguish.

Ink is ``currentColor``, so that a page's own colours apply, in light, dark and print; `for_file` sets it for a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infergy.report.points import Interval, Point, name_series
from infergy.units import format_number

WIDTH, HEIGHT, BAR_HEIGHT, ROW_HEIGHT = 640, 340, 22, 20
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999999")
"""Okabe and Ito's, those first that contrast with white and with black, and two of Tol's."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [1, 4], [10, 4], [4, 4], [12, 2])
INK, FILE_INK = "currentColor", "#222222"
MARGIN = 1.15
"""How far an axis extends past the data, as a factor."""

FEWEST_TICKS = 4
FEWEST_ON_LINE = 3
"""Values along the axis from which on marks are joined by a line."""

LINEAR_BELOW = 8
"""Highest over lowest value below which dots have a linear axis from 0, so that lengths are energies."""

AXES = {
    "input": "input tokens per request",
    "output": "output tokens per request",
    "batch": "batch: requests at once",
    "rate": "arrival rate, requests per second",
}
ENERGY_TITLE = "energy, J per request"
UNKNOWN = "unknown"
INTERVALS_NOTE = (
    "Thin lines: 95 % intervals, where they are longer than the marks. Hollow marks: interval unknown, or down to 0."
)
TABLE_HEAD = ("Cell", "Series", "J per request", "95 % interval", "s per batch", "W", "GPU", "Flags")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One mark of a chart, and its row of the figure's table, which a hover shows.

    Attributes:
        value: None draws nothing.
        interval: None where unknown.
        where: ``x`` and ``line``, ``place``, or ``trace`` and ``ideal``, by the kind of chart.
        points: The measured cells behind it.
    """

    series: str
    value: float | None
    interval: Interval | None
    cells: tuple[str, ...]
    where: Mapping[str, object] = field(default_factory=dict)
    points: tuple[Point, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure and its table.

    Attributes:
        name: Of its files, without a suffix.
        spec: Vega-Lite.
        gpu: The GPU of all its points, in a report with figures of several; else empty.
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
        """Title, and the GPU if several are in the report."""
        return f"{self.title}, on {self.gpu}" if self.gpu else self.title


def make_figure(name: str, title: str, note: str, head: tuple[str, ...], marks: Sequence[Mark], chart: Any) -> Figure:
    """A figure of an altair chart of marks, with its title for screen readers."""
    # Validation takes most of a figure's time; tests do it.
    spec = {**chart.to_dict(validate=False), "description": title, "background": "transparent", "config": _config(INK)}
    points = {id(point): point for mark in marks for point in mark.points}
    table = tuple(mark.cells for mark in marks)
    return Figure(name=name, title=title, note=note, spec=spec, head=head, table=table, points=tuple(points.values()))


def measured_figure(
    name: str,
    title: str,
    note: str,
    points: Sequence[Point],
    mixed: str,
    where: Callable[[Point], Mapping[str, object]],
    chart: Callable[[Sequence[Mark], tuple[str, ...]], Any],
    *,
    label: Callable[[Point], str] = lambda point: point.label,
    more_head: tuple[str, ...] = (),
    more: Callable[[Point], tuple[str, ...]] = lambda _: (),
) -> Figure:
    """Energy per request of measured cells: `label` names a cell's series, `more` fills columns after `TABLE_HEAD`."""
    series = name_series(points, [label(point) for point in points], title=title, mixed=mixed)
    marks = [
        Mark(
            series=name,
            value=point.energy_j,
            interval=point.interval_j,
            cells=(
                str(point.row.cell),
                name,
                format_number(point.energy_j),
                point.interval_text,
                format_number(point.duration_s),
                format_number(point.power_w),
                point.gpu,
                ", ".join(flag.code for flag in point.flags) or "none",
                *more(point),
            ),
            where=where(point),
            points=(point,),
        )
        for point, name in zip(points, series, strict=True)
    ]
    head = (*TABLE_HEAD, *more_head)
    return make_figure(name, title, note, head, marks, chart(marks, head))


def sweep_figure(
    name: str, title: str, note: str, points: Sequence[Point], mixed: str, x: str, lines: str | None = None, **more: Any
) -> Figure:
    """Energy per request over one of `AXES`; `lines` names another, by which lines are dashed."""

    def where(point: Point) -> dict[str, object]:
        return {"x": axis_value(point, x), "line": f"{axis_value(point, lines):,}" if lines else ""}

    def chart(marks: Sequence[Mark], head: Sequence[str]) -> Any:
        return line_chart(marks, head, AXES[x], ENERGY_TITLE, AXES[lines] if lines else None)

    return measured_figure(name, title, note, points, mixed, where, chart, **more)


def dot_figure(
    name: str, title: str, note: str, points: Sequence[Point], mixed: str, place: Callable[[Point], str], **more: Any
) -> Figure:
    """Energy per request at places without an order."""

    def chart(marks: Sequence[Mark], head: Sequence[str]) -> Any:
        return dot_chart(marks, head, ENERGY_TITLE)

    return measured_figure(name, title, note, points, mixed, lambda point: {"place": place(point)}, chart, **more)


def axis_value(point: Point, axis: str) -> float:
    """Where a point is along one of `AXES`; the rate is that of the arrival times of its run, offline infinite."""
    if axis == "rate":
        arrival_s = point.row.arrival_s
        return (len(arrival_s) - 1) / arrival_s[-1] if arrival_s and arrival_s[-1] > 0 else math.inf
    return {"input": point.load.input_tokens, "output": point.load.output_tokens, "batch": point.batch}[axis]


def line_chart(
    marks: Sequence[Mark],
    head: Sequence[str],
    x_title: str,
    y_title: str,
    line_title: str | None = None,
    *,
    is_share: bool = False,
    fewest: int = FEWEST_ON_LINE,
) -> Any:
    """Marks with intervals along ``x``, joined by a line for each series and ``line`` of at least `fewest`.

    Axes are logarithmic; with `is_share` the y axis is linear, in percent. A mark at infinity is a dashed level.
    """
    import altair

    names = _distinct(mark.series for mark in marks)
    if is_share:
        y_scale, y_axis = altair.Scale(type="linear"), altair.Axis(format="~%")
    else:
        y_scale, y_axis = _log_axis(marks)
    levels = _values(mark for mark in marks if mark.where["x"] == math.inf)
    marks = [mark for mark in marks if mark.where["x"] != math.inf]
    ticks = _ticks([float(str(mark.where["x"])) for mark in marks])
    x_axis = altair.Axis(values=ticks, format=",~g", labelOverlap=True)
    x_scale = altair.Scale(type="log", base=2, nice=False, padding=12)
    x = altair.X("x:Q", title=x_title, scale=x_scale, axis=x_axis)
    values = _values(marks, is_log=not is_share)
    base = inline(values).encode(x=x, color=_colour(names), detail="line:N")
    # A line connects means of repetitions; one between two marks far apart would suggest to know what is between.
    mean = altair.Y("mean(value):Q", title=y_title, scale=y_scale, axis=y_axis)
    joined = (
        base.transform_joinaggregate(values_on_line="distinct(x)", groupby=["series", "line"])
        .transform_filter(f"datum.values_on_line >= {fewest}")
        .mark_line(strokeWidth=1.75)
        .encode(y=mean, strokeDash=_dashes(marks, line_title))
    )
    layers = [joined, *_layers(base, values, names, head, "y", title=y_title, scale=y_scale, axis=y_axis)]
    if levels:
        level = inline(levels).mark_rule(strokeWidth=1.75, strokeDash=[6, 3])
        y = altair.Y("value:Q", scale=y_scale)
        layers = [level.encode(y=y, color=_colour(names), tooltip=_tooltip(head)), *layers]
    return altair.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def _dashes(marks: Sequence[Mark], title: str | None) -> Any:
    import altair

    order = sorted(_distinct(mark.where["line"] for mark in marks), key=lambda text: int(text.replace(",", "") or 0))
    scale = altair.Scale(domain=order, range=[list(dash) for dash in DASHES[: len(order)]])
    legend = None if title is None else altair.Legend(title=title, columns=6, symbolSize=900)
    return altair.StrokeDash("line:N", sort=order, scale=scale, legend=legend)


def dot_chart(marks: Sequence[Mark], head: Sequence[str], x_title: str) -> Any:
    """A mark with its interval for each ``place`` and series, where places have no order along an axis."""
    import altair

    names, places = _distinct(mark.series for mark in marks), _distinct(mark.where["place"] for mark in marks)
    lowest, highest = _ends(marks)
    if highest < lowest * LINEAR_BELOW:
        scale = altair.Scale(type="linear", domain=[0, highest * MARGIN], nice=False)
        axis = altair.Axis(format="~s", tickCount=8)
    else:
        scale, axis = _log_axis(marks)
    values = _values(marks)
    y = altair.Y("place:N", sort=places, title=None, axis=altair.Axis(labelLimit=340, grid=True))
    base = inline(values).encode(y=y, color=_colour(names))
    if len({(mark.where["place"], mark.series) for mark in marks}) > len(places):
        base = base.encode(yOffset=altair.YOffset("series:N", sort=names, scale=altair.Scale(paddingOuter=0.3)))
    height = ROW_HEIGHT * len(places) * max(2, len(names)) + ROW_HEIGHT
    layers = _layers(base, values, names, head, "x", title=x_title, scale=scale, axis=axis)
    return altair.layer(*layers).properties(width=WIDTH, height=height)


def bar_chart(marks: Sequence[Mark], head: Sequence[str], x_title: str) -> Any:
    """A bar for each ``trace`` and series, its interval, and ``ideal`` as an upright stroke, where known."""
    import altair

    names, traces = _distinct(mark.series for mark in marks), _distinct(mark.where["trace"] for mark in marks)
    base = inline(_values(marks)).encode(
        y=altair.Y("trace:N", sort=traces, title=None, axis=altair.Axis(labelLimit=220)),
        yOffset=altair.YOffset("series:N", sort=names),
        tooltip=_tooltip(head),
    )
    x = altair.X("value:Q", title=x_title, axis=altair.Axis(tickCount=8))
    layers = [base.mark_bar().encode(x=x, color=_colour(names))]
    if any(mark.interval for mark in marks):
        rules = base.transform_filter("isValid(datum.low)").mark_rule(color=INK, strokeWidth=1.5)
        layers.append(rules.encode(x=altair.X("low:Q", title=x_title), x2="high:Q"))
    if any(mark.where.get("ideal") for mark in marks):
        ideals = base.transform_filter("isValid(datum.ideal)")
        ideals = ideals.mark_tick(color=INK, thickness=3, opacity=1, size=BAR_HEIGHT)
        layers.append(ideals.encode(x=altair.X("ideal:Q", title=x_title)))
    height = (BAR_HEIGHT + 8) * len(names) * len(traces) + 20
    return altair.layer(*layers).properties(width=WIDTH, height=height)


def inline(values: Iterable[Mapping[str, object]]) -> Any:
    """A chart without marks, its data in the chart itself."""
    import altair

    data: Any = altair.Data
    return altair.Chart(data(values=[dict(value) for value in values]))


def _values(marks: Iterable[Mark], *, is_log: bool = True) -> list[dict[str, object]]:
    """Marks as a chart's data; an interval down to 0 cannot be on a logarithmic axis."""
    values = []
    for mark in marks:
        if mark.value is None:
            continue
        low, high = mark.interval if mark.interval and not (is_log and mark.interval[0] <= 0) else (None, None)
        row = {f"cell{number}": cell for number, cell in enumerate(mark.cells)}
        # JSON has no infinity.
        where = {name: value for name, value in mark.where.items() if value != math.inf}
        values.append({"series": mark.series, "value": mark.value, "low": low, "high": high, **where, **row})
    return values


def _layers(
    base: Any,
    values: Sequence[Mapping[str, object]],
    names: list[str],
    head: Sequence[str],
    direction: str,
    **options: Any,
) -> Iterator[Any]:
    """Intervals along x or y, and marks: hollow where the interval is unknown, so that they do not look certain."""
    import altair

    channel = altair.X if direction == "x" else altair.Y
    known = dict.fromkeys(value["low"] is not None for value in values)
    if True in known:
        rules = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5)
        yield rules.encode(**{direction: channel("low:Q", **options), f"{direction}2": "high:Q"})
    # The next round of colours has other shapes.
    shapes = [SHAPES[(number + number // len(COLOURS)) % len(SHAPES)] for number in range(len(names))]
    scale = altair.Scale(domain=names, range=shapes)
    for is_known in known:
        marks = base.transform_filter(f"isValid(datum.low) == {str(is_known).lower()}")
        yield marks.mark_point(filled=is_known, size=55, opacity=1).encode(
            **{direction: channel("value:Q", **options)},
            shape=altair.Shape("series:N", sort=names, scale=scale, title=None),
            tooltip=_tooltip(head),
        )


def _colour(names: list[str]) -> Any:
    import altair

    colours = [COLOURS[number % len(COLOURS)] for number in range(len(names))]
    return altair.Color("series:N", sort=names, scale=altair.Scale(domain=names, range=colours), title=None)


def _tooltip(head: Iterable[str]) -> Any:
    import altair

    return [altair.Tooltip(f"cell{number}:N", title=title) for number, title in enumerate(head)]


def _distinct(names: Iterable[object]) -> list[str]:
    return list(dict.fromkeys(map(str, names)))


def _ends(marks: Iterable[Mark]) -> tuple[float, float]:
    """The least and the largest value, intervals included that can be on a logarithmic axis."""
    known = [end for mark in marks for end in (mark.value, *(mark.interval or ())) if end is not None and end > 0]
    return min(known), max(known)


def _log_axis(marks: Iterable[Mark]) -> tuple[Any, Any]:
    """Scale and axis."""
    import altair

    low, high = _ends(marks)
    low, high = low / MARGIN, high * MARGIN
    return altair.Scale(type="log", domain=[low, high], nice=False), altair.Axis(format="~s", values=_steps(low, high))


def _steps(low: float, high: float) -> list[float]:
    """1 of each decade, or more steps where that gives too few ticks."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) >= FEWEST_TICKS:
            break
    return ticks


def _ticks(values: Sequence[float]) -> list[float]:
    """Where an axis of lengths, batches, rates or times is labelled: powers of two, if there are enough, or all values.

    Values that are no whole numbers, and many, are labelled at steps of decades.
    """
    every = sorted(set(values))
    even = [value for value in every if value >= 1 and math.log2(value).is_integer()]
    if len(every) >= FEWEST_TICKS and not all(value.is_integer() for value in every):
        return _steps(every[0], every[-1])
    return even if len(even) >= FEWEST_TICKS else every


def for_file(figure: Figure) -> dict[str, Any]:
    """The figure's chart for a file by itself: on white, with its title."""
    title = {"text": figure.title, "anchor": "start", "color": FILE_INK, "fontSize": 14}
    if figure.gpu:
        title |= {"subtitle": figure.gpu, "subtitleColor": FILE_INK, "subtitleFontSize": 12}
    return {**figure.spec, "background": "#FFFFFF", "config": _config(FILE_INK), "title": title, "padding": 12}


def _config(ink: str) -> dict[str, Any]:
    words = {"labelColor": ink, "titleColor": ink}
    return {
        "font": "system-ui, -apple-system, 'DejaVu Sans', Arial, sans-serif",
        "axis": {**words, "gridColor": "#88888855", "domainColor": ink, "tickColor": ink, "labelFontSize": 12},
        "legend": {**words, "labelLimit": 420, "labelFontSize": 12, "orient": "bottom", "columns": 2},
        "header": words,
        "view": {"stroke": None},
    }
