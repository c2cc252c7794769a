"""Which measured configuration serves a trace with the fewest joules, and what each step towards it brings.

A configuration is an engine set-up and a rule for its batches. All are priced as `infergy.energy.estimate` prices them.

Two configurations differ significantly if their joules lie further apart than what is not common to them. Bins and the
rule by which they are priced are common: `low` and `high` of an estimate say nothing here. Not common are

    rows     the 95 % intervals of the rows behind each bin, all taken to err to the same side
    chips    the median distance of the same cells on another chip, where replicates tell it
    drawing  the median error of interpolation and extrapolation, on the share of joules that they give

each as a share of a configuration's joules; the parts and the two configurations add in quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from infergy.energy.answer import TraceFacts
from infergy.energy.comparable import is_partial, partial_notes, priced_share
from infergy.energy.drafting import assisted_options, drafting_notes, drafting_options
from infergy.energy.estimate import PriceOptions, Question, open_question, price_setup
from infergy.energy.pace import Pace, find_pace, in_pace, share_within
from infergy.energy.price import NO_VALUE, BinEnergy
from infergy.energy.summary import Priced
from infergy.energy.surface import MEASURED, SurfaceError
from infergy.energy.table import SetupTable, TableCell
from infergy.errors import UsageError
from infergy.records import DEFAULT_DTYPE, FP8, EngineSetup
from infergy.units import SECONDS_PER_HOUR

RECOMMENDATION_SCHEMA = "infergy.recommendation/1"

ENOUGH = 0.99
"""Share of the requests that must keep a bound for a configuration to keep it."""

AXES = ("engine", "compiled", "cuda_graphs", "dtype", "tensor_parallel", "speculation")
"""In which order a change of set-up is told step by step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to serve the trace.

    Attributes:
        engine: Label of the set-up.
        max_batch_s: Seconds that a batch may take; None for any.
        largest_batch: The largest batch among the trace's bins; `longest_batch_s` the seconds of the longest.
        options: What to type for it, the engine's own options.
        energy_j: Joules of the priced requests; `low_j` and `high_j` as `infergy estimate` tells them.
        own_error: What is not common to it and others, as a share of its joules.
        gpu_hours: Busy GPU time.
        priced_share: Share of all requests that could be priced.
        within_bound: Share of the priced requests whose time per output token keeps the bound; None without a bound.
        paces: How many cells tell their time per output token how: ``told``, ``two cells``, ``bound``.
        changes_outputs: Why its answers differ from the baseline's; None if they do not.
        saving: 1 − its joules over those of the baseline; None if the baseline was not measured.
        saving_vs_present: Likewise over the user's present configuration; None if none was named.
        like_best: Whether it does not differ significantly from the best.
    """

    engine: str
    max_batch_s: float | None
    largest_batch: int
    longest_batch_s: float
    options: tuple[str, ...]
    energy_j: float
    low_j: float | None
    high_j: float | None
    own_error: float
    gpu_hours: float
    priced_share: float
    within_bound: float | None
    paces: dict[str, int]
    changes_outputs: str | None
    saving: float | None
    saving_vs_present: float | None
    like_best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change on the way to the best set-up.

    Attributes:
        change: What changes, in words.
        engine: Label of the set-up after it.
        energy_j: Joules after it.
        change_j: Joules more, negative for fewer.
        is_significant: Whether that is more than what is not common to both.
    """

    change: str
    engine: str
    energy_j: float
    change_j: float
    is_significant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """What `infergy recommend` says.

    Attributes:
        tpot_s: The bound on time per output token; None without.
        configurations: Those that keep the bound first, each group by joules.
        steps: From the baseline, or the present configuration, to the best.
        notes: What a reader must know, in words.
    """

    trace: TraceFacts
    model: str
    gpu: str
    baseline: str
    present: str | None
    tpot_s: float | None
    configurations: tuple[Configuration, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...]
    schema: str = RECOMMENDATION_SCHEMA

    @property
    def best(self) -> Configuration:
        """The one to choose."""
        return self.configurations[0]


@dataclass(frozen=True, slots=True)
class _Candidate:
    setup: SetupTable
    max_batch_s: float
    priced: Priced
    energy_j: float
    own_error: float
    within: float | None
    paces: dict[tuple[int, int], Pace]


def recommend(
    source: object,
    options: PriceOptions,
    *,
    tpot_s: float | None = None,
    present: str | None = None,
    keep_outputs: bool = False,
) -> Recommendation:
    """Rank what was measured.

    Args:
        source: A `Trace`, a `Histogram`, or whatever `infergy.open_trace` takes.
        options: What to price with, as for an estimate.
        tpot_s: Bound on the time per output token, in seconds.
        present: Label of the configuration that serves now.
        keep_outputs: Leave out what changes the model's answers.

    Raises:
        UsageError: A name is unknown, or nothing was measured, or nothing can be priced.
    """
    if tpot_s is not None and not tpot_s > 0:
        raise UsageError(f"a bound of {tpot_s:g} s per output token: give more than 0 with --tpot, as 0.05")
    question = open_question(source, options)
    table, gpu, model = question.table, question.gpu, question.model
    labels = table.labels(gpu, model)
    for name in (present,) if present else ():
        if name not in labels:
            raise UsageError.unknown("measured configuration", name, labels, "Name one with --present")
    candidates = [
        candidate
        for label in labels
        for candidate in _candidates(table.find(gpu, model, label), question, options, tpot_s)
    ]
    candidates, partial = _comparable(candidates)
    base = _first(candidates, options.baseline)
    now = _first(candidates, present) if present else None
    if present and now is None:
        raise UsageError(_too_few(present, partial))
    reference = now or base
    if keep_outputs:
        candidates = [one for one in candidates if _changes_outputs(one.setup, reference) is None]
    if not candidates:
        raise UsageError("no measured configuration can price this trace. Measure one: infergy measure paper-bins")
    ranked = sorted(candidates, key=_rank)
    best = ranked[0]
    return Recommendation(
        trace=question.facts,
        model=model,
        gpu=gpu,
        baseline=options.baseline,
        present=present,
        tpot_s=tpot_s,
        configurations=tuple(_configuration(one, best, base, now, reference) for one in ranked),
        steps=tuple(_steps(reference, best, candidates)) if reference is not None else (),
        notes=(
            *_notes(ranked, base, options.baseline, tpot_s),
            *partial_notes([one.priced for one in partial], "to rank them, measure more of them"),
            *table.notes_on(gpu),
        ),
    )


def _rank(one: _Candidate) -> tuple[float, float]:
    """Those that keep the bound first, by joules; then those that do not, the nearest to it first."""
    if one.within is None or one.within >= ENOUGH:
        return -1.0, one.energy_j
    return 1 - one.within, one.energy_j


def _too_few(present: str, partial: Sequence[_Candidate]) -> str:
    """Why the present configuration stands beside no other."""
    shares = [priced_share(one.priced) for one in partial if one.setup.label == present]
    told = f"price {max(shares):.1%} of the requests" if shares else "price no request"
    return (
        f"--present {present}: its measured cells {told}, too few to tell what leaving it saves. Measure more of them: "
        f"infergy measure paper-bins --engine {present} -o mine.jsonl, then --table mine.jsonl"
    )


def _comparable(candidates: Sequence[_Candidate]) -> tuple[list[_Candidate], list[_Candidate]]:
    """Those that price as many of the requests as any, and the others."""
    every = [one.priced for one in candidates]
    partial = [one for one in candidates if is_partial(one.priced, every)]
    return [one for one in candidates if one not in partial], partial


def _candidates(
    setup: SetupTable, question: Question, options: PriceOptions, tpot_s: float | None
) -> Iterator[_Candidate]:
    """The set-up with batches in time, and with any batch where larger ones were measured."""
    caps = [options.max_batch_s]
    if setup.larger_batches(options.max_batch_s):
        caps.append(math.inf)
    seen: set[tuple[TableCell, ...]] = set()
    for cap in caps:
        kept = setup if tpot_s is None else replace(setup, cells=tuple(in_pace(setup.cells, tpot_s)))
        priced = price_setup(kept, question, replace(options, max_batch_s=cap))
        known = [one for one in priced.bins if one.how != NO_VALUE]
        energy_j = sum(one.energy_j or 0.0 for one in known)
        if not energy_j or priced.cells in seen:
            continue
        seen.add(priced.cells)
        paces = {(cell.input_tokens, cell.output_tokens): find_pace(cell, setup.cells) for cell in priced.cells}
        yield _Candidate(
            setup=setup,
            max_batch_s=cap,
            priced=priced,
            energy_j=energy_j,
            own_error=own_error(priced, energy_j),
            within=None if tpot_s is None else share_within(priced.bins, paces, tpot_s),
            paces=paces,
        )


def own_error(priced: Priced, energy_j: float) -> float:
    """What is not common to this configuration and others, as a share of its joules."""
    if priced.spread is not None:
        return math.hypot(math.expm1(priced.spread), _median(priced.errors.repeat))
    rows_j = drawn_j = 0.0
    for one in priced.bins:
        value = priced.values.at(one.input_tokens, one.output_tokens)
        if one.energy_j is None or value is None:
            continue
        rows_j += one.energy_j * value.doubt
        if value.how != MEASURED:
            errors = [(priced.errors.past, value.octaves_past), (priced.errors.before, value.octaves_before)]
            errors += [(priced.errors.output if axis == "output" else priced.errors.input, 1.0) for axis in value.axes]
            drawn_j += one.energy_j * sum(times * _median(error) for error, times in errors)
    return math.hypot(rows_j / energy_j, drawn_j / energy_j, _median(priced.errors.repeat))


def _median(error: SurfaceError | None) -> float:
    return error.median if error is not None else 0.0


def _differ(one: _Candidate, other: _Candidate) -> bool:
    apart_j = abs(one.energy_j - other.energy_j)
    return apart_j > math.hypot(one.energy_j * one.own_error, other.energy_j * other.own_error)


def _first(candidates: Iterable[_Candidate], label: str) -> _Candidate | None:
    return next((one for one in candidates if one.setup.label == label), None)


def _changes_outputs(setup: SetupTable, reference: _Candidate | None) -> str | None:
    if setup.label != setup.setup.label:
        return f"tokens are chosen otherwise: {setup.label.removeprefix(setup.setup.label + '-')}"
    if reference is not None and setup.setup.dtype != reference.setup.setup.dtype:
        return f"{setup.setup.dtype} instead of {reference.setup.setup.dtype}"
    return None


def _configuration(
    one: _Candidate,
    best: _Candidate,
    base: _Candidate | None,
    now: _Candidate | None,
    reference: _Candidate | None,
) -> Configuration:
    known = _known(one)
    basis: dict[str, int] = {}
    for pace in one.paces.values():
        basis[pace.basis] = basis.get(pace.basis, 0) + 1
    seconds = sum(found.duration_s or 0.0 for found in known) * one.setup.setup.tensor_parallel
    largest = max(found.batch or 1 for found in known)
    return Configuration(
        engine=one.setup.label,
        max_batch_s=None if math.isinf(one.max_batch_s) else one.max_batch_s,
        largest_batch=largest,
        longest_batch_s=max(map(_batch_s, known)),
        options=engine_options(one.setup.setup, largest),
        energy_j=one.energy_j,
        low_j=_total([found.low_j for found in known]),
        high_j=_total([found.high_j for found in known]),
        own_error=one.own_error,
        gpu_hours=seconds / SECONDS_PER_HOUR,
        priced_share=priced_share(one.priced),
        within_bound=one.within,
        paces=basis,
        changes_outputs=_changes_outputs(one.setup, reference),
        saving=None if base is None else 1 - one.energy_j / base.energy_j,
        saving_vs_present=None if now is None else 1 - one.energy_j / now.energy_j,
        like_best=one is best or not _differ(one, best),
    )


def _known(one: _Candidate) -> list[BinEnergy]:
    return [found for found in one.priced.bins if found.how != NO_VALUE]


def _batch_s(one: BinEnergy) -> float:
    """Seconds of one whole batch of a bin."""
    return (one.duration_s or 0.0) / one.requests * (one.batch or 1) if one.requests else 0.0


def _total(values: Sequence[float | None]) -> float | None:
    return None if any(value is None for value in values) else sum(value for value in values if value is not None)


def engine_options(setup: EngineSetup, largest_batch: int) -> tuple[str, ...]:
    """What to type to have an engine run so: vLLM's own options; of transformers, what to write."""
    if setup.engine == "vllm":
        is_fp8 = setup.dtype == FP8
        given = ["vllm serve MODEL", f"--dtype {DEFAULT_DTYPE if is_fp8 else setup.dtype}"]
        given += ["--quantization fp8_per_tensor"] if is_fp8 else []
        given += [f"--max-num-seqs {largest_batch}"]
        given += [f"--tensor-parallel-size {setup.tensor_parallel}"] if setup.tensor_parallel > 1 else []
        given += ["--enforce-eager"] if setup.cuda_graphs is False else []
        return (*given, *drafting_options(setup))
    static = [', cache_implementation="static"'] if setup.compiled else []
    static += [f", {option}" for option in assisted_options(setup)]
    return (f"model.generate(batches of up to {largest_batch}{''.join(static)})", f"dtype=torch.{setup.dtype}")


def _steps(start: _Candidate, best: _Candidate, candidates: Sequence[_Candidate]) -> Iterator[Step]:
    """One axis at a time, where both ends were measured; what was not measured by itself goes with the next change."""
    by_setup = {(one.setup.setup, one.max_batch_s): one for one in reversed(candidates)}
    here, setup, words = start, start.setup.setup, list[str]()
    for axis in AXES:
        wanted = getattr(best.setup.setup, axis)
        if getattr(setup, axis) == wanted:
            continue
        setup = replace(setup, **{axis: wanted})
        unset = "off" if axis == "speculation" else "by default"
        words.append(f"{axis.replace('_', ' ')} {unset if wanted is None else wanted}")
        reached = by_setup.get((setup, start.max_batch_s))
        if reached is not None:
            yield _step(here, reached, words)
            here, words = reached, []
    if best.max_batch_s != here.max_batch_s:
        words.append("batches of any duration" if math.isinf(best.max_batch_s) else f"batches ≤ {best.max_batch_s:g} s")
    if here is not best:
        yield _step(here, best, words or ["all else"])


def _step(here: _Candidate, reached: _Candidate, words: Sequence[str]) -> Step:
    return Step(
        change=", ".join(words),
        engine=reached.setup.label,
        energy_j=reached.energy_j,
        change_j=reached.energy_j - here.energy_j,
        is_significant=_differ(here, reached),
    )


def _notes(ranked: Sequence[_Candidate], base: _Candidate | None, baseline: str, tpot_s: float | None) -> Iterator[str]:
    if base is None:
        yield f"the unoptimised engine {baseline} has no rows here, or too few: no saving is told"
    if any(one.setup.simulated for one in ranked):
        yield "SIMULATED rows are among these: they say nothing about real hardware"
    yield from drafting_notes(one.setup.setup for one in ranked)
    late_s = [seconds for one in ranked for seconds in map(_batch_s, _known(one)) if seconds > one.max_batch_s]
    if late_s:
        cap_s = min(one.max_batch_s for one in ranked)
        yield (
            f"≤ {cap_s:g} s is held by the measured cells: at lengths between them and past them, and where none was "
            f"in time, batches take up to {max(late_s):.0f} s"
        )
    if tpot_s is not None and all(one.within is not None and one.within < ENOUGH for one in ranked):
        yield (
            f"no measured configuration keeps {tpot_s:g} s per output token for {ENOUGH:.0%} of the requests: "
            "measure smaller batches (infergy measure --batch 1,8,32)"
        )
    for one in ranked[:1] if tpot_s is not None else ():
        batches = [found.batch for found in one.priced.bins if found.batch is not None]
        if min(batches) < max(batches):
            yield (
                f"the first takes batches of {min(batches)} to {max(batches)}, by length; an engine has one limit for "
                f"all: what is to be typed allows the largest of them, and {min(batches)} is what every length keeps "
                "as well as it can"
            )
    if tpot_s is not None:
        yield (
            "time per output token: where engines did not tell it, it follows from two cells of one input and batch, "
            "or is bounded by seconds of a batch over output tokens, which holds prefill too"
        )
