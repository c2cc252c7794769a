"""Joules of consecutive requests of a trace served as they are, mixed, by continuous batching: told before they are.

    E = sum over requests of E(input, output, B)            B = decode tokens / decode steps

A step reads the weights once for all that run, and a request's own cache and prompt cost what they cost beside any
others, so a request in a mixed batch takes what it takes among its equals in a batch of the same size, but where power
is limited in one step and not in another. B is what first come, first served leaves of so many places: as few as run
together when the last ones end. `infergy replay` measures the truth.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infergy.energy.answer import TraceFacts
from infergy.energy.cell_model import Server
from infergy.energy.options import MAX_SEQUENCES
from infergy.energy.posterior import Posterior
from infergy.energy.surface import repeat_error
from infergy.energy.table import EnergyTable
from infergy.energy.values import add_chips
from infergy.errors import UsageError
from infergy.hardware.memory import largest_batch

if TYPE_CHECKING:
    from infergy.records import EngineSetup, Measurement

REPLAY_SCHEMA = "infergy.replay/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayMeasured:
    """What a replay took.

    Attributes:
        energy_j: Joules of all GPUs; `low_j` and `high_j` its 95 % interval, None where one run alone tells none.
        off: Predicted over measured joules, less 1.
        is_inside: Whether the prediction's interval holds it.
    """

    energy_j: float
    low_j: float | None
    high_j: float | None
    duration_s: float
    off: float
    is_inside: bool
    gpu_uuids: tuple[str, ...]
    simulated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A prediction, and what was measured if it was.

    Attributes:
        first: Requests of the trace that come before these.
        engine: Label of the set-up, with its bound on what runs at once.
        mean_batch: Decode tokens over decode steps, as predicted.
        energy_j: Joules of all GPUs; `low_j` to `high_j` is the 90 % interval, for any chip of the kind.
        duration_s: Seconds.
        measured_cells: Cells on which the prediction rests; 0 is the datasheet.
    """

    trace: TraceFacts
    first: int
    model: str
    gpu: str
    engine: str
    mean_batch: float
    energy_j: float
    low_j: float
    high_j: float
    duration_s: float
    energy_per_request_j: float
    energy_per_output_token_j: float
    measured_cells: int
    measured: ReplayMeasured | None = None
    schema: str = REPLAY_SCHEMA


def predict_replay(
    source: str,
    lengths: Sequence[tuple[int, int]],
    *,
    first: int,
    setup: EngineSetup,
    server: Server,
    gpu: str,
    table: EnergyTable,
) -> Replay:
    """What serving requests all at once will take.

    Args:
        source: Name of the trace.
        lengths: Input and output tokens of each request, in order.
        first: Requests of the trace before them.
        setup: What serves; cells of the same without its bound on sequences tell of it.
        server: The same for the physical model.
        gpu: Name in the catalogue.
        table: What was measured.

    Raises:
        UsageError: The longest request does not fit the memory.
    """
    import numpy as np

    from infergy.records import EngineSetup as Setup

    plain = Setup.parse_label(setup.label) | {"max_sequences": None}
    label = Setup(model=setup.model, **plain).label
    known = table.labels(gpu, setup.model)
    rows = [table.find(gpu, setup.model, one) for one in (label, setup.label) if one in known]
    cells = [cell for one in rows for cell in one.cells]
    posterior = Posterior(server, cells)
    batch = mean_batch(lengths, places_of(server, lengths, setup.max_sequences))
    inputs, outputs = np.array(lengths, dtype=float).T
    requests = np.column_stack([inputs, outputs, np.full(len(lengths), batch)])
    # Requests of one length are one term of the sum: a trace repeats itself.
    kinds, count = np.unique(requests, axis=0, return_counts=True)
    found = posterior.at(kinds)
    energy_j = float(count @ found.energy_j)
    share = count * found.energy_j / energy_j
    variance = float(share @ posterior.covariance(kinds)[: len(kinds), : len(kinds)] @ share)
    spread = posterior.half_width * math.sqrt(max(0.0, variance))
    half = add_chips(spread, repeat_error(rows[0]) if rows else None) or spread
    return Replay(
        trace=TraceFacts(
            source=source,
            requests=len(lengths),
            input_tokens=int(inputs.sum()),
            output_tokens=int(outputs.sum()),
            cached_input_tokens=0,
            failed_requests=0,
            left_out_requests=0,
        ),
        first=first,
        model=setup.model,
        gpu=gpu,
        engine=setup.label,
        mean_batch=batch,
        energy_j=energy_j,
        low_j=energy_j * math.exp(-half),
        high_j=energy_j * math.exp(half),
        duration_s=float(count @ found.duration_s),
        energy_per_request_j=energy_j / len(lengths),
        energy_per_output_token_j=energy_j / float(outputs.sum()),
        measured_cells=len(posterior.cells),
    )


def places_of(server: Server, lengths: Sequence[tuple[int, int]], most: int | None) -> int:
    """How many requests run at once: as many as the engine is let, and the memory holds of mean lengths.

    Raises:
        UsageError: The longest does not fit.
    """

    def fits(input_tokens: float, output_tokens: float) -> int:
        return largest_batch(
            server.shape,
            server.gpu,
            math.ceil(input_tokens),
            math.ceil(output_tokens),
            engine=server.engine,
            dtype=server.dtype,
            tensor_parallel=server.gpus,
        ).batch

    longest = tuple(max(tokens) for tokens in zip(*lengths, strict=True))
    if fits(*longest) < 1:
        raise UsageError(
            f"a request of {longest[0]}→{longest[1]} tokens does not fit {server.gpus} × {server.gpu.title}"
        )
    mean = (sum(tokens) / len(lengths) for tokens in zip(*lengths, strict=True))
    return max(1, min(most or MAX_SEQUENCES, fits(*mean)))


def mean_batch(lengths: Sequence[tuple[int, int]], places: int) -> float:
    """Output tokens over steps, where requests take `places` places in their order, a token a step each."""
    ends = [0] * min(places, len(lengths))
    for _, output_tokens in lengths:
        heapq.heapreplace(ends, ends[0] + output_tokens)
    return sum(output_tokens for _, output_tokens in lengths) / max(ends)


def held_against(replay: Replay, row: Measurement) -> ReplayMeasured:
    """What a measured row says of the prediction."""
    from infergy.records import result_of
    from infergy.records.uncertainty import find_uncertainties

    result = result_of(row)
    (certain,) = find_uncertainties([row])
    return ReplayMeasured(
        energy_j=result.energy_j,
        low_j=None if certain is None else certain.low_j,
        high_j=None if certain is None else certain.high_j,
        duration_s=result.duration_s,
        off=replay.energy_j / result.energy_j - 1,
        is_inside=replay.low_j <= result.energy_j <= replay.high_j,
        gpu_uuids=tuple(gpu.uuid for gpu in row.environment.gpus),
        simulated=row.simulated,
    )
