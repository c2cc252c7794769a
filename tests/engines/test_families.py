"""Every family that is read has the parameters and the KV cache of what transformers builds, on tiny models."""

from __future__ import annotations

import re
from typing import Any

import pytest

from infergy.catalog import ModelShape, read_shape
from infergy.catalog.configs import TEXT
from infergy.errors import InfergyError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "vocab_size": 160,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
ROUTED: dict[str, Any] = {
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 2,
    "n_group": 2,
    "topk_group": 1,
}
LATENT: dict[str, Any] = ROUTED | {
    "num_key_value_heads": 4,
    "q_lora_rank": 40,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "head_dim": 8,
}
SPARSE = LATENT | {"index_n_heads": 4, "index_head_dim": 16, "index_topk": 8}
SHARED = MOE | {"shared_expert_intermediate_size": 56}
LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 8,
    "linear_num_key_heads": 4,
    "linear_value_head_dim": 16,
    "linear_key_head_dim": 8,
}
BIASED = {"attention_bias": True, "mlp_bias": True}
NEMOTRON: dict[str, Any] = ROUTED | {
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 8,
    "moe_shared_expert_intermediate_size": 40,
    "hybrid_override_pattern": "M-*EM-*E",
}
CHANGES: dict[str, list[dict[str, Any]]] = {
    "apertus": [{}],
    "arcee": [BIASED],
    "cohere": [{"use_qk_norm": True}, {"attention_bias": True}],
    "cohere2": [{"sliding_window": 8}],
    "deepseek_v2": [LATENT, LATENT | {"q_lora_rank": None}],
    "deepseek_v3": [LATENT],
    "deepseek_v32": [SPARSE],
    "ernie4_5": [{"use_bias": True}],
    "ernie4_5_moe": [{"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 48, "use_bias": True}],
    "exaone4": [{"sliding_window": 8, "sliding_window_pattern": 4}],
    "gemma": [{}],
    "gemma2": [{"sliding_window": 8}],
    "gemma3_text": [{"sliding_window": 8}],
    "gemma4_text": [
        {"sliding_window": 8, "global_head_dim": 40, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
        MOE
        | {"sliding_window": 8, "global_head_dim": 40, "num_global_key_value_heads": 1, "attention_k_eq_v": True}
        | {"enable_moe_block": True, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "top_k_experts": 2},
    ],
    "glm": [{}],
    "glm4": [{}],
    "glm4_moe": [ROUTED | {"attention_bias": True, "use_qk_norm": True}],
    "glm4_moe_lite": [LATENT | {"first_k_dense_replace": 1}],
    "glm_moe_dsa": [SPARSE, SPARSE | {"index_topk_freq": 4, "index_skip_topk_offset": 3}],
    "gpt_oss": [{"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 8}],
    "granite": [BIASED],
    "granitemoe": [{"num_local_experts": 8, "num_experts_per_tok": 2}],
    "granitemoehybrid": [
        {"num_local_experts": count, "num_experts_per_tok": 2, "shared_intermediate_size": 56, "mamba_n_heads": 8}
        | {"mamba_d_state": 8, "layer_types": ["mamba", "attention"] * 4}
        for count in (0, 8)
    ],
    "hunyuan_v1_dense": [{}],
    "llama": [BIASED, {"tie_word_embeddings": True}],
    "llama4_text": [
        {"num_local_experts": 8, "num_experts_per_tok": 1, "intermediate_size_mlp": 80, "interleave_moe_layer_step": 2}
        | {"attention_chunk_size": 8}
    ],
    "mimo_v2_flash": [
        ROUTED
        | {"n_shared_experts": None, "v_head_dim": 16, "sliding_window": 8}
        | {"moe_layer_freq": [0] + [1] * 7, "num_key_value_heads": 1}
    ],
    "minimax_m2": [{"num_local_experts": 8, "num_experts_per_tok": 2}],
    "ministral": [{"sliding_window": 8}],
    "ministral3": [{}],
    "mistral": [{"sliding_window": 8}],
    "mixtral": [{"num_local_experts": 8, "num_experts_per_tok": 2}],
    "nemotron": [BIASED],
    "nemotron_h": [NEMOTRON, NEMOTRON | {"moe_latent_size": 32}],
    "olmo": [{}],
    "olmo2": [{}],
    "olmo3": [{"sliding_window": 8}],
    "olmoe": [{"num_experts": 8, "num_experts_per_tok": 2, "head_dim": 16}],
    "phi": [{"qk_layernorm": False}],
    "phi3": [{}],
    "phimoe": [{"num_local_experts": 8, "num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True}],
    "qwen2": [{}, {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 8}],
    "qwen2_moe": [SHARED | {"decoder_sparse_step": 2}],
    "qwen3": [{}],
    "qwen3_5_moe_text": [SHARED | LINEAR],
    "qwen3_5_text": [LINEAR],
    "qwen3_moe": [MOE | {"mlp_only_layers": [0]}],
    "qwen3_next": [SHARED | LINEAR, SHARED | LINEAR | {"mlp_only_layers": [1]}],
    "seed_oss": [{}],
    "smollm3": [{}],
    "stablelm": [
        {"use_qkv_bias": True, "head_dim": 16},
        {"qk_layernorm": True, "use_parallel_residual": True, "head_dim": 16},
    ],
    "starcoder2": [{}],
}
ELSEWHERE = {
    # Custom code; read as deepseek_v3 and qwen2.
    "kimi_k2",
    "mimo",
    # Without a class of their own for text: tests/engines/test_real_configs.py.
    "qwen2_vl_text",
    "qwen2_5_vl_text",
    "qwen3_vl_text",
    "qwen3_vl_moe_text",
}
WITHOUT_HEAD_DIM = {"olmoe", "stablelm"}
"""Families whose classes leave the key unread; a configuration has no other width than hidden over heads."""
CASES = [(family, changes) for family, several in CHANGES.items() for changes in several]
NAMES = [f"{family}-{sum(one == family for one, _ in CASES[:place])}" for place, (family, _) in enumerate(CASES)]
OPTIONAL = (
    "head_dim",
    "num_key_value_heads",
    "sliding_window",
    "tie_word_embeddings",
    "first_k_dense_replace",
    "v_head_dim",
)


def build(config: dict[str, Any], device: str = "meta") -> Any:
    built = transformers.AutoConfig.for_model(**config, attn_implementation="eager", torch_dtype="float32")
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(built).eval()


def counted(model: Any) -> tuple[int, int]:
    """All parameters, and those of routed experts; the routing correction is a buffer in transformers."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    sizes |= {name: buffer.numel() for name, buffer in model.named_buffers() if "correction" in name}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if re.search(r"\.experts\.", name))


def active(shape: ModelShape, whole: int, routed: int) -> float:
    """Parameters that a token visits, by transformers' counts."""
    return (
        whole
        if shape.experts is None
        else whole - routed * (1 - shape.experts.experts_per_token / shape.experts.experts)
    )


def test_every_family_is_here() -> None:
    assert set(CHANGES) | ELSEWHERE == set(TEXT)


@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
def test_parameters_are_those_of_the_model(family: str, changes: dict[str, Any]) -> None:
    config = BASE | {"model_type": family} | changes
    model, shape = build(config), read_shape(config, name=family)
    whole, routed = counted(model)
    assert shape.parameters == whole
    assert shape.active_parameters == active(shape, whole, routed)
    # As transformers 5 saves it, under other names.
    saved = read_shape(model.config.to_dict(), name=family)
    assert (saved.parameters, saved.kv_bytes(48), saved.state_bytes) == (
        shape.parameters,
        shape.kv_bytes(48),
        shape.state_bytes,
    )


@pytest.mark.parametrize("key", OPTIONAL)
@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
def test_a_key_that_is_missing_has_the_default_of_the_family(family: str, changes: dict[str, Any], key: str) -> None:
    config = BASE | {"model_type": family} | changes | {"num_attention_heads": 64}
    for name in (key, *(["head_dim"] if family in WITHOUT_HEAD_DIM else [])):
        config.pop(name, None)
    try:
        model = build(config)
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError):
        return
    try:
        shape = read_shape(config, name=family)
    except InfergyError:
        # It has no default here: the error names the key.
        return
    assert shape.parameters == counted(model)[0]


@pytest.mark.parametrize(("family", "changes"), [case for case in CASES if "kv_lora_rank" not in case[1]])
def test_the_cache_has_the_values_of_the_model(family: str, changes: dict[str, Any]) -> None:
    """After 24 tokens; of latent attention transformers caches expanded keys and values: test_real_configs.py."""
    config = BASE | {"model_type": family} | changes
    shape = read_shape(config, name=family)
    with torch.no_grad():
        cache = build(config, "cpu")(input_ids=torch.randint(3, 160, (1, 24)), use_cache=True).past_key_values
    held = sum(
        layer.keys.numel() + layer.values.numel() for layer in cache.layers if getattr(layer, "keys", None) is not None
    )
    window = shape.attention.window
    # transformers keeps a window without the token to come.
    less = 0 if window is None else window.layers * (window.attention or shape.attention).cached_values
    assert held == shape.kv_bytes(24) / 2 - less
