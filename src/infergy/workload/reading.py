"""From the rows of a table to the columns of its requests: validated, sorted by arrival, linked by session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infergy.errors import DataError
from infergy.units import count_of
from infergy.workload.bins import LONGEST_TOKENS
from infergy.workload.clock import MOST_PER_S
from infergy.workload.counts import is_no_count
from infergy.workload.requests import AT_ONCE, PrefixBlocks, Requests, SetAside
from infergy.workload.table import ARRIVAL, ARRIVAL_S, LATEST_ARRIVAL_S, Table

if TYPE_CHECKING:
    import polars as pl

_SHOWN_ROWS = 3
_SHARES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 99)  # percent, as --bad-rows may be given
EXPECTED = {"cached": "at most the input tokens", "requests": "a whole number of requests"}
_FEWEST_OF_A_RATE = 3
ROW = "row"
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
    bad, failed = rows.select(is_bad().sum(), (pl.col("output_tokens") == 0).sum().alias("failed")).row(0)
    if table.arrival is not None and not (lenient or at_once):
        bad = (
            bad
            or rows.select((pl.col("output_tokens") > 0) & ~pl.col(ARRIVAL_S).is_finite().fill_null(False)).sum().item()
        )
    if bad or failed == len(rows):
        return None, failed, bad
    if not rows.select(((pl.col("output_tokens") > 0) & (pl.col("input_tokens") > 0)).any()).item():
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
    out_of_order = 0
    arrival_s = None
    if reason is None:
        out_of_order = int((served[ARRIVAL_S].diff() < 0).sum())
        served = served.sort(ARRIVAL_S, maintain_order=True) if out_of_order else served
        times = served[ARRIVAL_S].to_numpy()
        origin_s = float(times[0]) if origin_s is None and len(times) else origin_s
        arrival_s = times - origin_s if len(times) else times
    cached = served["cached_tokens"] if "cached_tokens" in served.columns else None
    after, gap_s, lost = _sessions(table, served)
    lacking = {name: int(served.select(lacks.sum()).item()) for name, lacks in unlinked(table).items()}
    if lost:
        lacking["without_session"] += lost
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
            unreadable=table.unreadable,
            chunks=int(rows["chunks"].sum()) if "chunks" in rows.columns else 0,
            out_of_order=out_of_order,
            **lacking,
        ),
        lengths_from=table.source.lengths_from,
        origin_unix_s=origin_s if reason is None and origin_s and origin_s >= EARLIEST_DATE_S else None,
    )


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
    import numpy as np
    import polars as pl

    if table.source.lengths_from is not None and table.arrival is None:
        return "its lengths are drawn, without arrivals"
    if table.arrival is None:
        return "no column of arrivals; name one with --time-column NAME"
    times = served[ARRIVAL_S].drop_nulls().to_numpy()
    times = times[np.isfinite(times)]
    if table.arrival == ARRIVAL_S and len(times):
        check_arrivals(table, float(times.min()), float(times.max()), len(times))
    untimed = served.filter(pl.col(ARRIVAL_S).is_finite().fill_null(False).not_())
    if not len(untimed):
        return None
    if len(untimed) == len(served):
        return f"no request has an arrival in {_names(table.layout.time)}; name another column with --time-column NAME"
    raise arrivals_missing(table, len(untimed), len(served), f" ({_numbers(untimed)})")


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
            f"after the previous answer in {sessions.gap!r} ({_numbers(wrong)}). Correct these rows, or serve all at "
            "once: --all-at-once"
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
            f"whole numbers of 64 bits ({_numbers(wrong)}). Correct them, or remove the column"
        )
        raise DataError(message, code="bad-trace", trace=table.source.name, column=column.path)
    blocks = -(-pl.col("input_tokens") // column.block_tokens)
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
    return PrefixBlocks(ids=flat.to_numpy(), offsets=offsets, block_tokens=column.block_tokens)


def check_arrivals(table: Table, first_s: float, last_s: float, requests: int) -> None:
    """Check that so many arrivals between two times can be meant.

    Raises:
        DataError: They cannot: past any date, or more per second than any log has.
    """
    wrong, rows = "", ""
    if max(abs(first_s), abs(last_s)) > LATEST_ARRIVAL_S:
        arrival = table.x.col(ARRIVAL_S)
        beyond = arrival.is_finite() & (arrival.abs() > LATEST_ARRIVAL_S) & (table.x.col("output_tokens") > 0)
        first = _first_rows(table, table.declared(lenient=True), beyond.fill_null(False))
        rows = ", ".join(f"row {row[ROW]}: {row[ARRIVAL_S]:g} s" for row in first if ROW in row)
        wrong = f"are more than {LATEST_ARRIVAL_S:,} s from 0, past the year 2200"
    elif requests >= _FEWEST_OF_A_RATE and table.arrival_numbers is not None:
        span_s = last_s - first_s
        if span_s > 0 and MOST_PER_S * span_s <= requests - 1:
            wrong = f"are {(requests - 1) / span_s:,.0f} requests per second"
    if wrong:
        raise DataError(
            f"{table.source.name}: arrivals in {_names(table.layout.time)} {wrong}{f' ({rows})' if rows else ''}. "
            "Correct these rows, name the unit of the column: --time-unit ms (s, us, ns), or another column: "
            "--time-column NAME",
            code="bad-trace",
            trace=table.source.name,
            column=table.layout.time[0],
        )


def arrivals_missing(table: Table, untimed: int, requests: int, rows: str = "") -> DataError:
    """The error for a log in which some requests have an arrival and others have none."""
    return DataError(
        f"{table.source.name}: arrivals missing in part: {untimed:,} of {count_of(requests, 'request')} have none in "
        f"{_names(table.layout.time)}{rows}; expected numbers or text like 2024-05-10 00:00:00.009930+00:00. Correct "
        "these rows, name another column: --time-column NAME, serve all at once: --all-at-once"
        f"{advice_to_leave_out(untimed, requests)}",
        code="no-arrivals",
        trace=table.source.name,
        untimed=untimed,
    )


def advice_to_leave_out(part: int, rows: int) -> str:
    """The end of a message: the option that leaves a part of the rows out; empty if it is nearly all."""
    share = next((f"{step:g}%" for step in _SHARES if part <= step / 100 * rows), None)
    return f", or leave them out: --bad-rows {share}" if share else ""


def explain(table: Table, leave_out: str) -> DataError:
    """The error for a table with rows whose tokens cannot be read: how many in each column, and the first of them.

    Args:
        table: The rows.
        leave_out: How to read the table without them, for the end of the message.
    """
    x, layout = table.x, table.layout
    rows = table.declared(lenient=True, raw=True)
    wrong = {
        axis: ~x.col(f"{axis}_tokens").is_between(0, LONGEST_TOKENS).fill_null(False)
        for axis in ("input", "output", "uncached")
    }
    # A bad input also makes the uncached part unreadable: it is reported as what it is.
    conditions = {"input": wrong["input"], "output": wrong["output"]}
    if layout.cached:
        conditions["cached"] = ~wrong["input"] & wrong["uncached"]
    if layout.count is not None:
        conditions["requests"] = is_no_count()
    counts = [condition.cast(x.Int64).sum().alias(axis) for axis, condition in conditions.items()]
    ((counted, *_),) = table.collect(rows.select(*counts, x.len().alias("rows")))
    bad = {axis: int(counted[axis]) for axis in conditions if counted[axis]}
    parts = []
    for axis, count in bad.items():
        first = _first_rows(table, rows, conditions[axis])
        shown = ", ".join(_shown(axis, row) for row in first) + (", …" if count > len(first) else "")
        expected = EXPECTED.get(axis, f"a whole number of tokens from 0 to {LONGEST_TOKENS:,}")
        of_rows = f"{count:,} of {count_of(int(counted['rows']), 'row')}"
        what = "requests" if axis == "requests" else f"{axis} tokens"
        parts.append(f"{of_rows}: {what} in column {table.label(axis)} are not {expected} ({shown})")
    flags = " ".join(f"--{axis}-column NAME" for axis in bad)
    if "cached" in bad:
        flags += ", or count them beside the input: --input-column INPUT+CACHED"
    return DataError(
        f"{table.source.name}: {'; '.join(parts)}. Correct or remove these rows, or name another column: {flags}"
        f"{leave_out}",
        code="bad-trace",
        trace=table.source.name,
        rows=bad,
    )


def _first_rows(table: Table, rows: Any, condition: Any) -> list[dict[str, Any]]:
    """The first rows that meet a condition, with their number where the source has an order."""
    import narwhals as nw

    if table.is_polars:
        rows = rows.with_row_index(ROW, offset=1)
    elif isinstance(rows, nw.DataFrame):
        rows = rows.with_row_index(ROW).with_columns(nw.col(ROW) + 1)
    return table.collect(rows.filter(condition).head(_SHOWN_ROWS))[0]


def _shown(axis: str, row: dict[str, Any]) -> str:
    value = _value(row[f"raw_{axis}"])
    if axis == "cached":
        value += f" of {_value(row['raw_input'])}"
    return f"row {row[ROW]}: {value}" if ROW in row else value


def _value(raw: Any) -> str:
    if isinstance(raw, str):
        return repr(raw)
    # pandas has a NaN and an NA of its own for a missing value.
    return "missing" if raw is None or str(raw) in ("nan", "<NA>") else str(raw)


def _names(paths: tuple[str, ...]) -> str:
    return " or ".join(map(repr, paths))


def _numbers(rows: pl.DataFrame) -> str:
    """The numbers of the first rows."""
    shown = [f"row {number}" for number in rows[ROW].head(_SHOWN_ROWS)]
    return ", ".join(shown) + (", …" if len(rows) > len(shown) else "")
