"""Where a trace comes from: shipped, a task, a file, a URL, or a frame. Reads only a header or the first records."""

from __future__ import annotations

import csv
import io
import itertools
import re
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infergy.errors import DataError, UsageError
from infergy.workload.lines import EVENTS, GZIP, Fault, open_lines, read_records, reject_bomb, values_in
from infergy.workload.recording import draw_recorded, is_recording
from infergy.workload.source import (
    CSV,
    FRAME,
    JSONL,
    PARQUET,
    PEEKED_RECORDS,
    POLARS,
    UNPACKED,
    Dialect,
    Source,
    first_line,
    flat_row,
    flatten,
    of_frame,
    unwrapped_name,
    without_panics,
)

if TYPE_CHECKING:
    import polars as pl

    from infergy.workload.nested import Nested
    from infergy.workload.tasks import TaskOptions

_PEEKED_ROWS, _MORE = 50, 10
_PEEKED_CHARACTERS = 4096
_PEEKED_BYTES, _PEEKED_PLACES = 1 << 20, 6
_LFS = "version https://git-lfs.github.com/spec/"
_PARQUET = b"PAR1"
_UTF16 = "text in UTF-16", "Convert it first: iconv -f UTF-16 -t UTF-8"
_UNREAD = {
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "Unpack it first: zstd -d"),
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
}
"""By their first bytes, files that are named with the command that converts them."""
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_EXPECTED = "A trace is a shipped name, a task (task:translation), a CSV, JSONL or Parquet file, or a URL of Parquet"


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
        what = source if isinstance(source, (str, Path)) else "a frame"
        options = ["--requests", "--seed", "--tokenizer"]
        message = f"{what}: its requests are its own; {', '.join(options)} are for tasks, such as task:translation"
        raise UsageError(message, code="option-not-applicable", options=options)
    if not isinstance(source, (str, Path)):
        return _adopt(source)
    name = str(source)
    if about := shipped_traces().get(name):
        return _peek(Path(str(resources.files("infergy") / "data" / "traces" / about["file"])), name, about)
    if _URL.match(name) and isinstance(source, str):
        from infergy.units import without_secrets
        from infergy.workload.remote import scan_url

        return of_frame(without_secrets(name), POLARS, scan_url(name))
    if not name:
        raise UsageError.bad_value("TRACE", name, "a name, a path or a URL")
    return _peek(Path(source).expanduser(), name, {})


def _make_task(name: str, options: TaskOptions | None) -> Source:
    import polars as pl

    from infergy.workload.tasks import PREFIX, TaskOptions, find_task, task_lengths

    made = task_lengths(find_task(name), options or TaskOptions())
    frame = pl.LazyFrame({"input_tokens": made.input_tokens}, schema={"input_tokens": pl.Int64})
    frame = frame.with_columns(output_tokens=pl.lit(made.output_tokens, pl.Int64))
    return of_frame(f"{PREFIX}{made.task}", POLARS, frame, made.origin)


def _adopt(held: Any) -> Source:
    import narwhals as nw

    try:
        frame = nw.from_native(nw.to_native(held, pass_through=True))
    except nw.exceptions.DuplicateError as error:
        reason = " ".join(str(error).split())
        message = f"the frame has columns of the same name ({reason}). Rename or drop one of each"
        raise DataError(message, code="bad-trace", trace=type(held).__name__) from error
    except TypeError as error:
        expected = "a name, a path, or a polars, pandas, Arrow, DuckDB, Ibis, Dask or Spark frame"
        message = f"a {type(held).__name__} is no trace: expected {expected}"
        raise UsageError(message, code="not-supported", type=type(held).__name__) from error
    name = f"{frame.implementation.value} frame"
    if frame.implementation.is_polars():
        return of_frame(name, POLARS, nw.to_native(frame).lazy())
    return of_frame(name, FRAME, frame)


def _peek(path: Path, name: str, about: Mapping[str, str]) -> Source:
    """The kind of a file by its first bytes, and its fields by its header or first records."""
    if not path.exists():
        hint = f"There is no file of that name either. {_EXPECTED}."
        raise DataError.unknown("trace", name, shipped_traces(), hint, code="unknown-trace")
    if drawn := _draw_clients(path):
        frame, words = drawn
        return of_frame(name, POLARS, frame.lazy(), words)
    if not path.is_file():
        reason, fix = "a pipe or a device", "which cannot be read twice. Write it to a file first"
        if path.is_dir():
            reason, fix = "a directory", "not a file. Name a file in it: CSV, JSONL or Parquet"
        raise DataError(f"{name}: {reason}, {fix}", code="file-not-readable", path=str(path), reason=reason)
    try:
        if is_recording(path):
            frame, words = draw_recorded(path)
            return of_frame(name, POLARS, frame.lazy(), words)
        with path.open("rb") as file:
            magic = file.read(4)
        if magic == _PARQUET:
            schema = dict.fromkeys(about["fields"].split()) if about else _parquet_schema(path)
            names = tuple(names for names, _ in flatten(schema))
            origin = about.get("lengths_from")
            return Source(name=name, kind=PARQUET, names=names, path=path, about=about, lengths_from=origin)
        for start, (form, fix) in _UNREAD.items():
            if magic.startswith(start):
                message = f"{name}: {form}. {fix} {path}"
                raise DataError(message, code="not-supported", path=str(path), reason=form.split()[-1])
        reject_bomb(path)
        with io.TextIOWrapper(open_lines(path), encoding="utf-8-sig", errors="replace", newline="") as text:
            return _peek_text(text, path, name, about)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError.not_readable(path, error, _EXPECTED) from error


def _draw_clients(path: Path) -> tuple[pl.DataFrame, str] | None:
    """The requests of clients of ServeGen, where a path is theirs."""
    if not path.is_dir() and not path.name.endswith("-trace.csv"):
        return None
    from infergy.workload.servegen import client_files, draw_requests

    clients = client_files(path)
    return draw_requests(clients) if clients else None


def _peek_text(text: io.TextIOWrapper, path: Path, name: str, about: Mapping[str, str]) -> Source:
    start = text.read(_PEEKED_CHARACTERS)
    if "\0" in start or start.count("\ufffd") > len(start) // 10:
        message = f"{name}: neither Parquet nor UTF-8 text. {_EXPECTED} (CSV and JSONL may be gzipped)"
        raise DataError(message, code="bad-syntax", path=name, form="text")
    text.seek(0)
    lines = filter(str.strip, text)
    first = next(lines, None)
    if first is None:
        raise DataError(f"{name}: the file is empty. {_EXPECTED}", code="no-requests", trace=name)
    if first.startswith(_LFS):
        message = f"{name}: a pointer of Git LFS, not the data. Fetch it: git lfs pull"
        raise DataError(message, code="not-supported", path=str(path), reason="git-lfs")
    if first.lstrip()[:1] in ("[", "{") or first.encode().startswith(EVENTS):
        return _peek_json(first, path, name, about)
    separator, skipped = max(",;\t|", key=first.count), 0
    if declared := re.fullmatch(r'"?sep=(.)"?', first.strip("\r\n")):
        separator, skipped, first = declared[1], 1, next(lines, "")
    header, *rows = csv.reader([first, *itertools.islice(lines, _PEEKED_ROWS)], delimiter=separator)
    names = tuple((field,) for field in header)
    held = tuple(dict(zip(header, row, strict=False)) for row in rows)
    dialect = Dialect(separator=separator, line_end="\r" if first.endswith("\r") else "\n", skipped=skipped)
    return Source(name=name, kind=CSV, names=names, rows=held, path=path, dialect=dialect, about=about).with_texts()


def _peek_json(first: str, path: Path, name: str, about: Mapping[str, str]) -> Source:
    from infergy.workload.nested import Nested, is_document

    nested = Nested(path=path, is_document=is_document(first))
    if nested.is_document:
        return _of_nested(nested, name, about)
    source = Source(name=name, kind=JSONL, names=(), path=path, about=about, nested=nested)
    source = next(look_further(source, PEEKED_RECORDS))
    return _with_records(source, _further_down(source)).respelled(unwrapped_name).with_texts()


def look_further(source: Source, records: int = PEEKED_RECORDS * _MORE) -> Iterator[Source]:
    """A JSONL file with the fields of its first records, then of ten times as many, and so on, at last of all.

    Where lines are faulty is reported when all are read, but for a file without any record.

    Raises:
        DataError: There is no record among the first.
    """
    if source.kind != JSONL or source.path is None:
        return
    seen: list[Mapping[str, Any]] = []
    faults: list[Fault] = []
    number = 0
    with open_lines(source.path) as lines:
        for number, record in enumerate(read_records(lines), start=1):
            if isinstance(record, Fault):
                faults.append(record)
            else:
                seen.append(record)
            if number == records or (number < records <= PEEKED_RECORDS and lines.tell() > _PEEKED_BYTES):
                if number == len(faults):
                    break
                source, seen = _with_records(source, seen), []
                yield source
                records *= _MORE
    if number == len(faults):
        message = f"{source.name}: {faults[0]}. Expected one JSON object per line; repair or remove that line"
        raise DataError(message, code="bad-syntax", path=source.name, line=faults[0].number, form="JSON")
    yield _with_records(source, seen)


def _further_down(source: Source) -> Iterator[Mapping[str, Any]]:
    """Some records from places all over a JSONL file: a log may change its shape."""
    assert source.path is not None
    size = source.path.stat().st_size
    if len(source.rows) < PEEKED_RECORDS and size < _PEEKED_BYTES:
        return
    with source.path.open("rb") as file:
        places = range(1, _PEEKED_PLACES) if file.read(2) != GZIP else ()
        for place in places:
            file.seek(size * place // _PEEKED_PLACES)
            file.readline(_PEEKED_BYTES)
            lines = file.read(_PEEKED_BYTES // (8 * _PEEKED_PLACES)).splitlines()[:-1]
            for record in read_records(lines[: PEEKED_RECORDS // (2 * _PEEKED_PLACES)]):
                if not isinstance(record, Fault):
                    yield record


def _with_records(source: Source, records: Iterable[Mapping[str, Any]]) -> Source:
    """A source with the fields of further records, of which it keeps the first, and those from further down."""
    names, rows = dict.fromkeys(source.names), list(source.rows)
    for record in records:
        names.update(dict.fromkeys(names for names, _ in values_in(record)))
        if len(rows) < PEEKED_RECORDS + _PEEKED_PLACES * PEEKED_RECORDS:
            rows.append(flat_row(record))
    return replace(source, names=tuple(names), rows=tuple(rows))


def text_readings(source: Source) -> Iterator[Source]:
    """The same table with the fields of JSON that stands as text in its columns."""
    if source.kind in (PARQUET, POLARS):
        found = source.peeked([names[-1] for names in source.names]).with_texts()
        yield from (found,) if found.texts else ()


def nested_readings(source: Source) -> Iterator[Source]:
    """The same file as the rows that stand inside its records, for where these have no known columns."""
    from infergy.workload.nested import Nested, nests_of

    nested = source.nested
    if source.kind in (PARQUET, POLARS):
        import polars as pl

        table = source.frame if source.path is None else pl.scan_parquet(source.path, glob=False)
        nested = Nested(path=source.path, table=table)
    if nested is not None:
        for nest in nests_of(nested, PEEKED_RECORDS):
            yield _of_nested(replace(nested, nest=nest), source.name, source.about)


def _of_nested(nested: Nested, name: str, about: Mapping[str, str]) -> Source:
    """Rows that are found in the records of a file."""
    rows = tuple(row for row in itertools.islice(nested.rows(), PEEKED_RECORDS) if not isinstance(row, Fault))
    names = tuple((field,) for field in dict.fromkeys(itertools.chain.from_iterable(rows)))
    source = Source(name=name, kind=UNPACKED, names=names, rows=rows, path=nested.path, about=about, nested=nested)
    return source.respelled(unwrapped_name)


def _parquet_schema(path: Path) -> Mapping[str, Any]:
    import polars as pl

    try:
        with without_panics():
            return pl.scan_parquet(path, glob=False).collect_schema()
    except pl.exceptions.PolarsError as error:
        message = f"{path}: damaged Parquet ({first_line(error)}). Write or copy it again"
        raise DataError(message, code="bad-syntax", path=str(path), form="Parquet") from error
