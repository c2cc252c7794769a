"""A run: what a server did with requests, step by step, what became of each request, and its power over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from infergy.cost.step import Steps
from infergy.workload.requests import Window

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Columns = TypeVar("Columns", Steps, "ServedRequests")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedRequests:
    """What became of each request; times are NaN where there is none.

    Attributes:
        arrival_s: When it came; NaN if it never did, because no answer to the request before it came.
        first_token_s: End of the step that sampled its first token.
        finished_s: End of the step that sampled its last token.
        hit_tokens: Prompt tokens found in the prefix cache.
        preemptions: How often it lost its blocks.
        rejected: Longer than the context or than the whole cache: the engine rejects it.
    """

    input_tokens: Ints
    output_tokens: Ints
    arrival_s: Floats
    first_token_s: Floats
    finished_s: Floats
    hit_tokens: Ints
    preemptions: Ints
    rejected: Booleans


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Nearest rank."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Floats, weights: Floats) -> Percentiles | None:
        """Of values that each stand for as many as their weight; None if there are none."""
        kept = weights > 0
        if not kept.any():
            return None
        order = np.argsort(values[kept])
        ordered, sums = values[kept][order], np.cumsum(weights[kept][order])
        ranks = np.searchsorted(sums, np.array([0.5, 0.9, 0.99]) * sums[-1] * (1 - 1e-12))
        p50, p90, p99 = ordered[np.minimum(ranks, ordered.size - 1)].tolist()
        return cls(p50=p50, p90=p90, p99=p99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Latencies over requests; None where no request has one.

    Attributes:
        ttft_s: From arrival to the first token.
        tpot_s: From the first token to the last, by token after the first; requests with at least 2 output tokens.
        itl_s: Between two tokens of a request, over tokens: the time of a step, weighted by its decodes.
        e2e_s: From arrival to the last token.
    """

    ttft_s: Percentiles | None
    tpot_s: Percentiles | None
    itl_s: Percentiles | None
    e2e_s: Percentiles | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySplit:
    """Energy of a run by what the GPUs did; the four add up to `total_j`.

    Attributes:
        prefill_j: Steps that only prefill.
        decode_j: Steps that only decode.
        mixed_j: Steps with both.
        idle_j: Waiting, of all replicas, between the first arrival and the last token.
        recomputed_j: Part for tokens computed again after a preemption: their share of the tokens of prefills.
    """

    prefill_j: float
    decode_j: float
    mixed_j: float
    idle_j: float
    recomputed_j: float

    @classmethod
    def of(cls, steps: Steps, step_energy_j: Floats, idle_j: float, recomputed_tokens: int) -> EnergySplit:
        """Of steps, and of waiting."""
        energy_j = step_energy_j * steps.count
        prefills, decodes = steps.prefills > 0, steps.decodes > 0
        prompts_j = float((energy_j * steps.prefill_tokens / (steps.prefill_tokens + steps.decodes)).sum())
        tokens = float(steps.prefill_tokens.sum())
        return cls(
            prefill_j=float(energy_j[prefills & ~decodes].sum()),
            decode_j=float(energy_j[~prefills].sum()),
            mixed_j=float(energy_j[prefills & decodes].sum()),
            idle_j=idle_j,
            recomputed_j=prompts_j * recomputed_tokens / tokens if tokens else 0.0,
        )

    @property
    def total_j(self) -> float:
        """Of the run."""
        return self.prefill_j + self.decode_j + self.mixed_j + self.idle_j


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCounts:
    """What happened how often.

    Attributes:
        requests: Requests that were asked.
        rejected_requests: Of these, rejected: longer than the context or than the cache.
        finished_requests: Of these, answered; `finished_input_tokens` and `finished_output_tokens` are theirs.
        preemptions: How often requests lost their blocks.
        hit_tokens: Prompt tokens found in the prefix cache at a first admission.
        recomputed_tokens: Tokens computed again after a preemption.
        peak_waiting: Largest number of requests in the queues of all replicas, at the start of a step.
        waiting_at_last_arrival: The same when the last request came.
        peak_running: Largest batch of a step.
        peak_kv_blocks: Most blocks of a replica in use.
    """

    requests: int
    rejected_requests: int
    finished_requests: int
    finished_input_tokens: int
    finished_output_tokens: int
    preemptions: int
    hit_tokens: int
    recomputed_tokens: int
    peak_waiting: int
    waiting_at_last_arrival: int
    peak_running: int
    peak_kv_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """A run from the first arrival to the last token.

    Attributes:
        start_s: The first arrival.
        duration_s: Until the last token.
        busy_s: Seconds of steps, summed over replicas.
        replicas: Servers.
        idle_w: Watts of a replica that waits.
        step_energy_j: Energy of one step of each entry.
        request_energy_j: Of each request's part of the steps that it was in (`infergy.serving.shares`); None unless
            asked for.
    """

    requests: ServedRequests
    steps: Steps
    step_energy_j: Floats
    energy: EnergySplit
    counts: RunCounts
    start_s: float
    duration_s: float
    busy_s: float
    replicas: int
    idle_w: float
    request_energy_j: Floats | None = None

    @property
    def energy_j(self) -> float:
        """Of all GPUs, idle included."""
        return self.energy.total_j

    @property
    def idle_s(self) -> float:
        """Seconds without a step, summed over replicas."""
        return self.replicas * self.duration_s - self.busy_s

    def within(self, duration_s: float) -> Run:
        """The servers from 0 s until `duration_s`: steps up to then, and waiting; what became of requests stays."""
        begun = self.steps.start_s < duration_s
        step_energy_j = self.step_energy_j[begun]
        steps = Steps(**{column.name: getattr(self.steps, column.name)[begun] for column in fields(Steps)})
        share = np.minimum((duration_s - steps.start_s) / steps.duration_s, 1.0)
        steps = replace(steps, count=steps.count * share)
        busy_s = float(steps.duration_s.sum())
        idle_j = self.idle_w * (self.replicas * duration_s - busy_s)
        return replace(
            self,
            steps=steps,
            step_energy_j=step_energy_j,
            energy=EnergySplit.of(steps, step_energy_j, idle_j, self.counts.recomputed_tokens),
            start_s=0.0,
            duration_s=duration_s,
            busy_s=busy_s,
        )


def join_columns(parts: Sequence[Columns]) -> Columns:
    """Steps, or requests, of several runs one after the other."""
    if len(parts) == 1:
        return parts[0]
    columns = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(parts[0])}
    return type(parts[0])(**columns)


Runs = Sequence[tuple[Run, Window]]


def total(runs: Runs, figure: str) -> float:
    """Sum of a figure of runs, such as ``counts.requests``, each by its window's weight."""
    return float(np.array([window.weight for _, window in runs]) @ [attrgetter(figure)(run) for run, _ in runs])


def open_share(runs: Runs) -> float:
    """Share of the time in which requests still arrive and none waits: where it is 1, arrivals set a run's length."""
    open_s = 0.0
    for run, window in runs:
        arrivals, steps = run.requests.arrival_s, run.steps
        if not len(steps):
            continue
        span_s = float(np.nanmax(arrivals) - np.nanmin(arrivals))
        open_s += window.weight * span_s * float(steps.duration_s @ (steps.waiting == 0) / steps.duration_s.sum())
    total_s = total(runs, "duration_s")
    return min(1.0, open_s / total_s) if total_s else 0.0


def latency_of(runs: Runs) -> Latency:
    """Percentiles of the latencies of all requests, each counted by its window's weight."""
    r, steps = join_columns([run.requests for run, _ in runs]), steps_of(runs)
    weights = np.repeat([window.weight for _, window in runs], [run.requests.finished_s.size for run, _ in runs])
    weights = np.where(np.isfinite(r.finished_s), weights, 0.0)
    first, last, later = r.first_token_s - r.arrival_s, r.finished_s - r.arrival_s, r.output_tokens - 1
    return Latency(
        ttft_s=Percentiles.of(first, weights),
        tpot_s=Percentiles.of((last - first) / np.maximum(later, 1), weights * (later > 0)),
        itl_s=Percentiles.of(steps.step_s, steps.count * steps.decodes),
        e2e_s=Percentiles.of(last, weights),
    )


def steps_of(runs: Runs) -> Steps:
    """The steps of all windows, each entry counted by its window's weight."""
    if all(window.weight == 1 for _, window in runs):
        return join_columns([run.steps for run, _ in runs])
    return join_columns([replace(run.steps, count=run.steps.count * window.weight) for run, window in runs])


BINS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Means over equal parts of a run, in order; `power_w` times `bin_s`, summed, is the energy of the run.

    Attributes:
        bin_s: Seconds of a part.
        start_s: Where each begins, in seconds after the first arrival.
        power_w: Of all GPUs, idle ones included.
        running: Sequences in a step, summed over replicas; 0 while a replica is idle.
        waiting: Requests in the queues of all replicas.
    """

    bin_s: float
    start_s: tuple[float, ...]
    power_w: tuple[float, ...]
    running: tuple[float, ...]
    waiting: tuple[float, ...]


def timeline_of(run: Run, bins: int = BINS) -> Timeline:
    """Mean power, batch and queue of a run in `bins` parts; none of a run without a step."""
    steps, bins = run.steps, bins if len(run.steps) else 0
    edges = np.linspace(0.0, run.duration_s, bins + 1)
    begin_s = steps.start_s - run.start_s
    end_s = begin_s + steps.duration_s
    busy_w = _means(begin_s, end_s, run.step_energy_j / steps.step_s - run.idle_w, edges)
    queued = _means(begin_s, np.append(begin_s[1:], run.duration_s), steps.waiting, edges)
    running = _means(begin_s, end_s, steps.decodes + steps.prefills, edges)
    return Timeline(
        bin_s=run.duration_s / max(bins, 1),
        start_s=tuple(edges[:-1].tolist()),
        power_w=tuple((busy_w + run.replicas * run.idle_w).tolist()),
        running=tuple(running.tolist()),
        waiting=tuple(queued.tolist()),
    )


def _means(begin_s: Floats, end_s: Floats, rate: Floats, edges: Floats) -> Floats:
    """Mean between edges of a sum of rates, each from its begin to its end."""
    if edges.size < 2:
        return np.zeros(0)
    times = np.concatenate((begin_s, end_s))
    order = np.argsort(times, kind="stable")
    times, level = times[order], np.cumsum(np.concatenate((rate, -rate))[order])
    sums = np.append(0.0, np.cumsum(level[:-1] * np.diff(times)))
    means: Floats = np.diff(np.interp(edges, times, sums)) / np.diff(edges)
    return means
