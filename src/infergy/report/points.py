"""Measured rows as points of figures: joules a request with their interval, their doubts and where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infergy.errors import DataError, MeterError, UsageError
from infergy.hardware import catalogue_name
from infergy.records import Measurement, result_of
from infergy.records.agreement import BESIDE, IDENTITY, MUST, Difference, Fact, differences
from infergy.records.check import check_rows
from infergy.records.flags import Flag
from infergy.records.store import read_store
from infergy.records.uncertainty import Uncertainty, find_uncertainties
from infergy.records.visits import join_visits

SPLIT, REFUSE = "split", "refuse"
MIXED_RULES = (SPLIT, REFUSE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured cell.

    Attributes:
        energy_j: Joules a request.
        low_j: Lower end of its 95 % interval; None where nothing tells its spread. `high_j` likewise.
        duration_s: Seconds a batch.
        flags: Why its figures may be wrong by more than the interval (docs/flags.md).
    """

    row: Measurement
    energy_j: float
    low_j: float | None
    high_j: float | None
    duration_s: float
    power_w: float
    energy_per_output_token_j: float
    flags: tuple[Flag, ...]

    @property
    def label(self) -> str:
        """Engine and whatever is not at its default."""
        return self.row.cell.label

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.row.cell.setup.model

    @property
    def lengths(self) -> tuple[int, int]:
        """Input and output tokens."""
        return self.row.cell.load.input_tokens, self.row.cell.load.output_tokens

    @property
    def batch(self) -> int:
        """Requests at once."""
        return self.row.cell.load.batch

    @property
    def doubts(self) -> str:
        """Codes of its flags."""
        return ", ".join(flag.code for flag in self.flags) or "none"

    @property
    def gpu(self) -> str:
        """As the driver names it; ``2 × …`` for several."""
        names = [gpu.name for gpu in self.row.environment.gpus]
        return (f"{len(names)} × " if len(names) > 1 else "") + (names[0] if names else "unknown GPU")


def read_points(files: Iterable[Path], *, allow_simulated: bool = False) -> tuple[Point, ...]:
    """The measured cells of stores; of several rows of a cell in one file the last of the grid counts.

    Raises:
        DataError: A file is no store, holds nothing measured, or holds simulated rows that were not asked for.
    """
    stores = read_stores(files)
    return points_of(stores, allow_simulated=allow_simulated)


def read_stores(files: Iterable[Path]) -> dict[Path, tuple[Measurement, ...]]:
    """All rows of stores.

    Raises:
        DataError: A file is no store.
    """
    return {path: tuple(read_store(path).rows) for path in files}


def points_of(stores: Mapping[Path, Sequence[Measurement]], *, allow_simulated: bool = False) -> tuple[Point, ...]:
    """As `read_points`, of rows that are read."""
    return tuple(
        point for path, rows in stores.items() for point in _of_rows(path, rows, allow_simulated=allow_simulated)
    )


def failures_of(stores: Mapping[Path, Sequence[Measurement]]) -> dict[str, dict[str, str]]:
    """Codes of failures by GPU and cell id, of cells that no row of the same store made good."""
    failures: dict[str, dict[str, str]] = {}
    for rows in stores.values():
        done = {row.cell_id for row in rows if row.is_ok}
        for row in rows:
            if not row.is_ok and row.cell_id not in done and row.environment.gpus:
                code = "unknown" if row.failure is None else row.failure.code
                failures.setdefault(catalogue_name(row.environment.gpus[0].name), {})[row.cell_id] = code
    return failures


def _of_rows(path: Path, rows: Sequence[Measurement], *, allow_simulated: bool) -> Iterable[Point]:
    if not allow_simulated:
        for row in rows:
            if row.simulated:
                message = (
                    f"{path}, cell {row.cell_id} ({row.cell}): simulated, and so no evidence about real hardware. "
                    "To draw it all the same: --allow-simulated"
                )
                raise DataError(message, code="simulated-rows", path=str(path), cell=row.cell_id)
    measured = [row for row in rows if row.is_ok and row.windows and row.loaded_idle is not None]
    if not measured:
        message = f"{path}: no measured cell. Make some with: infergy measure GRID.toml -o FILE.jsonl"
        raise DataError(message, code="no-rows", path=str(path))
    try:
        flags: dict[str, dict[Flag, None]] = {}
        for row, each in zip(measured, check_rows(measured), strict=True):
            flags.setdefault(row.cell_id, {}).update(dict.fromkeys(each.flags))
        joined = join_visits(measured)
        last: dict[str, Point] = {}
        for row, interval in zip(joined, find_uncertainties(joined), strict=True):
            last[row.cell_id] = _point(row, interval, tuple(flags[row.cell_id]))
    except (MeterError, ZeroDivisionError) as error:
        message = f"{path}: {error}. See: infergy check {path}"
        raise DataError(message, code="bad-row", place=str(path), reason=str(error)) from error
    return last.values()


def _point(row: Measurement, interval: Uncertainty | None, flags: tuple[Flag, ...]) -> Point:
    result = result_of(row)
    requests = result.energy_j / result.energy_per_request_j
    return Point(
        row=row,
        energy_j=result.energy_per_request_j,
        low_j=None if interval is None else interval.low_j / requests,
        high_j=None if interval is None else interval.high_j / requests,
        duration_s=result.duration_s,
        power_w=result.power_w,
        energy_per_output_token_j=result.energy_per_output_token_j,
        flags=flags,
    )


def name_series(points: Sequence[Point], names: Mapping[str, str], *, title: str, mixed: str) -> list[str]:
    """The series of each point: its name, and where environments are mixed what tells it from the others.

    Args:
        points: Points of one figure.
        names: Name of the series by cell id.
        title: Of the figure, for the message.
        mixed: ``split`` or ``refuse``.

    Raises:
        UsageError: The rows come from environments that must not stand side by side, and `mixed` is ``refuse``.
    """
    found = _first_difference(points)
    bases = [names[point.row.cell_id] for point in points]
    if found is None:
        return bases
    if mixed == REFUSE:
        message = (
            f'the figure "{title}" would hold rows of two environments: {found}. Draw them as series of their own '
            "with --mixed split, or name files of one environment"
        )
        raise UsageError(
            message, code="environments-differ", figure=title, fact=found.fact, was=found.was, now=found.now
        )
    common = _varying(points, BESIDE)
    series = []
    for point, base in zip(points, bases, strict=True):
        own = _varying([other for other, name in zip(points, bases, strict=True) if name == base], MUST)
        told = _values(point, BESIDE) | _values(point, MUST)
        parts = [f"{fact} {told.get(fact, 'unknown')}" for fact in dict.fromkeys((*common, *own))]
        series.append("; ".join((base, *parts)))
    return series


def _first_difference(points: Sequence[Point]) -> Difference | None:
    """What the first two points that must not be mixed tell differently."""
    first_of: dict[object, Point] = {}
    for point in points:
        peers = first_of.setdefault((point.row.cell.setup, point.row.environment.weights), point)
        found = differences(peers.row, point.row, (*IDENTITY, *MUST)) or differences(points[0].row, point.row, BESIDE)
        if found:
            return found[0]
    return None


def _values(point: Point, facts: Iterable[Fact]) -> dict[str, str]:
    return {f"{fact.name} {key}".strip(): value for fact in facts for key, value in fact.read(point.row).items()}


def _varying(points: Sequence[Point], facts: Iterable[Fact]) -> list[str]:
    """Names of the facts that these points do not all tell alike."""
    facts = tuple(facts)
    told = [_values(point, facts) for point in points]
    names = dict.fromkeys(name for one in told for name in one)
    return [name for name in names if len({one.get(name) for one in told}) > 1]
