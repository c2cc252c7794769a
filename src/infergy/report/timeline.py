"""A cell's power over time: what the sensor showed, what ran meanwhile, and the counter's mean power beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from infergy.errors import UsageError
from infergy.records import Measurement, Window
from infergy.records.timeline import MILLISECONDS_PER_SECOND, PowerTimeline, ratio_by_gpu
from infergy.units import format_number, format_percent, format_si

TIMELINE_SCHEMA = "infergy.timeline/1"

PREFILL, DECODE, BATCH = "prefill", "decode", "batch"
PHASE_COLOURS = {PREFILL: "#E69F00", DECODE: "#56B4E9", BATCH: "#999999"}
GPU_COLOURS = ("#000000", "#D55E00", "#009E73", "#CC79A7", "#0072B2", "#F0E442", "#882255", "#44AA99")
"""Okabe and Ito's colours, which colour-blind readers tell apart, and two of Tol's."""

WIDTH, HEIGHT = 760, 280
COLUMNS = 72
BARS = "▁▂▃▄▅▆▇█"
MARKS = {PREFILL: "P", DECODE: "d", BATCH: "b", None: "."}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that ran in a window.

    Attributes:
        phase: ``prefill``, ``decode``, or ``batch`` where the engine did not tell when its first tokens came.
        start_s: Seconds after the window opened.
        end_s: Likewise.
    """

    phase: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One window of a row, as it is drawn; all seconds count from the opening tick of the first GPU.

    Attributes:
        spans: What ran.
        power_w: Steps of instant power by GPU UUID: seconds, and watts from then on.
        mean_w: Mean power by the counter from edge to edge, by UUID.
        edges: Seconds of the first GPU's edges, by name.
        seconds: Length of the window.
    """

    spans: tuple[Span, ...]
    power_w: Mapping[str, tuple[tuple[float, float], ...]]
    mean_w: Mapping[str, float]
    edges: Mapping[str, float]
    seconds: float
    schema: str = TIMELINE_SCHEMA


def picture(row: Measurement, number: int) -> Picture:
    """What there is to draw of the `number`-th window that the timeline saw, from 1 on.

    Raises:
        UsageError: There is no such window, or the row has no timeline.
        MeterError: A counter stood still.
    """
    if not row.timeline:
        reason = row.timeline_reason or "it is from before there were any"
        message = f"{row.cell} has no timeline: {reason}. Measure it with timeline_s = 0.02 in its grid"
        raise UsageError(message, code="no-timeline", cell=row.cell_id, reason=reason)
    seen = row.seen_windows
    if not 1 <= number <= len(seen):
        raise UsageError.bad_value("--window", number, f"1 to {len(seen)}")
    window = seen[number - 1]
    first = next(iter(window.open))
    zero_s = window.open[first].time_s
    edges = {"open": 0.0, "close": window.close[first].time_s - zero_s}
    if window.settled:
        edges["settled"] = window.settled[first].time_s - zero_s
    return Picture(
        spans=tuple(_spans(window, zero_s)),
        power_w={one.uuid: tuple(_steps(one, zero_s, edges["close"])) for one in row.timeline},
        mean_w=window.power_by_gpu_w,
        edges=edges,
        seconds=edges["close"],
    )


def _spans(window: Window, zero_s: float) -> Iterator[Span]:
    for batch in window.batches:
        start_s, end_s = batch.start_s - zero_s, batch.end_s - zero_s
        # With continuous batching the last request's first token ends the last prefill.
        told_s = batch.last_first_token_s if batch.last_first_token_s is not None else batch.first_token_s
        if told_s is None or batch.times is not None:
            # Requests that come one after the other have no prefill in common.
            yield Span(phase=BATCH, start_s=start_s, end_s=end_s)
            continue
        first_s = min(end_s, start_s + told_s)
        yield Span(phase=PREFILL, start_s=start_s, end_s=first_s)
        if first_s < end_s:
            yield Span(phase=DECODE, start_s=first_s, end_s=end_s)


def _steps(timeline: PowerTimeline, zero_s: float, end_s: float) -> Iterator[tuple[float, float]]:
    """The timeline from the opening edge to `end_s`, with a value at either end."""
    starts_s = [timeline.start_s + offset / MILLISECONDS_PER_SECOND - zero_s for offset in timeline.offsets_ms]
    last_w = timeline.power_w[0]
    inside = False
    for start_s, power_w in zip(starts_s, timeline.power_w, strict=True):
        if start_s > end_s:
            break
        if start_s > 0:
            if not inside:
                yield 0.0, last_w
                inside = True
            yield start_s, power_w
        last_w = power_w
    if not inside:
        yield 0.0, last_w
    yield end_s, last_w


def describe(row: Measurement, number: int) -> str:
    """Title of a picture: the cell, its window, and what both witnesses tell."""
    joules = format_si(row.result.energy_j, "J") if row.result else "no joules"
    ratios = ", ".join(format_percent(value - 1, signed=True) for value in ratio_by_gpu(row).values())
    window = f"window {number} of {len(row.windows)}" if row.watched is None else "the watched window"
    return f"{row.cell}, {window}: {joules} a batch; counter against timeline {ratios or 'unknown'}"


def draw_chart(row: Measurement, number: int) -> Any:
    """The picture as an `altair.LayerChart`.

    Raises:
        UsageError: As `picture`.
        MeterError: A counter stood still.
    """
    import altair

    shown = picture(row, number)
    names = {uuid: f"GPU {place}" if len(shown.power_w) > 1 else "power" for place, uuid in enumerate(shown.power_w)}
    colours = altair.Scale(domain=list(names.values()), range=list(GPU_COLOURS[: len(names)]))
    seconds = altair.Scale(domain=[0, shown.seconds], nice=False)
    phases = sorted({span.phase for span in shown.spans}, key=list(PHASE_COLOURS).index)

    inline: Any = altair.Data

    def layer(values: Sequence[Mapping[str, object]]) -> Any:
        return altair.Chart(inline(values=[dict(value) for value in values]))

    bands = layer([{"phase": s.phase, "start": s.start_s, "end": s.end_s} for s in shown.spans]).mark_rect(opacity=0.3)
    bands = bands.encode(
        x=altair.X("start:Q", scale=seconds, title="seconds since the window opened"),
        x2="end:Q",
        color=altair.Color(
            "phase:N",
            scale=altair.Scale(domain=phases, range=[PHASE_COLOURS[phase] for phase in phases]),
            legend=altair.Legend(title="what ran"),
        ),
    )
    lines = layer(
        [
            {"gpu": names[uuid], "time": time_s, "watts": watts}
            for uuid, steps in shown.power_w.items()
            for time_s, watts in steps
        ]
    ).mark_line(interpolate="step-after", strokeWidth=1.5)
    lines = lines.encode(
        x=altair.X("time:Q", scale=seconds),
        y=altair.Y("watts:Q", title="power, W", scale=altair.Scale(zero=True)),
        color=altair.Color("gpu:N", scale=colours, legend=altair.Legend(title="instant power")),
    )
    means = layer([{"gpu": names[uuid], "watts": watts} for uuid, watts in shown.mean_w.items() if uuid in names])
    means = means.mark_rule(strokeDash=[2, 3], strokeWidth=1.5)
    means = means.encode(y="watts:Q", color=altair.Color("gpu:N", scale=colours, legend=None))
    edges = layer([{"edge": name, "time": time_s} for name, time_s in shown.edges.items() if time_s > 0])
    rules = edges.mark_rule(strokeDash=[6, 4], color="#666666").encode(x=altair.X("time:Q", scale=seconds))
    labels = edges.mark_text(align="right", dx=-3, baseline="bottom", dy=-2, angle=270, color="#444444")
    labels = labels.encode(x=altair.X("time:Q", scale=seconds), y=altair.value(0), text="edge:N")
    chart = altair.layer(bands, rules, labels, means, lines).resolve_scale(color="independent")
    title = altair.TitleParams(
        describe(row, number), subtitle="dotted: mean power by the counter", anchor="start", fontSize=12
    )
    return chart.properties(width=WIDTH, height=HEIGHT, title=title)


def draw_text(row: Measurement, number: int, columns: int = COLUMNS) -> str:
    """The picture in two lines a GPU: power as bars from nothing to the highest, and below it what ran.

    Raises:
        UsageError: As `picture`.
        MeterError: A counter stood still.
    """
    shown = picture(row, number)
    step_s = shown.seconds / columns
    highest_w = max(watts for steps in shown.power_w.values() for _, watts in steps) or 1.0
    lines = [describe(row, number)]
    for uuid, steps in shown.power_w.items():
        means = [_mean_w(steps, place * step_s, (place + 1) * step_s) for place in range(columns)]
        bars = "".join(BARS[min(len(BARS) - 1, math.floor(watts / highest_w * len(BARS)))] for watts in means)
        name = f" {uuid}" if len(shown.power_w) > 1 else ""
        mean_w = f"; counter {format_number(shown.mean_w[uuid])} W" if uuid in shown.mean_w else ""
        lines.append(f"{bars} to {format_number(highest_w)} W{mean_w}{name}")
    marks = [_phase_at(shown.spans, (place + 0.5) * step_s) for place in range(columns)]
    lines.append("".join(MARKS[mark] for mark in marks) + f" {shown.seconds:.2f} s; P prefill, d decode, . idle")
    return "\n".join(lines)


def _mean_w(steps: Sequence[tuple[float, float]], start_s: float, end_s: float) -> float:
    energy_j = 0.0
    for (time_s, watts), (until_s, _) in pairwise(steps):
        energy_j += watts * max(0.0, min(until_s, end_s) - max(time_s, start_s))
    return energy_j / (end_s - start_s)


def _phase_at(spans: Sequence[Span], time_s: float) -> str | None:
    return next((span.phase for span in spans if span.start_s <= time_s < span.end_s), None)
