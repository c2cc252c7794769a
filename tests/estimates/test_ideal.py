"""The references for the energy of a workload: their formulas and their laws."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.catalog import get_gpu, get_model
from infergy.estimates.paper_bins import Ideal, flops_ideal, roofline_ideal
from infergy.workload.bins import Bin, BinCount, Bins, Histogram
from raising import raises

LLAMA, H200 = get_model("llama-3.1-8b"), get_gpu("h200")
INPUTS = (32, 128, 512, 2048)
OUTPUTS = (8, 64, 512)
GRID = Bins(name="custom", input_edges=INPUTS, output_edges=OUTPUTS)
PLACES = [(i, o) for i in range(len(INPUTS)) for o in range(len(OUTPUTS))]
COUNTS = st.dictionaries(st.sampled_from(PLACES), st.integers(1, 10_000))


def histogram(requests: dict[tuple[int, int], int]) -> Histogram:
    counts = []
    for (i, o), number in sorted(requests.items()):
        corner = GRID.at(i, o)
        tokens = {"input_tokens": number * corner.input_tokens, "output_tokens": number * corner.output_tokens}
        counts.append(BinCount(bin=corner, requests=number, **tokens))
    return Histogram(source="test", bins=GRID, counts=tuple(counts))


def always(batch: int) -> Callable[[Bin], int]:
    return lambda _: batch


def ideals(requests: dict[tuple[int, int], int]) -> list[Ideal]:
    work = histogram(requests)
    return [
        flops_ideal(work, LLAMA, H200),
        flops_ideal(work, LLAMA, H200, headline=True),
        roofline_ideal(work, LLAMA, H200, always(8)),
    ]


def test_the_flops_ideal_is_the_studys_formula() -> None:
    found = flops_ideal(histogram({(2, 1): 10, (0, 0): 5}), LLAMA, get_gpu("rtx-a6000"), headline=True)
    flops = 10 * LLAMA.request_flops(512, 64, causal=False) + 5 * LLAMA.request_flops(32, 8, causal=False)
    assert found.energy_j == pytest.approx(300 / 309.7e12 * flops)
    assert found.duration_s == pytest.approx(flops / 309.7e12)
    assert "sparsity" in found.basis


def test_the_dense_peak_is_the_default_and_counts_no_masked_attention() -> None:
    dense, headline, _ = ideals({(1, 1): 3})
    corner = GRID.at(1, 1)
    lengths = corner.input_tokens, corner.output_tokens
    masked = LLAMA.request_flops(*lengths, causal=False) / LLAMA.request_flops(*lengths)
    assert dense.energy_j == pytest.approx(2 * headline.energy_j / masked)
    assert "dense bfloat16" in dense.basis


def test_a_gpu_whose_headline_is_dense_has_no_paper_ideal() -> None:
    with raises("not-supported", gpu="a100-80gb-sxm", option="--ideal"):
        flops_ideal(histogram({(0, 0): 1}), LLAMA, get_gpu("a100-80gb-sxm"), headline=True)


def test_no_work_costs_nothing_and_every_basis_says_it_is_no_floor() -> None:
    for ideal in ideals({}):
        assert ideal.energy_j == ideal.duration_s == 0
        assert "not a floor" in ideal.basis


def test_decode_by_hand_is_bound_by_memory() -> None:
    found = roofline_ideal(histogram({(2, 1): 1}), LLAMA, H200, always(1))
    prefill_s = LLAMA.prefill_flops(512) / 989.5e12
    decode_s = LLAMA.output_bytes(512, 64, 1) / 4.8e12
    assert found.duration_s == pytest.approx(prefill_s + decode_s)
    assert found.energy_j == pytest.approx(700 * found.duration_s)


def test_a_greater_batch_reads_the_weights_less_often() -> None:
    work = histogram({(1, 2): 64})
    energies = [roofline_ideal(work, LLAMA, H200, always(size)).energy_j for size in (1, 8, 64)]
    assert energies == sorted(energies, reverse=True)
    assert energies[0] > 7 * energies[1]


def test_a_batch_of_none_is_refused() -> None:
    with raises("does-not-fit", batch=0, lengths=[32, 8]):
        roofline_ideal(histogram({(0, 0): 1}), LLAMA, H200, always(0))


@given(one=COUNTS, other=COUNTS)
def test_two_disjoint_workloads_add_up(one: dict[tuple[int, int], int], other: dict[tuple[int, int], int]) -> None:
    both = {place: one.get(place, 0) + other.get(place, 0) for place in {*one, *other}}
    for first, second, whole in zip(ideals(one), ideals(other), ideals(both), strict=True):
        assert whole.energy_j == pytest.approx(first.energy_j + second.energy_j, rel=1e-9)
        assert whole.duration_s == pytest.approx(first.duration_s + second.duration_s, rel=1e-9)


@given(requests=COUNTS, place=st.sampled_from(PLACES), axis=st.sampled_from([0, 1]))
def test_more_tokens_never_cost_less(requests: dict[tuple[int, int], int], place: tuple[int, int], axis: int) -> None:
    longer = (min(place[0] + (axis == 0), 3), min(place[1] + (axis == 1), 2))
    base = requests | {place: 100 + requests.get(place, 0)}
    moved = requests | {longer: 100 + requests.get(longer, 0)}
    for less, more in zip(ideals(base), ideals(moved), strict=True):
        assert more.energy_j >= less.energy_j * (1 - 1e-12)


@given(requests=COUNTS)
def test_the_roofline_is_never_below_the_same_flops_at_the_dense_peak(requests: dict[tuple[int, int], int]) -> None:
    dense, _, roofline = ideals(requests)
    assert roofline.energy_j >= dense.energy_j * (1 - 1e-12)
