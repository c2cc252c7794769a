"""Compiled formulas give what the formulas give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.catalog import get_gpu, get_model
from infergy.cost.compiled import Symbol, compile_formula, least, most
from infergy.cost.constants import prior_fit
from infergy.cost.rates import Rates, rates_of
from infergy.cost.step import StepSums, added_j, compile_steps, free_s, slowed_j, stretched_s
from infergy.cost.work import server_work

# Dense, with experts, with windows and experts, latent attention, state layers, windows.
MODELS = ("llama-3.1-8b", "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v3", "nemotron-nano-9b-v2", "gemma-3-12b")


def rates(model: str, gpus: int) -> Rates:
    work = server_work(get_model(model), gpus=gpus)
    return rates_of(work, get_gpu("h200"), prior_fit("vllm").constants("h200"), idle_w=123.0 * gpus)


@given(
    model=st.sampled_from(MODELS),
    gpus=st.sampled_from((1, 2)),
    decodes=st.integers(0, 512),
    context=st.integers(1, 9000),
    prefills=st.integers(0, 3),
    tokens=st.integers(1, 4000),
    padding=st.none() | st.integers(0, 8),
)
def test_a_compiled_step_costs_what_its_formula_says(
    model: str, gpus: int, decodes: int, context: int, prefills: int, tokens: int, padding: int | None
) -> None:
    decodes += not prefills
    total = prefills * tokens
    pairs = prefills * tokens * (tokens + 1) // 2
    padded = 0 if padding is None else decodes + total + padding
    s = StepSums(decodes, decodes * context, total, pairs, prefills, decodes + prefills, padded)
    r = rates(model, gpus)
    columns = StepSums(*(np.array([float(value)]) for value in s))
    expected = added_j(r, columns)[0], free_s(r, columns)[0]
    assert compile_steps(r).step(*s) == pytest.approx(expected, rel=1e-12)


@given(
    model=st.sampled_from(MODELS), decodes=st.integers(1, 512), context=st.integers(1, 9000), has_graph=st.booleans()
)
def test_a_compiled_decode_step_is_a_step(model: str, decodes: int, context: int, has_graph: bool) -> None:
    compiled = compile_steps(rates(model, 1))
    padded = decodes + 3 if has_graph else 0
    cost = compiled.graphed(decodes, padded) if has_graph else compiled.eager(decodes)
    step = compiled.step(decodes, decodes * context, 0, 0, 0, decodes, padded)
    assert cost(float(decodes * context)) == pytest.approx(step, rel=1e-12)


@given(added=st.floats(1.0, 40.0), free=st.floats(0.001, 0.2), mean_w=st.floats(80.0, 690.0))
def test_the_compiled_power_limit_is_the_formula(added: float, free: float, mean_w: float) -> None:
    r = rates("llama-3.1-8b", 1)
    seconds = float(stretched_s(r.power, added, free, mean_w, np.exp, max))
    expected = slowed_j(r.power, added, free, seconds), seconds
    assert compile_steps(r).limited(added, free, mean_w) == pytest.approx(expected, rel=1e-12)


def test_what_does_not_hang_on_late_arguments_is_computed_once() -> None:
    calls = []

    def formula(a: Any, b: Any) -> tuple[Any, Any, Any]:
        calls.append(a)
        return (a + 1.0) ** 2 * b, least(a, b) + most(0.5, b), Symbol.exp(-a) / b + (2.0 - b) * (b > 3)

    inner = compile_formula(formula, ("a",), ("b",))(2.0)
    assert inner(4.0) == pytest.approx((36.0, 6.0, np.exp(-2.0) / 4.0 - 2.0))
    assert inner(1.0) == pytest.approx((9.0, 2.0, np.exp(-2.0)))
    assert len(calls) == 1


def test_zeros_and_ones_leave_no_trace() -> None:
    def formula(a: Any) -> tuple[Any, ...]:
        side = a * a
        corner = (side * side + 0.0) ** 0.25
        return a * 1 + 0.0, 0.0 * a, 0.0**a, np.float64(2.0) * a, a * (a > 0), a * (a == 0), corner

    compiled = compile_formula(formula, ("a",), positive=True)
    assert compiled(3.0) == (3.0, 0.0, 0.0, 6.0, 3.0, 0.0, 3.0)
    assert {type(value) for value in compiled(3.0)} == {float}
