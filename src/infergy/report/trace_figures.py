"""Figures of request traces: served, by the study's bins, and where the energy goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from infergy.catalog import catalog_name
from infergy.estimates.breakdown import IDLE, Breakdown
from infergy.estimates.estimate import RunEstimate, ServerEstimate, TraceEstimate
from infergy.estimates.paper import PaperEstimate, PaperServer
from infergy.records import EngineSetup
from infergy.report.charts import UNKNOWN, Figure, Mark, bar_chart, inline, make_figure
from infergy.report.evidence import Evidence, gpu_title
from infergy.report.our_values import interval_text
from infergy.report.points import Interval, Point, as_interval
from infergy.units import format_duration, format_latency, format_number, format_percent, format_si

SERVED_HEAD = (
    "Trace", "Engine", "Served", "Energy", "J per request", "90 % interval", "Duration", "Mean power", "TTFT p50",
    "TPOT p50", "Steps in measured range",
)  # fmt: skip
PAPER_HEAD = (
    "Trace", "Engine", "Energy", "J per request", "bins' floors .. whole batches", "Gap to ideal", "Saving",
    "90 % of the saving",
)  # fmt: skip
BATCHING = {"transformers": "padded static batches of up to {}", "vllm": "up to {} sequences at once"}


def draw_traces(evidence: Evidence, _mixed: str) -> Iterator[Figure]:
    """Energy of traces with each engine: served in simulation, and by the study's method."""
    yield from _draw_served(evidence)
    yield from _draw_paper(evidence)


def _draw_served(evidence: Evidence) -> Iterator[Figure]:
    runs = [
        _served_mark(evidence, estimate.trace.source, server, how, run)
        for estimate in evidence.estimates.values()
        for server in estimate.estimates
        for how, run in (("as it arrives", server.served), ("all at once", server.offline))
        if run is not None
    ]
    if runs:
        server = next(iter(evidence.estimates.values())).estimates[0]
        yield make_figure(
            "traces-served",
            f"{server.model} on {gpu_title(server.gpu)}: energy per request of traces, served as they arrive and at "
            "once",
            "Requests pass the engine's scheduler in simulation; idle energy until the last token is included. "
            + " ".join(_limits(evidence.estimates.values())),
            SERVED_HEAD,
            runs,
            bar_chart(runs, SERVED_HEAD, "energy, J per request; thin line: 90 % interval"),
        )


def _draw_paper(evidence: Evidence) -> Iterator[Figure]:
    bins = [(paper, server) for paper in evidence.papers.values() for server in paper.servers]
    if any(server.energy_j for _, server in bins):
        first = bins[0][1]
        ideals = dict.fromkeys(server.compared.ideal_basis for _, server in bins if server.compared.ideal_basis)
        marks = [_paper_mark(evidence, paper, server) for paper, server in bins]
        axis = "energy, J per request; thin line: bins' floors to whole batches; upright stroke: the ideal"
        yield make_figure(
            "traces",
            f"{first.model} on {gpu_title(first.gpu)}: energy per request of traces by the study's bins",
            "Each request at the upper corner of its bin, in the largest batches that memory and the engine allow: "
            "the method of the study. Brackets: from every request at the floor of its bin to whole batches at "
            f"its corner. The ideal is {'; '.join(ideals) or UNKNOWN}.",
            PAPER_HEAD,
            marks,
            bar_chart(marks, PAPER_HEAD, axis),
        )


def _limits(estimates: Iterable[TraceEstimate]) -> Iterator[str]:
    """Batching of each engine, and which servers are overloaded by a trace."""
    servers = [(estimate.trace.source, server) for estimate in estimates for server in estimate.estimates]
    for engine, most in {server.engine: server.config.get("max_num_seqs") for _, server in servers}.items():
        yield f"{engine}: {BATCHING[EngineSetup.parse_label(engine)['engine']].format(most)}."
    for trace, server in servers:
        if server.served is not None and server.served.overload is not None:
            yield f"{trace}, {server.engine}: {server.served.overload}."


def _served_mark(evidence: Evidence, trace: str, server: ServerEstimate, how: str, run: RunEstimate) -> Mark:
    requests, ttft_s, tpot_s = run.requests - run.rejected_requests, run.latency.ttft_s, run.latency.tpot_s
    cells = (
        trace,
        server.engine,
        how,
        format_si(run.energy_j, "J"),
        format_number(run.energy_j / requests),
        joules((run.low_j, run.high_j)),
        format_duration(run.duration_s),
        f"{format_number(run.load.power_w)} W",
        UNKNOWN if ttft_s is None else format_latency(ttft_s.p50),
        UNKNOWN if tpot_s is None else format_latency(tpot_s.p50),
        format_percent(run.measured_share),
    )
    return Mark(
        series=f"{server.engine}, {how}",
        value=run.energy_j / requests,
        interval=(run.low_j / requests, run.high_j / requests),
        cells=cells,
        where={"trace": trace},
        points=measured_points(evidence, server),
    )


def _paper_mark(evidence: Evidence, paper: PaperEstimate, server: PaperServer) -> Mark:
    compared = server.compared
    requests = sum(entry.requests for entry in server.bins if entry.batch)
    bracket, saving = as_interval(server.low_j, server.high_j), as_interval(compared.saving_low, compared.saving_high)
    energy_j = None if server.energy_j is None else server.energy_j / requests
    cells = (
        paper.source,
        server.engine,
        UNKNOWN if server.energy_j is None else format_si(server.energy_j, "J"),
        UNKNOWN if energy_j is None else format_number(energy_j),
        UNKNOWN if bracket is None else joules(bracket),
        _percent(compared.gap_to_ideal, signed=True),
        "-" if server.engine == paper.baseline else _percent(compared.saving_vs_baseline),
        "-" if saving is None else interval_text(saving, signed=False),
    )
    return Mark(
        series=server.engine,
        value=energy_j,
        interval=None if bracket is None else (bracket[0] / requests, bracket[1] / requests),
        cells=cells,
        where={"trace": paper.source, "ideal": compared.ideal_energy_j and compared.ideal_energy_j / requests},
        points=measured_points(evidence, server),
    )


def joules(interval: Interval) -> str:
    """Both ends."""
    return " .. ".join(format_si(end_j, "J") for end_j in interval)


def _percent(value: float | None, *, signed: bool = False) -> str:
    return UNKNOWN if value is None else format_percent(value, signed=signed)


def measured_points(evidence: Evidence, server: ServerEstimate | PaperServer) -> tuple[Point, ...]:
    """The measured cells of a server."""
    kind = (server.engine, server.model, server.gpu)
    return tuple(point for point in evidence.points if (point.label, point.model, catalog_name(point.gpu_kind)) == kind)


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
    steps = [str(value["step"]) for value in values]
    kinds = [kind for kind in WATERFALL_COLOURS if any(value["kind"] == kind for value in values)]
    base = inline(values).encode(
        y=altair.Y("step:N", sort=steps, title=None, axis=altair.Axis(labelLimit=300)),
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
