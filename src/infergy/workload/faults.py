"""What is wrong with the rows of a table: counted and left out, or an error that shows the first of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from infergy.errors import DataError
from infergy.units import count_of
from infergy.workload.bins import LONGEST_TOKENS
from infergy.workload.clock import MOST_PER_S
from infergy.workload.counts import is_no_count
from infergy.workload.formats import AND, Layout
from infergy.workload.table import ARRIVAL_S, LATEST_ARRIVAL_S, Table

if TYPE_CHECKING:
    import polars as pl

ROW = "row"
EXPECTED = {"cached": "at most the input tokens", "requests": "a whole number of requests"}
_SHOWN_ROWS = 3
_SHARES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 99)  # percent, as --bad-rows may be given
_FEWEST_OF_A_RATE = 3


def without_unreadable(table: Table, share: float) -> Table:
    """The same table, its unreadable rows counted, and those without an arrival if others have one.

    Args:
        table: The rows.
        share: Of all rows that may be unreadable, 0 to 1.

    Raises:
        DataError: More have tokens that cannot be read.
    """
    counts = table.counted()
    if counts["untimed"]:
        spelled = replace(table, spelled=True)
        of_spelled = spelled.counted()
        if of_spelled["untimed"] < counts["untimed"]:
            table, counts = spelled, of_spelled
    rows, untimed = counts["rows"], counts["untimed"]
    unreadable = rows - counts["good"]
    if unreadable <= share * rows:
        only_timed = 0 < untimed < counts["served"] and unreadable + untimed <= share * rows
        return replace(table, unreadable=unreadable + untimed * only_timed, only_timed=only_timed)
    raise explain(table, advice_to_leave_out(unreadable, rows))


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
        column, shown = in_words(table.layout.time), f" ({rows})" if rows else ""
        fix = "name the unit of the column: --time-unit ms (s, us, ns), or another column: --time-column NAME"
        message = f"{table.source.name}: arrivals in {column} {wrong}{shown}. Correct these rows, {fix}"
        raise DataError(message, code="bad-trace", trace=table.source.name, column=table.layout.time[0])


def arrivals_missing(table: Table, untimed: int, requests: int, rows: str = "") -> DataError:
    """The error for a log in which some requests have an arrival and others have none."""
    why = f"arrivals missing in part{rows}: {why_untimed(table, untimed, requests)}"
    fix = f"Correct these rows, serve all at once: --all-at-once{advice_to_leave_out(untimed, requests)}"
    message = f"{table.source.name}: {why}. {fix}"
    return DataError(message, code="no-arrivals", trace=table.source.name, untimed=untimed)


def why_untimed(table: Table, untimed: int, requests: int) -> str | None:
    """Why so many requests have no arrival; None if all have one."""
    if table.arrival is None:
        drawn = "its lengths are drawn, without arrivals"
        return drawn if table.source.lengths_from else "no column of arrivals; name one with --time-column NAME"
    if not untimed:
        return None
    expected = "text like 2024-05-10 00:00:00.009930+00:00" if table.is_polars else "datetimes"
    what = f"{untimed:,} of {count_of(requests, 'request')} have no arrival in {in_words(table.layout.time)}"
    return f"{what}; expected numbers or {expected}, or another column: --time-column NAME"


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
    axes = ("input", "output", "uncached")
    wrong = {axis: ~x.col(f"{axis}_tokens").is_between(0, LONGEST_TOKENS).fill_null(False) for axis in axes}
    # A bad input also makes the uncached part unreadable: it is reported as what it is.
    conditions = {"input": wrong["input"], "output": wrong["output"]}
    if layout.cached:
        conditions["cached"] = ~wrong["input"] & wrong["uncached"]
    if layout.sums is not None:
        conditions["requests"] = is_no_count()
    counts = [condition.cast(x.Int64).sum().alias(axis) for axis, condition in conditions.items()]
    ((counted, *_),) = table.collect(rows.select(*counts, x.len().alias("rows")))
    bad = {axis: int(counted[axis]) for axis in conditions if counted[axis]}
    of_rows = count_of(int(counted["rows"]), "row")
    parts = []
    for axis, count in bad.items():
        first = _first_rows(table, rows, conditions[axis])
        shown = ", ".join(_shown(axis, row) for row in first) + ", …" * (count > len(first))
        expected = EXPECTED.get(axis, f"a whole number of tokens from 0 to {LONGEST_TOKENS:,}")
        what = "requests" if axis == "requests" else f"{axis} tokens"
        parts.append(f"{count:,} of {of_rows}: {what} in column {table.label(axis)} are not {expected} ({shown})")
    flags = " ".join(f"--{axis}-column NAME" for axis in bad)
    flags += _advice_to_add(layout) if "cached" in bad else ""
    fix = f"Correct or remove these rows, or name another column: {flags}{leave_out}"
    message = f"{table.source.name}: {'; '.join(parts)}. {fix}"
    return DataError(message, code="bad-trace", trace=table.source.name, rows=bad)


def _advice_to_add(layout: Layout) -> str:
    """How to count cached tokens beside the input."""
    (usage, *_) = (usage for usage in layout.usages if usage.cached)
    return f", or count them beside the input: --input-column '{AND.join((*usage.input, *usage.cached[0]))}'"


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
    # pandas has a NaN and an NA of its own for a missing value.
    return repr(raw) if isinstance(raw, str) else "missing" if str(raw) in ("None", "nan", "<NA>") else str(raw)


def in_words(paths: tuple[str, ...]) -> str:
    """Columns, the first that a row has."""
    return " or ".join(map(repr, paths))


def row_numbers(rows: pl.DataFrame) -> str:
    """The numbers of the first rows."""
    shown = [f"row {number}" for number in rows[ROW].head(_SHOWN_ROWS)]
    return ", ".join(shown) + (", …" if len(rows) > len(shown) else "")
