"""Figures of request traces: served, by the study's bins, by configuration, and where the energy goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from infergy.estimates.breakdown import IDLE, Breakdown
from infergy.estimates.paper import PaperEstimate, PaperServer
from infergy.estimates.recommend import Configuration, Recommendation
from infergy.estimates.results import RunEstimate, ServerEstimate, TraceEstimate
from infergy.hardware import catalogue_name
from infergy.report.charts import UNKNOWN, Figure, bar_chart, dot_chart, inline, make_figure, mark
from infergy.report.evidence import Evidence, gpu_title
from infergy.report.our_values import interval_text
from infergy.report.points import Interval, Point, as_interval
from infergy.units import format_duration, format_number, format_percent, format_si

SERVED_HEAD = (
    "Trace", "Engine", "Served", "Energy", "J per request", "90 % interval", "Duration", "Mean power", "TTFT p50",
    "TPOT p50", "Steps in measured range",
)  # fmt: skip
PAPER_HEAD = (
    "Trace", "Engine", "Energy", "J per request", "bins' floors .. whole batches", "Gap to ideal", "Saving",
    "90 % of the saving",
)  # fmt: skip
ADVICE_HEAD = (
    "Configuration", "Energy", "90 % interval", "Saves", "90 % of the saving", "TTFT p50", "Remarks", "Command",
)  # fmt: skip
BATCHING = {"transformers": "padded static batches of up to {}", "vllm": "up to {} sequences at once"}


def _served(estimate: TraceEstimate) -> Iterator[tuple[str, ServerEstimate, str, RunEstimate]]:
    for server in estimate.estimates:
        for how, run in (("as it arrives", server.served), ("all at once", server.offline)):
            if run is not None:
                yield estimate.trace.source, server, how, run


def draw_traces(evidence: Evidence, _mixed: str) -> Iterator[Figure]:
    """Energy of traces with each engine: served in simulation, and by the study's method."""
    runs = [run for estimate in evidence.estimates.values() for run in _served(estimate)]
    if runs:
        server = runs[0][1]
        yield make_figure(
            "traces-served",
            f"{server.model} on {gpu_title(server.gpu)}: energy per request of traces, served as they arrive and at "
            "once",
            "Requests pass the engine's scheduler in simulation; idle energy until the last token is included. "
            + " ".join(_limits(evidence.estimates.values())),
            bar_chart([_served_bar(*run) for run in runs], "energy, J per request; thin line: 90 % interval"),
            SERVED_HEAD,
            [_served_row(*run) for run in runs],
            _points_of(evidence, [server for _, server, _, _ in runs]),
        )
    bins = [(paper, server) for paper in evidence.papers.values() for server in paper.servers]
    if any(server.energy_j for _, server in bins):
        server = bins[0][1]
        ideals = dict.fromkeys(each.compared.ideal_basis for _, each in bins if each.compared.ideal_basis)
        yield make_figure(
            "traces",
            f"{server.model} on {gpu_title(server.gpu)}: energy per request of traces by the study's bins",
            "Each request at the upper corner of its bin, in the largest batches that memory and the engine allow: "
            "the method of the study. Brackets: from every request at the floor of its bin to whole batches at "
            f"its corner. The ideal is {'; '.join(ideals) or UNKNOWN}.",
            bar_chart(
                [bar for each in bins for bar in _paper_bar(*each)],
                "energy, J per request; thin line: bins' floors to whole batches; upright stroke: the ideal",
            ),
            PAPER_HEAD,
            [_paper_row(*each) for each in bins],
            _points_of(evidence, [server for _, server in bins]),
        )


def _limits(estimates: Iterable[TraceEstimate]) -> Iterator[str]:
    """Batching of each engine, and which servers are overloaded by a trace."""
    servers = [(estimate.trace.source, server) for estimate in estimates for server in estimate.estimates]
    for engine, most in {server.engine: server.config.get("max_num_seqs") for _, server in servers}.items():
        yield f"{engine}: {BATCHING[engine.partition('-')[0]].format(most)}."
    for trace, server in servers:
        if server.served is not None and server.served.overload is not None:
            yield f"{trace}, {server.engine}: {server.served.overload}."


def _served_bar(trace: str, server: ServerEstimate, how: str, run: RunEstimate) -> dict[str, object]:
    requests = run.requests - run.rejected_requests
    return {
        "trace": trace,
        "series": f"{server.engine}, {how}",
        "joules": run.energy_j / requests,
        "low": run.low_j / requests,
        "high": run.high_j / requests,
        "ideal": None,
        "energy": f"{format_si(run.energy_j, 'J')}, {format_si(run.energy_j / requests, 'J')} per request",
        "bracket": _joules((run.low_j, run.high_j)),
        "gap to ideal": "see the study's method",
    }


def _served_row(trace: str, server: ServerEstimate, how: str, run: RunEstimate) -> tuple[str, ...]:
    latency = run.latency
    return (
        trace,
        server.engine,
        how,
        format_si(run.energy_j, "J"),
        UNKNOWN if run.energy_per_request_j is None else format_number(run.energy_per_request_j),
        _joules((run.low_j, run.high_j)),
        format_duration(run.duration_s),
        f"{format_number(run.load.power_w)} W",
        UNKNOWN if latency.ttft_s is None else format_si(latency.ttft_s.p50, "s"),
        UNKNOWN if latency.tpot_s is None else format_si(latency.tpot_s.p50, "s"),
        format_percent(run.measured_share),
    )


def _paper_bar(paper: PaperEstimate, server: PaperServer) -> Iterator[dict[str, object]]:
    if server.energy_j is None:
        return
    requests = _requests(server)
    joules = {"low": server.low_j, "high": server.high_j, "ideal": server.compared.ideal_energy_j}
    yield {
        "trace": paper.source,
        "series": server.engine,
        "joules": server.energy_j / requests,
        **{name: None if value is None else value / requests for name, value in joules.items()},
        "energy": f"{format_si(server.energy_j, 'J')}, {format_si(server.energy_j / requests, 'J')} per request",
        "bracket": _joules(as_interval(server.low_j, server.high_j)),
        "gap to ideal": _percent(server.compared.gap_to_ideal, signed=True),
    }


def _paper_row(paper: PaperEstimate, server: PaperServer) -> tuple[str, ...]:
    compared = server.compared
    saving = as_interval(compared.saving_low, compared.saving_high)
    return (
        paper.source,
        server.engine,
        UNKNOWN if server.energy_j is None else format_si(server.energy_j, "J"),
        UNKNOWN if server.energy_j is None else format_number(server.energy_j / _requests(server)),
        _joules(as_interval(server.low_j, server.high_j)),
        _percent(compared.gap_to_ideal, signed=True),
        "-" if server.engine == paper.baseline else _percent(compared.saving_vs_baseline),
        "-" if saving is None else interval_text(saving, signed=False),
    )


def _requests(server: PaperServer) -> int:
    return sum(entry.requests for entry in server.bins if entry.batch)


def _joules(interval: Interval | None) -> str:
    return UNKNOWN if interval is None else " .. ".join(format_si(end_j, "J") for end_j in interval)


def _percent(value: float | None, *, signed: bool = False) -> str:
    return UNKNOWN if value is None else format_percent(value, signed=signed)


def _points_of(evidence: Evidence, servers: Iterable[ServerEstimate | PaperServer]) -> list[Point]:
    """The measured cells of these servers."""
    kinds = {(server.engine, server.model, server.gpu) for server in servers}
    return [point for point in evidence.points if (point.label, point.model, catalogue_name(point.gpu_kind)) in kinds]


def draw_advice(evidence: Evidence, _mixed: str) -> Iterator[Figure]:
    """Configurations ranked for each trace, and the command of the recommended one."""
    for number, (trace, ranking) in enumerate(evidence.rankings.items(), 1):
        server = ranking.configurations[0].estimate
        engines = {configuration.estimate.engine for configuration in ranking.configurations}
        yield make_figure(
            f"advice-{number}",
            f"{trace}: energy of {server.model} on {gpu_title(server.gpu)} by configuration",
            _advice_note(ranking),
            dot_chart([_advice_value(each, ranking) for each in ranking.configurations], "energy of the trace, J"),
            ADVICE_HEAD,
            [_advice_row(each, ranking) for each in ranking.configurations],
            [point for point in evidence.points if point.label in engines and point.model == server.model],
        )


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


def _advice_value(configuration: Configuration, ranking: Recommendation) -> dict[str, object]:
    run = configuration.estimate.run
    return {
        "place": configuration.label,
        "series": configuration.estimate.engine,
        **mark(configuration.energy_j, (configuration.low_j, configuration.high_j)),
        "cell": configuration.label,
        "value": format_si(configuration.energy_j, "J"),
        "interval": _joules((configuration.low_j, configuration.high_j)),
        "batch takes": format_si(run.duration_s, "s"),
        "power": f"{run.load.power_w:.0f} W",
        "flags": _remarks(configuration, ranking) or "none",
    }


def _remarks(configuration: Configuration, ranking: Recommendation) -> str:
    remarks = [limit.replace("_", " ") for limit in configuration.breaks]
    if configuration.label == ranking.present:
        remarks.append("present")
    elif not configuration.is_significant:
        remarks.append("no significant difference from the present one")
    if configuration.changes_outputs:
        remarks.append(f"changes outputs: {configuration.changes_outputs}")
    return "; ".join(remarks)


def _advice_row(configuration: Configuration, ranking: Recommendation) -> tuple[str, ...]:
    ttft_s = configuration.estimate.run.latency.ttft_s
    is_present = configuration.label == ranking.present
    saving = (configuration.saving_low, configuration.saving_high)
    return (
        configuration.label,
        format_si(configuration.energy_j, "J"),
        _joules((configuration.low_j, configuration.high_j)),
        "-" if is_present else format_percent(configuration.saving),
        "-" if is_present else interval_text(saving, signed=False),
        UNKNOWN if ttft_s is None else format_si(ttft_s.p50, "s"),
        _remarks(configuration, ranking) or "-",
        " ".join(configuration.command),
    )


WATERFALL_COLOURS = {"work": "#56B4E9", "overhead": "#E69F00", "idle": "#999999", "total": "#009E73"}


def waterfall_bars(found: Breakdown) -> Iterator[dict[str, object]]:
    """The parts of a run by what its time is spent on, each from where the last one ends, in joules."""
    start_j = 0.0
    for part in found.by_time:
        kind = "idle" if part.name == IDLE else "work" if part.name in ("arithmetic", "memory") else "overhead"
        end_j = start_j + part.energy_j
        energy = format_si(part.energy_j, "J")
        yield {"step": part.name, "from": start_j, "to": end_j, "kind": kind, "energy": energy, "what": part.meaning}
        start_j = end_j
    energy = format_si(found.energy_j, "J")
    yield {
        "step": "energy of the run", "from": 0.0, "to": found.energy_j, "kind": "total", "energy": energy,
        "what": "the sum",
    }  # fmt: skip


def draw_waterfall(found: Breakdown) -> Any:
    """A breakdown as an `altair.LayerChart`."""
    import altair

    values = list(waterfall_bars(found))
    kinds = [kind for kind in WATERFALL_COLOURS if any(value["kind"] == kind for value in values)]
    base = inline(values).encode(
        y=altair.Y("step:N", sort=[value["step"] for value in values], title=None, axis=altair.Axis(labelLimit=300)),
        tooltip=[altair.Tooltip("step:N"), altair.Tooltip("energy:N"), altair.Tooltip("what:N")],
    )
    colours = altair.Scale(domain=kinds, range=[WATERFALL_COLOURS[kind] for kind in kinds])
    bars = base.mark_bar().encode(
        x=altair.X("from:Q", title="energy, J", axis=altair.Axis(format="~s", tickCount=6)),
        x2="to:Q",
        color=altair.Color("kind:N", scale=colours, legend=altair.Legend(title=None)),
    )
    labels = base.mark_text(align="left", dx=4).encode(x="to:Q", text="energy:N")
    server = found.estimate
    title = f"{found.trace.source}: {server.engine}, {server.model} on {server.gpu}"
    return altair.layer(bars, labels).properties(
        width=620, height=34 * len(values), title=altair.TitleParams(title, anchor="start", fontSize=12)
    )
