"""Counts of tokens as expressions: sums of columns, chosen row by row; rows that are chunks of answers, or sums.

The same expressions serve polars and narwhals, but for chunks and sums, which polars alone joins and spreads.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infergy.workload.formats import NAMED, Layout, Usage

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
        given = self._of_usage(self.input)
        made = {"input_tokens": given, "output_tokens": self._of_usage(self.output), **self._cached(given)}
        if (is_none := self._no_request()) is not None:
            made = {name: x.when(is_none).then(x.lit(0)).otherwise(tokens) for name, tokens in made.items()}
        return [tokens.alias(name) for name, tokens in made.items()]

    def of_several(self, *, raw: bool) -> list[Any]:
        """What rows have that are chunks of an answer, or sums: the id, or how many requests."""
        layout, made = self.layout, []
        if layout.chunk is not None and not raw:
            made.append(self.column(layout.chunk).cast(self.x.String).alias("chunk"))
        if layout.sums is not None:
            made += [self.column(layout.sums.count).alias("raw_requests")] if raw else []
            made.append(self.whole(layout.sums.count).alias("count"))
        return made

    def originals(self) -> list[Any]:
        """The original values of counts, a sum's as text."""
        x = self.x

        def raw(parts: Sequence[str]) -> Any:
            columns = [self.column(path) for path in parts]
            if len(columns) == 1:
                return columns[0]
            return x.concat_str([column.cast(x.String) for column in columns], separator=" + ", ignore_nulls=True)

        made = [
            self._of_usage(lambda one: raw(one.input)).alias("raw_input"),
            self._of_usage(lambda one: raw(one.output)).alias("raw_output"),
        ]
        if self.layout.cached:
            null = x.lit(None).cast(x.String)
            made.append(self._of_usage(lambda one: self._first(one, raw, null)).alias("raw_cached"))
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

    def _is_null(self, parts: Sequence[str]) -> Any:
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

    def input(self, one: Usage) -> Any:
        """The whole prompt."""
        return self.sum(one.input, one.split)

    def output(self, one: Usage) -> Any:
        """What is generated; with what a total has beyond input and output, unless it is what was cached."""
        output = self.sum(one.output)
        if one.total is None or not one.is_output:
            return output
        beside = self.whole(one.total) - self.input(one) - output
        is_output = beside > 0
        if one.cached:
            is_output &= beside != self.cached(one).fill_null(0)
        return self.x.when(is_output.fill_null(False)).then(output + beside).otherwise(output)

    def sum(self, parts: Iterable[str], split: Sequence[str] = ()) -> Any:
        """The whole number that columns add up to: a part that is missing counts 0, if not all are."""
        x, terms, nulls = self.x, [], []
        for path in parts:
            term, is_null = self.whole(path), self._is_null([path])
            if path in split[:1]:
                is_null &= self._is_null(split[1:])
                term = x.max_horizontal(term, self.sum(split[1:]))
            terms.append(term)
            nulls.append(is_null)
        if len(terms) == 1:
            return terms[0]
        terms = [x.when(is_null).then(x.lit(0)).otherwise(term) for term, is_null in zip(terms, nulls, strict=True)]
        return x.when(~functools.reduce(operator.and_, nulls)).then(functools.reduce(operator.add, terms))

    def _cached(self, given: Any) -> dict[str, Any]:
        """Cached tokens, and the input less them."""
        x = self.x
        if not self.layout.cached:
            return {"uncached_tokens": given}
        cached = self._of_usage(self.cached)
        is_null = self._of_usage(lambda one: self._is_null(tuple(path for parts in one.cached for path in parts)))
        unread = ~is_null & (cached.is_null() | (cached < 0))
        uncached = x.when(~unread).then(given - cached.fill_null(0))
        return {"cached_tokens": cached, "uncached_tokens": uncached}

    def cached(self, one: Usage) -> Any:
        """The first sum of cached tokens that a row has."""
        return self._first(one, self.sum, self.x.lit(None).cast(self.x.Int64))

    def _first(self, one: Usage, make: Callable[[Sequence[str]], Any], null: Any) -> Any:
        made = [make(parts) for parts in one.cached] or [null]
        return made[0] if len(made) == 1 else self.x.coalesce(*made)


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
    if layout.sums is not None and layout.sums.end:
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
