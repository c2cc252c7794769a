"""Measurements as a table: joules and seconds of one request by input and output length, for each engine set-up.

Rules, in the order in which they apply:

1. Rows of one set-up in one file come from one environment: one driver, one version of each package.
2. Rows of one cell in one file are repetitions: their mean counts, and their spread is kept.
3. Files have a rank, the first file the best: where two measured the same lengths, the better ranked one counts.
4. Of the batch sizes that it measured at these lengths, the largest counts whose requests had their answers in time
   (`MAX_BATCH_S`); where none had, the smallest. The others stay in the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from infergy.errors import DataError, MeterError, UsageError
from infergy.hardware import find_gpu_by_driver_name
from infergy.records import RANDOM_WEIGHTS, EngineSetup, Measurement, Result, derive
from infergy.records.store import read_store

DEFAULT_DTYPE = "bfloat16"
MAX_BATCH_S = 20.0
"""Seconds that a batch may take to count: beyond, batches grow cheaper still, but nobody waits for the answers."""

SIMULATED_PREFIX = "simulated "
"""The simulated GPU puts this before the name of the one it plays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCell:
    """Joules and seconds of one request at fixed lengths and batch.

    Attributes:
        energy_j: Joules a request: mean over the repetitions.
        duration_s: Seconds a request: seconds of a batch over its requests.
        doubt: How far `energy_j` may be off, as a fraction: the bound of the idle tail, plus the largest distance of
            a repetition from the mean.
        spread: Largest less smallest repetition over the mean; None where there is only one.
        repetitions: Rows of this cell.
        batch_choice: How the batch was chosen, in words.
        source: Name of the file.
        rank: Place of the file among those loaded, 0 the first.
    """

    input_tokens: int
    output_tokens: int
    batch: int
    energy_j: float
    duration_s: float
    doubt: float
    spread: float | None
    repetitions: int
    cell_id: str
    batch_choice: str
    source: str
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """Where the rows of one set-up in one file come from.

    Attributes:
        rows: Measured rows.
        driver: Version of the GPU driver; None where the meter has none.
        packages: Versions of the packages that shape the result.
        gpu_uuids: Which chips.
        measured_from: UTC of the first row, ISO 8601.
        measured_to: UTC of the last row, ISO 8601.
    """

    source: str
    rank: int
    rows: int
    driver: str | None
    packages: Mapping[str, str]
    gpu_uuids: tuple[str, ...]
    measured_from: str
    measured_to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupTable:
    """All cells of one engine set-up on one kind of GPU.

    Attributes:
        gpu: Name in the catalogue; the driver's name of a GPU that the catalogue lacks.
        label: Engine and whatever is not at its default: ``vllm``, ``vllm-eager``, ``vllm-float16``, ``vllm-tp2``.
        weights: The law of the random weights, or where real ones came from.
        cells: All cells, at all batch sizes, ascending by length, rank and batch.
    """

    gpu: str
    label: str
    setup: EngineSetup
    weights: str
    simulated: bool
    cells: tuple[TableCell, ...]
    sources: tuple[SourceFacts, ...]

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.setup.model

    @property
    def rank(self) -> int:
        """Best rank of a file."""
        return min(source.rank for source in self.sources)

    def by_length(self, max_batch_s: float = MAX_BATCH_S) -> dict[tuple[int, int], TableCell]:
        """The cell that counts at each measured (input, output): best rank, then largest batch within `max_batch_s`."""
        lengths: dict[tuple[int, int], list[TableCell]] = {}
        for cell in self.cells:
            lengths.setdefault((cell.input_tokens, cell.output_tokens), []).append(cell)
        return {key: _choose(cells, max_batch_s) for key, cells in lengths.items()}

    def larger_batches(self, max_batch_s: float = MAX_BATCH_S) -> tuple[tuple[TableCell, TableCell], ...]:
        """Where a batch beyond `max_batch_s` was measured too: the cell that counts, and the largest one."""
        counted = self.by_length(max_batch_s)
        largest = self.by_length(math.inf)
        return tuple((cell, largest[key]) for key, cell in counted.items() if largest[key].batch > cell.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRow:
    """A cell without a number, and why."""

    source: str
    cell_id: str
    cell: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyTable:
    """What was measured: one `SetupTable` for each GPU, engine set-up and kind of weights.

    Attributes:
        failed: Cells that were tried and have no number.
        notes: What was set aside while reading, in words.
    """

    setups: tuple[SetupTable, ...]
    files: tuple[str, ...]
    failed: tuple[FailedRow, ...] = ()
    notes: tuple[str, ...] = ()

    def gpus(self) -> tuple[str, ...]:
        """GPUs that have rows."""
        return tuple(sorted({setup.gpu for setup in self.setups}))

    def models(self, gpu: str) -> tuple[str, ...]:
        """Models that have rows on `gpu`."""
        return tuple(sorted({setup.model for setup in self.setups if setup.gpu == gpu}))

    def labels(self, gpu: str, model: str) -> tuple[str, ...]:
        """Engine set-ups that have rows for `model` on `gpu`, in alphabetical order."""
        return tuple(sorted({s.label for s in self.setups if (s.gpu, s.model) == (gpu, model)}))

    def find(self, gpu: str, model: str, label: str) -> SetupTable:
        """The table of one set-up; of several weights the better ranked, then infergy's own law, counts.

        The others fill in lengths that it lacks, but measured rows never fill in for simulated ones.

        Raises:
            UsageError: Nothing was measured; the message names what was, and how to measure this.
        """
        self._check("GPU", gpu, self.gpus(), f"--gpu {gpu} --model {model}")
        self._check("model", model, self.models(gpu), f"--gpu {gpu} --model {model}")
        self._check("engine", label, self.labels(gpu, model), f"--gpu {gpu} --model {model} --engine {label}")
        found = [s for s in self.setups if (s.gpu, s.model, s.label) == (gpu, model, label)]
        first, *others = sorted(found, key=lambda s: (s.rank, s.setup.weights != RANDOM_WEIGHTS, s.weights))
        return _fill_in(first, [other for other in others if other.simulated == first.simulated])

    def _check(self, what: str, name: str, measured: Sequence[str], options: str) -> None:
        if name not in measured:
            raise UsageError.unknown(
                f"measured {what}",
                name,
                measured,
                f"To measure it: infergy measure paper-bins {options} -o mine.jsonl; "
                "then: infergy estimate … --table mine.jsonl",
            )


def _fill_in(table: SetupTable, others: Iterable[SetupTable]) -> SetupTable:
    """`table` with the cells of `others` at lengths that it lacks; its `weights` tells of theirs."""
    for other in others:
        known = {(cell.input_tokens, cell.output_tokens) for cell in table.cells}
        added = [cell for cell in other.cells if (cell.input_tokens, cell.output_tokens) not in known]
        if added:
            table = replace(
                table,
                cells=tuple(sorted([*table.cells, *added], key=_order)),
                sources=(*table.sources, *other.sources),
                weights=f"{table.weights}; {other.weights}: {len(added)} cells",
            )
    return table


def _order(cell: TableCell) -> tuple[int, int, int, int]:
    return cell.input_tokens, cell.output_tokens, cell.rank, cell.batch


def _choose(cells: Iterable[TableCell], max_batch_s: float) -> TableCell:
    """Of cells at the same lengths the one that counts, by rules 3 and 4."""
    ranked = sorted(cells, key=lambda cell: (cell.rank, cell.batch))
    best = [cell for cell in ranked if cell.rank == ranked[0].rank]
    in_time = [cell for cell in best if cell.duration_s * cell.batch <= max_batch_s]
    return in_time[-1] if in_time else best[0]


class _Key(NamedTuple):
    gpu: str
    model: str
    label: str
    weights: str
    simulated: bool


class _Row(NamedTuple):
    row: Measurement
    result: Result


def shipped_tables() -> tuple[Path, ...]:
    """The tables inside the package, in alphabetical order; empty if none ships."""
    folder = Path(str(resources.files("infergy"))) / "data" / "tables"
    return tuple(sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")]))


def load_table(paths: Iterable[str | Path], *, allow_simulated: bool = False) -> EnergyTable:
    """Read stores into a table; the first path ranks highest.

    Raises:
        DataError: A file is missing, foreign, damaged or empty, mixes environments, or holds simulated rows.
    """
    return _load([(str(path), Path(path)) for path in paths], allow_simulated=allow_simulated)


def load_tables(own: Iterable[str | Path] = (), *, allow_simulated: bool = False) -> EnergyTable:
    """Read a user's own stores, and after them the shipped ones; shipped files go by their bare name.

    Raises:
        DataError: As `load_table`.
    """
    named = [(str(path), Path(path)) for path in own]
    named += [(f"shipped {path.name}", path) for path in shipped_tables()]
    return _load(named, allow_simulated=allow_simulated)


def setup_label(setup: EngineSetup) -> str:
    """The engine's label and whatever else is not at its default: ``vllm-eager-float16-tp2``."""
    dtype = "" if setup.dtype == DEFAULT_DTYPE else f"-{setup.dtype}"
    parallel = "" if setup.tensor_parallel == 1 else f"-tp{setup.tensor_parallel}"
    return f"{setup.label}{dtype}{parallel}"


def catalogue_name(driver_name: str) -> str:
    """The catalogue's name of a GPU that a driver calls `driver_name`, or that name itself."""
    gpu = find_gpu_by_driver_name(driver_name.removeprefix(SIMULATED_PREFIX))
    return driver_name if gpu is None else gpu.name


def _load(named: Sequence[tuple[str, Path]], *, allow_simulated: bool) -> EnergyTable:
    cells: dict[_Key, list[TableCell]] = {}
    sources: dict[_Key, list[SourceFacts]] = {}
    setups: dict[_Key, EngineSetup] = {}
    failed: list[FailedRow] = []
    notes: list[str] = []
    for rank, (name, path) in enumerate(named):
        contents = read_store(path)
        if not contents.rows:
            raise DataError(f"{name}: holds no measurement. Make one with: infergy measure GRID.toml -o FILE.jsonl")
        if contents.torn is not None:
            notes.append(f"{name}: its last line is half-written and set aside; infergy measure resumes it")
        good, bad = _judge(name, contents.rows, allow_simulated=allow_simulated)
        failed += bad
        for key, rows in _group(good).items():
            setups.setdefault(key, rows[0].row.cell.setup)
            cells.setdefault(key, []).extend(_cells(name, rank, rows))
            sources.setdefault(key, []).append(_facts(name, rank, rows))
    tables = [
        SetupTable(
            gpu=key.gpu,
            label=key.label,
            setup=setups[key],
            weights=key.weights,
            simulated=key.simulated,
            cells=tuple(sorted(cells[key], key=_order)),
            sources=tuple(sources[key]),
        )
        for key in sorted(cells)
    ]
    files = tuple(name for name, _ in named)
    return EnergyTable(setups=tuple(tables), files=files, failed=tuple(failed), notes=tuple(notes))


def _judge(name: str, rows: Iterable[Measurement], *, allow_simulated: bool) -> tuple[list[_Row], list[FailedRow]]:
    """Rows with figures recomputed from their raw facts, and failed cells that no other row made good."""
    good: list[_Row] = []
    failed: dict[str, FailedRow] = {}
    for row in rows:
        if row.simulated and not allow_simulated:
            raise DataError(
                f"{name}, cell {row.cell_id} ({row.cell}): simulated, and so no evidence about real hardware. "
                "To estimate with it all the same: --allow-simulated"
            )
        if row.is_ok:
            good.append(_Row(row, _derive(name, row)))
            continue
        reason = f"{row.failure.code}: {row.failure.message}" if row.failure else "no reason given"
        failed[row.cell_id] = FailedRow(source=name, cell_id=row.cell_id, cell=str(row.cell), reason=reason)
    made_good = {row.cell_id for row, _ in good}
    return good, [row for cell_id, row in failed.items() if cell_id not in made_good]


def _derive(name: str, row: Measurement) -> Result:
    place = f"{name}, cell {row.cell_id} ({row.cell})"
    remedy = "Remove the row and measure the cell again"
    if row.window is None or row.loaded_idle is None:
        raise DataError(f"{place}: status is ok, but its window or its loaded-idle window is missing. {remedy}")
    if set(row.window.open) != set(row.window.close) or not set(row.window.open) <= set(row.loaded_idle.open):
        raise DataError(f"{place}: the edges of its windows are not of the same GPUs. {remedy}")
    try:
        result = derive(row.window, row.batches, row.loaded_idle)
    except MeterError as error:
        raise DataError(f"{place}: {error}") from error
    except ZeroDivisionError as error:
        raise DataError(f"{place}: a window or all its batches last zero seconds. {remedy}") from error
    if not result.energy_j > 0 or not result.duration_s > 0:
        raise DataError(
            f"{place}: {result.energy_j:g} J in {result.duration_s:g} s a batch; expected more than 0. {remedy}"
        )
    return result


def _group(rows: Iterable[_Row]) -> dict[_Key, list[_Row]]:
    groups: dict[_Key, list[_Row]] = {}
    for pair in rows:
        row = pair.row
        key = _Key(
            gpu=catalogue_name(row.environment.gpus[0].name) if row.environment.gpus else "unknown",
            model=row.cell.setup.model,
            label=setup_label(row.cell.setup),
            weights=row.environment.weights,
            simulated=row.simulated,
        )
        groups.setdefault(key, []).append(pair)
    return groups


def _cells(name: str, rank: int, rows: Iterable[_Row]) -> list[TableCell]:
    """One cell for each load; repetitions become one."""
    by_load: dict[tuple[int, int, int], list[_Row]] = {}
    for pair in rows:
        load = pair.row.cell.load
        by_load.setdefault((load.input_tokens, load.output_tokens, load.batch), []).append(pair)
    return [_cell(name, rank, repeated) for repeated in by_load.values()]


def _cell(name: str, rank: int, repeated: Sequence[_Row]) -> TableCell:
    row = repeated[0].row
    load = row.cell.load
    joules = [result.energy_per_request_j for _, result in repeated]
    energy_j = fmean(joules)
    idle_doubt = max(result.idle_bound_j / (result.energy_j * result.batches) for _, result in repeated)
    return TableCell(
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
        batch=load.batch,
        energy_j=energy_j,
        duration_s=fmean(result.duration_s for _, result in repeated) / load.batch,
        doubt=idle_doubt + max(abs(j - energy_j) for j in joules) / energy_j,
        spread=(max(joules) - min(joules)) / energy_j if len(joules) > 1 else None,
        repetitions=len(repeated),
        cell_id=row.cell_id,
        batch_choice=row.batch_choice,
        source=name,
        rank=rank,
    )


def _facts(name: str, rank: int, rows: Sequence[_Row]) -> SourceFacts:
    """The one environment of a set-up's rows in a file.

    Raises:
        DataError: There are two: a surface over both would compare drivers, not lengths.
    """
    first = rows[0].row
    for row, _ in rows:
        for what, was, now in (
            ("driver", first.environment.driver, row.environment.driver),
            ("packages", dict(first.environment.packages), dict(row.environment.packages)),
        ):
            if was != now:
                raise DataError(
                    f"{name}: {first.cell.setup.label} {first.cell.setup.model} was measured under two environments: "
                    f"{what} {was} in cell {first.cell_id}, {now} in cell {row.cell_id}. "
                    "Put them in two files, and name the one that counts first: --table NEW.jsonl --table OLD.jsonl"
                )
    stamps = sorted(row.measured_utc for row, _ in rows)
    return SourceFacts(
        source=name,
        rank=rank,
        rows=len(rows),
        driver=first.environment.driver,
        packages=dict(first.environment.packages),
        gpu_uuids=tuple(sorted({gpu.uuid for row, _ in rows for gpu in row.environment.gpus})),
        measured_from=stamps[0],
        measured_to=stamps[-1],
    )
