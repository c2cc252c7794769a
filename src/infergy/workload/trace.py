"""A request trace: opened by name, path or frame; streamed when a figure is asked for.

    open_trace ──▶ source (header or first records) ──▶ layout (format, columns) ──▶ Trace, unread
    Trace.histogram ──▶ counts over bins            Trace.describe ──▶ moments, quantiles, arrival rate
    Trace.requests  ──▶ columns of all requests

Memory of the first two is bounded by bins and by distinct lengths, never by rows. Frames that the caller holds are
counted by the library that holds them. Tokens are summed in 64 bits: polars sums 32-bit columns in 32 bits, and wraps
without a word.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from infergy.errors import DataError
from infergy.units import count_of
from infergy.workload.bins import Bins, Histogram
from infergy.workload.formats import Columns, Layout, settle
from infergy.workload.reading import read_requests
from infergy.workload.requests import Requests, requests_of_histogram
from infergy.workload.sampling import (
    SAMPLING_ERROR,
    WHOLE_REQUESTS,
    Sample,
    sample_histogram,
    sample_table,
    sample_windows,
    whole,
)
from infergy.workload.sources import CSV, FRAME, JSONL, Source, find
from infergy.workload.table import Table, build_table
from infergy.workload.tasks import TaskOptions

if TYPE_CHECKING:
    from infergy.workload.padding import Padding
    from infergy.workload.summary import TraceSummary


class _Counted(Protocol):
    def __call__(self, table: Table, *, lenient: bool) -> tuple[Any, int]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """A trace whose columns are known and whose rows are unread.

    Attributes:
        origin: Where it comes from.
        layout: Which of its columns hold what.
    """

    origin: Source
    layout: Layout

    @property
    def source(self) -> str:
        """Shipped name, path, or what kind of frame it is."""
        return self.origin.name

    @property
    def format(self) -> str:
        """Name of its format; ``columns`` if the user named them all."""
        return self.layout.format

    @property
    def license(self) -> str | None:
        """SPDX id of a shipped trace's licence; None for the user's own, whose licence is the user's to know."""
        return self.origin.about.get("license")

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
        table = self._table()
        declared = table.declared(lenient=True)
        return declared if table.is_polars else declared.to_native()

    def histogram(self, bins: Bins | None = None) -> Histogram:
        """Count the requests over bins, by output and by the input that costs prefill: prompt less cached tokens.

        Args:
            bins: The grid; None takes powers of two up to the longest request, which leaves nobody out.

        Returns:
            Counts and real tokens of each bin that holds a request. Requests without output are set aside and
            counted; what lies past the last edge is in `left_out`.

        Raises:
            DataError: No requests, no request with output, or tokens that cannot be meant.
        """
        from infergy.workload.counting import count_groups, fold

        def count(table: Table, *, lenient: bool) -> tuple[Any, int]:
            return count_groups(table, bins, lenient=lenient)

        histogram = replace(fold(self._validated(count), bins, self.source), lengths_from=self.lengths_from)
        self._require(histogram.requests + (histogram.left_out is not None), histogram.failed_requests)
        return histogram

    def describe(self) -> TraceSummary:
        """Counts, mean ± std, median, p99, longest and total of input and output, and the arrival rate; all exact.

        Raises:
            DataError: No requests, no request with output, or tokens that cannot be meant.
        """
        from infergy.workload.summary import gather, summarise

        table = self._table()

        def count(table: Table, *, lenient: bool) -> tuple[Any, int]:
            lengths = gather(table, lenient=lenient)
            return lengths, lengths.bad

        lengths = self._validated(count)
        self._require(lengths.requests, lengths.failed)
        return summarise(table, lengths, self.attribution)

    def padding(self, batch: int) -> Padding:
        """What static batches of `batch` prompts pad, in order of arrival and sorted by length.

        The length of each prompt is held in memory, unlike for `histogram` and `describe`.

        Raises:
            UsageError: `batch` is no size of a batch.
            DataError: No requests, no request with output, or tokens that cannot be meant.
        """
        from infergy.workload.padding import find_padding
        from infergy.workload.summary import read_prompts

        def gather_prompts(table: Table, *, lenient: bool) -> tuple[Any, int]:
            return read_prompts(table, lenient=lenient)

        (lengths, by_arrival), failed = self._validated(gather_prompts), 0
        if not lengths:
            failed = self.describe().failed_requests
        self._require(len(lengths), failed)
        return find_padding(lengths, batch, by_arrival=by_arrival)

    def requests(self, *, arrivals: bool = True) -> Requests:
        """All requests as columns, sorted by arrival.

        A table that Spark holds stays there: it gives the requests of its histogram, without an order. Blocks and
        sessions are read from files and polars frames.

        Args:
            arrivals: Whether to keep arrival times and sessions; False has all requests arrive at once.

        Raises:
            DataError: No requests, no request with output, tokens that cannot be read, arrivals missing in part, or
                gaps between requests of a session that are missing or negative.
        """
        if self.origin.is_spark:
            return requests_of_histogram(self.histogram())
        if arrivals and self._has_columns:
            return self._read_columns()

        def read(table: Table, *, lenient: bool) -> tuple[Any, int]:
            return read_requests(table, lenient=lenient, arrivals=arrivals)

        found: tuple[Requests | None, int] = self._validated(read, links=True)
        requests, failed = found
        self._require(0 if requests is None else len(requests), failed)
        assert requests is not None
        return requests

    def sample(self, *, seed: int = 0, error: float = SAMPLING_ERROR, whole_requests: int = WHOLE_REQUESTS) -> Sample:
        """All requests in one window up to `whole_requests`, else windows drawn over the trace's time.

        Requests that polars reads are held only where they are drawn.

        Args:
            seed: Of the draw.
            error: Half-width of the 90 % interval of summed tokens, relative, that is to be met.
            whole_requests: Above this many windows are drawn.

        Raises:
            UsageError: `error` is out of range.
            DataError: As for `requests`.
        """
        if self.origin.is_spark:
            return sample_histogram(self.histogram(), whole_requests=whole_requests)
        if self.origin.kind == FRAME:
            return sample_windows(self.requests(), seed=seed, error=error, whole_requests=whole_requests)
        if self._has_columns and 0 < error < 1 and len(requests := self._read_columns()) <= whole_requests:
            return whole(requests)

        def read(table: Table, *, lenient: bool) -> tuple[Any, int]:
            return sample_table(table, lenient=lenient, seed=seed, error=error, whole_requests=whole_requests)

        found: tuple[Sample | None, int] = self._validated(read, links=True)
        sample, failed = found
        self._require(0 if sample is None else sample.requests, failed)
        assert sample is not None
        return sample

    @property
    def _has_columns(self) -> bool:
        """Whether its requests ship as columns too: a shipped trace, of which no other columns are named."""
        if "columns" not in self.origin.about:
            return False
        return self.layout == settle(self.origin.fields, source=self.source, records=False, wanted=None, columns=None)

    def _read_columns(self) -> Requests:
        """Its requests without polars, which takes longer to import than they to be served."""
        import numpy as np

        assert self.origin.path is not None
        with np.load(self.origin.path.with_name(self.origin.about["columns"])) as columns:
            return Requests(
                source=self.source,
                input_tokens=columns["input_tokens"].astype(np.int64),
                output_tokens=columns["output_tokens"].astype(np.int64),
                arrival_s=columns["arrival_s"],
                order_reason=None,
            )

    def _table(self, *, links: bool = False) -> Table:
        return build_table(self.origin, self.layout, links=links and self.origin.kind != FRAME)

    def _validated(self, count: _Counted, *, links: bool = False) -> Any:
        """Count; only if rows look bad, count again reading ``12.0`` as 12, and only then report what is wrong."""
        table = self._table(links=links)
        result, bad = count(table, lenient=False)
        if bad and table.is_polars:
            result, bad = count(table, lenient=True)
        if bad:
            from infergy.workload.faults import explain

            raise explain(table)
        return result

    def _require(self, requests: int, failed: int) -> None:
        if requests:
            return
        if failed:
            message = (
                f"{self.source}: none of {count_of(failed, 'request')} has output tokens in column "
                f"{self.layout.output!r}. Name another column: --output-column NAME"
            )
            raise DataError(message, code="no-requests", trace=self.source, column=self.layout.output)
        message = f"{self.source}: the trace holds no requests, only a header or nothing at all"
        raise DataError(message, code="no-requests", trace=self.source)


def open_trace(
    source: str | Path | Any,
    *,
    format: str | None = None,  # noqa: A002
    columns: Columns | None = None,
    task: TaskOptions | None = None,
    name: str | None = None,
) -> Trace:
    """Open a trace; nothing but its header or first records is read.

    Args:
        source: Name of a shipped trace (``azure-conv-2023``) or of a task (``task:translation``), path of a CSV
            (``.gz`` too), JSONL or Parquet file, or a frame: polars (lazy too), pandas, Arrow table, DuckDB relation,
            or what else narwhals takes.
        format: ``azure``, ``burstgpt``, ``mooncake``, ``openai``, ``tokens``, or ``columns`` if `columns` names all;
            None recognises it.
        columns: Columns that differ from the format's.
        task: How many requests of a task, and where their lengths come from; for nothing else.
        name: What messages and results call it; None for its own name, which a frame lacks.

    Raises:
        DataError: No such file (with the nearest shipped names), no such columns, or a file that is no trace.
        UsageError: An unknown format or task, or a `source` that is nothing to read requests from.
    """
    found = find(source, task)
    found = found if name is None else replace(found, name=name)
    layout = settle(found.fields, source=found.name, records=found.kind == JSONL, wanted=format, columns=columns)
    twice = [path for path in (*layout.paths, *layout.link_paths) if found.fields.count(path) > 1]
    if found.kind == CSV and twice:
        message = (
            f"{found.name}: {count_of(found.fields.count(twice[0]), 'column')} are called {twice[0]!r} in the header; "
            "which of them counts is not known. Rename or remove the others"
        )
        raise DataError(message, code="bad-column", trace=found.name, column=twice[0])
    trace = Trace(origin=found, layout=layout)
    if not trace._has_columns:
        trace._table()
    return trace
