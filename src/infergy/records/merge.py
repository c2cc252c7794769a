"""Several stores become one that holds every row once, in the order of time. Standard library only.

A row is known by its cell and visit, the instant at which it was measured and the GPUs: two rows alike in these are one
row, or one of them was changed. A cell that two machines measured keeps both rows: they are visits of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infergy.errors import DataError, InfergyError, UsageError
from infergy.records.agreement import IDENTITY, SCOPE, WEIGHTS
from infergy.records.measurement import Measurement
from infergy.records.store import StoreContents, StoreWriter, create_store, encode_row, read_store

MERGE_SCHEMA = "infergy.merge/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedFile:
    """Rows of one file, and those of them that neither the output nor a file before it has.

    `is_torn` says whether its last line is half-written: it is left where it is, and not counted.
    """

    file: str
    rows: int
    added: int
    is_torn: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The result of a merge: rows of the output before and now, cells measured, and cells with failed rows only."""

    output: str
    before: int
    rows: int
    cells: int
    failed: int
    files: tuple[MergedFile, ...]
    schema: str = MERGE_SCHEMA


def merge(output: Path, files: Sequence[Path]) -> Merged:
    """Put all rows of `files`, and of `output` if it is there, into `output`: all of them, or none.

    Raises:
        DataError: A file is no store, or the same row differs in two files.
        UsageError: Their joules cannot stand in one store, `output` cannot be written, or a sweep is writing to it.
    """
    is_new = not output.exists()
    contents = [(path, read_store(path)) for path in files]
    with StoreWriter(output) as store:
        try:
            held = join([(str(output), store.rows)])
            rows = join([(str(output), store.rows), *((str(path), one.rows) for path, one in contents)])
            if rows != list(store.rows):
                create_store(output, rows, replace=True)
        except InfergyError:
            if is_new:
                output.unlink()
            raise
    return _summary(output, held, rows, contents)


def join(stores: Iterable[tuple[str, Sequence[Measurement]]]) -> list[Measurement]:
    """Each row of named stores once, by the time at which it was measured.

    Raises:
        DataError: The same row differs in two stores.
        UsageError: Rows are of several scopes or kinds of GPU, or simulated and not.
    """
    found: dict[tuple[str, ...], tuple[str, bytes, Measurement]] = {}
    first: tuple[str, Measurement] | None = None
    for name, rows in stores:
        for row in rows:
            first = first or (name, row)
            reject_unlike(first, (name, row))
            line = encode_row(row)
            other, known, _ = found.setdefault(_identity(row), (name, line, row))
            if known != line:
                message = (
                    f"{other} and {name}: the row of {row.cell} ({row.key}, measured {row.measured_utc}) differs: "
                    "one of them was changed. Remove it from one file, then merge again"
                )
                where = {"cell": row.key, "measured_utc": row.measured_utc}
                raise DataError(message, code="rows-differ", files=[other, name], **where)
    return [row for _, _, row in sorted(found.values(), key=lambda one: (one[2].measured_utc, one[2].key, one[1]))]


def _identity(row: Measurement) -> tuple[str, ...]:
    return row.key, row.measured_utc, row.environment.platform, *(gpu.uuid for gpu in row.environment.gpus)


def reject_unlike(first: tuple[str, Measurement], other: tuple[str, Measurement]) -> None:
    """Reject two rows, each with the name of where it is from, that cannot stand in one store.

    Raises:
        UsageError: Their joules are of several scopes or kinds of GPU, or simulated and not.
    """
    for fact in (SCOPE, *(fact for fact in IDENTITY if fact is not WEIGHTS)):
        was, now = fact.of(first[1]), fact.of(other[1])
        if was != now:
            message = (
                f"{first[0]} and {other[0]} cannot be one store: {fact.name} {was} against {now}. "
                "Merge each kind into a file of its own; infergy compare takes several"
            )
            where = {"fact": fact.name, "was": was, "now": now}
            raise UsageError(message, code="environments-differ", files=[first[0], other[0]], **where)


def _summary(
    output: Path,
    held: Sequence[Measurement],
    rows: Sequence[Measurement],
    contents: Sequence[tuple[Path, StoreContents]],
) -> Merged:
    seen = {_identity(row) for row in held}
    files: list[MergedFile] = []
    for path, one in contents:
        here = {_identity(row) for row in one.rows}
        files.append(
            MergedFile(file=str(path), rows=len(one.rows), added=len(here - seen), is_torn=one.torn is not None)
        )
        seen |= here
    measured = {row.cell_id for row in rows if row.is_ok}
    return Merged(
        output=str(output),
        before=len(held),
        rows=len(rows),
        cells=len(measured),
        failed=len({row.cell_id for row in rows} - measured),
        files=tuple(files),
    )
