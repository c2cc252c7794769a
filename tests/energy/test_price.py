"""Prices of single bins, checked by hand: what is charged, at which lengths, between which bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.energy.options import CEILING, FRACTIONAL, MEAN, METHODS, RARE_RULES, WHOLE
from infergy.energy.price import (
    NO_VALUE,
    BinEnergy,
    charged_requests,
    mean_lengths,
    price_bins,
)
from infergy.energy.surface import Surface, SurfaceError, SurfaceErrors, SurfaceValue
from infergy.energy.table import TableCell
from infergy.workload import Bin, BinCount
from known_tables import BATCH, histogram_of, power_law, rows_of, table_of

OUTPUT_ERROR, INPUT_ERROR, OCTAVE_ERROR, HALVING_ERROR = 0.1, 0.2, 0.5, 0.05
DOUBT = 0.25


def error_of(maximum: float) -> SurfaceError:
    return SurfaceError(points=1, median=maximum, maximum=maximum, worst="here", basis="test")


class Curves:
    """Values by curves alone."""

    def __init__(self, cells: Mapping[tuple[int, int], TableCell]) -> None:
        self._surface = Surface(cells)

    def prepare(self, lengths: Iterable[tuple[float, float]]) -> None:
        """Nothing needs to be."""

    def at(self, input_tokens: float, output_tokens: float) -> SurfaceValue | None:
        return self._surface.at(input_tokens, output_tokens)


ERRORS = SurfaceErrors(
    output=error_of(OUTPUT_ERROR),
    input=error_of(INPUT_ERROR),
    past=error_of(OCTAVE_ERROR),
    before=error_of(HALVING_ERROR),
)
NO_ERRORS = SurfaceErrors(output=None, input=None, past=None, before=None)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], TableCell]:
    """Inputs 32, 128, 512, 2048 × outputs 8, 64, 512 in batches of 16; joules by `power_law`, at 100 W."""
    table = table_of(tmp_path_factory.mktemp("price"), rows_of())
    found = table.find("h200", "llama-3.1-8b", "vllm").by_length()
    return {key: replace(cell, doubt=0.0) for key, cell in found.items()}


@pytest.fixture(scope="module")
def curves(cells: dict[tuple[int, int], TableCell]) -> Curves:
    return Curves(cells)


def count_of(
    corner: tuple[int, int], floor: tuple[int, int], requests: int = 1, mean: tuple[float, float] | None = None
) -> BinCount:
    """Requests of one bin; their mean lengths are its corner if not given."""
    mean_input, mean_output = mean or corner
    return BinCount(
        bin=Bin(input_tokens=corner[0], output_tokens=corner[1], input_floor=floor[0], output_floor=floor[1]),
        requests=requests,
        input_tokens=round(mean_input * requests),
        output_tokens=round(mean_output * requests),
    )


def price(
    count: BinCount,
    curves: Curves,
    errors: SurfaceErrors = ERRORS,
    *,
    method: str = CEILING,
    rare: str = FRACTIONAL,
) -> BinEnergy:
    (found,) = price_bins([count], curves, errors, method=method, rare=rare)
    return found


def test_a_measured_bin_is_priced_at_its_corner_and_bounded_by_its_floor_and_whole_batches(curves: Curves) -> None:
    found = price(count_of((512, 64), (128, 8), requests=20), curves)
    assert (found.how, found.batch, found.requests) == ("measured", BATCH, 20)
    assert (found.input_tokens, found.output_tokens) == (512, 64)
    assert found.energy_j == pytest.approx(20 * power_law(512, 64))
    assert found.duration_s == pytest.approx(20 * power_law(512, 64) / 100)
    assert found.low_j == pytest.approx(20 * power_law(128, 8))
    assert found.high_j == pytest.approx(2 * BATCH * power_law(512, 64))


def test_whole_batches_move_the_estimate_to_its_upper_bound_and_leave_the_bounds(curves: Curves) -> None:
    fractional, whole = (price(count_of((512, 64), (128, 8), 20), curves, rare=rare) for rare in (FRACTIONAL, WHOLE))
    assert whole.energy_j == whole.high_j == fractional.high_j
    assert whole.duration_s == pytest.approx((fractional.duration_s or 0) * 32 / 20)
    assert whole.low_j == fractional.low_j


def test_mean_prices_the_mean_lengths_and_keeps_the_bounds_of_the_bin(curves: Curves) -> None:
    count = count_of((512, 64), (128, 8), requests=10, mean=(300, 20))
    mean, ceiling = (price(count, curves, method=method) for method in (MEAN, CEILING))
    assert mean.energy_j == pytest.approx(10 * power_law(300, 20))
    assert (mean.low_j, mean.high_j) == (ceiling.low_j, ceiling.high_j)
    assert (mean.how, ceiling.how) == ("interpolated", "measured")


def test_the_doubt_of_the_cells_widens_both_bounds(cells: dict[tuple[int, int], TableCell]) -> None:
    doubted = Curves({key: replace(cell, doubt=DOUBT) for key, cell in cells.items()})
    found = price(count_of((512, 64), (128, 8), requests=BATCH), doubted)
    assert found.energy_j == pytest.approx(BATCH * power_law(512, 64))
    assert found.low_j == pytest.approx(BATCH * power_law(128, 8) * (1 - DOUBT))
    assert found.high_j == pytest.approx(BATCH * power_law(512, 64) * (1 + DOUBT))


def test_the_errors_of_drawing_widen_both_bounds_where_a_value_is_drawn(curves: Curves) -> None:
    found = price(count_of((1024, 128), (256, 32), requests=BATCH), curves)
    error = (1 + OUTPUT_ERROR) * (1 + INPUT_ERROR)
    assert found.how == "interpolated"
    assert found.low_j == pytest.approx(BATCH * power_law(256, 32) / error)
    assert found.high_j == pytest.approx(BATCH * power_law(1024, 128) * error)


def test_a_bound_grows_with_each_doubling_past_the_last_cell(curves: Curves) -> None:
    one, two = (price(count_of((512, 512 * 2**n), (256, 256), requests=BATCH), curves) for n in (1, 2))
    assert one.how == two.how == "extrapolated"
    assert one.energy_j is not None
    assert two.energy_j is not None
    assert one.high_j == pytest.approx(one.energy_j * (1 + OCTAVE_ERROR))
    assert two.high_j == pytest.approx(two.energy_j * (1 + OCTAVE_ERROR) ** 2)


def test_an_unknown_error_leaves_no_bound_but_an_estimate(curves: Curves) -> None:
    found = price(count_of((1024, 128), (256, 32)), curves, NO_ERRORS)
    assert found.energy_j == pytest.approx(power_law(1024, 128))
    assert found.low_j is None
    assert found.high_j is None


def test_measured_floor_and_ceiling_are_bounds_though_no_error_is_known(curves: Curves) -> None:
    found = price(count_of((512, 64), (128, 8), requests=BATCH), curves, NO_ERRORS)
    assert found.low_j == pytest.approx(BATCH * power_law(128, 8))
    assert found.high_j == pytest.approx(BATCH * power_law(512, 64))


def test_the_floor_of_a_first_bin_is_one_token(curves: Curves) -> None:
    found, floor = price(count_of((32, 8), (0, 0)), curves), curves.at(1, 1)
    assert floor is not None
    # Five halvings of input and three of output before the first cell.
    assert found.low_j == pytest.approx(floor.energy_j / (1 + HALVING_ERROR) ** 8)


def test_a_bin_without_a_value_keeps_its_requests_and_nothing_else(
    cells: dict[tuple[int, int], TableCell],
) -> None:
    found = price(count_of((2048, 512), (1024, 256), requests=3), Curves({(512, 64): cells[512, 64]}))
    assert (found.how, found.requests) == (NO_VALUE, 3)
    assert found.batch is found.energy_j is found.low_j is found.high_j is found.duration_s is None


def test_curves_that_fall_along_a_bin_still_brackets_the_estimate(
    cells: dict[tuple[int, int], TableCell],
) -> None:
    curves = Curves({(i, o): replace(cell, energy_j=1000.0 / o) for (i, o), cell in cells.items()})
    found = price(count_of((512, 64), (128, 8), requests=BATCH, mean=(512, 8)), curves, method=MEAN)
    assert found.low_j is not None
    assert found.energy_j is not None
    assert found.high_j is not None
    assert found.low_j <= found.energy_j <= found.high_j


@given(st.integers(1, 10**6), st.integers(1, 512))
def test_whole_batches_are_the_fewest_that_hold_all_requests(requests: int, batch: int) -> None:
    charged = charged_requests(requests, batch, WHOLE)
    assert charged % batch == 0
    assert requests <= charged < requests + batch
    assert charged_requests(requests, batch, FRACTIONAL) == requests


@given(st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 1024)), min_size=1, max_size=20))
def test_mean_lengths_are_the_mean_and_lie_in_the_bin(requests: list[tuple[int, int]]) -> None:
    for count in histogram_of(requests).counts:
        means = mean_lengths(count)
        assert means == pytest.approx((count.input_tokens / count.requests, count.output_tokens / count.requests))
        assert count.bin.input_floor < means[0] <= count.bin.input_tokens
        assert count.bin.output_floor < means[1] <= count.bin.output_tokens


def test_input_that_a_cache_served_wholly_counts_as_one_token() -> None:
    assert mean_lengths(count_of((32, 8), (0, 0), requests=4, mean=(0, 5))) == (1.0, 5.0)


@given(
    st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 1024)), min_size=1, max_size=20),
    st.integers(1, 50),
    st.sampled_from(METHODS),
)
def test_a_trace_asked_several_times_costs_so_many_times_as_much(
    curves: Curves, requests: list[tuple[int, int]], times: int, method: str
) -> None:
    def total(pairs: Sequence[tuple[int, int]]) -> float:
        priced = price_bins(histogram_of(pairs).counts, curves, ERRORS, method=method, rare=FRACTIONAL)
        return math.fsum(one.energy_j or math.nan for one in priced)

    assert total(requests * times) == pytest.approx(times * total(requests))


@given(
    st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 1024)), min_size=1, max_size=20),
    st.sampled_from(METHODS),
    st.sampled_from(RARE_RULES),
)
def test_each_bin_lies_between_its_bounds(
    curves: Curves, requests: list[tuple[int, int]], method: str, rare: str
) -> None:
    for one in price_bins(histogram_of(requests).counts, curves, ERRORS, method=method, rare=rare):
        assert one.low_j is not None
        assert one.energy_j is not None
        assert one.high_j is not None
        assert one.low_j <= one.energy_j <= one.high_j
