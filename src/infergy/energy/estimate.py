"""What a trace costs in joules: the study's sum over bins, its brackets, its coverage, and what it is compared with.

    E_total = Σ over bins of  N(I*, O*) / B(I*, O*)  ×  E_batch(I*, O*)        (arXiv 2504.17674, section 2)

A bin that was measured is charged as measured; the others are interpolated, marked, and counted in the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infergy.energy.ideal import IDEALS, Ideal, flops_ideal, roofline_ideal
from infergy.energy.surface import EXTRAPOLATED, INTERPOLATED, MEASURED, HoldoutError, Surface, Value, holdout_error
from infergy.energy.table import EnergyTable, load_rows, tables_of
from infergy.errors import UsageError
from infergy.hardware import Gpu, ModelShape, get_gpu, get_model
from infergy.units import to_hours, to_wh
from infergy.workload import Bin, BinCount, Bins, Histogram, Trace, open_trace

SCHEMA = "infergy.estimate/1"

METHODS = ("ceiling", "mean")
RARE_RULES = ("fractional", "whole")
BASELINE = "transformers"

MEASURING_ERROR = 0.03
"""Half-width put on a measured bin: windows of at least 3 s on one H200 repeat within about 3 %."""

RARE_WORDS = {
    "fractional": "bins with fewer requests than a batch are charged N/B of a batch, as if they rode along with others",
    "whole": "bins with fewer requests than a batch are charged a whole batch",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFacts:
    """What of the trace was estimated: requests in bins, with their real tokens."""

    source: str
    requests: int
    input_tokens: int
    output_tokens: int
    failed_requests: int
    left_out_requests: int
    cached_input_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How an estimate was obtained: the rows, their environment, and the rules."""

    tables: tuple[str, ...]
    bins_measured: int
    gpu: str
    gpu_uuids: tuple[str, ...]
    driver: str | None
    packages: tuple[str, ...]
    weights: str
    measured_utc: str
    batch_rule: str
    rare_rule: str
    is_simulated: bool
    holdout: HoldoutError


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The cost of a trace under one engine.

    Shares are fractions of the requests (or output tokens) in bins. What cannot be known is None, with a reason.

    Attributes:
        energy_j: Joules of the trace.
        low_j: Every request at its bin's floor, less the error of measuring and interpolating.
        high_j: Every request at its bin's ceiling in whole batches, plus that error.
        duration_s: GPU-seconds; times GPUs, divided by 3600, the GPU-hours.
        coverage: Share of requests in measured bins.
        coverage_output_tokens: Share of output tokens in measured bins.
        interpolated: Share of requests in interpolated bins.
        extrapolated: Share of requests in extrapolated bins.
        uncovered_requests: Requests in bins without any value; not in `energy_j`.
        gap_to_ideal: (energy − ideal) / ideal.
        saving_vs_baseline: 1 − energy / the baseline's energy.
    """

    model: str
    gpu: str
    engine: str
    method: str
    energy_j: float
    low_j: float
    high_j: float | None
    duration_s: float
    gpu_hours: float
    energy_wh: float
    power_w: float
    tokens_per_s: float
    output_tokens_per_s: float
    energy_per_request_j: float
    energy_per_output_token_j: float
    coverage: float
    coverage_output_tokens: float
    interpolated: float
    extrapolated: float
    uncovered_requests: int
    gap_to_ideal: float | None
    gap_to_ideal_reason: str | None
    saving_vs_baseline: float | None
    saving_vs_baseline_reason: str | None
    high_j_reason: str | None
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEstimate:
    """A trace under several engines, beside the ideal."""

    trace: TraceFacts
    ideal: Ideal
    estimates: tuple[Estimate, ...]
    bins: Bins
    baseline: str
    schema: str = SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class _Charge:
    """One bin, priced: the requests it is charged for (more than it holds, if batches are whole)."""

    count: BinCount
    value: Value
    charged: float


def estimate(
    source: Trace | Histogram | object,
    *,
    model: str = "llama-3.1-8b",
    gpu: str = "h200",
    engines: Sequence[str] | None = None,
    tables: Iterable[str | Path] = (),
    bins: Bins | str = "powers-of-two",
    method: str = "ceiling",
    ideal: str = "dense",
    rare: str = "fractional",
    baseline: str = BASELINE,
    allow_simulated: bool = False,
) -> TraceEstimate:
    """Estimate the energy of a trace under every engine that was measured for `model` on `gpu`.

    Args:
        source: A `Trace`, a `Histogram`, or anything `open_trace` takes: a shipped name, a path, a frame.
        model: A model with measured rows.
        gpu: A GPU with measured rows.
        engines: Labels of the engines to show (``vllm``); None shows all.
        tables: The user's own stores, put before the shipped ones.
        bins: ``powers-of-two`` (nobody left out), ``paper``, or bins of one's own.
        method: ``ceiling`` charges each request its bin's upper corner, as the study does; ``mean`` the mean lengths
            of its bin's requests.
        ideal: ``dense``, ``paper`` or ``roofline``; see `infergy.energy.ideal`.
        rare: ``fractional`` or ``whole``: how bins with fewer requests than a batch are charged.
        baseline: Label of the engine that savings are told against.
        allow_simulated: Take rows of a simulated GPU as well.

    Raises:
        UsageError: An unknown model, GPU, engine or option.
        DataError: A trace or a table that cannot be meant.
    """
    for what, value, known in (("method", method, METHODS), ("ideal", ideal, IDEALS), ("rare", rare, RARE_RULES)):
        if value not in known:
            raise UsageError.unknown(what, value, known)
    shape, board = get_model(model), get_gpu(gpu)
    found = find_tables(tables, model, board, allow_simulated=allow_simulated)
    shown = _select(found, engines, model, board)
    histogram = _histogram(source, bins)
    charges = {table.setup.label: price(histogram, table, method, rare) for table in found}
    reference = _ideal(ideal, histogram, shape, board, found[0])
    base = charges.get(baseline)
    return TraceEstimate(
        trace=_facts(histogram),
        ideal=reference,
        estimates=tuple(
            _summarise(histogram, table, charges[table.setup.label], board, method, rare, reference, base, baseline)
            for table in shown
        ),
        bins=histogram.bins,
        baseline=baseline,
    )


def find_tables(
    paths: Iterable[str | Path], model: str, gpu: Gpu, *, allow_simulated: bool = False
) -> list[EnergyTable]:
    """The tables measured for `model` on `gpu`, one for each engine set-up.

    Raises:
        UsageError: Nothing was measured for them; the message gives what was, and the command that would.
    """
    every = tables_of(load_rows(paths, allow_simulated=allow_simulated))
    names = {gpu.name, gpu.title, *gpu.aliases} | {f"simulated {gpu.title}"}
    found: dict[str, EnergyTable] = {}
    for table in every:
        if table.setup.model == model and table.gpu in names:
            # The user's own rows come first; a pretended GPU of theirs stands before the real one of ours as well.
            found.setdefault(table.setup.label, table)
    if not found:
        known = sorted({f"{table.setup.model} on {table.gpu}" for table in every})
        raise UsageError(
            f"{model} on {gpu.title} was not measured; tables hold {'; '.join(known) or 'nothing'}. "
            f"Measure it: infergy measure paper-bins --model {model} --gpu {gpu.name} -o mine.jsonl, "
            "then give --table mine.jsonl"
        )
    return sorted(found.values(), key=lambda table: (table.setup.label != BASELINE, table.setup.label))


def price(histogram: Histogram, table: EnergyTable, method: str, rare: str) -> list[_Charge | None]:
    """The price of each bin of `histogram` in its order; None for a bin without any value."""
    surface = Surface(table.points)
    charges: list[_Charge | None] = []
    for count in histogram.counts:
        lengths = (count.bin.input_tokens, count.bin.output_tokens)
        at = lengths if method == "ceiling" else _mean_lengths(count)
        corner, value = surface.at(*lengths), surface.at(*at)
        if value is None or corner is None:
            charges.append(None)
            continue
        batch = corner.batch
        charged = math.ceil(count.requests / batch) * batch if rare == "whole" else float(count.requests)
        # How well a bin is known is told by its corner: means fall between corners by nature.
        priced = Value(energy_j=value.energy_j, duration_s=value.duration_s, batch=batch, method=corner.method)
        charges.append(_Charge(count=count, value=priced, charged=charged))
    return charges


def _mean_lengths(count: BinCount) -> tuple[float, float]:
    return (
        max(1.0, count.input_tokens / count.requests),
        max(1.0, count.output_tokens / count.requests),
    )


def _select(found: list[EnergyTable], engines: Sequence[str] | None, model: str, gpu: Gpu) -> list[EnergyTable]:
    if engines is None:
        return found
    labels = [table.setup.label for table in found]
    for engine in engines:
        if engine not in labels:
            raise UsageError.unknown(
                f"engine for {model} on {gpu.title}",
                engine,
                labels,
                f"Measure it: infergy measure paper-bins --engine {engine} -o mine.jsonl",
            )
    return [table for table in found if table.setup.label in engines]


def _histogram(source: object, bins: Bins | str) -> Histogram:
    if isinstance(source, Histogram):
        return source
    trace = source if isinstance(source, Trace) else open_trace(source)
    if isinstance(bins, Bins):
        return trace.histogram(bins)
    if bins not in ("powers-of-two", "paper"):
        raise UsageError.unknown("bins", bins, ("powers-of-two", "paper"))
    return trace.histogram(Bins.paper() if bins == "paper" else None)


def _facts(histogram: Histogram) -> TraceFacts:
    return TraceFacts(
        source=histogram.source,
        requests=histogram.requests,
        input_tokens=histogram.input_tokens,
        output_tokens=histogram.output_tokens,
        failed_requests=histogram.failed_requests,
        left_out_requests=histogram.left_out.requests if histogram.left_out else 0,
        cached_input_tokens=histogram.cached_input_tokens,
    )


def _ideal(kind: str, histogram: Histogram, shape: ModelShape, gpu: Gpu, table: EnergyTable) -> Ideal:
    if kind == "roofline":
        surface = Surface(table.points)

        def batch_of(place: Bin) -> int:
            value = surface.at(place.input_tokens, place.output_tokens)
            return max(1, int(value.batch)) if value else 1

        return roofline_ideal(histogram, shape, gpu, batch_of)
    return flops_ideal(histogram, shape, gpu, headline=kind == "paper")


def _bounds(
    histogram: Histogram, table: EnergyTable, charges: list[_Charge | None], energy_j: float, holdout: HoldoutError
) -> tuple[float, float | None, str | None]:
    """Joules with every request at its bin's floor and at its ceiling in whole batches, errors included."""
    surface = Surface(table.points)
    unmeasured = {MEASURED: 0.0, INTERPOLATED: holdout.worst or 0.0, EXTRAPOLATED: 2 * (holdout.worst or 0.0)}
    low_j, high_j = 0.0, 0.0
    for charge in charges:
        if charge is None:
            continue
        place = charge.count.bin
        floor = surface.at(max(1, place.input_floor), max(1, place.output_floor))
        corner = surface.at(place.input_tokens, place.output_tokens)
        assert corner is not None
        if floor is not None:
            low_j += charge.count.requests * floor.energy_j / (1 + MEASURING_ERROR + unmeasured[floor.method])
        whole = math.ceil(charge.count.requests / corner.batch) * corner.batch
        high_j += whole * corner.energy_j * (1 + MEASURING_ERROR + unmeasured[corner.method])
    if any(charge is None for charge in charges):
        return min(low_j, energy_j), None, "some bins have no value, measured or interpolated"
    return min(low_j, energy_j), max(high_j, energy_j), None


def _summarise(
    histogram: Histogram,
    table: EnergyTable,
    charges: list[_Charge | None],
    gpu: Gpu,
    method: str,
    rare: str,
    ideal: Ideal,
    base: list[_Charge | None] | None,
    baseline: str,
) -> Estimate:
    known = [charge for charge in charges if charge is not None]
    if not known:
        raise UsageError(
            f"{table.setup.label}: no bin of {histogram.source} lies near a measured one. "
            f"Measure more: infergy measure paper-bins --engine {table.setup.label} -o mine.jsonl"
        )
    energy_j, duration_s = _energy_j(charges), sum(c.charged * c.value.duration_s for c in known)
    covered = sum(charge.count.requests for charge in known)
    output_tokens = sum(charge.count.output_tokens for charge in known)
    tokens = output_tokens + sum(charge.count.input_tokens for charge in known)
    holdout = holdout_error(table)
    low_j, high_j, high_reason = _bounds(histogram, table, charges, energy_j, holdout)
    is_whole = covered == histogram.requests
    partial = None if is_whole else f"{histogram.requests - covered} requests have no value"
    saving, saving_reason = _saving(charges, base, baseline)

    def share(how: str) -> float:
        return sum(c.count.requests for c in known if c.value.method == how) / histogram.requests

    measured_output = sum(c.count.output_tokens for c in known if c.value.method == MEASURED)
    return Estimate(
        model=table.setup.model,
        gpu=gpu.name,
        engine=table.setup.label,
        method=method,
        energy_j=energy_j,
        low_j=low_j,
        high_j=high_j,
        high_j_reason=high_reason,
        duration_s=duration_s,
        gpu_hours=to_hours(duration_s) * table.setup.tensor_parallel,
        energy_wh=to_wh(energy_j),
        power_w=energy_j / duration_s,
        tokens_per_s=tokens / duration_s,
        output_tokens_per_s=output_tokens / duration_s,
        energy_per_request_j=energy_j / covered,
        energy_per_output_token_j=energy_j / output_tokens,
        coverage=share(MEASURED),
        coverage_output_tokens=measured_output / histogram.output_tokens,
        interpolated=share(INTERPOLATED),
        extrapolated=share(EXTRAPOLATED),
        uncovered_requests=histogram.requests - covered,
        gap_to_ideal=energy_j / ideal.energy_j - 1 if is_whole else None,
        gap_to_ideal_reason=partial,
        saving_vs_baseline=saving,
        saving_vs_baseline_reason=saving_reason,
        provenance=_provenance(table, rare, holdout),
    )


def _energy_j(charges: Iterable[_Charge | None]) -> float:
    return sum(charge.charged * charge.value.energy_j for charge in charges if charge is not None)


def _saving(
    charges: list[_Charge | None], base: list[_Charge | None] | None, baseline: str
) -> tuple[float | None, str | None]:
    """The saving over the same requests; none against itself, or where one of the two lacks a bin."""
    if base is None:
        return None, f"the baseline {baseline} was not measured for this model and GPU"
    if base is charges:
        return None, "this is the baseline"
    if any((one is None) != (other is None) for one, other in zip(charges, base, strict=True)):
        return None, f"{baseline} and this engine do not cover the same requests"
    return 1 - _energy_j(charges) / _energy_j(base), None


def _provenance(table: EnergyTable, rare: str, holdout: HoldoutError) -> Provenance:
    batches = [point.batch for point in table.points]
    return Provenance(
        tables=table.sources,
        bins_measured=len(table.points),
        gpu=table.gpu,
        gpu_uuids=table.uuids,
        driver=table.driver,
        packages=table.packages,
        weights=table.weights,
        measured_utc=table.measured_utc,
        batch_rule=f"batches of {min(batches)} to {max(batches)} requests; each row says how its batch was chosen",
        rare_rule=RARE_WORDS[rare],
        is_simulated=table.is_simulated,
        holdout=holdout,
    )
