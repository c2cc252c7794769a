"""A cell's power over time: samples of instant power, what ran meanwhile, and the counter's mean power."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from infergy.errors import UsageError
from infergy.records import Measurement, Window
from infergy.records.timeline import MILLISECONDS_PER_SECOND, PowerTimeline, ratio_by_gpu
from infergy.report.charts import inline
from infergy.units import format_number, format_percent, format_si

TIMELINE_SCHEMA = "infergy.timeline/1"

PREFILL, DECODE, BATCH = "prefill", "decode", "batch"
PHASE_COLOURS = {PREFILL: "#E69F00", DECODE: "#56B4E9", BATCH: "#999999"}
GPU_COLOURS = ("#000000", "#D55E00", "#009E73", "#CC79A7", "#0072B2", "#F0E442", "#882255", "#44AA99")
"""Okabe and Ito's colours, which colour-blind readers can distinguish, and two of Tol's."""

COLUMNS = 72
BARS = "▁▂▃▄▅▆▇█"
MARKS = {PREFILL: "P", DECODE: "d", BATCH: "b", None: "."}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that ran in a window.

    Attributes:
        phase: ``prefill``, ``decode``, or ``batch`` where the time of its first tokens is unknown.
        start_s: Seconds after the window opened; `end_s` the same.
    """

    phase: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One window of a row as it is drawn; seconds count from the opening tick of the first GPU.

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
    """The `number`-th window that the timeline covers, from 1 on.

    Raises:
        UsageError: There is no such window, or the row has no timeline.
        MeterError: A counter did not advance.
    """
    if not row.timeline:
        reason = row.timeline_reason or "its format is older than timelines"
        message = f"{row.cell} has no timeline: {reason}. Measure it with timeline_s = 0.02 in its grid"
        raise UsageError(message, code="no-timeline", cell=row.cell_id, reason=reason)
    if not 1 <= number <= len(row.seen_windows):
        raise UsageError.bad_value("--window", number, f"1 to {len(row.seen_windows)}")
    window = row.seen_windows[number - 1]
    first = next(iter(window.open))
    zero_s = window.open[first].time_s
    close_s = window.close[first].time_s - zero_s
    edges = {"open": 0.0, "close": close_s}
    if window.settled:
        edges["settled"] = window.settled[first].time_s - zero_s
    return Picture(
        spans=tuple(_spans(window, zero_s)),
        power_w={timeline.uuid: tuple(_steps(timeline, zero_s, close_s)) for timeline in row.timeline},
        mean_w=window.power_by_gpu_w,
        edges=edges,
        seconds=close_s,
    )


def _spans(window: Window, zero_s: float) -> Iterator[Span]:
    for batch in window.batches:
        start_s, end_s = batch.start_s - zero_s, batch.end_s - zero_s
        # With continuous batching the last request's first token ends the last prefill.
        prefill_s = batch.last_first_token_s if batch.last_first_token_s is not None else batch.first_token_s
        if prefill_s is None or batch.times is not None:
            # Requests that arrive one after the other have no common prefill.
            yield Span(phase=BATCH, start_s=start_s, end_s=end_s)
            continue
        first_s = min(end_s, start_s + prefill_s)
        yield Span(phase=PREFILL, start_s=start_s, end_s=first_s)
        if first_s < end_s:
            yield Span(phase=DECODE, start_s=first_s, end_s=end_s)


def _steps(timeline: PowerTimeline, zero_s: float, end_s: float) -> list[tuple[float, float]]:
    """The timeline from the opening edge to `end_s`, with a value at either end."""
    starts_s = (timeline.start_s + offset / MILLISECONDS_PER_SECOND - zero_s for offset in timeline.offsets_ms)
    steps = [(0.0, timeline.power_w[0])]
    for start_s, power_w in zip(starts_s, timeline.power_w, strict=True):
        if start_s <= 0:
            steps = [(0.0, power_w)]
        elif start_s <= end_s:
            steps.append((start_s, power_w))
    return [*steps, (end_s, steps[-1][1])]


def describe(row: Measurement, number: int) -> str:
    """Title of a picture: the cell, its window, its energy, and the counter's against the timeline's."""
    energy = format_si(row.result.energy_j, "J") if row.result else "unknown energy"
    ratios = ", ".join(format_percent(ratio - 1, signed=True) for ratio in ratio_by_gpu(row).values())
    window = f"window {number} of {len(row.windows)}" if row.watched is None else "the watched window"
    return f"{row.cell}, {window}: {energy} per batch; counter against timeline {ratios or 'unknown'}"


def _bands(spans: Sequence[Span], seconds: Any) -> Any:
    """What ran, as coloured bands."""
    import altair

    phases = [phase for phase in PHASE_COLOURS if any(span.phase == phase for span in spans)]
    colours = altair.Scale(domain=phases, range=[PHASE_COLOURS[phase] for phase in phases])
    values = [{"phase": span.phase, "start": span.start_s, "end": span.end_s} for span in spans]
    return (
        inline(values)
        .mark_rect(opacity=0.3)
        .encode(
            x=altair.X("start:Q", scale=seconds, title="seconds since the window opened"),
            x2="end:Q",
            color=altair.Color("phase:N", scale=colours, legend=altair.Legend(title="what ran")),
        )
    )


def draw_chart(row: Measurement, number: int) -> Any:
    """The picture as an `altair.LayerChart`.

    Raises:
        UsageError: As `picture`.
        MeterError: A counter did not advance.
    """
    import altair

    shown = picture(row, number)
    names = {uuid: f"GPU {index}" if len(shown.power_w) > 1 else "power" for index, uuid in enumerate(shown.power_w)}
    colours = altair.Scale(domain=list(names.values()), range=list(GPU_COLOURS[: len(names)]))
    seconds = altair.Scale(domain=[0, shown.seconds], nice=False)
    steps = [(names[uuid], *step) for uuid, steps in shown.power_w.items() for step in steps]
    lines = inline([{"gpu": name, "time": time_s, "watts": watts} for name, time_s, watts in steps])
    lines = lines.mark_line(interpolate="step-after", strokeWidth=1.5).encode(
        x=altair.X("time:Q", scale=seconds),
        y=altair.Y("watts:Q", title="power, W", scale=altair.Scale(zero=True)),
        color=altair.Color("gpu:N", scale=colours, legend=altair.Legend(title="instant power")),
    )
    means = inline([{"gpu": names[uuid], "watts": watts} for uuid, watts in shown.mean_w.items() if uuid in names])
    means = means.mark_rule(strokeDash=[2, 3], strokeWidth=1.5)
    means = means.encode(y="watts:Q", color=altair.Color("gpu:N", scale=colours, legend=None))
    edges = inline([{"edge": name, "time": time_s} for name, time_s in shown.edges.items() if time_s > 0])
    time = altair.X("time:Q", scale=seconds)
    rules = edges.mark_rule(strokeDash=[6, 4], color="#666666").encode(x=time)
    labels = edges.mark_text(align="right", dx=-3, baseline="bottom", dy=-2, angle=270, color="#444444")
    labels = labels.encode(x=time, y=altair.value(0), text="edge:N")
    subtitle = "dotted: mean power by the counter"
    title = altair.TitleParams(describe(row, number), subtitle=subtitle, anchor="start", fontSize=12)
    chart = altair.layer(_bands(shown.spans, seconds), rules, labels, means, lines).resolve_scale(color="independent")
    return chart.properties(width=760, height=280, title=title)


def draw_text(row: Measurement, number: int, columns: int = COLUMNS) -> str:
    """The picture as text: a line of bars for each GPU, from 0 to the highest power, and below them what ran.

    Raises:
        UsageError: As `picture`.
        MeterError: A counter did not advance.
    """
    shown = picture(row, number)
    edges_s = [index * shown.seconds / columns for index in range(columns + 1)]
    highest_w = max(watts for steps in shown.power_w.values() for _, watts in steps) or 1.0
    lines = [describe(row, number)]
    for uuid, steps in shown.power_w.items():
        shares = [_mean_w(steps, start_s, end_s) / highest_w for start_s, end_s in pairwise(edges_s)]
        bars = "".join(BARS[min(len(BARS) - 1, math.floor(share * len(BARS)))] for share in shares)
        name = f" {uuid}" if len(shown.power_w) > 1 else ""
        mean_w = f"; counter {format_number(shown.mean_w[uuid])} W" if uuid in shown.mean_w else ""
        lines.append(f"{bars} to {format_number(highest_w)} W{mean_w}{name}")
    marks = "".join(_mark(shown.spans, (start_s + end_s) / 2) for start_s, end_s in pairwise(edges_s))
    lines.append(f"{marks} {shown.seconds:.2f} s; P prefill, d decode, . idle")
    return "\n".join(lines)


def _mark(spans: Sequence[Span], at_s: float) -> str:
    return MARKS[next((span.phase for span in spans if span.start_s <= at_s < span.end_s), None)]


def _mean_w(steps: Sequence[tuple[float, float]], start_s: float, end_s: float) -> float:
    energy_j = 0.0
    for (time_s, power_w), (until_s, _) in pairwise(steps):
        energy_j += power_w * max(0.0, min(until_s, end_s) - max(time_s, start_s))
    return energy_j / (end_s - start_s)
