"""Text files line by line: the first records of a log, and all rows of one that polars rejects.

polars rejects a whole file for one line that is no JSON object or has too many fields, for a byte order mark, and for
numbers that JSON does not have (NaN) or that do not fit 128 bits, in whichever field they stand.
"""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from infergy.errors import DataError
from infergy.files import MOST_EXPANDED, SMALL_BYTES

Names = tuple[str, ...]
GZIP = b"\x1f\x8b"
EVENTS = (b"data:", b"event:", b"id:", b"retry:", b": ")
"""How lines of server-sent events start, as a streamed answer is saved; those of data hold records."""
_DEEPEST = 20
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


def read_records(lines: Iterable[bytes]) -> Iterator[dict[str, Any] | Fault]:
    """The records of lines that are not blank; numbers as text, NaN and infinity as None."""
    for number, line in enumerate(lines, start=1):
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


def read_rows(path: Path, header: Names, separator: str) -> Iterator[dict[str, Any] | Fault]:
    """The rows of a CSV file, which have no more fields than its header.

    Raises:
        DataError: A quote that is not closed, which takes the lines after it along.
    """
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
                    yield {name: value or None for name, value in zip(header, row, strict=False)}
        except csv.Error as error:
            raise _unclosed(path, reader.line_num) from error
        if quotes % 2:
            raise _unclosed(path, reader.line_num)


def _unclosed(path: Path, number: int) -> DataError:
    message = f"{path}: a quote before line {number:,} is not closed. Close it, or remove its line"
    return DataError(message, code="bad-syntax", path=str(path), line=number, form="CSV")
