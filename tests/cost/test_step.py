"""A step's cost: laws of its seconds and joules, and the power limit."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.catalog import get_gpu, get_model
from infergy.cost.constants import prior_fit
from infergy.cost.model import Server, StepCost
from infergy.cost.rates import Rates, rates_of
from infergy.cost.step import Pace, Steps, StepSums, added_j, compress, free_s, roofline, slowed_j
from infergy.cost.work import server_work

MODELS = ("llama-3.1-8b", "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v3", "nemotron-nano-9b-v2", "gemma-3-12b")


def rates(model: str = "llama-3.1-8b", dtype: str = "bfloat16", gpus: int = 1) -> Rates:
    work = server_work(get_model(model), dtype=dtype, gpus=gpus)
    return rates_of(work, get_gpu("h200"), prior_fit("vllm").constants("h200"), idle_w=123.0 * gpus)


def sums(**given: float) -> StepSums:
    blank = dict.fromkeys(StepSums._fields, 0.0)
    return StepSums(**{**blank, **given})


@given(
    model=st.sampled_from(MODELS),
    decodes=st.integers(1, 512),
    context=st.integers(1, 4000),
    tokens=st.integers(0, 8192),
)
def test_more_work_never_takes_less(model: str, decodes: int, context: int, tokens: int) -> None:
    r = rates(model)
    base = sums(decodes=decodes, context=decodes * context, sampled=decodes, padded=decodes)
    for more in (
        base._replace(context=base.context + 100),
        base._replace(prefill_tokens=tokens + 1, prefill_pairs=(tokens + 1) * 10.0, prefills=1, padded=0),
    ):
        assert free_s(r, more) >= free_s(r, base) * (1 - 1e-12)
        assert added_j(r, more) >= added_j(r, base) * (1 - 1e-12)


@given(model=st.sampled_from(MODELS), decodes=st.integers(1, 300), context=st.integers(1, 3000))
def test_columns_and_floats_give_the_same(model: str, decodes: int, context: int) -> None:
    r = rates(model)
    one = sums(decodes=decodes, context=decodes * context, sampled=decodes, padded=decodes, prefill_tokens=40.0,
               prefill_pairs=820.0, prefills=1.0)  # fmt: skip
    many = StepSums(*(np.array([value, value]) for value in one))
    assert free_s(r, many) == pytest.approx(free_s(r, one, min))
    assert added_j(r, many) == pytest.approx(added_j(r, one, min))


def test_more_gpus_take_less_time_and_more_power() -> None:
    base = sums(decodes=32, context=32 * 600, sampled=32, padded=32)
    one, two = rates(), rates(gpus=2)
    assert free_s(two, base) < free_s(one, base)
    assert two.power.base_w > one.power.base_w


def test_fp8_reads_half_the_weights() -> None:
    assert rates(dtype="fp8").matmul_s.weight < 0.75 * rates().matmul_s.weight


@given(
    decodes=st.integers(1, 500),
    context=st.integers(16, 6000),
    count=st.integers(1, 400),
)
@settings(max_examples=60)
def test_many_decode_steps_at_once_are_as_one_by_one(decodes: int, context: int, count: int) -> None:
    """Within 0.05 % in seconds, where the power limit does not bind; whatever the split into entries."""
    together, alone = Pace(rates()), Pace(rates())
    padded = decodes if decodes <= 512 else 0
    left, sum_context, total_s = count, float(decodes * context), 0.0
    while left:
        steps, seconds = together.decode(decodes, sum_context, padded, left)
        total_s, left, sum_context = total_s + steps * seconds, left - steps, sum_context + steps * decodes
    single_s = sum(alone.decode(decodes, float(decodes * (context + k)), padded, 1)[1] for k in range(count))
    assert total_s == pytest.approx(single_s, rel=5e-4)


@given(until=st.floats(1e-4, 2.0), decodes=st.integers(1, 64), ahead=st.integers(0, 1))
def test_decode_steps_stop_at_the_event(until: float, decodes: int, ahead: int) -> None:
    steps, seconds = Pace(rates()).decode(decodes, decodes * 900.0, decodes, 10_000, until, ahead)
    assert (steps - 1 - ahead) * seconds < until * (1 + 1e-9) or steps == 1


def test_the_power_limit_holds_on_average_but_lets_a_short_prefill_pass() -> None:
    r = rates()
    burst = Pace(r)
    first_s = burst.step(0, 0.0, 512, 131_328.0, 1, 1, 512)
    assert first_s == pytest.approx(free_s(r, StepSums(0, 0.0, 512, 131_328.0, 1, 1, 512), min), rel=1e-3)
    sustained = Pace(r)
    energy_j = total_s = 0.0
    for _ in range(40):
        s = StepSums(0, 0.0, 8192, 8192 * 8193 / 2, 8, 8, 0)
        seconds = sustained.step(*s)
        worked_j = slowed_j(r.power, added_j(r, s, min), free_s(r, s, min), seconds)
        energy_j, total_s = energy_j + worked_j + r.power.base_w * seconds, total_s + seconds
    assert energy_j / total_s < 1.02 * r.power.limit_w
    assert sustained.mean_w <= r.power.limit_w * 1.001


def test_an_idle_server_cools_to_its_idle_power() -> None:
    pace = Pace(rates())
    pace.step(0, 0.0, 8192, 8192 * 8193 / 2, 8, 8, 0)
    assert pace.mean_w > 123
    pace.idle(10.0)
    assert pace.mean_w == pytest.approx(123.0)


def test_the_smooth_corner_is_a_maximum() -> None:
    assert roofline(3.0, 0.0) == pytest.approx(3.0)
    assert roofline(2.0, 2.0) == pytest.approx(2.0 * 2**0.25)
    assert roofline(1.0, 10.0) == pytest.approx(10.0, rel=1e-4)


def some_steps(count: int) -> Steps:
    generator = np.random.default_rng(3)
    decodes = generator.integers(0, 60, count).astype(float)
    tokens = np.where(generator.random(count) < 0.3, generator.integers(1, 4000, count), 0).astype(float)
    decodes = np.where(decodes + tokens == 0, 1.0, decodes)
    columns = {
        "count": np.where(tokens > 0, 1.0, generator.integers(1, 30, count)),
        "decodes": decodes,
        "context": decodes * generator.integers(10, 3000, count),
        "prefill_tokens": tokens,
        "prefill_pairs": tokens * (tokens + 1) / 2,
        "prefills": (tokens > 0).astype(float),
        "sampled": decodes + (tokens > 0),
        "padded": np.where(decodes + tokens <= 512, np.ceil((decodes + tokens) / 8) * 8, 0.0),
    }
    zeros = {f.name: np.zeros(count) for f in fields(Steps)}
    return Steps(**{**zeros, **columns, "step_s": np.full(count, 0.01)})


def test_few_entries_stand_for_many() -> None:
    steps = some_steps(5000)
    few = compress(steps)
    assert len(few) < 400
    assert few[:, 0].sum() == pytest.approx(steps.count.sum())
    for place, name in enumerate(("decodes", "context", "prefill_tokens", "prefill_pairs"), start=2):
        assert few[:, 0] @ few[:, place] == pytest.approx(steps.count @ getattr(steps, name))
    r = rates()
    joined = StepSums(*few.T[2:])
    each = StepSums(*(getattr(steps, name) for name in StepSums._fields))
    assert few[:, 0] @ added_j(r, joined) == pytest.approx(steps.count @ added_j(r, each), rel=2e-3)
    assert few[:, 0] @ free_s(r, joined) == pytest.approx(steps.count @ free_s(r, each), rel=2e-2)


def server(**changed: object) -> Server:
    facts = {
        "engine": "vllm",
        "model": "llama-3.1-8b",
        "work": server_work(get_model("llama-3.1-8b")),
        "gpu": get_gpu("h200"),
        "idle_w": 123.0,
        "is_api": True,
    }
    return Server(**{**facts, **changed})  # type: ignore[arg-type]


def test_uncertainty_shrinks_where_rows_were_fitted() -> None:
    steps = some_steps(300)
    unseen = StepCost(server(), prior_fit("vllm")).log_sd(steps, 0.0)
    seen = StepCost(server(errors=(0.012, 0.012)), prior_fit("vllm")).log_sd(steps, 0.0)
    assert seen[0] < unseen[0]
    assert all(math.isfinite(sd) and sd > 0 for sd in (*unseen, *seen))


def test_no_step_is_faster_than_the_roofline() -> None:
    cost, steps = StepCost(server(), prior_fit("vllm")), some_steps(200)
    free = free_s(cost.rates, StepSums(*(getattr(steps, name) for name in StepSums._fields)))
    assert (cost.floor_s(steps) <= free).all()
