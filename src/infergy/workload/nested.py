"""Rows that stand inside records, of JSON or Parquet: in lists of records, in parallel lists, with lists of attributes.

Rows of nested lists, such as the spans of ``resourceSpans``, have the fields of the records around them; those of
parallel lists, such as ``input_lens`` and ``output_lens``, one value of each. A list of attributes,
``[{"key": "a", "value": {"intValue": "7"}}]``, is a record ``{"a": "7"}``, as is a map of Parquet.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infergy.errors import DataError
from infergy.workload.lines import Fault, open_lines, read_records, values_in

if TYPE_CHECKING:
    import polars as pl

LISTS = ("*",)
"""The nest of rows in parallel lists."""
_DEEPEST, _DEEPEST_ATTRIBUTES = 4, 10
_ATTRIBUTE = {"key", "value", "type"}
_BATCH = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Nested:
    """Records of a JSON file or a table, and where rows stand in them.

    Attributes:
        path: The file; None for a frame.
        is_document: Whether the file is one JSON value, not one per line.
        nest: Names of lists from the record inwards; none where the record is the row.
        table: A LazyFrame of polars, whose rows are the records.
    """

    path: Path | None
    is_document: bool = False
    nest: tuple[str, ...] = ()
    table: pl.LazyFrame | None = None

    def records(self) -> Iterator[dict[str, Any] | Fault]:
        """The records, numbers as text, and lines that are none; those of a document that is a list are its own.

        Raises:
            DataError: The document is no JSON.
        """
        if self.table is not None:
            parts = (self.table.slice(start, _BATCH).collect() for start in itertools.count(0, _BATCH))
            for part in itertools.takewhile(len, parts):
                yield from part.iter_rows(named=True)
            return
        assert self.path is not None
        hint = "Expected one JSON object per line, or one document"
        with open_lines(self.path) as lines:
            try:
                held = _document(self.path, self.path.stat().st_mtime_ns) if self.is_document else read_records(lines)
            except (ValueError, RecursionError) as error:
                raise DataError.bad_syntax(self.path, "JSON", error, hint) from error
            yield from (value for value in held if isinstance(value, (dict, Fault)))

    def rows(self) -> Iterator[dict[str, Any] | Fault]:
        """The rows by dotted path, values as they are, and lines that are none.

        Raises:
            DataError: As of `records`.
        """
        for record in self.records():
            if isinstance(record, Fault):
                yield record
            else:
                plain = _plain(record)
                yield from _rows_of(_parallel(plain)) if self.nest == LISTS else _unpack(plain, self.nest)

    def frame(self, fields: tuple[str, ...]) -> pl.LazyFrame:
        """The rows as text, lazily; a line that is none has its fault in each field."""
        import polars as pl
        from polars.io.plugins import register_io_source

        def read(
            columns: list[str] | None, predicate: pl.Expr | None, most: int | None, _: int | None
        ) -> Iterator[pl.DataFrame]:
            names = fields if columns is None else columns
            for frame in frames_of(itertools.islice(self.rows(), most), dict(zip(names, names, strict=True))):
                yield frame if predicate is None else frame.filter(predicate)

        return register_io_source(read, schema=dict.fromkeys(fields, pl.String))


def frames_of(rows: Iterator[dict[str, Any] | Fault], names: Mapping[str, str]) -> Iterator[pl.DataFrame]:
    """Rows as columns of text, by the names in the rows; a line that is no row has its fault in each."""
    import polars as pl

    while batch := list(itertools.islice(rows, _BATCH)):
        held = {
            column: [str(row) if isinstance(row, Fault) else _text(row.get(name)) for row in batch]
            for column, name in names.items()
        }
        yield pl.DataFrame(held, schema=dict.fromkeys(names, pl.String))


def is_document(first: str) -> bool:
    """Whether a file of JSON is one value, by its first line that is not blank."""
    try:
        return not isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        # A line that is cut off is one of many; a value over several lines opens alone in its first.
        return first.lstrip().startswith("[") or first.strip() == "{"


def nests_of(nested: Nested, most: int) -> list[tuple[str, ...]]:
    """Where rows may stand in the first records, the outermost first."""
    found: dict[tuple[str, ...], None] = {}
    for record in itertools.islice(nested.records(), most):
        if isinstance(record, Fault):
            continue
        if nested.table is not None or _has_attributes(record):
            found[()] = None
        if len(_parallel(record)) > 1:
            found[LISTS] = None
        found.update(dict.fromkeys(_lists(record)))
    return sorted(found, key=lambda nest: (len(nest), nest != LISTS))


@lru_cache(maxsize=1)
def _document(path: Path, _: int) -> list[Any]:
    """The records of a document, kept while the file does not change: each pass over it would parse it again."""
    with open_lines(path) as lines:
        value = json.load(lines, parse_constant=lambda _: None, parse_int=str, parse_float=str)
    return value if isinstance(value, list) else [value]


def _lists(record: Any, depth: int = 0) -> Iterator[tuple[str, ...]]:
    """Names of the lists of records in a record."""
    for key, value in record.items() if isinstance(record, dict) and depth < _DEEPEST else ():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield (key,)
            for inner in value[:2]:
                yield from ((key, *rest) for rest in _lists(inner, depth + 1))
        elif isinstance(value, dict):
            yield from ((f"{key}.{head}", *rest) for head, *rest in _lists(value, depth + 1))


def _parallel(record: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Lists of one length in a record."""
    lists = {key: value for key, value in record.items() if isinstance(value, list) and value}
    lengths = [len(value) for value in lists.values()]
    longest = max(lengths, key=lengths.count, default=0)
    return {key: value for key, value in lists.items() if len(value) == longest}


def _rows_of(columns: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _unpack(record: dict[str, Any], nest: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    own = {".".join(names): value for names, value in values_in(record)}
    if not nest:
        yield own
        return
    around = {name: value for name, value in own.items() if not isinstance(value, list)}
    for inner in (value for value in own.get(nest[0]) or () if isinstance(value, dict)):
        # A request of an agent may hold those of agents below it, in the same way.
        deeper = nest if len(nest) == 1 and isinstance(inner.get(nest[0]), list) else nest[1:]
        yield from ({**around, **row} for row in _unpack(inner, deeper))


def _plain(value: Any, depth: int = 0) -> Any:
    """A value whose lists of attributes are records."""
    if _is_attributes(value):
        return {str(one["key"]): _attribute(one["value"]) for one in value}
    if depth >= _DEEPEST_ATTRIBUTES or not isinstance(value, dict | list):
        return value
    if isinstance(value, dict):
        return {key: _plain(inner, depth + 1) for key, inner in value.items()}
    return [_plain(inner, depth + 1) for inner in value] if value and isinstance(value[0], dict) else value


def _is_attributes(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(one, dict) and {"key", "value"} <= one.keys() <= _ATTRIBUTE for one in value)


def _has_attributes(value: Any, depth: int = 0) -> bool:
    inner = value.values() if isinstance(value, dict) else value[:2] if isinstance(value, list) else ()
    if depth >= _DEEPEST_ATTRIBUTES:
        return False
    return _is_attributes(value) or any(_has_attributes(one, depth + 1) for one in inner)


def _attribute(value: Any) -> Any:
    """The value of an attribute of OTLP, which stands under the name of its type."""
    if isinstance(value, dict) and value and all(str(kind).lower().endswith("value") for kind in value):
        return next((inner for inner in value.values() if inner is not None), None)
    return value


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(inner, str) for inner in value):
        return f"[{', '.join(value)}]"
    return json.dumps(value) if isinstance(value, bool | int | float | dict | list) else str(value)
