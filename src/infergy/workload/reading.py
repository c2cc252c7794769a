"""From the rows of a table to the columns of its requests: validated, sorted by arrival, linked by session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infergy.errors import DataError
from infergy.units import count_of
from infergy.workload.bins import LONGEST_TOKENS
from infergy.workload.faults import ROW, arrivals_missing, check_arrivals, row_numbers, why_untimed
from infergy.workload.requests import AT_ONCE, PrefixBlocks, Requests, SetAside
from infergy.workload.table import ARRIVAL, ARRIVAL_S, Table

if TYPE_CHECKING:
    import polars as pl

EARLIEST_DATE_S = 1e9
"""Smaller arrivals are no Unix times: they were counted from the start of the log."""


def read_requests(table: Table, *, lenient: bool, at_once: bool = False) -> tuple[Requests | None, int, int]:
    """Read all requests of a table.

    Args:
        table: The rows.
        lenient: See `Table.declared`.
        at_once: Leave arrival times out; reads a log that has them in part.

    Returns:
        The requests, the number of failed rows, and how many rows have tokens that cannot be read. The requests are
        None if there are such rows, or no requests.
    """
    import polars as pl

    rows = collect(table, table.rows(lenient=lenient)).with_row_index(ROW, offset=1)
    served = pl.col("output_tokens") > 0
    bad, failed = rows.select(is_bad().sum(), (pl.col("output_tokens") == 0).sum().alias("failed")).row(0)
    if not bad and table.arrival is not None and not (lenient or at_once):
        bad = rows.select(served & ~pl.col(ARRIVAL_S).is_finite().fill_null(False)).sum().item()
    if bad or failed == len(rows):
        return None, failed, bad
    if not rows.select((served & (pl.col("input_tokens") > 0)).any()).item():
        message = (
            f"{table.source.name}: none of {count_of(len(rows) - failed, 'request')} with output has input tokens in "
            f"column {table.label('input')}. Name another column: --input-column NAME"
        )
        raise DataError(message, code="no-requests", trace=table.source.name, column=table.layout.usages[0].input[0])
    return build(table, rows, at_once=at_once), failed, 0


def read_prompts(table: Table, *, lenient: bool) -> tuple[tuple[list[int], bool] | None, int, int]:
    """Prompts of the requests with output, in order of arrival where each has its own, else in the log's.

    Returns:
        The lengths and whether they are in order of arrival, None if there are none; failed rows; unreadable rows.
    """
    import polars as pl

    rows = collect(table, table.rows(lenient=lenient))
    bad = rows.select(is_bad().sum()).item()
    served = rows.filter(pl.col("output_tokens") > 0)
    if bad or not len(served):
        return None, len(rows) - len(served), bad
    by_arrival = ARRIVAL_S in served.columns and bool(served[ARRIVAL_S].is_finite().fill_null(False).all())
    if by_arrival:
        served = served.sort(ARRIVAL_S, maintain_order=True)
    return (served["input_tokens"].to_list(), by_arrival), 0, 0


def is_bad() -> pl.Expr:
    """Whether the tokens of a row cannot be read, as `Table.good` for a frame of polars."""
    import polars as pl

    lengths = pl.col("uncached_tokens", "output_tokens")
    return pl.all_horizontal(lengths.is_between(0, LONGEST_TOKENS)).fill_null(False).not_()


def collect(table: Table, query: Any) -> pl.DataFrame:
    """The rows of a query under the declared schema as a polars frame, whatever library has them."""
    import polars as pl

    rows = table.collected(query)
    if table.is_polars:
        frame: pl.DataFrame = rows
        return frame
    columns = {}
    for name in rows.columns:
        series = rows[name]
        if name == ARRIVAL:
            series = series.dt.timestamp("us").cast(table.x.Float64) / 1e6
        # Missing values of every library are NaN in a numpy column of fractions, which has whole numbers up to 2^53.
        column = pl.Series(series.cast(table.x.Float64).to_numpy()).fill_nan(None)
        columns[ARRIVAL_S if name == ARRIVAL else name] = column
    return pl.DataFrame(columns).with_columns(pl.col("^.*_tokens$").cast(pl.Int64))


def build(table: Table, rows: pl.DataFrame, *, at_once: bool = False, origin_s: float | None = None) -> Requests:
    """Requests of collected rows, some with output.

    Args:
        table: Where the rows come from.
        rows: With their numbers in the log as `row`.
        at_once: Leave arrival times out.
        origin_s: What arrivals are counted from, on the log's clock; None takes the first.
    """
    import polars as pl

    with_output = rows.filter(pl.col("output_tokens") > 0)
    served = with_output.filter(pl.col("input_tokens") > 0)
    reason = AT_ONCE if at_once else _order_reason(table, served)
    out_of_order, times = 0, None
    if reason is None:
        out_of_order = int((served[ARRIVAL_S].diff() < 0).sum())
        served = served.sort(ARRIVAL_S, maintain_order=True)
        times = served[ARRIVAL_S].to_numpy()
        origin_s = float(times[0]) if origin_s is None and len(times) else origin_s or 0.0
    after, gap_s, lost = _sessions(table, served)
    lacking = {name: int(served.select(lacks.sum()).item()) for name, lacks in unlinked(table).items()}
    lacking["without_session"] = lacking.get("without_session", 0) + lost
    return Requests(
        source=table.source.name,
        input_tokens=served["input_tokens"].to_numpy(),
        output_tokens=served["output_tokens"].to_numpy(),
        arrival_s=times if times is None else times - origin_s,
        order_reason=reason,
        cached_tokens=_cached(served),
        prefix_blocks=_prefix_blocks(table, served),
        after=after,
        gap_s=gap_s,
        set_aside=SetAside(
            failed=len(rows) - len(with_output),
            without_input=len(with_output) - len(served),
            unreadable=table.unreadable,
            chunks=int(rows["chunks"].sum()) if table.layout.chunk else 0,
            out_of_order=out_of_order,
            **lacking,
        ),
        lengths_from=table.source.lengths_from,
        origin_unix_s=origin_s if reason is None and (origin_s or 0.0) >= EARLIEST_DATE_S else None,
    )


def _cached(served: pl.DataFrame) -> Any:
    """Cached tokens, 0 where none are reported; None where no request reports them."""
    cached = served["cached_tokens"] if "cached_tokens" in served.columns else None
    return None if cached is None or cached.count() == 0 else cached.fill_null(0).to_numpy()


def unlinked(table: Table) -> dict[str, pl.Expr]:
    """Which rows lack what links others, by the name of their count in `SetAside`."""
    import polars as pl

    lacking = {}
    if table.layout.sessions is not None:
        lacking["without_session"] = pl.col("session").is_null()
    if table.layout.blocks is not None:
        lacking["without_blocks"] = pl.col("block_ids").list.len().fill_null(0) == 0
    return lacking


def _order_reason(table: Table, served: pl.DataFrame) -> str | None:
    """Why there are no arrivals; None if each request has one."""
    if table.arrival is None:
        return why_untimed(table, 0, 0)
    is_known = served[ARRIVAL_S].is_finite().fill_null(False)
    times, untimed = served[ARRIVAL_S].filter(is_known), served.filter(~is_known)
    if len(times):
        check_arrivals(table, float(times.min()), float(times.max()), len(times))  # type: ignore[arg-type]
    if 0 < len(untimed) < len(served):
        raise arrivals_missing(table, len(untimed), len(served), f" ({row_numbers(untimed)})")
    return why_untimed(table, len(untimed), len(served))


def _sessions(table: Table, served: pl.DataFrame) -> tuple[Any, Any, int]:
    """Index of the previous request of the session, and the gap after it; None for what the log does not know.

    Last, how many requests have one that comes no earlier.
    """
    import numpy as np
    import polars as pl

    sessions = table.layout.sessions
    if sessions is None:
        return None, None, 0
    index = pl.int_range(pl.len(), dtype=pl.Int64)
    if sessions.parent is not None:
        own = served.select(parent="session", after=index).unique("parent", keep="first", maintain_order=True)
        linked = served.select("parent").join(own, on="parent", how="left", maintain_order="left")
    else:
        previous = pl.col("place").shift(1).over("session")
        linked = served.with_columns(place=index).select(after=pl.when(pl.col("session").is_not_null()).then(previous))
    named = linked["after"].fill_null(-1).to_numpy()
    # An answer cannot precede its question: such links, cycles among them, are none.
    after = np.where(named < np.arange(len(named)), named, -1)
    lost, follows = int((after != named).sum()), pl.Series(after >= 0)
    if not follows.any():
        return None, None, lost
    if sessions.gap is None and (sessions.elapsed is None or ARRIVAL_S not in served.columns):
        return after, None, lost
    if sessions.gap is None:
        answered = (served[ARRIVAL_S] + served["elapsed_s"].fill_null(0.0)).to_numpy()
        waited = served[ARRIVAL_S].to_numpy() - answered[np.maximum(after, 0)]
        return after, np.where(follows, waited.clip(min=0.0), 0.0), lost
    gaps = served["gap_s"]
    wrong = served.filter((follows & gaps.is_finite().fill_null(False).not_()) | (gaps < 0).fill_null(False))
    if len(wrong):
        message = (
            f"{table.source.name}: {len(wrong):,} of {count_of(len(served), 'request')} have no gap of at least 0 s "
            f"after the previous answer in {sessions.gap!r} ({row_numbers(wrong)}). Correct these rows, or serve all "
            "at once: --all-at-once"
        )
        raise DataError(message, code="bad-trace", trace=table.source.name, column=sessions.gap, rows=len(wrong))
    return after, gaps.zip_with(follows, pl.Series([0.0])).to_numpy(), lost


def _prefix_blocks(table: Table, served: pl.DataFrame) -> PrefixBlocks | None:
    """Hashes of the blocks; those past the end of a prompt are cut off. None where no request has one."""
    import numpy as np
    import polars as pl

    column = table.layout.blocks
    if column is None:
        return None
    ids = pl.col("block_ids")
    wrong = served.filter(ids.list.len() != ids.list.drop_nulls().list.len())
    if len(wrong):
        message = (
            f"{table.source.name}: hashes of blocks in {column.path!r} of {count_of(len(wrong), 'request')} are not "
            f"whole numbers of 64 bits ({row_numbers(wrong)}). Correct them, or remove the column"
        )
        raise DataError(message, code="bad-trace", trace=table.source.name, column=column.path)
    blocks = -(-pl.col("input_tokens") // column.tokens)
    hashes = served.select(ids.fill_null([]).list.head(blocks))["block_ids"]
    counts = hashes.list.len().to_numpy().astype(np.int64)
    if not counts.any():
        return None
    flat = hashes.filter(hashes.list.len() > 0).explode()
    if column.within is not None:
        own = pl.DataFrame(
            {"id": flat, "scope": served["block_scope"].gather(np.repeat(np.arange(len(counts)), counts))}
        )
        flat = own.select(pl.struct("scope", "id").rank("dense").cast(pl.Int64)).to_series()
    offsets = np.concatenate(([0], np.cumsum(counts)))
    return PrefixBlocks(ids=flat.to_numpy(), offsets=offsets, block_tokens=column.tokens)
