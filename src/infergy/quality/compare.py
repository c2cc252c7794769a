"""Two stores compared cell by cell: ratios of joules with intervals, and what differs in their environments.

log ratio of a cell      log E_B − log E_A, variance the sum of both relative variances, Student's t with Welch and
                         Satterthwaite's degrees of freedom; and `BETWEEN_PROCESSES` of either side
log ratio of all cells   the mean of the cells' log ratios; its interval is Student's over the cells, or that of the
                         only cell: what processes differ by cell by cell is in their scatter

A cell whose windows are the same in both has the ratio 1, which is no information, and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from infergy.errors import DataError
from infergy.records import Measurement, Result, result_of
from infergy.records.agreement import IDENTITY, MUST, SHOULD
from infergy.records.uncertainty import STOPPING_FACTOR, Uncertainty, find_uncertainties, student_t
from infergy.records.visits import join_visits
from infergy.units import count_of

BETWEEN_PROCESSES = 0.004
"""Standard deviation of the difference between whole processes that measure the same cells on the same GPU.

The interval of a row is of its own process. What processes differ by beyond it was 0.15 % on an H200 and 0.20 and
0.48 % on H100s of two hosts: 0.4 % by their numbers of pairs (docs/uncertainty.md). The simulated GPU's do not differ.
"""

COMPARE_SCHEMA = "infergy.compare/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Energy of B over those of A.

    Attributes:
        value: Above 1 where B takes more.
        low: Lower end of the 95 % interval; None where the spread of one side is unknown.
        high: Upper end; None for the same reason.
    """

    value: float
    low: float | None
    high: float | None

    @property
    def is_significant(self) -> bool:
        """Whether the interval is known and holds no 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedCell:
    """One cell measured in both stores.

    Attributes:
        cell: The cell in words.
        model: Name of its model.
        a_j: Joules per request in A; `b_j` in B.
    """

    cell_id: str
    cell: str
    model: str
    a_j: float
    b_j: float
    ratio: Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All cells that both stores measured, and what else to know.

    Attributes:
        overall: The geometric mean of the cells' ratios.
        only_a: Cells that A alone holds, in words; `only_b` the same.
        same: Cells whose row is the same in both, in words: they are left out of `cells` and of the mean, since a
            ratio of exactly 1 would narrow its interval without a measurement.
        differences: What differs in the environments of the cells that both hold, and in the token ids that were
            served, in words.
    """

    cells: tuple[ComparedCell, ...]
    overall: Ratio
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    same: tuple[str, ...]
    differences: tuple[str, ...]
    schema: str = COMPARE_SCHEMA


def compare(a: Iterable[Measurement], b: Iterable[Measurement]) -> Comparison:
    """Compare the measured cells of two stores; several rows of a cell in one store count as its visits.

    Where they are not of one GPU and environment, the last counts.

    Raises:
        DataError: The two have no measured cell in common, or only cells whose row is the same in both.
        MeterError: A counter stood still.
    """
    left, right = _judge(a), _judge(b)
    common = [(own, right[cell_id]) for cell_id, own in left.items() if cell_id in right]
    if not common:
        raise DataError(
            "the two files have no measured cell in common: engine, model, weights, lengths and batch must be the "
            "same. To measure the cells of another file again: infergy measure GRID.toml -o NEW.jsonl",
            code="no-common-cells",
        )
    pairs: list[tuple[Judged, Judged]] = []
    same: list[str] = []
    for own, other in common:
        if _is_same(own, other):
            same.append(str(own.row.cell))
        else:
            pairs.append((own, other))
    if not pairs:
        message = (
            f"of each of the {count_of(len(common), 'cell')} that the two files share they hold the very same row, "
            "which is no comparison. Measure these cells again, into a new file: infergy measure GRID.toml -o NEW.jsonl"
        )
        raise DataError(message, code="same-rows", cells=len(common))
    cells = tuple(_compare_cell(*pair) for pair in pairs)
    return Comparison(
        cells=cells,
        overall=_overall([cell.ratio for cell in cells]),
        only_a=_cells_beside(left, right),
        only_b=_cells_beside(right, left),
        same=tuple(same),
        differences=(*_differences(*zip(*pairs, strict=True)), *_other_prompts(pairs)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A measured row, its result and the uncertainty of its energy, if known."""

    row: Measurement
    result: Result
    uncertainty: Uncertainty | None


def measured_rows(rows: Iterable[Measurement]) -> list[Measurement]:
    """The visits of each cell as one row, or several where environments differ; failed ones are left out."""
    return [row for row in join_visits(rows) if row.windows and row.loaded_idle is not None]


def judge(rows: Sequence[Measurement]) -> list[Judged]:
    """Measured rows with their results and uncertainties."""
    return [
        Judged(row=row, result=result_of(row), uncertainty=uncertainty)
        for row, uncertainty in zip(rows, find_uncertainties(rows), strict=True)
    ]


def half_of_sum(
    parts: Sequence[tuple[float, float | None]], *, is_repeated: bool, known_variance: float = 0.0
) -> float:
    """Half of the 95 % interval of a sum whose parts have these variances and degrees of freedom (None: infinite).

    Student's t, with Welch and Satterthwaite's degrees; `is_repeated`: a part is of several windows.
    """
    variance = sum(part for part, _ in parts) + known_variance
    shared = sum(part**2 / degrees for part, degrees in parts if degrees is not None)
    half = student_t(variance**2 / shared if shared else None) * math.sqrt(variance)
    return half * (STOPPING_FACTOR if is_repeated else 1.0)


def _judge(rows: Iterable[Measurement]) -> Mapping[str, Judged]:
    """The last measured row of each cell."""
    last = {row.cell_id: row for row in measured_rows(rows)}
    return dict(zip(last, judge(list(last.values())), strict=True))


def _cells_beside(own: Mapping[str, Judged], others: Mapping[str, Judged]) -> tuple[str, ...]:
    return tuple(str(judged.row.cell) for cell_id, judged in own.items() if cell_id not in others)


def _is_same(a: Judged, b: Judged) -> bool:
    """Whether a window counts in both: a row that stands in both files, among several visits perhaps."""
    windows = [replace(window, visit=1) for window in a.row.windows]
    return a.row.rescaled == b.row.rescaled and any(replace(window, visit=1) in windows for window in b.row.windows)


def _compare_cell(a: Judged, b: Judged) -> ComparedCell:
    return ComparedCell(
        cell_id=a.row.cell_id,
        cell=str(a.row.cell),
        model=a.row.cell.setup.model,
        a_j=a.result.energy_per_request_j,
        b_j=b.result.energy_per_request_j,
        ratio=_ratio(a, b),
    )


def _ratio(a: Judged, b: Judged) -> Ratio:
    value = b.result.energy_per_request_j / a.result.energy_per_request_j
    if a.uncertainty is None or b.uncertainty is None:
        return Ratio(value=value, low=None, high=None)
    half = half_of_sum(
        [(known.standard_error**2, known.degrees_of_freedom) for known in (a.uncertainty, b.uncertainty)],
        is_repeated=len(a.row.windows) > 1 or len(b.row.windows) > 1,
        known_variance=BETWEEN_PROCESSES**2 * ((not a.row.simulated) + (not b.row.simulated)),
    )
    half = math.hypot(half, a.uncertainty.rescaling, b.uncertainty.rescaling)
    return Ratio(value=value, low=value * math.exp(-half), high=value * math.exp(half))


def _overall(ratios: Sequence[Ratio]) -> Ratio:
    if len(ratios) == 1:
        return ratios[0]
    logs = [math.log(ratio.value) for ratio in ratios]
    mean, error = fmean(logs), stdev(logs) / math.sqrt(len(logs))
    half = student_t(len(logs) - 1) * error
    return Ratio(value=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half))


def _differences(a: Sequence[Judged], b: Sequence[Judged]) -> tuple[str, ...]:
    """What the environments of the two say differently, one line a fact."""
    left, right = _environment(a), _environment(b)
    return tuple(
        f"{name}: {', '.join(sorted(left.get(name, ()))) or 'unknown'} against "
        f"{', '.join(sorted(right.get(name, ()))) or 'unknown'}"
        for name in {**left, **right}
        if left.get(name) != right.get(name)
    )


def _other_prompts(pairs: Sequence[tuple[Judged, Judged]]) -> tuple[str, ...]:
    """That some cells were served other token ids: work of another content, though as much of it."""
    hashes = [(a.row.prompt_sha256, b.row.prompt_sha256) for a, b in pairs]
    others = sum(a is not None and b is not None and a != b for a, b in hashes)
    if not others:
        return ()
    seeds = (", ".join(sorted({str(pair[side].row.seed) for pair in pairs})) for side in (0, 1))
    return (f"token ids of {others} of {count_of(len(pairs), 'cell')}: seed {' against '.join(seeds)}",)


def _environment(cells: Sequence[Judged]) -> dict[str, set[str]]:
    """All values of each fact that must or should agree, by its name."""
    facts: dict[str, set[str]] = {}
    for cell in cells:
        for fact in (*IDENTITY, *MUST, *SHOULD):
            for key, value in fact.read(cell.row).items():
                facts.setdefault(f"{fact.name} {key}".strip(), set()).add(value)
    return facts
