"""Prefill and decode apart: what each phase of a batch took, in joules. A pure function of rows.

by pair   a cell and another of the same engine config, input and batch with one output token: the energy of the second
          is that of prefill (and of the first token, which comes out of it), the difference that of decode
by fit    the regression of `infergy.quality.phase_law` over all cells of the engine config

The interval of a difference adds the variances of both cells, Student's with Welch and Satterthwaite's degrees of
freedom. A negative figure is kept, and flagged: it says that the method does not hold there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from infergy.errors import DataError, UsageError
from infergy.quality.phase_law import (
    DECODE,
    FEWEST_ROWS,
    PREFILL,
    TERMS,
    Dropped,
    Law,
    Observed,
    describe_residuals,
    fit_phases,
)
from infergy.records import Load, Measurement, Result, result_of
from infergy.records.agreement import pool_key
from infergy.records.flags import Flag
from infergy.records.uncertainty import STOPPING_FACTOR, Uncertainty, find_uncertainties, student_t
from infergy.records.visits import join_visits
from infergy.units import count_of

PHASES_SCHEMA = "infergy.phases/1"

NEGATIVE = "negative-phase"
MEASURE_PAIRS = "set paired = true in the grid's cells"
BETTER_PAIR = "measure the cell and its pair again, to a tighter --target: decode is what they differ by"
BETTER_GRID = f"give the grid more inputs, outputs and batches, or {MEASURE_PAIRS}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Joules:
    """Joules and their 95 % interval.

    Attributes:
        low_j: Lower end; None where the standard error of a cell is unknown.
        high_j: Upper end; None for the same reason.
    """

    value_j: float
    low_j: float | None
    high_j: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEnergy:
    """The two phases of a batch.

    Attributes:
        prefill: Joules per batch until the first token.
        decode: Joules per batch from there to the last.
        decode_token: Energy of decode an output token after the first; None where there is only that one.
        decode_share: Decode over both.
        flags: ``negative-phase``, where a figure is negative.
    """

    prefill: Joules
    decode: Joules
    decode_token: Joules | None
    decode_share: float
    flags: tuple[Flag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPhases:
    """One measured cell.

    Attributes:
        cell: The cell in words.
        energy_j: Joules per batch, as measured.
        pair: By the paired cell.
        pair_missing: Why there are no figures by pair; None if there are.
        fit: By the regression; its `prefill` and `decode` add up to the fitted energy, not to `energy_j`.
        residual: The fitted joules per batch over the measured, less 1; None where nothing was fitted.
        prefill_difference_j: Prefill by fit less prefill by pair; None where one is missing.
        decode_difference_j: The same for decode.
        time_to_first_token_s: Mean over requests; None where the engine did not report it.
        time_per_output_token_s: The same; None for one output token too.
    """

    cell_id: str
    cell: str
    input_tokens: int
    output_tokens: int
    batch: int
    energy_j: float
    pair: PhaseEnergy | None
    pair_missing: str | None
    fit: PhaseEnergy | None
    residual: float | None
    prefill_difference_j: float | None
    decode_difference_j: float | None
    time_to_first_token_s: float | None
    time_per_output_token_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficient:
    """One fitted coefficient of the regression, `formula` what it multiplies."""

    name: str
    phase: str
    formula: str
    joules: Joules


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseFit:
    """The regression fitted to the cells of an engine config.

    Attributes:
        rows: Cells that it was fitted to.
        dropped: Terms that these cells do not identify.
        mixed: Why it cannot separate the phases; None if it can.
        r2: Share of the variance of the joules per batch that it explains.
        median_residual: Median size of the relative residuals.
        worst_residual: The largest of them, with its sign; `worst_cell` names its cell.
        law_error: Relative error of the regression itself, beyond what the standard errors of the cells explain.
        condition: Condition number of the weighted and scaled columns; from 1 on, the less the better.
        flags: ``negative-phase``, for a negative coefficient.
    """

    rows: int
    coefficients: tuple[Coefficient, ...]
    dropped: tuple[Dropped, ...]
    mixed: str | None
    r2: float
    median_residual: float
    worst_residual: float
    worst_cell: str
    law_error: float
    condition: float
    flags: tuple[Flag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupPhases:
    """All cells of one engine config on one kind of GPU.

    Attributes:
        label: Engine and whatever is not at its default.
        gpu: As the driver names it.
        weights: The distribution of the random weights, or where real ones came from.
        fit_missing: Why nothing was fitted; None if one was.
    """

    label: str
    model: str
    gpu: str
    weights: str
    simulated: bool
    cells: tuple[CellPhases, ...]
    fit: PhaseFit | None
    fit_missing: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseReport:
    """What `infergy show phases --json` prints."""

    file: str
    setups: tuple[SetupPhases, ...]
    schema: str = PHASES_SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    row: Measurement
    result: Result
    uncertainty: Uncertainty | None

    @property
    def load(self) -> Load:
        return self.row.cell.load

    @property
    def error(self) -> float | None:
        """Relative standard error of the joules per batch."""
        one = self.uncertainty
        return None if one is None else one.standard_error


def find_phases(rows: Iterable[Measurement], *, file: str = "", label: str | None = None) -> PhaseReport:
    """The phases of all measured cells, engine config by engine config; several rows of a cell count as its visits.

    Args:
        rows: Rows of one store.
        file: Its name, for the report.
        label: Of the only engine config to judge, such as ``vllm``; None for all.

    Raises:
        DataError: No row was measured offline, or the table is rescaled.
        UsageError: No row is of that engine config.
        MeterError: A counter stood still.
    """
    last: dict[tuple[object, str], Measurement] = {}
    for row in join_visits(rows):
        # Online, prefill and decode of many requests overlap.
        if row.windows and row.loaded_idle is not None and not row.cell.load.is_online:
            last[_group(row), row.cell_id] = row
    if not last:
        # Those served online are not for this.
        message = f"{file or 'the rows'}: no measured cell. Make some with: infergy measure GRID.toml -o FILE.jsonl"
        raise DataError(message, code="no-rows", path=file)
    if any(row.rescaled for row in last.values()):
        message = (
            f"{file or 'the rows'}: rescaled: the effect of its factor's interval on a difference of cells is not "
            "known. Use the table as it was measured"
        )
        raise DataError(message, code="rescaled", path=file)
    labels = sorted({row.cell.label for row in last.values()})
    if label is not None and label not in labels:
        raise UsageError.unknown(
            "engine of the table", label, labels, "Name one with --engine", code="unknown-name", path=file
        )
    groups: dict[object, list[Measurement]] = {}
    for (key, _), row in last.items():
        if label in (None, row.cell.label):
            groups.setdefault(key, []).append(row)
    return PhaseReport(file=file, setups=tuple(_find_setup(group) for group in groups.values()))


def _group(row: Measurement) -> tuple[object, ...]:
    return *pool_key(row), row.cell.load.decoding


def _find_setup(rows: Sequence[Measurement]) -> SetupPhases:
    judged = [_judge(row, one) for row, one in zip(rows, find_uncertainties(rows), strict=True)]
    judged.sort(key=lambda one: (one.load.input_tokens, one.load.output_tokens, one.load.batch))
    pairs = {(one.load.input_tokens, one.load.batch): one for one in judged if one.load.output_tokens == 1}
    observed = [Observed(load=one.load, energy_j=one.result.energy_j, error=one.error) for one in judged]
    law = fit_phases(observed) if len(observed) >= FEWEST_ROWS else None
    first = rows[0]
    return SetupPhases(
        label=first.cell.label,
        model=first.cell.setup.model,
        gpu=" + ".join(gpu.name for gpu in first.environment.gpus),
        weights=first.environment.weights,
        simulated=any(row.simulated for row in rows),
        cells=tuple(_find_cell(one, pairs.get((one.load.input_tokens, one.load.batch)), law) for one in judged),
        fit=None if law is None else _describe(law, observed, [str(one.row.cell) for one in judged]),
        fit_missing=None
        if law is not None
        else f"{count_of(len(observed), 'cell')}; {len(TERMS)} terms need {FEWEST_ROWS} or more: measure more of them",
    )


def _judge(row: Measurement, uncertainty: Uncertainty | None) -> _Judged:
    return _Judged(row=row, result=result_of(row), uncertainty=uncertainty)


def _find_cell(one: _Judged, pair: _Judged | None, law: Law | None) -> CellPhases:
    load = one.load
    by_pair, missing = None, None
    if load.output_tokens == 1:
        missing = "one output token: all of it is prefill"
    elif pair is None:
        missing = f"no cell {load.input_tokens}→1 × {load.batch} in the file: {MEASURE_PAIRS}"
    else:
        by_pair = _by_pair(one, pair)
    by_fit = None if law is None or law.mixed is not None else _by_fit(law, load)
    both = by_pair is not None and by_fit is not None
    return CellPhases(
        cell_id=one.row.cell_id,
        cell=str(one.row.cell),
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
        batch=load.batch,
        energy_j=one.result.energy_j,
        pair=by_pair,
        pair_missing=missing,
        fit=by_fit,
        residual=None if law is None else law.fitted_j(load) / one.result.energy_j - 1,
        prefill_difference_j=by_fit.prefill.value_j - by_pair.prefill.value_j if both and by_fit and by_pair else None,
        decode_difference_j=by_fit.decode.value_j - by_pair.decode.value_j if both and by_fit and by_pair else None,
        time_to_first_token_s=one.result.time_to_first_token_s,
        time_per_output_token_s=one.result.time_per_output_token_s,
    )


def _by_pair(one: _Judged, pair: _Judged) -> PhaseEnergy:
    own = pair.uncertainty
    prefill = Joules(
        value_j=pair.result.energy_j,
        low_j=None if own is None else own.low_j,
        high_j=None if own is None else own.high_j,
    )
    return _phases(one.load, prefill, _difference(one, pair), BETTER_PAIR)


def _difference(one: _Judged, pair: _Judged) -> Joules:
    """Energy of one cell less those of another, with the interval of both."""
    value_j = one.result.energy_j - pair.result.energy_j
    if one.uncertainty is None or pair.uncertainty is None:
        return Joules(value_j=value_j, low_j=None, high_j=None)
    parts = []
    for each, uncertainty in ((one, one.uncertainty), (pair, pair.uncertainty)):
        error = uncertainty.standard_error
        parts.append(((error * each.result.energy_j) ** 2, uncertainty.degrees_of_freedom))
    variance = sum(part for part, _ in parts)
    shared = sum(part**2 / degrees for part, degrees in parts if degrees is not None)
    repeated = len(one.row.windows) > 1 or len(pair.row.windows) > 1
    half_j = student_t(variance**2 / shared if shared else None) * math.sqrt(variance)
    half_j *= STOPPING_FACTOR if repeated else 1.0
    # The tail moves the middle of each cell's interval below its joules.
    middle_j = (one.uncertainty.low_j + one.uncertainty.high_j - pair.uncertainty.low_j - pair.uncertainty.high_j) / 2
    return Joules(value_j=value_j, low_j=middle_j - half_j, high_j=middle_j + half_j)


def _by_fit(law: Law, load: Load) -> PhaseEnergy:
    prefill, decode = (_around(*law.phase_j(load, phase)) for phase in (PREFILL, DECODE))
    return _phases(load, prefill, decode, BETTER_GRID)


def _around(value_j: float, half_j: float) -> Joules:
    return Joules(value_j=value_j, low_j=value_j - half_j, high_j=value_j + half_j)


def _phases(load: Load, prefill: Joules, decode: Joules, fix: str) -> PhaseEnergy:
    tokens = load.batch * (load.output_tokens - 1)
    found = (_flag(PREFILL, prefill, fix), _flag(DECODE, decode, fix))
    return PhaseEnergy(
        prefill=prefill,
        decode=decode,
        decode_token=Joules(
            value_j=decode.value_j / tokens,
            low_j=None if decode.low_j is None else decode.low_j / tokens,
            high_j=None if decode.high_j is None else decode.high_j / tokens,
        )
        if tokens
        else None,
        decode_share=decode.value_j / (prefill.value_j + decode.value_j),
        flags=tuple(flag for flag in found if flag is not None),
    )


def _flag(what: str, joules: Joules, fix: str) -> Flag | None:
    """A figure below 0 with all of its interval, or of an unknown one; None for others."""
    if joules.value_j >= 0 or (joules.high_j is not None and joules.high_j >= 0):
        return None
    high = "its interval is unknown" if joules.high_j is None else f"its interval ends at {joules.high_j:.3g} J"
    return Flag(code=NEGATIVE, reason=f"{what} is {joules.value_j:.3g} J, expected 0 or more; {high}", fix=fix)


def _describe(law: Law, observed: Sequence[Observed], names: Sequence[str]) -> PhaseFit:
    residuals, middle, r2 = describe_residuals(law, observed)
    worst = max(range(len(residuals)), key=lambda place: abs(residuals[place]))
    gone = {one.name for one in law.dropped}
    coefficients = tuple(
        Coefficient(name=term.name, phase=term.phase, formula=term.formula, joules=_around(*law.coefficient_j(place)))
        for place, term in enumerate(TERMS)
        if term.name not in gone
    )
    flags = (_flag(f"{one.name} ({one.formula})", one.joules, BETTER_GRID) for one in coefficients)
    return PhaseFit(
        rows=len(observed),
        coefficients=coefficients,
        dropped=law.dropped,
        mixed=law.mixed,
        r2=r2,
        median_residual=middle,
        worst_residual=residuals[worst],
        worst_cell=names[worst],
        law_error=law.error,
        condition=law.condition,
        flags=tuple(flag for flag in flags if flag is not None),
    )
