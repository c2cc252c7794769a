"""From rows to a histogram in one pass: each request becomes a small integer, and requests are summed by it.

                 ruler of the inputs     ruler of the outputs
    request  ──▶  code  ─────────────┐    code ─────────────┐
                                     └──▶  code × width + code  ──▶ group by ──▶ fold onto the edges

Rulers are finer than the bins, or as fine, so the longest request need not be known before the pass. A request that
cannot be meant gets a code of its own: validation costs no second pass. Memory is bounded by codes, not by rows.
"""

from __future__ import annotations

import functools
import operator
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from infergy.workload.bins import (
    FIRST_INPUT_EDGE,
    FIRST_OUTPUT_EDGE,
    Bin,
    BinCount,
    Bins,
    Histogram,
)
from infergy.workload.table import LONGEST_TOKENS, Table

_BAD = -1
_BITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Requests of one code: between two marks of the ruler on each axis.

    Attributes:
        input_mark: The smallest mark not below any input of the group; 0 for inputs of 0.
        output_mark: The same for outputs; 0 for requests without output.
        longest_input: Of the group; None if it was not asked for.
        longest_output: The same for outputs.
    """

    input_mark: int
    output_mark: int
    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    longest_input: int | None
    longest_output: int | None


class Doubling:
    """A ruler whose marks are 0 and all powers of two, by counting leading zeros. For polars alone."""

    width = _BITS + 1

    def code(self, column: Any, x: Any) -> Any:
        """1 to 64 for lengths of at least 1; 0 for 0, for then value − 1 has no leading zero."""
        return (column - 1).bitwise_leading_zeros().cast(x.Int32)

    def mark(self, code: int) -> int:
        """The mark of a code."""
        return 2 ** (_BITS - code) if code else 0


class Steps:
    """A ruler of any marks, by counting those below a length. 0 is always a mark."""

    def __init__(self, edges: Iterable[int]) -> None:
        self._marks = tuple(sorted({0, *edges, LONGEST_TOKENS}))
        self.width = len(self._marks)

    def code(self, column: Any, x: Any) -> Any:
        """How many marks lie below the length: its place among them."""
        return functools.reduce(operator.add, [(column > mark).cast(x.Int32) for mark in self._marks[:-1]])

    def mark(self, code: int) -> int:
        """The mark of a code."""
        return self._marks[code]


def count_groups(table: Table, bins: Bins | None, *, lenient: bool) -> tuple[list[Group], int]:
    """Count the rows of a table by the codes of their lengths.

    Args:
        table: The rows.
        bins: Edges to fold onto later, or None for powers of two as far as the trace goes.
        lenient: See `Table.declared`.

    Returns:
        The groups, and how many rows cannot be meant.
    """
    x = table.x
    rulers = _rulers(table, bins)
    lengths = x.col("uncached_tokens"), x.col("output_tokens")
    good = lengths[0].is_between(0, LONGEST_TOKENS) & lengths[1].is_between(0, LONGEST_TOKENS)
    codes = [ruler.code(length, x) for ruler, length in zip(rulers, lengths, strict=True)]
    # pandas' nullable columns keep a null in the condition, which its `where` refuses.
    key = x.when(good.fill_null(False)).then(codes[0] * rulers[1].width + codes[1]).otherwise(x.lit(_BAD))
    sums = [x.len().alias("requests"), lengths[0].sum().alias("input"), lengths[1].sum().alias("output")]
    if table.layout.cached:
        sums.append(x.col("cached_tokens").sum().alias("cached"))
    if bins is not None:
        sums += [lengths[0].max().alias("longest_input"), lengths[1].max().alias("longest_output")]
    keyed = table.declared(lenient=lenient).with_columns(key.alias("key"))
    (rows,) = table.collect(keyed.group_by("key").agg(*sums))
    good_rows = [row for row in rows if row["key"] != _BAD]
    bad = sum(row["requests"] for row in rows if row["key"] == _BAD)
    return [_group(row, rulers) for row in good_rows], bad


def _rulers(table: Table, bins: Bins | None) -> Sequence[Doubling | Steps]:
    """Leading zeros where polars counts and all edges are powers of two; else one comparison an edge."""
    axes = (
        (_powers(FIRST_INPUT_EDGE), _powers(FIRST_OUTPUT_EDGE))
        if bins is None
        else (bins.input_edges, bins.output_edges)
    )
    doubling = table.is_polars and all(edge & (edge - 1) == 0 for edges in axes for edge in edges)
    return [Doubling() if doubling else Steps(edges) for edges in axes]


def _powers(first: int) -> tuple[int, ...]:
    return tuple(2**k for k in range(first.bit_length() - 1, LONGEST_TOKENS.bit_length() - 1))


def _group(row: dict[str, Any], rulers: Sequence[Doubling | Steps]) -> Group:
    codes = divmod(int(row["key"]), rulers[1].width)
    marks = [ruler.mark(code) for ruler, code in zip(rulers, codes, strict=True)]
    longest = [None if row.get(name) is None else int(row[name]) for name in ("longest_input", "longest_output")]
    return Group(
        input_mark=marks[0],
        output_mark=marks[1],
        requests=int(row["requests"]),
        input_tokens=int(row["input"]),
        output_tokens=int(row["output"]),
        cached_tokens=int(row.get("cached") or 0),
        longest_input=longest[0],
        longest_output=longest[1],
    )


def fold(groups: Iterable[Group], bins: Bins | None, source: str) -> Histogram:
    """Put groups into bins; without `bins`, into powers of two up to the longest request."""
    groups = list(groups)
    served = [group for group in groups if group.output_mark > 0]
    if bins is None:
        bins = Bins.powers_of_two(
            max((group.input_mark for group in served), default=0),
            max((group.output_mark for group in served), default=0),
        )
    inside: dict[tuple[int, int], list[Group]] = {}
    outside: list[Group] = []
    for group in served:
        place = bisect_left(bins.input_edges, group.input_mark), bisect_left(bins.output_edges, group.output_mark)
        if place[0] == len(bins.input_edges) or place[1] == len(bins.output_edges):
            outside.append(group)
        else:
            inside.setdefault(place, []).append(group)
    return Histogram(
        source=source,
        bins=bins,
        counts=tuple(_total(bins.at(*place), inside[place]) for place in sorted(inside)),
        left_out=_total(_outer_bin(outside), outside) if outside else None,
        failed_requests=sum(group.requests for group in groups if group.output_mark == 0),
        cached_input_tokens=sum(group.cached_tokens for group in served),
    )


def _total(corner: Bin, groups: Iterable[Group]) -> BinCount:
    sums = [sum(column) for column in zip(*_figures(groups), strict=True)]
    return BinCount(bin=corner, requests=sums[0], input_tokens=sums[1], output_tokens=sums[2])


def _figures(groups: Iterable[Group]) -> Iterator[tuple[int, int, int]]:
    for group in groups:
        yield group.requests, group.input_tokens, group.output_tokens


def _outer_bin(groups: Sequence[Group]) -> Bin:
    return Bin(
        input_tokens=max(group.longest_input or 0 for group in groups),
        output_tokens=max(group.longest_output or 0 for group in groups),
        input_floor=0,
        output_floor=0,
    )
