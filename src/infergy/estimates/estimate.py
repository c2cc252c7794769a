"""What a trace costs on servers: the one function that all verbs ask.

requests ─┐
          ├─▶ serve as they arrive, and all at once ─▶ RunEstimate ─▶ ServerEstimate ─▶ TraceEstimate
server  ──┘

History of the schema:
    1   bins: each request at the energy of its bin
    2   runs: requests served in simulation, as they arrive and all at once
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from infergy.cost.table import Table
from infergy.errors import UsageError
from infergy.estimates.footprint import Footprint, Site, footprint_of_runs
from infergy.estimates.latency import Z90 as Z90
from infergy.estimates.latency import LatencyParts, latency_parts
from infergy.estimates.load import Load, load_of, measured_share, overload_of
from infergy.estimates.paper_bins import PaperReference, paper_reference
from infergy.estimates.servers import OpenServer, ServerSpec, load_tables, open_server
from infergy.serving.config import StaticConfig
from infergy.serving.run import EnergySplit, Runs, open_share, steps_of, total
from infergy.units import count_of
from infergy.workload.requests import Requests, Sample, whole

ESTIMATE_SCHEMA = "infergy.estimate/2"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFacts:
    """What was asked.

    Attributes:
        requests: Requests with output; `input_tokens` with those from a prefix cache.
        duration_s: Seconds from the first arrival to the last; None without arrival times, with `order_reason`.
        set_aside: Rows that are no requests: no output, no input, or tokens that cannot be read.
        stream_chunks: Rows that are further parts of an answer, of which the last counts.
        out_of_order: Requests that stood in the log after one that arrived later.
        without_session: Requests without the id of a session in a log that has sessions: each is one of its own.
        without_blocks: Requests without hashes of blocks in a log that has them: their prompts share no prefix.
        simulated_requests: Of them, those that were simulated: a longer trace is sampled in windows.
        lengths_from: Where the lengths of a task come from; None for a trace.
    """

    source: str
    requests: int
    input_tokens: int
    output_tokens: int
    duration_s: float | None
    order_reason: str | None
    set_aside: int
    stream_chunks: int
    out_of_order: int
    without_session: int
    without_blocks: int
    simulated_requests: int
    lengths_from: str | None = None

    @property
    def rate_per_s(self) -> float | None:
        """Requests after the first, divided by the duration; None if unknown, or if all arrive at one instant."""
        return (self.requests - 1) / self.duration_s if self.duration_s else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnergy(EnergySplit):
    """Energy of a run by what the GPUs did, and by what was answered.

    Attributes:
        per_request_j: Energy of the run over its answered requests; None where none was.
        per_output_token_j: Over their output tokens.
        per_token_j: Over their input tokens, cached ones included, and output tokens.
    """

    per_request_j: float | None
    per_output_token_j: float | None
    per_token_j: float | None

    @classmethod
    def of_runs(cls, runs: Runs) -> RunEnergy:
        """Of all windows."""
        split = EnergySplit(**{field.name: total(runs, f"energy.{field.name}") for field in fields(EnergySplit)})
        requests, inputs, outputs = (
            total(runs, f"counts.finished_{name}") for name in ("requests", "input_tokens", "output_tokens")
        )
        per_request_j, per_output_token_j, per_token_j = (
            split.total_j / count if count else None for count in (requests, outputs, inputs + outputs)
        )
        return cls(
            **asdict(split),
            per_request_j=per_request_j,
            per_output_token_j=per_output_token_j,
            per_token_j=per_token_j,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """A run of all requests on one server: energy of all GPUs from the first arrival to the last token.

    Attributes:
        low_j: Lower end of the 90 % interval of `energy_j`; `high_j` the upper.
        rejected_requests: Requests longer than the context or the cache, which the engine rejects.
        measured_share: Share of the energy in steps inside the range that was measured.
        overload: What would hold the load, where the server cannot keep up with it; None where it can.
    """

    energy_j: float
    low_j: float
    high_j: float
    duration_s: float
    requests: int
    rejected_requests: int
    preemptions: int
    energy: RunEnergy
    latency: LatencyParts
    load: Load
    measured_share: float
    overload: str | None = None

    @property
    def energy_wh(self) -> float:
        """Energy in watt hours."""
        return self.energy_j / 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEstimate:
    """What one server draws for the trace.

    Attributes:
        engine: ``vllm`` or ``transformers``; with what is not at its default, as ``vllm-eager``.
        gpu: Kind of GPU; `gpus` of all replicas together.
        config: The engine's options, as resolved.
        served: Requests at their arrival times; None with `served_reason`.
        offline: The same requests all at once; None with `offline_reason`.
        notes: What a reader must know, such as hardware whose defaults are not known.
        footprint: Money and carbon of `run`; None where no `Site` was given.
    """

    engine: str
    model: str
    gpu: str
    gpus: int
    precision: str
    config: Mapping[str, Any]
    served: RunEstimate | None
    offline: RunEstimate | None
    served_reason: str | None = None
    offline_reason: str | None = None
    notes: tuple[str, ...] = ()
    footprint: Footprint | None = None

    @property
    def run(self) -> RunEstimate:
        """The run as the requests arrive; all at once where no arrivals are known."""
        run = self.served or self.offline
        assert run is not None
        return run


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEstimate:
    """What a trace costs on each of the servers asked for.

    Attributes:
        paper: The study's reference: the ideal, and its binning (`infergy.estimates.paper`); None where not asked for.
        notes: What to know of the rows that were given.
    """

    trace: TraceFacts
    estimates: tuple[ServerEstimate, ...]
    paper: PaperReference | None
    notes: tuple[str, ...] = ()
    schema: str = ESTIMATE_SCHEMA

    def of(self, engine: str) -> ServerEstimate:
        """The first estimate of an engine.

        Raises:
            UsageError: That engine was not asked for.
        """
        estimates = {estimate.engine: estimate for estimate in reversed(self.estimates)}
        if engine not in estimates:
            raise UsageError.unknown("estimated engine", engine, [*reversed(estimates)], code="unknown-name")
        return estimates[engine]


def estimate(
    source: Any,
    servers: ServerSpec | Sequence[ServerSpec] = ServerSpec(),  # noqa: B008 - frozen
    *,
    tables: Table | str | Path | Sequence[str | Path] = (),
    offline: bool = True,
    paper: bool = True,
    timeline: int = 0,
    site: Site | None = None,
) -> TraceEstimate:
    """Estimate what a trace draws on each of the servers: served as it arrives, and all at once.

    Args:
        source: `infergy.workload.Requests`, or what `infergy.open_trace` takes: a shipped name, a path, a frame.
        servers: Engine, model, GPU, precision, options.
        tables: A user's measured rows or tables, which sharpen the shipped one; or a loaded table, which counts alone.
        offline: Whether the requests are also served all at once, for comparison.
        paper: Whether the study's reference is given too, for the first server.
        timeline: Equal parts of each run of which power, batch and queue are given; none of a trace in several windows.
        site: Where the GPUs stand, for money and carbon; None computes neither.

    Raises:
        UsageError: A name or an option is unknown, the engine rejects an option, or a model does not fit.
        DataError: A trace or a table is not what it should be.
    """
    sample = sample_of(source)
    table = (
        tables if isinstance(tables, Table) else load_tables([tables] if isinstance(tables, (str, Path)) else tables)
    )
    specs = [servers] if isinstance(servers, ServerSpec) else servers
    opened = [open_server(spec, table) for spec in specs]
    return TraceEstimate(
        trace=facts_of(sample),
        estimates=tuple(
            estimate_server(sample, server, offline=offline, timeline=timeline, site=site) for server in opened
        ),
        paper=paper_reference(sample, opened[0]) if paper else None,
        notes=table.notes,
    )


def sample_of(source: Any) -> Sample:
    """The requests of a source; windows of it if it is longer than can be simulated whole."""
    from infergy.workload import Histogram, Trace, open_requests, requests_of_histogram

    if isinstance(source, Sample):
        return source
    if isinstance(source, Requests):
        return whole(source)
    opened = source if isinstance(source, (Trace, Histogram)) else open_requests(source)
    return whole(requests_of_histogram(opened)) if isinstance(opened, Histogram) else opened.sample()


def estimate_server(
    sample: Sample,
    server: OpenServer,
    *,
    offline: bool = True,
    runs: Runs | None = None,
    advise: bool = True,
    timeline: int = 0,
    site: Site | None = None,
) -> ServerEstimate:
    """What a trace draws on one server; `runs` is what `serve_sample` made of the two, where that is known.

    With `advise` it is said how many replicas would keep up, where the server does not; with `site` what the run costs.
    """
    if site is not None and runs is None:
        runs = serve_sample(sample, server)
    requests = sample.windows[0].requests
    timed = sample.is_timed
    served = estimate_run(sample, server, runs, advise=advise, timeline=timeline) if timed else None
    together = None
    if offline or not timed:
        together = estimate_run(sample.all_at_once(), server, None if timed else runs, timeline=timeline)
    made = ServerEstimate(
        engine=replace(server.setup, max_sequences=None).label,
        model=server.cost.server.model,
        gpu=server.gpu.name,
        gpus=server.setup.tensor_parallel * server.spec.replicas,
        precision=server.setup.dtype,
        config={**server.config.options(), "replicas": server.spec.replicas, "router": server.spec.router},
        served=served,
        served_reason=None if timed else requests.order_reason,
        offline=together,
        offline_reason=None if together is not None else "not asked for",
        notes=(*server.notes, *_notes_of(sample), *_notes_of_batches(sample, server)),
    )
    return (
        made
        if site is None or runs is None
        else replace(
            made, footprint=footprint_of_runs(site, runs, gpus=made.gpus, lasts=made.run.load.daily_j is not None)
        )
    )


def serve_sample(sample: Sample, server: OpenServer) -> Runs:
    """The runs that estimates are read from: as requests arrive, or all at once where arrivals are not known.

    Of a part of a trace what counts is its time: what ran before goes on when it begins, and what still runs at its end
    shares its steps with what comes. So each run is that of its window, unless a queue grows past it.
    """
    asked = sample if sample.is_timed else sample.all_at_once()
    runs = tuple((server.serve(window.requests), window) for window in asked.windows)
    if asked.is_whole or overload_of(runs, server, advise=False) is not None:
        return runs
    return tuple((run if own.duration_s is None else run.within(own.duration_s), own) for run, own in runs)


def estimate_run(
    sample: Sample, server: OpenServer, runs: Runs | None = None, *, advise: bool = True, timeline: int = 0
) -> RunEstimate:
    """Energy, latencies and load of serving a sample's windows, each by itself, weighted; `runs` where those are known.

    Raises:
        UsageError: Not one request can be served.
    """
    runs = serve_sample(sample, server) if runs is None else runs
    if not sum(len(run.steps) for run, _ in runs):
        raise UsageError(
            f"{sample.source}: not one request can be served: all are longer than {server.config.max_model_len} tokens "
            "(--max-model-len), or than the KV cache. Raise that option or --num-gpu-blocks where you gave them; else "
            "take more GPUs (--tensor-parallel-size) or a narrower format (--precision fp8)",
            code="does-not-fit",
            trace=sample.source,
        )
    energy = RunEnergy.of_runs(runs)
    energy_j = energy.total_j
    energy_sd, seconds_sd = server.cost.log_sd(steps_of(runs), energy.idle_j, open_share(runs))
    half = Z90 * math.hypot(energy_sd, sample.relative_se)
    arrive = sample.windows[0].requests.arrival_s is not None
    overload = overload_of(runs, server, advise=advise) if arrive else None
    span_s = sample.duration_s if arrive and overload is None else None
    latency = latency_parts(runs, sample, seconds_sd, overload)
    scale = sample.requests / total(runs, "counts.requests")
    return RunEstimate(
        energy_j=energy_j,
        low_j=energy_j * math.exp(-half),
        high_j=energy_j * math.exp(half),
        duration_s=total(runs, "duration_s"),
        requests=sample.requests,
        rejected_requests=round(scale * total(runs, "counts.rejected_requests")),
        preemptions=round(scale * total(runs, "counts.preemptions")),
        energy=energy,
        latency=latency,
        load=load_of(runs, server, energy_j, span_s=span_s, knows_queue=latency.reason is None, bins=timeline),
        measured_share=measured_share(runs, server, energy_j),
        overload=overload,
    )


def facts_of(sample: Sample) -> TraceFacts:
    """What was asked."""
    first, aside = sample.windows[0].requests, sample.set_aside
    alike = ("source", "requests", "input_tokens", "output_tokens", "duration_s")
    return TraceFacts(
        **{name: getattr(sample, name) for name in alike},
        order_reason=first.order_reason,
        set_aside=aside.failed + aside.without_input + aside.unreadable,
        stream_chunks=aside.chunks,
        out_of_order=aside.out_of_order,
        without_session=aside.without_session,
        without_blocks=aside.without_blocks,
        simulated_requests=sum(len(window.requests) for window in sample.windows),
        lengths_from=first.lengths_from,
    )


def _notes_of_batches(sample: Sample, server: OpenServer) -> list[str]:
    """That static batches are smaller, where a request is too long for the memory to take a whole one."""
    config = server.config
    if not isinstance(config, StaticConfig) or config.fits is None or server.spec.options.max_num_seqs is not None:
        return []
    size, limit = config.max_num_seqs, config.max_model_len or math.inf
    tokens = np.concatenate([window.requests.input_tokens + window.requests.output_tokens for window in sample.windows])
    longest, fits = int(tokens[tokens <= limit].max(initial=1)), partial(config.fits, size)
    if fits(longest, 0) == size:
        return []
    most = bisect_left(range(1, longest), True, key=lambda tokens: fits(tokens, 0) < size)
    return [
        f"static batches are of {size} requests of up to {most:,} tokens on {server.gpu.title}; of longer ones as many "
        "as the memory takes are served at once"
    ]


def _notes_of(sample: Sample) -> list[str]:
    """What is not as the trace has it."""
    first, notes = sample.windows[0].requests, []
    if first.is_timed and first.arrival_s is None:
        notes.append("the sessions of the trace have no times: all begin at 0 s")
    if sample.is_whole:
        return notes
    simulated = sum(len(window.requests) for window in sample.windows)
    return [
        *notes,
        f"{simulated:,} of {count_of(sample.requests, 'request')} were simulated, in "
        f"{count_of(len(sample.windows), 'window')}: latencies and queues are not reported of windows all at once, nor "
        "where a queue outlasts them",
    ]
