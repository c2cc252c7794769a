from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from infergy.energy.load import load_table
from infergy.energy.surface import (
    EXTRAPOLATED,
    INTERPOLATED,
    MEASURED,
    Surface,
    SurfaceError,
    borrow_errors,
    surface_errors,
)
from infergy.energy.table import TableCell
from known_tables import INPUTS, OUTPUTS, Law, linear_law, power_law

FULL = (8, 16, 32, 64, 128, 256, 512)


def cells_of(
    law: Law, inputs: Sequence[int] = INPUTS, outputs: Sequence[int] = OUTPUTS, batch: int = 16
) -> dict[tuple[int, int], TableCell]:
    return {
        (i, o): TableCell(
            input_tokens=i,
            output_tokens=o,
            batch=batch,
            energy_j=law(i, o),
            duration_s=law(i, o) / 100,
            doubt=0.0,
            spread=None,
            repetitions=1,
            cell_id=f"{i}-{o}",
            batch_choice="given",
            source="test",
            rank=0,
        )
        for i in inputs
        for o in outputs
    }


def test_a_measured_cell_is_taken_as_it_is() -> None:
    for (i, o), cell in cells_of(linear_law).items():
        value = Surface(cells_of(linear_law)).at(i, o)
        assert value is not None
        assert (value.how, value.energy_j, value.batch) == (MEASURED, cell.energy_j, 16)


@given(st.integers(min(INPUTS), max(INPUTS)), st.integers(min(OUTPUTS), max(OUTPUTS)))
def test_a_power_law_is_met_between_cells(input_tokens: int, output_tokens: int) -> None:
    value = Surface(cells_of(power_law)).at(input_tokens, output_tokens)
    assert value is not None
    assert value.energy_j == pytest.approx(power_law(input_tokens, output_tokens))
    assert value.duration_s == pytest.approx(power_law(input_tokens, output_tokens) / 100)


@pytest.mark.parametrize(
    ("at", "how", "axes"),
    [
        ((512, 64), MEASURED, set()),
        ((512, 100), INTERPOLATED, {"output"}),
        ((600, 64), INTERPOLATED, {"input"}),
        ((600, 100), INTERPOLATED, {"input", "output"}),
        ((512, 1024), EXTRAPOLATED, set()),
        ((16, 64), EXTRAPOLATED, set()),
        ((1, 1), EXTRAPOLATED, set()),
        ((16, 100), EXTRAPOLATED, {"output"}),
        ((600, 1024), EXTRAPOLATED, {"input"}),
    ],
)
def test_each_value_says_how_it_was_obtained(at: tuple[int, int], how: str, axes: set[str]) -> None:
    value = Surface(cells_of(power_law)).at(*at)
    assert value is not None
    assert value.how == how
    assert set(value.axes) == axes


def output_error(cells: dict[tuple[int, int], TableCell]) -> SurfaceError | None:
    return surface_errors(cells).output


def drawn_by_scipy(points: dict[int, float], tokens: float) -> float:
    curve = PchipInterpolator([math.log(t) for t in points], [math.log(j) for j in points.values()])
    return math.exp(curve(math.log(tokens)))


@pytest.mark.parametrize("tokens", [9, 20, 64.5, 128, 256, 500])
def test_along_output_the_curve_is_scipys_in_log_space_and_input_is_not_asked(tokens: float) -> None:
    cells = cells_of(linear_law)
    value = Surface(cells).at(512, tokens)
    assert value is not None
    assert value.energy_j == pytest.approx(drawn_by_scipy({o: cells[512, o].energy_j for o in OUTPUTS}, tokens))


@given(st.lists(st.floats(0.01, 1e6), min_size=2, max_size=6), st.floats(0.0, 1.0))
def test_the_curve_is_scipys_whatever_the_cells_say(joules: list[float], share: float) -> None:
    points = {8 * 3**i: j for i, j in enumerate(joules)}
    cells = cells_of(lambda _, o: points[o], [512], list(points))
    tokens = 8 * (max(points) / 8) ** share
    value = Surface(cells).at(512, tokens)
    assert value is not None
    assert value.energy_j == pytest.approx(drawn_by_scipy(points, min(tokens, max(points))), rel=1e-6)


@given(
    st.one_of(st.sampled_from(INPUTS), st.integers(1, min(INPUTS)), st.integers(max(INPUTS), 200_000)),
    st.one_of(st.sampled_from(OUTPUTS), st.integers(1, min(OUTPUTS)), st.integers(max(OUTPUTS), 20_000)),
)
def test_a_linear_law_is_met_past_the_cells_and_before_them(input_tokens: int, output_tokens: int) -> None:
    value = Surface(cells_of(linear_law)).at(input_tokens, output_tokens)
    assert value is not None
    assert value.energy_j == pytest.approx(linear_law(input_tokens, output_tokens))
    assert value.duration_s == pytest.approx(linear_law(input_tokens, output_tokens) / 100)


@given(
    st.lists(st.floats(1.0, 1e4), min_size=12, max_size=12),
    st.integers(1, 200_000),
    st.integers(1, 20_000),
    st.floats(1.0, 8.0),
)
def test_past_and_before_the_cells_values_are_positive_and_more_output_never_costs_less(
    joules: list[float], input_tokens: int, output_tokens: int, factor: float
) -> None:
    by_cell = dict(zip(((i, o) for i in INPUTS for o in OUTPUTS), joules, strict=True))
    surface = Surface(cells_of(lambda i, o: by_cell[i, o]))
    near, far = surface.at(input_tokens, output_tokens), surface.at(input_tokens, output_tokens * factor)
    assert near is not None
    assert far is not None
    assert near.energy_j > 0
    if input_tokens in INPUTS and output_tokens >= max(OUTPUTS):
        assert far.energy_j >= near.energy_j


@pytest.mark.parametrize("label", ["transformers", "vllm"])
def test_past_the_shipped_cells_longer_requests_cost_more(label: str) -> None:
    surface = Surface(load_table(with_shipped=True).find("h200", "llama-3.1-8b", label).by_length())
    corners = [(2**i, 2**o) for i in range(14, 18) for o in range(9, 14)]
    joules = {corner: value.energy_j for corner in corners if (value := surface.at(*corner)) is not None}
    assert len(joules) == len(corners)
    for (i, o), energy_j in joules.items():
        assert energy_j < joules.get((2 * i, o), math.inf)
        assert energy_j < joules.get((i, 2 * o), math.inf)


def test_interpolation_along_input_goes_before_extrapolation_along_output() -> None:
    cells = cells_of(power_law, inputs=[128, 2048], outputs=[8, 64, 1024]) | cells_of(power_law, [512], [8, 64])
    value = Surface(cells).at(512, 1024)
    assert value is not None
    assert value.how == INTERPOLATED
    assert value.axes == frozenset({"input"})


def test_a_measured_input_is_extrapolated_along_its_own_outputs() -> None:
    cells = cells_of(linear_law, inputs=[512, 1024], outputs=[1024]) | cells_of(linear_law, [2048], [8, 16])
    value = Surface(cells).at(2048, 1024)
    assert value is not None
    assert value.how == EXTRAPOLATED
    assert value.energy_j == pytest.approx(linear_law(2048, 1024))
    assert value.octaves_past == pytest.approx(6.0)


def test_inputs_are_carried_to_an_output_before_another_input_is_drawn_from_them() -> None:
    value = Surface(cells_of(linear_law)).at(4096, 2048)
    assert value is not None
    assert value.octaves_past == pytest.approx(3.0)
    assert value.octaves_before == 0.0


def test_extrapolation_tells_its_distance_in_octaves_before_and_past() -> None:
    value = Surface(cells_of(linear_law)).at(8, 2048)
    assert value is not None
    assert value.octaves_past == pytest.approx(2.0)
    assert value.octaves_before == pytest.approx(2.0)


def test_a_drawn_batch_is_whole_and_never_beyond_its_neighbours() -> None:
    cells = cells_of(power_law, [512], [8], batch=256) | cells_of(power_law, [512], [64], batch=10)
    surface = Surface(cells)
    for output_tokens in (1, 8, 9, 30, 64, 4096):
        value = surface.at(512, output_tokens)
        assert value is not None
        assert 10 <= value.batch <= 256


def test_too_few_cells_give_no_value() -> None:
    surface = Surface(cells_of(power_law, [512], [64]))
    assert surface.at(512, 128) is None
    assert surface.at(1024, 64) is None
    assert Surface({}).at(1, 1) is None


def test_one_row_gives_no_value_at_other_inputs() -> None:
    assert Surface(cells_of(power_law, [512])).at(1024, 64) is None


@given(st.lists(st.floats(1.0, 10.0), min_size=3, max_size=3), st.integers(8, 512), st.integers(8, 512))
def test_along_a_measured_input_more_tokens_never_cost_less_if_no_cell_says_so(
    factors: list[float], o: int, p: int
) -> None:
    joules = dict(zip(OUTPUTS, accumulate(factors, operator.mul), strict=True))
    surface = Surface(cells_of(lambda _, tokens: joules[tokens], [512]))
    less, more = surface.at(512, min(o, p)), surface.at(512, max(o, p))
    assert less is not None
    assert more is not None
    assert less.energy_j <= more.energy_j * (1 + 1e-9)


def test_a_power_law_has_no_error() -> None:
    errors = surface_errors(cells_of(power_law, outputs=FULL))
    for error in (errors.output, errors.input):
        assert error is not None
        assert error.maximum == pytest.approx(0.0, abs=1e-9)


def test_a_linear_law_has_no_error_past_and_before_the_cells() -> None:
    errors = surface_errors(cells_of(linear_law))
    for error in (errors.past, errors.before):
        assert error is not None
        assert error.maximum == pytest.approx(0.0, abs=1e-9)


def test_holdout_keeps_the_three_outputs_that_other_rows_have() -> None:
    error = output_error(cells_of(linear_law, outputs=FULL))
    assert error is not None
    assert error.is_full
    assert error.points == len(INPUTS) * 4
    i, o = map(int, re.findall(r"\d+", error.worst))
    drawn = drawn_by_scipy({kept: linear_law(i, kept) for kept in OUTPUTS}, o)
    ratio = drawn / linear_law(i, o)
    assert error.maximum == pytest.approx(max(ratio, 1 / ratio) - 1)
    assert error.maximum > error.median > 0


def test_holdout_ignores_outputs_that_were_not_part_of_it() -> None:
    more = output_error(cells_of(linear_law, outputs=(*FULL, 1024)))
    assert more == output_error(cells_of(linear_law, outputs=FULL))


def test_without_a_full_row_each_inner_output_is_left_out() -> None:
    error = output_error(cells_of(linear_law))
    assert error is not None
    assert not error.is_full
    assert error.points == len(INPUTS)


def test_the_error_of_a_set_up_without_a_full_row_is_borrowed_and_said_so() -> None:
    mine, theirs = surface_errors(cells_of(linear_law)), surface_errors(cells_of(linear_law, outputs=FULL))
    borrowed = borrow_errors(mine, "transformers", {"vllm": theirs})
    assert borrowed.output is not None
    assert theirs.output is not None
    assert borrowed.output.maximum == theirs.output.maximum
    assert "of vllm: transformers has no full row" in borrowed.output.basis
    assert borrowed.input == mine.input
    assert borrow_errors(theirs, "vllm", {"transformers": mine}) == theirs
    assert borrow_errors(mine, "transformers", {}) == mine


def test_errors_compound_along_both_axes_and_grow_with_distance() -> None:
    cells = cells_of(linear_law, outputs=FULL) | cells_of(power_law, inputs=[8192])
    surface, errors = Surface(cells), surface_errors(cells)
    at = {
        place: surface.at(*place)
        for place in ((512, 64), (512, 100), (600, 64), (600, 100), (512, 1024), (512, 4096), (1, 64))
    }
    found = {place: errors.of(value) for place, value in at.items() if value is not None}
    assert found[512, 64] == 0.0
    assert found[600, 100] == pytest.approx((1 + (found[512, 100] or 0)) * (1 + (found[600, 64] or 0)) - 1)
    assert 0 < (found[512, 1024] or 0) < (found[512, 4096] or 0)
    assert errors.before is not None
    assert found[1, 64] == pytest.approx((1 + errors.before.maximum) ** 5 - 1)


def test_an_unknown_error_is_none() -> None:
    cells = cells_of(linear_law, [512], [8, 64])
    value = Surface(cells).at(512, 16)
    assert value is not None
    assert surface_errors(cells).of(value) is None
