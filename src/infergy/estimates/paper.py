"""The study's method (arXiv 2504.17674, section 2): requests are counted into bins, each served at its upper corner.

    E_total = sum over bins of  N / B × E_batch

E_batch is the energy of B equal requests served all at once; B is the largest batch that memory and the engine allow.
Arrivals and the order of requests do not enter; `infergy.estimates.estimate` serves the requests themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infergy.cost.model import log_ratio_sd
from infergy.cost.table import Table
from infergy.errors import InfergyError, UsageError
from infergy.estimates.paper_bins import (
    DENSE,
    FRACTIONAL,
    IDEALS,
    RARE_RULES,
    BinEnergy,
    ServedBins,
    compare_to_ideal,
    hardware_of,
    histogram_of,
    ideal_of,
)  # fmt: skip
from infergy.estimates.servers import ServerSpec, open_server
from infergy.serving.config import EngineOptions
from infergy.workload.bins import POWERS_OF_TWO, Bins, Histogram

CEILING_SCHEMA = "infergy.ceiling/1"
BASELINE = "transformers"
"""Engine that savings refer to; it is served too where it was not asked for."""
"""The unoptimised engine of the study: PyTorch, not compiled."""
Z90 = 1.645


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An energy compared with the ideal and with the baseline.

    Attributes:
        ideal_energy_j: Of the same bins; None where no bin is served. `ideal_basis` says how it was computed.
        gap_to_ideal: (energy − ideal) / ideal.
        saving_vs_baseline: 1 − energy over that of the baseline; None with `saving_reason`.
        saving_low: Lower end of its 90 % interval, by what is uncertain of their ratio; `saving_high` the upper.
    """

    ideal_energy_j: float | None
    ideal_basis: str | None
    gap_to_ideal: float | None
    saving_vs_baseline: float | None
    saving_low: float | None
    saving_high: float | None
    saving_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperServer:
    """A trace's bins on one server.

    Attributes:
        engine: With what is not at its default: ``vllm-eager``.
        gpus: GPUs of a replica.
        energy_j: Sum over bins; None if no bin is served.
        low_j: Each request at the floor of its bin. A bracket of the binning, not an interval; `high_j` the same.
        high_j: Whole batches at the upper corner.
        duration_s: Seconds of one replica.
        unserved_requests: In bins whose corner exceeds the context or the memory; in no sum, the ideal included.
        bins: Those that hold a request, ascending.
    """

    engine: str
    model: str
    gpu: str
    gpus: int
    precision: str
    energy_j: float | None
    low_j: float | None
    high_j: float | None
    duration_s: float | None
    unserved_requests: int
    compared: Comparison
    bins: tuple[BinEnergy, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperEstimate:
    """What a trace draws on servers by the study's method.

    Attributes:
        requests: All of the trace; `left_out_requests` of them lie past the last bin and are in no sum.
        bins: The grid.
        ideal: ``dense``, ``paper`` or ``roofline``.
        rare: ``fractional``: N / B batches; ``whole``: rounded up.
        baseline: The engine that savings refer to.
    """

    source: str
    requests: int
    left_out_requests: int
    bins: Bins
    ideal: str
    rare: str
    baseline: str
    servers: tuple[PaperServer, ...]
    schema: str = CEILING_SCHEMA


def estimate_paper(
    source: Any,
    servers: ServerSpec | Sequence[ServerSpec],
    table: Table | None = None,
    *,
    bins: str | Bins = POWERS_OF_TWO,
    ideal: str = DENSE,
    rare: str = FRACTIONAL,
) -> PaperEstimate:
    """Estimate what a trace draws by the study's method.

    Args:
        source: A histogram, which brings its own bins; requests, a sample, a trace, or what `infergy.open_trace` takes.
        servers: One of each: the method knows no replicas.
        table: None takes the shipped table.
        bins: ``powers-of-two``, which leaves no request out, ``paper``, or edges.
        ideal: ``dense`` (FLOPs at the dense bfloat16 peak), ``paper`` (at the vendor's headline), or ``roofline``.
        rare: ``fractional``: N / B of a batch; ``whole``: batches are whole.

    Raises:
        UsageError: A name or an option is unknown, a model does not fit, or the GPU has no figure of this ideal.
        DataError: The trace is not what it should be.
    """
    for name, value, known in (("ideal", ideal, IDEALS), ("rare", rare, RARE_RULES)):
        if value not in known:
            option = f"--{name}"
            raise UsageError.unknown(name, value, known, f"Give one with {option}", code="unknown-name", option=option)
    histogram = histogram_of(source, bins)
    specs = [servers] if isinstance(servers, ServerSpec) else servers
    for spec in specs:
        if spec.replicas > 1:
            raise UsageError.conflict(
                {"--method": "ceiling", "--replicas": spec.replicas},
                "the study's method serves one batch after the other on one server; --method runs serves replicas",
            )
    served = [ServedBins(open_server(spec, table), histogram, rare) for spec in specs]
    bases = _Bases(served, lambda spec: ServedBins(open_server(spec, table), histogram, rare, brackets=False))
    left_out = histogram.left_out.requests if histogram.left_out else 0
    return PaperEstimate(
        source=histogram.source,
        requests=histogram.requests + left_out,
        left_out_requests=left_out,
        bins=histogram.bins,
        ideal=ideal,
        rare=rare,
        baseline=BASELINE,
        servers=tuple(_result(own, served, histogram, ideal, bases) for own in served),
    )


class _Bases:
    """The baseline of each server: that of its model and GPUs, opened where it was not asked for."""

    def __init__(self, served: Sequence[ServedBins], serve: Callable[[ServerSpec], ServedBins]) -> None:
        self._serve = serve
        self._known: dict[tuple[str, str, int], ServedBins | str] = {
            hardware_of(own): own
            for own in reversed(served)
            if replace(own.server.setup, tensor_parallel=1).label == BASELINE
        }

    def of(self, own: ServedBins) -> ServedBins | str:
        """The baseline; or why there is none."""
        key = hardware_of(own)
        if key not in self._known:
            options = EngineOptions(tensor_parallel_size=own.server.setup.tensor_parallel)
            try:
                self._known[key] = self._serve(
                    replace(own.server.spec, engine=BASELINE, precision=None, options=options)
                )
            except InfergyError as error:
                self._known[key] = str(error)
        return self._known[key]


def _result(
    own: ServedBins, served: Sequence[ServedBins], histogram: Histogram, ideal: str, bases: _Bases
) -> PaperServer:
    setup, reference = own.server.setup, ideal_of(own, served, histogram, ideal)
    saving, reason = _saving(own, bases)
    return PaperServer(
        engine=setup.label,
        model=setup.model,
        gpu=own.server.gpu.name,
        gpus=setup.tensor_parallel,
        precision=setup.dtype,
        energy_j=own.energy_j,
        low_j=own.low_j,
        high_j=own.high_j,
        duration_s=own.duration_s,
        unserved_requests=own.unserved_requests,
        compared=Comparison(
            **compare_to_ideal(own, reference),
            saving_vs_baseline=saving[0],
            saving_low=saving[1],
            saving_high=saving[2],
            saving_reason=reason,
        ),
        bins=own.bins,
    )


def _saving(own: ServedBins, bases: _Bases) -> tuple[tuple[float | None, float | None, float | None], str | None]:
    """The saving with its 90 % interval, or why there is none."""
    base = bases.of(own)
    if base is own:
        return (None, None, None), "it is the baseline"
    if isinstance(base, str):
        return (None, None, None), f"no baseline: {base}"
    if (
        own.energy_j is None
        or base.energy_j is None
        or [bool(b.batch) for b in own.bins] != [bool(b.batch) for b in base.bins]
    ):
        return (None, None, None), f"{BASELINE} serves other bins"
    left = own.energy_j / base.energy_j
    half = Z90 * log_ratio_sd(own.costed(), base.costed())
    return (1 - left, 1 - left * math.exp(half), 1 - left * math.exp(-half)), None
