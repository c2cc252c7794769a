"""Prefill and decode apart: what each phase of a batch took, in joules. A pure function of rows.

by pair   a cell and another of the same engine config, input and batch with one output token: the energy of the second
          is that of prefill (and of the first token, which comes out of it), the difference that of decode
by fit    the regression of `infergy.quality.phase_regression` over all cells of the engine config

The interval of a difference adds the variances of both cells, Student's with Welch and Satterthwaite's degrees of
freedom. A negative figure is kept, and flagged: it says that the method does not hold there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from infergy.errors import DataError, UsageError
from infergy.quality.compare import Judged, half_of_sum, judge, measured_rows
from infergy.quality.phase_regression import (
    DECODE,
    FEWEST_ROWS,
    PREFILL,
    TERMS,
    Dropped,
    Observed,
    Regression,
    describe_residuals,
    fit_phases,
)
from infergy.records import Load, Measurement
from infergy.records.agreement import pool_key
from infergy.records.flags import Flag
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
class MeasuredCell:
    """One measured cell.

    Attributes:
        cell: The cell in words.
        energy_j: Joules per batch, as measured.
        time_to_first_token_s: Mean over requests; None where the engine did not report it.
        time_per_output_token_s: The same; None for one output token too.
    """

    cell_id: str
    cell: str
    input_tokens: int
    output_tokens: int
    batch: int
    energy_j: float
    time_to_first_token_s: float | None
    time_per_output_token_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPhases(MeasuredCell):
    """The phases of one measured cell.

    Attributes:
        pair: By the paired cell.
        pair_missing: Why there are no figures by pair; None if there are.
        fit: By the regression; its `prefill` and `decode` add up to the fitted energy, not to `energy_j`.
        residual: The fitted joules per batch over the measured, less 1; None where nothing was fitted.
        prefill_difference_j: Prefill by fit less prefill by pair; None where one is missing.
        decode_difference_j: The same for decode.
    """

    pair: PhaseEnergy | None
    pair_missing: str | None
    fit: PhaseEnergy | None
    residual: float | None
    prefill_difference_j: float | None
    decode_difference_j: float | None


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
    last = {
        (pool_key(row), row.cell.load.decoding, row.cell_id): row
        for row in measured_rows(rows)
        if not row.cell.load.is_online  # there prefill and decode of many requests overlap
    }
    name = file or "the rows"
    if not last:
        message = f"{name}: no measured cell. Make some with: infergy measure GRID.toml -o FILE.jsonl"
        raise DataError(message, code="no-rows", path=file)
    if any(row.rescaled for row in last.values()):
        message = (
            f"{name}: rescaled: the effect of its factor's interval on a difference of cells is not "
            "known. Use the table as it was measured"
        )
        raise DataError(message, code="rescaled", path=file)
    labels = sorted({row.cell.label for row in last.values()})
    if label not in (None, *labels):
        raise UsageError.unknown(
            "engine of the table", str(label), labels, "Name one with --engine", code="unknown-name", path=file
        )
    groups: dict[object, list[Measurement]] = {}
    for (*key, _), row in last.items():
        if label in (None, row.cell.label):
            groups.setdefault(tuple(key), []).append(row)
    return PhaseReport(file=file, setups=tuple(_find_setup(group) for group in groups.values()))


def _find_setup(rows: Sequence[Measurement]) -> SetupPhases:
    cells = judge(rows)
    cells.sort(key=lambda cell: (_load(cell).input_tokens, _load(cell).output_tokens, _load(cell).batch))
    pairs = {(_load(cell).input_tokens, _load(cell).batch): cell for cell in cells if _load(cell).output_tokens == 1}
    observed = [
        Observed(
            load=_load(cell),
            energy_j=cell.result.energy_j,
            error=None if cell.uncertainty is None else cell.uncertainty.standard_error,
        )
        for cell in cells
    ]
    fit = fit_phases(observed) if len(observed) >= FEWEST_ROWS else None
    missing = f"{count_of(len(observed), 'cell')}; {len(TERMS)} terms need {FEWEST_ROWS} or more: measure more of them"
    first = rows[0]
    return SetupPhases(
        label=first.cell.label,
        model=first.cell.setup.model,
        gpu=" + ".join(gpu.name for gpu in first.environment.gpus),
        weights=first.environment.weights,
        simulated=any(row.simulated for row in rows),
        cells=tuple(_find_cell(cell, pairs.get((_load(cell).input_tokens, _load(cell).batch)), fit) for cell in cells),
        fit=None if fit is None else _describe(fit, observed, [str(cell.row.cell) for cell in cells]),
        fit_missing=missing if fit is None else None,
    )


def _load(cell: Judged) -> Load:
    return cell.row.cell.load


def _find_cell(cell: Judged, pair: Judged | None, fit: Regression | None) -> CellPhases:
    load, result = _load(cell), cell.result
    by_pair = missing = None
    if load.output_tokens == 1:
        missing = "one output token: all of it is prefill"
    elif pair is None:
        missing = f"no cell {load.input_tokens}→1 × {load.batch} in the file: {MEASURE_PAIRS}"
    else:
        by_pair = _by_pair(cell, pair)
    by_fit = None if fit is None or fit.mixed is not None else _by_fit(fit, load)
    prefill_j = decode_j = None
    if by_fit is not None and by_pair is not None:
        prefill_j = by_fit.prefill.value_j - by_pair.prefill.value_j
        decode_j = by_fit.decode.value_j - by_pair.decode.value_j
    return CellPhases(
        cell_id=cell.row.cell_id,
        cell=str(cell.row.cell),
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
        batch=load.batch,
        energy_j=result.energy_j,
        time_to_first_token_s=result.time_to_first_token_s,
        time_per_output_token_s=result.time_per_output_token_s,
        pair=by_pair,
        pair_missing=missing,
        fit=by_fit,
        residual=None if fit is None else fit.fitted_j(load) / result.energy_j - 1,
        prefill_difference_j=prefill_j,
        decode_difference_j=decode_j,
    )


def _by_pair(cell: Judged, pair: Judged) -> PhaseEnergy:
    own = pair.uncertainty
    prefill = Joules(
        value_j=pair.result.energy_j,
        low_j=None if own is None else own.low_j,
        high_j=None if own is None else own.high_j,
    )
    return _phases(_load(cell), prefill, _difference(cell, pair), BETTER_PAIR)


def _difference(cell: Judged, pair: Judged) -> Joules:
    """Energy of one cell less that of another, with the interval of both."""
    value_j = cell.result.energy_j - pair.result.energy_j
    own, other = cell.uncertainty, pair.uncertainty
    if own is None or other is None:
        return Joules(value_j=value_j, low_j=None, high_j=None)
    half_j = half_of_sum(
        [
            ((own.standard_error * cell.result.energy_j) ** 2, own.degrees_of_freedom),
            ((other.standard_error * pair.result.energy_j) ** 2, other.degrees_of_freedom),
        ],
        is_repeated=len(cell.row.windows) > 1 or len(pair.row.windows) > 1,
    )
    # The tail moves the middle of each cell's interval below its joules.
    return _around((own.low_j + own.high_j - other.low_j - other.high_j) / 2, half_j, value_j)


def _by_fit(fit: Regression, load: Load) -> PhaseEnergy:
    prefill, decode = (_around(*fit.phase_j(load, phase)) for phase in (PREFILL, DECODE))
    return _phases(load, prefill, decode, BETTER_GRID)


def _around(middle_j: float, half_j: float, value_j: float | None = None) -> Joules:
    value_j = middle_j if value_j is None else value_j
    return Joules(value_j=value_j, low_j=middle_j - half_j, high_j=middle_j + half_j)


def _phases(load: Load, prefill: Joules, decode: Joules, fix: str) -> PhaseEnergy:
    tokens = load.batch * (load.output_tokens - 1)
    flags = (_flag(PREFILL, prefill, fix), _flag(DECODE, decode, fix))
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
        flags=tuple(filter(None, flags)),
    )


def _flag(what: str, joules: Joules, fix: str) -> Flag | None:
    """A figure below 0 with all of its interval, or of an unknown one; None for others."""
    if joules.value_j >= 0 or (joules.high_j is not None and joules.high_j >= 0):
        return None
    high = "its interval is unknown" if joules.high_j is None else f"its interval ends at {joules.high_j:.3g} J"
    return Flag(code=NEGATIVE, reason=f"{what} is {joules.value_j:.3g} J, expected 0 or more; {high}", fix=fix)


def _describe(fit: Regression, observed: Sequence[Observed], names: Sequence[str]) -> PhaseFit:
    residuals, middle, r2 = describe_residuals(fit, observed)
    worst = max(range(len(residuals)), key=lambda index: abs(residuals[index]))
    gone = {term.name for term in fit.dropped}
    coefficients = tuple(
        Coefficient(name=term.name, phase=term.phase, formula=term.formula, joules=_around(*fit.coefficient_j(index)))
        for index, term in enumerate(TERMS)
        if term.name not in gone
    )
    flags = (_flag(f"{known.name} ({known.formula})", known.joules, BETTER_GRID) for known in coefficients)
    return PhaseFit(
        rows=len(observed),
        coefficients=coefficients,
        dropped=fit.dropped,
        mixed=fit.mixed,
        r2=r2,
        median_residual=middle,
        worst_residual=residuals[worst],
        worst_cell=names[worst],
        law_error=fit.error,
        condition=fit.condition,
        flags=tuple(filter(None, flags)),
    )
