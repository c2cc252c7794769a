"""Where the energy of a run goes: the run that `estimate` reports, split in three ways that each add up to it.

    by time      what each step's time is spent on, at the power that is drawn meanwhile
    by source    the terms of the step-cost model: base power × time, and energy per byte and per FLOP
    by activity  prefill, decode, both in one step, idle

A step's time is the chain that the model takes it from, so its parts are never negative: arithmetic at the dense peak;
what reading memory at full bandwidth adds to it (the roofline); what kernels add by staying below both; kernel launches
and all-reduces; the host; and what the power limiter adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from infergy.cost.constants import Column
from infergy.cost.model import StepCost
from infergy.cost.step import (
    Steps,
    StepSums,
    attention_cost,
    expert_cost,
    free_s,
    matmul_cost,
    roofline,
    slowed_j,
    sums_of,
)
from infergy.cost.table import Table
from infergy.estimates.estimate import ServerEstimate, TraceFacts, estimate_server, facts_of, sample_of, serve_sample
from infergy.estimates.servers import OpenServer, ServerSpec, open_server
from infergy.serving.run import Run, steps_of

BREAKDOWN_SCHEMA = "infergy.breakdown/2"
"""History: 1 measured batches, from an ideal to the sum of bins; 2 the run that `estimate` reports."""

IDLE = "idle"
MEANINGS = {
    "arithmetic": "FLOPs of the requests at the dense peak",
    "repeated arithmetic": "FLOPs of padding and of tokens computed again after a preemption, at the dense peak",
    "memory": "bytes at full bandwidth, where they take longer than the arithmetic",
    "kernels": "matmuls and attention below peak and bandwidth, one after the other",
    "launches": "kernel launches, gaps between layers, all-reduces",
    "host": "scheduling, input and output, and kernels that the host hands over too slowly",
    "power limit": "steps that the power limiter stretches",
    IDLE: "idle power while nothing is served, between the first arrival and the last token",
    "base power": "power of busy GPUs without their work, times the time of steps",
    "weights": "reading weights that every step reads",
    "experts": "reading and computing with routed experts, beside FLOPs of tokens",
    "KV cache": "reading and writing the KV cache and recurrent states",
    "matmul FLOPs": "FLOPs of all matmuls, padding to CUDA graphs included",
    "attention FLOPs": "FLOPs of attention",
    "prefill": "steps that only prefill",
    "decode": "steps that only decode",
    "mixed": "steps that do both",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a run's energy.

    Attributes:
        prefill_j: Of it, in steps that only prefill; `decode_j` that only decode; `mixed_j` with both.
    """

    name: str
    energy_j: float
    prefill_j: float
    decode_j: float
    mixed_j: float
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Where the energy of serving a trace on one server goes; each of the three lists adds up to `energy_j`.

    Attributes:
        estimate: What the run draws: the same as `infergy.estimate` reports.
        energy_j: Energy of the run.
        ideal_j: For comparison: FLOPs of the requests at the dense peak and the GPU's TDP.
        by_time: What the time of steps is spent on, and idle time.
        by_source: Terms of the step-cost model, and idle power.
        by_activity: Prefill, decode, mixed, idle.
    """

    trace: TraceFacts
    estimate: ServerEstimate
    energy_j: float
    ideal_j: float
    by_time: tuple[Part, ...]
    by_source: tuple[Part, ...]
    by_activity: tuple[Part, ...]
    notes: tuple[str, ...] = ()
    schema: str = BREAKDOWN_SCHEMA


class _Steps(NamedTuple):
    """Steps of a run: their energy in all, and which only prefill, only decode, or do both."""

    energy_j: Column
    kinds: tuple[Column, ...]


def break_down(source: Any, server: OpenServer | ServerSpec | None = None, table: Table | None = None) -> Breakdown:
    """Break down the energy of serving a trace.

    Args:
        source: What `infergy.estimates.estimate.sample_of` takes.
        server: None: vLLM with its defaults.
        table: What was measured, where `server` is not open yet; None: the shipped table.

    Raises:
        UsageError: A name is unknown, or the server cannot serve the trace.
    """
    sample = sample_of(source)
    if not isinstance(server, OpenServer):
        server = open_server(server or ServerSpec(), table)
    runs = serve_sample(sample, server)
    estimate = estimate_server(sample, server, offline=False, runs=runs, advise=False)
    steps, energy = steps_of(runs), estimate.run.energy
    idle = _whole(IDLE, energy.idle_j)
    counted = _steps(steps, server.cost)
    asked = sum(window.weight * asked_flops(run, server.cost) for run, window in runs)
    flops, _ = server.cost.work_of(sums_of(steps))
    useful = min(1.0, asked / float(flops @ steps.count))
    facts = facts_of(sample)
    # What was assumed of the server stands in `estimate`.
    reason = None if estimate.served is not None else f"all at once: {estimate.served_reason}"
    return Breakdown(
        trace=facts,
        estimate=estimate,
        energy_j=estimate.run.energy_j,
        ideal_j=asked / server.cost.peak_flops * server.gpu.tdp_w * server.cost.server.work.gpus,
        by_time=_by_time(time_parts(server.cost, steps), useful, counted, idle),
        by_source=_by_source(steps, server.cost, counted, idle),
        by_activity=(*(_whole(name, getattr(energy, f"{name}_j")) for name in ("prefill", "decode", "mixed")), idle),
        notes=tuple(note for note in (reason, facts.lengths_from) if note is not None),
    )


def time_parts(cost: StepCost, steps: Steps) -> dict[str, Column]:
    """Seconds of one step of each entry by what they are spent on; they add up to `step_s`."""
    s, rates = sums_of(steps), cost.rates
    flops, _ = cost.work_of(s)
    arithmetic = flops / cost.peak_flops
    floor = cost.floor_s(steps)
    kernels = roofline(*matmul_cost(rates.matmul_s, s)) + roofline(*expert_cost(rates.experts_s, s))
    kernels = kernels + roofline(*attention_cost(rates.attention_s, s))
    launches = rates.host.launch + rates.host.exchange * (s.decodes + s.prefill_tokens)
    free = free_s(rates, s)
    return {
        "arithmetic": arithmetic,
        "memory": floor - arithmetic,
        "kernels": kernels - floor,
        "launches": launches + 0.0 * floor,
        "host": free - kernels - launches,
        "power limit": steps.step_s - free,
    }


def asked_flops(run: Run, cost: StepCost) -> float:
    """FLOPs of a run's answered requests: no padding, and no token twice."""
    r = run.requests
    done = np.isfinite(r.finished_s)
    inputs, outputs, hits = (column[done].astype(float) for column in (r.input_tokens, r.output_tokens, r.hit_tokens))
    fresh, later = inputs - hits, outputs - 1
    ones = np.ones(fresh.size)
    sums = StepSums(
        decodes=later,
        context=later * inputs + later * (later + 1) / 2,
        prefill_tokens=fresh,
        prefill_pairs=fresh * hits + fresh * (fresh + 1) / 2,
        prefills=ones,
        sampled=outputs,
        padded=0.0 * ones,
    )
    # What FLOPs need of steps are their sums, which requests have as well.
    return float(cost.work_of(sums)[0].sum())


def _steps(steps: Steps, cost: StepCost) -> _Steps:
    prefills, decodes = steps.prefills > 0, steps.decodes > 0
    kinds = (prefills & ~decodes, ~prefills, prefills & decodes)
    return _Steps(cost.step_energy_j(steps) * steps.count, tuple(kind.astype(float) for kind in kinds))


def _part(name: str, energy_j: Column, steps: _Steps) -> Part:
    prefill, decode, mixed = (float(kind @ energy_j) for kind in steps.kinds)
    total = prefill + decode + mixed
    return Part(name=name, energy_j=total, prefill_j=prefill, decode_j=decode, mixed_j=mixed, meaning=MEANINGS[name])


def _whole(name: str, energy_j: float) -> Part:
    """A part that is one activity, or idle."""
    split = {f"{kind}_j": energy_j if kind == name else 0.0 for kind in ("prefill", "decode", "mixed")}
    return Part(name=name, energy_j=energy_j, meaning=MEANINGS[name], **split)


def _by_time(seconds: dict[str, Column], useful: float, steps: _Steps, idle: Part) -> tuple[Part, ...]:
    power_w = steps.energy_j / sum(seconds.values())
    spent = {name: power_w * part_s for name, part_s in seconds.items()}
    arithmetic = spent.pop("arithmetic")
    split = {"arithmetic": useful * arithmetic, "repeated arithmetic": (1.0 - useful) * arithmetic}
    return (*(_part(name, energy_j, steps) for name, energy_j in {**split, **spent}.items()), idle)


def _by_source(columns: Steps, cost: StepCost, steps: _Steps, idle: Part) -> tuple[Part, ...]:
    s, rates = sums_of(columns), cost.rates
    # Clocks that the power limit slows take less energy for the same work.
    slowed = slowed_j(rates.power, 1.0, np.minimum(free_s(rates, s), columns.step_s), columns.step_s)
    weights, arithmetic = (slowed * part for part in matmul_cost(rates.matmul_j, s))
    cache, attention = (slowed * part for part in attention_cost(rates.attention_j, s))
    sources = {
        "base power": rates.power.base_w * columns.step_s,
        "weights": weights,
        "experts": slowed * sum(expert_cost(rates.experts_j, s)),
        "KV cache": cache,
        "matmul FLOPs": arithmetic,
        "attention FLOPs": attention,
    }
    if cost.server.work.experts is None:
        del sources["experts"]
    return (*(_part(name, joules * columns.count, steps) for name, joules in sources.items()), idle)
