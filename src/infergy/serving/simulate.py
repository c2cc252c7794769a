"""Serve requests in simulation: scheduler × step cost × clock → a run."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from infergy.cost.step import Steps
from infergy.errors import UsageError
from infergy.records.cell import Links
from infergy.serving.blocks import blocks_of_prefixes, shared_paths
from infergy.serving.config import EngineConfig, StaticConfig
from infergy.serving.replica import ENTRY, Arrivals, Replica, StaticReplica, StepCost
from infergy.serving.run import Booleans, EnergySplit, Floats, Run, RunCounts, ServedRequests
from infergy.serving.scheduler import Scheduler
from infergy.workload.requests import Requests

Server = Replica | StaticReplica
Kinds = tuple[type[StaticReplica], type[Replica], type[Scheduler]]
Router = Literal["round_robin", "least_loaded"]
ROUTERS: tuple[Router, ...] = ("round_robin", "least_loaded")

COLUMNS = (
    "start_s", "count", "decodes", "context", "prefill_tokens", "prefill_pairs", "prefills", "sampled", "kv_blocks",
    "waiting", "step_s",
)  # fmt: skip
LAYOUT = np.dtype([(name, kind) for name, kind in zip(COLUMNS, ENTRY.format[1:], strict=True)])


def requests_of_lengths(
    source: str, lengths: Sequence[tuple[int, int]], arrival_s: Sequence[float] = (), links: Links | None = None
) -> Requests:
    """Requests of so many input and output tokens, which arrive in ascending order at `arrival_s`, or at once."""
    inputs, outputs = np.array(lengths, dtype=np.int64).reshape(-1, 2).T
    timed, links = any(arrival_s), links or Links()
    return Requests(
        source=source,
        input_tokens=inputs,
        output_tokens=outputs,
        arrival_s=np.array(arrival_s) if timed else None,
        order_reason=None if timed else "all at once",
        prefix_blocks=blocks_of_prefixes(links.prefixes, links.block_tokens) if links.block_tokens else None,
        after=np.array(links.after) if links.after else None,
        gap_s=np.array(links.gap_s) if links.after else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is asked, checked: which requests arrive by themselves, which follow an answer, which are rejected."""

    inputs: list[int]
    outputs: list[int]
    arrival_s: Floats
    rejected: Booleans
    following: dict[int, list[tuple[int, float]]]


def simulate(
    requests: Requests,
    config: EngineConfig | StaticConfig,
    cost: StepCost,
    *,
    replicas: int = 1,
    router: Router = "round_robin",
    skip: bool = True,
    shares: bool = False,
) -> Run:
    """Serve `requests` on `replicas` servers of one configuration.

    Requests are routed as they arrive, in turn or to the server with the fewest that wait or run; the next request of a
    session goes where the session is. Without arrival times all arrive at once. Without `skip` every step is simulated
    by itself, to the same result. With `shares` the run has the energy of each request.

    Raises:
        UsageError: `replicas` or `router` cannot be meant.
    """
    if replicas < 1:
        raise UsageError.bad_value("--replicas", replicas, "a number of at least 1")
    if router not in ROUTERS:
        raise UsageError.unknown("router", router, ROUTERS, code="unknown-name", option="--router")
    kinds: Kinds = (StaticReplica, Replica, Scheduler)
    if shares:
        from infergy.serving.shares import LOGGED, request_shares

        kinds = LOGGED
    asked = _read(requests, config)
    padded = config.padded_sizes()
    times = ([nan] * len(asked.inputs), [nan] * len(asked.inputs))
    collecting = gc.isenabled()
    gc.disable()  # it would visit the lists of a million requests again and again
    try:
        servers = _servers(requests, asked, config, cost, replicas, times, padded, kinds, skip=skip)
        _route(servers, asked, router)
    finally:
        if collecting:
            gc.enable()
    request_energy_j = np.zeros(len(asked.inputs))
    for server in servers if shares else ():
        steps = _steps([np.frombuffer(server.log, dtype=LAYOUT)], padded)
        request_energy_j += request_shares(server, cost, steps, request_energy_j.size)
    run = _conclude(requests, asked, cost, times, servers, padded, is_static=isinstance(config, StaticConfig))
    return replace(run, request_energy_j=request_energy_j) if shares else run


def _servers(
    requests: Requests,
    asked: _Asked,
    config: EngineConfig | StaticConfig,
    cost: StepCost,
    replicas: int,
    times: tuple[list[float], list[float]],
    padded: Sequence[int],
    kinds: Kinds,
    *,
    skip: bool,
) -> list[Server]:
    static, replica, scheduler = kinds
    rejected = asked.rejected.tolist() if asked.following else ()
    arrivals = [Arrivals(cost.intake_s, cost.intake_gap_s, asked.following, rejected) for _ in range(replicas)]
    if isinstance(config, StaticConfig):
        return [static(asked.inputs, asked.outputs, config, cost, own, *times) for own in arrivals]
    limits, paths, cached = config.limits, None, None
    if requests.prefix_blocks is not None and limits.enable_prefix_caching:
        paths = shared_paths(requests.prefix_blocks, requests.input_tokens, limits.block_size)
    elif requests.cached_tokens is not None:
        hits = np.flatnonzero(requests.cached_tokens)
        cached = dict(zip(hits.tolist(), requests.cached_tokens[hits].tolist(), strict=True))
    return [
        replica(
            scheduler(asked.inputs, asked.outputs, limits, paths, cached),
            cost,
            padded,
            own,
            *times,
            asynchronous=limits.async_scheduling,
            skip=skip,
        )
        for own in arrivals
    ]


def _read(requests: Requests, config: EngineConfig | StaticConfig) -> _Asked:
    inputs, outputs = np.asarray(requests.input_tokens), np.asarray(requests.output_tokens)
    rejected = rejected_of(requests, config)
    arrival_s = np.zeros(inputs.size) if requests.arrival_s is None else np.array(requests.arrival_s, dtype=float)
    following: dict[int, list[tuple[int, float]]] = {}
    if requests.after is not None and requests.gap_s is not None:
        followers = np.flatnonzero(requests.after >= 0)
        arrival_s[followers] = nan
        rows = (followers, requests.after[followers], requests.gap_s[followers])
        for follower, before, gap_s in zip(*(column.tolist() for column in rows), strict=True):
            following.setdefault(before, []).append((follower, gap_s))
    return _Asked(
        inputs=inputs.tolist(), outputs=outputs.tolist(), arrival_s=arrival_s, rejected=rejected, following=following
    )


def rejected_of(requests: Requests, config: EngineConfig | StaticConfig) -> Booleans:
    """Which are longer than the context, or than the memory: of blocks, the last token is sampled, not kept."""
    inputs, outputs = np.asarray(requests.input_tokens), np.asarray(requests.output_tokens)
    tokens = inputs + outputs
    rejected = np.zeros(tokens.size, dtype=bool)
    if config.max_model_len is not None:
        rejected |= tokens > config.max_model_len
    if not isinstance(config, StaticConfig):
        rejected |= -(-(tokens - 1) // config.limits.block_size) > config.limits.num_gpu_blocks - 1
    elif config.fits is not None and not rejected.all():
        kept = ~rejected
        if config.fits(1, int(inputs[kept].max()), int(outputs[kept].max())) < 1:
            pairs = zip(inputs[kept].tolist(), outputs[kept].tolist(), strict=True)
            rejected[kept] = [config.fits(1, *lengths) < 1 for lengths in pairs]
    return rejected


def _route(servers: Sequence[Server], asked: _Asked, router: Router) -> None:
    """Give each request that arrives by itself to a server, and serve."""
    arrival_s, rejected = asked.arrival_s, asked.rejected
    if asked.following:  # who follows a rejected request does not wait for its answer
        pending = np.flatnonzero(rejected & np.isfinite(arrival_s)).tolist()
        while pending:
            request = pending.pop()
            for follower, gap_s in asked.following.get(request, ()):
                arrival_s[follower] = arrival_s[request] + gap_s
                if rejected[follower]:
                    pending.append(follower)
    chosen = np.flatnonzero(~rejected & np.isfinite(arrival_s))
    chosen = chosen[np.argsort(arrival_s[chosen], kind="stable")]
    if router == "least_loaded" and len(servers) > 1:
        for request in chosen.tolist():
            for server in servers:
                server.run(float(arrival_s[request]))
            min(servers, key=lambda server: server.load).arrivals.add(request, float(arrival_s[request]))
    else:
        for k, server in enumerate(servers):
            own = chosen[k :: len(servers)]
            server.arrivals.add_all(own.tolist(), arrival_s[own])
    for server in servers:
        server.run()


def _conclude(
    requests: Requests,
    asked: _Asked,
    cost: StepCost,
    times: tuple[list[float], list[float]],
    servers: list[Server],
    padded: Sequence[int],
    *,
    is_static: bool,
) -> Run:
    """The run that replicas logged; their list is emptied: with a million requests they keep hundreds of MiB."""
    arrival_s, size, replicas = asked.arrival_s, len(asked.inputs), len(servers)
    hit_tokens, preemptions = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    for server in servers:
        for known, column in (
            (server.hit_tokens, hit_tokens),
            (server.preempted, preemptions),
            (server.arrivals.followed_s, arrival_s),
        ):
            column[list(known)] = list(known.values())
    recomputed = sum(server.recomputed_tokens for server in servers)
    logs = [np.frombuffer(server.log, dtype=LAYOUT) for server in servers]
    servers.clear()
    steps = _steps(logs, padded)
    served = ServedRequests(
        input_tokens=np.asarray(requests.input_tokens),
        output_tokens=np.asarray(requests.output_tokens),
        arrival_s=arrival_s,
        first_token_s=np.array(times[0]),
        finished_s=np.array(times[1]),
        hit_tokens=hit_tokens,
        preemptions=preemptions,
        rejected=asked.rejected,
    )
    step_energy_j = cost.step_energy_j(steps)
    start_s = float(np.nanmin(arrival_s)) if np.isfinite(arrival_s).any() else 0.0
    end_s = float(np.nanmax(served.finished_s)) if len(steps) else start_s
    busy_s = float(steps.duration_s.sum())
    idle_j = cost.idle_w * max(0.0, replicas * (end_s - start_s) - busy_s)
    return Run(
        requests=served,
        steps=steps,
        step_energy_j=step_energy_j,
        energy=EnergySplit.of(steps, step_energy_j, idle_j, recomputed),
        counts=_count(served, steps, recomputed, is_static=is_static),
        start_s=start_s,
        duration_s=end_s - start_s,
        busy_s=busy_s,
        replicas=replicas,
        idle_w=cost.idle_w,
    )


def _steps(logs: list[NDArray[np.void]], padded: Sequence[int]) -> Steps:
    """The entries of all replicas by their time; `logs` is emptied."""
    log = logs[0] if len(logs) == 1 else np.concatenate(logs)
    if len(logs) > 1:
        log = log[np.argsort(log["start_s"], kind="stable")]
        queued = np.zeros(len(log), dtype=np.int64)
        for own in logs:  # of each replica by its last step; before its first step nothing waits
            last = np.searchsorted(own["start_s"], log["start_s"], side="right")
            queued += np.append(0, own["waiting"])[last]
        log["waiting"] = queued
    logs.clear()
    columns = {name: log[name].astype(np.float64) for name in LAYOUT.names or ()}
    total = columns["decodes"] + columns["prefill_tokens"]
    table = np.asarray(padded, dtype=np.float64)
    fitting = table[np.minimum(total, table.size - 1).astype(np.int64)]
    return Steps(**columns, padded=np.where(total < table.size, fitting, 0.0))


def _count(served: ServedRequests, steps: Steps, recomputed: int, *, is_static: bool) -> RunCounts:
    arrived = served.arrival_s[np.isfinite(served.arrival_s)]
    # The queue when the last request came, that one included: arrived by then, not rejected, not yet in a step.
    waiting_last = 0
    if len(steps) and arrived.size and is_static:  # batches note their queue when they form: those that are in none
        started = steps.prefills * steps.count
        waiting_last = int((~served.rejected).sum() - started[steps.start_s <= arrived.max()].sum())
    elif len(steps) and arrived.size:
        k = int(np.searchsorted(steps.start_s, arrived.max(), side="right"))
        waiting_last = int(steps.waiting[min(k, len(steps) - 1)])
    done = np.isfinite(served.finished_s)
    return RunCounts(
        requests=served.arrival_s.size,
        rejected_requests=int(served.rejected.sum()),
        finished_requests=int(done.sum()),
        finished_input_tokens=int(served.input_tokens[done].sum()),
        finished_output_tokens=int(served.output_tokens[done].sum()),
        preemptions=int(served.preemptions.sum()),
        hit_tokens=int(served.hit_tokens.sum()),
        recomputed_tokens=recomputed,
        peak_waiting=max(waiting_last, int(steps.waiting.max(initial=0))),
        waiting_at_last_arrival=waiting_last,
        peak_running=int((steps.decodes + steps.prefills).max(initial=0)),
        peak_kv_blocks=int(steps.kv_blocks.max(initial=0)),
    )
