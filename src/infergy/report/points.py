"""Measured rows as points of figures, and which of them may be drawn in one figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from infergy.catalog import catalog_name
from infergy.errors import DataError, MeterError, UsageError
from infergy.records import EngineSetup, Load, Measurement, result_of
from infergy.records.agreement import BESIDE, IDENTITY, MUST, Difference, Fact, differences
from infergy.records.check import flag_rows
from infergy.records.flags import Flag
from infergy.records.uncertainty import Uncertainty, find_uncertainties
from infergy.records.visits import join_visits
from infergy.units import format_percent, format_si

SPLIT, REFUSE = "split", "refuse"
MIXED_RULES = (SPLIT, REFUSE)

Item = TypeVar("Item")
Key = TypeVar("Key")
Interval = tuple[float, float]
"""Lower and upper end."""


def group_by(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by key, in their order."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def as_interval(low: float | None, high: float | None) -> Interval | None:
    """Both ends where both are known."""
    return None if low is None or high is None else (low, high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured cell.

    Attributes:
        energy_j: Joules per request.
        interval_j: Its 95 % interval; None where unknown.
        duration_s: Seconds per batch.
    """

    row: Measurement
    energy_j: float
    interval_j: Interval | None
    duration_s: float
    power_w: float
    flags: tuple[Flag, ...]

    @property
    def setup(self) -> EngineSetup:
        """Engine, model and their options."""
        return self.row.cell.setup

    @property
    def load(self) -> Load:
        """What was asked for."""
        return self.row.cell.load

    @property
    def label(self) -> str:
        """Engine and options that are not at their defaults."""
        return self.row.cell.label

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.setup.model

    @property
    def lengths(self) -> tuple[int, int]:
        """Input and output tokens per request."""
        return self.load.input_tokens, self.load.output_tokens

    @property
    def batch(self) -> int:
        """Requests at once."""
        return self.load.batch

    @property
    def gpu_kind(self) -> str:
        """Name of the (first) GPU by its driver."""
        gpus = self.row.environment.gpus
        return gpus[0].name if gpus else "unknown GPU"

    @property
    def gpu(self) -> str:
        """As `gpu_kind`; ``2 × …`` for several."""
        count = len(self.row.environment.gpus)
        return f"{count} × {self.gpu_kind}" if count > 1 else self.gpu_kind

    @property
    def interval_text(self) -> str:
        """The interval, and its half-width relative to the energy."""
        if self.interval_j is None:
            return "unknown"
        low_j, high_j = self.interval_j
        half = (high_j - low_j) / 2 / self.energy_j
        return f"{format_si(low_j, 'J')} .. {format_si(high_j, 'J')} (± {format_percent(half)})"


def points_of(stores: Mapping[Path, Sequence[Measurement]], *, allow_simulated: bool = False) -> list[Point]:
    """The measured cells of stores; of several rows of a cell in one file the last of the grid counts.

    Raises:
        DataError: A store holds nothing measured, rows that do not add up, or simulated rows that are not allowed.
    """
    points: list[Point] = []
    for path, rows in stores.items():
        simulated = next((row for row in rows if row.simulated), None)
        if simulated is not None and not allow_simulated:
            message = (
                f"{path}, cell {simulated.cell_id} ({simulated.cell}): simulated rows say nothing about real "
                "hardware. To draw them anyway: --allow-simulated"
            )
            raise DataError(message, code="simulated-rows", path=str(path), cell=simulated.cell_id)
        measured = [row for row in rows if row.is_ok and row.windows and row.loaded_idle is not None]
        if not measured:
            message = f"{path}: no measured cell. Measure some with: infergy measure GRID.toml -o FILE.jsonl"
            raise DataError(message, code="no-rows", path=str(path))
        try:
            points += _points_of_rows(measured)
        except (MeterError, ZeroDivisionError) as error:
            message = f"{path}: {error}. See: infergy check {path}"
            raise DataError(message, code="bad-row", place=str(path), reason=str(error)) from error
    return points


def _points_of_rows(rows: Sequence[Measurement]) -> Iterable[Point]:
    flags: dict[str, dict[Flag, None]] = {}
    for flagged in flag_rows(rows):
        flags.setdefault(flagged.row.cell_id, {}).update(dict.fromkeys(flagged.flags))
    joined = join_visits(rows)
    points: dict[str, Point] = {}
    for row, uncertainty in zip(joined, find_uncertainties(joined), strict=True):
        points[row.cell_id] = _point(row, uncertainty, tuple(flags[row.cell_id]))
    return points.values()


def _point(row: Measurement, uncertainty: Uncertainty | None, flags: tuple[Flag, ...]) -> Point:
    result = result_of(row)
    requests = result.energy_j / result.energy_per_request_j
    return Point(
        row=row,
        energy_j=result.energy_per_request_j,
        interval_j=None if uncertainty is None else (uncertainty.low_j / requests, uncertainty.high_j / requests),
        duration_s=result.duration_s,
        power_w=result.power_w,
        flags=flags,
    )


def failures_of(stores: Mapping[Path, Sequence[Measurement]]) -> dict[str, dict[str, str]]:
    """Codes of failures by GPU and cell id, of cells without a measured row in the same store."""
    failures: dict[str, dict[str, str]] = {}
    for rows in stores.values():
        measured = {row.cell_id for row in rows if row.is_ok}
        for row in rows:
            if not row.is_ok and row.cell_id not in measured and row.environment.gpus:
                code = "unknown" if row.failure is None else row.failure.code
                failures.setdefault(catalog_name(row.environment.gpus[0].name), {})[row.cell_id] = code
    return failures


def name_series(points: Sequence[Point], names: Sequence[str], *, title: str, mixed: str) -> list[str]:
    """The series of each point of a figure: its name, and where environments are mixed the facts that differ.

    Raises:
        UsageError: The rows come from environments that must not be compared, and `mixed` is ``refuse``.
    """
    difference = _first_difference(points)
    if difference is None:
        return list(names)
    if mixed == REFUSE:
        message = (
            f'the figure "{title}" would mix rows of two environments: {difference}. Draw them as separate series '
            "with --mixed split, or name files of one environment"
        )
        fields = {"fact": difference.fact, "was": difference.was, "now": difference.now}
        raise UsageError(message, code="environments-differ", figure=title, **fields)
    common = _varying(points, BESIDE)
    series = []
    for point, name in zip(points, names, strict=True):
        own = _varying([other for other, its in zip(points, names, strict=True) if its == name], MUST)
        values = _values(point, (*BESIDE, *MUST))
        facts = [f"{fact} {values.get(fact, 'unknown')}" for fact in dict.fromkeys((*common, *own))]
        series.append("; ".join((name, *facts)))
    return series


def _first_difference(points: Sequence[Point]) -> Difference | None:
    """In which fact the first two points that must not be mixed differ."""
    first_of: dict[object, Point] = {}
    for point in points:
        first = first_of.setdefault((point.setup, point.row.environment.weights), point)
        found = differences(first.row, point.row, (*IDENTITY, *MUST)) or differences(points[0].row, point.row, BESIDE)
        if found:
            return found[0]
    return None


def _values(point: Point, facts: Iterable[Fact]) -> dict[str, str]:
    return {f"{fact.name} {key}".strip(): value for fact in facts for key, value in fact.read(point.row).items()}


def _varying(points: Sequence[Point], facts: Sequence[Fact]) -> list[str]:
    """Names of the facts in which these points differ."""
    values = [_values(point, facts) for point in points]
    names = dict.fromkeys(name for known in values for name in known)
    return [name for name in names if len({known.get(name) for known in values}) > 1]
