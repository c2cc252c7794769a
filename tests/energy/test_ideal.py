"""References: more work never costs less, and disjoint work adds up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.energy import flops_ideal, roofline_ideal
from infergy.hardware import get_gpu, get_model
from infergy.workload import Bin, BinCount, Bins, Histogram

SHAPE, GPU = get_model("llama-3.1-8b"), get_gpu("h200")


def one_bin(input_tokens: int, output_tokens: int, requests: int) -> Histogram:
    place = Bin(input_tokens=input_tokens, output_tokens=output_tokens, input_floor=0, output_floor=0)
    count = BinCount(bin=place, requests=requests, input_tokens=requests, output_tokens=requests)
    return Histogram(source="t", bins=Bins.paper(), counts=(count,))


LENGTH = st.integers(1, 8192)


@given(LENGTH, LENGTH, st.integers(1, 50), st.integers(0, 100), st.integers(0, 100))
def test_more_tokens_never_cost_less(i: int, o: int, n: int, more_input: int, more_output: int) -> None:
    less, more = one_bin(i, o, n), one_bin(i + more_input, o + more_output, n)
    assert flops_ideal(less, SHAPE, GPU).energy_j <= flops_ideal(more, SHAPE, GPU).energy_j
    roofline = [roofline_ideal(h, SHAPE, GPU, lambda place: 8).energy_j for h in (less, more)]
    assert roofline[0] <= roofline[1]


@given(LENGTH, LENGTH, st.integers(1, 50), st.integers(1, 50))
def test_disjoint_requests_add_up(i: int, o: int, n: int, m: int) -> None:
    parts = flops_ideal(one_bin(i, o, n), SHAPE, GPU).energy_j + flops_ideal(one_bin(i, o, m), SHAPE, GPU).energy_j
    assert flops_ideal(one_bin(i, o, n + m), SHAPE, GPU).energy_j == pytest.approx(parts)


def test_the_headline_peak_halves_the_ideal() -> None:
    work = one_bin(512, 64, 10)
    dense, headline = flops_ideal(work, SHAPE, GPU), flops_ideal(work, SHAPE, GPU, headline=True)
    assert headline.energy_j == pytest.approx(dense.energy_j / 2)
    assert "headline (sparse)" in headline.basis
