"""What routed experts take, by the kernel of their grouped matmuls, and launches of a layer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.catalog import get_gpu, get_model
from infergy.cost.constants import prior_fit
from infergy.cost.rates import Rates, rates_of
from infergy.cost.step import StepSums, expert_cost
from infergy.cost.work import ExpertKernel, server_work

CONSTANTS = prior_fit("transformers").constants("h200")
KERNELS: tuple[ExpertKernel, ...] = ("tiled", "fitted", "padded", "gathered")


def rates(kernel: ExpertKernel, model: str = "qwen3-30b-a3b", **more: bool | int | str) -> Rates:
    work = server_work(get_model(model), kernel=kernel, **more)  # type: ignore[arg-type]
    return rates_of(work, get_gpu("h200"), CONSTANTS, idle_w=120.0 * work.gpus)


def decoding(batch: float) -> StepSums:
    return StepSums(batch, 0.0, 0.0, 0.0, 0.0, batch, batch)


def prompt(tokens: float, prompts: float = 1.0) -> StepSums:
    return StepSums(0.0, 0.0, tokens, 0.0, prompts, prompts, 0.0)


@given(kernel=st.sampled_from(KERNELS), batch=st.integers(1, 2000))
def test_more_tokens_never_take_less(kernel: ExpertKernel, batch: int) -> None:
    r = rates(kernel).experts_s
    for less, more in zip(expert_cost(r, decoding(batch)), expert_cost(r, decoding(batch + 1)), strict=True):
        assert more >= less


def test_padding_all_experts_computes_nearly_as_much_for_one_token_as_for_eight() -> None:
    one, eight = (expert_cost(rates("padded", dtype="fp8").experts_s, decoding(batch))[1] for batch in (1, 8))
    assert eight < 1.01 * one
    tiled, more_tiled = (expert_cost(rates("tiled").experts_s, decoding(batch))[1] for batch in (1, 8))
    assert more_tiled > 5 * tiled


def test_tiles_grow_where_a_gpu_has_fewer_experts_than_tokens() -> None:
    few, more = (expert_cost(rates("tiled").experts_s, decoding(batch))[1] for batch in (128, 129))
    assert more > 2 * few
    divided = rates("tiled", gpus=8, dispatched=True).experts_s
    assert expert_cost(divided, decoding(17))[1] > 2 * expert_cost(divided, decoding(16))[1]


def test_gathering_moves_the_experts_of_each_token() -> None:
    r = rates("gathered").experts_s
    extra = [
        expert_cost(r, decoding(batch))[0] - expert_cost(rates("fitted").experts_s, decoding(batch))[0]
        for batch in (8, 64)
    ]
    assert extra[1] == pytest.approx(8 * extra[0])
    assert expert_cost(r, prompt(500))[0] == pytest.approx(expert_cost(rates("fitted").experts_s, prompt(500))[0])


def test_replicas_wait_for_the_longest_prompt() -> None:
    work = {"gpus": 8, "dispatched": True, "dtype": "fp8"}
    shared, replicated = (rates("padded", replicated=one, **work).experts_s for one in (False, True))  # type: ignore[arg-type]
    assert expert_cost(replicated, decoding(64)) == expert_cost(shared, decoding(64))
    alone, several = (expert_cost(replicated, prompt(4000, prompts))[1] for prompts in (1, 8))
    assert alone > several > expert_cost(shared, prompt(4000))[1]


def test_a_dense_model_has_none() -> None:
    work = server_work(get_model("llama-3.1-8b"))
    r = rates_of(work, get_gpu("h200"), CONSTANTS, idle_w=120.0)
    assert expert_cost(r.experts_s, decoding(8)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("model", "launches"), [("llama-3.1-8b", 36), ("qwen3-8b", 48), ("mixtral-8x7b", 47), ("olmoe-1b-7b", 59)]
)
def test_launches_of_a_layer_are_counted(model: str, launches: int) -> None:
    assert server_work(get_model(model)).launches == pytest.approx(launches / 36)
