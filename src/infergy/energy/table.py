"""Measured rows as an energy table: what one batch of each bin costs, for one model, GPU and engine set-up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from infergy.errors import DataError
from infergy.records import EngineSetup, Measurement, derive
from infergy.records.store import read_store


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcedRow:
    """A row and where it stands."""

    row: Measurement
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured bin: a batch of `batch` requests.

    Attributes:
        energy_j: Joules of one batch: mean over the rows that measured it.
        duration_s: Seconds of one batch, likewise.
        spread: Largest less smallest over the mean, where several rows measured it; 0 with one.
        rows: How many rows measured it.
        batch_choice: How the batch size came about.
    """

    input_tokens: int
    output_tokens: int
    batch: int
    energy_j: float
    duration_s: float
    spread: float
    rows: int
    batch_choice: str

    @property
    def energy_per_request_j(self) -> float:
        """Joules a request, in a full batch."""
        return self.energy_j / self.batch

    @property
    def duration_per_request_s(self) -> float:
        """GPU-seconds a request, in a full batch."""
        return self.duration_s / self.batch


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyTable:
    """All measured bins of one model, GPU and engine set-up, each at its table batch.

    Attributes:
        gpu: The driver's name of the GPU.
        points: For each bin the point that an estimate charges: of the batches chosen as the largest under the
            study's limits, or else the largest measured.
        others: The same bins at other batches.
        sources: The files that the rows came from.
    """

    gpu: str
    setup: EngineSetup
    points: tuple[Point, ...]
    others: tuple[Point, ...]
    sources: tuple[str, ...]
    uuids: tuple[str, ...]
    weights: str
    packages: tuple[str, ...]
    driver: str | None
    measured_utc: str
    is_simulated: bool


def shipped_tables() -> list[Path]:
    """The tables that ship with the package."""
    folder = resources.files("infergy") / "data" / "tables"
    return sorted(Path(str(file)) for file in folder.iterdir() if file.name.endswith((".jsonl", ".jsonl.gz")))


def load_rows(own: Iterable[str | Path] = (), *, allow_simulated: bool = False) -> list[SourcedRow]:
    """All measured rows: the user's own files first, then the shipped ones.

    Where an own file has a cell, the shipped rows of that whole set-up on that GPU are left out: two machines are not
    averaged.

    Raises:
        DataError: A file is missing, foreign or damaged, or holds simulated rows and these are not allowed.
    """
    mine = [sourced for path in own for sourced in _read(Path(path), str(path), allow_simulated)]
    taken = {_key(sourced.row) for sourced in mine}
    shipped = [sourced for path in shipped_tables() for sourced in _read(path, path.name, allow_simulated)]
    return mine + [sourced for sourced in shipped if _key(sourced.row) not in taken]


def tables_of(rows: Iterable[SourcedRow]) -> list[EnergyTable]:
    """One table for each GPU model and engine set-up, in the rows' order.

    Raises:
        DataError: Rows of one set-up differ in driver, engine version or law of weights.
    """
    groups: dict[tuple[str, EngineSetup], list[SourcedRow]] = {}
    for sourced in rows:
        groups.setdefault(_key(sourced.row), []).append(sourced)
    return [_table(gpu, setup, group) for (gpu, setup), group in groups.items()]


def _read(path: Path, name: str, allow_simulated: bool) -> list[SourcedRow]:
    rows = read_store(path).rows
    if not rows:
        raise DataError(f"{name}: no measurement in it. Make one with: infergy measure GRID.toml -o {name}")
    if any(row.simulated for row in rows) and not allow_simulated:
        raise DataError(
            f"{name}: its rows come from a simulated GPU and say nothing of a real one. "
            "To use them all the same: --allow-simulated"
        )
    return [SourcedRow(row=row, source=name) for row in rows if row.is_ok]


def _key(row: Measurement) -> tuple[str, EngineSetup]:
    return row.environment.gpus[0].name, row.cell.setup


def _table(gpu: str, setup: EngineSetup, group: list[SourcedRow]) -> EnergyTable:
    _refuse_mixture(setup, group)
    cells: dict[tuple[int, int, int], list[Measurement]] = {}
    for sourced in group:
        load = sourced.row.cell.load
        cells.setdefault((load.input_tokens, load.output_tokens, load.batch), []).append(sourced.row)
    bins: dict[tuple[int, int], list[Point]] = {}
    for rows in cells.values():
        point = _point(rows)
        bins.setdefault((point.input_tokens, point.output_tokens), []).append(point)
    chosen = {key: max(points, key=_rank) for key, points in bins.items()}
    environment = group[0].row.environment
    return EnergyTable(
        gpu=gpu,
        setup=setup,
        points=tuple(chosen[key] for key in sorted(chosen)),
        others=tuple(p for key in sorted(bins) for p in bins[key] if p is not chosen[key]),
        sources=tuple(dict.fromkeys(sourced.source for sourced in group)),
        uuids=tuple(sorted({g.uuid for sourced in group for g in sourced.row.environment.gpus})),
        weights=environment.weights,
        packages=tuple(f"{name} {version}" for name, version in environment.packages.items()),
        driver=environment.driver,
        measured_utc=min(sourced.row.measured_utc for sourced in group),
        is_simulated=any(sourced.row.simulated for sourced in group),
    )


def _rank(point: Point) -> tuple[int, int]:
    """A batch chosen under the study's limits before one that only memory held, before one that was just given."""
    standing = 0 if point.batch_choice == "given" else 1 if point.batch_choice == "largest that fits the memory" else 2
    return standing, point.batch


def _point(rows: list[Measurement]) -> Point:
    energies, durations = [], []
    for row in rows:
        assert row.window is not None
        assert row.loaded_idle is not None
        result = derive(row.window, row.batches, row.loaded_idle)
        energies.append(result.energy_j)
        durations.append(result.duration_s)
    load = rows[0].cell.load
    mean = sum(energies) / len(energies)
    return Point(
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
        batch=load.batch,
        energy_j=mean,
        duration_s=sum(durations) / len(durations),
        spread=(max(energies) - min(energies)) / mean,
        rows=len(rows),
        batch_choice=rows[0].batch_choice,
    )


def _refuse_mixture(setup: EngineSetup, group: list[SourcedRow]) -> None:
    facts: dict[str, set[str | None]] = {
        "driver": {sourced.row.environment.driver for sourced in group},
        "engine version": {sourced.row.environment.packages.get(setup.engine) for sourced in group},
        "law of weights": {sourced.row.environment.weights for sourced in group},
        "meter": {sourced.row.environment.meter for sourced in group},
    }
    for what, values in facts.items():
        if len(values) > 1:
            files = ", ".join(dict.fromkeys(sourced.source for sourced in group))
            raise DataError(
                f"{files}: rows of {setup.label} {setup.model} differ in {what} "
                f"({', '.join(sorted(map(str, values)))}); one table cannot hold both. Give one file at a time"
            )
