"""What a trace costs in joules under each engine: the whole path from requests to an estimate.

trace ─▶ histogram ─┐
                    ├─▶ price each bin ─▶ Estimate, one an engine ─▶ TraceEstimate
stores ─▶ table ────┘                     beside the ideal of the same work
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infergy.energy.answer import Estimate, Provenance, SourceUse, TraceEstimate, TraceFacts
from infergy.energy.calibration import Calibration
from infergy.energy.comparable import partial_notes, told_by_default
from infergy.energy.load import load_table
from infergy.energy.options import (
    BASELINE,
    CEILING,
    DEFAULT_GPU,
    DEFAULT_MODEL,
    DENSE,
    FRACTIONAL,
    IDEALS,
    MAX_BATCH_S,
    METHODS,
    RARE_RULES,
)
from infergy.energy.price import NO_VALUE, lengths_of, price_bins
from infergy.energy.reference import Reference
from infergy.energy.summary import Priced, notes_on, summarise
from infergy.energy.surface import SurfaceErrors, borrow_errors, repeat_error, surface_errors
from infergy.energy.table import EnergyTable, SetupTable
from infergy.energy.values import Values
from infergy.errors import UsageError
from infergy.hardware import find_gpu_by_driver_name
from infergy.workload.bins import BIN_NAMES, POWERS_OF_TWO, Bins, Histogram

if TYPE_CHECKING:
    from infergy.workload import Trace

__all__ = ["Estimate", "Provenance", "SourceUse", "TraceEstimate", "TraceFacts", "estimate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceOptions:
    """How a trace is priced; see `estimate`."""

    model: str | None = None
    gpu: str | None = None
    tables: str | Path | Sequence[str | Path] | EnergyTable = ()
    bins: str | Bins | None = POWERS_OF_TWO
    method: str = CEILING
    rare: str = FRACTIONAL
    allow_simulated: bool = False
    baseline: str = BASELINE
    max_batch_s: float = MAX_BATCH_S
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A trace, and the tables by which it is priced on one GPU for one model."""

    table: EnergyTable
    gpu: str
    model: str
    histogram: Histogram

    @property
    def facts(self) -> TraceFacts:
        """What was asked."""
        return facts_of(self.histogram)


def estimate(
    source: Trace | Histogram | Any,
    *,
    model: str | None = None,
    gpu: str | None = None,
    engines: Sequence[str] | None = None,
    tables: str | Path | Sequence[str | Path] | EnergyTable = (),
    bins: str | Bins | None = POWERS_OF_TWO,
    method: str = CEILING,
    ideal: str = DENSE,
    rare: str = FRACTIONAL,
    allow_simulated: bool = False,
    baseline: str = BASELINE,
    max_batch_s: float = MAX_BATCH_S,
    calibration: Calibration | None = None,
) -> TraceEstimate:
    """Estimate the energy of a trace under each engine.

    Args:
        source: A `Trace`, a `Histogram`, or whatever `infergy.open_trace` takes: a shipped name, a path, a frame.
        model: Name of a model that has rows; None takes that of the first table (shipped: Llama-3.1-8B).
        gpu: Name of a GPU that has rows: short, the vendor's or the driver's; None takes that of the first table.
        engines: Labels of engine set-ups; None takes all that have rows, of shipped ones those that price about as
            many requests as any.
        tables: A user's own stores, which count before the shipped ones; or a loaded table, which counts alone.
        bins: ``powers-of-two`` (nobody is left out; None too), ``paper``, or edges; a `Histogram` brings its own.
        method: ``ceiling``: each request at the upper corner of its bin, as in arXiv 2504.17674; ``mean``: each bin at
            the mean lengths of its requests. Both take the measured cell, else the physical model given all cells,
            else curves through them (`infergy.energy.values`). ``table``: at corners, cells and curves alone;
            ``physics``: at mean lengths, the model alone.
        ideal: ``dense`` (FLOPs at the dense peak), ``paper`` (at the vendor's headline), or ``roofline``.
        rare: ``fractional``: N / B of a batch; ``whole``: batches are whole.
        allow_simulated: Whether rows of a simulated GPU may be used.
        baseline: Label of the engine against which savings are told.
        max_batch_s: Where several batch sizes were measured at one length, the largest that took at most so many
            seconds counts.
        calibration: Of the GPU (`infergy.energy.calibration.load_calibration`), for what the physical model prices.

    Raises:
        UsageError: A name or an option is unknown, or nothing was measured for it.
        DataError: A trace or a table is not what it should be.
    """
    options = PriceOptions(
        model=model,
        gpu=gpu,
        tables=tables,
        bins=bins,
        method=method,
        rare=rare,
        allow_simulated=allow_simulated,
        baseline=baseline,
        max_batch_s=max_batch_s,
        calibration=calibration,
    )
    if ideal not in IDEALS:
        raise UsageError.unknown("ideal", ideal, IDEALS, "Give one with --ideal")
    question = open_question(source, options)
    table, gpu, model, histogram = question.table, question.gpu, question.model, question.histogram
    setups = _choose(table, gpu, model, engines, baseline)
    priced = [price_setup(setup, question, options) for setup in setups]
    reference = Reference(kind=ideal, method=method, model=model, gpu=gpu, values=[one.values for one in priced])
    wanted, partial = told_by_default(priced)
    # A baseline of too few cells tells no saving, unless its joules are asked for.
    thin = {one.setup.label for one in partial} - set(engines or ())
    if engines is not None:
        wanted, partial = [one for one in priced if one.setup.label in engines], []
    base = next((one for one in priced if one.setup.label == baseline and baseline not in thin), None)
    whole = reference.of(histogram)
    return TraceEstimate(
        trace=question.facts,
        ideal=whole.ideal,
        ideal_reason=whole.reason,
        estimates=tuple(
            summarise(one, base, histogram, reference, baseline=baseline, method=method, rare=rare) for one in wanted
        ),
        baseline=baseline,
        bins=histogram.bins,
        notes=(
            *notes_on(table, wanted, histogram, method=method, rare=rare, max_batch_s=max_batch_s),
            *partial_notes(partial, "to see one: --engine NAME"),
        ),
    )


def open_question(source: Trace | Histogram | Any, options: PriceOptions) -> Question:
    """Read the tables and the trace, and settle on a GPU and a model that have rows.

    Raises:
        UsageError: A name or an option is unknown, or nothing was measured for it.
        DataError: A trace or a table is not what it should be.
    """
    _check_options(method=options.method, rare=options.rare)
    if not options.max_batch_s > 0:
        raise UsageError(f"a batch of at most {options.max_batch_s:g} s: give more than 0 with --max-batch-s")
    table = (
        options.tables
        if isinstance(options.tables, EnergyTable)
        else load_table(options.tables, with_shipped=True, allow_simulated=options.allow_simulated)
    )
    gpu = _find_gpu(table, options.gpu)
    model = _find_model(table, gpu, options.model)
    return Question(table=table, gpu=gpu, model=model, histogram=histogram_of(source, options.bins))


def price_setup(setup: SetupTable, question: Question, options: PriceOptions) -> Priced:
    """The trace's bins under one set-up."""
    values = Values(setup, method=options.method, max_batch_s=options.max_batch_s, calibration=options.calibration)
    errors = replace(_errors(setup, question.table, options.max_batch_s), modelled=values.model_error())
    counts = question.histogram.counts
    bins = price_bins(counts, values, errors, method=options.method, rare=options.rare)
    known = [(count, one) for count, one in zip(counts, bins, strict=True) if one.how != NO_VALUE]
    places = [lengths_of(count, options.method) for count, _ in known]
    return Priced(
        setup=setup,
        cells=tuple(setup.by_length(options.max_batch_s).values()),
        values=values,
        errors=errors,
        bins=bins,
        spread=values.spread(places, [one.energy_j or 0.0 for _, one in known]),
    )


def _check_options(**options: str) -> None:
    known = {"method": METHODS, "rare": RARE_RULES}
    for name, value in options.items():
        if value not in known[name]:
            raise UsageError.unknown(name, value, known[name], f"Give one with --{name}")


def _find_gpu(table: EnergyTable, name: str | None) -> str:
    if name is None:
        return _only("gpu", {setup.gpu for setup in table.setups if setup.rank == 0}, DEFAULT_GPU, table)
    known = find_gpu_by_driver_name(name)
    return name if known is None or name in table.gpus() else known.name


def _find_model(table: EnergyTable, gpu: str, name: str | None) -> str:
    """The model as the table spells it."""
    if name is None:
        first = {setup.model for setup in table.setups if setup.rank == 0 and setup.gpu == gpu}
        return _only("model", first or set(table.models(gpu)), DEFAULT_MODEL, table)
    return next((known for known in table.models(gpu) if known.lower() == name.lower()), name)


def _only(option: str, measured: set[str], default: str, table: EnergyTable) -> str:
    """The one that was measured, or the default if it is among several."""
    if not measured or default in measured:
        return default
    if len(measured) > 1:
        raise UsageError(
            f"{table.files[0]} holds rows of several: {', '.join(sorted(measured))}. Name one with --{option}"
        )
    return next(iter(measured))


def _choose(table: EnergyTable, gpu: str, model: str, engines: Sequence[str] | None, baseline: str) -> list[SetupTable]:
    """The set-ups asked for, each once, and the baseline before them if it has rows."""
    measured = table.labels(gpu, model)
    labels = [*(measured if engines is None else engines)]
    if baseline in measured:
        labels.insert(0, baseline)
    return [table.find(gpu, model, label) for label in dict.fromkeys(labels)] or [table.find(gpu, model, baseline)]


def histogram_of(source: Trace | Histogram | Any, bins: str | Bins | None) -> Histogram:
    """The bins of a trace; a histogram brings its own.

    Raises:
        UsageError: There are no bins of that name.
        DataError: The trace is not what it should be.
    """
    if isinstance(source, Histogram):
        return source
    if isinstance(bins, str):
        if bins not in BIN_NAMES:
            raise UsageError.unknown("bins", bins, BIN_NAMES)
        edges = None if bins == POWERS_OF_TWO else Bins.paper()
    else:
        edges = bins
    from infergy.workload import Trace, open_requests

    opened = source if isinstance(source, Trace) else open_requests(source)
    return opened if isinstance(opened, Histogram) else opened.histogram(edges)


def _errors(setup: SetupTable, table: EnergyTable, max_batch_s: float) -> SurfaceErrors:
    """What the cells of a set-up, and where they say nothing those of its siblings, tell of its surface's errors."""
    labels = [label for label in table.labels(setup.gpu, setup.model) if label != setup.label]
    others = [table.find(setup.gpu, setup.model, label) for label in labels]
    told = {
        other.label: surface_errors(other.by_length(max_batch_s))
        for other in others
        if other.simulated == setup.simulated
    }
    errors = borrow_errors(surface_errors(setup.by_length(max_batch_s)), setup.label, told)
    return replace(errors, repeat=repeat_error(setup))


def facts_of(histogram: Histogram) -> TraceFacts:
    """What was asked, whether or not a bin holds it."""
    left_out = histogram.left_out
    return TraceFacts(
        source=histogram.source,
        requests=histogram.requests + (left_out.requests if left_out else 0),
        input_tokens=histogram.input_tokens
        + (left_out.input_tokens if left_out else 0)
        + histogram.cached_input_tokens,
        output_tokens=histogram.output_tokens + (left_out.output_tokens if left_out else 0),
        cached_input_tokens=histogram.cached_input_tokens,
        failed_requests=histogram.failed_requests,
        left_out_requests=left_out.requests if left_out else 0,
        lengths_from=histogram.lengths_from,
    )
