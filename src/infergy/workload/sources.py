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
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from infergy.errors import DataError, UsageError

if TYPE_CHECKING:
    from infergy.workload.tasks import TaskOptions

CSV, JSONL, PARQUET, POLARS, FRAME = "csv", "jsonl", "parquet", "polars", "frame"
_PEEKED_RECORDS = 200
_PEEKED_CHARACTERS = 4096
_LONGEST_NUMBER = 38
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_EXPECTED = "A trace is a shipped name, a task (task:translation), a CSV, JSONL or Parquet file, or a URL of Parquet"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """A trace whose fields are known and whose rows are unread.

    Attributes:
        name: Shipped name, path, or what kind of frame it is.
        kind: ``csv``, ``jsonl``, ``parquet``, ``polars``, or ``frame`` for what narwhals holds.
        fields: Column names; those of nested records as dotted paths.
        path: The file; None for a frame.
        frame: A polars LazyFrame or a narwhals frame; None for a file.
        flat: Those of `fields` that are names even where they hold a dot, as in ``{"usage.prompt_tokens": 7}``.
        separator: Between the fields of a CSV.
        about: The entry of a shipped trace in `traces.toml`.
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
        from infergy.units import without_secrets
        from infergy.workload.remote import is_url, scan_url

        if is_url(source):
            return _of_frame(without_secrets(source), POLARS, scan_url(source))
    return _peek(Path(source).expanduser(), str(source) or ".", {})


def _of_frame(name: str, kind: str, frame: Any, lengths_from: str | None = None) -> Source:
    schema = frame.collect_schema()
    fields = tuple(flatten(schema))
    return Source(name=name, kind=kind, fields=fields, flat=frozenset(schema), frame=frame, lengths_from=lengths_from)


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
            fields, flat = tuple(flatten(schema)), frozenset(schema)
            origin = about.get("lengths_from")
            return Source(
                name=name, kind=PARQUET, fields=fields, flat=flat, path=path, about=about, lengths_from=origin
            )
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
    if first.lstrip().startswith("["):
        message = f"{name}: one JSON list. Expected one JSON object per line (jq -c '.[]' converts it)"
        raise DataError(message, code="bad-syntax", path=str(path), form="JSON lines")
    if first.lstrip().startswith("{"):
        text.seek(0)
        records = []
        # Where the log breaks later is reported when it is read.
        for number, record, fault in itertools.islice(_records(text), _PEEKED_RECORDS):
            if fault:
                message = f"{name}: {_describe_fault(number, fault)}"
                raise DataError(message, code="bad-syntax", path=name, line=number, form="JSON")
            records.append(record)
        fields = tuple(dict.fromkeys(itertools.chain.from_iterable(map(_record_paths, records))))
        flat = frozenset(itertools.chain.from_iterable(records))
        return Source(name=name, kind=JSONL, fields=fields, path=path, flat=flat, about=about)
    separator = max(",;\t|", key=first.count)
    fields = tuple(next(csv.reader([first], delimiter=separator)))
    flat = frozenset(fields)
    return Source(name=name, kind=CSV, fields=fields, flat=flat, path=path, separator=separator, about=about)


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


def _record_paths(record: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _record_paths(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


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


def flatten(schema: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Types of all columns by name, and of the fields of struct columns by dotted path (polars or narwhals)."""
    types: dict[str, Any] = {}
    for name, dtype in schema.items():
        inner = getattr(dtype, "fields", None)
        if inner:
            types |= flatten({field.name: field.dtype for field in inner}, f"{prefix}{name}.")
        else:
            types[f"{prefix}{name}"] = dtype
    return types


def first_line(error: Exception) -> str:
    """The first line of a library's error, without its advice to programmers."""
    return str(error).strip().split("\n")[0] or type(error).__name__
