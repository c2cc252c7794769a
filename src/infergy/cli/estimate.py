"""`infergy estimate`: what traces draw on servers, as the requests arrive and all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import typer

from infergy.cli.footprint import FootprintSelection, print_footprints
from infergy.cli.options import (
    BinSelection,
    ExplainOption,
    JsonOption,
    RequestLogOption,
    TracesArg,
    TraceSelection,
    option,
    with_options,
)
from infergy.cli.output import (
    NONE,
    WIDTH,
    print_figures,
    print_json,
    print_notes,
    run_notes,
    trace_notes,
)
from infergy.cli.server_options import MeasuredSelection, ServerSelection
from infergy.errors import UsageError
from infergy.units import (
    DAYS_OF_MONTH,
    count_of,
    format_duration,
    format_interval,
    format_latency,
    format_number,
    format_percent,
    format_si,
    latency_scale,
    scale_of,
)

if TYPE_CHECKING:
    from infergy.cost.table import Table
    from infergy.estimates.estimate import RunEstimate, ServerEstimate, TraceEstimate, TraceFacts
    from infergy.estimates.latency import LikelyPercentiles
    from infergy.estimates.servers import ServerSpec
    from infergy.workload.requests import Sample

RUNS, CEILING = "runs", "ceiling"
INTERVAL = "(90 % interval)"


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSelection:
    """By which method."""

    method: str = option(
        "runs: requests served in simulation; ceiling: the binning of arXiv 2504.17674, its ideal and gap", default=RUNS
    )
    ideal: str | None = option(
        "Of --method ceiling: dense (FLOPs at the dense peak and TDP), paper (at the vendor's headline peak), "
        "roofline (FLOPs or bytes) [default: dense]"
    )
    rare: str | None = option(
        "Of --method ceiling: N requests take N/B of a batch of B (fractional), or whole ones [default: fractional]"
    )

    def is_ceiling(self, bins: BinSelection, trace: TraceSelection) -> bool:
        """Whether the study's method is asked for.

        Raises:
            UsageError: No such method, options of the study's without it, or others with it.
        """
        if self.method not in (RUNS, CEILING):
            raise UsageError.unknown("method", self.method, (RUNS, CEILING), code="unknown-name", option="--method")
        own = {"ideal": self.ideal, "rare": self.rare} | asdict(bins)
        given = [f"--{name.replace('_', '-')}" for name, value in own.items() if value is not None]
        if self.method == RUNS and given:
            message = f"{', '.join(given)}: of the study's method alone. Add --method ceiling"
            raise UsageError(message, code="option-missing", option="--method ceiling", needed_by=given)
        is_ceiling = self.method == CEILING
        if is_ceiling and (trace.all_at_once or (trace.speed is not None and trace.duration is None)):
            given_too: dict[str, object] = {"--all-at-once": True} if trace.all_at_once else {"--speed": trace.speed}
            raise UsageError.conflict({"--method": CEILING, **given_too}, "bins have no arrivals: leave it out")
        return is_ceiling


@with_options
def estimate(
    sources: TracesArg,
    trace: TraceSelection,
    servers: ServerSelection,
    measured: MeasuredSelection,
    method: MethodSelection,
    bins: BinSelection,
    footprint: FootprintSelection,
    timeline: int | None = option(
        "With --json: power, batch and queue in so many equal parts of a run", min=1, max=10_000
    ),
    request_log: RequestLogOption = None,
    explain: ExplainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Estimate the energy and latencies of serving traces: as requests arrive, and all at once.

    Example: infergy estimate azure-conv-2023 --gpu h200 --max-num-seqs 64
    """
    is_ceiling, specs = method.is_ceiling(bins, trace), servers.specs()
    if timeline is not None:
        _check_timeline(timeline, is_ceiling=is_ceiling, as_json=as_json)
    site = footprint.site(needs_runs=is_ceiling)
    table = measured.load()
    samples: Iterable[Sample] = (trace.open(source) for source in sources)
    if request_log is not None:
        samples = [*samples]
        _write_requests(request_log, samples, specs, table, is_ceiling=is_ceiling)
    answers: Sequence[Any]
    show: Callable[[Any], None]
    if is_ceiling:
        from infergy.cli.paper_table import print_paper
        from infergy.estimates.paper import estimate_paper
        from infergy.workload.bins import POWERS_OF_TWO

        edges, ideal, rare = bins.grid() or POWERS_OF_TWO, method.ideal or "dense", method.rare or "fractional"
        answers = [estimate_paper(sample, specs, table, bins=edges, ideal=ideal, rare=rare) for sample in samples]
        show = print_paper
    else:
        from infergy.estimates.estimate import estimate as run_estimate

        answers = [run_estimate(sample, specs, tables=table, timeline=timeline or 0, site=site) for sample in samples]
        show = partial(_print, explain=explain)
    if as_json:
        print_json(answers)
    else:
        show(answers)


def _write_requests(
    path: Path, samples: Sequence[Sample], specs: Sequence[ServerSpec], table: Table, *, is_ceiling: bool
) -> None:
    from infergy.estimates.request_log import log_of_sample, write_log
    from infergy.estimates.servers import open_server

    if is_ceiling or len(samples) != 1 or len(specs) != 1:
        why = "it is of the requests of one trace on one server, served in simulation"
        raise UsageError.conflict({"--request-log": str(path), "traces": len(samples), "servers": len(specs)}, why)
    write_log(path, log_of_sample(samples[0], open_server(specs[0], table)))


def _check_timeline(timeline: int, *, is_ceiling: bool, as_json: bool) -> None:
    if is_ceiling or not as_json:
        needed = "--method runs" if is_ceiling else "--json"
        message = f"--timeline {timeline}: give {needed} too"
        raise UsageError(message, code="option-missing", option=needed, needed_by=["--timeline"])


def _print(answers: Sequence[TraceEstimate], *, explain: bool) -> None:
    for answer in answers:
        servers = answer.estimates
        typer.echo(_head(answer.trace))
        if len(servers) == 1:
            _print_one(servers[0])
        else:
            _print_several(servers)
        lengths = [] if answer.trace.lengths_from is None else [answer.trace.lengths_from]
        for line in (*lengths, *trace_notes(answer.trace), *run_notes(servers), *_paper(answer)):
            typer.echo(fill(line, WIDTH))
        _print_sites(servers)
        if explain:
            print_notes(note for one in servers for note in _explained(one))


def _print_sites(servers: Sequence[ServerEstimate]) -> None:
    names = _names(servers) if len(servers) > 1 else ["all at once" if servers[0].served is None else "as it arrives"]
    footprints = zip(names, (one.footprint for one in servers), strict=True)
    print_footprints([(name, footprint) for name, footprint in footprints if footprint is not None])


def _print_one(server: ServerEstimate) -> None:
    typer.echo(_server(server))
    runs = {"as it arrives": server.served, "all at once": server.offline}
    print_figures([(label, run) for label, run in runs.items() if run is not None], FIGURES, INTERVAL)
    if server.served is None:
        typer.echo(f"Served all at once: {server.served_reason}.")


def _print_several(servers: Sequence[ServerEstimate]) -> None:
    shared = {_server(one, name=False) for one in servers}
    if len(shared) == 1:
        typer.echo(shared.pop())
    reason = servers[0].served_reason
    typer.echo("As it arrives:" if reason is None else f"All at once: {reason}.")
    print_figures(list(zip(_names(servers), (one.run for one in servers), strict=True)), FIGURES, INTERVAL)


def _head(trace: TraceFacts) -> str:
    rate = trace.rate_per_s
    when = (
        ""
        if trace.duration_s is None or rate is None
        else (f" in {format_duration(trace.duration_s)} ({format_number(rate)} a second)")
    )
    return (
        f"{trace.source}: {count_of(trace.requests, 'request')}{when}, {trace.input_tokens:,} input and "
        f"{count_of(trace.output_tokens, 'output token')}"
    )


def _server(one: ServerEstimate, *, name: bool = True) -> str:
    from infergy.catalog import get_gpu

    gpu = get_gpu(one.gpu).title
    count = "one" if one.gpus == 1 else str(one.gpus)
    engine = f", {one.engine}" if name else ""
    if "version" in one.config:
        options = (
            f" {one.config['version']}, max_num_seqs {one.config['max_num_seqs']}, "
            f"max_num_batched_tokens {one.config['max_num_batched_tokens']}"
        )
    else:
        options = f", static batches of {one.config['max_num_seqs']}"
    return f"{one.model}, {one.precision}, on {count} {gpu}{engine}{options if name else ''}"


def _names(servers: Sequence[ServerEstimate]) -> list[str]:
    """Labels by which the servers differ, a fact a line; options only of those that are alike without."""
    facts = [
        {"engine": one.engine, "model": one.model, "gpu": one.gpu, "replicas": f"replicas {one.config['replicas']}"}
        for one in servers
    ]
    # Blocks follow from the other options.
    options = [
        {name: f"{name} {value}" for name, value in one.config.items()} | {"num_gpu_blocks": ""} for one in servers
    ]
    keys = _varying(facts) or ["engine"]
    names = [[own[key] for key in keys] for own in facts]
    labels = []
    for name, own in zip(names, options, strict=True):
        alike = [other for other, label in zip(options, names, strict=True) if label == name]
        labels.append("\n".join([*name, *(own.get(key, f"{key} None") for key in _varying(alike))]))
    return labels


def _varying(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys of which the values differ."""
    keys = dict.fromkeys(key for own in facts for key in own)
    return [key for key in keys if len({own.get(key) for own in facts}) > 1]


def _energy(run: RunEstimate) -> str:
    return format_interval(run.energy_j, run.low_j, run.high_j, scale_of(run.energy_j, "J"))


def _per_day(run: RunEstimate) -> str:
    if run.load.daily_j is None:
        return NONE
    day = run.load.daily_j / 3.6e6
    return f"{format_number(day)} / {format_number(day * DAYS_OF_MONTH)} kWh"


def _latency(own: LikelyPercentiles | None) -> str:
    """p50, and p99 with its interval; p50 in the unit of p99 where that suits it."""
    if own is None:
        return NONE
    divisor, unit = latency_scale(own.p99)
    p50 = format_number(own.p50 / divisor) if own.p50 >= divisor else format_latency(own.p50)
    return f"{p50} / {format_interval(own.p99, own.low.p99, own.high.p99, (divisor, unit))}"


def _joules(energy_j: float | None) -> str:
    return NONE if energy_j is None else format_si(energy_j, "J")


FIGURES = (
    ("Energy", _energy),
    ("  per day / month", _per_day),
    ("Energy per request", lambda run: _joules(run.energy.per_request_j)),
    ("Duration", lambda run: format_duration(run.duration_s)),
    ("Mean power", lambda run: f"{format_number(run.load.power_w)} W"),
    (
        "GPU busy / mean batch",
        lambda run: f"{format_percent(run.load.busy_share)} / {format_number(run.load.mean_batch)}",
    ),
    ("TTFT p50 / p99", lambda run: _latency(run.latency.ttft_s)),
    ("TPOT p50 / p99", lambda run: _latency(run.latency.tpot_s)),
)


def _paper(answer: TraceEstimate) -> list[str]:
    """The study's reference, of the first of several servers."""
    paper, servers = answer.paper, answer.estimates
    if paper is None:
        return []
    of = "The study's reference (arXiv 2504.17674)"
    if len(servers) > 1:
        of += f" for the first server, {servers[0].engine}"
    if paper.energy_j is None or paper.ideal_energy_j is None or paper.gap_to_ideal is None:
        return [f"{of}: no bin of the trace can be served."]
    ideal, by_bins = (format_si(joules, "J") for joules in (paper.ideal_energy_j, paper.energy_j))
    gap = format_percent(paper.gap_to_ideal, signed=True)
    return [f"{of}: ideal {ideal}; by its bins {by_bins}, {gap} over the ideal."]


def _explained(one: ServerEstimate) -> list[str]:
    run = one.run
    parts = ", ".join(
        f"{name} {format_percent(getattr(run.energy, f'{name}_j') / run.energy_j)}"
        for name in ("prefill", "decode", "mixed", "idle")
    )
    options = ", ".join(f"{name} {value}" for name, value in one.config.items())
    waiting = run.load.peak_waiting
    queue = "a queue that is not known" if waiting is None else f"at most {count_of(waiting, 'request')} in the queue"
    return [
        f"{one.engine}: energy by activity: {parts}; {format_percent(run.measured_share)} of it in steps inside the "
        f"measured range; {_joules(run.energy.per_output_token_j)} per output token, {_joules(run.energy.per_token_j)} "
        "per token, input and output",
        f"{one.engine}: {options}",
        f"{one.engine}: {run.preemptions:,} preemptions, {run.load.hit_tokens:,} prompt tokens from the prefix cache, "
        f"at most {count_of(run.load.peak_running, 'request')} in a step, {queue} and "
        f"{format_percent(run.load.peak_kv_share)} of the KV cache; MFU {format_percent(run.load.mfu)}, "
        f"steps at {format_percent(run.load.roofline_share)} of the roofline",
    ]
