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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from infergy.catalog.shape import ModelShape
from infergy.cost.constants import Column, Fit, published_fit
from infergy.cost.work import ExpertKernel, ServerWork, server_work
from infergy.errors import DataError
from infergy.files import parse_json, write_file
from infergy.units import count_of

if TYPE_CHECKING:
    from infergy.records import EngineSetup

TABLE_SCHEMA = "infergy.table/2"
READABLE = ("infergy.table/1", TABLE_SCHEMA)
SHIPPED_TABLE = Path(str(resources.files("infergy"))) / "data" / "table.jsonl"
BUILD_AGAIN = "Build it again: infergy table build ROWS.jsonl -o TABLE.jsonl"
DIGITS = 7
"""Significant digits of sums and constants in a table."""
BOX = ("decodes", "context", "prefill_tokens", "prefill_pairs")
"""The sums of a step whose measured ranges a table keeps: sequences, positions of each, prompt tokens, positions of
each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBy:
    """What served a measured cell.

    Attributes:
        gpu: Kind of GPU in the catalog; `gpus` how many share the model.
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

    @classmethod
    def of(cls, setup: EngineSetup, gpu: str, *, is_api: bool) -> ServedBy:
        """An engine config on a kind of GPU; float16 costs what bfloat16 does: the same bytes, FLOPs and dense peak."""
        return cls(
            engine=setup.engine,
            model=setup.model,
            dtype="bfloat16" if setup.dtype == "float16" else setup.dtype,
            gpu=gpu,
            gpus=setup.tensor_parallel,
            is_api=is_api,
            has_graphs=setup.compiled if setup.engine == "transformers" else setup.cuda_graphs is not False,
        )

    def work(self, shape: ModelShape) -> ServerWork:
        """What its steps are made of."""
        kernel: ExpertKernel | None = "gathered" if self.engine == "transformers" else None
        return server_work(shape, dtype=self.dtype, gpus=self.gpus, compiled=self.has_graphs, kernel=kernel)


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
        energy_j: Energy of it; `energy_sd` the standard deviation of its logarithm.
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
        outliers: Origins of entries whose energy the fit misses by far, and measured over fitted; not in the file.
        notes: What to say with each answer that rests on it; not part of the file.
    """

    fits: Mapping[str, Fit]
    measured: tuple[MeasuredServer, ...]
    environments: Mapping[str, Mapping[str, Any]]
    sources: tuple[str, ...]
    identities: frozenset[str] = frozenset()
    entries: tuple[TableEntry, ...] = ()
    repeated: int = 0
    outliers: tuple[tuple[Origin, float], ...] = ()
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
    """The fit of an engine; what others published where nothing of it was measured."""
    return table.fits[engine] if engine in table.fits else published_fit(engine)


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


Readers = dict[str, Callable[[Any], Any]]
READERS: Readers = {
    "served_by": lambda data: ServedBy(**data),
    **dict.fromkeys(("steps", "mean", "covariance"), lambda data: np.array(data, dtype=float)),
    **dict.fromkeys(("names", "low", "high"), tuple),
}
"""By field, what makes it of JSON."""
Made = TypeVar("Made")


def write_table(table: Table, path: Path) -> None:
    """Write a table; the same table gives the same bytes.

    Raises:
        UsageError: The file cannot be written, or holds something else than a table, which would be lost.
    """
    header = {
        "schema": table.schema,
        "sources": table.sources,
        "fits": [asdict(one) for one in table.fits.values()],
        "measured": [asdict(one) for one in table.measured],
        "environments": table.environments,
        "entries": [entry.origin.identity for entry in table.entries],
    }
    lines = [header, *map(asdict, table.entries)]
    text = "".join(f"{json.dumps(_rounded(line), separators=(',', ':'))}\n" for line in lines)
    write_file(path, text, "table", f'"{TABLE_SCHEMA.partition("/")[0]}/')


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
    identities = [one.origin.identity for one in rest]
    named = header.get("entries", identities)
    if entries and named != identities:
        expected = len(named) if isinstance(named, list) else 0
        message = (
            f"{path}: its header names {count_of(expected, 'entry')}, and {len(rest):,} follow or others: the file "
            "was cut or edited. Copy it again, or build it again: infergy table build ROWS.jsonl -o TABLE.jsonl"
        )
        raise DataError(message, code="table-cut", path=str(path), expected=expected, found=len(rest))
    try:
        measured = tuple(_made(MeasuredServer, one) for one in header["measured"])
        for server in measured:
            demand_positive(server, "rows", or_zero=("idle_w", "energy_sd", "time_sd"))
        return Table(
            fits={one["engine"]: _made(Fit, one) for one in header["fits"]},
            measured=measured,
            environments=dict(header["environments"]),
            sources=tuple(header["sources"]),
            identities=frozenset(named),
            entries=rest,
        )
    except (ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        message = f"{path} line 1: no header of a table ({error}). {BUILD_AGAIN}"
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
        header = parse_json(line, path, BUILD_AGAIN, 1)
    except DataError as error:
        if error.code != "bad-syntax":
            raise
        header = None
    if not isinstance(header, dict) or header.get("schema") not in READABLE:
        message = (
            f'{path}: no energy table of schema "{TABLE_SCHEMA}". Build one: infergy table build ROWS.jsonl -o {path}'
        )
        raise DataError(message, code="wrong-schema", path=str(path), expected=TABLE_SCHEMA)
    return header


def _entries(lines: Iterator[str], path: Path) -> Iterator[TableEntry]:
    # The header, which is all that an estimate reads, does without the codec.
    from infergy.records.codec import from_json

    strict = READERS | {"served_by": partial(from_json, ServedBy), "origin": partial(from_json, Origin)}
    strict |= dict.fromkeys(("energy_j", "energy_sd", "idle_w", "idle_s"), partial(from_json, float))
    strict |= dict.fromkeys(("requests", "calls"), partial(from_json, int))
    for number, line in enumerate(lines, start=2):
        data = parse_json(line, path, BUILD_AGAIN, number)
        try:
            entry = _made(TableEntry, data, strict)
            demand_positive(entry, "energy_j", "requests", or_zero=("energy_sd", "idle_w", "calls"))
            yield entry
        except (ValueError, KeyError, TypeError, AttributeError, DataError) as error:
            message = f"{path} line {number}: no entry of a table ({error}). {BUILD_AGAIN}"
            raise DataError(message, code="bad-row", place=f"{path} line {number}", reason=str(error)) from error


def demand_positive(noun: object, *names: str, or_zero: tuple[str, ...]) -> None:
    """Reject a number that is below 0, or is 0 where it is not among `or_zero`.

    Raises:
        ValueError: There is one.
    """
    for name in (*names, *or_zero):
        if not (value := getattr(noun, name)) > 0 and (name not in or_zero or value != 0):
            raise ValueError(f"{name} is {value!r}")


def _made(kind: Callable[..., Made], data: Mapping[str, Any], readers: Readers = READERS) -> Made:
    """A noun of JSON."""
    return kind(**{name: readers[name](value) if name in readers else value for name, value in data.items()})


def _rounded(value: Any) -> Any:
    """Numbers with `DIGITS` significant digits, whole ones without a point."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.{DIGITS}g}")
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value
