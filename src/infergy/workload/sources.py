"""Where a trace comes from: shipped, a task, a file, a URL, or a frame. Reads only a header or the first records."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import math
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from infergy.errors import DataError, UsageError
from infergy.workload.nested import Nested, all_keys, flat_of, nests_of

if TYPE_CHECKING:
    from infergy.workload.tasks import TaskOptions

CSV, JSONL, UNPACKED, PARQUET, POLARS, FRAME = "csv", "jsonl", "unpacked", "parquet", "polars", "frame"
_PEEKED_RECORDS = 200
_PEEKED_CHARACTERS = 4096
_PEEKED_BYTES = 1 << 20
_PEEKED_PLACES = 8
_LFS = "version https://git-lfs.github.com/spec/"
_LONGEST_NUMBER = 38
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_EXPECTED = "A trace is a shipped name, a task (task:translation), a CSV, JSONL or Parquet file, or a URL of Parquet"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """A trace whose fields are known and whose rows are unread.

    Attributes:
        name: Shipped name, path, or what kind of frame it is.
        kind: ``csv``, ``jsonl``, ``unpacked`` for records in which rows are to be found, ``parquet``, ``polars``, or
            ``frame`` for what narwhals holds.
        fields: Column names; those of nested records as dotted paths.
        path: The file; None for a frame.
        frame: A polars LazyFrame or a narwhals frame; None for a file.
        keys: The names along the path of each field, which may hold dots, as in ``{"usage.prompt_tokens": 7}``.
        rows: The first rows of a text file, by field.
        nested: How rows are found in records.
        separator: Between the fields of a CSV.
        about: The entry of a shipped trace in `traces.toml`.
        lengths_from: Where the lengths of a task come from, in words; None for a trace, whose lengths are its own.
    """

    name: str
    kind: str
    fields: tuple[str, ...]
    path: Path | None = None
    frame: Any = None
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rows: tuple[Mapping[str, Any], ...] = ()
    nested: Nested | None = None
    separator: str = ","
    about: Mapping[str, str] = field(default_factory=dict)
    lengths_from: str | None = None

    @property
    def is_records(self) -> bool:
        """Whether rows are JSON records, in which an optional field may show up late."""
        return self.kind in (JSONL, UNPACKED)

    def keys_of(self, path: str) -> tuple[str, ...]:
        """The names along the path of a field."""
        return self.keys.get(path) or tuple(path.split("."))

    @property
    def is_spark(self) -> bool:
        """Whether Spark holds the rows."""
        held = self.frame.implementation if self.kind == FRAME else None
        return held is not None and bool(held.is_pyspark() or held.is_pyspark_connect())


@cache
def shipped_traces() -> Mapping[str, Mapping[str, str]]:
    """The traces that ship with the package, by name: title, file, source, license, citation, sha256, changes."""
    text = (resources.files("infergy") / "data" / "traces" / "traces.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def find(source: Any, task: TaskOptions | None = None) -> Source:
    """Find a trace by shipped name, path or URL, make a task's (`task` says how), or take a frame as it is.

    Raises:
        DataError: No such file, or no file of a kind that is read.
        UsageError: Neither a name, nor a path, nor a frame; no such task; or `task` for what is none.
    """
    if isinstance(source, str) and source.startswith("task:"):
        return _make_task(source, task)
    if task is not None:
        message = (
            f"{source if isinstance(source, (str, Path)) else 'a frame'}: its requests are its own; --requests, --seed "
            "and --tokenizer are for tasks, such as task:translation"
        )
        raise UsageError(message, code="option-not-applicable", options=["--requests", "--seed", "--tokenizer"])
    if not isinstance(source, (str, Path)):
        return _adopt(source)
    if isinstance(source, str) and (about := shipped_traces().get(source)):
        return _peek(Path(str(resources.files("infergy") / "data" / "traces" / about["file"])), source, about)
    if isinstance(source, str) and "://" in source:
        from infergy.workload.remote import is_url, scan_url

        if is_url(source):
            return _of_frame(source, POLARS, scan_url(source))
    return _peek(Path(source).expanduser(), str(source) or ".", {})


def _of_frame(name: str, kind: str, frame: Any, lengths_from: str | None = None) -> Source:
    keys = {path: names for path, (names, _) in flatten(frame.collect_schema()).items()}
    return Source(name=name, kind=kind, fields=tuple(keys), keys=keys, frame=frame, lengths_from=lengths_from)


def _make_task(name: str, options: TaskOptions | None) -> Source:
    import polars as pl

    from infergy.workload.tasks import PREFIX, TaskOptions, find_task, task_lengths

    made = task_lengths(find_task(name), options or TaskOptions())
    frame = pl.LazyFrame({"input_tokens": made.input_tokens}, schema={"input_tokens": pl.Int64})
    frame = frame.with_columns(output_tokens=pl.lit(made.output_tokens, pl.Int64))
    return _of_frame(f"{PREFIX}{made.task}", POLARS, frame, made.origin)


def _adopt(held: Any) -> Source:
    import narwhals as nw

    try:
        frame = nw.from_native(nw.to_native(held, pass_through=True))
    except nw.exceptions.DuplicateError as error:
        reason = " ".join(str(error).split())
        message = f"the frame has columns of the same name ({reason}). Rename or drop one of each"
        raise DataError(message, code="bad-trace", trace=type(held).__name__) from error
    except TypeError as error:
        message = (
            f"a {type(held).__name__} is no trace: expected a name, a path, or a polars, pandas, Arrow, DuckDB, Ibis, "
            "Dask or Spark frame"
        )
        raise UsageError(message, code="not-supported", type=type(held).__name__) from error
    name = f"{frame.implementation.value} frame"
    if frame.implementation.is_polars():
        return _of_frame(name, POLARS, nw.to_native(frame).lazy())
    return _of_frame(name, FRAME, frame)


def _peek(path: Path, name: str, about: Mapping[str, str]) -> Source:
    """The kind of a file by its first bytes, and its fields by its header or first records."""
    if not path.exists():
        hint = f"There is no file of that name either. {_EXPECTED}."
        raise DataError.unknown("trace", name, shipped_traces(), hint, code="unknown-trace")
    if not path.is_file():
        reason, fix = "a pipe or a device", "which cannot be read twice. Write it to a file first"
        if path.is_dir():
            reason, fix = "a directory", "not a file. Name a file in it: CSV, JSONL or Parquet"
        raise DataError(f"{name}: {reason}, {fix}", code="file-not-readable", path=str(path), reason=reason)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic == _PARQUET:
            schema = dict.fromkeys(about["fields"].split()) if about else _parquet_schema(path)
            keys = {field: names for field, (names, _) in flatten(schema).items()}
            return Source(name=name, kind=PARQUET, fields=tuple(keys), keys=keys, path=path, about=about)
        if magic == _ZSTD:
            message = f"{name}: compressed with zstd. Unpack it first: zstd -d {path}"
            raise DataError(message, code="not-supported", path=str(path), reason="zstd")
        opener: Any = gzip.open if magic[:2] == _GZIP else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as text:
            return _peek_text(text, path, name, about)
    except UnicodeDecodeError as error:
        raise _not_text(name) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError.not_readable(path, error, _EXPECTED) from error


def _not_text(name: str) -> DataError:
    message = f"{name}: neither Parquet nor UTF-8 text. {_EXPECTED} (CSV and JSONL may be gzipped)"
    return DataError(message, code="bad-syntax", path=name, form="text")


def _peek_text(text: IO[str], path: Path, name: str, about: Mapping[str, str]) -> Source:
    if "\0" in text.read(_PEEKED_CHARACTERS):
        raise _not_text(name)
    text.seek(0)
    first = next((line for line in text if line.strip()), None)
    if first is None:
        raise DataError(f"{name}: the file is empty. {_EXPECTED}", code="no-requests", trace=name)
    if first.startswith(_LFS):
        message = f"{name}: a pointer of Git LFS, not the data. Fetch it: git lfs pull"
        raise DataError(message, code="not-supported", path=str(path), reason="git-lfs")
    if first.lstrip()[:1] in ("[", "{"):
        return _peek_records(text, path, name, about, first)
    separator = max(",;\t|", key=first.count)
    fields, *rows = csv.reader([first, *itertools.islice(text, _PEEKED_RECORDS // 4)], delimiter=separator)
    kept = tuple(dict(zip(fields, row, strict=False)) for row in rows)
    keys = {name: (name,) for name in fields}
    return Source(
        name=name, kind=CSV, fields=tuple(fields), keys=keys, rows=kept, path=path, separator=separator, about=about
    )


def _peek_records(text: IO[str], path: Path, name: str, about: Mapping[str, str], first: str) -> Source:
    """The fields of the first records, and of some further down; of all records where the file is one document."""
    try:
        is_lines = isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        is_lines = first.lstrip().startswith("{") and first.strip() != "{"
    nested = Nested(path=path, is_document=not is_lines)
    if not is_lines:
        return _of_nested(nested, name, about)
    text.seek(0)
    records, size = [], 0
    # Where the log breaks later is reported when it is read.
    for number, record, fault in _records(text):
        if fault:
            message = f"{name}: {_describe_fault(number, fault)}"
            raise DataError(message, code="bad-syntax", path=name, line=number, form="JSON")
        records.append(record)
        size += sum(len(value) for value in record.values() if isinstance(value, str | list))
        if len(records) >= _PEEKED_RECORDS or size > _PEEKED_BYTES:
            break
    if len(records) >= _PEEKED_RECORDS:
        records += _further_down(path)
    rows = [dict(flat_of(record)) for record in records]
    keys = {".".join(names): names for row in rows for names in row}
    kept = tuple({".".join(names): value for names, value in row.items()} for row in rows)
    return Source(
        name=name, kind=JSONL, fields=tuple(keys), keys=keys, rows=kept, path=path, about=about, nested=nested
    )


def _of_nested(nested: Nested, name: str, about: Mapping[str, str], most: int | None = _PEEKED_RECORDS) -> Source:
    """Rows that are found in the records of a file."""
    try:
        rows = list(itertools.islice(nested.rows(), most))
    except (ValueError, RecursionError) as error:
        message = f"{name}: not JSON ({error}). Expected one JSON object per line, or one document"
        raise DataError(message, code="bad-syntax", path=name, form="JSON") from error
    fields = tuple(dict.fromkeys(itertools.chain.from_iterable(rows)))
    keys = {path: (path,) for path in fields}
    return Source(
        name=name,
        kind=UNPACKED,
        fields=fields,
        keys=keys,
        rows=tuple(rows),
        path=nested.path,
        about=about,
        nested=nested,
    )


def _further_down(path: Path) -> list[dict[str, Any]]:
    """Some records from places all over a file: a log may change its shape."""
    size, found = path.stat().st_size, []
    with path.open("rb") as file:
        if file.read(2) == _GZIP:
            return []
        for place in range(1, _PEEKED_PLACES):
            file.seek(size * place // _PEEKED_PLACES)
            file.readline(_PEEKED_BYTES)
            lines = file.read(_PEEKED_BYTES // (4 * _PEEKED_PLACES)).splitlines()[:-1]
            found += [record for _, record, fault in _records(lines[: _PEEKED_RECORDS // _PEEKED_PLACES]) if not fault]
    return found


def other_readings(source: Source) -> Iterator[Source]:
    """The same JSON file, for where its first records have no known columns: rows inside records, and all records."""
    if source.nested is None:
        return
    for nest in nests_of(source.nested, _PEEKED_RECORDS):
        yield _of_nested(replace(source.nested, nest=nest), source.name, source.about)
    if source.kind == JSONL:
        keys = {".".join(names): names for names in all_keys(source.nested)}
        yield replace(source, fields=tuple(keys), keys=keys)


def _records(lines: Iterable[str | bytes]) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Number, record and fault of each line that is not blank; the fault is empty if the line is a JSON object."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record, fault = {}, ""
        try:
            record = json.loads(line, parse_constant=_number, parse_int=_number, parse_float=_number)
        except UnicodeDecodeError:
            fault = "not UTF-8"
        except (ValueError, RecursionError) as error:
            fault = f"not JSON ({error})"
        if not isinstance(record, dict):
            record, fault = {}, "not a JSON object"
        yield number, record, fault


def _number(text: str) -> float:
    """A number that polars reads: finite, and of at most 38 digits if it is whole."""
    if not math.isfinite(float(text)) or (len(text) > _LONGEST_NUMBER and text.lstrip("-").isdigit()):
        raise ValueError(f"a number out of range: {text[:_LONGEST_NUMBER]}")
    return float(text)


def _describe_fault(number: int, fault: str) -> str:
    return f"line {number} is {fault}. Expected one JSON object per line; repair or remove that line"


def broken_record(path: Path) -> str:
    """The first line of a JSONL file that is no record, and why; empty if none, or if the file cannot be unpacked."""
    with path.open("rb") as file:
        opener: Any = gzip.open if file.read(2) == _GZIP else open
    try:
        with opener(path, "rb") as lines:
            return next((_describe_fault(number, fault) for number, _, fault in _records(lines) if fault), "")
    except (OSError, EOFError, zlib.error):
        return ""


def _parquet_schema(path: Path) -> Mapping[str, Any]:
    import polars as pl

    try:
        return pl.scan_parquet(path, glob=False).collect_schema()
    except pl.exceptions.PolarsError as error:
        message = f"{path}: damaged Parquet ({first_line(error)}). Write or copy it again"
        raise DataError(message, code="bad-syntax", path=str(path), form="Parquet") from error


def flatten(schema: Mapping[str, Any], outer: tuple[str, ...] = ()) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Names and types of all columns, and of the fields of struct columns, by dotted path (polars or narwhals)."""
    types: dict[str, tuple[tuple[str, ...], Any]] = {}
    for name, dtype in schema.items():
        inner = getattr(dtype, "fields", None)
        if inner:
            nested = flatten({field.name: field.dtype for field in inner}, (*outer, name))
            types |= {path: found for path, found in nested.items() if path not in types}
        else:
            types[".".join((*outer, name))] = (*outer, name), dtype
    return types


def first_line(error: Exception) -> str:
    """The first line of a library's error, without its advice to programmers."""
    return str(error).strip().split("\n")[0] or type(error).__name__
