"""Text files line by line: the first records of a log, and all rows of one that polars rejects.

polars rejects a whole file for one line that is no JSON object or has too many fields, for a byte order mark, and for
numbers that JSON does not have (NaN) or that do not fit 128 bits, in whichever field they stand.
"""

from __future__ import annotations

import codecs
import csv
import errno
import functools
import gzip
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from infergy.errors import DataError
from infergy.files import MOST_EXPANDED, SMALL_BYTES

if TYPE_CHECKING:
    import polars as pl

Names = tuple[str, ...]
GZIP = b"\x1f\x8b"
EVENTS = (b"data:", b"event:", b"id:", b"retry:", b": ")
"""How lines of server-sent events start, as a streamed answer is saved; those of data hold records."""
_DEEPEST = 20
_SHOWN = 3
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A line that cannot be read: its number in the file, from 1, and what it is."""

    number: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.number} is {self.reason}"


def open_lines(path: Path) -> IO[bytes]:
    """A file of text, unpacked where it is gzipped."""
    with path.open("rb") as file:
        is_packed = file.read(2) == GZIP
    return gzip.open(path, "rb") if is_packed else path.open("rb")  # type: ignore[return-value]


def reject_bomb(path: Path) -> None:
    """Reject a packed file with a line too long to have been a log's: of it is asked what no memory has.

    Raises:
        OSError: There is one; or the file cannot be read.
    """
    size = path.stat().st_size
    most = max(SMALL_BYTES, MOST_EXPANDED * size)
    with path.open("rb") as file:
        if file.read(2) != GZIP:
            return
        # gzip ends with how much it holds, modulo 2^32.
        file.seek(max(0, size - 4))
        is_dense = int.from_bytes(file.read(4), "little") > most
    length = 0
    with open_lines(path) as lines:
        while block := lines.read(_BLOCK_BYTES):
            end = block.rfind(b"\n")
            length = len(block) - end - 1 if end >= 0 else length + len(block)
            if length > most:
                raise OSError(errno.EFBIG, f"packed to less than a {MOST_EXPANDED}th, with a line that has no end")
            if end >= 0 and not is_dense:
                return


def read_records(lines: Iterable[bytes], first: int = 1) -> Iterator[dict[str, Any] | Fault]:
    """The records of lines that are not blank, numbered from `first`; numbers as text, NaN and infinity as None."""
    for number, text in enumerate(lines, start=first):
        line = text
        if line.startswith(EVENTS):
            line = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if not line.strip() or line == b"[DONE]":
            continue
        try:
            record = json.loads(line, parse_constant=lambda _: None, parse_int=str, parse_float=str)
        except UnicodeDecodeError:
            yield Fault(number=number, reason="not UTF-8")
        except (ValueError, RecursionError) as error:
            yield Fault(number=number, reason=f"not JSON ({error})")
        else:
            yield record if isinstance(record, dict) else Fault(number=number, reason="not a JSON object")


def values_in(record: Mapping[str, Any], outer: Names = ()) -> Iterator[tuple[Names, Any]]:
    """The names along each field of a record, and its value; a list is a value."""
    for key, value in record.items():
        if isinstance(value, dict) and len(outer) < _DEEPEST:
            yield from values_in(value, (*outer, key))
        else:
            yield (*outer, key), value


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """Rows of a file as columns of text, its faulty lines left out: how many there are, and the first of them."""

    frame: pl.DataFrame
    faults: int
    first: tuple[Fault, ...]


def record_schema(fields: Mapping[str, Names], lists: Collection[str]) -> dict[str, Any]:
    """The types of nested records, of only some fields: text, so that numbers keep their digits, or lists."""
    import polars as pl

    tree: dict[str, Any] = {}
    for path, (*outer, last) in fields.items():
        node = tree
        for name in outer:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                break
        else:
            node[last] = pl.List(pl.Int64) if path in lists else pl.String

    def build(node: dict[str, Any]) -> dict[str, Any]:
        return {name: pl.Struct(build(inner)) if isinstance(inner, dict) else inner for name, inner in node.items()}

    return build(tree)


def parse_records(path: Path, fields: Mapping[str, Names], lists: Collection[str]) -> Parsed:
    """Fields of a JSONL file, by path; those in `lists` are lists of whole numbers.

    polars reads it in blocks, and only those that it rejects are read line by line.
    """
    import polars as pl

    schema = record_schema(fields, lists)
    columns = [
        functools.reduce(lambda column, name: column.struct.field(name), inner, pl.col(head)).alias(field)
        for field, (head, *inner) in fields.items()
    ]
    parts, number = [], 1
    with open_lines(path) as lines:
        while block := lines.read(_BLOCK_BYTES) + lines.readline():
            block = block.removeprefix(codecs.BOM_UTF8) if number == 1 else block
            try:
                frame = pl.read_ndjson(block, schema=schema, ignore_errors=True).select(columns)
                parts.append(Parsed(frame=frame, faults=0, first=()))
            except pl.exceptions.PolarsError:
                records = read_records(block.splitlines(), number)
                rows = (one if isinstance(one, Fault) else [_field(one, n) for n in fields.values()] for one in records)
                parts.append(_parsed(fields, rows, lists))
            number += block.count(b"\n")
    frame = pl.concat([part.frame for part in parts])
    first = tuple(fault for part in parts for fault in part.first)
    return Parsed(frame=frame, faults=sum(part.faults for part in parts), first=first[:_SHOWN])


def parse_csv(path: Path, header: Names, fields: Mapping[str, Names], separator: str) -> Parsed:
    """Fields of a CSV file, each with its name in the header, whose rows have no more fields than its header.

    Raises:
        DataError: A quote that is not closed, which takes the lines after it along.
    """
    places = [header.index(name) for (name,) in fields.values()]

    def rows() -> Iterator[list[Any] | Fault]:
        quotes = 0

        def counted(lines: Iterable[str]) -> Iterator[str]:
            nonlocal quotes
            for line in lines:
                quotes += line.count('"')
                yield line

        with io.TextIOWrapper(open_lines(path), encoding="utf-8-sig", errors="replace", newline="") as lines:
            reader = csv.reader(counted(lines), delimiter=separator)
            next(row for row in reader if tuple(row) == header)
            try:
                for row in filter(any, reader):
                    if len(row) != len(header) and any("\n" in field for field in row):
                        raise _unclosed(path, reader.line_num)
                    if any(row[len(header) :]):
                        reason = f"of {len(row):,} fields, more than the {len(header):,} of the header"
                        yield Fault(number=reader.line_num, reason=reason)
                    else:
                        yield [row[place] or None if place < len(row) else None for place in places]
            except csv.Error as error:
                raise _unclosed(path, reader.line_num) from error
            if quotes % 2:
                raise _unclosed(path, reader.line_num)

    return _parsed(fields, rows(), ())


def _parsed(fields: Iterable[str], rows: Iterable[list[Any] | Fault], lists: Collection[str]) -> Parsed:
    import polars as pl

    columns: dict[str, list[Any]] = {field: [] for field in fields}
    faults, first = 0, []
    for row in rows:
        if isinstance(row, Fault):
            faults += 1
            first += [row] if faults <= _SHOWN else []
        else:
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    types = {field: pl.List(pl.String) if field in lists else pl.String for field in columns}
    texts = {field: list(map(_texts if field in lists else _text, column)) for field, column in columns.items()}
    frame = pl.DataFrame(texts, schema=types)
    frame = frame.with_columns(pl.col(field).cast(pl.List(pl.Int64), strict=False) for field in lists)
    return Parsed(frame=frame, faults=faults, first=tuple(first))


def _field(record: Any, names: Names) -> Any:
    for name in names:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else None


def _texts(value: Any) -> list[str | None] | None:
    return list(map(_text, value)) if isinstance(value, list) else None


def _unclosed(path: Path, number: int) -> DataError:
    message = f"{path}: a quote before line {number:,} is not closed. Close it, or remove its line"
    return DataError(message, code="bad-syntax", path=str(path), line=number, form="CSV")
