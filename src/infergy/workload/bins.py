"""Bins of requests by length, and the histogram of a trace over them, counted in one pass.

Each request becomes a small integer, and requests are summed by it: on each axis the code is the number of marks below
its length, and marks are as fine as the edges or finer, so that the longest request need not be known before the pass.
Rows whose tokens cannot be read get a code of their own: validation costs no second pass. Memory is bounded by codes,
not by rows.
"""

from __future__ import annotations

import functools
import operator
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from infergy.errors import UsageError

if TYPE_CHECKING:
    from infergy.workload.table import Table

PAPER = "paper"
POWERS_OF_TWO = "powers-of-two"
BIN_NAMES = (POWERS_OF_TWO, PAPER)

PAPER_INPUT_EDGES = (32, 128, 256, 512, 1024, 2048, 4096, 8192)
PAPER_OUTPUT_EDGES = (8, 16, 32, 64, 128, 256, 512)
FIRST_INPUT_EDGE = 32
FIRST_OUTPUT_EDGE = 8

LONGEST_TOKENS = 2**32 - 1
"""A request of more tokens is a broken log; 32 bits hold it, and 64-bit sums are exact for 2^31 of the longest."""

HISTOGRAM_SCHEMA = "infergy.histogram/1"
HISTOGRAM_SUMS = ("requests", "input_tokens", "output_tokens", "binned_input_tokens", "binned_output_tokens")
"""Of all bins together; printed beside the record, for readers without this code."""

_UNREADABLE = -1
_BITS = 64


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Bin:
    """All requests with ``input_floor < input <= input_tokens`` and ``output_floor < output <= output_tokens``.

    The upper corner (`input_tokens`, `output_tokens`) stands for the bin: the ceiling mapping of the study
    (arXiv 2504.17674, section 2). The floors are the previous edges, 0 for the first bin of an axis.
    """

    input_tokens: int
    output_tokens: int
    input_floor: int
    output_floor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """A grid of bins: the ascending upper edges of both axes, in tokens.

    Attributes:
        name: ``paper``, ``powers-of-two`` or ``custom``.
    """

    name: str
    input_edges: tuple[int, ...]
    output_edges: tuple[int, ...]

    def __post_init__(self) -> None:
        for axis, edges in (("input", self.input_edges), ("output", self.output_edges)):
            ascends = edges and all(a < b for a, b in zip((0, *edges), edges, strict=False))
            if not ascends or edges[-1] > LONGEST_TOKENS + 1:
                raise UsageError.bad_value(f"{axis} bin edges", list(edges), "positive, ascending numbers of tokens")

    @classmethod
    def paper(cls) -> Bins:
        """The bins of arXiv 2504.17674, section 2: requests past the last edge are left out."""
        return cls(name=PAPER, input_edges=PAPER_INPUT_EDGES, output_edges=PAPER_OUTPUT_EDGES)

    @classmethod
    def powers_of_two(cls, longest_input: int, longest_output: int) -> Bins:
        """Powers of two from 32 input and 8 output tokens up to the longest request: none is left out."""
        return cls(
            name=POWERS_OF_TWO,
            input_edges=_powers(FIRST_INPUT_EDGE, longest_input),
            output_edges=_powers(FIRST_OUTPUT_EDGE, longest_output),
        )

    def find(self, input_tokens: int, output_tokens: int) -> Bin | None:
        """The bin of one request: the smallest edges not below it; None past the last edge."""
        i = bisect_left(self.input_edges, input_tokens)
        o = bisect_left(self.output_edges, output_tokens)
        if i == len(self.input_edges) or o == len(self.output_edges):
            return None
        return self.at(i, o)

    def at(self, i: int, o: int) -> Bin:
        """The bin by its index on both axes."""
        floors = {"input_floor": (0, *self.input_edges)[i], "output_floor": (0, *self.output_edges)[o]}
        return Bin(input_tokens=self.input_edges[i], output_tokens=self.output_edges[o], **floors)


@dataclass(frozen=True, slots=True, kw_only=True)
class BinCount:
    """How many requests of a trace fall into a bin, and their real (not binned) tokens.

    Attributes:
        input_tokens: Sum of the input tokens that cost prefill (cached ones taken off).
    """

    bin: Bin
    requests: int
    input_tokens: int
    output_tokens: int

    def contradictions(self) -> Iterator[tuple[str, int, str]]:
        """Counts that cannot be: field, value, and what is expected."""
        if self.requests < 1:
            yield "requests", self.requests, "at least 1"
        for axis, floor in (("input_tokens", self.bin.input_floor), ("output_tokens", self.bin.output_floor)):
            # Of an input all tokens may have been cached, of an output there is one.
            shortest = floor + 1 if floor or axis == "output_tokens" else 0
            least, most = self.requests * shortest, self.requests * getattr(self.bin, axis)
            if not least <= getattr(self, axis) <= most:
                yield axis, getattr(self, axis), f"{least:,} to {most:,}, by its bin and requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisCount:
    """The requests of a histogram between two edges of one axis: real against binned (Figure 7 of the study)."""

    edge: int
    floor: int
    requests: int
    tokens: int

    @property
    def binned_tokens(self) -> int:
        """Tokens if each had the length of the edge."""
        return self.requests * self.edge

    @property
    def mean_tokens(self) -> float | None:
        """Real mean length; None where no request lies."""
        return self.tokens / self.requests if self.requests else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """A trace as counts over bins: all that an estimate needs of it.

    Attributes:
        counts: The bins of at least one request, ascending.
        left_out: What lies past the last edge, as one count; its bin has the longest lengths seen as edges.
        failed_requests: Requests set aside because they have no output tokens.
        unreadable_rows: Rows set aside because their tokens cannot be read, and lines that are no rows.
        cached_input_tokens: Input tokens served from a prefix cache and so not in `input_tokens`.
        lengths_from: Where the lengths of a task come from, in words; None for a trace, whose lengths are its own.
    """

    source: str
    bins: Bins
    counts: tuple[BinCount, ...]
    left_out: BinCount | None = None
    failed_requests: int = 0
    unreadable_rows: int = 0
    cached_input_tokens: int = 0
    lengths_from: str | None = None
    schema: str = HISTOGRAM_SCHEMA

    @property
    def requests(self) -> int:
        """Requests in bins."""
        return sum(count.requests for count in self.counts)

    @property
    def input_tokens(self) -> int:
        """Real input tokens of the requests in bins that cost prefill."""
        return sum(count.input_tokens for count in self.counts)

    @property
    def output_tokens(self) -> int:
        """Real output tokens of the requests in bins."""
        return sum(count.output_tokens for count in self.counts)

    @property
    def binned_input_tokens(self) -> int:
        """Input tokens if each request had the length of its bin's upper edge: what the ceiling mapping charges."""
        return sum(count.requests * count.bin.input_tokens for count in self.counts)

    @property
    def binned_output_tokens(self) -> int:
        """Output tokens if each request had the length of its bin's upper edge."""
        return sum(count.requests * count.bin.output_tokens for count in self.counts)

    def contradictions(self, sums: Mapping[str, Any]) -> Iterator[tuple[str, object, str]]:
        """What a histogram that was edited may hold: key, value, and what is expected.

        Args:
            sums: Values printed beside it, by the names of `HISTOGRAM_SUMS`.
        """
        named = {f"counts[{index}]": count for index, count in enumerate(self.counts)}
        for key, count in named.items():
            if self.bins.find(count.bin.input_tokens, count.bin.output_tokens) != count.bin:
                yield f"{key}.bin", asdict(count.bin), "a bin between edges of `bins`"
        for key, count in (named if self.left_out is None else named | {"left_out": self.left_out}).items():
            yield from ((f"{key}.{name}", value, expected) for name, value, expected in count.contradictions())
        for name, value in sums.items():
            if value != getattr(self, name):
                yield name, value, f"{getattr(self, name):,}, the sum over its bins"

    def along_input(self) -> tuple[AxisCount, ...]:
        """The requests in bins by input edge, one item for each edge of the grid, ascending."""
        return _along(self.bins.input_edges, [(c.bin.input_tokens, c.requests, c.input_tokens) for c in self.counts])

    def along_output(self) -> tuple[AxisCount, ...]:
        """The requests in bins by output edge, one item for each edge of the grid, ascending."""
        return _along(self.bins.output_edges, [(c.bin.output_tokens, c.requests, c.output_tokens) for c in self.counts])


def _along(edges: Sequence[int], items: Iterable[tuple[int, int, int]]) -> tuple[AxisCount, ...]:
    sums = {edge: [0, 0] for edge in edges}
    for edge, requests, tokens in items:
        sums[edge][0] += requests
        sums[edge][1] += tokens
    return tuple(
        AxisCount(edge=edge, floor=floor, requests=sums[edge][0], tokens=sums[edge][1])
        for floor, edge in zip((0, *edges), edges, strict=False)
    )


def _powers(first: int, longest: int) -> tuple[int, ...]:
    """Powers of two from `first` up to the first that is not below `longest`."""
    last = max(first, longest) - 1
    return tuple(2**exponent for exponent in range(first.bit_length() - 1, last.bit_length() + 1))


def edges_of(text: str) -> Sequence[int]:
    """Read edges from the command line: ``"32,128,512"``."""
    try:
        return [int(part) for part in text.replace(" ", "").split(",") if part]
    except ValueError as error:
        raise UsageError.bad_value("bin edges", text, "whole numbers with commas between, as 32,128,512") from error


def count_bins(table: Table, bins: Bins | None, *, lenient: bool) -> tuple[Histogram | None, int, int]:
    """Count the rows of a table over bins, by output and uncached input.

    Args:
        table: The rows.
        bins: The grid; None takes powers of two up to the longest request.
        lenient: See `Table.declared`.

    Returns:
        The histogram, or None if no request has output; the requests without output; the rows that cannot be read.
    """
    x = table.x
    lengths = x.col("uncached_tokens"), x.col("output_tokens")
    marks, codes = _codes(table, bins, lengths)
    # pandas' nullable columns keep a null in the condition, which its `where` rejects.
    key = x.when(table.good.fill_null(False)).then(codes[0] * len(marks[1]) + codes[1]).otherwise(x.lit(_UNREADABLE))
    sums = [x.len().alias("requests"), lengths[0].sum().alias("input"), lengths[1].sum().alias("output")]
    if table.layout.cached:
        sums.append(x.col("cached_tokens").sum().alias("cached"))
    if bins is not None:
        sums += [lengths[0].max().alias("longest_input"), lengths[1].max().alias("longest_output")]
    keyed = table.rows(lenient=lenient).with_columns(key.alias("key"))
    groups: dict[tuple[int, int], dict[str, Any]] = {}
    failed = bad = 0
    for row in table.collect(keyed.group_by("key").agg(*sums))[0]:
        input_code, output_code = divmod(int(row["key"]), len(marks[1]))
        if row["key"] == _UNREADABLE:
            bad = int(row["requests"])
        elif not output_code:
            failed += int(row["requests"])
        else:
            groups[marks[0][input_code], marks[1][output_code]] = row
    if not groups:
        return None, failed, bad
    return replace(fold_groups(groups, bins, table.source.name, failed), unreadable_rows=table.unreadable), failed, bad


def _codes(table: Table, bins: Bins | None, lengths: Iterable[Any]) -> tuple[tuple[tuple[int, ...], ...], list[Any]]:
    """For both axes the marks by code, each not below the lengths of its code, and the expression of the code."""
    x = table.x
    firsts = FIRST_INPUT_EDGE, FIRST_OUTPUT_EDGE
    axes = (bins.input_edges, bins.output_edges) if bins else tuple(_powers(first, LONGEST_TOKENS) for first in firsts)
    # Leading zeros of length - 1 give the power of two without a comparison per edge: none for 0, 64 for 1.
    doubling = table.is_polars and all(edge & (edge - 1) == 0 for edges in axes for edge in edges)
    if doubling:
        powers = (0, *(2 ** (_BITS - code) for code in range(1, _BITS + 1)))
        return (powers, powers), [(length - 1).bitwise_leading_zeros().cast(x.Int32) for length in lengths]
    marks = tuple(tuple(sorted({0, *edges, LONGEST_TOKENS})) for edges in axes)
    codes = [
        functools.reduce(operator.add, [(length > mark).cast(x.Int32) for mark in below[:-1]])
        for length, below in zip(lengths, marks, strict=True)
    ]
    return marks, codes


def fold_groups(
    groups: Mapping[tuple[int, int], Mapping[str, Any]], bins: Bins | None, source: str, failed: int
) -> Histogram:
    """Put groups, by the marks not below their lengths, into bins.

    Each has the sums `requests`, `input` and `output`, `cached` if known, and where `bins` end `longest_input` and
    `longest_output`.
    """
    bins = bins or Bins.powers_of_two(*(max(marks) for marks in zip(*groups, strict=True)))
    inside: dict[Bin, list[Mapping[str, Any]]] = {}
    outside: list[Mapping[str, Any]] = []
    for marks in sorted(groups):
        bin_ = bins.find(*marks)
        (outside if bin_ is None else inside.setdefault(bin_, [])).append(groups[marks])
    left_out = None
    if outside:
        longest = {axis: max(int(group[f"longest_{axis}"]) for group in outside) for axis in ("input", "output")}
        corner = Bin(input_tokens=longest["input"], output_tokens=longest["output"], input_floor=0, output_floor=0)
        left_out = _total(corner, outside)
    return Histogram(
        source=source,
        bins=bins,
        counts=tuple(_total(bin_, inside[bin_]) for bin_ in sorted(inside)),
        left_out=left_out,
        failed_requests=failed,
        cached_input_tokens=sum(int(group.get("cached") or 0) for group in groups.values()),
    )


def _total(corner: Bin, groups: Sequence[Mapping[str, Any]]) -> BinCount:
    sums = [sum(int(group[name]) for group in groups) for name in ("requests", "input", "output")]
    return BinCount(bin=corner, requests=sums[0], input_tokens=sums[1], output_tokens=sums[2])
