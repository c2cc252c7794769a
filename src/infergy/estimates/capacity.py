"""The highest request rate that a configuration serves within limits, and how many replicas each hour of a trace needs.

    trace × factor ─▶ windows ─▶ served ─▶ over a limit, or overloaded? ─▶ bisection ─▶ Capacity
    busiest hour ─▶ capacity of one replica ─▶ replicas by hour, each hour served with its own ─▶ Schedule

The rate is changed by the time between arrivals: bursts stay as they are, relative to the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from infergy.cost.table import Table
from infergy.estimates.estimate import serve_sample
from infergy.estimates.latency import OVERLOADED, Limits
from infergy.estimates.load import overload_of
from infergy.estimates.search import COARSE, SHORTEST_S, Asked, thin
from infergy.estimates.servers import OpenServer, ServerSpec, open_server
from infergy.estimates.vllm_command import label_of
from infergy.serving.run import Latency, Runs, latency_of, total
from infergy.workload.requests import Requests, Sample, whole

AT_A_RATE, IN_AN_HOUR = 20_000, COARSE
"""Requests that a rate, or an hour, is simulated with: windows of 2,500 put the highest rate of the Azure conversation
hour 40 % too high."""
TRIES = 8
"""Numbers of replicas that are tried for an hour, beyond what its rate asks for."""
LOWEST, HIGHEST = 1 / 64, 4096.0
"""Factors on the rate of the trace, between which the highest is searched for."""
FIRST = 1 / 4
"""The factor that a search begins with."""
WITHIN = 0.03
"""Of the highest rate: how close to it a bisection ends."""

HOUR_S = 3600.0
FEWEST_HOURS = 2
LOAD_S, LOAD_J = 47.3, 4_912.0
"""Seconds and energy of one GPU from starting a server until it answers: vLLM 0.25 with llama-3.1-8b in bfloat16 on an
H200, its compile caches warm (field `loading` of the last row of benchmarks/replays/h200-4-rows.jsonl)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePoint:
    """A configuration at one rate of arrivals.

    Attributes:
        rate_per_s: Mean rate.
        energy_per_request_j: Of all GPUs, idle time included.
        power_w: Mean, of all GPUs.
        ttft_p99_s: None where no request has one; `tpot_p99_s` the same.
        breaks: Limits that it breaks, and ``overload`` where it cannot keep up.
    """

    rate_per_s: float
    energy_per_request_j: float
    power_w: float
    ttft_p99_s: float | None
    tpot_p99_s: float | None
    breaks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """An hour of a trace and the replicas that serve it.

    Attributes:
        start_s: After the first arrival.
        rate_per_s: Mean rate of its arrivals.
        replicas: 0 where no request arrives.
        energy_j: Of its replicas in the hour, without loading.
        constant_j: Of all replicas of the configuration in the hour.
    """

    start_s: float
    rate_per_s: float
    replicas: int
    energy_j: float
    constant_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Replicas of a configuration by hour, compared with all of them all the time.

    Attributes:
        replicas: Of the configuration: the most of an hour.
        energy_j: Of all hours, loading included; `loading_j` of loading alone.
        constant_j: With all replicas in every hour.
        load_s: How long before its hour a replica is started.
    """

    hours: tuple[Hour, ...]
    replicas: int
    energy_j: float
    loading_j: float
    constant_j: float
    load_s: float
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The highest rate of requests like those of a trace that a configuration serves within limits.

    Attributes:
        label: Of the configuration.
        rate_per_s: Mean rate; None with `reason`.
        binds: What breaks at a rate above it: limits, and ``overload``; none where the trace is too short for a
            higher one.
        curve: Of all rates that were simulated, ascending.
        schedule: Replicas by hour; None with `schedule_reason`.
    """

    label: str
    rate_per_s: float | None = None
    binds: tuple[str, ...] = ()
    curve: tuple[RatePoint, ...] = ()
    reason: str | None = None
    schedule: Schedule | None = None
    schedule_reason: str | None = None


def capacity_of(sample: Sample, spec: ServerSpec, table: Table, limits: Limits) -> Capacity:
    """Search for the highest rate of a sample within limits, and for the replicas of each of its hours.

    Raises:
        UsageError: The configuration cannot be opened.
    """
    reason, server = _no_rates(sample), open_server(spec, table)
    if reason is not None:
        return Capacity(label=label_of(server), reason=reason, schedule_reason=reason)
    requests = sample.windows[0].requests
    found = _highest(requests, server, limits)
    if (requests.duration_s or 0.0) < FEWEST_HOURS * HOUR_S:
        return replace(found, schedule_reason=f"the trace is shorter than {FEWEST_HOURS} hours")
    return replace(found, schedule=schedule_of(requests, server, limits), schedule_reason=None)


def serve_rates(spec: ServerSpec, asked: Asked) -> Capacity:
    """What a `Pool` calls."""
    return capacity_of(asked.sample, spec, asked.table, asked.limits)


def _no_rates(sample: Sample) -> str | None:
    """Why the requests of a sample cannot arrive faster or slower; None if they can."""
    requests = sample.windows[0].requests
    if not sample.is_whole:
        return "the trace is longer than is simulated whole: choose a part with --from and --for"
    if requests.gap_s is not None:
        return "requests arrive after the answers of their sessions, at no rate of their own"
    if requests.arrival_s is None:
        return f"arrivals are not known: {requests.order_reason}"
    return None if requests.rate_per_s else "all requests arrive at one instant"


def _highest(requests: Requests, server: OpenServer, limits: Limits) -> Capacity:
    label, span_s = label_of(server), requests.duration_s
    assert span_s is not None
    # In less time than a queue needs to grow, overload is not seen.
    most = min(HIGHEST, max(1.0, span_s / SHORTEST_S))
    points: dict[float, RatePoint] = {}

    def keeps(factor: float) -> bool:
        points[factor] = _point(requests, server, limits, factor)
        return not points[factor].breaks

    factor = FIRST
    while not keeps(factor) and factor > LOWEST:
        factor /= 2
    low, high = factor, 2 * factor
    while not points[low].breaks and high not in points and keeps(high):
        low, high = high, min(2 * high, most)
    while not points[low].breaks and high > low * (1 + WITHIN):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if keeps(middle) else (low, middle)
    curve = tuple(points[known] for known in sorted(points))
    if points[low].breaks:
        broken = " and ".join(name.removesuffix("_s").replace("_", " ") for name in points[low].breaks)
        reason = f"{broken} even at {points[low].rate_per_s:.3g} requests/s"
        return Capacity(label=label, rate_per_s=None, binds=points[low].breaks, curve=curve, reason=reason)
    binds = points[high].breaks if high > low else ()
    return Capacity(label=label, rate_per_s=points[low].rate_per_s, binds=binds, curve=curve)


def _point(requests: Requests, server: OpenServer, limits: Limits, factor: float) -> RatePoint:
    assert requests.rate_per_s is not None
    runs, latency, breaks = _serve(requests.window(speed=factor), server, limits, AT_A_RATE)
    energy_j = total(runs, "energy.total_j")
    return RatePoint(
        rate_per_s=factor * requests.rate_per_s,
        energy_per_request_j=energy_j / total(runs, "counts.requests"),
        power_w=energy_j / total(runs, "duration_s"),
        ttft_p99_s=None if latency.ttft_s is None else latency.ttft_s.p99,
        tpot_p99_s=None if latency.tpot_s is None else latency.tpot_s.p99,
        breaks=breaks,
    )


def _serve(
    requests: Requests, server: OpenServer, limits: Limits, at_most: int
) -> tuple[Runs, Latency, tuple[str, ...]]:
    """Windows of requests as served, their latencies, and what of the limits they break."""
    runs = serve_sample(thin(whole(requests), at_most), server)
    latency = latency_of(runs)
    overloaded = [OVERLOADED] if overload_of(runs, server, advise=False) is not None else []
    return runs, latency, (*limits.excess(latency), *overloaded)


def schedule_of(requests: Requests, server: OpenServer, limits: Limits) -> Schedule:
    """Replicas of a configuration by hour: as few as keep the limits in that hour, at most all.

    The first hour's are loaded when it begins. The last hour is what is left, from half an hour on.
    """
    arrival_s, span_s, most = requests.arrival_s, requests.duration_s, server.spec.replicas
    assert arrival_s is not None
    assert span_s is not None
    starts_s = [HOUR_S * k for k in range(round(span_s / HOUR_S))]
    edges = [*arrival_s.searchsorted(starts_s), len(requests)]
    parts = [
        requests.take(np.arange(*ends)).starting_at(at_s) for at_s, ends in zip(starts_s, pairwise(edges), strict=True)
    ]
    busiest = max(parts, key=len)
    each = _highest(busiest, _with(server, 1), limits).rate_per_s if most > 1 else None
    hours = []
    for at_s, until_s, part in zip(starts_s, [*starts_s[1:], span_s], parts, strict=True):
        rate_per_s = len(part) / (until_s - at_s)
        few = most if each is None else min(most, math.ceil(rate_per_s / each))
        count, energy_j, all_j = _hour(part, server, limits, few, until_s - at_s)
        hours.append(Hour(start_s=at_s, rate_per_s=rate_per_s, replicas=count, energy_j=energy_j, constant_j=all_j))
    started = sum(max(0, after.replicas - before.replicas) for before, after in pairwise(hours))
    loading_j = started * server.setup.tensor_parallel * LOAD_J
    return Schedule(
        hours=tuple(hours),
        replicas=most,
        energy_j=sum(hour.energy_j for hour in hours) + loading_j,
        loading_j=loading_j,
        constant_j=sum(hour.constant_j for hour in hours),
        load_s=LOAD_S,
        notes=(
            "GPUs of unloaded replicas are not counted",
            f"loading takes {LOAD_S:.0f} s and {LOAD_J / 1e3:.1f} kJ for each GPU: measured with llama-3.1-8b on "
            "one h200, with warm compile caches",
        ),
    )


def _hour(
    requests: Requests, server: OpenServer, limits: Limits, few: int, length_s: float
) -> tuple[int, float, float]:
    """The fewest replicas from `few` on that keep the limits, their energy in the hour, and that of all replicas."""
    most, idle_w = server.spec.replicas, server.cost.idle_w
    if not len(requests):
        return 0, 0.0, most * idle_w * length_s

    def serve(count: int) -> tuple[float, bool]:
        runs, _, breaks = _serve(requests, _with(server, count), limits, IN_AN_HOUR)
        # Of windows the energy beyond idle is that of their requests, idle energy that of the hour.
        waiting_j = count * idle_w * total(runs, "duration_s")
        return total(runs, "energy.total_j") - waiting_j + count * idle_w * length_s, bool(breaks)

    constant_j, _ = serve(most)
    for count in range(few, most, max(1, most // TRIES)):
        energy_j, is_broken = serve(count)
        if not is_broken:
            return count, energy_j, constant_j
    return most, constant_j, constant_j


def _with(server: OpenServer, replicas: int) -> OpenServer:
    return replace(server, spec=replace(server.spec, replicas=replicas))
