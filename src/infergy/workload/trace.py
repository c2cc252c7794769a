"""A request trace: opened by name, path or frame; streamed when a figure is asked for.

    open_trace ──▶ source (header or first records) ──▶ layout (format, columns) ──▶ Trace, unread
    Trace.histogram ──▶ counts over bins            Trace.describe ──▶ moments, quantiles, arrival rate
    Trace.requests  ──▶ columns of all requests

Memory of the first two is bounded by bins and by distinct lengths, never by rows. Frames of other libraries are counted
by these. Tokens are summed in 64 bits: polars sums 32-bit columns in 32 bits, which overflow in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from infergy.errors import DataError, UsageError
from infergy.units import count_of
from infergy.workload.bins import Bins, Histogram, count_bins
from infergy.workload.clock import TimeUnit, infer_unit
from infergy.workload.formats import Columns, Layout
from infergy.workload.histograms import find_histogram, requests_of_histogram
from infergy.workload.locate import find
from infergy.workload.recognise import recognise, settle
from infergy.workload.requests import SAMPLING_ERROR, WHOLE_REQUESTS, Requests, Sample, whole
from infergy.workload.source import FRAME, Source

if TYPE_CHECKING:
    from infergy.workload.summary import Padding, TraceSummary
    from infergy.workload.table import Table
    from infergy.workload.tasks import TaskOptions

BAD_ROWS = 0.001
"""Share of rows that may be unreadable."""
_T = TypeVar("_T")


class _Pass(Protocol):
    """A pass over a table: its result (None without requests), failed rows, and rows that cannot be read."""

    def __call__(self, table: Table, *, lenient: bool) -> tuple[Any, int, int]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """A trace whose columns are known and whose rows are unread.

    Attributes:
        origin: Where it comes from.
        layout: Which of its columns hold what.
        bad_rows: Share of rows that may be unreadable, 0 to 1: they are counted and left out.
        time_unit: The unit of its arrivals, where it was inferred.
        assumed: What neither names nor rows say, in words, each with the option that says otherwise.
        parsed: Its rows by the columns that are read, where polars rejects the file.
        chunk: The column of ids that the rows of an answer repeat and what was assumed, once it was looked for.
    """

    origin: Source
    layout: Layout
    bad_rows: float = BAD_ROWS
    time_unit: TimeUnit | None = None
    assumed: tuple[str, ...] = ()
    parsed: dict[tuple[str, ...], Table] = field(default_factory=dict, repr=False)
    chunk: list[tuple[str | None, str]] = field(default_factory=list, repr=False)

    @property
    def source(self) -> str:
        """Shipped name, path, or what kind of frame it is."""
        return self.origin.name

    @property
    def format(self) -> str:
        """Name of its format; ``columns`` if the user named them all."""
        return self.layout.name

    @property
    def attribution(self) -> str | None:
        """Citation and licence of a shipped trace, in one line; None for the user's own."""
        about = self.origin.about
        return f"{about['title']}: {about['citation']} ({about['license']})" if about else None

    @property
    def lengths_from(self) -> str | None:
        """Where the lengths of a task come from, in words; None for a trace, whose lengths are its own."""
        return self.origin.lengths_from

    @property
    def frame(self) -> Any:
        """The requests, lazily, as a frame of the library that reads or holds them (polars for files).

        Columns `input_tokens`, `output_tokens` (null where they are no whole numbers), `uncached_tokens`, and, if
        the log has them, `cached_tokens` (null where none is reported) and `arrival_s` (seconds on the log's clock;
        `arrival` in a frame of another library that holds datetimes).
        """
        table = self._table(self._joined(self.layout))
        declared = table.declared(lenient=True)
        return declared if table.is_polars else declared.to_native()

    def histogram(self, bins: Bins | None = None) -> Histogram:
        """Count the requests over bins, by output and by the input that costs prefill: prompt less cached tokens.

        Args:
            bins: The grid; None takes powers of two up to the longest request, which leaves none out.

        Raises:
            DataError: No requests, no request with output, or tokens that cannot be read.
        """

        def count(table: Table, *, lenient: bool) -> tuple[Any, int, int]:
            return count_bins(table, bins, lenient=lenient)

        histogram: Histogram = self._validated(count)
        return replace(histogram, lengths_from=self.lengths_from)

    def describe(self) -> TraceSummary:
        """Exact moments and quantiles of input and output, and the arrival rate; errors as of `histogram`."""
        from infergy.workload.summary import summarise

        summary: TraceSummary = self._validated(summarise)
        assumed = (*self.assumed, *(note for _, note in self.chunk if note))
        return replace(summary, attribution=self.attribution, time_unit=self.time_unit, assumed=assumed)

    def padding(self, batch: int) -> Padding:
        """What static batches of `batch` prompts pad, in order of arrival and sorted by length.

        Unlike for `histogram` and `describe`, the length of each prompt is in memory.
        """
        from infergy.workload.reading import read_prompts
        from infergy.workload.summary import find_padding

        lengths, by_arrival = self._validated(read_prompts)
        return find_padding(lengths, batch, by_arrival=by_arrival)

    def requests(self, *, arrivals: bool = True) -> Requests:
        """All requests as columns, sorted by arrival.

        A table of Spark stays there: it gives the requests of its histogram, without an order. Blocks and sessions are
        read from files and polars frames.

        Args:
            arrivals: Whether to keep arrival times and sessions; False has all requests arrive at once.

        Raises:
            DataError: As for `histogram`; arrivals missing in part; gaps of a session missing or negative.
        """
        if self.origin.is_spark:
            return requests_of_histogram(self.histogram())
        if arrivals and self._has_columns:
            return self._read_columns()
        from infergy.workload.reading import read_requests

        layout = self.layout if arrivals else replace(self.layout, sessions=None)
        requests: Requests = self._validated(partial(read_requests, at_once=not arrivals), layout)
        return requests

    def sample(self, *, seed: int = 0, error: float = SAMPLING_ERROR, whole_requests: int = WHOLE_REQUESTS) -> Sample:
        """All requests in one window up to `whole_requests`, else windows drawn over the trace's time.

        Of the requests that polars reads only those drawn are in memory. Errors as for `requests`.

        Args:
            seed: Of the random sample.
            error: Half-width of the 90 % interval of summed tokens, relative, that is to be met; 0 to 1.
            whole_requests: Above this many windows are drawn.
        """
        if self.origin.is_spark:
            from infergy.workload.sampling import sample_histogram

            return sample_histogram(self.histogram(), whole_requests=whole_requests)
        is_frame = self.origin.kind == FRAME
        if is_frame or self._has_columns:
            requests = self.requests()
            if len(requests) <= whole_requests and 0 < error < 1:
                return whole(requests)
            if is_frame:
                import polars as pl

                names = ("input_tokens", "output_tokens", "cached_tokens", "arrival_s")
                columns = {name: column for name in names if (column := getattr(requests, name)) is not None}
                held = open_trace(pl.DataFrame(columns), name=requests.source)
                sample = held.sample(seed=seed, error=error, whole_requests=whole_requests)
                return replace(sample, set_aside=requests.set_aside)
        from infergy.workload.sampling import sample_table

        read = partial(sample_table, seed=seed, error=error, whole_requests=whole_requests)
        drawn: Sample = self._validated(read, self.layout)
        return drawn

    @property
    def _has_columns(self) -> bool:
        """Whether its requests ship as columns too: a shipped trace, whose other columns cannot be named."""
        if "columns" not in self.origin.about:
            return False
        return self.layout == settle(self.origin.fields, source=self.source, records=False, wanted=None, columns=None)

    def _read_columns(self) -> Requests:
        """Its requests without polars, whose import takes longer than an estimate."""
        import numpy as np

        assert self.origin.path is not None
        with np.load(self.origin.path.with_name(self.origin.about["columns"])) as columns:
            return Requests(
                source=self.source,
                input_tokens=columns["input_tokens"].astype(np.int64),
                output_tokens=columns["output_tokens"].astype(np.int64),
                arrival_s=columns["arrival_s"],
                order_reason=None,
                origin_unix_s=float(self.origin.about["origin_unix_s"]),
            )

    def _weighed(self, *, infers_unit: bool) -> Trace:
        """The same with what its rows say of its input and of the unit of its arrivals."""
        trace, layout = self, replace(self.layout, others=())
        self._table(layout)
        if any(usage.either for usage in layout.usages):
            from infergy.workload.evidence import find_beside

            _, (usages, assumed) = self._readable(find_beside, layout)
            trace = replace(self, layout=replace(self.layout, usages=usages), assumed=assumed)
        if self.origin.is_spark:
            return replace(trace, layout=replace(trace.layout, others=()))
        if layout.time and infers_unit:
            _, unit = self._readable(infer_unit, layout)
            if unit is not None:
                trace = replace(trace, layout=replace(trace.layout, time_unit_s=unit.seconds), time_unit=unit)
        return trace

    def _joined(self, layout: Layout) -> Layout:
        """A layout whose rows that repeat an answer are joined: all rows are looked at once, when they are read."""
        if layout.others and layout.sums is None and not self.chunk:
            from infergy.workload.evidence import find_chunks, find_repeating

            _, repeating = self._readable(find_repeating, Layout(name=layout.name, others=layout.others))
            of_all = replace(layout, others=repeating, time=())
            self.chunk.append(self._readable(find_chunks, of_all)[1] if repeating else (None, ""))
        return replace(layout, others=(), chunk=next((path for path, _ in self.chunk), None))

    def _table(self, layout: Layout) -> Table:
        """Its rows; where polars does not read them, without the columns that link requests."""
        from infergy.workload.table import build_table

        if self.origin.kind == FRAME:
            layout = replace(layout, blocks=None, sessions=None)
        return build_table(self.origin, layout)

    def _readable(self, read: Callable[[Table], _T], layout: Layout) -> tuple[Table, _T]:
        """Read something of the rows as polars does, or line by line where it rejects the file."""
        from infergy.workload.table import parse_table

        table = self._table(layout)
        key = (*layout.paths, *layout.link_paths)
        if key in self.parsed:
            table = replace(self.parsed[key], layout=table.layout)
        try:
            return table, read(table)
        except DataError as error:
            parsed = parse_table(table.source, table.layout) if error.code == "file-not-readable" else None
            if parsed is None:
                raise
        self.parsed[key] = parsed
        return parsed, read(parsed)

    def _validated(self, run: _Pass, layout: Layout | None = None) -> Any:
        """Run a pass; only if rows look bad, again reading ``12.0`` as 12, and without the rows that are bad."""
        layout = self._joined(replace(self.layout, blocks=None, sessions=None) if layout is None else layout)
        table, (result, failed, bad) = self._readable(lambda table: run(table, lenient=False), layout)
        if bad:
            from infergy.workload.faults import without_unreadable

            table = without_unreadable(table, self.bad_rows)
            result, failed, _ = run(table, lenient=True)
        if result is not None:
            return result
        if failed:
            what = f"none of {count_of(failed, 'request')} has output tokens in column {table.label('output')}"
            message = f"{self.source}: {what}. Name another column: --output-column NAME"
            raise DataError(message, code="no-requests", trace=self.source, column=self.layout.usages[0].output[0])
        message = f"{self.source}: the trace has no requests, only a header or nothing at all"
        raise DataError(message, code="no-requests", trace=self.source)


def open_trace(
    source: str | Path | Any,
    *,
    format: str | None = None,  # noqa: A002
    columns: Columns | None = None,
    task: TaskOptions | None = None,
    name: str | None = None,
    bad_rows: float = BAD_ROWS,
    tokenizer: str | None = None,
) -> Trace:
    """Open a trace; nothing but its header or first records is read.

    Args:
        source: Name of a shipped trace (``azure-conv-2023``) or of a task (``task:translation``), path of a CSV
            (``.gz`` too), JSONL or Parquet file, or a frame: polars (lazy too), pandas, Arrow table, DuckDB relation,
            or what else narwhals takes.
        format: Name of a format of `data/formats.toml`, or ``columns`` if `columns` names all; None recognises it.
        columns: Columns that differ from the format's.
        task: How many requests of a task, and where their lengths come from; for nothing else.
        name: What messages and results call it; None for its own name, which a frame lacks.
        bad_rows: Share of rows that may be unreadable, 0 to 1: they are counted and left out.
        tokenizer: Name or folder of a Hugging Face tokenizer that counts the texts of a log that has no tokens.

    Raises:
        DataError: No such file (with the nearest shipped names), no such columns, or a file that is no trace.
        UsageError: An unknown format or task, a share out of range, or a `source` that no requests are read from.
    """
    if not 0 <= bad_rows < 1:
        raise UsageError.bad_value("--bad-rows", bad_rows, "a share below 1, as 1% or 0.01")
    origin = find(source, task)
    origin = origin if name is None else replace(origin, name=name)
    if tokenizer is not None:
        from infergy.workload.texts import count_texts

        origin = count_texts(origin, tokenizer)
    origin, layout = recognise(origin, format, columns)
    if layout.sums is not None:
        words = f"each request has the mean lengths of its row, which sums up as many as {layout.sums.count!r} says"
        origin = replace(origin, lengths_from=words)
    origin.check_twice((*layout.paths, *layout.link_paths))
    trace = Trace(origin=origin, layout=layout, bad_rows=bad_rows)
    if trace._has_columns:
        return trace
    return trace._weighed(infers_unit=columns is None or columns.time_unit_s is None)


def open_requests(source: Any, **options: Any) -> Trace | Histogram:
    """A histogram if `source` is the path of one, else a trace, opened by `open_trace` with these options.

    Raises:
        DataError: It is neither, or the histogram was changed by hand and does not add up.
    """
    return find_histogram(source) or open_trace(source, **options)
