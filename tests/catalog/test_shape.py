"""What follows from a shape: laws, and figures worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.catalog import ModelShape, get_model
from infergy.catalog.layers import Window, attended_tokens, chunked_tokens
from raising import raises

LLAMA = get_model("llama-3.1-8b")
WINDOWED = get_model("gpt-oss-20b")
LATENT = get_model("deepseek-v3")
HYBRID = get_model("nemotron-nano-12b-v2")
SCOUT = get_model("llama-4-scout-17b-16e")
SMALL_CHUNKS = dataclasses.replace(
    SCOUT, attention=dataclasses.replace(SCOUT.attention, window=Window(tokens=100, layers=36, chunked=True))
)
SHAPES = st.sampled_from(
    [LLAMA, WINDOWED, LATENT, get_model("gemma-3-4b"), get_model("qwen3-30b-a3b"), HYBRID, SMALL_CHUNKS]
)
TOKENS = st.integers(1, 5000)


@given(first=st.integers(1, 60), length=st.integers(0, 60), window=st.none() | st.integers(1, 80))
def test_attended_tokens_is_the_sum_it_stands_for(first: int, length: int, window: int | None) -> None:
    last = first + length - 1
    assert attended_tokens(first, last, window) == sum(min(t, window or t) for t in range(first, last + 1))


@given(first=st.integers(1, 60), length=st.integers(0, 60), chunk=st.integers(1, 80))
def test_chunked_tokens_is_the_sum_it_stands_for(first: int, length: int, chunk: int) -> None:
    last = first + length - 1
    assert chunked_tokens(first, last, chunk) == sum((t - 1) % chunk + 1 for t in range(first, last + 1))


@given(shape=SHAPES, inputs=st.integers(1, 400), outputs=st.integers(1, 60))
def test_output_flops_are_the_sum_of_the_decode_steps(shape: ModelShape, inputs: int, outputs: int) -> None:
    for absorbed in (True, False):
        steps = [shape.decode_flops(c, absorbed=absorbed) for c in range(inputs + 1, inputs + outputs)]
        assert shape.output_flops(inputs, outputs, absorbed=absorbed) == sum(steps)


@given(shape=SHAPES, inputs=st.integers(1, 400), outputs=st.integers(1, 60), batch=st.integers(1, 300))
def test_output_bytes_are_the_sum_of_the_decode_steps(shape: ModelShape, inputs: int, outputs: int, batch: int) -> None:
    steps = [shape.output_bytes(c, 2, batch) for c in range(inputs, inputs + outputs - 1)]
    assert shape.output_bytes(inputs, outputs, batch) == pytest.approx(sum(steps), rel=1e-12)


@given(shape=SHAPES, inputs=TOKENS, outputs=TOKENS, more=st.integers(1, 100))
def test_more_tokens_never_cost_less(shape: ModelShape, inputs: int, outputs: int, more: int) -> None:
    assert shape.request_flops(inputs + more, outputs) > shape.request_flops(inputs, outputs)
    assert shape.request_flops(inputs, outputs + more) > shape.request_flops(inputs, outputs)
    assert shape.kv_bytes(inputs + more) >= shape.kv_bytes(inputs)


@given(shape=SHAPES, tokens=TOKENS)
def test_a_causal_prefill_costs_less_than_the_full_square(shape: ModelShape, tokens: int) -> None:
    causal, square = shape.prefill_flops(tokens), shape.prefill_flops(tokens, causal=False)
    assert causal <= square
    assert (causal == square) == (tokens == 1)


@given(batch=st.integers(1, 5000))
def test_experts_read_lie_between_one_tokens_and_all(batch: int) -> None:
    shape = get_model("olmoe-1b-7b")
    assert shape.experts is not None
    coverage = shape.experts.expected_coverage(batch)
    assert 8 / 64 <= coverage <= 1
    assert shape.step_weight_bytes(batch + 1) > shape.step_weight_bytes(batch)


def test_one_token_visits_exactly_its_experts() -> None:
    shape = get_model("mixtral-8x7b")
    row = shape.hidden  # of the embedding table, the one row that is read
    read = shape.active_parameters - shape.vocabulary * shape.hidden + row
    assert shape.step_weight_bytes(1) == pytest.approx(2 * read)


def test_llama_by_hand() -> None:
    layer = 4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14336
    head = 128256 * 4096
    assert LLAMA.kv_bytes_per_token() == 2 * 32 * 8 * 128 * 2 == 131072
    assert LLAMA.kv_bytes(1000) == 131_072_000
    assert LLAMA.decode_flops(2048) == 2 * (32 * layer + head) + 32 * 4 * 4096 * 2048
    assert LLAMA.prefill_flops(2048) == 2 * (2048 * 32 * layer + head) + 32 * 4 * 4096 * (2048 * 2049 // 2)
    assert LLAMA.prefill_flops(2048, causal=False) == 2 * (2048 * 32 * layer + head) + 32 * 4 * 4096 * 2048**2
    assert LLAMA.weight_bytes() == 16_060_522_496


def test_a_tied_head_is_read_and_multiplied_though_it_is_stored_once() -> None:
    tied = get_model("llama-3.2-1b")
    assert tied.parameters < tied.step_weight_bytes(1) / 2 < tied.parameters + 2 * tied.hidden


def test_a_full_window_grows_no_more() -> None:
    half = WINDOWED.layers // 2 * WINDOWED.attention.cached_values * 2
    assert WINDOWED.kv_bytes(128) == 128 * WINDOWED.kv_bytes_per_token()
    assert WINDOWED.kv_bytes(1128) - WINDOWED.kv_bytes(128) == 1000 * half


def test_mla_caches_its_latent_alone() -> None:
    # 61 layers × (512 + 64) values of 2 bytes: DeepSeek-V3's 70 KB a token (arXiv 2412.19437).
    assert LATENT.kv_bytes_per_token() == 70272


def test_mla_absorbed_trades_wider_attention_for_no_expansion() -> None:
    assert LATENT.attention.pair_flops(absorbed=True) == 2 * 128 * (2 * 512 + 64)
    assert LATENT.attention.pair_flops() == 2 * 128 * (192 + 128)
    assert LATENT.decode_flops(4096) < LATENT.decode_flops(4096, absorbed=False)
    expansion = 61 * 2 * 512 * 128 * (128 + 128) * 4095  # of all earlier tokens, in all layers
    narrower = 61 * (LATENT.attention.pair_flops(absorbed=True) - LATENT.attention.pair_flops()) * 4096
    assert LATENT.decode_flops(4096, absorbed=False) - LATENT.decode_flops(4096) == expansion - narrower
    assert LLAMA.decode_flops(4096) == LLAMA.decode_flops(4096, absorbed=False)


def test_mxfp4_stores_the_experts_alone_in_four_bits() -> None:
    # The published checkpoint has 13.8 GB.
    assert WINDOWED.checkpoint.dtype == "mxfp4"
    assert WINDOWED.weight_bytes("mxfp4") == pytest.approx(13.76e9, rel=2e-3)
    assert WINDOWED.kv_bytes_per_token("mxfp4") == WINDOWED.kv_bytes_per_token("bfloat16")


def test_an_unknown_dtype_is_named_with_the_nearest() -> None:
    with raises("unknown-name", kind="dtype", name="bf16", nearest=["bfloat16", "float16"]):
        LLAMA.weight_bytes("bf16")


def test_a_hybrid_by_hand() -> None:
    """Nemotron Nano 12B v2: 28 layers of Mamba-2, 28 MLPs without a gate, 6 of attention (arXiv 2508.14444, table 1)."""
    assert HYBRID.mamba is not None
    assert (HYBRID.mamba.layers, HYBRID.mlp.layers, HYBRID.attention_layers, HYBRID.layers) == (28, 28, 6, 62)
    inner, convolved = 128 * 80, 128 * 80 + 2 * 8 * 128
    projections = 28 * (5120 * (inner + convolved + 128) + inner * 5120)
    mlps = 28 * 2 * 5120 * 20480
    attention = 6 * (5120 * (40 + 2 * 8) * 128 + 40 * 128 * 5120)
    assert HYBRID.matmul_parameters == projections + mlps + attention
    assert HYBRID.kv_bytes_per_token() == 6 * 2 * 8 * 128 * 2
    assert HYBRID.state_bytes == 28 * (128 * 80 * 128 * 4 + 3 * convolved * 2)
    beside = 28 * (5 * inner * 128 + 2 * 4 * convolved)
    head = 131072 * 5120
    assert HYBRID.decode_flops(1000) == 2 * (HYBRID.matmul_parameters + head) + 6 * 4 * 40 * 128 * 1000 + beside


def test_a_state_is_read_and_written_each_step_and_does_not_grow() -> None:
    one, two = (HYBRID.output_bytes(999, 2, batch) - HYBRID.step_weight_bytes(batch) for batch in (1, 2))
    assert two == 2 * one == 2 * (HYBRID.kv_bytes(1000) + HYBRID.kv_bytes_per_token() + 2 * HYBRID.state_bytes)
    grown = HYBRID.output_bytes(2999, 2, 1) - HYBRID.output_bytes(999, 2, 1)
    assert grown == 2000 * HYBRID.kv_bytes_per_token()
    assert LLAMA.state_bytes == 0


def test_a_chunk_begins_anew_but_what_it_took_stays_counted() -> None:
    shape = SMALL_CHUNKS
    per_layer = shape.attention.cached_values * 2
    read = [shape.output_bytes(context - 1, 2, 1) - shape.step_weight_bytes(1) for context in (100, 101)]
    assert read[1] - read[0] == (12 * 1 - 36 * 99) * per_layer
    assert shape.kv_bytes(101) - shape.kv_bytes(100) == 12 * per_layer


def test_experts_without_a_gate_have_two_matrices() -> None:
    shape = get_model("nemotron-3-nano-30b-a3b")
    assert shape.experts is not None
    assert shape.experts.expert_matmul(shape.hidden) == 2 * 2688 * 1856
    assert shape.mlp.layers == 0


def test_fp8_leaves_embeddings_and_output_head_wide() -> None:
    """As vLLM quantises, linear layers and experts only, and as the FP8 checkpoints of the hub are."""
    shape = get_model("llama-3.1-8b")
    tables = 2 * shape.vocabulary * shape.hidden
    assert shape.weight_bytes("fp8") == shape.parameters - tables + 2 * tables
    assert shape.step_weight_bytes(1, "fp8") == pytest.approx(8.03e9, rel=0.001)
    assert shape.weight_bytes("float32") == 4 * shape.parameters
