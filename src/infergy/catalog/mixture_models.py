"""Readers of mixtures of experts, by family; docstrings name its class in transformers (5.x).

Modules for multi-token prediction are not counted: plain decoding does not load them. Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from infergy.catalog.config_parts import (
    Config,
    Reader,
    biased,
    make_attention,
    make_experts,
    make_shape,
    norms_of_all_heads,
    windowed,
)
from infergy.catalog.layers import AttentionShape, ExpertShape, Indexer, LatentAttention, Window
from infergy.catalog.shape import ModelShape
from infergy.catalog.text_models import qwen3_attention, qwen_window


def _sparse_layers(config: Config, first_dense: int | None = None) -> int:
    """Layers with experts: as listed, else all but the first, whose number has this default."""
    kinds, frequency = config.listed("mlp_layer_types", ()), config.data.get("moe_layer_freq")
    if kinds:
        return list(kinds).count("sparse")
    if isinstance(frequency, list):
        return sum(map(bool, frequency))
    return config.layers - config.integer("first_k_dense_replace", first_dense, least=0)


def _deepseek_experts(config: Config, *, corrected: bool = True, first_dense: int | None = None) -> ExpertShape:
    """Routed experts, by default with a correction each, and shared ones of the same width."""
    return make_experts(
        config,
        "n_routed_experts",
        layers=_sparse_layers(config, first_dense),
        shared_intermediate=config.integer("moe_intermediate_size") * config.integer("n_shared_experts", least=0),
        router_parameters=config.integer("n_routed_experts") if corrected else 0,
    )


def _latent_attention(config: Config, indexer: Indexer | None = None) -> AttentionShape:
    if config.flag("attention_bias"):
        raise config.unsupported("attention_bias", True, "no published model with latent attention has it")
    heads, rope = config.integer("num_attention_heads"), config.integer("qk_rope_head_dim")
    kv_rank = config.integer("kv_lora_rank")
    rank = None if config.data.get("q_lora_rank") is None else config.integer("q_lora_rank")
    return AttentionShape(
        heads=heads,
        kv_heads=heads,
        head_dim=config.integer("qk_nope_head_dim") + rope,
        value_dim=config.integer("v_head_dim"),
        vector_parameters=kv_rank + (rank or 0),
        latent=LatentAttention(query_rank=rank, kv_rank=kv_rank, rope_dim=rope),
        indexer=indexer,
    )


def _deepseek(**experts: Any) -> Reader:
    return lambda c: make_shape(c, _latent_attention(c), experts=_deepseek_experts(c, **experts))


def _sparse_attention(config: Config) -> ModelShape:
    """DeepSeek-V3.2 and GLM-5: latent attention sees the positions that an indexer chooses.

    GlmMoeDsaConfig: each `index_topk_freq`-th layer from the `index_skip_topk_offset`-th (2) on has an indexer, unless
    `indexer_types` lists those that have, or `index_topk_pattern` marks them by an F.
    """
    types, pattern = config.listed("indexer_types", ()), config.data.get("index_topk_pattern")
    every, offset = config.integer("index_topk_freq", 1), config.integer("index_skip_topk_offset", 2, least=0)
    layers = sum(max(layer - offset + 1, 0) % every == 0 for layer in range(config.layers))
    if types:
        layers = list(types).count("full")
    elif isinstance(pattern, str):
        layers = pattern.count("F")
    indexer = Indexer(
        layers=layers,
        heads=config.integer("index_n_heads"),
        head_dim=config.integer("index_head_dim"),
        query_rank=config.integer("q_lora_rank"),
        tokens=config.integer("index_topk"),
    )
    return make_shape(config, _latent_attention(config, indexer), experts=_deepseek_experts(config, first_dense=3))


def _qwen3_moe(default_dim: int | None) -> Reader:
    """Qwen3 with experts in every `decoder_sparse_step`-th layer, except those that `mlp_only_layers` names."""

    def read(config: Config) -> ModelShape:
        experts = make_experts(config, "num_experts", layers=_qwen_sparse_layers(config))
        return make_shape(config, qwen3_attention(config, default_dim), experts=experts)

    return read


def _qwen_sparse_layers(config: Config) -> int:
    step, dense = config.integer("decoder_sparse_step", 1), config.listed("mlp_only_layers", ())
    return sum(layer not in dense and (layer + 1) % step == 0 for layer in range(config.layers))


def qwen_shared_experts(config: Config) -> ExpertShape:
    """Experts of Qwen2-MoE and Qwen3-Next: a shared one has a gate of its own, a value per token."""
    return make_experts(
        config,
        "num_experts",
        layers=_qwen_sparse_layers(config),
        shared_intermediate=config.integer("shared_expert_intermediate_size"),
        router_parameters=config.integer("hidden_size"),
    )


def _gpt_oss(config: Config) -> ModelShape:
    """GptOssConfig: heads of 64, biases throughout, every other layer sees 128 tokens, starting with the first."""
    sinks = config.integer("num_attention_heads")
    attention = make_attention(config, default_dim=64, vector_parameters=sinks, **biased(config, default=True))
    experts = make_experts(
        config,
        "num_local_experts",
        width="intermediate_size",
        bias=True,
        router_parameters=config.integer("num_local_experts"),
    )
    attention = windowed(config, attention, (config.layers + 1) // 2, 128)
    return make_shape(config, attention, mlp_width=0, experts=experts)


def _glm4_moe(config: Config) -> ModelShape:
    """GLM-4.5: queries, keys and values have biases, the output has none.

    Glm4MoeConfig: no norms on queries and keys unless `use_qk_norm` says so.
    """
    attention = make_attention(config, qkv_bias=config.flag("attention_bias"), head_norms=config.flag("use_qk_norm"))
    return make_shape(config, attention, experts=_deepseek_experts(config, first_dense=1))


def _mimo_v2_flash(config: Config) -> ModelShape:
    """MiMo-V2-Flash: layers with a window have twice the heads of keys and values, and sinks; no shared experts."""
    heads, kv_heads = config.integer("num_attention_heads"), config.integer("num_key_value_heads")
    full = AttentionShape(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=config.integer("head_dim", 192),
        value_dim=config.integer("v_head_dim", 128),
        qkv_bias=config.flag("attention_bias"),
    )
    own = dataclasses.replace(
        full, kv_heads=config.integer("swa_num_key_value_heads", 2 * kv_heads), vector_parameters=heads
    )
    pattern = [layer > 0 and (layer + 1) % 6 > 0 for layer in range(config.layers)]
    layers = config.window_count(sum(map(bool, config.listed("hybrid_layer_pattern", pattern))))
    # `sliding_window_size` does not count the token itself.
    tokens = config.integer("sliding_window_size", config.integer("sliding_window", 129) - 1) + 1
    attention = dataclasses.replace(full, window=Window(tokens=tokens, layers=layers, attention=own))
    routed = config.integer("n_routed_experts")
    experts = make_experts(config, "n_routed_experts", layers=_sparse_layers(config), router_parameters=routed)
    return make_shape(config, attention, experts=experts)


def _gemma4_text(config: Config) -> ModelShape:
    """Gemma 4: layers that see all have heads of `global_head_dim` (512), and with `attention_k_eq_v` no values.

    With `enable_moe_block` each layer has an MLP and experts, three norms more, and scales in its router.
    """
    for key in ("num_kv_shared_layers", "hidden_size_per_layer_input"):
        if config.data.get(key):
            raise config.unsupported(key, config.data[key], "layers that share a cache, or have inputs of their own")
    own = make_attention(config, default_dim=256, head_norms=True, **biased(config))
    # As transformers 5 saves them, by layer.
    layers = config.data.get("per_layer_config")
    wider = dict(next(iter(layers.values()))) if isinstance(layers, Mapping) and layers else {}
    wide = config.integer("global_head_dim", wider.get("head_dim", 512))
    shares, kv_heads = config.flag("attention_k_eq_v"), wider.get("num_key_value_heads", own.kv_heads)
    full = dataclasses.replace(
        own,
        kv_heads=config.integer("num_global_key_value_heads", kv_heads) if shares else own.kv_heads,
        head_dim=wide,
        value_dim=wide,
        vector_parameters=2 * wide,
        values_are_keys=shares,
    )
    # The last layer sees all.
    attention = windowed(config, full, config.layers - -(-config.layers // 6), 512, own)
    experts, norms = None, 4
    if config.flag("enable_moe_block"):
        scales = config.integer("hidden_size") + config.integer("num_experts")
        experts, norms = make_experts(config, "num_experts", router_parameters=scales), 7
    count = config.layers
    return make_shape(config, attention, experts=experts, mlp_layers=count, norms=norms, default_tied=True)


def _ernie4_5_moe(config: Config) -> ModelShape:
    """Ernie4_5_MoeConfig: experts in each `moe_layer_interval`-th layer from `moe_layer_start_index` (1) on."""
    bias, last = config.flag("use_bias"), config.data.get("moe_layer_end_index", -1)
    start, every = config.integer("moe_layer_start_index", 1, least=0), config.integer("moe_layer_interval", 1)
    last = config.layers - 1 if last in (None, -1) else config.integer("moe_layer_end_index", least=0)
    shared = config.integer("moe_intermediate_size") * config.integer("n_shared_experts", 2, least=0)
    experts = make_experts(
        config,
        "num_experts",
        layers=sum((layer + 1) % every == 0 and start <= layer <= last for layer in range(config.layers)),
        shared_intermediate=shared,
        router_parameters=config.integer("num_experts") + bias * (2 * shared + config.integer("hidden_size")),
    )
    attention = make_attention(config, qkv_bias=bias, output_bias=bias)
    return make_shape(config, attention, experts=experts, mlp_bias=bias, head_bias=bias, default_tied=True)


def _phimoe(config: Config) -> ModelShape:
    """Phi-3.5-MoE: LayerNorms with bias, experts in all layers."""
    experts = make_experts(config, "num_local_experts", width="intermediate_size")
    attention = windowed(config, make_attention(config, **biased(config)))
    width, head_bias = 2 * config.integer("hidden_size"), config.flag("lm_head_bias")
    return make_shape(config, attention, mlp_width=0, experts=experts, norm_width=width, head_bias=head_bias)


def _llama4_text(config: Config) -> ModelShape:
    """Llama 4: one shared expert as wide as a routed one; `intermediate_size_mlp` in the layers without experts.

    Llama4TextConfig: three layers in four see their own chunk of 8192 tokens; heads of 128; norms on queries and keys
    have no parameters.
    """
    layers, step = config.layers, config.integer("interleave_moe_layer_step", 1)
    width, interval = config.integer("intermediate_size"), config.integer("no_rope_layer_interval", 4)
    attention = make_attention(config, default_dim=128)
    if config.data.get("attention_chunk_size", 8192) is not None:
        signs = config.listed("no_rope_layers", ()) or [(layer + 1) % interval for layer in range(layers)]
        chunk, count = config.integer("attention_chunk_size", 8192), sum(bool(sign) for sign in signs)
        attention = dataclasses.replace(attention, window=Window(tokens=chunk, layers=count, chunked=True))
    sparse = len(config.listed("moe_layers", range(step - 1, layers, step)))
    experts = make_experts(
        config, "num_local_experts", width="intermediate_size", layers=sparse, shared_intermediate=width
    )
    dense = config.integer("intermediate_size_mlp") if sparse < layers else 0
    return make_shape(config, attention, mlp_width=dense, experts=experts)


def _all_experts(count: str, attention: Any, *, corrected: bool = False) -> Reader:
    """Every layer has experts; `intermediate_size` is the width of one."""

    def read(config: Config) -> ModelShape:
        corrections = config.integer(count) if corrected else 0
        experts = make_experts(config, count, width="intermediate_size", router_parameters=corrections)
        return make_shape(config, attention(config), mlp_width=0, experts=experts)

    return read


MIXTURES: Mapping[str, Reader] = {
    "deepseek_v2": _deepseek(corrected=False, first_dense=0),
    "deepseek_v3": _deepseek(),
    "deepseek_v32": _sparse_attention,
    "ernie4_5_moe": _ernie4_5_moe,
    "gemma4_text": _gemma4_text,
    "glm4_moe": _glm4_moe,
    "glm4_moe_lite": _deepseek(first_dense=1),
    "glm_moe_dsa": _sparse_attention,
    "gpt_oss": _gpt_oss,
    "granitemoe": _all_experts("num_local_experts", lambda c: make_attention(c, **biased(c))),
    "kimi_k2": _deepseek(),
    "llama4_text": _llama4_text,
    "mimo_v2_flash": _mimo_v2_flash,
    "minimax_m2": _all_experts(
        "num_local_experts", lambda c: norms_of_all_heads(make_attention(c, default_dim=128)), corrected=True
    ),
    "mixtral": _all_experts("num_local_experts", lambda c: windowed(c, make_attention(c))),
    "olmoe": _all_experts("num_experts", lambda c: norms_of_all_heads(make_attention(c, **biased(c)))),
    "phimoe": _phimoe,
    "qwen2_moe": lambda c: make_shape(
        c, qwen_window(c, make_attention(c, qkv_bias=c.flag("qkv_bias", True))), experts=qwen_shared_experts(c)
    ),
    "qwen3_moe": _qwen3_moe(None),
    "qwen3_vl_moe_text": _qwen3_moe(128),
}
"""Readers by `model_type`."""
