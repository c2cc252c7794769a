"""What an estimate says: the nouns of `infergy.estimate/2`.

History of the schema:
    1   bins: each request at the energy of its bin
    2   runs: requests served in simulation, as they arrive and all at once
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infergy.errors import UsageError
from infergy.estimates.paper import PaperReference
from infergy.serving.run import EnergySplit, Latency

ESTIMATE_SCHEMA = "infergy.estimate/2"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFacts:
    """What was asked.

    Attributes:
        requests: Requests with output; `input_tokens` with those from a prefix cache.
        duration_s: Seconds from the first arrival to the last; None without arrival times, with `order_reason`.
        set_aside: Rows that are no requests: no output, or no input.
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
    out_of_order: int
    without_session: int
    without_blocks: int
    simulated_requests: int
    lengths_from: str | None = None

    @property
    def rate_per_s(self) -> float | None:
        """Requests a second; None without arrival times."""
        return self.requests / self.duration_s if self.duration_s else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyParts(Latency):
    """Percentiles in seconds over requests, by nearest rank; None where no request has one.

    Attributes:
        ttft_sd: Standard deviation of the logarithm of each of `ttft_s`; `tpot_sd` is that of `tpot_s` and `itl_s`,
            `e2e_sd` of `e2e_s`.
    """

    ttft_sd: float
    tpot_sd: float
    e2e_sd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How the server was used.

    Attributes:
        power_w: Mean power of all GPUs, idle ones included.
        busy_share: Share of time in which a replica computes, mean over replicas.
        mean_batch: Sequences that decode in a step, mean over decode steps' time.
        peak_waiting: Most requests in the queue; `waiting_at_last_arrival` when the last one came.
        peak_kv_share: Largest share of the KV cache in use.
        hit_tokens: Prompt tokens found in the prefix cache.
        mfu: FLOPs over the dense peak and time, idle included.
        roofline_share: Least time of the steps by bytes or FLOPs, over their time.
    """

    power_w: float
    busy_share: float
    mean_batch: float
    peak_waiting: int
    waiting_at_last_arrival: int
    peak_kv_share: float
    hit_tokens: int
    mfu: float
    roofline_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """A run of all requests on one server: energy of all GPUs from the first arrival to the last token.

    Attributes:
        low_j: Lower end of the 90 % interval of `energy_j`; `high_j` the upper.
        rejected_requests: Requests longer than the context or the cache, which the engine rejects.
        measured_share: Share of the energy in steps inside the range that was measured.
        overload: What would hold the load, where the queue grows without limit; None where it does not.
    """

    energy_j: float
    low_j: float
    high_j: float
    duration_s: float
    requests: int
    rejected_requests: int
    preemptions: int
    energy: EnergySplit
    latency: LatencyParts
    load: Load
    measured_share: float
    overload: str | None = None

    @property
    def energy_wh(self) -> float:
        """Energy in watt hours."""
        return self.energy_j / 3600

    @property
    def energy_per_request_j(self) -> float | None:
        """Energy of a served request; None where none was."""
        served = self.requests - self.rejected_requests
        return self.energy_j / served if served else None


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

    @property
    def run(self) -> RunEstimate:
        """The run as the requests arrive; all at once where no arrivals are known."""
        found = self.served or self.offline
        assert found is not None
        return found


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
        estimates = {one.engine: one for one in reversed(self.estimates)}
        if engine not in estimates:
            raise UsageError.unknown("estimated engine", engine, [*reversed(estimates)], code="unknown-name")
        return estimates[engine]
