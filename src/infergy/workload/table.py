"""Rows of a source under the declared schema of a trace, lazily: polars for files, narwhals for frames of others.

The same expressions serve both: `Table.x` is the module (polars or narwhals) that builds them.

    input_tokens      the whole prompt                              null where it is no whole number
    output_tokens     generated; 0 for a response without usage     null where it is no whole number
    cached_tokens     served from a prefix cache                    null where none is reported
    uncached_tokens   input less cached: what costs prefill         null where either cannot be read
    arrival_s         seconds on the log's own clock                null where unknown
    chunks            further rows of the same answer               only where rows are chunks of answers

and, where the layout has columns that link requests:

    block_ids         lists of hashes of a prompt's blocks          null where missing or no list of whole numbers
    session, parent   ids, as text                                  null where missing
    gap_s             seconds after the previous answer             null where missing
    elapsed_s         seconds from the request to its answer        null where missing

A frame of another library keeps its datetimes, as `arrival`: not every library can turn them into seconds.
"""

from __future__ import annotations

import functools
import glob
import importlib
import itertools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from infergy.errors import DataError, UsageError
from infergy.workload.bins import LONGEST_TOKENS
from infergy.workload.clock import instants, shift_s
from infergy.workload.counts import Counts, join_chunks, numbers_of, spread_sums
from infergy.workload.formats import AND, Layout
from infergy.workload.lines import Names, read_rows, record_schema
from infergy.workload.remote import spark_errors, spark_reason
from infergy.workload.source import (
    CSV,
    FRAME,
    JSONL,
    POLARS,
    UNPACKED,
    Source,
    first_line,
    flatten,
    plain_json,
    without_panics,
)

ARRIVAL, ARRIVAL_S = "arrival", "arrival_s"
INTEGER, DECIMAL, TEXT, TIME, OTHER = "integer", "fractional", "text", "time", "other"
_GROUPED = r"^\d{1,3}([, '_\x{a0}\x{202f}]\d{3})+$"
"""Whole numbers whose thousands are apart; not of fractions, as 1.234 and, between semicolons, 1,234 may be."""
_GROUPS = {";": r"^\d{1,3}([ '_\x{a0}\x{202f}]\d{3})+$|^\d{1,3}(\.\d{3}){2,}$"}
LATEST_ARRIVAL_S = 7_258_118_400
"""Seconds from 1970 to 2200: no log has a later arrival, whatever its clock counts from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of a source, unread.

    Attributes:
        source: Where they come from.
        layout: Which columns hold what.
        frame: A polars LazyFrame, or a narwhals frame.
        x: polars or narwhals, to build expressions with.
        kinds: By path: ``integer``, ``fractional``, ``text``, ``time`` or ``other``.
        unreadable: Rows that are left out, and lines that are no rows.
        spelled: Whether times in text have another spelling than ISO 8601.
        only_timed: Whether requests without an arrival are left out.
    """

    source: Source
    layout: Layout
    frame: Any
    x: Any
    kinds: Mapping[str, str]
    unreadable: int = 0
    spelled: bool = False
    only_timed: bool = False

    @property
    def arrival(self) -> str | None:
        """The name of the column of arrivals; None if the log has none."""
        if not self.layout.time:
            return None
        return ARRIVAL if not self.is_polars and self.kinds.get(self.layout.time[0]) == TIME else ARRIVAL_S

    @property
    def arrival_numbers(self) -> Any:
        """The arrivals as the log's own numbers; None if no column of arrivals holds numbers."""
        kinds = (INTEGER, DECIMAL, TEXT) if self.is_polars else (INTEGER, DECIMAL)
        numbers = [self._number(path) for path in self.layout.time if self.kinds.get(path) in kinds]
        return self.x.coalesce(*numbers) if numbers else None

    @property
    def is_polars(self) -> bool:
        """Whether polars does the work, so that text is understood and reading streams."""
        return self.source.kind != FRAME

    def label(self, axis: str) -> str:
        """Its columns of ``input``, ``output`` or ``cached`` tokens in words."""
        return self.layout.label(axis, self.source.fields)

    @property
    def good(self) -> Any:
        """Whether the tokens of a declared row can be read; may be null."""
        uncached, output = self.x.col("uncached_tokens"), self.x.col("output_tokens")
        return uncached.is_between(0, LONGEST_TOKENS) & output.is_between(0, LONGEST_TOKENS)

    def declared(self, *, lenient: bool = False, raw: bool = False) -> Any:
        """The rows under the declared schema.

        Args:
            lenient: Read text like ``12.0`` as the whole number it is, at half the speed of reading digits only.
            raw: Keep the original values too, as `raw_input`, `raw_output` and `raw_cached`.
        """
        x, layout, counts = self.x, self.layout, self.counts(lenient=lenient)
        columns = [*counts.tokens(), *(counts.originals() if raw else ())]
        columns += counts.of_several(raw=raw)
        columns += [self._seconds_of(layout.sums.end).alias("end_s")] if layout.sums and layout.sums.end else []
        frame = self.frame
        if lenient and self.source.kind == CSV:
            # A line of a CSV that is blank, or has only separators, is no row.
            frame = frame.filter(~x.all_horizontal(x.all().is_null()))
        rows = frame.select(*columns, *self._arrivals(), *self._links())
        if raw:
            return rows
        return join_chunks(rows) if layout.chunk else spread_sums(rows, layout) if layout.sums else rows

    def counts(self, *, lenient: bool = True) -> Counts:
        """The counts of its rows as expressions; `lenient` as of `declared`."""
        whole = functools.partial(self._whole, lenient=lenient)
        return Counts(layout=self.layout, x=self.x, column=self.column, known=self._known, whole=whole)

    @property
    def untimed(self) -> Any:
        """Whether a declared row has output and no arrival."""
        arrival = self.x.col(self.arrival or ARRIVAL_S)
        known = arrival.is_finite().fill_null(False) if self.arrival == ARRIVAL_S else ~arrival.is_null()
        return (self.x.col("output_tokens") > 0).fill_null(False) & ~known

    def rows(self, *, lenient: bool) -> Any:
        """The rows under the declared schema; if lenient, only those that can be read."""
        rows = self.declared(lenient=lenient)
        if lenient:
            rows = rows.filter(self.good.fill_null(False))
        return rows.filter(~self.untimed) if self.only_timed else rows

    def counted(self) -> dict[str, int]:
        """How many rows there are, are good, have output, and of these no arrival."""
        x, good = self.x, self.good.fill_null(False)
        untimed = x.lit(False) if self.arrival is None else self.untimed
        masks = {"good": good, "served": good & (x.col("output_tokens") > 0), "untimed": good & untimed}
        sums = [mask.cast(x.Int64).sum().alias(name) for name, mask in masks.items()]
        ((counts,),) = self.collect(self.declared(lenient=True).select(*sums, x.len().alias("rows")))
        return {name: int(count or 0) for name, count in counts.items()}

    def collect(self, *queries: Any) -> list[list[dict[str, Any]]]:
        """Run queries, each a streaming pass: one that polars shares among them would hold all rows. Rows as dicts."""
        return [list(self.collected(query).iter_rows(named=True)) for query in queries]

    def collected(self, query: Any) -> Any:
        """The frame that a query gives, in memory: of polars, or of narwhals where another library computes it.

        Raises:
            DataError: The file cannot be read to its end.
        """
        if not self.is_polars:
            return self._collected_elsewhere(query)
        import polars as pl

        try:
            with without_panics():
                return query.collect(engine="streaming")
        except (pl.exceptions.PolarsError, OSError) as error:
            reason = first_line(error)
            if self.source.kind == CSV:
                rule = "Every row must be UTF-8, close its quotes, and have as many fields as the header"
                reason = f"{reason.rstrip('.')}. {rule}"
            message = f"{self.source.name}: cannot be read to its end: {reason}"
            raise DataError(message, code="file-not-readable", path=self.source.name, reason=reason) from error

    def _collected_elsewhere(self, query: Any) -> Any:
        import narwhals as nw

        # Without a frame of Spark, Spark need not be installed.
        of_spark = spark_errors() if self.source.is_spark else ()
        try:
            return query.collect() if isinstance(query, nw.LazyFrame) else query
        except NotImplementedError as error:
            message = f"{self.source.name}: {first_line(error)} Hand over a polars frame, or write a Parquet file"
            raise UsageError(message, code="spark-failed", trace=self.source.name) from error
        except of_spark as error:
            message = f"{self.source.name}: Spark cannot read it to its end: {spark_reason(error)}"
            raise DataError(message, code="spark-failed", trace=self.source.name) from error

    def column(self, path: str) -> Any:
        """A column by name, or a field of a struct column by dotted path."""
        if text := self.source.text_of(path):
            return plain_json(self.x, self.column(text[0])).str.json_path_match(text[1])
        head, *rest = self.source.names_of(path)
        return functools.reduce(lambda column, name: column.struct.field(name), rest, self.x.col(head))

    def _known(self, path: str) -> Any:
        """A column of counts, null where it has the text that stands for an unknown count."""
        column = self.column(path)
        if self.layout.missing is None:
            return column
        is_number, missing = self.kinds[path] in (INTEGER, DECIMAL), self.layout.missing
        return self.x.when(column != (float(missing) if is_number else missing)).then(column)

    def _whole(self, path: str, *, lenient: bool) -> Any:
        """Whole numbers, in 64 bits; null for all else. Only polars can try text without failing."""
        x, column, kind = self.x, self._known(path), self.kinds[path]
        if not self.is_polars:
            # pandas rejects a null in a condition, and its nullable columns keep one there.
            is_whole = (column == column.round(0)).fill_null(False)
            # A partition of Dask may hold nulls, as fractional NaN, where its schema says integer.
            may_lack = self.frame.implementation.is_dask() or self.layout.missing is not None
            is_integer = kind == INTEGER and not may_lack
            return column.cast(x.Int64) if is_integer else x.when(is_whole).then(column)
        if kind == INTEGER or (kind == TEXT and not lenient):
            return column.cast(x.Int64, strict=False)
        if kind == TEXT:
            column = column.str.strip_chars()
            is_grouped = column.str.contains(_GROUPS.get(self.source.dialect.separator, _GROUPED))
            column = x.when(is_grouped).then(column.str.replace_all(r"\D", "")).otherwise(column)
            if self.source.dialect.separator == ";":
                # 1.234 may be a fraction.
                column = x.when(~column.str.contains(r"^\d{1,3}\.\d{3}$")).then(column)
        number = column.cast(x.Float64, strict=False)
        return x.when(number == number.floor()).then(number).cast(x.Int64, strict=False)

    def _arrivals(self) -> list[Any]:
        if self.arrival is None:
            return []
        if self.arrival == ARRIVAL:
            return [self.column(self.layout.time[0]).alias(ARRIVAL)]
        return [self.x.coalesce(*map(self._seconds_of, self.layout.time)).alias(ARRIVAL_S)]

    def _links(self) -> list[Any]:
        x, blocks, sessions = self.x, self.layout.blocks, self.layout.sessions
        columns = {}
        if blocks is not None:
            ids = self.column(blocks.path)
            if self.kinds[blocks.path] == TEXT and self.source.kind != JSONL:
                ids = numbers_of(x, ids)
            columns["block_ids"] = ids.cast(x.List(x.Int64), strict=False)
            if blocks.within is not None:
                columns["block_scope"] = self.column(blocks.within).cast(x.String)
        if sessions is not None:
            texts = {"session": sessions.id, "parent": sessions.parent}
            texts = {name: self.column(path).cast(x.String) for name, path in texts.items() if path is not None}
            columns |= {name: x.when(text != "").then(text) for name, text in texts.items()}
            times = {"gap_s": sessions.gap, "elapsed_s": sessions.elapsed}
            columns |= {name: self._number(path) for name, path in times.items() if path is not None}
        return [column.alias(name) for name, column in columns.items()]

    def _number(self, path: str) -> Any:
        """Numbers as fractions; of text, null for all else."""
        column = self.column(path)
        if not self.is_polars:
            return column.cast(self.x.Float64)
        if self.source.dialect.separator == ";" and self.kinds[path] == TEXT:
            column = column.str.replace(",", ".", literal=True)
        return column.cast(self.x.Float64, strict=False)

    def _seconds_of(self, path: str) -> Any:
        x = self.x
        kind = self.kinds.get(path, TEXT)
        if kind == OTHER or (kind == TEXT and not self.is_polars):
            return x.lit(None).cast(x.Float64)
        if path not in self.kinds:
            # A date and its time, each in a column of its own.
            texts = [self.column(part).cast(x.String) for part in path.split(AND)]
            return x.coalesce(*instants(x, x.concat_str(texts, separator=" "), spelled=self.spelled))
        column = self.column(path)
        if kind == TIME:
            return column.cast(x.Datetime("us")).dt.timestamp("us").cast(x.Float64) / 1e6
        number = self._number(path) * (self.layout.time_unit_s or 1.0) - shift_s(self.layout.time_unit_s)
        return x.coalesce(number, *instants(x, column, spelled=self.spelled)) if kind == TEXT else number


def build_table(source: Source, layout: Layout) -> Table:
    """Attach the reader of a source to its layout (only polars reads blocks and sessions); nothing is read.

    Raises:
        DataError: A column that should hold tokens is of a type that cannot.
        UsageError: Rows of another library that are sums over requests, or chunks of answers.
    """
    x = importlib.import_module("narwhals" if source.kind == FRAME else "polars")
    frame = source.frame if source.kind in (POLARS, FRAME) else _scan(source, layout)
    if source.kind == FRAME and (layout.sums or layout.chunk):
        what = "spreads sums over their requests" if layout.sums else "joins the chunks of an answer"
        message = f"only polars {what}. Hand over a polars frame, or a file"
        raise UsageError(f"{source.name}: {message}", code="not-supported", trace=source.name)
    paths = (*layout.paths, *layout.link_paths)
    if source.kind in (CSV, JSONL, UNPACKED):
        kinds = dict.fromkeys(paths, TEXT)
    else:
        types = {".".join(names): dtype for names, dtype in flatten(frame.collect_schema())}
        types |= {name: types[".".join(names)] for name, names in source.spelled.items()}
        kinds = {path: TEXT if source.text_of(path) else _kind(types[path]) for path in paths}
        _check_kinds(source, layout, kinds, types)
    return Table(source=source, layout=layout, frame=frame, x=x, kinds=kinds)


def parse_table(source: Source, layout: Layout) -> Table | None:
    """The rows of a text file that polars rejects, read line by line; None if it is none, or is cut off.

    Raises:
        DataError: A quote of a CSV that is not closed.
    """
    if source.path is None or source.kind not in (CSV, JSONL):
        return None
    import polars as pl

    from infergy.workload.nested import Nested, frames_of

    names = {path: ".".join(names) for path, names in _fields(source, layout)[0].items()}
    rows = Nested(path=source.path).rows()
    if source.kind == CSV:
        rows = read_rows(source.path, tuple(itertools.chain(*source.names)), source.dialect.separator)
    empty = pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    try:
        frame = pl.concat([empty, *frames_of(rows, names)])
    except (OSError, EOFError, zlib.error):
        return None
    columns = tuple((path,) for path in names)
    return build_table(replace(source, kind=POLARS, path=None, names=columns, spelled={}, frame=frame.lazy()), layout)


def _fields(source: Source, layout: Layout) -> tuple[dict[str, Names], tuple[str, ...]]:
    """The names along the columns that are read, by path; and which of them hold lists."""
    fields = source.columns_of((*layout.paths, *layout.link_paths))
    return fields, () if layout.blocks is None else (layout.blocks.path,)


def _scan(source: Source, layout: Layout) -> Any:
    """A lazy polars frame. Text columns stay text, so that a bad value can be shown instead of failing the read."""
    import polars as pl

    fields, lists = _fields(source, layout)
    if source.kind == UNPACKED and source.nested is not None:
        return source.nested.frame(tuple(names[0] for names in fields.values()))
    path = source.path
    assert path is not None
    if source.kind == CSV:
        return pl.scan_csv(
            path,
            separator=source.dialect.separator,
            skip_lines=source.dialect.skipped,
            eol_char=source.dialect.line_end,
            infer_schema=False,
            glob=False,
        )
    if source.kind == JSONL:
        # ignore_errors lets a field be missing or of another shape: it is null then, and counted.
        return pl.scan_ndjson(glob.escape(str(path)), schema=record_schema(fields, lists), ignore_errors=True)
    return pl.scan_parquet(path, glob=False)


def _kind(dtype: Any) -> str:
    if dtype.is_integer():
        return INTEGER
    if dtype.is_float() or dtype.is_decimal():
        return DECIMAL
    name = str(dtype)
    if name.startswith(("Datetime", "Date")):
        return TIME
    return TEXT if name.startswith(("String", "Utf8")) else OTHER


def _check_kinds(source: Source, layout: Layout, kinds: Mapping[str, str], types: Mapping[str, Any]) -> None:
    good = (INTEGER, DECIMAL) if source.kind == FRAME else (INTEGER, DECIMAL, TEXT)
    axes = {"input": [one.input for one in layout.usages], "output": [one.output for one in layout.usages]}
    for axis, sums in {**axes, "cached": [layout.cached]}.items():
        for path in (path for path in itertools.chain(*sums) if kinds[path] not in good):
            message = (
                f"{source.name}: column {path!r} is of type {types[path]}, expected whole numbers of tokens. Convert "
                f"it, or name another: --{axis}-column NAME"
            )
            raise DataError(message, code="bad-column", trace=source.name, column=path, found=types[path])
