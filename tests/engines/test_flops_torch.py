"""FLOPs, parameters and KV cache of a shape against PyTorch's own counts, on a tiny model of each family."""

from __future__ import annotations

from typing import Any

import pytest

from infergy.catalog import ModelShape, read_shape

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MOE: dict[str, Any] = {"moe_intermediate_size": 48, "num_experts_per_tok": 2, "num_experts": 8}
WINDOW = {"sliding_window": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 24, "attention_bias": True, "mlp_bias": True},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": WINDOW,
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2} | WINDOW,
    "qwen2": {},
    "qwen2-sliding": {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1} | WINDOW,
    "qwen3": {"head_dim": 32},
    "qwen3_moe": MOE | {"head_dim": 32, "mlp_only_layers": [0]},
    "gemma3_text": WINDOW | {"head_dim": 32, "tie_word_embeddings": True},
    "gpt_oss": WINDOW | {"head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 2},
    "olmo": {},
    "olmo2": {},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "phi": {},
    "phi3": {},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 40,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 48,
        "first_k_dense_replace": 1,
    },
    "deepseek_v3-no-query-rank": {},
    "glm4_moe": {
        "attention_bias": True,
        "use_qk_norm": True,
        "head_dim": 24,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 48,
        "first_k_dense_replace": 1,
    },
}
FAMILIES["deepseek_v3-no-query-rank"] = FAMILIES["deepseek_v3"] | {"model_type": "deepseek_v3", "q_lora_rank": None}
INPUT_TOKENS, BATCH = 24, 2


def make(family: str) -> tuple[Any, ModelShape]:
    """A random model with plain attention, whose matrix products the counter sees, and its shape."""
    config = BASE | {"model_type": family} | FAMILIES[family]
    torch.manual_seed(0)
    # Experts one after another, as the reference does: the counter knows no grouped matrix product.
    built = transformers.AutoConfig.for_model(
        **config, attn_implementation="eager", experts_implementation="eager", torch_dtype="float32"
    )
    return transformers.AutoModelForCausalLM.from_config(built).eval(), read_shape(config, name=family)


def count_flops(model: Any, **inputs: Any) -> tuple[int, Any]:
    """FLOPs of one forward with the head on the last position, less rotary tables, which the shape leaves out."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = model(**inputs, use_cache=True, logits_to_keep=1)
    rotary = sum(
        sum(counts.values()) for module, counts in counter.get_flop_counts().items() if module.endswith("rotary_emb")
    )
    return counter.get_total_flops() - rotary, output


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_agree_with_the_model(family: str) -> None:
    model, shape = make(family)
    counted = sum(parameter.numel() for parameter in model.parameters())
    # DeepSeek's routing correction is a buffer in transformers, a tensor of the checkpoint all the same.
    counted += sum(buffer.numel() for name, buffer in model.named_buffers() if "correction" in name)
    assert shape.parameters == counted


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_flops_agree_with_the_counter(family: str) -> None:
    model, shape = make(family)
    prompt = torch.randint(1, 160, (BATCH, INPUT_TOKENS))
    flops, _ = count_flops(model, input_ids=prompt)
    assert flops == BATCH * shape.prefill_flops(INPUT_TOKENS, causal=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_flops_agree_with_the_counter(family: str) -> None:
    model, shape = make(family)
    prompt = torch.randint(1, 160, (BATCH, INPUT_TOKENS))
    _, output = count_flops(model, input_ids=prompt)
    flops, _ = count_flops(model, input_ids=prompt[:, :1], past_key_values=output.past_key_values)
    assert flops == BATCH * shape.decode_flops(INPUT_TOKENS + 1, absorbed=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_kv_cache_holds_the_bytes_that_the_shape_says(family: str) -> None:
    model, shape = make(family)
    _, output = count_flops(model, input_ids=torch.randint(1, 160, (1, INPUT_TOKENS)))
    layers = output.past_key_values.layers
    held = sum(layer.keys.numel() + layer.values.numel() for layer in layers) * 4
    window = None if shape.attention.window is None else shape.attention.window.tokens
    expected = shape.kv_bytes(INPUT_TOKENS, "float32")
    if window is not None:  # transformers keeps a window without the token to come
        assert shape.attention.window is not None
        expected -= shape.attention.window.layers * shape.attention.cached_values * 4
    assert held == expected


def test_a_causal_prefill_is_the_sum_of_its_tokens_decoded_one_by_one() -> None:
    _, shape = make("mistral")
    heads = 2 * shape.vocabulary * shape.hidden
    decoded = sum(shape.decode_flops(context) - heads for context in range(1, INPUT_TOKENS + 1))
    assert shape.prefill_flops(INPUT_TOKENS) == decoded + heads
