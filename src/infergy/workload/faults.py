"""Why rows of a trace cannot be meant, told with their place and value. Runs only when a pass has found some."""

from __future__ import annotations

from typing import Any

from infergy.errors import DataError
from infergy.units import count_of
from infergy.workload.table import ARRIVAL_S, LATEST_ARRIVAL_S, LONGEST_TOKENS, Table

_SHOWN_ROWS = 3


def explain(table: Table) -> DataError:
    """The error for a table with rows that cannot be meant: how many for each column, and the first of them."""
    x = table.x
    rows = table.declared(lenient=True, raw=True)
    conditions = _conditions(table)
    # The first condition that holds is the one told; a bad input also makes the uncached part unreadable.
    counts = [condition.cast(x.Int64).sum().alias(axis) for axis, condition in conditions.items()]
    ((found, *_),) = table.collect(rows.select(*counts, x.len().alias("rows")))
    parts = [
        _part(table, axis, int(found[axis]), int(found["rows"]), _first_rows(table, rows, conditions[axis]))
        for axis in conditions
        if found[axis]
    ]
    flags = " ".join(f"--{axis}-column NAME" for axis in conditions if found[axis])
    return DataError(
        f"{table.source.name}: {'; '.join(parts)}. Correct or remove these rows, or name another column: {flags}",
        code="bad-trace",
        trace=table.source.name,
        rows={axis: int(found[axis]) for axis in conditions if found[axis]},
    )


def is_beyond(arrival_s: Any) -> Any:
    """Whether a finite arrival is one that no clock shows."""
    return arrival_s.is_finite() & (arrival_s.abs() > LATEST_ARRIVAL_S)


def arrivals_beyond(table: Table) -> DataError:
    """The error for a table with arrivals in seconds that no clock shows: the first of them, and what to type."""
    rows = table.declared(lenient=True)
    beyond = is_beyond(table.x.col(ARRIVAL_S)) & (table.x.col("output_tokens") > 0)
    first = _first_rows(table, rows, beyond.fill_null(False))
    shown = ", ".join(f"row {row['row']}: {row[ARRIVAL_S]:g} s" for row in first if "row" in row)
    return DataError(
        f"{table.source.name}: arrivals in {' or '.join(map(repr, table.layout.time))} are more than "
        f"{LATEST_ARRIVAL_S:,} s from 0, past the year 2200{f' ({shown})' if shown else ''}. Correct these rows, name "
        "the unit of the column: --time-unit ms (us, ns), or another column: --time-column NAME",
        code="bad-trace",
        trace=table.source.name,
        column=table.layout.time[0],
    )


def _conditions(table: Table) -> dict[str, Any]:
    x = table.x

    def wrong(name: str) -> Any:
        return ~x.col(name).is_between(0, LONGEST_TOKENS).fill_null(False)

    conditions = {"input": wrong("input_tokens"), "output": wrong("output_tokens")}
    if table.layout.cached:
        conditions["cached"] = ~conditions["input"] & wrong("uncached_tokens")
    return conditions


def _first_rows(table: Table, rows: Any, condition: Any) -> list[dict[str, Any]]:
    """The first rows that meet a condition, with their number where the source has an order."""
    import narwhals as nw

    if table.is_polars:
        numbered = rows.with_row_index("row", offset=1)
    elif isinstance(rows, nw.DataFrame):
        numbered = rows.with_row_index("row").with_columns(nw.col("row") + 1)
    else:
        numbered = rows
    (found,) = table.collect(numbered.filter(condition).head(_SHOWN_ROWS))
    return found


def _part(table: Table, axis: str, count: int, rows: int, first: list[dict[str, Any]]) -> str:
    layout = table.layout
    names = {
        "input": repr(layout.input),
        "output": repr(layout.output),
        "cached": " or ".join(map(repr, layout.cached)),
    }
    shown = ", ".join(_shown(axis, row) for row in first) + (", …" if count > len(first) else "")
    wanted = (
        "at most the input tokens" if axis == "cached" else f"a whole number of tokens from 0 to {LONGEST_TOKENS:,}"
    )
    return f"{count:,} of {count_of(rows, 'row')}: {axis} tokens in column {names[axis]} are not {wanted} ({shown})"


def _shown(axis: str, row: dict[str, Any]) -> str:
    value = _value(row[f"raw_{axis}"])
    if axis == "cached":
        value += f" of {_value(row['raw_input'])}"
    return f"row {row['row']}: {value}" if "row" in row else value


def _value(raw: Any) -> str:
    if isinstance(raw, str):
        return repr(raw)
    # pandas has a NaN and an NA of its own for a missing value.
    return "missing" if raw is None or str(raw) in ("nan", "<NA>") else str(raw)
