"""Where a trace comes from: shipped, a task, a file, or a frame that the caller holds. Reads no more than it must."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import math
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO, Any

from infergy.errors import DataError, UsageError
from infergy.workload.remote import is_url, scan_url
from infergy.workload.tasks import PREFIX, TaskOptions, find_task, is_task, task_lengths

CSV, JSONL, PARQUET, POLARS, FRAME = "csv", "jsonl", "parquet", "polars", "frame"
_PEEKED_RECORDS = 200
_PEEKED_CHARACTERS = 4096
_LONGEST_NUMBER = 38
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_NAMES_OF_TRACES = (
    "A trace is a shipped name, a task (task:translation), a CSV, JSONL or Parquet file, or a URL of Parquet"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """A trace found, its fields known, its rows unread.

    Attributes:
        name: Shipped name, path, or what kind of frame it is.
        kind: ``csv``, ``jsonl``, ``parquet``, ``polars``, or ``frame`` for what narwhals holds.
        fields: Column names; those of nested records as dotted paths.
        path: The file; None for a frame.
        frame: A polars LazyFrame or a narwhals frame; None for a file.
        flat: Those of `fields` that are names even where they hold a dot, as in ``{"usage.prompt_tokens": 7}``.
        separator: Between the fields of a CSV.
        about: What `traces.toml` says of a shipped trace.
        lengths_from: Where the lengths of a task come from, in words; None for a trace, whose lengths are its own.
    """

    name: str
    kind: str
    fields: tuple[str, ...]
    path: Path | None = None
    frame: Any = None
    flat: frozenset[str] = frozenset()
    separator: str = ","
    about: Mapping[str, str] = field(default_factory=dict)
    lengths_from: str | None = None

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
    """Find a trace by shipped name or path, make a task's (`task` says how), or take a frame as it is.

    Raises:
        DataError: No such file, or no file of a kind that is read.
        UsageError: Neither a name, nor a path, nor a frame; no such task; or `task` for what is none.
    """
    if is_task(source):
        return _make(source, task or TaskOptions())
    if task is not None:
        message = (
            f"{source if isinstance(source, (str, Path)) else 'a frame'}: its requests are its own; --requests, --seed "
            f"and --tokenizer are for tasks, such as {PREFIX}translation"
        )
        raise UsageError(message, code="option-not-applicable", options=["--requests", "--seed", "--tokenizer"])
    if isinstance(source, str) and source in shipped_traces():
        about = shipped_traces()[source]
        path = Path(str(resources.files("infergy") / "data" / "traces" / about["file"]))
        return _peek(path, source, about)
    if isinstance(source, str) and is_url(source):
        frame = scan_url(source)
        schema = frame.collect_schema()
        return Source(name=source, kind=POLARS, fields=tuple(flatten(schema)), flat=frozenset(schema), frame=frame)
    if isinstance(source, (str, Path)):
        return _peek(Path(source).expanduser(), str(source) or ".", {})
    return _adopt(source)


def _make(name: str, options: TaskOptions) -> Source:
    import polars as pl

    found = task_lengths(find_task(name), options)
    frame = pl.LazyFrame({"input_tokens": found.input_tokens}, schema={"input_tokens": pl.Int64})
    frame = frame.with_columns(output_tokens=pl.lit(found.output_tokens, pl.Int64))
    return Source(
        name=f"{PREFIX}{found.task}",
        kind=POLARS,
        fields=("input_tokens", "output_tokens"),
        frame=frame,
        lengths_from=found.origin,
    )


def _adopt(held: Any) -> Source:
    import narwhals as nw

    try:
        frame = nw.from_native(nw.to_native(held, pass_through=True))
    except TypeError as error:
        message = (
            f"cannot take a {type(held).__name__} for a trace: expected a name, a path, or a polars, pandas, "
            "Arrow, DuckDB, Ibis, Dask or Spark frame"
        )
        raise UsageError(message, code="not-supported", type=type(held).__name__) from error
    library = frame.implementation.value
    schema = frame.collect_schema()
    is_polars = frame.implementation.is_polars()
    return Source(
        name=f"{library} frame",
        kind=POLARS if is_polars else FRAME,
        fields=tuple(flatten(schema)),
        flat=frozenset(schema),
        frame=nw.to_native(frame).lazy() if is_polars else frame,
    )


def _peek(path: Path, name: str, about: Mapping[str, str]) -> Source:
    """Tell the kind of a file by its first bytes, and its fields by its header or first records."""
    if not path.exists():
        hint = f"There is no file of that name either. {_NAMES_OF_TRACES}."
        raise DataError.unknown("trace", name, shipped_traces(), hint, code="unknown-trace")
    if path.is_dir():
        message = f"{name}: a directory. Name a file in it: a CSV, JSONL or Parquet file"
        raise DataError(message, code="file-not-readable", path=str(path), reason="a directory")
    if not path.is_file():
        message = f"{name}: a pipe or a device, which cannot be read twice. Write it to a file first"
        raise DataError(message, code="file-not-readable", path=str(path), reason="a pipe or a device")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic == _PARQUET:
            schema = dict.fromkeys(about["fields"].split()) if about else _parquet_schema(path)
            fields, flat = tuple(flatten(schema)), frozenset(schema)
            return Source(name=name, kind=PARQUET, fields=fields, flat=flat, path=path, about=about)
        if magic == _ZSTD:
            message = f"{name}: compressed with zstd. Unpack it first: zstd -d {path}"
            raise DataError(message, code="not-supported", path=str(path), reason="zstd")
        opener: Any = gzip.open if magic[:2] == _GZIP else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as text:
            return _peek_text(text, path, name, about)
    except UnicodeDecodeError as error:
        raise _not_text(name) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError.not_readable(path, error, f"{_NAMES_OF_TRACES}") from error


def _not_text(name: str) -> DataError:
    message = f"{name}: neither Parquet nor UTF-8 text. {_NAMES_OF_TRACES} (CSV and JSONL may be gzipped)"
    return DataError(message, code="bad-syntax", path=name, form="text")


def _peek_text(text: IO[str], path: Path, name: str, about: Mapping[str, str]) -> Source:
    if "\0" in text.read(_PEEKED_CHARACTERS):
        raise _not_text(name)
    text.seek(0)
    first = next((line for line in text if line.strip()), None)
    if first is None:
        raise DataError(f"{name}: the file is empty. {_NAMES_OF_TRACES}", code="no-requests", trace=name)
    if first.lstrip().startswith("["):
        message = f"{name}: one JSON list. Expected one JSON object per line (jq -c '.[]' converts it)"
        raise DataError(message, code="bad-syntax", path=str(path), form="JSON lines")
    if first.lstrip().startswith("{"):
        text.seek(0)
        records = _first_records(text, name)
        fields = tuple(dict.fromkeys(itertools.chain.from_iterable(map(_record_paths, records))))
        flat = frozenset(itertools.chain.from_iterable(records))
        return Source(name=name, kind=JSONL, fields=fields, path=path, flat=flat, about=about)
    separator = max(",;\t|", key=first.count)
    fields = tuple(next(csv.reader([first], delimiter=separator)))
    flat = frozenset(fields)
    return Source(name=name, kind=CSV, fields=fields, flat=flat, path=path, separator=separator, about=about)


def _first_records(lines: Iterable[str], name: str) -> list[Mapping[str, Any]]:
    """Where the log breaks later is the reader's to tell."""
    records: list[Mapping[str, Any]] = []
    for number, line in itertools.islice(_filled(lines), _PEEKED_RECORDS):
        record, fault = _record(line)
        if fault:
            message = f"{name}: {_describe_fault(number, fault)}"
            raise DataError(message, code="bad-syntax", path=name, line=number, form="JSON")
        records.append(record)
    return records


def _filled(lines: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Lines that are not blank, with their number."""
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _record(line: str | bytes) -> tuple[dict[str, Any], str]:
    """A record and why the line is none, which is empty if it is one."""
    try:
        record = json.loads(line, parse_constant=_number, parse_int=_number, parse_float=_number)
    except UnicodeDecodeError:
        return {}, "not UTF-8"
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON ({error})"
    return (record, "") if isinstance(record, dict) else ({}, "not a JSON object")


def _number(text: str) -> float:
    """A number that polars reads: finite, and of at most 38 digits if it is whole."""
    if not math.isfinite(float(text)) or (len(text) > _LONGEST_NUMBER and text.lstrip("-").isdigit()):
        raise ValueError(f"no number that can be meant: {text[:_LONGEST_NUMBER]}")
    return float(text)


def _describe_fault(number: int, fault: str) -> str:
    return f"line {number} is {fault}. Expected one JSON object per line; repair or remove that line"


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def _record_paths(record: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _record_paths(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def broken_record(source: Source) -> str:
    """The first line of a JSONL file that is no record, and why; empty if none, or if the file cannot be unpacked."""
    assert source.path is not None
    opener: Any = gzip.open if _is_gzip(source.path) else open
    try:
        with opener(source.path, "rb") as lines:
            faults = ((number, _record(line)[1]) for number, line in _filled(lines))
            return next((_describe_fault(number, fault) for number, fault in faults if fault), "")
    except (OSError, EOFError, zlib.error):
        return ""


def _parquet_schema(path: Path) -> Mapping[str, Any]:
    import polars as pl

    try:
        return pl.scan_parquet(path, glob=False).collect_schema()
    except pl.exceptions.PolarsError as error:
        message = f"{path}: damaged Parquet ({first_line(error)}). Write or copy it again"
        raise DataError(message, code="bad-syntax", path=str(path), form="Parquet") from error


def flatten(schema: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Types of all columns by name, and of the fields of struct columns by dotted path (polars or narwhals)."""
    types: dict[str, Any] = {}
    for name, dtype in schema.items():
        inner = getattr(dtype, "fields", None)
        if inner:
            types |= flatten({one.name: one.dtype for one in inner}, f"{prefix}{name}.")
        else:
            types[f"{prefix}{name}"] = dtype
    return types


def first_line(error: Exception) -> str:
    """What a library says went wrong, without its advice to programmers."""
    return str(error).strip().split("\n")[0] or type(error).__name__
