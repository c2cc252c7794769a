"""The energy table: what estimating needs of measured rows, as a file that is built once.

A line of JSON each: first the header, with the fitted constants, what was measured and the identity of each entry; then
one entry a measured cell or run, with the steps that its engine's scheduler made. Estimating reads the header alone.

History of the schema:
    1   first release
    2   the header names its entries: a file that was cut is seen, and what two tables share counts once
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from infergy.cost.fit import ENERGY_ERROR, TIME_ERROR, Column, Fit, FitRow, fit, prior_fit, sd_of
from infergy.cost.work import server_work
from infergy.errors import DataError
from infergy.hardware import get_gpu, get_model
from infergy.units import count_of

TABLE_SCHEMA = "infergy.table/2"
READABLE = ("infergy.table/1", TABLE_SCHEMA)
SHIPPED_TABLE = Path(str(resources.files("infergy"))) / "data" / "table.jsonl"
DIGITS = 7
"""Significant digits of sums and constants in a table."""
LIKE_ROWS = 6.0
BOX = ("decodes", "context", "prefill_tokens", "prefill_pairs")
"""The sums of a step whose measured ranges a table keeps: sequences, positions of each, prompt tokens, positions of
each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBy:
    """What served a measured cell.

    Attributes:
        gpu: Kind of GPU in the catalogue; `gpus` how many share the model.
        is_api: Whether an API server handed out tokens one by one.
        has_graphs: Whether decode steps replay CUDA graphs.
    """

    engine: str
    model: str
    dtype: str
    gpu: str
    gpus: int
    is_api: bool = False
    has_graphs: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an entry comes from.

    Attributes:
        source: Name of the file of rows.
        cell: The cell in words; `cell_id` its id there.
        unit: UUIDs of the GPUs, joined.
        environment: Id of host, driver and packages (`Table.environments`).
        weights: Initialisation of random weights, or where real ones came from.
    """

    source: str
    cell: str
    cell_id: str
    unit: str
    environment: str
    measured_utc: str
    weights: str
    simulated: bool

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits of the measurement: the same cell on the same GPUs at the same time."""
        return hashlib.sha256(f"{self.cell_id} {self.unit} {self.measured_utc}".encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TableEntry:
    """A measured cell or run.

    Attributes:
        requests: Requests of a batch or run.
        energy_j: Joules of it; `energy_sd` the standard deviation of its logarithm.
        duration_s: Seconds of it; None where arrivals set the time.
        idle_w: Watts of all GPUs, idle, with the model loaded.
        idle_s: Seconds with nothing to serve.
        calls: Times that requests were handed over.
        steps: An entry of steps a row: count, seconds of one, then the sums of `infergy.cost.step.StepSums`.
    """

    served_by: ServedBy
    origin: Origin
    requests: int
    energy_j: float
    energy_sd: float
    duration_s: float | None
    idle_w: float
    idle_s: float
    calls: int
    steps: Column

    def fit_row(self) -> FitRow:
        """The entry as a row of a fit."""
        by = self.served_by
        return FitRow(
            work=server_work(get_model(by.model), dtype=by.dtype, gpus=by.gpus),
            gpu=get_gpu(by.gpu),
            server=by.is_api,
            steps=self.steps,
            calls=self.calls,
            idle_s=self.idle_s,
            idle_w=self.idle_w,
            energy_j=self.energy_j,
            energy_sd=self.energy_sd,
            seconds=self.duration_s,
            unit=self.origin.unit,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredServer:
    """The range of steps that were measured of one server, and its idle power.

    Attributes:
        rows: Measured cells and runs.
        low: Least value of each sum of `BOX`, over steps; `high` the largest.
        idle_w: Watts of one GPU, idle, with the model loaded: median over the rows.
        energy_sd: Standard deviation of the logarithm of what the fit leaves of a row's energy.
        time_sd: The same of its seconds.
    """

    served_by: ServedBy
    rows: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    idle_w: float
    energy_sd: float
    time_sd: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Fitted constants, and what they were fitted to.

    Attributes:
        fits: One for each engine that was measured.
        measured: One for each server.
        environments: Host, driver and packages, by id.
        sources: Files of rows.
        identities: Of all entries that it was fitted to (`Origin.identity`).
        entries: Empty where only the header was read.
        repeated: Entries that were given, but already among those.
        notes: What to say with each answer that rests on it; not part of the file.
    """

    fits: Mapping[str, Fit]
    measured: tuple[MeasuredServer, ...]
    environments: Mapping[str, Mapping[str, Any]]
    sources: tuple[str, ...]
    identities: frozenset[str] = frozenset()
    entries: tuple[TableEntry, ...] = ()
    repeated: int = 0
    notes: tuple[str, ...] = ()
    schema: str = field(default=TABLE_SCHEMA)

    def find(self, served_by: ServedBy) -> MeasuredServer | None:
        """What was measured of a server, under a batch interface or behind an API; None if nothing."""
        wanted = replace(served_by, is_api=False)
        return next((one for one in self.measured if replace(one.served_by, is_api=False) == wanted), None)

    def idle_w(self, gpu: str) -> float | None:
        """Watts of one GPU of a kind, idle, with a model loaded: median over its servers; None if never measured."""
        known = [one.idle_w for one in self.measured if one.served_by.gpu == gpu]
        return float(np.median(known)) if known else None


@cache
def shipped_table() -> Table:
    """The header of the table inside the package."""
    return read_table(SHIPPED_TABLE)


def fit_of(table: Table, engine: str) -> Fit:
    """The fit of an engine; priors alone where nothing of it was measured."""
    return table.fits[engine] if engine in table.fits else prior_fit(engine)


def make_table(
    entries: Sequence[TableEntry], environments: Mapping[str, Mapping[str, Any]], prior: Table | None = None
) -> Table:
    """Fit the constants of each engine, and note what was measured; an entry that is given twice counts once.

    Args:
        entries: Some may be among those of `prior`.
        environments: Of the entries, by id.
        prior: A table whose fits stand in place of the datasheet's priors, and whose servers count as measured too.
    """
    earlier = {} if prior is None else prior.fits
    known = frozenset() if prior is None else prior.identities
    own_entries = {one.origin.identity: one for one in entries if one.origin.identity not in known}
    repeated, entries = len(entries) - len(own_entries), tuple(own_entries.values())
    fits: dict[str, Fit] = {}
    left: dict[int, Column] = {}
    for engine in sorted({entry.served_by.engine for entry in entries}):
        own = [entry for entry in entries if entry.served_by.engine == engine]
        fits[engine], errors = fit(engine, [entry.fit_row() for entry in own], earlier.get(engine))
        left |= {id(entry): error for entry, error in zip(own, errors, strict=True)}
    # A batch interface and an API server run the same steps.
    kinds = {id(entry): replace(entry.served_by, is_api=False) for entry in entries}
    servers = dict.fromkeys(kinds.values())
    measured = []
    for by in servers:
        own = [entry for entry in entries if kinds[id(entry)] == by]
        measured.append(_measured(by, own, np.array([left[id(entry)] for entry in own]), fits[by.engine]))
    return Table(
        fits={**earlier, **fits},
        measured=tuple(measured) + (() if prior is None else prior.measured),
        environments={**({} if prior is None else prior.environments), **environments},
        sources=tuple(dict.fromkeys(entry.origin.source for entry in entries)),
        identities=known.union(own_entries),
        entries=entries,
        repeated=repeated,
    )


def box_of(steps: Any) -> Column:
    """The values of `BOX` of each entry: per sequence and per prompt token where that is meant; shape (entries, 4)."""
    decodes, tokens = steps.decodes, steps.prefill_tokens
    return np.column_stack(
        [
            decodes,
            steps.context / np.maximum(decodes, 1),
            tokens,
            steps.prefill_pairs / np.maximum(tokens, 1),
        ]
    )


def _measured(by: ServedBy, entries: Sequence[TableEntry], left: Column, found: Fit) -> MeasuredServer:
    steps = np.vstack([entry.steps for entry in entries])
    decodes, context, tokens, pairs = steps[:, 2:6].T
    boxes = np.column_stack([decodes, context / np.maximum(decodes, 1), tokens, pairs / np.maximum(tokens, 1)])

    def sd(column: int, least: float, of_all: float) -> float:
        """Few rows say little of their own: those of the whole fit count for `LIKE_ROWS` of them."""
        count = int(np.isfinite(left[:, column]).sum())
        own = sd_of(left[:, column], least)
        return float(np.sqrt((count * own**2 + LIKE_ROWS * of_all**2) / (count + LIKE_ROWS)))

    return MeasuredServer(
        served_by=by,
        rows=len(entries),
        low=tuple(boxes.min(axis=0).tolist()),
        high=tuple(boxes.max(axis=0).tolist()),
        idle_w=float(np.median([entry.idle_w / by.gpus for entry in entries])),
        energy_sd=sd(0, ENERGY_ERROR, found.energy_sd),
        time_sd=sd(1, TIME_ERROR, found.time_sd),
    )


def write_table(table: Table, path: Path) -> None:
    """Write a table; the same table gives the same bytes."""
    header = {
        "schema": table.schema,
        "sources": table.sources,
        "fits": [_fit_json(one) for one in table.fits.values()],
        "measured": [asdict(one) for one in table.measured],
        "environments": table.environments,
        "entries": [entry.origin.identity for entry in table.entries],
    }
    lines = [header, *(_entry_json(entry) for entry in table.entries)]
    path.write_text(
        "".join(f"{json.dumps(_rounded(line), separators=(',', ':'))}\n" for line in lines), encoding="utf-8"
    )


def read_table(path: Path, *, entries: bool = False) -> Table:
    """Read a table; its entries only if asked for.

    Raises:
        DataError: The file is missing, no table of a schema that this release reads, or has other entries than its
            header names.
    """
    try:
        with path.open(encoding="utf-8") as file:
            header = _header(file.readline(), path)
            rest = tuple(_entries(file, path)) if entries else ()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError.not_readable(
            path, error, "Build a table: infergy table build ROWS.jsonl -o TABLE.jsonl"
        ) from error
    named = tuple(header.get("entries", [one.origin.identity for one in rest]))
    if entries and named != tuple(one.origin.identity for one in rest):
        message = (
            f"{path}: its header names {count_of(len(named), 'entry')}, and {len(rest):,} follow or others: the file "
            "was cut or edited. Copy it again, or build it again: infergy table build ROWS.jsonl -o TABLE.jsonl"
        )
        raise DataError(message, code="table-cut", path=str(path), expected=len(named), found=len(rest))
    try:
        return Table(
            fits={one["engine"]: _fit_of(one) for one in header["fits"]},
            measured=tuple(_server_of(one) for one in header["measured"]),
            environments=header["environments"],
            sources=tuple(header["sources"]),
            identities=frozenset(named),
            entries=rest,
        )
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path} line 1: no header of a table ({error}). Build it again"
        raise DataError(message, code="bad-row", place=f"{path} line 1", reason=str(error)) from error


def is_table(path: Path) -> bool:
    """Whether a file says that it is an energy table."""
    try:
        with path.open(encoding="utf-8") as file:
            return TABLE_SCHEMA.partition("/")[0] in file.read(100)
    except (OSError, UnicodeDecodeError):
        return False


def _header(line: str, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("schema") not in READABLE:
        message = (
            f'{path}: no energy table of schema "{TABLE_SCHEMA}". Build one: infergy table build ROWS.jsonl -o {path}'
        )
        raise DataError(message, code="wrong-schema", path=str(path), expected=TABLE_SCHEMA)
    return header


def _entries(lines: Iterator[str], path: Path) -> Iterator[TableEntry]:
    for number, line in enumerate(lines, start=2):
        try:
            data = json.loads(line)
            yield TableEntry(
                **{
                    **data,
                    "served_by": ServedBy(**data["served_by"]),
                    "origin": Origin(**data["origin"]),
                    "steps": np.array(data["steps"], dtype=float),
                }
            )
        except (ValueError, KeyError, TypeError) as error:
            message = f"{path} line {number}: no entry of a table ({error}). Build it again"
            raise DataError(message, code="bad-row", place=f"{path} line {number}", reason=str(error)) from error


def _entry_json(entry: TableEntry) -> dict[str, Any]:
    return {
        "served_by": asdict(entry.served_by),
        "origin": asdict(entry.origin),
        "requests": entry.requests,
        "energy_j": entry.energy_j,
        "energy_sd": entry.energy_sd,
        "duration_s": entry.duration_s,
        "idle_w": entry.idle_w,
        "idle_s": entry.idle_s,
        "calls": entry.calls,
        "steps": entry.steps.tolist(),
    }


def _fit_json(one: Fit) -> dict[str, Any]:
    return {**asdict(one), "mean": one.mean.tolist(), "covariance": one.covariance.tolist()}


def _fit_of(data: Mapping[str, Any]) -> Fit:
    arrays = {name: np.array(data[name], dtype=float) for name in ("mean", "covariance")}
    return Fit(**{**data, "names": tuple(data["names"]), **arrays})


def _server_of(data: Mapping[str, Any]) -> MeasuredServer:
    lists = {name: tuple(data[name]) for name in ("low", "high")}
    return MeasuredServer(**{**data, "served_by": ServedBy(**data["served_by"]), **lists})


def _rounded(value: Any) -> Any:
    """Numbers with `DIGITS` significant digits, whole ones without a point."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value
