"""Bins: total, disjoint, ceiling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.errors import UsageError
from infergy.workload import Bins

LENGTHS = st.integers(1, 200_000)


@given(LENGTHS, LENGTHS)
def test_powers_of_two_leave_nobody_out_and_each_request_lies_in_one_bin(length: int, output: int) -> None:
    bins = Bins.powers_of_two(length, output)
    found = bins.find(length, output)
    assert found is not None
    assert found.input_floor < length <= found.input_tokens
    assert found.output_floor < output <= found.output_tokens
    inside = [
        (i, o)
        for i in range(len(bins.input_edges))
        for o in range(len(bins.output_edges))
        if (b := bins.at(i, o)).input_floor < length <= b.input_tokens and b.output_floor < output <= b.output_tokens
    ]
    assert len(inside) == 1


def test_the_papers_bins_are_its_list() -> None:
    bins = Bins.paper()
    assert bins.input_edges == (32, 128, 256, 512, 1024, 2048, 4096, 8192)
    assert bins.output_edges == (8, 16, 32, 64, 128, 256, 512)
    assert bins.find(8193, 1) is None
    assert bins.find(33, 9) == bins.at(1, 1)


@pytest.mark.parametrize("edges", [(), (0, 2), (4, 4), (8, 2)])
def test_edges_that_are_no_partition_are_refused(edges: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="positive and ascending"):
        Bins(name="custom", input_edges=edges, output_edges=(1,))
