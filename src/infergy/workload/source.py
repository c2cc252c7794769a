"""A trace whose fields are known and whose rows are unread."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infergy.workload.lines import Fault, Names, read_records, values_in

if TYPE_CHECKING:
    from infergy.workload.nested import Nested

CSV, JSONL, UNPACKED, PARQUET, POLARS, FRAME = "csv", "jsonl", "unpacked", "parquet", "polars", "frame"
PEEKED_RECORDS = 200


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """A trace whose fields are known and whose rows are unread.

    Attributes:
        name: Shipped name, path, or what kind of frame it is.
        kind: ``csv``, ``jsonl``, ``unpacked`` for records in which rows are to be found, ``parquet``, ``polars``, or
            ``frame`` for what narwhals holds.
        names: The names along each column: several where records are nested, and any may hold a dot.
        path: The file; None for a frame.
        frame: A polars LazyFrame or a narwhals frame; None for a file.
        rows: The first rows of a text file, by field.
        texts: Fields of JSON that stands as text in a column: the column, and the JSON path.
        nested: How rows are found in JSON records.
        separator: Between the fields of a CSV.
        skipped: Lines of a CSV before its header, blank ones aside: ``sep=;`` is one.
        line_end: Of a CSV.
        about: The entry of a shipped trace in `traces.toml`.
        lengths_from: Where the lengths of a task come from, in words; None for a trace, whose lengths are its own.
    """

    name: str
    kind: str
    names: tuple[Names, ...]
    path: Path | None = None
    frame: Any = None
    rows: tuple[Mapping[str, Any], ...] = ()
    texts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    nested: Nested | None = None
    separator: str = ","
    skipped: int = 0
    line_end: str = "\n"
    about: Mapping[str, str] = field(default_factory=dict)
    lengths_from: str | None = None

    @property
    def is_records(self) -> bool:
        """Whether rows are JSON records, in which an optional field may show up late."""
        return self.kind in (JSONL, UNPACKED)

    @property
    def fields(self) -> Names:
        """Column names; those of nested records as dotted paths."""
        return (*map(".".join, self.names), *self.texts)

    def columns_of(self, paths: Iterable[str]) -> dict[str, Names]:
        """The columns that hold fields, and the names along them."""
        columns = [path if (text := self.text_of(path)) is None else text[0] for path in paths]
        return {path: self.names_of(path) for path in columns}

    def text_of(self, path: str) -> tuple[str, str] | None:
        """The column whose text is JSON with a field, and the JSON path; None if the field is no such."""
        if path in self.texts:
            return self.texts[path]
        for column in {column for column, _ in self.texts.values()}:
            if path.startswith(f"{column}."):
                return column, _json_path(path.removeprefix(f"{column}.").split("."))
        return None

    def with_texts(self) -> Source:
        """The same with the fields of JSON that stands as text in the first rows."""
        texts: dict[str, tuple[str, str]] = {}
        rows = []
        has_any = any(_is_json(value) for row in self.rows for value in row.values())
        for row in self.rows if has_any else ():
            inner = dict(_inside(row))
            texts |= {path: place for path, (place, _) in inner.items()}
            rows.append({**row, **{path: value for path, (_, value) in inner.items()}})
        texts = {path: place for path, place in texts.items() if path not in set(map(".".join, self.names))}
        return replace(self, rows=tuple(rows), texts=texts) if texts else self

    def names_of(self, path: str) -> Names:
        """The names along a dotted path; those of a field not seen yet are nested as in the one most like it."""
        exact = next((names for names in self.names if ".".join(names) == path), None)
        if exact is not None or self.kind == UNPACKED:
            return exact or (path,)
        split = path.split(".")
        alike = [_shared(".".join(names).split("."), split) for names in self.names]
        shared = max(alike, default=0)
        outer: Names = ()
        taken = 0
        while taken < shared:
            name = self.names[alike.index(shared)][len(outer)]
            if taken + name.count(".") >= shared:
                # The neighbour's name holds dots: so does this one's.
                return (*outer, ".".join(split[taken:]))
            outer, taken = (*outer, name), taken + name.count(".") + 1
        return (*outer, *split[taken:])

    def peeked(self, marks: Collection[str]) -> Source:
        """The same with its first rows, of a table that has columns of these names: these, and tokens."""
        has_marks = any(names[-1] in marks for names in self.names)
        is_table = self.kind in (PARQUET, POLARS, FRAME) and not self.is_spark
        if self.rows or self.about or not is_table or not has_marks:
            return self
        import narwhals as nw
        import polars as pl

        chosen = dict.fromkeys(n[0] for n in self.names if n[-1] in (*marks, "id") or "token" in n[-1].lower())
        try:
            frame = self.frame if self.path is None else pl.scan_parquet(self.path, glob=False)
            held = frame.select(*chosen).head(PEEKED_RECORDS)
            held = held if isinstance(held, nw.DataFrame) else held.collect()
        except pl.exceptions.PolarsError:
            # What is wrong is reported when all is read.
            return self
        rows = (dict(values_in(row)) for row in held.iter_rows(named=True))
        return replace(self, rows=tuple({".".join(names): value for names, value in row.items()} for row in rows))

    @property
    def is_spark(self) -> bool:
        """Whether Spark holds the rows."""
        held = self.frame.implementation if self.kind == FRAME else None
        return held is not None and bool(held.is_pyspark() or held.is_pyspark_connect())


def _is_json(text: Any) -> bool:
    return isinstance(text, str) and text.startswith("{") and text.rstrip().endswith("}")


def _inside(row: Mapping[str, Any]) -> Iterator[tuple[str, tuple[tuple[str, str], Any]]]:
    """Fields of the JSON objects that stand as text in a row: where, and their values."""
    for column, text in row.items():
        if _is_json(text):
            for record in read_records([text.encode()]):
                for names, value in () if isinstance(record, Fault) else values_in(record):
                    yield f"{column}.{'.'.join(names)}", ((column, _json_path(names)), value)


def _json_path(names: Iterable[str]) -> str:
    return "$" + "".join(f"[{json.dumps(name)}]" for name in names)


def _shared(path: Sequence[str], other: Sequence[str]) -> int:
    """How many names two paths begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(path, other, strict=False)) if a != b), min(len(path), len(other)))


def of_frame(name: str, kind: str, frame: Any, lengths_from: str | None = None) -> Source:
    """A frame of polars or narwhals as a source."""
    schema = frame.collect_schema()
    names = tuple(names for names, _ in flatten(schema))
    return Source(name=name, kind=kind, names=names, frame=frame, lengths_from=lengths_from)


def flatten(schema: Mapping[str, Any], outer: Names = ()) -> Iterator[tuple[Names, Any]]:
    """The names along all columns and the fields of struct columns, and their types (polars or narwhals)."""
    for name, dtype in schema.items():
        inner = getattr(dtype, "fields", None)
        if inner:
            yield from flatten({field.name: field.dtype for field in inner}, (*outer, name))
        else:
            yield (*outer, name), dtype


def first_line(error: Exception) -> str:
    """The first line of a library's error, without its advice to programmers."""
    return str(error).strip().split("\n")[0] or type(error).__name__
