"""Figures of configurations for a trace: ranked, energy over latency and over the rate, power and batch over time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from infergy.estimates.recommendation import Configuration, Recommendation
from infergy.report.charts import (
    COLOURS,
    ENERGY_TITLE,
    INK,
    UNKNOWN,
    WIDTH,
    Figure,
    Mark,
    dot_chart,
    inline,
    line_chart,
    make_figure,
)
from infergy.report.evidence import Evidence, gpu_title
from infergy.report.our_values import interval_text
from infergy.report.trace_figures import joules, measured_points
from infergy.serving.run import Timeline
from infergy.units import count_of, format_latency, format_number, format_percent, format_si

ADVICE_HEAD = (
    "Configuration", "Energy", "90 % interval", "Saves", "90 % of the saving", "TTFT p50", "Remarks", "Command",
)  # fmt: skip
PARETO_HEAD = ("Configuration", "GPUs", "Energy", "E2E p99", "In the Pareto set")
RATES_HEAD = ("Configuration", "Requests per second", "J per request", "Mean power", "TTFT p99", "TPOT p99", "Keeps up")
TIMELINE_HEAD = ("Configuration", "Mean power", "Highest power", "Mean batch", "Largest batch", "Duration")
PANEL_HEIGHT = 130
"""Of a panel over time."""


def draw_advice(evidence: Evidence, _mixed: str) -> Iterator[Figure]:
    """Configurations ranked for each trace; what the present and the recommended one draw by rate and over time."""
    for number, (trace, ranking) in enumerate(evidence.rankings.items(), 1):
        server = ranking.configurations[0].estimate
        of = f"{server.model} on {gpu_title(server.gpu)}"
        marks = [_advice_mark(evidence, configuration, ranking.present) for configuration in ranking.configurations]
        chart = dot_chart(marks, ADVICE_HEAD, "energy of the trace, J")
        title = f"{trace}: energy of {of} by configuration"
        yield make_figure(f"advice-{number}", title, _advice_note(ranking), ADVICE_HEAD, marks, chart)
        if pareto := [*_pareto_marks(ranking)]:
            note = (
                "Lines join the Pareto set of each number of GPUs: no other takes less energy, time and GPUs at once."
            )
            chart = line_chart(pareto, PARETO_HEAD, "E2E p99, s", "energy of the trace, J", fewest=2) + _names(pareto)
            title = f"{trace}: energy of {of} over latency"
            yield make_figure(f"advice-latency-{number}", title, note, PARETO_HEAD, pareto, chart)
        if rates := [*_rate_marks(ranking)]:
            note = "The trace sped up and slowed down. Hollow marks: the server cannot keep up."
            chart = line_chart(rates, RATES_HEAD, "arrival rate, requests per second", ENERGY_TITLE)
            title = f"{trace}: energy per request of {of} over the rate"
            yield make_figure(f"advice-rate-{number}", title, note, RATES_HEAD, rates, chart)
        if timelines := evidence.timelines.get(trace):
            title = f"{trace}: power and batch of {of} over time, before and after"
            note = f"Means of {next(iter(timelines.values())).bin_s:.3g} s: sequences in a step, 0 while it waits."
            marks = [*_timeline_marks(timelines)]
            yield make_figure(f"advice-time-{number}", title, note, TIMELINE_HEAD, marks, draw_timelines(timelines))


def _pareto_marks(ranking: Recommendation) -> Iterator[Mark]:
    """Those that keep up, by their number of GPUs."""
    for number, one in enumerate(ranking.configurations, 1):
        e2e_s, gpus, is_best = one.estimate.run.latency.e2e_s, one.estimate.gpus, one.label in ranking.pareto
        if e2e_s is None or one.breaks:
            continue
        run, is_in = one.estimate.run, "yes" if is_best else "no"
        yield Mark(
            series=count_of(gpus, "GPU"),
            value=run.energy_j,
            interval=(run.low_j, run.high_j) if is_best else None,
            cells=(one.label, str(gpus), format_si(run.energy_j, "J"), format_latency(e2e_s.p99), is_in),
            # A line of its own is none.
            where={"x": _rounded(e2e_s.p99), "line": "" if is_best else str(number)},
        )


def _names(marks: Iterable[Mark]) -> Any:
    """Configurations in words, next to their marks."""
    import altair

    values = [{"x": mark.where["x"], "value": mark.value, "name": mark.cells[0]} for mark in marks]
    words = inline(values).mark_text(align="left", dx=8, dy=-8, color=INK, fontSize=11)
    return words.encode(x=altair.X("x:Q"), y=altair.Y("value:Q"), text="name:N")


def _rate_marks(ranking: Recommendation) -> Iterator[Mark]:
    for capacity in ranking.capacity:
        for point in capacity.curve:
            latencies = (point.ttft_p99_s, point.tpot_p99_s)
            energy_j = point.energy_per_request_j
            yield Mark(
                series=capacity.label,
                value=energy_j,
                interval=None if point.breaks else (energy_j, energy_j),
                cells=(
                    capacity.label,
                    format_number(point.rate_per_s),
                    format_number(energy_j),
                    f"{format_number(point.power_w)} W",
                    *(UNKNOWN if time_s is None else format_latency(time_s) for time_s in latencies),
                    "no" if point.breaks else "yes",
                ),
                where={"x": _rounded(point.rate_per_s), "line": ""},
            )


def _rounded(value: float) -> float:
    """As an axis is labelled."""
    return float(f"{value:.3g}")


def _timeline_marks(timelines: Mapping[str, Timeline]) -> Iterator[Mark]:
    for label, shown in timelines.items():
        power_w, running = shown.power_w, shown.running
        figures = (sum(power_w) / len(power_w), max(power_w)), (sum(running) / len(running), max(running))
        cells = (*(f"{format_number(watts)} W" for watts in figures[0]), *map(format_number, figures[1]))
        duration = format_latency(shown.bin_s * len(power_w))
        yield Mark(series=label, value=None, interval=None, cells=(label, *cells, duration))


def draw_timelines(timelines: Mapping[str, Timeline]) -> Any:
    """Power above batch over time, a line for each configuration, as an `altair.VConcatChart`."""
    import altair

    values = [
        {"series": label, "time": time_s, "power": power_w, "batch": running}
        for label, shown in timelines.items()
        for time_s, power_w, running in zip(shown.start_s, shown.power_w, shown.running, strict=True)
    ]
    names = [*timelines]
    colours = altair.Scale(domain=names, range=[*COLOURS[: len(names)]])
    lines = inline(values).mark_line(interpolate="step-after", strokeWidth=1.25)
    lines = lines.encode(
        x=altair.X(
            "time:Q",
            title="seconds after the first arrival",
            scale=altair.Scale(nice=False),
            axis=altair.Axis(tickCount=8),
        ),
        color=altair.Color("series:N", sort=names, scale=colours, title=None),
        tooltip=[
            altair.Tooltip("series:N"),
            altair.Tooltip("time:Q"),
            altair.Tooltip("power:Q"),
            altair.Tooltip("batch:Q"),
        ],
    )
    panels = [
        lines.encode(y=altair.Y(f"{name}:Q", title=title, axis=altair.Axis(tickCount=5))).properties(
            width=WIDTH, height=PANEL_HEIGHT
        )
        for name, title in (("power", "power, W"), ("batch", "batch: sequences in a step"))
    ]
    return altair.vconcat(*panels)


def _advice_note(ranking: Recommendation) -> str:
    note = "No configuration can be recommended."
    if ranking.recommended is not None:
        chosen = ranking.of(ranking.recommended)
        note = f"Recommended: {chosen.label}. Command: {' '.join(chosen.command)}."
        if chosen.label == ranking.present:
            note += " No other saves energy significantly."
    return (
        f"{note} Savings are relative to {ranking.present}; thin lines are 90 % intervals of each configuration by "
        "itself, most of whose uncertainty is common to all. For limits on latency and your own log: infergy recommend."
    )


def _advice_mark(evidence: Evidence, configuration: Configuration, present: str) -> Mark:
    run, is_present = configuration.estimate.run, configuration.label == present
    remarks = [limit.replace("_", " ") for limit in configuration.breaks]
    if is_present:
        remarks.append("present")
    elif not configuration.saving.is_significant:
        remarks.append("no significant difference from the present one")
    if configuration.changes_outputs:
        remarks.append(f"changes outputs: {configuration.changes_outputs}")
    interval, saving = (run.low_j, run.high_j), (configuration.saving.low, configuration.saving.high)
    cells = (
        configuration.label,
        format_si(run.energy_j, "J"),
        joules(interval),
        "-" if is_present else format_percent(configuration.saving.share),
        "-" if is_present else interval_text(saving, signed=False),
        UNKNOWN if run.latency.ttft_s is None else format_latency(run.latency.ttft_s.p50),
        "; ".join(remarks) or "-",
        " ".join(configuration.command),
    )
    return Mark(
        series=configuration.estimate.engine.partition("-")[0],
        value=run.energy_j,
        interval=interval,
        cells=cells,
        where={"place": configuration.label},
        points=measured_points(evidence, configuration.estimate),
    )
