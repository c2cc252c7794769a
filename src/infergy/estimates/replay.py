"""A run of real requests on an engine: predicted, and compared with what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from statistics import fmean
from typing import TypeVar

import numpy as np

from infergy.cost.table import Table
from infergy.estimates.build import requests_of
from infergy.estimates.estimate import RunEstimate, estimate_run
from infergy.estimates.servers import ServerSpec, open_server
from infergy.records import EngineSetup, Measurement, PlannedCell, result_of
from infergy.records.flags import find_flags
from infergy.records.latency import Latency, RequestTimes, find_latency
from infergy.serving.setups import MEASURED, options_of_setup, reject_measured
from infergy.workload.requests import Requests, join_requests, whole

REPLAY_SCHEMA = "infergy.replay/2"
PERCENTILES = ("p50", "p90", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One figure of a replay, in SI units; of tokens, how many.

    Attributes:
        measured: None where the engine reported none.
        error: Predicted over measured, less 1; None for the same reason.
    """

    name: str
    predicted: float
    measured: float | None
    error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A prediction of a run, and what was measured if it was.

    Attributes:
        cell: The run in words; `cell_id` its id in plans and rows, of several replicas the first one's.
        requests: How many are served; `input_tokens` and `output_tokens` of all of them.
        predicted: Energy with its interval, latencies, load. Its requests are those that the engine rejects too.
        compared: Figures beside what was measured; empty before it was.
        is_inside: Whether the energy's interval contains what was measured; None before it was.
        gpu_uuids: Of the GPUs that measured it.
        notes: What had to be assumed of the server.
    """

    cell: str
    cell_id: str
    requests: int
    input_tokens: int
    output_tokens: int
    predicted: RunEstimate
    compared: tuple[Compared, ...] = ()
    is_inside: bool | None = None
    gpu_uuids: tuple[str, ...] = ()
    simulated: bool = False
    notes: tuple[str, ...] = ()
    schema: str = REPLAY_SCHEMA


Part = TypeVar("Part", PlannedCell, Measurement)


def replica_groups(parts: Iterable[Part]) -> list[tuple[Part, ...]]:
    """Cells or rows of the replicas of one replay together, in their order; each of any other by itself.

    A replica of which the others are missing is left out.
    """
    groups: list[list[Part]] = []
    for part in parts:
        ours = (group for group in groups if _replay_key(group[0]) == _replay_key(part))
        group = next((group for group in ours if _place(part) not in map(_place, group)), None)
        if group is None:
            groups.append([part])
        else:
            group.append(part)
    return [tuple(sorted(group, key=_place)) for group in groups if len(group) == _place(group[0])[1]]


def _place(part: PlannedCell | Measurement) -> tuple[int, int]:
    return part.cell.load.replica


def _replay_key(part: PlannedCell | Measurement) -> tuple[object, ...]:
    arrivals = part.cell.load.arrivals
    same = None if arrivals is None else replace(arrivals, replica=1, digest=None, rejected=0)
    return part.cell.setup, same, part.visit


def predict(parts: Sequence[PlannedCell] | Sequence[Measurement], gpu: str, table: Table) -> Replay:
    """What a planned or measured run takes, by its requests and its engine's own defaults alone.

    Args:
        parts: The requests' arrivals and lengths, and the engine; of several replicas each its own.
        gpu: Kind of GPU.
        table: What was measured before.

    Raises:
        UsageError: The engine is not known, or the model does not fit.
    """
    first, replicas = parts[0].cell, len(parts)
    requests = requests_of_parts(parts)
    server = open_server(replace(spec_of(first.setup, gpu, len(requests)), replicas=replicas), table)
    run = estimate_run(whole(requests), server)
    left_out = sum(part.cell.load.arrivals.rejected for part in parts if part.cell.load.arrivals is not None)
    name = str(first) if replicas == 1 else f"{replicas} × {first.label.rpartition('#')[0]} {first.setup.model}"
    return Replay(
        cell=name,
        cell_id=first.id,
        requests=len(requests),
        input_tokens=int(requests.input_tokens.sum()),
        output_tokens=int(requests.output_tokens.sum()),
        predicted=replace(run, requests=run.requests + left_out, rejected_requests=run.rejected_requests + left_out),
        notes=tuple(note for note in server.notes if note not in table.notes),
    )


def requests_of_parts(replicas: Sequence[PlannedCell] | Sequence[Measurement]) -> Requests:
    """The requests of replicas in the order in which they were given to them: in turn."""
    parts = [requests_of(part) for part in replicas]
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(np.concatenate([np.arange(len(part)) for part in parts]), kind="stable")
    joined = join_requests(parts)
    times = [np.zeros(len(part)) if part.arrival_s is None else part.arrival_s for part in parts]
    return replace(joined.take(order), arrival_s=np.concatenate(times)[order], order_reason=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """How long a replay took, of all replicas.

    Attributes:
        cached_tokens: Prompt tokens that the prefix caches had; None if an engine reported none.
    """

    duration_s: float
    latency: Latency | None
    cached_tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Timed):
    """The same with its energy.

    Attributes:
        energy_j: Until the last token of all, at loaded idle power from the last token of a replica on.
    """

    energy_j: float


def measured(rows: Sequence[Measurement]) -> Measured:
    """What the rows of a replay's replicas say together."""
    results = [result_of(row) for row in rows]
    duration_s = max(result.duration_s for result in results)
    energy_j = 0.0
    for row, result in zip(rows, results, strict=True):
        idle_w = 0.0 if row.loaded_idle is None else sum(row.loaded_idle.power_by_gpu_w.values())
        energy_j += result.energy_j + idle_w * (duration_s - result.duration_s)
    cached = [_cached_tokens(row) for row in rows]
    return Measured(
        energy_j=energy_j,
        duration_s=duration_s,
        latency=_latency_of(rows),
        cached_tokens=None if None in cached else sum(filter(None, cached)),
    )


def _latency_of(rows: Sequence[Measurement]) -> Latency | None:
    """Percentiles over the requests of all replicas."""
    batches = [(row, batch) for row in rows for window in row.windows for batch in window.batches]
    times = [batch.times for _, batch in batches if batch.times is not None]
    if len(times) < len(batches):
        return None
    both = RequestTimes(
        first_token_s=tuple(chain.from_iterable(one.first_token_s for one in times)),
        finished_s=tuple(chain.from_iterable(one.finished_s for one in times)),
    )
    outputs = [tokens for row, _ in batches for _, tokens in row.lengths]
    return find_latency([replace(batches[0][1], times=both)], outputs)


def compare(predicted: Replay, rows: Sequence[Measurement]) -> Replay:
    """A prediction beside the rows that measured it, one of each replica."""
    both = beside(predicted, measured(rows), has_cache=rows[0].cell.setup.prefix_caching)
    return replace(
        both,
        gpu_uuids=tuple(gpu.uuid for row in rows for gpu in row.environment.gpus),
        simulated=any(row.simulated for row in rows),
        notes=(*both.notes, *dict.fromkeys(note for row in rows for note in _notes_of(row))),
    )


def beside(predicted: Replay, result: Timed, *, has_cache: bool) -> Replay:
    """A prediction beside what was measured, without energy if that was not; `has_cache` if prefixes were cached."""
    run = predicted.predicted
    energy_j = result.energy_j if isinstance(result, Measured) else None
    figures: list[tuple[str, float, float | None]] = [
        ("energy_j", run.energy_j, energy_j),
        ("duration_s", run.duration_s, result.duration_s),
    ]
    names = {"ttft_s": "first_token", "tpot_s": "per_output_token", "e2e_s": "end_to_end"}
    for (name, known), p in product(names.items(), PERCENTILES):
        guess, seen = getattr(run.latency, name), getattr(result.latency, known, None)
        if guess is not None and seen is not None:
            figures.append((f"{name}_{p}", getattr(guess, p), getattr(seen, f"{p}_s")))
    if has_cache:
        figures.append(("cached_tokens", run.load.hit_tokens, result.cached_tokens))
    return replace(
        predicted,
        compared=tuple(
            Compared(name=name, predicted=guess, measured=seen, error=None if not seen else guess / seen - 1)
            for name, guess, seen in figures
        ),
        is_inside=None if energy_j is None else run.low_j <= energy_j <= run.high_j,
    )


def _notes_of(row: Measurement) -> Iterator[str]:
    """What the server of a row is not known to be, and which of its counts and latencies may be wrong."""
    flags = [flag for flag in find_flags(row, None) if flag.code in ("token-counts", "client")]
    yield from (f"{flag.reason}: {flag.fix}" for flag in flags)
    facts = row.environment.engine
    if row.is_of_endpoint and facts.get("software") != "vllm":
        yield f"predicted as vLLM; the server says that it is {facts.get('software') or 'nothing that is known'}"
    if row.is_of_endpoint and (facts.get("prompts"), facts.get("lengths")) != ("token ids", "forced"):
        yield "the server takes no token ids, or ends answers itself: lengths are its counts of what it served"


def _cached_tokens(row: Measurement) -> float | None:
    """Prompt tokens that the engine's prefix cache had, mean over the runs of a row; None if it reported none."""
    batches = [batch for window in row.windows for batch in window.batches]
    counts = [
        source.cached_tokens for batch in batches for source in (batch.counts, batch.served) if source is not None
    ]
    known = [tokens for tokens in counts if tokens is not None]
    return fmean(known) if known else None


def compare_rows(rows: Sequence[Measurement], gpu: str, table: Table) -> list[Replay]:
    """Each measured replay of a store beside its prediction, in the order of the store."""
    return [compare(predict(parts, gpu, table), parts) for parts in measured_groups(rows)]


def measured_groups(rows: Iterable[Measurement]) -> list[tuple[Measurement, ...]]:
    """The measured replays of a store, of several replicas their rows together."""
    return replica_groups(row for row in rows if row.is_ok and row.cell.load.is_replay and row.lengths)


def spec_of(setup: EngineSetup, gpu: str, requests: int) -> ServerSpec:
    """The server that an engine config stands for, with its engine's defaults for what it leaves open.

    Without a bound transformers serves all `requests` as one batch.

    Raises:
        UsageError: A draft model speculates, or a power limit or clock is set.
    """
    reject_measured(setup.label, [name for name in MEASURED if getattr(setup, name) is not None])
    options = options_of_setup(setup)
    if setup.engine == "transformers":
        options = replace(options, max_num_seqs=setup.max_sequences or requests)
    return ServerSpec(
        engine="transformers-compiled" if setup.compiled else setup.engine,
        model=setup.model,
        gpu=gpu,
        precision=setup.dtype,
        usage_context="server" if setup.usage_context == "server" else "llm",
        options=options,
    )
