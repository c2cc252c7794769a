"""A trace whose fields are known and whose rows are unread."""

from __future__ import annotations

import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infergy.errors import DataError
from infergy.units import count_of
from infergy.workload.lines import Fault, Names, read_records, values_in

if TYPE_CHECKING:
    from infergy.workload.nested import Nested

CSV, JSONL, UNPACKED, PARQUET, POLARS, FRAME = "csv", "jsonl", "unpacked", "parquet", "polars", "frame"
PEEKED_RECORDS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """Of a CSV: what is between fields, how lines end, and how many, but for blank ones, stand before its header."""

    separator: str = ","
    line_end: str = "\n"
    skipped: int = 0


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
        spelled: The names along columns whose names in small letters, with ``_``, are fields too.
        dialect: Of a CSV.
        about: The entry of a shipped trace in `traces.toml`.
        lengths_from: Where the lengths of a task come from, in words; None for a trace, whose lengths are its own.
    """

    name: str
    kind: str
    names: tuple[Names, ...]
    path: Path | None = None
    frame: Any = None
    rows: tuple[dict[str, Any], ...] = ()
    texts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    nested: Nested | None = None
    spelled: Mapping[str, Names] = field(default_factory=dict)
    dialect: Dialect = Dialect()
    about: Mapping[str, str] = field(default_factory=dict)
    lengths_from: str | None = None

    @property
    def is_records(self) -> bool:
        """Whether rows are JSON records, in which an optional field may show up late."""
        return self.kind in (JSONL, UNPACKED)

    @property
    def fields(self) -> Names:
        """Column names; those of nested records as dotted paths."""
        return (*map(".".join, self.names), *self.texts, *self.spelled)

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
        exact = next((names for names in self.names if ".".join(names) == path), self.spelled.get(path))
        if exact is not None or self.kind == UNPACKED:
            return exact or (path,)
        split = path.split(".")
        alike = [len([*takewhile(bool, map(eq, ".".join(names).split("."), split))]) for names in self.names]
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

    def respelled(self, spell: Callable[[str], str]) -> Source:
        """The same with the fields that its own are in another spelling, too."""
        fields = set(self.fields)
        plain = [(spell(".".join(names)), names) for names in self.names]
        count = Counter(name for name, _ in plain)
        spelled = {name: names for name, names in plain if name not in fields and count[name] == 1}
        rows = (row | {name: row.get(".".join(names)) for name, names in spelled.items()} for row in self.rows)
        return replace(self, spelled={**self.spelled, **spelled}, rows=tuple(rows)) if spelled else self

    def peeked(self, marks: Collection[str]) -> Source:
        """The same with its first rows, of a table that has columns of these names: these, and tokens."""
        marked = [names[0] for names in self.names if names[-1] in marks]
        is_peeked = self.rows or self.about or self.is_spark
        if is_peeked or not marked or self.kind not in (PARQUET, POLARS, FRAME):
            return self
        import narwhals as nw
        import polars as pl

        tokens = [names[0] for names in self.names if "token" in names[-1].lower()]
        try:
            frame = self.frame if self.path is None else pl.scan_parquet(self.path, glob=False)
            held = (
                nw.from_native(frame.select(*dict.fromkeys((*marked, *tokens))).head(PEEKED_RECORDS)).lazy().collect()
            )
            return replace(self, rows=tuple(map(flat_row, held.iter_rows(named=True))))
        except pl.exceptions.PolarsError:
            # What is wrong is reported when all is read.
            return self

    def check_twice(self, paths: Iterable[str]) -> None:
        """Check that the header of a CSV has these columns once.

        Raises:
            DataError: It has one several times.
        """
        twice = next((path for path in paths if self.kind == CSV and self.fields.count(path) > 1), None)
        if twice is not None:
            what = f"{count_of(self.fields.count(twice), 'column')} are called {twice!r} in the header"
            message = f"{self.name}: {what}. Keep one: rename or remove the others"
            raise DataError(message, code="bad-column", trace=self.name, column=twice)

    @property
    def is_spark(self) -> bool:
        """Whether Spark holds the rows."""
        held = self.frame.implementation if self.kind == FRAME else None
        return held is not None and bool(held.is_pyspark() or held.is_pyspark_connect())


def flat_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a record by dotted path."""
    return {".".join(names): value for names, value in values_in(record)}


def plain_name(path: str) -> str:
    """A name in small letters: ``input_tokens`` of ``# Input Tokens``."""
    return re.sub(r"[^a-z0-9.]+", "_", path.lower()).strip("_")


def unwrapped_name(path: str) -> str:
    """The field that one of extended JSON, as of MongoDB, is in plain JSON: ``at`` of ``at.$date``."""
    return re.sub(r"\.\$(date|oid|number(Int|Long|Double|Decimal))\b", "", path)


def _is_json(text: Any) -> bool:
    return isinstance(text, str) and text.startswith("{") and text.rstrip().endswith("}")


def plain_json(x: Any, column: Any) -> Any:
    """JSON in a column of text, in which maps of ClickHouse have single quotes, for `polars`."""
    return x.when(column.str.starts_with("{'")).then(column.str.replace_all("'", '"', literal=True)).otherwise(column)


def _inside(row: Mapping[str, Any]) -> Iterator[tuple[str, tuple[tuple[str, str], Any]]]:
    """Fields of the JSON objects that stand as text in a row: where, and their values."""
    for column, text in row.items():
        if _is_json(text):
            plain = text.replace("'", '"') if text.startswith("{'") else text
            for record in read_records([plain.encode()]):
                for names, value in () if isinstance(record, Fault) else values_in(record):
                    yield f"{column}.{'.'.join(names)}", ((column, _json_path(names)), value)


def _json_path(names: Iterable[str]) -> str:
    return "$" + "".join(f"[{json.dumps(name)}]" for name in names)


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


@contextmanager
def without_panics() -> Iterator[None]:
    """The block, in which a panic of polars is an error of polars; the main thread drops what Rust writes of it."""
    import polars as pl

    try:
        with _stderr_until_panic(pl.exceptions.PanicException):
            yield
    except pl.exceptions.PanicException as error:
        raise pl.exceptions.ComputeError(str(error)) from error


@contextmanager
def _stderr_until_panic(panic: type[BaseException]) -> Iterator[None]:
    # Descriptors are shared by threads: two that change one would leave it changed.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    import tempfile

    with tempfile.TemporaryFile() as aside:
        kept = os.dup(2)
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except panic:
            aside.truncate(0)
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            aside.seek(0)
            os.write(2, aside.read())
