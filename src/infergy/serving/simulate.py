"""Serve requests in simulation: scheduler × step cost × clock → a run."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from infergy.errors import DataError, UsageError
from infergy.serving.arrivals import Arrivals
from infergy.serving.config import EngineConfig
from infergy.serving.prefixes import PrefixBlocks, shared_paths
from infergy.serving.replica import ENTRY, Replica, Server, StepCost
from infergy.serving.run import Booleans, EnergySplit, Floats, Ints, Run, RunCounts, ServedRequests, Steps
from infergy.serving.scheduler import Scheduler
from infergy.serving.static import StaticConfig, StaticReplica

Router = Literal["round_robin", "least_loaded"]
ROUTERS: tuple[Router, ...] = ("round_robin", "least_loaded")

COLUMNS = (
    "start_s", "count", "decodes", "context", "prefill_tokens", "prefill_pairs", "prefills", "sampled", "kv_blocks",
    "waiting", "step_s",
)  # fmt: skip
LAYOUT = np.dtype([(name, kind) for name, kind in zip(COLUMNS, ENTRY.format[1:], strict=True)])


class RequestColumns(Protocol):
    """Requests as columns of equal length, in order of arrival (infergy.workload.requests.Requests).

    Those with `after` ≥ 0 and a gap arrive that long after the answer to the request of that index.
    """

    @property
    def input_tokens(self) -> Ints: ...  # noqa: D102
    @property
    def output_tokens(self) -> Ints: ...  # noqa: D102
    @property
    def arrival_s(self) -> Floats | None: ...  # noqa: D102
    @property
    def cached_tokens(self) -> Ints | None: ...  # noqa: D102
    @property
    def prefix_blocks(self) -> PrefixBlocks | None: ...  # noqa: D102
    @property
    def after(self) -> Ints | None: ...  # noqa: D102
    @property
    def gap_s(self) -> Floats | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is asked, checked: which requests arrive by themselves, which follow an answer, which are rejected."""

    inputs: list[int]
    outputs: list[int]
    arrival_s: Floats
    rejected: Booleans
    following: dict[int, list[tuple[int, float]]]


def simulate(
    requests: RequestColumns,
    config: EngineConfig | StaticConfig,
    cost: StepCost,
    *,
    replicas: int = 1,
    router: Router = "round_robin",
    skip: bool = True,
) -> Run:
    """Serve `requests` on `replicas` servers of one configuration.

    Requests are routed as they arrive, in turn or to the server with the fewest that wait or run; the next request of a
    session goes where the session is. Without arrival times all arrive at once. Without `skip` every step is simulated
    by itself, to the same result.

    Raises:
        UsageError: `replicas` or `router` cannot be meant.
        DataError: Arrival times do not ascend.
    """
    if replicas < 1:
        raise UsageError.bad_value("--replicas", replicas, "a number of at least 1")
    if router not in ROUTERS:
        raise UsageError.unknown("router", router, ROUTERS, code="unknown-name", option="--router")
    asked = _read(requests, config)
    padded = config.padded_sizes()
    times = ([nan] * len(asked.inputs), [nan] * len(asked.inputs))
    collecting = gc.isenabled()
    gc.disable()  # it would visit the lists of a million requests again and again
    try:
        servers = _servers(requests, asked, config, cost, replicas, times, padded, skip=skip)
        _route(servers, asked, router)
    finally:
        if collecting:
            gc.enable()
    return _conclude(requests, asked, cost, times, _gather(asked, servers, padded))


def _servers(
    requests: RequestColumns,
    asked: _Asked,
    config: EngineConfig | StaticConfig,
    cost: StepCost,
    replicas: int,
    times: tuple[list[float], list[float]],
    padded: Sequence[int],
    *,
    skip: bool,
) -> list[Server]:
    rejected = asked.rejected.tolist() if asked.following else ()
    arrivals = [Arrivals(cost.intake_s, cost.intake_gap_s, asked.following, rejected) for _ in range(replicas)]
    if isinstance(config, StaticConfig):
        return [StaticReplica(asked.inputs, asked.outputs, config, cost, own, *times) for own in arrivals]
    limits, paths, cached = config.limits, None, None
    if requests.prefix_blocks is not None and limits.enable_prefix_caching:
        paths = shared_paths(requests.prefix_blocks, requests.input_tokens, limits.block_size)
    elif requests.cached_tokens is not None:
        hits = np.flatnonzero(requests.cached_tokens)
        cached = dict(zip(hits.tolist(), requests.cached_tokens[hits].tolist(), strict=True))
    return [
        Replica(
            Scheduler(asked.inputs, asked.outputs, limits, paths, cached),
            cost,
            padded,
            own,
            *times,
            asynchronous=limits.async_scheduling,
            skip=skip,
        )
        for own in arrivals
    ]


def _read(requests: RequestColumns, config: EngineConfig | StaticConfig) -> _Asked:
    inputs, outputs = np.asarray(requests.input_tokens), np.asarray(requests.output_tokens)
    rejected = _rejected(inputs + outputs, config)
    if requests.arrival_s is None:
        arrival_s = np.zeros(inputs.size)
    else:
        arrival_s = np.array(requests.arrival_s, dtype=np.float64)
        wrong = np.flatnonzero(~((np.diff(arrival_s, prepend=0.0) >= 0) & (arrival_s < inf)))
        if wrong.size:
            message = f"request {wrong[0]} arrives at {arrival_s[wrong[0]]} s: times must ascend from 0 s or later"
            raise DataError(message, code="bad-trace", request=int(wrong[0]), time_s=float(arrival_s[wrong[0]]))
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


def _rejected(tokens: Ints, config: EngineConfig | StaticConfig) -> Booleans:
    """Requests longer than the context, or than all blocks: the last token is sampled, not kept."""
    rejected = np.zeros(tokens.size, dtype=bool)
    if config.max_model_len is not None:
        rejected |= tokens > config.max_model_len
    if not isinstance(config, StaticConfig):
        rejected |= -(-(tokens - 1) // config.limits.block_size) > config.limits.num_gpu_blocks - 1
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What the replicas leave behind."""

    steps: Steps
    replicas: int
    hit_tokens: Ints
    preemptions: Ints
    recomputed_tokens: int


def _gather(asked: _Asked, servers: list[Server], padded: Sequence[int]) -> _Outcome:
    """Read what the replicas noted, and empty their list: with a million requests they keep hundreds of MiB."""
    size = len(asked.inputs)
    hit_tokens, preemptions = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    for server in servers:
        for known, column in ((server.hit_tokens, hit_tokens), (server.preempted, preemptions)):
            column[list(known)] = list(known.values())
        followed_s = server.arrivals.followed_s
        asked.arrival_s[list(followed_s)] = list(followed_s.values())
    recomputed_tokens = sum(server.recomputed_tokens for server in servers)
    logs = [np.frombuffer(server.log, dtype=LAYOUT) for server in servers]
    servers.clear()
    log = logs[0]
    if len(logs) > 1:
        log = np.concatenate(logs)
        log = log[np.argsort(log["start_s"], kind="stable")]
    return _Outcome(
        steps=_steps(log, padded),
        replicas=len(logs),
        hit_tokens=hit_tokens,
        preemptions=preemptions,
        recomputed_tokens=recomputed_tokens,
    )


def _conclude(
    requests: RequestColumns,
    asked: _Asked,
    cost: StepCost,
    times: tuple[list[float], list[float]],
    outcome: _Outcome,
) -> Run:
    arrival_s = asked.arrival_s
    served = ServedRequests(
        input_tokens=np.asarray(requests.input_tokens),
        output_tokens=np.asarray(requests.output_tokens),
        arrival_s=arrival_s,
        first_token_s=np.array(times[0]),
        finished_s=np.array(times[1]),
        hit_tokens=outcome.hit_tokens,
        preemptions=outcome.preemptions,
        rejected=asked.rejected,
    )
    steps = outcome.steps
    step_energy_j = cost.step_energy_j(steps)
    start_s = float(np.nanmin(arrival_s)) if np.isfinite(arrival_s).any() else 0.0
    end_s = float(np.nanmax(served.finished_s)) if len(steps) else start_s
    busy_s = float(steps.duration_s.sum())
    idle_j = cost.idle_w * max(0.0, outcome.replicas * (end_s - start_s) - busy_s)
    return Run(
        requests=served,
        steps=steps,
        step_energy_j=step_energy_j,
        energy=_split(steps, step_energy_j, idle_j, outcome.recomputed_tokens),
        counts=_count(served, steps, outcome.recomputed_tokens),
        start_s=start_s,
        duration_s=end_s - start_s,
        busy_s=busy_s,
        replicas=outcome.replicas,
        idle_w=cost.idle_w,
    )


def _steps(log: NDArray[np.void], padded: Sequence[int]) -> Steps:
    columns = {name: log[name].astype(np.float64) for name in LAYOUT.names or ()}
    total = columns["decodes"] + columns["prefill_tokens"]
    table = np.asarray(padded, dtype=np.float64)
    fitting = table[np.minimum(total, table.size - 1).astype(np.int64)]
    return Steps(**columns, padded=np.where(total < table.size, fitting, 0.0))


def _split(steps: Steps, step_energy_j: Floats, idle_j: float, recomputed: int) -> EnergySplit:
    energy_j = step_energy_j * steps.count
    prefills, decodes = steps.prefills > 0, steps.decodes > 0
    prompts_j = float((energy_j * steps.prefill_tokens / (steps.prefill_tokens + steps.decodes)).sum())
    tokens = float(steps.prefill_tokens.sum())
    return EnergySplit(
        prefill_j=float(energy_j[prefills & ~decodes].sum()),
        decode_j=float(energy_j[~prefills].sum()),
        mixed_j=float(energy_j[prefills & decodes].sum()),
        idle_j=idle_j,
        recomputed_j=prompts_j * recomputed / tokens if tokens else 0.0,
    )


def _count(served: ServedRequests, steps: Steps, recomputed: int) -> RunCounts:
    arrived = served.arrival_s[np.isfinite(served.arrival_s)]
    # The queue when the last request came, that one included: arrived by then, not rejected, not yet in a step.
    waiting_last = 0
    if len(steps) and arrived.size:
        k = int(np.searchsorted(steps.start_s, arrived.max(), side="right"))
        waiting_last = int(steps.waiting[min(k, len(steps) - 1)])
    return RunCounts(
        requests=served.arrival_s.size,
        rejected_requests=int(served.rejected.sum()),
        finished_requests=int(np.isfinite(served.finished_s).sum()),
        preemptions=int(served.preemptions.sum()),
        hit_tokens=int(served.hit_tokens.sum()),
        recomputed_tokens=recomputed,
        peak_waiting=int(steps.waiting.max(initial=0)),
        waiting_at_last_arrival=waiting_last,
        peak_running=int((steps.decodes + steps.prefills).max(initial=0)),
        peak_kv_blocks=int(steps.kv_blocks.max(initial=0)),
    )
