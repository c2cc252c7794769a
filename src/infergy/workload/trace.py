"""A request trace: a lazy frame with a declared schema, read in one streaming pass.

Memory is bounded by bins and distinct lengths, never by rows. Token sums are 64-bit: polars adds 32-bit columns in
32 bits and wraps without a word. Cached input tokens are taken off the input, since uncached prefill is what costs.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infergy.errors import DataError, UsageError
from infergy.workload.bins import FIRST_INPUT_EDGE, FIRST_OUTPUT_EDGE, Bin, BinCount, Bins, Histogram
from infergy.workload.formats import Columns, check_columns, recognise

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Columns", "LengthSummary", "Trace", "TraceSummary", "open_trace", "shipped_traces"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthSummary:
    """One axis of a trace: tokens a request."""

    mean: float
    std: float
    median: float
    p99: float
    longest: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSummary:
    """What the study's Tables 1 and 2 say of a trace, and how fast requests arrive.

    Attributes:
        requests: Requests with at least one output token.
        failed_requests: Requests without, set aside.
        duration_s: First to last arrival; None with the reason in `duration_reason`.
        arrival_rate: Requests a second over that time.
    """

    source: str
    format: str
    requests: int
    failed_requests: int
    input: LengthSummary
    output: LengthSummary
    cached_input_tokens: int
    duration_s: float | None
    arrival_rate: float | None
    duration_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace, not yet read.

    Attributes:
        source: Shipped name or path.
        format: Which of `infergy.workload.formats`.
        frame: Lazy columns `input_tokens` (uncached), `output_tokens`, `cached_tokens`, all Int64, and `arrival_s`.
        attribution: Who made it and under which licence, for shipped traces.
    """

    source: str
    format: str
    frame: pl.LazyFrame
    has_time: bool
    attribution: str | None = None

    def histogram(self, bins: Bins | None = None) -> Histogram:
        """Count requests over `bins` (default: powers of two up to the longest request), in one pass.

        Raises:
            DataError: The trace is empty, or holds tokens that cannot be meant.
        """
        import polars as pl

        keys = (
            [_power_index("input_tokens", FIRST_INPUT_EDGE), _power_index("output_tokens", FIRST_OUTPUT_EDGE)]
            if bins is None
            else [_edge_index("input_tokens", bins.input_edges), _edge_index("output_tokens", bins.output_edges)]
        )
        failed = pl.col("output_tokens") == 0
        counted = self._collect(
            self.frame.group_by(keys[0].alias("i"), pl.when(failed).then(-1).otherwise(keys[1]).alias("o")).agg(
                pl.len().alias("requests"),
                pl.col("input_tokens").sum().alias("input_tokens"),
                pl.col("output_tokens").sum().alias("output_tokens"),
                pl.col("cached_tokens").sum().alias("cached"),
                pl.col("input_tokens").max().alias("longest_input"),
                pl.col("output_tokens").max().alias("longest_output"),
                _is_bad().sum().alias("bad"),
            )
        ).sort("i", "o")
        if counted["bad"].sum():
            self._tell_bad_rows(int(counted["bad"].sum()))
        served = counted.filter(pl.col("o") >= 0)
        if served.is_empty():
            raise DataError(f"{self.source}: no request with output tokens in it; nothing to count")
        if bins is None:
            bins = Bins.powers_of_two(int(served["longest_input"].max()), int(served["longest_output"].max()))  # type: ignore[arg-type]
        inside = (pl.col("i") < len(bins.input_edges)) & (pl.col("o") < len(bins.output_edges))
        return Histogram(
            source=self.source,
            bins=bins,
            counts=tuple(
                BinCount(
                    bin=bins.at(row["i"], row["o"]),
                    requests=row["requests"],
                    input_tokens=row["input_tokens"],
                    output_tokens=row["output_tokens"],
                )
                for row in served.filter(inside).iter_rows(named=True)
            ),
            left_out=_left_out(served.filter(~inside)),
            failed_requests=int(counted.filter(pl.col("o") < 0)["requests"].sum()),
            cached_input_tokens=int(served["cached"].sum()),
        )

    def describe(self) -> TraceSummary:
        """Counts, mean ± std, median, 99th percentile and longest of input and output, and the arrival rate.

        Quantiles are exact (nearest rank between values as numpy does by default: linear), from counts of distinct
        lengths.

        Raises:
            DataError: The trace is empty, or holds tokens that cannot be meant.
        """
        import polars as pl

        times = [pl.col("arrival_s").min().alias("first"), pl.col("arrival_s").max().alias("last")]
        facts = self._collect(
            self.frame.select(
                _is_bad().sum().alias("bad"),
                (pl.col("output_tokens") == 0).sum().alias("failed"),
                pl.col("cached_tokens").sum().alias("cached"),
                *(times if self.has_time else []),
            )
        ).row(0, named=True)
        if facts["bad"]:
            self._tell_bad_rows(facts["bad"])
        served = self.frame.filter(pl.col("output_tokens") > 0)
        axes = {}
        for axis in ("input_tokens", "output_tokens"):
            counts = self._collect(served.group_by(axis).agg(pl.len().alias("n"))).sort(axis)
            if counts.is_empty():
                raise DataError(f"{self.source}: no request with output tokens in it; nothing to describe")
            axes[axis] = _summarise(counts[axis].to_list(), counts["n"].to_list())
            requests = int(counts["n"].sum())
        duration_s = facts["last"] - facts["first"] if self.has_time and facts["first"] is not None else None
        return TraceSummary(
            source=self.source,
            format=self.format,
            requests=requests,
            failed_requests=int(facts["failed"]),
            input=axes["input_tokens"],
            output=axes["output_tokens"],
            cached_input_tokens=int(facts["cached"]),
            duration_s=duration_s,
            arrival_rate=requests / duration_s if duration_s else None,
            duration_reason="" if duration_s else "the trace has no arrival times (--time-column names them)",
        )

    def _collect(self, frame: pl.LazyFrame) -> pl.DataFrame:
        """Stream a query; what cannot be read as whole numbers becomes a `DataError` with its first rows."""
        import polars as pl

        try:
            return frame.collect(engine="streaming")
        except (pl.exceptions.PolarsError, OSError) as error:
            first = str(error).strip().split("\n")[0]
            raise DataError(
                f"{self.source}: cannot be read as {self.format}: {first}. Token columns must hold whole numbers; "
                "name others with --input-column and --output-column"
            ) from error

    def _tell_bad_rows(self, count: int) -> None:
        import polars as pl

        rows = self.frame.with_row_index("row", offset=1).filter(_is_bad()).head(3).collect()
        shown = "; ".join(
            f"row {row['row']}: input {row['input_tokens']}, output {row['output_tokens']}"
            + (f", cached {row['cached_tokens']}" if row["cached_tokens"] else "")
            for row in rows.select(pl.all()).iter_rows(named=True)
        )
        raise DataError(
            f"{self.source}: {count} requests whose tokens are missing, negative, or not whole ({shown}). "
            "Correct or remove these rows"
        )


def open_trace(source: object, *, format: str | None = None, columns: Columns | None = None) -> Trace:  # noqa: A002
    """Open a trace: a shipped one by name, a CSV, JSONL or Parquet file, or a frame that the caller holds.

    Args:
        source: ``azure-conv-2023``, a path, or a polars, pandas, Arrow or DuckDB frame.
        format: Name of a format; None recognises it from the header.
        columns: The columns that hold requests, instead of a known format's.

    Raises:
        UsageError: No such shipped trace or format.
        DataError: The file is missing or has other columns.
    """
    if isinstance(source, (str, Path)):
        name = str(source)
        shipped = shipped_traces()
        if name in shipped:
            with resources.as_file(resources.files("infergy") / "data" / "traces" / shipped[name]["file"]) as path:
                frame, about = _scan(path), shipped[name]
            credit = f"{about['title']}. {about['citation']}. {about['license']}"
            return _declare(frame, name, format, columns, credit)
        return _declare(_scan(Path(source)), name, format, columns, None)
    return _declare(_adopt(source), f"a {type(source).__module__.split('.')[0]} frame", format, columns, None)


@cache
def shipped_traces() -> dict[str, dict[str, str]]:
    """The traces that ship with the package: title, file, licence, source and citation by name."""
    text = (resources.files("infergy") / "data" / "traces" / "traces.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _scan(path: Path) -> pl.LazyFrame:
    import polars as pl

    if not path.exists():
        raise UsageError.unknown("trace", str(path), shipped_traces(), "There is no file of that name either.")
    suffix = path.suffixes[-2] if path.suffix in (".gz", ".zst") and len(path.suffixes) > 1 else path.suffix
    try:
        if suffix == ".parquet":
            return pl.scan_parquet(path)
        if suffix in (".jsonl", ".ndjson", ".json"):
            return pl.scan_ndjson(path, infer_schema_length=1000)
        return pl.scan_csv(path, infer_schema_length=1000)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}. Expected CSV, JSONL or Parquet") from error


def _adopt(frame: object) -> pl.LazyFrame:
    """A foreign frame as a polars one; Arrow memory is shared, not copied, where the library allows it."""
    import narwhals as nw
    import polars as pl

    try:
        held = nw.from_native(frame)  # type: ignore[call-overload]
    except TypeError as error:
        raise UsageError(
            f"a trace is a name, a path, or a polars, pandas, Arrow or DuckDB frame; not {type(frame).__name__}"
        ) from error
    native = nw.to_native(held)
    if isinstance(native, pl.LazyFrame):
        return native
    eager = held.collect(backend="polars") if isinstance(held, nw.LazyFrame) else held
    return eager.to_polars().lazy()


def _declare(
    frame: pl.LazyFrame, source: str, named: str | None, columns: Columns | None, attribution: str | None
) -> Trace:
    import polars as pl

    try:
        schema = frame.collect_schema()
    except pl.exceptions.NoDataError as error:
        raise DataError(f"{source}: the file is empty; expected a header and requests") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{source}: cannot be read: {error}. Expected CSV, JSONL or Parquet") from error
    paths = _paths(schema)
    if columns is None:
        name, columns = recognise(paths, source, named)
    else:
        check_columns(columns, paths, source)
        name = "columns"
    for path in (columns.input, columns.output):
        _check_dtype(paths[path], path, source, frame)
    cached = _tokens(columns.cached) if columns.cached else pl.lit(0, dtype=pl.Int64)
    declared = frame.select(
        (_tokens(columns.input) - cached.fill_null(0)).alias("input_tokens"),
        _tokens(columns.output).alias("output_tokens"),
        cached.fill_null(0).alias("cached_tokens"),
        *([_seconds(columns, paths[columns.time]).alias("arrival_s")] if columns.time else []),
    )
    return Trace(source=source, format=name, frame=declared, has_time=columns.time is not None, attribution=attribution)


def _paths(schema: Any, prefix: str = "") -> dict[str, Any]:
    """All columns and nested fields with their types, by dotted path; a byte-order mark is not part of a name."""
    import polars as pl

    found: dict[str, Any] = {}
    for name, dtype in schema.items():
        found[prefix + name] = dtype
        if isinstance(dtype, pl.Struct):
            found |= _paths({field.name: field.dtype for field in dtype.fields}, f"{prefix}{name}.")
    return found


def _column(path: str) -> pl.Expr:
    import polars as pl

    head, *rest = path.split(".")
    expression = pl.col(head)
    for part in rest:
        expression = expression.struct.field(part)
    return expression


def _check_dtype(dtype: Any, path: str, source: str, frame: pl.LazyFrame) -> None:
    if dtype.is_numeric():
        return
    import polars as pl

    column = _column(path)
    try:
        wrong = (
            frame.select(column.alias("value"))
            .with_row_index("row", offset=1)
            .filter(pl.col("value").cast(pl.String).str.strip_chars().cast(pl.Int64, strict=False).is_null())
            .head(3)
            .collect()
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{source}: column {path!r} holds {dtype}; expected whole numbers") from error
    shown = "; ".join(f"row {row}: {value!r}" for row, value in wrong.iter_rows())
    raise DataError(f"{source}: column {path!r} holds {dtype}, expected whole numbers ({shown or 'no values'})")


def _tokens(path: str) -> pl.Expr:
    """Tokens as 64-bit integers; a fraction becomes null, which counts as bad."""
    import polars as pl

    column = _column(path)
    whole = column.cast(pl.Int64, strict=False)
    return pl.when(column == whole).then(whole)


def _is_bad() -> pl.Expr:
    import polars as pl

    return (
        pl.col("input_tokens").is_null()
        | pl.col("output_tokens").is_null()
        | (pl.col("input_tokens") < 0)
        | (pl.col("output_tokens") < 0)
        | (pl.col("cached_tokens") < 0)
    )


def _seconds(columns: Columns, dtype: Any) -> pl.Expr:
    """Arrival in seconds: numbers in the format's unit, or timestamps."""
    import polars as pl

    assert columns.time is not None
    column = _column(columns.time)
    if dtype.is_numeric():
        return column.cast(pl.Float64) * columns.time_unit_s
    if dtype == pl.String:
        plain = column.str.replace(r"(Z|[+-]00:?00)$", "").str.replace("T", " ", literal=True)
        column = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    return column.dt.epoch("us") / 1e6


def _power_index(column: str, first: int) -> pl.Expr:
    """Index of the smallest power of two, from `first` on, that is not below the value: the bits of value − 1."""
    import polars as pl

    bits = 64 - (pl.col(column).clip(1) - 1).bitwise_leading_zeros().cast(pl.Int64)
    return (bits - (first.bit_length() - 1)).clip(0).cast(pl.Int8)


def _edge_index(column: str, edges: tuple[int, ...]) -> pl.Expr:
    """Index of the smallest edge that is not below the value: how many edges are below it."""
    import polars as pl

    return pl.sum_horizontal(*((pl.col(column) > edge).cast(pl.Int8) for edge in edges))


def _left_out(rows: pl.DataFrame) -> BinCount | None:
    if rows.is_empty():
        return None
    longest_input, longest_output = rows.select("longest_input", "longest_output").max().row(0)
    return BinCount(
        bin=Bin(input_tokens=longest_input, output_tokens=longest_output, input_floor=0, output_floor=0),
        requests=int(rows["requests"].sum()),
        input_tokens=int(rows["input_tokens"].sum()),
        output_tokens=int(rows["output_tokens"].sum()),
    )


def _summarise(values: list[int], counts: list[int]) -> LengthSummary:
    """Moments and quantiles from ascending distinct values and how often each stands; std is the sample's."""
    n = sum(counts)
    total = sum(value * count for value, count in zip(values, counts, strict=True))
    mean = total / n
    squares = sum(count * (value - mean) ** 2 for value, count in zip(values, counts, strict=True))
    return LengthSummary(
        mean=mean,
        std=math.sqrt(squares / (n - 1)) if n > 1 else 0.0,
        median=_quantile(values, counts, n, 0.5),
        p99=_quantile(values, counts, n, 0.99),
        longest=values[-1],
        total=total,
    )


def _quantile(values: list[int], counts: list[int], n: int, share: float) -> float:
    place = share * (n - 1)
    low, high = math.floor(place), math.ceil(place)
    found: dict[int, int] = {}
    seen = 0
    for value, count in zip(values, counts, strict=True):
        for rank in (low, high):
            if seen <= rank < seen + count:
                found[rank] = value
        seen += count
        if seen > high:
            break
    return found[low] + (found[high] - found[low]) * (place - low)
