"""Figures of request traces: served as they arrive and all at once, and by the study's bins with the ideal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from infergy.hardware import catalogue_name
from infergy.records import EngineSetup
from infergy.report.figures import Figure, draw_bars, finish
from infergy.report.ours import Evidence, gpu_title
from infergy.report.points import Point
from infergy.units import format_duration, format_latency, format_number, format_percent, format_si

if TYPE_CHECKING:
    from infergy.estimates.paper import PaperEstimate, PaperServer
    from infergy.estimates.results import RunEstimate, ServerEstimate, TraceEstimate

UNKNOWN = "unknown"
AS_IT_ARRIVES, ALL_AT_ONCE = "as it arrives", "all at once"
SERVED_HEAD = (
    "Trace", "Engine", "Served", "Energy", "J per request", "90 % interval", "Duration", "Mean power", "TTFT p50",
    "TPOT p50", "Steps in measured range",
)  # fmt: skip
PAPER_HEAD = (
    "Trace", "Engine", "J in all", "J per request", "bins' floors .. whole batches", "Gap to ideal", "Saving",
    "90 % of the saving",
)  # fmt: skip
SERVED_AXIS = "energy, J per request; thin line: 90 % interval"
PAPER_AXIS = "energy, J per request; thin line: bins' floors to whole batches; upright stroke: the ideal"


def draw_traces(evidence: Evidence) -> Iterator[Figure]:
    """Energy of traces under each engine; nothing without estimates."""
    estimates, papers = list(evidence.estimates.values()), list(evidence.papers.values())
    if estimates:
        yield _draw_served(estimates, evidence)
    if papers and any(server.energy_j for paper in papers for server in paper.servers):
        yield _draw_paper(papers, evidence)


def _draw_served(estimates: list[TraceEstimate], evidence: Evidence) -> Figure:
    server = estimates[0].estimates[0]
    title = (
        f"{server.model} on {gpu_title(server.gpu)}: energy per request of traces, served as they arrive and at once"
    )
    runs = [
        (estimate.trace.source, server, how, run)
        for estimate in estimates
        for server in estimate.estimates
        for how, run in ((AS_IT_ARRIVES, server.served), (ALL_AT_ONCE, server.offline))
        if run is not None
    ]
    return Figure(
        name="traces-served",
        title=title,
        note="Requests go through the engine's scheduler in simulation; idle power is paid for until the last token. "
        + " ".join(_limits(estimates)),
        spec=finish(draw_bars([_run_bar(*run) for run in runs], SERVED_AXIS), title),
        head=SERVED_HEAD,
        table=tuple(_run_row(*run) for run in runs),
        points=_behind(evidence, estimates[0].estimates),
    )


def _limits(estimates: Iterable[TraceEstimate]) -> Iterator[str]:
    """Batching of each engine, and what cannot keep up with a trace's rate."""
    servers = [(estimate.trace.source, server) for estimate in estimates for server in estimate.estimates]
    kinds = {server.engine: server.config.get("max_num_seqs") for _, server in servers}
    batching = {"transformers": "padded static batches of up to {}", "vllm": "up to {} sequences at once"}
    for engine, most in kinds.items():
        yield f"{engine}: {batching[EngineSetup.parse_label(engine)['engine']].format(most)}."
    for trace, server in servers:
        if server.served is not None and server.served.overload is not None:
            yield f"{trace}, {server.engine}: {server.served.overload}."


def _run_bar(trace: str, server: ServerEstimate, how: str, run: RunEstimate) -> dict[str, object]:
    requests = run.requests - run.rejected_requests
    return {
        "trace": trace,
        "series": f"{server.engine}, {how}",
        "joules": run.energy_j / requests,
        "low": run.low_j / requests,
        "high": run.high_j / requests,
        "ideal": None,
        "energy": f"{format_si(run.energy_j, 'J')}, {format_si(run.energy_j / requests, 'J')} per request",
        "bracket": _interval(run),
        "gap to ideal": "see the study's method",
    }


def _run_row(trace: str, server: ServerEstimate, how: str, run: RunEstimate) -> tuple[str, ...]:
    latency = run.latency
    return (
        trace,
        server.engine,
        how,
        format_si(run.energy_j, "J"),
        UNKNOWN if run.energy_per_request_j is None else format_number(run.energy_per_request_j),
        _interval(run),
        format_duration(run.duration_s),
        f"{format_number(run.load.power_w)} W",
        UNKNOWN if latency.ttft_s is None else format_latency(latency.ttft_s.p50),
        UNKNOWN if latency.tpot_s is None else format_latency(latency.tpot_s.p50),
        format_percent(run.measured_share),
    )


def _interval(run: RunEstimate) -> str:
    return f"{format_si(run.low_j, 'J')} .. {format_si(run.high_j, 'J')}"


def _draw_paper(papers: list[PaperEstimate], evidence: Evidence) -> Figure:
    servers = papers[0].servers
    title = f"{servers[0].model} on {gpu_title(servers[0].gpu)}: energy per request of traces by the study's bins"
    ideals = dict.fromkeys(server.compared.ideal_basis for server in servers if server.compared.ideal_basis)
    values = [value for paper in papers for server in paper.servers for value in _paper_bar(paper, server)]
    return Figure(
        name="traces",
        title=title,
        note="Each request at the upper corner of its bin, in the largest batches that memory and the engine allow: "
        "the method of the study. Brackets: from every request at the floor of its bin to whole batches at "
        f"its corner. The ideal is {'; '.join(ideals) or UNKNOWN}.",
        spec=finish(draw_bars(values, PAPER_AXIS), title),
        head=PAPER_HEAD,
        table=tuple(_paper_row(paper, server) for paper in papers for server in paper.servers),
        points=_behind(evidence, servers),
    )


def _paper_bar(paper: PaperEstimate, server: PaperServer) -> Iterator[dict[str, object]]:
    requests, compared = _requests(server), server.compared
    if server.energy_j is None:
        return
    ideal_j = compared.ideal_energy_j
    yield {
        "trace": paper.source,
        "series": server.engine,
        "joules": server.energy_j / requests,
        "low": None if server.low_j is None else server.low_j / requests,
        "high": None if server.high_j is None else server.high_j / requests,
        "ideal": None if ideal_j is None else ideal_j / requests,
        "energy": f"{format_si(server.energy_j, 'J')}, {format_si(server.energy_j / requests, 'J')} per request",
        "bracket": _bracket(server),
        "gap to ideal": _percent(compared.gap_to_ideal, signed=True),
    }


def _paper_row(paper: PaperEstimate, server: PaperServer) -> tuple[str, ...]:
    compared = server.compared
    ends = compared.saving_low, compared.saving_high
    return (
        paper.source,
        server.engine,
        UNKNOWN if server.energy_j is None else format_si(server.energy_j, "J"),
        UNKNOWN if server.energy_j is None else format_number(server.energy_j / _requests(server)),
        _bracket(server),
        _percent(compared.gap_to_ideal, signed=True),
        "-" if server.engine == paper.baseline else _percent(compared.saving_vs_baseline),
        "-" if ends[0] is None or ends[1] is None else f"{format_percent(ends[0])} .. {format_percent(ends[1])}",
    )


def _requests(server: PaperServer) -> int:
    return sum(entry.requests for entry in server.bins if entry.batch)


def _bracket(server: PaperServer) -> str:
    if server.low_j is None or server.high_j is None:
        return UNKNOWN
    return f"{format_si(server.low_j, 'J')} .. {format_si(server.high_j, 'J')}"


def _percent(value: float | None, *, signed: bool = False) -> str:
    return UNKNOWN if value is None else format_percent(value, signed=signed)


def _behind(evidence: Evidence, servers: Iterable[ServerEstimate | PaperServer]) -> tuple[Point, ...]:
    """The measured rows of these servers."""
    kinds = {(server.engine, server.model, server.gpu) for server in servers}
    return tuple(
        point
        for point in evidence.points
        if (point.label, point.model, catalogue_name(point.row.environment.gpus[0].name)) in kinds
    )
