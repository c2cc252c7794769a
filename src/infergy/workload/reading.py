"""From the rows of a table to the columns of its requests: validated, sorted by arrival, linked by session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infergy.errors import DataError
from infergy.units import count_of
from infergy.workload.faults import arrivals_beyond, is_beyond
from infergy.workload.requests import AT_ONCE, PrefixBlocks, Requests, SetAside
from infergy.workload.table import ARRIVAL, ARRIVAL_S, LONGEST_TOKENS, Table

if TYPE_CHECKING:
    import polars as pl

_SHOWNROWS = 3
ROW = "row"


def read_requests(table: Table, *, lenient: bool, arrivals: bool = True) -> tuple[tuple[Requests | None, int], int]:
    """Read all requests of a table.

    Args:
        table: Built with its links where polars reads it.
        lenient: See `Table.declared`.
        arrivals: Whether to keep arrival times and sessions; False reads a log that has them in part.

    Returns:
        The requests and the number of failed rows; and how many rows have tokens that cannot be read. The requests
        are None if there are such rows, or no requests.

    Raises:
        DataError: All prompts are empty, arrivals or gaps are missing in part, or gaps are negative.
    """
    import polars as pl

    rows = collect(table, table.declared(lenient=lenient, links=table.is_polars)).with_row_index(ROW, offset=1)
    good = is_good()
    bad, failed = rows.select(good.not_().sum(), (pl.col("output_tokens") == 0).sum().alias("failed")).row(0)
    if bad or failed == len(rows):
        return (None, failed), bad
    if not rows.select(((pl.col("output_tokens") > 0) & (pl.col("input_tokens") > 0)).any()).item():
        message = (
            f"{table.source.name}: none of {count_of(len(rows) - failed, 'request')} with output has input tokens in "
            f"column {table.layout.input!r}. Name another column: --input-column NAME"
        )
        raise DataError(message, code="no-requests", trace=table.source.name, column=table.layout.input)
    return (build(table, rows, arrivals=arrivals), failed), 0


def is_good() -> pl.Expr:
    """Whether the tokens of a row can be read, as in all other passes over a table."""
    import polars as pl

    lengths = pl.col("uncached_tokens"), pl.col("output_tokens")
    return pl.all_horizontal(column.is_between(0, LONGEST_TOKENS).fill_null(False) for column in lengths)


def collect(table: Table, query: Any) -> pl.DataFrame:
    """The rows of a query under the declared schema as a polars frame, whatever library holds them.

    Raises:
        DataError: The file cannot be read to its end.
    """
    import polars as pl

    if table.is_polars:
        frame: pl.DataFrame = table.collected(query)
        return frame
    held = table.collected(query)
    columns = {}
    for name in held.columns:
        series = held[name]
        if name == ARRIVAL:
            series = series.dt.timestamp("us").cast(table.x.Float64) / 1e6
        # Missing values of every library are NaN in a numpy column of fractions, which has whole numbers up to 2^53.
        column = pl.Series(series.cast(table.x.Float64).to_numpy()).fill_nan(None)
        columns[ARRIVAL_S if name == ARRIVAL else name] = column
    return pl.DataFrame(columns).with_columns(pl.col("^.*_tokens$").cast(pl.Int64))


def build(table: Table, rows: pl.DataFrame, *, arrivals: bool, origin_s: float | None = None) -> Requests:
    """Requests of collected rows, of which some have output.

    Args:
        table: Where the rows come from.
        rows: With their numbers in the log as `row`.
        arrivals: Whether to keep arrival times and sessions.
        origin_s: What arrivals are counted from, on the log's clock; None takes the first.

    Raises:
        DataError: Arrivals or gaps are missing in part, or gaps are negative.
    """
    import polars as pl

    with_output = rows.filter(pl.col("output_tokens") > 0)
    served = with_output.filter(pl.col("input_tokens") > 0)
    reason = _order_reason(table, served) if arrivals else AT_ONCE
    _check_blocks(table, served)
    lacking = unlinked(table, sessions=arrivals)
    out_of_order = 0
    arrival_s = None
    if reason is None:
        out_of_order = int((served[ARRIVAL_S].diff() < 0).sum())
        served = served.sort(ARRIVAL_S, maintain_order=True) if out_of_order else served
        times = served[ARRIVAL_S].to_numpy()
        arrival_s = times - (times[0] if origin_s is None else origin_s) if len(times) else times
    cached = served["cached_tokens"] if "cached_tokens" in served.columns else None
    after, gap_s = _sessions(table, served) if arrivals else (None, None)
    return Requests(
        source=table.source.name,
        input_tokens=served["input_tokens"].to_numpy(),
        output_tokens=served["output_tokens"].to_numpy(),
        arrival_s=arrival_s,
        order_reason=reason,
        cached_tokens=None if cached is None or cached.count() == 0 else cached.fill_null(0).to_numpy(),
        prefix_blocks=_prefix_blocks(table, served),
        after=after,
        gap_s=gap_s,
        set_aside=SetAside(
            failed=len(rows) - len(with_output),
            without_input=len(with_output) - len(served),
            out_of_order=out_of_order,
            **{name: int(served.select(lacks.sum()).item()) for name, lacks in lacking.items()},
        ),
        lengths_from=table.source.lengths_from,
    )


def unlinked(table: Table, *, sessions: bool = True) -> dict[str, pl.Expr]:
    """Which rows lack what links others, by the name of their count in `SetAside`; of a table built with its links."""
    import polars as pl

    layout, lacking = table.layout, {}
    if sessions and layout.sessions is not None and layout.sessions.id in table.kinds:
        lacking["without_session"] = pl.col("session").is_null()
    if layout.blocks is not None and layout.blocks.path in table.kinds:
        lacking["without_blocks"] = pl.col("block_ids").list.len().fill_null(0) == 0
    return lacking


def _order_reason(table: Table, served: pl.DataFrame) -> str | None:
    """Why there are no arrivals; None if each request has one."""
    import polars as pl

    if table.source.lengths_from is not None:
        return "a task has no arrivals"
    if table.arrival is None:
        return "no column of arrivals; name one with --time-column NAME"
    if table.arrival == ARRIVAL_S and served.select(is_beyond(pl.col(ARRIVAL_S)).any()).item():
        raise arrivals_beyond(table)
    untimed = served.filter(pl.col(ARRIVAL_S).is_finite().fill_null(False).not_())
    if not len(untimed):
        return None
    if len(untimed) == len(served):
        return f"no request has an arrival in {_times(table)}; name another column with --time-column NAME"
    raise arrivals_missing(table, len(untimed), len(served), f" ({_numbers(untimed)})")


def arrivals_missing(table: Table, untimed: int, requests: int, rows: str = "") -> DataError:
    """The error for a log in which some requests have an arrival and others have none."""
    return DataError(
        f"{table.source.name}: arrivals missing in part: {untimed:,} of {count_of(requests, 'request')} have none in "
        f"{_times(table)}{rows}; expected numbers or text like 2024-05-10 00:00:00.009930+00:00. Correct these rows, "
        "name another column: --time-column NAME, or serve all at once: --all-at-once",
        code="no-arrivals",
        trace=table.source.name,
        untimed=untimed,
    )


def _times(table: Table) -> str:
    return " or ".join(repr(path) for path in table.layout.time)


def _numbers(rows: pl.DataFrame) -> str:
    """The numbers of the first rows."""
    shown = [f"row {number}" for number in rows[ROW].head(_SHOWNROWS)]
    return ", ".join(shown) + (", …" if len(rows) > len(shown) else "")


def _sessions(table: Table, served: pl.DataFrame) -> tuple[Any, Any]:
    """Index of the previous request of the session, and the gap after it; None for what the log does not know."""
    import numpy as np
    import polars as pl

    sessions = table.layout.sessions
    if sessions is None or "session" not in served.columns:
        return None, None
    index = pl.int_range(pl.len(), dtype=pl.Int64)
    if sessions.parent is not None:
        own = served.select(parent="session", after=index).unique("parent", keep="first", maintain_order=True)
        linked = served.select("parent").join(own, on="parent", how="left", maintain_order="left")
    else:
        previous = pl.col("place").shift(1).over("session")
        linked = served.with_columns(place=index).select(after=pl.when(pl.col("session").is_not_null()).then(previous))
    after = linked["after"].fill_null(-1).to_numpy()
    # An answer cannot precede its question: such links, cycles among them, are none.
    after = np.where(after < np.arange(len(after)), after, -1)
    if not (after >= 0).any():
        return None, None
    return after, _gaps(table, served, after)


def _gaps(table: Table, served: pl.DataFrame, after: Any) -> Any:
    import polars as pl

    sessions = table.layout.sessions
    assert sessions is not None
    if sessions.gap is None:
        return None
    follows = pl.Series(after >= 0)
    gaps = served["gap_s"]
    wrong = served.filter((follows & gaps.is_finite().fill_null(False).not_()) | (gaps < 0).fill_null(False))
    if len(wrong):
        message = (
            f"{table.source.name}: {len(wrong):,} of {count_of(len(served), 'request')} have no gap of at least 0 s "
            f"after the previous answer in {sessions.gap!r} ({_numbers(wrong)}). Correct these rows, or serve all at "
            "once: --all-at-once"
        )
        raise DataError(message, code="bad-trace", trace=table.source.name, column=sessions.gap, rows=len(wrong))
    return gaps.zip_with(follows, pl.Series([0.0])).to_numpy()


def _check_blocks(table: Table, served: pl.DataFrame) -> None:
    """Reject lists of hashes in which some are none.

    Raises:
        DataError: There are such; the message names their rows.
    """
    import polars as pl

    if "block_ids" not in served.columns:
        return
    assert table.layout.blocks is not None
    ids = pl.col("block_ids")
    wrong = served.filter(ids.list.len() != ids.list.drop_nulls().list.len())
    if len(wrong):
        message = (
            f"{table.source.name}: hashes of blocks in {table.layout.blocks.path!r} of "
            f"{count_of(len(wrong), 'request')} are not whole numbers of 64 bits ({_numbers(wrong)}). Correct them, or "
            "remove the column"
        )
        raise DataError(message, code="bad-trace", trace=table.source.name, column=table.layout.blocks.path)


def _prefix_blocks(table: Table, served: pl.DataFrame) -> PrefixBlocks | None:
    """Hashes of the blocks; those past the end of a prompt are cut off. None where no request has one."""
    import numpy as np
    import polars as pl

    column = table.layout.blocks
    if column is None or "block_ids" not in served.columns:
        return None
    blocks = -(-pl.col("input_tokens") // column.block_tokens)
    ids = served.select(pl.col("block_ids").fill_null([]).list.head(blocks))["block_ids"]
    counts = ids.list.len().to_numpy().astype(np.int64)
    if not counts.any():
        return None
    flat = ids.filter(ids.list.len() > 0).explode()
    offsets = np.concatenate(([0], np.cumsum(counts)))
    return PrefixBlocks(ids=flat.to_numpy(), offsets=offsets, block_tokens=column.block_tokens)
