"""Bins of requests by length, and the histogram of a trace over them. Standard library only."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from infergy.errors import UsageError

PAPER = "paper"
POWERS_OF_TWO = "powers-of-two"
BIN_NAMES = (POWERS_OF_TWO, PAPER)

PAPER_INPUT_EDGES = (32, 128, 256, 512, 1024, 2048, 4096, 8192)
PAPER_OUTPUT_EDGES = (8, 16, 32, 64, 128, 256, 512)
FIRST_INPUT_EDGE = 32
FIRST_OUTPUT_EDGE = 8

HISTOGRAM_SCHEMA = "infergy.histogram/1"


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
            if not edges or any(a >= b for a, b in zip((0, *edges), edges, strict=False)):
                raise UsageError.bad_value(f"{axis} bin edges", list(edges), "positive, ascending numbers")

    @classmethod
    def paper(cls) -> Bins:
        """The bins of arXiv 2504.17674, section 2: requests past the last edge are left out."""
        return cls(name=PAPER, input_edges=PAPER_INPUT_EDGES, output_edges=PAPER_OUTPUT_EDGES)

    @classmethod
    def powers_of_two(cls, longest_input: int, longest_output: int) -> Bins:
        """Powers of two from 32 input and 8 output tokens up to the longest request: nobody is left out."""
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

    def at(self, input_index: int, output_index: int) -> Bin:
        """The bin by its place on both axes, counted from 0."""
        return Bin(
            input_tokens=self.input_edges[input_index],
            output_tokens=self.output_edges[output_index],
            input_floor=self.input_edges[input_index - 1] if input_index else 0,
            output_floor=self.output_edges[output_index - 1] if output_index else 0,
        )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisCount:
    """The requests of a histogram between two edges of one axis: real against binned (Figure 7 of the study).

    Attributes:
        edge: Upper edge, which stands for all of them.
        floor: The edge below, 0 for the first.
        tokens: Their real tokens.
    """

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
        source: Name of the trace, or its path.
        counts: The bins that hold at least one request, ascending.
        left_out: What lies past the last edge, as one count; its bin has the longest lengths seen as edges.
            None if nobody is left out.
        failed_requests: Requests set aside because they have no output tokens.
        cached_input_tokens: Input tokens served from a prefix cache and so not in `input_tokens`.
        lengths_from: Where the lengths of a task come from, in words; None for a trace, whose lengths are its own.
    """

    source: str
    bins: Bins
    counts: tuple[BinCount, ...]
    left_out: BinCount | None = None
    failed_requests: int = 0
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

    def along_input(self) -> tuple[AxisCount, ...]:
        """The requests in bins by input edge, one item for each edge of the grid, ascending."""
        return _along(self.bins.input_edges, [(c.bin.input_tokens, c.requests, c.input_tokens) for c in self.counts])

    def along_output(self) -> tuple[AxisCount, ...]:
        """The requests in bins by output edge, one item for each edge of the grid, ascending."""
        return _along(self.bins.output_edges, [(c.bin.output_tokens, c.requests, c.output_tokens) for c in self.counts])


def _along(edges: Sequence[int], items: Sequence[tuple[int, int, int]]) -> tuple[AxisCount, ...]:
    sums = {edge: [0, 0] for edge in edges}
    for edge, requests, tokens in items:
        sums[edge][0] += requests
        sums[edge][1] += tokens
    return tuple(
        AxisCount(edge=edge, floor=floor, requests=sums[edge][0], tokens=sums[edge][1])
        for floor, edge in zip((0, *edges), edges, strict=False)
    )


def _powers(first: int, longest: int) -> tuple[int, ...]:
    edges: list[int] = [first]
    while edges[-1] < longest:
        edges.append(edges[-1] * 2)
    return tuple(edges)


def edges_of(text: str) -> Sequence[int]:
    """Read edges from the command line: ``"32,128,512"``."""
    try:
        return [int(part) for part in text.replace(" ", "").split(",") if part]
    except ValueError as error:
        raise UsageError.bad_value("bin edges", text, "whole numbers with commas between, as 32,128,512") from error
