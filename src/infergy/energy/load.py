"""Reads stores into an `EnergyTable`: rows are judged, derived anew from their raw facts, and grouped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from infergy.energy.options import DEFAULT_GPU
from infergy.energy.table import SHIPPED_PREFIX, EnergyTable, FailedRow, SetupTable, SourceFacts, TableCell, TableNote
from infergy.errors import DataError, MeterError
from infergy.hardware import catalogue_name
from infergy.records import EngineSetup, Measurement, Result, result_of
from infergy.records.agreement import MUST, differences, key_of
from infergy.records.idle import find_idle_power
from infergy.records.store import read_store
from infergy.records.uncertainty import Uncertainty, find_uncertainties
from infergy.records.visits import join_visits

SHIPPED = Path(str(resources.files("infergy"))) / "data" / "tables"
GPU_SCOPE = "gpu-board"
"""The scope of a meter that has a counter for each GPU."""


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
    """The tables inside the package, the default GPU's first, and after them replicates from other chips likewise."""
    own, others = (SHIPPED.glob(pattern) for pattern in ("*.jsonl*", "replicates/*.jsonl*"))
    return (*sorted(own, key=_default_first), *sorted(others, key=_default_first))


def shipped_table(gpu: str | None = None) -> Path:
    """The first table that ships for a GPU of the catalogue, or of the default GPU where there is none."""
    tables = shipped_tables()
    return next((path for path in tables if gpu is not None and path.name.startswith(f"{gpu}-")), tables[0])


def _default_first(path: Path) -> tuple[bool, str]:
    return not path.name.startswith(f"{DEFAULT_GPU}-"), path.name


def load_table(
    paths: str | Path | Iterable[str | Path] = (), *, with_shipped: bool = False, allow_simulated: bool = False
) -> EnergyTable:
    """Read stores into a table; the first path ranks highest, shipped ones (by their bare name) after all others.

    Raises:
        DataError: A file is missing, foreign, damaged or empty, mixes environments, or holds simulated rows.
    """
    named = [(str(path), Path(path)) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if with_shipped:
        named += [(f"{SHIPPED_PREFIX}{path.relative_to(SHIPPED)}", path) for path in shipped_tables()]
    return _load(named, allow_simulated=allow_simulated)


def _load(named: Sequence[tuple[str, Path]], *, allow_simulated: bool) -> EnergyTable:
    cells: dict[_Key, list[TableCell]] = {}
    sources: dict[_Key, list[SourceFacts]] = {}
    setups: dict[_Key, EngineSetup] = {}
    failed: list[FailedRow] = []
    notes: list[TableNote] = []
    online: list[tuple[str, str]] = []
    for rank, (name, path) in enumerate(named):
        contents = read_store(path)
        if not contents.rows:
            raise DataError(f"{name}: holds no measurement. Make one with: infergy measure GRID.toml -o FILE.jsonl")
        if contents.torn is not None:
            text = f"{name}: its last line is half-written and set aside; infergy measure resumes it"
            notes.append(TableNote(text=text))
        offline = [row for row in contents.rows if not row.cell.load.is_online]
        came = [row for row in contents.rows if row.cell.load.is_online]
        for gpu, count in Counter(map(_gpu_name, came)).items():
            text = f"{name}: {count} rows served online or replayed are left out; estimates add up batches"
            notes.append(TableNote(text=text, gpu=gpu))
        if came:
            online += [(_gpu_name(row), row.cell_id) for row in came if row.is_ok]
        good, bad = _judge(name, offline, allow_simulated=allow_simulated)
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
            cells=tuple(sorted(cells[key], key=TableCell.order)),
            sources=tuple(sources[key]),
        )
        for key in sorted(cells)
    ]
    files = tuple(name for name, _ in named)
    return EnergyTable(
        setups=tuple(tables), files=files, failed=tuple(failed), notes=tuple(notes), online=tuple(online)
    )


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
        failed[row.cell_id] = FailedRow(
            source=name, gpu=_gpu_name(row), cell_id=row.cell_id, cell=str(row.cell), reason=reason
        )
    made_good = {row.cell_id for row, _ in good}
    return good, [row for cell_id, row in failed.items() if cell_id not in made_good]


def _derive(name: str, row: Measurement) -> Result:
    place = f"{name}, cell {row.cell_id} ({row.cell})"
    remedy = "Remove the row and measure the cell again"
    if not row.windows or row.loaded_idle is None:
        raise DataError(f"{place}: status is ok, but its windows or its loaded-idle window are missing. {remedy}")
    uuids = set(row.windows[0].open)
    if any({*window.open} != uuids or {*window.close} != uuids for window in row.windows) or not uuids <= {
        *row.loaded_idle.open
    }:
        raise DataError(f"{place}: the edges of its windows are not of the same GPUs. {remedy}")
    wanted = row.cell.setup.tensor_parallel
    if row.environment.scope == GPU_SCOPE and len(uuids) != wanted:
        raise DataError(f"{place}: it holds the joules of {len(uuids)} GPUs, its set-up works on {wanted}. {remedy}")
    try:
        result = result_of(row)
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
            gpu=_gpu_name(row),
            model=row.cell.setup.model,
            label=row.cell.label,
            weights=row.environment.weights,
            simulated=row.simulated,
        )
        groups.setdefault(key, []).append(pair)
    return groups


def _gpu_name(row: Measurement) -> str:
    return catalogue_name(row.environment.gpus[0].name) if row.environment.gpus else "unknown"


def _cells(name: str, rank: int, rows: Sequence[_Row]) -> list[TableCell]:
    """One cell for each load; visits of one chip are judged together, and repetitions become one."""
    joined = join_visits(row for row, _ in rows)
    uncertainties = find_uncertainties(joined)
    by_load: dict[tuple[int, int, int], list[tuple[_Row, float]]] = {}
    for row, uncertainty in zip(joined, uncertainties, strict=True):
        pair = _Row(row, result_of(row))
        by_load.setdefault(_load_key(row), []).append((pair, _doubt(pair, uncertainty)))
    each_j: dict[tuple[int, int, int], list[float]] = {}
    for row, result in rows:
        each_j.setdefault(_load_key(row), []).append(result.energy_per_request_j)
    return [_cell(name, rank, repeated, each_j[key]) for key, repeated in by_load.items()]


def _load_key(row: Measurement) -> tuple[int, int, int]:
    return row.cell.load.input_tokens, row.cell.load.output_tokens, row.cell.load.batch


def _doubt(pair: _Row, uncertainty: Uncertainty | None) -> float:
    """How far a row's joules may be off, as a fraction; where nothing tells its spread, by the bound of its tail."""
    row, result = pair
    if uncertainty is None:
        factor = 0.0 if row.rescaled is None else row.rescaled.half_width
        return result.idle_bound_j / (result.energy_j * result.batches) + factor
    return max(uncertainty.high_j / result.energy_j - 1, 1 - uncertainty.low_j / result.energy_j)


def _cell(name: str, rank: int, repeated: Sequence[tuple[_Row, float]], each_j: Sequence[float]) -> TableCell:
    row = repeated[0][0].row
    load = row.cell.load
    joules = [pair.result.energy_per_request_j for pair, _ in repeated]
    energy_j = fmean(joules)
    return TableCell(
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
        batch=load.batch,
        energy_j=energy_j,
        duration_s=fmean(pair.result.duration_s for pair, _ in repeated) / load.batch,
        doubt=max(doubt for _, doubt in repeated) + max(abs(j - energy_j) for j in joules) / energy_j,
        spread=(max(each_j) - min(each_j)) / energy_j if len(each_j) > 1 else None,
        repetitions=len(each_j),
        cell_id=row.cell_id,
        batch_choice=row.batch_choice,
        source=name,
        rank=rank,
        time_per_output_token_s=_mean([pair.result.time_per_output_token_s for pair, _ in repeated]),
        loaded_idle_w=_mean([find_idle_power(pair.row).loaded_w for pair, _ in repeated]),
        chips=tuple(sorted({gpu.uuid for pair, _ in repeated for gpu in pair.row.environment.gpus})),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """None if any is unknown."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _facts(name: str, rank: int, rows: Sequence[_Row]) -> SourceFacts:
    """The one environment of a set-up's rows in a file.

    Raises:
        DataError: There are two: a surface over both would compare drivers, not lengths.
    """
    first = rows[0].row
    for row, _ in rows:
        for found in differences(first, row, MUST):
            raise DataError(
                f"{name}: {first.cell.setup.label} {first.cell.setup.model} was measured under two environments: "
                f"{found.fact} {found.was or 'unknown'} in cell {first.cell_id}, {found.now or 'unknown'} in cell "
                f"{row.cell_id}. Put them in two files, and name the one that counts first: "
                "--table NEW.jsonl --table OLD.jsonl"
            )
    stamps = sorted(row.measured_utc for row, _ in rows)
    return SourceFacts(
        source=name,
        rank=rank,
        rows=len(rows),
        driver=first.environment.driver,
        cuda=first.environment.cuda,
        power_limits_w=tuple(gpu.power_limit_w for gpu in first.environment.gpus),
        packages=dict(first.environment.packages),
        gpu_uuids=tuple(sorted({gpu.uuid for row, _ in rows for gpu in row.environment.gpus})),
        measured_from=stamps[0],
        measured_to=stamps[-1],
        environment=key_of(first, MUST),
        rescaled=first.rescaled,
    )
