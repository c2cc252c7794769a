"""Bins partition the lengths; marginals and binned totals follow from the counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.workload import Bin, BinCount, Bins, Histogram
from infergy.workload.bins import edges_of
from raising import raises

edges = st.lists(st.integers(1, 10_000), min_size=1, max_size=8, unique=True).map(lambda values: tuple(sorted(values)))
lengths = st.integers(0, 12_000)


@given(edges, edges, lengths, lengths)
def test_a_request_has_the_smallest_bin_not_below_it_or_none(
    input_edges: tuple[int, ...], output_edges: tuple[int, ...], given_tokens: int, output_tokens: int
) -> None:
    bins = Bins(name="custom", input_edges=input_edges, output_edges=output_edges)
    found = bins.find(given_tokens, output_tokens)
    if found is None:
        assert given_tokens > input_edges[-1] or output_tokens > output_edges[-1]
        return
    assert found.input_tokens == min(edge for edge in input_edges if edge >= given_tokens)
    assert found.output_tokens == min(edge for edge in output_edges if edge >= output_tokens)
    assert found.input_floor < given_tokens or given_tokens == found.input_floor == 0
    assert found.output_floor < output_tokens or output_tokens == found.output_floor == 0


@given(edges, edges, st.integers(1, 12_000), st.integers(1, 12_000))
def test_bins_are_disjoint_and_cover_all_up_to_the_last_edges(
    input_edges: tuple[int, ...], output_edges: tuple[int, ...], given_tokens: int, output_tokens: int
) -> None:
    bins = Bins(name="custom", input_edges=input_edges, output_edges=output_edges)
    holding = [
        one
        for one in (bins.at(i, o) for i in range(len(input_edges)) for o in range(len(output_edges)))
        if one.input_floor < given_tokens <= one.input_tokens and one.output_floor < output_tokens <= one.output_tokens
    ]
    expected = bins.find(given_tokens, output_tokens)
    assert holding == ([] if expected is None else [expected])


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_powers_of_two_leave_nobody_out_and_have_no_edge_to_spare(longest_input: int, longest_output: int) -> None:
    bins = Bins.powers_of_two(longest_input, longest_output)
    assert bins.find(longest_input, longest_output) is not None
    for bin_edges, longest in ((bins.input_edges, longest_input), (bins.output_edges, longest_output)):
        assert len(bin_edges) == 1 or bin_edges[-2] < longest
        assert all(edge & (edge - 1) == 0 for edge in bin_edges)


def test_the_papers_bins_have_no_64_and_end_at_8192_and_512() -> None:
    bins = Bins.paper()
    assert bins.find(33, 8) == Bin(input_tokens=128, output_tokens=8, input_floor=32, output_floor=0)
    assert bins.find(8192, 512) is not None
    assert bins.find(8193, 8) is None
    assert bins.find(8, 513) is None


@pytest.mark.parametrize("bad", [(), (0, 8), (8, 8), (16, 8), (-1,)])
def test_edges_that_do_not_ascend_from_above_zero_are_refused(bad: tuple[int, ...]) -> None:
    with raises("bad-value", option="input bin edges", value=bad):
        Bins(name="custom", input_edges=bad, output_edges=(8,))
    with raises("bad-value", option="output bin edges", value=bad):
        Bins(name="custom", input_edges=(8,), output_edges=bad)


def test_edges_are_read_from_the_command_line() -> None:
    assert list(edges_of("32, 128,512,")) == [32, 128, 512]
    with raises("bad-value", option="bin edges", value="32;128"):
        edges_of("32;128")


def small_histogram() -> Histogram:
    bins = Bins(name="custom", input_edges=(32, 64, 128), output_edges=(8, 16))
    return Histogram(
        source="a trace",
        bins=bins,
        counts=(
            BinCount(bin=bins.at(0, 0), requests=3, input_tokens=60, output_tokens=20),
            BinCount(bin=bins.at(0, 1), requests=1, input_tokens=32, output_tokens=9),
            BinCount(bin=bins.at(2, 1), requests=2, input_tokens=200, output_tokens=30),
        ),
    )


def test_marginals_name_every_edge_and_add_up_to_the_histogram() -> None:
    histogram = small_histogram()
    along_input, along_output = histogram.along_input(), histogram.along_output()
    assert [(one.floor, one.edge, one.requests, one.tokens) for one in along_input] == [
        (0, 32, 4, 92),
        (32, 64, 0, 0),
        (64, 128, 2, 200),
    ]
    assert [(one.edge, one.requests, one.tokens) for one in along_output] == [(8, 3, 20), (16, 3, 39)]
    assert sum(one.binned_tokens for one in along_input) == histogram.binned_input_tokens == 4 * 32 + 2 * 128
    assert sum(one.binned_tokens for one in along_output) == histogram.binned_output_tokens == 3 * 8 + 3 * 16


def test_the_mean_length_of_an_empty_edge_is_unknown() -> None:
    first, empty, _ = small_histogram().along_input()
    assert first.mean_tokens == 23
    assert empty.mean_tokens is None
