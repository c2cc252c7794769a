"""From priced bins to an `Estimate`: totals, coverage, gap, saving, and how each number was obtained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from infergy.energy.answer import BatchChoices, Estimate, Provenance, SourceUse
from infergy.energy.options import AT_CORNERS, CEILING, FRACTIONAL, MEAN, TABLE
from infergy.energy.price import NO_VALUE, BinEnergy
from infergy.energy.reference import NO_REQUEST, Reference
from infergy.energy.surface import EXTRAPOLATED, INTERPOLATED, MEASURED, MODELLED, SurfaceError, SurfaceErrors
from infergy.energy.table import SHIPPED_PREFIX, EnergyTable, SetupTable, SourceFacts, TableCell
from infergy.energy.values import Values, add_chips
from infergy.units import SECONDS_PER_HOUR, format_duration, format_percent, to_wh
from infergy.workload.bins import BinCount, Histogram

FEW_NAMED = 3
"""Failed cells that a note names."""

RARE_TEXT = {
    FRACTIONAL: "a bin of N requests costs N / B of a batch of B, also where N < B: rare requests ride along",
    "whole": "a bin of N requests costs ⌈N / B⌉ whole batches of B",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """One engine's bins before they are compared.

    Attributes:
        cells: The cells that count, one at each length.
        bins: The bins of the histogram, in its order.
        spread: Half the width of the 90 % interval of the logarithm of all joules; None where the model tells none.
    """

    setup: SetupTable
    cells: tuple[TableCell, ...]
    values: Values
    errors: SurfaceErrors
    bins: tuple[BinEnergy, ...]
    spread: float | None = None


def summarise(
    one: Priced,
    base: Priced | None,
    histogram: Histogram,
    reference: Reference,
    *,
    baseline: str,
    method: str,
    rare: str,
) -> Estimate:
    """The estimate of one engine; `base` is the baseline's, None if it was not measured, or in too few cells."""
    pairs = [(b, c) for b, c in zip(one.bins, histogram.counts, strict=True) if b.how != NO_VALUE]
    counts = [count for _, count in pairs]
    totals = _totals([b for b, _ in pairs], [b for b in one.bins if b.how == NO_VALUE])
    if histogram.cached_input_tokens and totals.high_j is not None:
        totals = replace(totals, high_j=None, high_reason="decode reads cached input too, which is not priced")
    requests, input_tokens, output_tokens = _sums(counts)
    gpus = one.setup.setup.tensor_parallel
    energy_j, busy_s = totals.energy_j, totals.duration_s
    duration_s = None if busy_s is None else busy_s * gpus
    ideal_j, gap, gap_reason = _gap(energy_j, counts, histogram, reference)
    saving, saving_reason = _saving(one, base, baseline)
    shares = _shares(one.bins, histogram)
    half = add_chips(one.spread, one.errors.repeat)
    return Estimate(
        model=one.setup.model,
        gpu=one.setup.gpu,
        engine=one.setup.label,
        gpus=gpus,
        method=method,
        energy_j=energy_j,
        interval_low_j=None if energy_j is None or half is None else energy_j * math.exp(-half),
        interval_high_j=None if energy_j is None or half is None else energy_j * math.exp(half),
        low_j=totals.low_j,
        high_j=totals.high_j,
        duration_s=duration_s,
        gpu_hours=None if duration_s is None else duration_s / SECONDS_PER_HOUR,
        energy_wh=None if energy_j is None else to_wh(energy_j),
        power_w=_ratio(energy_j, duration_s),
        output_tokens_per_s=_ratio(output_tokens, busy_s),
        tokens_per_s=_ratio(input_tokens + output_tokens, busy_s),
        energy_per_request_j=_ratio(energy_j, requests),
        energy_per_output_token_j=_ratio(energy_j, output_tokens),
        priced_requests=requests,
        priced_output_tokens=output_tokens,
        coverage=shares.requests[MEASURED],
        coverage_output_tokens=shares.measured_output_tokens,
        modelled=shares.requests[MODELLED],
        interpolated=shares.requests[INTERPOLATED],
        extrapolated=shares.requests[EXTRAPOLATED],
        ideal_energy_j=ideal_j,
        gap_to_ideal=gap,
        saving_vs_baseline=saving,
        provenance=_provenance(one, rare),
        bins=one.bins,
        energy_reason=totals.energy_reason,
        interval_reason=None if energy_j is None or half is not None else _no_interval(method),
        low_reason=totals.low_reason,
        high_reason=totals.high_reason,
        gap_reason=gap_reason,
        saving_reason=saving_reason,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Totals:
    energy_j: float | None
    low_j: float | None
    high_j: float | None
    duration_s: float | None
    energy_reason: str | None = None
    low_reason: str | None = None
    high_reason: str | None = None


def _totals(priced: Sequence[BinEnergy], unpriced: Sequence[BinEnergy]) -> _Totals:
    if not priced:
        reason = "no bin of this trace has a value: too few cells were measured" if unpriced else NO_REQUEST
        return _Totals(
            energy_j=None,
            low_j=None,
            high_j=None,
            duration_s=None,
            energy_reason=reason,
            low_reason=reason,
            high_reason=reason,
        )
    low_reason = high_reason = None
    if any(b.low_j is None for b in priced):
        low_reason = "the floor of a bin has no value, or no measured cell tells how far it may be off"
    if any(b.high_j is None for b in priced):
        high_reason = "no measured cell tells how far an interpolated or extrapolated bin may be off"
    if unpriced:
        requests = sum(b.requests for b in unpriced)
        high_reason = f"{requests:,} requests lie in bins without a value: there is no bound on the whole trace"
    return _Totals(
        energy_j=sum(b.energy_j or 0.0 for b in priced),
        low_j=None if low_reason else sum(b.low_j or 0.0 for b in priced),
        high_j=None if high_reason else sum(b.high_j or 0.0 for b in priced),
        duration_s=sum(b.duration_s or 0.0 for b in priced),
        low_reason=low_reason,
        high_reason=high_reason,
    )


def _sums(counts: Iterable[BinCount]) -> tuple[int, int, int]:
    requests = input_tokens = output_tokens = 0
    for count in counts:
        requests += count.requests
        input_tokens += count.input_tokens
        output_tokens += count.output_tokens
    return requests, input_tokens, output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shares:
    requests: dict[str, float]
    measured_output_tokens: float


def _shares(bins: Sequence[BinEnergy], histogram: Histogram) -> _Shares:
    """Shares of all requests, those past the last bin included, by how their bin was obtained."""
    left_out = histogram.left_out
    all_requests = histogram.requests + (left_out.requests if left_out else 0)
    all_output = histogram.output_tokens + (left_out.output_tokens if left_out else 0)
    requests: Counter[str] = Counter()
    output_tokens: Counter[str] = Counter()
    for one, count in zip(bins, histogram.counts, strict=True):
        requests[one.how] += count.requests
        output_tokens[one.how] += count.output_tokens
    kinds = (MEASURED, MODELLED, INTERPOLATED, EXTRAPOLATED)
    return _Shares(
        requests={kind: requests[kind] / all_requests if all_requests else 0.0 for kind in kinds},
        measured_output_tokens=output_tokens[MEASURED] / all_output if all_output else 0.0,
    )


def _no_interval(method: str) -> str:
    if method == TABLE:
        return "curves through cells tell none; the physical model does"
    return "the physical model does not apply to this engine, model or GPU"


def _ratio(value: float | None, over: float | None) -> float | None:
    return value / over if value is not None and over else None


def _gap(
    energy_j: float | None, counts: Sequence[BinCount], histogram: Histogram, reference: Reference
) -> tuple[float | None, float | None, str | None]:
    """The ideal of the priced requests, the gap to it, and the reason if there is none."""
    if energy_j is None:
        return None, None, "there is no estimate to compare"
    found = reference.of(replace(histogram, counts=tuple(counts), left_out=None))
    if found.ideal is None:
        return None, None, found.reason
    return found.ideal.energy_j, energy_j / found.ideal.energy_j - 1, None


def _saving(one: Priced, base: Priced | None, baseline: str) -> tuple[float | None, str | None]:
    if base is None:
        return None, f"the baseline {baseline} has no rows for this model and GPU, or too few"
    if base.setup.simulated != one.setup.simulated:
        return None, "one of the two is simulated, the other measured"
    both = [
        (mine.energy_j, theirs.energy_j)
        for mine, theirs in zip(one.bins, base.bins, strict=True)
        if mine.energy_j is not None and theirs.energy_j is not None
    ]
    if not both:
        return None, f"no bin has a value under both {one.setup.label} and {baseline}"
    return 1 - sum(mine for mine, _ in both) / sum(theirs for _, theirs in both), None


def _provenance(one: Priced, rare: str) -> Provenance:
    used = Counter(cell.source for cell in one.cells)
    # Without the figures of the single cell, which its row holds.
    choices = Counter(cell.batch_choice.partition(" (")[0] for cell in one.cells)
    return Provenance(
        sources=tuple(
            SourceUse(
                file=facts.source,
                lengths=used[facts.source],
                driver=facts.driver,
                power_limits_w=facts.power_limits_w,
                packages=facts.packages,
                gpu_uuids=facts.gpu_uuids,
                measured_from=facts.measured_from,
                measured_to=facts.measured_to,
                rescaled=facts.rescaled,
            )
            for facts in _used(one)
        ),
        rows=tuple(cell.cell_id for cell in one.cells),
        weights=one.setup.weights,
        batch_choices=tuple(BatchChoices(text=text, lengths=count) for text, count in choices.most_common()),
        rare_rule=f"{rare}: {RARE_TEXT[rare]}",
        errors=one.errors,
        simulated=one.setup.simulated,
    )


def _used(one: Priced) -> list[SourceFacts]:
    """The files whose cells make the surface, the better ranked first."""
    used = {cell.source for cell in one.cells}
    return sorted((facts for facts in one.setup.sources if facts.source in used), key=lambda facts: facts.rank)


def notes_on(
    table: EnergyTable,
    priced: Sequence[Priced],
    histogram: Histogram,
    *,
    method: str,
    rare: str,
    max_batch_s: float,
) -> tuple[str, ...]:
    """How the figures were obtained and what limits them, in words, one statement each."""
    notes = [_method_text(method), f"rare bins, {rare}: {RARE_TEXT[rare]}"]
    notes += _trace_notes(histogram)
    for one in priced:
        notes += _engine_notes(one, max_batch_s)
    notes += _chip_notes(priced)
    if any(one.setup.simulated for one in priced):
        notes.append("SIMULATED: these joules come from a model and say nothing about real hardware")
    notes += _unused_files(table, priced[0].setup)
    notes += table.notes_on(priced[0].setup.gpu)
    failed = [row for row in table.failed if row.gpu == priced[0].setup.gpu]
    if failed:
        named = ", ".join(f"{row.cell} ({row.reason.partition(':')[0]})" for row in failed[:FEW_NAMED])
        more = f" and {len(failed) - FEW_NAMED} more" if len(failed) > FEW_NAMED else ""
        notes.append(f"failed, and so without a value: {named}{more}")
    return tuple(notes)


def _chip_notes(priced: Sequence[Priced]) -> list[str]:
    """That engines compared were measured on different chips; one that works on several holds those of the others."""
    chips = [{uuid for facts in _used(one) for uuid in facts.gpu_uuids} for one in priced]
    every = set().union(*chips)
    if len(priced) < 2 or len(every) <= max(one.setup.setup.tensor_parallel for one in priced):
        return []
    return [f"the engines were not all measured on one chip: {', '.join(sorted(every))}"]


def _unused_files(table: EnergyTable, setup: SetupTable) -> list[str]:
    """The user's files that have nothing to say of this model on this GPU."""
    same = [other for other in table.setups if (other.gpu, other.model) == (setup.gpu, setup.model)]
    heard = {facts.source for other in same for facts in other.sources}
    return [
        f"{file}: none of its rows is of {setup.model} on {setup.gpu}; to estimate what it holds: --gpu, --model"
        for file in table.files
        if file not in heard and not file.startswith(SHIPPED_PREFIX)
    ]


def _method_text(method: str) -> str:
    if method in AT_CORNERS:
        drawn = "" if method == CEILING else ", by measured cells and curves through them alone"
        return (
            f"{method}: each request is priced at the upper corner of its bin, which over-counts{drawn}; "
            "low..high brackets it"
        )
    by = "the measured cell or else the" if method == MEAN else "the"
    return (
        f"{method}: each bin is priced at the mean lengths of its requests, by {by} physical model; "
        "low..high is floor to ceiling"
    )


def _trace_notes(histogram: Histogram) -> list[str]:
    notes = []
    if histogram.left_out:
        notes.append(
            f"{histogram.left_out.requests:,} requests lie past the last bin and are not priced; "
            "to leave nobody out: --bins powers-of-two"
        )
    if histogram.failed_requests:
        notes.append(f"{histogram.failed_requests:,} requests without output are set aside")
    if histogram.cached_input_tokens:
        notes.append(f"{histogram.cached_input_tokens:,} cached input tokens cost no prefill and are not priced")
    return notes


def _engine_notes(one: Priced, max_batch_s: float) -> list[str]:
    label = one.setup.label
    notes = [f"{label}: {text}" for text in describe_errors(one.errors, {b.how for b in one.bins})]
    unpriced = sum(b.requests for b in one.bins if b.how == NO_VALUE)
    if unpriced:
        notes.append(f"{label}: {unpriced:,} requests lie in bins without a value; the figures are of the others")
    larger = [
        f"{more.batch} instead of {cell.batch} at {cell.input_tokens}→{cell.output_tokens} take "
        f"{format_percent(1 - more.energy_j / cell.energy_j)} fewer joules a request "
        f"({format_duration(more.duration_s * more.batch)} a batch)"
        for cell, more in one.setup.larger_batches(max_batch_s)
    ]
    if larger:
        notes.append(f"{label}: batches of over {max_batch_s:g} s do not count: {', '.join(larger)}")
    notes += [
        f"{label}: RESCALED: the joules of {facts.source} were measured on {', '.join(facts.gpu_uuids)}, then scaled "
        f"{facts.rescaled}, found by {len(facts.rescaled.cells)} of its cells; low..high holds the interval"
        for facts in _used(one)
        if facts.rescaled is not None
    ]
    used = Counter(cell.source for cell in one.cells)
    if len(used) > 1:
        shares = ", ".join(f"{count} from {source}" for source, count in used.items())
        notes.append(
            f"{label}: {len(one.cells)} measured lengths, {shares}; where both have one, the first file's counts"
        )
    return notes


def describe_errors(errors: SurfaceErrors, used: set[str]) -> list[str]:
    """The errors of the ways in `used` by which values were obtained, and of measuring again, in words."""
    named: list[tuple[str, SurfaceError | None]] = []
    if MODELLED in used:
        named.append(("the physical model, given the measured cells,", errors.modelled))
    if used & {INTERPOLATED, EXTRAPOLATED}:
        named += [("interpolation along output", errors.output), ("interpolation along input", errors.input)]
    if EXTRAPOLATED in used:
        named += [
            ("extrapolation by one doubling past the last cell", errors.past),
            ("extrapolation by one halving before the first cell", errors.before),
        ]
    named.append(("measuring again", errors.repeat))
    return [
        f"{name} is off by {format_percent(error.median)} (median), {format_percent(error.maximum)} at most "
        f"({error.worst}), over {error.points} cells: {error.basis}"
        if error
        else f"{name}: error unknown, no measured cell can be left out to tell"
        for name, error in named
    ]
