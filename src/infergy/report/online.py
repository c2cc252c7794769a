"""Requests that arrive one after the other beside the same requests all known at once: joules over the rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from infergy.records import Arrivals, result_of
from infergy.records.latency import Percentiles
from infergy.records.load import TRACE
from infergy.report.figures import TABLE_HEAD, Figure, axis_value, draw_sweep, table_row
from infergy.report.ours import Evidence
from infergy.report.points import Point, name_series
from infergy.units import count_of, format_number, format_si

HEAD = (*TABLE_HEAD, "Requests/s asked", "Requests/s reached", "First token, p50 / p99", "Whole, p50 / p99")
NOTE = (
    "A run lasts from its first arrival to its last token: the joules of its gaps are among its own. Dashed: the same "
    "requests all known at once. Upright lines: 95 % intervals at these arrival times; hollow marks: unknown."
)


def draw_online(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    """A figure for each model and lengths: joules a request over the rate, with offline serving across it."""
    groups: dict[tuple[str, tuple[int, int]], list[Point]] = {}
    for point in evidence.online:
        if math.isfinite(axis_value(point, "rate")):
            groups.setdefault((point.model, point.lengths), []).append(point)
    for place, ((model, lengths), online) in enumerate(groups.items()):
        online.sort(
            key=lambda point: (point.row.cell.setup.label, point.batch, _series(point), axis_value(point, "rate"))
        )
        offline = _same_at_once(online, evidence.points)
        title = f"{model}: energy a request by rate of arrival, {lengths[0]:,} tokens in, {lengths[1]:,} out"
        names = {point.row.cell_id: _series(point) for point in (*online, *offline)}
        series = name_series([*online, *offline], names, title=title, mixed=mixed)
        yield draw_sweep(
            "online" if not place else f"online-{place + 1}",
            title,
            NOTE,
            online,
            series[: len(online)],
            x="rate",
            levels=list(zip(offline, series[len(online) :], strict=True)),
            head=HEAD,
            row=_row,
        )


def _same_at_once(online: Sequence[Point], offline: Sequence[Point]) -> list[Point]:
    """The same set-ups and requests on the same kind of GPU, all known at once."""
    wanted = {(point.gpu, point.row.cell.setup, replace(point.row.cell.load, arrivals=None)) for point in online}
    return [point for point in offline if (point.gpu, point.row.cell.setup, point.row.cell.load) in wanted]


def _series(point: Point) -> str:
    """Set-up, law and requests: what a line is of."""
    load = point.row.cell.load
    label = replace(point.row.cell, load=replace(load, arrivals=None)).label
    return f"{label}, {count_of(load.batch, 'request')}, {_law(load.arrivals)}"


def _law(arrivals: Arrivals | None) -> str:
    if arrivals is None:
        return "offline"
    if arrivals.law == TRACE:
        return f"times of {arrivals.trace}"
    return arrivals.law if arrivals.burstiness == 1 else f"{arrivals.law}, burstiness {arrivals.burstiness:g}"


def _row(point: Point, series: str) -> tuple[str, ...]:
    """A point under `HEAD`."""
    result, is_online = result_of(point.row), point.row.cell.load.is_online
    told = result.latency
    # All at once, waiting is queueing.
    waits = (_ends(told.first_token), _ends(told.end_to_end)) if told else ("unknown" if is_online else "-",) * 2
    return (
        *table_row(point, series),
        format_number(axis_value(point, "rate")) if is_online else "all at once",
        "unknown" if result.requests_per_s is None else format_number(result.requests_per_s),
        *waits,
    )


def _ends(found: Percentiles) -> str:
    return f"{format_si(found.p50_s, 's')} / {format_si(found.p99_s, 's')}"
