"""How a server was used in a run: power, batches, queue, cache, what of it was measured, and whether it keeps up.

run ─▶ seconds from the last arrival until all requests have begun, and until all have ended ─▶ too many?
more replicas, served in simulation ◀─┘
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from infergy.cost.step import sums_of
from infergy.cost.table import box_of
from infergy.estimates.servers import OpenServer
from infergy.serving.config import EngineConfig
from infergy.serving.run import Run, Runs, Timeline, steps_of, timeline_of, total
from infergy.units import count_of, format_duration
from infergy.workload.requests import Requests, Window

DAY_S = 86_400
SLACK = 1e-6
"""Of the measured range: sums are means over entries."""
SHORTEST_S, BEGUN, ENDED = 5.0, 0.1, 1.0
"""A server does not keep up if after the last arrival it takes more than a tenth of the span of arrivals until each
request has its first token, or more than all of the span until each has its last; either at least `SHORTEST_S`, and
beyond what the request with the longest output takes alone. The time that a queue needs grows with the span if arrivals
exceed what the server can, and does not if they do not. Rule and figures are this project's own."""
FEWEST = 50
"""Fewer served requests, in all windows that are late, are no load that a server keeps up with or not."""
TRIES, GROWTH = 8, 1.25
"""How many numbers of replicas are simulated, and the factor from one to the next."""
MOST_TRIED = 200_000
"""Of more requests the number of replicas is computed only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How the server was used.

    Attributes:
        power_w: Mean power of all GPUs, idle ones included.
        daily_j: Energy of a day at this load. None where the load has no length: all at once, at one instant, of a
            server that cannot keep up, or where the answers take longer than the arrivals.
        busy_share: Share of time in which a replica computes, mean over replicas.
        mean_batch: Sequences that decode in a step, mean over decode steps' time.
        peak_running: Most sequences in a step of one replica.
        peak_waiting: Most requests in the queue; `waiting_at_last_arrival` when the last one came. None where latencies
            are not known.
        peak_kv_share: Largest share of the KV cache in use.
        hit_tokens: Prompt tokens found in the prefix cache.
        mfu: FLOPs over the dense peak and time, idle included.
        roofline_share: Least time of the steps by bytes or FLOPs, over their time.
        timeline: Power, batch and queue over time; None where not asked for, or of a trace in several windows.
    """

    power_w: float
    daily_j: float | None
    busy_share: float
    mean_batch: float
    peak_running: int
    peak_waiting: int | None
    waiting_at_last_arrival: int | None
    peak_kv_share: float
    hit_tokens: int
    mfu: float
    roofline_share: float
    timeline: Timeline | None = None


def measured_share(runs: Sequence[tuple[Run, Window]], server: OpenServer, energy_j: float) -> float:
    """Share of the energy in steps inside the range that was measured of this server."""
    if server.measured is None:
        return 0.0
    inside = 0.0
    for run, window in runs:
        box = box_of(run.steps)
        low, high = np.array(server.measured.low), np.array(server.measured.high)
        within = ((box >= low * (1 - SLACK)) & (box <= high * (1 + SLACK))).all(axis=1)
        inside += window.weight * float((run.step_energy_j * run.steps.count)[within].sum())
    return inside / energy_j


def load_of(
    runs: Runs, server: OpenServer, energy_j: float, *, span_s: float | None, knows_queue: bool, bins: int = 0
) -> Load:
    """How the server was used.

    Args:
        runs: Of all windows.
        server: Which serves.
        energy_j: Of the runs.
        span_s: Length of a load that lasts: from the first arrival to the last; None if it does not.
        knows_queue: Whether the queues of the runs are those of the trace.
        bins: Parts of the run of which power, batch and queue are asked for.
    """
    cost, steps = server.cost, steps_of(runs)
    duration_s, busy_s = total(runs, "duration_s"), total(runs, "busy_s")
    all_s = duration_s * runs[0][0].replicas
    decode_s = steps.duration_s * (steps.decodes > 0)
    # All but the null block; static batches log none.
    blocks = server.config.limits.num_gpu_blocks - 1 if isinstance(server.config, EngineConfig) else 1
    counts = [run.counts for run, _ in runs]
    return Load(
        power_w=energy_j / duration_s,
        daily_j=energy_j / duration_s * DAY_S if span_s and duration_s <= 2 * span_s else None,
        busy_share=busy_s / all_s,
        mean_batch=float(decode_s @ steps.decodes) / (float(decode_s.sum()) or 1.0),
        peak_running=max(count.peak_running for count in counts),
        peak_waiting=max(count.peak_waiting for count in counts) if knows_queue else None,
        waiting_at_last_arrival=max(count.waiting_at_last_arrival for count in counts) if knows_queue else None,
        peak_kv_share=max(count.peak_kv_blocks for count in counts) / blocks,
        hit_tokens=round(total(runs, "counts.hit_tokens")),
        mfu=float(steps.count @ cost.work_of(sums_of(steps))[0]) / (cost.peak_flops * all_s),
        roofline_share=float(steps.count @ cost.floor_s(steps)) / busy_s,
        timeline=timeline_of(runs[0][0], bins) if bins and len(runs) == 1 else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Late:
    """A run after its last arrival.

    Attributes:
        span_s: From the first arrival to the last.
        begun_s: From the last arrival to the last first token; `ended_s` to the last token.
        alone_s: What the request with the longest output takes alone.
    """

    span_s: float
    begun_s: float
    ended_s: float
    alone_s: float = 0.0

    @classmethod
    def of(cls, run: Run, alone_s: float = 0.0) -> _Late:
        served = run.requests
        first_s, last_s = float(np.nanmin(served.arrival_s)), float(np.nanmax(served.arrival_s))
        begun_s, ended_s = (float(np.nanmax(times)) - last_s for times in (served.first_token_s, served.finished_s))
        return cls(span_s=last_s - first_s, begun_s=begun_s, ended_s=ended_s, alone_s=alone_s)

    @property
    def share(self) -> float:
        """Of the time that is allowed; above 1 the server does not keep up."""
        pairs = (self.begun_s, BEGUN), (self.ended_s, ENDED)
        return max(late_s / (max(SHORTEST_S, share * self.span_s) + self.alone_s) for late_s, share in pairs)

    @property
    def factor(self) -> float:
        """How many times as fast a server would keep up."""
        begun_s = self.span_s + SHORTEST_S + self.alone_s
        ended_s = self.span_s + max(SHORTEST_S, self.span_s) + self.alone_s
        return max((self.span_s + self.begun_s) / begun_s, (self.span_s + self.ended_s) / ended_s)


def overload_of(runs: Runs, server: OpenServer, *, advise: bool = True) -> str | None:
    """What would hold a load that a server cannot keep up with; None if it keeps up in each window.

    With `advise` the number of replicas is found, in up to `TRIES` more simulations.
    """
    late = [
        (own, window.requests, run.counts.finished_requests)
        for run, window in runs
        if run.counts.finished_requests and _Late.of(run).share > 1
        if (own := _Late.of(run, _alone_s(run, window.requests, server))).share > 1
    ]
    if sum(finished for *_, finished in late) < FEWEST:
        return None
    worst = max((own for own, *_ in late), key=lambda own: own.share)
    where = "" if len(runs) == 1 else f" in {len(late)} of {len(runs)} windows"
    waiting = max(run.counts.waiting_at_last_arrival for run, _ in runs)
    count = f"{_replicas(late, server)} replicas" if advise else "more replicas"
    return (
        f"it cannot keep up{where}: {count_of(waiting, 'request')} in the queue at the last arrival, the last answer "
        f"{format_duration(worst.ended_s)} after it; {count} would keep up (--replicas), "
        "or more GPUs a replica (--tensor-parallel-size)"
    )


def _replicas(late: list[tuple[_Late, Requests, int]], server: OpenServer) -> str:
    """How many replicas would keep up: found by serving with them, since larger batches are more efficient."""
    count = server.spec.replicas
    count = max(count + 1, math.ceil(count * max(own.factor for own, *_ in late)))
    if sum(len(requests) for _, requests, _ in late) > MOST_TRIED:
        return f"about {count}"
    for _ in range(TRIES):
        larger = replace(server, spec=replace(server.spec, replicas=count))
        if all(_Late.of(larger.serve(requests), own.alone_s).share <= 1 for own, requests, _ in late):
            return str(count)
        tried, count = count, math.ceil(count * GROWTH)
    return f"more than {tried}"


def _alone_s(run: Run, requests: Requests, server: OpenServer) -> float:
    outputs = np.where(run.requests.rejected, 0, run.requests.output_tokens)
    return server.serve(requests.take(np.array([outputs.argmax()])).all_at_once()).duration_s
