"""Counts of tokens as expressions: sums of columns, chosen row by row; rows that are chunks of answers, or sums.

The same expressions serve polars and narwhals, but for chunks and sums, which polars alone joins and spreads.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infergy.workload.formats import NAMED, Layout, Usage, names_of, outer

ARRIVAL_S = "arrival_s"
MOST_REQUESTS = 1_000_000_000
"""Of a row that sums up requests."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The counts of the rows of a log.

    Attributes:
        layout: Which columns hold what.
        x: polars or narwhals.
        column: The expression of a column.
        known: The same, null where the count is unknown.
        whole: The same as whole numbers, null for all else.
    """

    layout: Layout
    x: Any
    column: Callable[[str], Any]
    known: Callable[[str], Any]
    whole: Callable[[str], Any]

    def tokens(self) -> list[Any]:
        """Tokens of the declared schema: 0 of input and output for a row of no request."""
        x = self.x
        given, output = (
            self._of_usage(lambda one: self._sum(one.input)),
            self._of_usage(self._output),
        )
        made = {"input_tokens": given, "output_tokens": output, **self._cached(given)}
        if (is_none := self._no_request()) is not None:
            made = {name: x.when(is_none).then(x.lit(0)).otherwise(tokens) for name, tokens in made.items()}
        return [tokens.alias(name) for name, tokens in made.items()]

    def of_several(self, *, raw: bool) -> list[Any]:
        """What rows have that are chunks of an answer, or sums: the id, or how many requests."""
        layout, made = self.layout, []
        if layout.chunk is not None and not raw:
            made.append(self.column(layout.chunk).cast(self.x.String).alias("chunk"))
        if layout.count is not None:
            made += [self.column(layout.count).alias("raw_requests")] if raw else []
            made.append(self.whole(layout.count).alias("count"))
        return made

    def originals(self) -> list[Any]:
        """The original values of counts, a sum's as text."""
        x = self.x

        def raw(parts: tuple[str, ...]) -> Any:
            columns = [self.column(path) for path in parts]
            if len(columns) == 1:
                return columns[0]
            return x.concat_str([column.cast(x.String) for column in columns], separator=" + ", ignore_nulls=True)

        made = [
            self._of_usage(lambda one: raw(one.input)).alias("raw_input"),
            self._of_usage(lambda one: raw(one.output)).alias("raw_output"),
        ]
        if self.layout.cached:
            made.append(self._of_cached(raw, x.lit(None).cast(x.String)).alias("raw_cached"))
        return made

    def _of_usage(self, make: Callable[[Usage], Any]) -> Any:
        """An expression of the first usage of which a row has a count, else of the last."""
        *others, last = self.layout.usages
        chosen = make(last)
        for usage in reversed(others):
            # Some gateways fill the counts of the other API with zeros.
            texts = [self.known(path).cast(self.x.String) for path in (*usage.input, *usage.output)]
            lacks = functools.reduce(operator.and_, [text.is_null() | (text == "0") for text in texts])
            chosen = self.x.when(lacks).then(chosen).otherwise(make(usage))
        return chosen

    def _is_null(self, parts: tuple[str, ...]) -> Any:
        nulls = [self.known(path).is_null() for path in parts]
        return functools.reduce(operator.and_, nulls) if nulls else self.x.lit(True)

    def _no_request(self) -> Any | None:
        """Whether a row is of no request to a model: it lacks counts, or says so; None if each row is one."""
        layout, tests = self.layout, []
        if layout.is_partial or layout.name == NAMED:
            lacks = self._of_usage(lambda one: self._is_null(one.output))
            tests = [lacks if layout.is_partial else lacks & self._of_usage(lambda one: self._is_null(one.input))]
        for path, values in layout.skip.items():
            tests.append(self.column(path).cast(self.x.String).is_in(list(values)).fill_null(False))
        return functools.reduce(operator.or_, tests) if tests else None

    def _sum(self, parts: tuple[str, ...]) -> Any:
        """The whole number that columns add up to: a part that is missing counts 0, if not all are."""
        x = self.x
        if len(parts) == 1:
            return self.whole(parts[0])
        terms = [x.when(self.known(path).is_null()).then(x.lit(0)).otherwise(self.whole(path)) for path in parts]
        return x.when(~self._is_null(parts)).then(functools.reduce(operator.add, terms))

    def _output(self, one: Usage) -> Any:
        output = self._sum(one.output)
        if not one.beside:
            return output
        total, part = map(self.whole, one.beside)
        is_beside = (total == self._sum(one.input) + output + part).fill_null(False)
        return self.x.when(is_beside).then(output + part).otherwise(output)

    def _cached(self, given: Any) -> dict[str, Any]:
        """Cached tokens, and the input less them."""
        x = self.x
        if not self.layout.cached:
            return {"uncached_tokens": given}
        cached = self._of_cached(self._sum, x.lit(None).cast(x.Int64))
        is_null = self._of_usage(lambda one: self._is_null(tuple(path for parts in one.cached for path in parts)))
        unread = ~is_null & (cached.is_null() | (cached < 0))
        uncached = x.when(~unread).then(given - cached.fill_null(0))
        return {"cached_tokens": cached, "uncached_tokens": uncached}

    def _of_cached(self, make: Callable[[tuple[str, ...]], Any], null: Any) -> Any:
        """An expression of the first sum of cached tokens that a row has."""

        def first(one: Usage) -> Any:
            made = [make(parts) for parts in one.cached] or [null]
            return made[0] if len(made) == 1 else self.x.coalesce(*made)

        return self._of_usage(first)


def chunk_column(layout: Layout, fields: Collection[str], rows: Rows, within: str) -> str | None:
    """The column of ids, where the first rows of one id are chunks of an answer: counts that grow, of one prompt.

    Claude Code writes a line for each part of an answer, all with the counts of the whole.
    """
    place = f"{within}." if within else ""
    kind = next((path for path in outer(place, "object") if path in fields), "")
    is_chunks = any(str(row.get(kind)).endswith(".chunk") for row in rows)
    for own in (path for name in names_of("ids") for path in outer(place, name) if path in fields):
        counts: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
        for row in rows:
            for usage in layout.usages if isinstance(row.get(own), str) else ():
                if row.get(usage.input[0]) is not None:
                    count = (*(row.get(part) for part in usage.input), number_of(row.get(usage.output[0])))
                    counts[row[own]].append(count)
        pairs = [pair for seen in counts.values() for pair in itertools.pairwise(seen)]
        grow = all(a[:-1] == b[:-1] and a[-1] <= b[-1] for a, b in pairs)
        texts = [text for row in rows if isinstance(text := row.get(own), str)]
        repeats = len(set(texts)) < len(texts)
        if (is_chunks and repeats and grow) or (
            grow and any(a[-1] < b[-1] or layout.name == "anthropic" for a, b in pairs)
        ):
            return own
    return None


def are_running_counts(layout: Layout, rows: Rows) -> bool:
    """Whether the counts of most chunks among the first rows are those of the row before, but for more output."""
    chunks = [row for row in rows if any(isinstance(value, str) and value.endswith(".chunk") for value in row.values())]
    usage = layout.usages[0]
    counts = [tuple(number_of(row.get(axis[0])) for axis in (usage.input, usage.output)) for row in chunks]
    pairs = list(itertools.pairwise(counts))
    grow = sum(0 < a[0] == b[0] and a[1] < b[1] for a, b in pairs)
    return grow > len(pairs) / 2


def number_of(value: Any) -> float:
    """A value as a number, 0 for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def join_chunks(rows: Any) -> Any:
    """One row for the chunks of an answer: the last of its largest counts, and its first arrival."""
    import polars as pl

    names = rows.collect_schema().names()
    counts = pl.col("^.*_tokens$").sort_by("output_tokens", nulls_last=False, maintain_order=True).last()
    others = [name for name in names if name not in ("chunk", ARRIVAL_S) and not name.endswith("_tokens")]
    columns = [counts, pl.col(others).first(), (pl.len() - 1).alias("chunks")]
    columns += [pl.col(ARRIVAL_S).min()] if ARRIVAL_S in names else []
    # A row without an id stands alone.
    key = pl.coalesce("chunk", pl.format("\0{}", pl.col("place")))
    return rows.with_row_index("place").group_by(key.alias("key"), maintain_order=True).agg(*columns).drop("key")


def spread_sums(rows: Any, layout: Layout) -> Any:
    """The requests that rows sum up: of equal lengths to one token, at equal steps from a row's time to its end."""
    import polars as pl

    names = [name for name in rows.collect_schema() if name.endswith("_tokens") and name != "uncached_tokens"]
    share = pl.col("part"), pl.col("count")
    # Of a count that cannot be read, the tokens are not known either.
    parts = rows.filter((pl.col("count") != 0).fill_null(True)).with_columns(is_unknown=is_no_count())
    parts = parts.with_columns(count=pl.when(~pl.col("is_unknown")).then("count").otherwise(1))
    parts = parts.with_columns(part=pl.int_ranges(0, "count")).explode("part")
    whole = [pl.col(name) // share[1] + (share[0] < pl.col(name) % share[1]) for name in names]
    parts = parts.with_columns(pl.when(~pl.col("is_unknown")).then(tokens) for tokens in whole)
    uncached = pl.col("input_tokens") - (pl.col("cached_tokens").fill_null(0) if "cached_tokens" in names else 0)
    parts = parts.with_columns(uncached_tokens=uncached)
    if layout.end:
        step = (pl.col("end_s") - pl.col("arrival_s")) / share[1]
        parts = parts.with_columns(arrival_s=pl.col("arrival_s") + step * (share[0] + 0.5)).drop("end_s")
    return parts.drop("part", "count", "is_unknown")


def is_no_count() -> Any:
    """Whether how many requests a row sums up cannot be read."""
    import polars as pl

    return pl.col("count").is_between(0, MOST_REQUESTS).not_().fill_null(True)


def numbers_of(x: Any, column: Any) -> Any:
    """Whole numbers in lists such as ``[1, 2]``, as text; null for no list, and in place of what is no number."""
    is_list = column.str.contains(r"^\s*\[.*\]\s*$")
    texts = column.str.replace_all(r"[\[\]\s]", "").str.split(",")
    # An empty list splits into one empty text.
    return x.when(is_list).then(x.when(column.str.contains(r"\w")).then(texts.cast(x.List(x.Int64), strict=False)))
