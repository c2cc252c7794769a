"""How many requests fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.catalog import get_gpu, get_model
from infergy.catalog.memory import BLOCK_TOKENS, CHUNK_TOKENS, RESERVE_BYTES, largest_batch
from raising import raises

LLAMA, H200 = get_model("llama-3.1-8b"), get_gpu("h200")
ENGINES = st.sampled_from(["transformers", "vllm"])
TOKENS = st.integers(1, 40_000)


@given(engine=ENGINES, inputs=TOKENS, outputs=TOKENS, more=st.integers(1, 1000))
def test_longer_requests_never_fit_in_greater_number(engine: str, inputs: int, outputs: int, more: int) -> None:
    batch = largest_batch(LLAMA, H200, inputs, outputs, engine=engine).batch
    assert largest_batch(LLAMA, H200, inputs + more, outputs, engine=engine).batch <= batch
    assert largest_batch(LLAMA, H200, inputs, outputs + more, engine=engine).batch <= batch


@given(engine=ENGINES, inputs=TOKENS, outputs=TOKENS)
def test_the_batch_fits_and_one_more_does_not(engine: str, inputs: int, outputs: int) -> None:
    limit = largest_batch(LLAMA, H200, inputs, outputs, engine=engine)
    fixed = limit.weight_bytes + RESERVE_BYTES
    if engine == "vllm":
        fixed += LLAMA.activation_values * 2 * CHUNK_TOKENS
    each = limit.kv_bytes_per_request + limit.activation_bytes_per_request
    assert fixed + limit.batch * each <= limit.memory_bytes < fixed + (limit.batch + 1) * each


@given(inputs=TOKENS, outputs=TOKENS)
def test_vllm_hands_out_whole_blocks(inputs: int, outputs: int) -> None:
    limit = largest_batch(LLAMA, H200, inputs, outputs, engine="vllm")
    blocks = limit.kv_bytes_per_request / (BLOCK_TOKENS * LLAMA.kv_bytes_per_token())
    assert blocks == int(blocks)
    assert (blocks - 1) * BLOCK_TOKENS < inputs + outputs <= blocks * BLOCK_TOKENS


def test_transformers_keeps_one_layer_of_the_cache_twice_and_all_prompts_at_once() -> None:
    limit = largest_batch(LLAMA, H200, 2048, 512, engine="transformers")
    assert limit.kv_bytes_per_request == pytest.approx(2560 * 131072 * 33 / 32)
    per_token = 3 * 4096 + 2 * 4096 + 2 * 1024 + 3 * 14336
    assert limit.activation_bytes_per_request == 2048 * per_token * 2 + 128256 * 4
    assert limit.batch < largest_batch(LLAMA, H200, 2048, 512, engine="vllm").batch


def test_zero_requests_fit_where_the_weights_do_not_and_the_reason_says_so() -> None:
    limit = largest_batch(get_model("llama-3.1-70b"), H200, 512, 64, engine="vllm")
    assert limit.batch == 0
    assert "weights and workspaces need" in limit.reason


def test_more_gpus_hold_more() -> None:
    shape = get_model("llama-3.1-70b")
    one, two, four = (
        largest_batch(shape, H200, 2048, 512, engine="vllm", tensor_parallel=gpus).batch for gpus in (1, 2, 4)
    )
    assert one < two < four


def test_kv_heads_fewer_than_gpus_are_replicated() -> None:
    shape = get_model("gemma-3-4b")  # 4 heads of keys and values
    four, eight = (
        largest_batch(shape, H200, 2048, 512, engine="vllm", tensor_parallel=gpus).kv_bytes_per_request
        for gpus in (4, 8)
    )
    assert eight == 2 * four


def test_less_of_the_memory_takes_fewer() -> None:
    full = largest_batch(LLAMA, H200, 2048, 512, engine="vllm")
    half = largest_batch(LLAMA, H200, 2048, 512, engine="vllm", memory_fraction=0.45)
    assert half.memory_bytes == full.memory_bytes / 2
    assert 0 < half.batch < full.batch / 2


def test_an_unknown_engine_is_named() -> None:
    with raises("unknown-engine", name="vlm", nearest=["vllm"]):
        largest_batch(LLAMA, H200, 512, 64, engine="vlm")


def test_a_hybrids_state_takes_room_at_any_length() -> None:
    shape = get_model("nemotron-nano-12b-v2")
    short = largest_batch(shape, H200, 16, 16, engine="vllm").kv_bytes_per_request
    assert short == shape.kv_bytes(32) + shape.state_bytes
    assert largest_batch(shape, H200, 16, 16, engine="vllm", tensor_parallel=8).kv_bytes_per_request == short
