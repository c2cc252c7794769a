"""Figures of phases, weight initialisations, arrival rates and tasks of mixed lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from infergy.quality.phases import CellPhases, PhaseEnergy, SetupPhases
from infergy.records import RANDOM_WEIGHTS, Arrivals, result_of
from infergy.records.cell import TRACE
from infergy.report.charts import (
    AXES,
    INTERVALS_NOTE,
    UNKNOWN,
    Figure,
    Mark,
    axis_value,
    dot_figure,
    line_chart,
    make_figure,
    sweep_figure,
)
from infergy.report.evidence import Evidence
from infergy.report.our_values import Change, changes, interval_text
from infergy.report.points import Interval, Point, as_interval, group_by
from infergy.units import count_of, format_number, format_percent, format_si
from infergy.workload.summary import find_padding
from infergy.workload.tasks import PREFIX, find_task, is_task

FEWEST_OUTPUTS = 5
"""Output lengths at one input length from which on the share of decode is drawn as a line."""

PHASE_HEAD = ("Cell", "Engine", "Prefill, J per batch", "Decode, J per batch", "Decode's share", "Bounds", "By")
WEIGHTS_HEAD = ("Cell", "Weights", "Change", "95 % interval")
WEIGHTS_NOTE = (
    "Thin lines: 95 % intervals of both cells together; one that contains 0 shows no difference. "
    "Hollow marks: interval unknown."
)
ONLINE_HEAD = ("Requests/s offered", "Requests/s reached", "TTFT, p50 / p99", "End to end, p50 / p99")
ONLINE_NOTE = (
    "A run lasts from its first arrival to its last token, idle energy included. Dashed: the same requests all at "
    "once. Thin lines: 95 % intervals at these arrival times; hollow marks: unknown."
)
PHASES_NOTE = (
    "By paired cells of one output token where these were measured, else by a regression over all cells of the engine "
    "(docs/phases.md). Batches are the largest measured, which differ along a line. Thin lines: bounds from the "
    "intervals of both phases; hollow marks: unknown."
)
MIXED_NOTE = (
    "Prompt lengths are drawn by the published moments of each task (docs/tasks.md). transformers pads those of a "
    f"static batch to the longest, see the table; vLLM pads nothing. -s32: up to 32 requests at once. {INTERVALS_NOTE}"
)


def draw_phases(evidence: Evidence) -> Iterator[Figure]:
    """Decode's share of the energy over output lengths, of a single model and environment."""
    found = list(_phase_cells(evidence))
    configs = {(setup.model, setup.label, setup.gpu, setup.weights) for setup, *_ in found}
    models, labels = {config[0] for config in configs}, {config[1] for config in configs}
    if len(models) != 1 or len(configs) != len(labels):
        return
    marks = [_share_mark(*each) for each in found]
    title = f"{models.pop()}: decode's share of the energy by output length"
    y_title = "decode / (prefill + decode), energy"
    chart = line_chart(marks, PHASE_HEAD, AXES["output"], y_title, AXES["input"], is_share=True)
    yield make_figure("phases", title, PHASES_NOTE, PHASE_HEAD, marks, chart)


def _phase_cells(evidence: Evidence) -> Iterator[tuple[SetupPhases, CellPhases, PhaseEnergy, Point]]:
    points = {point.row.cell_id: point for point in evidence.points}
    for setup in evidence.phases:
        for cell in _largest_batches(setup):
            energy = cell.pair or cell.fit
            if energy is not None and cell.cell_id in points:
                yield setup, cell, energy, points[cell.cell_id]


def _largest_batches(setup: SetupPhases) -> Iterator[CellPhases]:
    """The largest batch of each length, at input lengths with many output lengths."""
    best: dict[tuple[int, int], CellPhases] = {}
    for cell in setup.cells:
        lengths = (cell.input_tokens, cell.output_tokens)
        if cell.output_tokens > 1 and (lengths not in best or best[lengths].batch < cell.batch):
            best[lengths] = cell
    inputs = [tokens for tokens, _ in best]
    return (cell for (tokens, _), cell in sorted(best.items()) if inputs.count(tokens) >= FEWEST_OUTPUTS)


def _share_mark(setup: SetupPhases, cell: CellPhases, energy: PhaseEnergy, point: Point) -> Mark:
    prefill = as_interval(energy.prefill.low_j, energy.prefill.high_j)
    decode = as_interval(energy.decode.low_j, energy.decode.high_j)
    bounds: Interval | None = None
    if prefill is not None and decode is not None:
        least, most = max(0.0, decode[0]), max(0.0, decode[1])
        bounds = (least / (least + prefill[1]), most / (most + max(0.0, prefill[0])))
    cells = (
        cell.cell,
        setup.label,
        format_si(energy.prefill.value_j, "J"),
        format_si(energy.decode.value_j, "J"),
        format_percent(energy.decode_share),
        UNKNOWN if bounds is None else interval_text(bounds, signed=False),
        "pair" if cell.pair is not None else "fit",
    )
    where = {"x": cell.output_tokens, "line": f"{cell.input_tokens:,}"}
    share = energy.decode_share
    return Mark(series=setup.label, value=share, interval=bounds, cells=cells, where=where, points=(point,))


def draw_weights(evidence: Evidence, _mixed: str) -> Iterator[Figure]:
    """Energy with other weights compared with infergy's default random ones, over batches, engine by engine."""
    groups = group_by(evidence.points, lambda point: (point.label, point.model))
    for (label, model), points in sorted(groups.items()):
        usual = [point for point in points if point.setup.weights == RANDOM_WEIGHTS]
        others = [point for point in points if point.setup.weights != RANDOM_WEIGHTS]
        marks = [_weights_mark(point, change) for point in others for change in changes(usual, [point])]
        if marks:
            title = f"{label} {model}: energy per request with other weights, relative to N(0, 0.02)"
            chart = line_chart(marks, WEIGHTS_HEAD, AXES["batch"], "change of energy per request", is_share=True)
            yield make_figure(f"weights-{label}", title, WEIGHTS_NOTE, WEIGHTS_HEAD, marks, chart)


def _weights_mark(point: Point, change: Change) -> Mark:
    weights = point.setup.weights
    interval = UNKNOWN if change.interval is None else interval_text(change.interval)
    return Mark(
        series=weights,
        value=change.value,
        interval=change.interval,
        cells=(str(point.row.cell), weights, format_percent(change.value, signed=True), interval),
        where={"x": point.batch, "line": ""},
        points=(point,),
    )


def draw_online(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    """Energy per request over the arrival rate, and that of offline serving, for each model and lengths."""
    timed = [point for point in evidence.online if math.isfinite(axis_value(point, "rate"))]
    timed.sort(key=lambda point: (point.setup.label, point.batch, _online_series(point), axis_value(point, "rate")))
    for (model, lengths), online in group_by(timed, lambda point: (point.model, point.lengths)).items():
        wanted = {(point.gpu, point.setup, replace(point.load, arrivals=None)) for point in online}
        offline = [point for point in evidence.points if (point.gpu, point.setup, point.load) in wanted]
        title = f"{model}: energy per request by arrival rate, {lengths[0]:,} tokens in, {lengths[1]:,} out"
        points = [*online, *offline]
        yield sweep_figure(
            "online", title, ONLINE_NOTE, points, mixed, "rate",
            label=_online_series, more_head=ONLINE_HEAD, more=_online_cells,
        )  # fmt: skip


def _online_series(point: Point) -> str:
    """Engine config, arrival process and number of requests."""
    return f"{_offline_label(point)}, {count_of(point.batch, 'request')}, {_arrivals(point.load.arrivals)}"


def _arrivals(arrivals: Arrivals | None) -> str:
    if arrivals is None:
        return "offline"
    if arrivals.law == TRACE:
        return f"times of {arrivals.trace}"
    return arrivals.law if arrivals.burstiness == 1 else f"{arrivals.law}, burstiness {arrivals.burstiness:g}"


def _online_cells(point: Point) -> tuple[str, ...]:
    """A point under `ONLINE_HEAD`."""
    result, is_online = result_of(point.row), point.load.is_online
    latency = result.latency
    # Offline, a latency is mostly the wait in the queue.
    waits = [UNKNOWN if is_online else "-"] * 2
    if latency is not None:
        ends = (latency.first_token, latency.end_to_end)
        waits = [f"{format_si(each.p50_s, 's')} / {format_si(each.p99_s, 's')}" for each in ends]
    return (
        format_number(axis_value(point, "rate")) if is_online else "all at once",
        UNKNOWN if result.requests_per_s is None else format_number(result.requests_per_s),
        *waits,
    )


def draw_mixed_tasks(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    """Energy of tasks whose prompts have lengths of their own, padded or not, for each model."""
    asked = [point for point in evidence.replays if is_task(_task(point))]
    asked.sort(key=lambda point: (_task(point), _offline_label(point), point.batch))
    for model, points in group_by(asked, lambda point: point.model).items():
        title = f"{model}: energy per request by task, prompts of mixed lengths"
        yield dot_figure(
            "tasks-mixed", title, MIXED_NOTE, points, mixed, _task_title,
            label=_offline_label, more_head=("Padding",), more=_padding,
        )  # fmt: skip


def _task(point: Point) -> str:
    return PREFIX if point.load.arrivals is None else str(point.load.arrivals.trace)


def _task_title(point: Point) -> str:
    return f"{find_task(_task(point)).title}, {count_of(point.batch, 'request')}"


def _offline_label(point: Point) -> str:
    return replace(point.row.cell, load=replace(point.load, arrivals=None)).label


def _padding(point: Point) -> tuple[str, ...]:
    """Share of the prompt tokens computed that are padding."""
    if point.setup.engine != "transformers":
        return ("none",)
    lengths = [tokens for tokens, _ in point.row.lengths]
    padding = find_padding(lengths, point.setup.max_sequences or len(lengths), by_arrival=True)
    return (format_percent(padding.waste),)
