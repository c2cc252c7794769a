"""A run of real requests on an engine: predicted, and compared with what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean

from infergy.cost.table import Table
from infergy.estimates.build import requests_of
from infergy.estimates.estimate import RunEstimate, estimate_run
from infergy.estimates.servers import ServerSpec, open_server
from infergy.records import EngineSetup, Measurement, PlannedCell, result_of
from infergy.serving.setups import MEASURED, options_of_setup, reject_measured
from infergy.workload.requests import whole

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
        cell: The run in words; `cell_id` its id in plans and rows.
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


def predict(planned: PlannedCell | Measurement, gpu: str, table: Table) -> Replay:
    """What a planned or measured run takes, by its requests and its engine's own defaults alone.

    Args:
        planned: The requests' arrivals and lengths, and the engine.
        gpu: Kind of GPU.
        table: What was measured before.

    Raises:
        UsageError: The engine is not known, or the model does not fit.
    """
    requests, arrivals = requests_of(planned), planned.cell.load.arrivals
    server = open_server(spec_of(planned.cell.setup, gpu, len(requests)), table)
    run = estimate_run(whole(requests), server)
    left_out = 0 if arrivals is None else arrivals.rejected
    return Replay(
        cell=str(planned.cell),
        cell_id=planned.cell.id,
        requests=len(requests),
        input_tokens=int(requests.input_tokens.sum()),
        output_tokens=int(requests.output_tokens.sum()),
        predicted=replace(run, requests=run.requests + left_out, rejected_requests=run.rejected_requests + left_out),
        notes=tuple(note for note in server.notes if note not in table.notes),
    )


def compare(predicted: Replay, row: Measurement) -> Replay:
    """A prediction beside the row that measured it."""
    result, run = result_of(row), predicted.predicted
    figures: list[tuple[str, float, float | None]] = [
        ("energy_j", run.energy_j, result.energy_j),
        ("duration_s", run.duration_s, result.duration_s),
    ]
    names = {"ttft_s": "first_token", "tpot_s": "per_output_token", "e2e_s": "end_to_end"}
    for (name, known), p in product(names.items(), PERCENTILES):
        guess, seen = getattr(run.latency, name), getattr(result.latency, known, None)
        if guess is not None and seen is not None:
            figures.append((f"{name}_{p}", getattr(guess, p), getattr(seen, f"{p}_s")))
    if row.cell.setup.prefix_caching:
        figures.append(("cached_tokens", run.load.hit_tokens, _cached_tokens(row)))
    return replace(
        predicted,
        compared=tuple(
            Compared(name=name, predicted=guess, measured=seen, error=None if not seen else guess / seen - 1)
            for name, guess, seen in figures
        ),
        is_inside=run.low_j <= result.energy_j <= run.high_j,
        gpu_uuids=tuple(gpu.uuid for gpu in row.environment.gpus),
        simulated=row.simulated,
    )


def _cached_tokens(row: Measurement) -> float | None:
    """Prompt tokens that the engine's prefix cache had, mean over the runs of a row; None if it reported none."""
    counts = [batch.counts for window in row.windows for batch in window.batches if batch.counts is not None]
    return fmean(count.cached_tokens for count in counts) if counts else None


def compare_rows(rows: Sequence[Measurement], gpu: str, table: Table) -> list[Replay]:
    """Each measured replay of a store beside its prediction, in the order of the store."""
    return [
        compare(predict(row, gpu, table), row) for row in rows if row.is_ok and row.cell.load.is_replay and row.lengths
    ]


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
