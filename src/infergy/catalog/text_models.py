"""Readers of dense text models' Hugging Face `config.json`, by family; docstrings name its class in transformers (5.x).

Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from infergy.catalog.config_parts import (
    Config,
    Reader,
    biased,
    make_attention,
    make_shape,
    norms_of_all_heads,
    window_layers,
    windowed,
)
from infergy.catalog.layers import AttentionShape
from infergy.catalog.shape import ModelShape


def dense(
    *,
    bias: bool = False,
    bias_key: str = "attention_bias",
    output_bias: str | None = None,
    default_dim: int | None = None,
    head_norms: bool = False,
    all_head_norms: bool = False,
    window: int | None = None,
    window_pattern: int | None = None,
    norms: int = 2,
    norm_vectors: int = 1,
    mlp_bias: str = "mlp_bias",
    gated: bool = True,
    tied: bool = False,
) -> Reader:
    """A reader of a family that differs from Llama in these defaults and keys.

    Args:
        bias: Default of `bias_key`: biases of queries, keys and values.
        bias_key: See `bias`.
        output_bias: Key of the bias of attention's output; None: `bias_key` again, empty: it never has one.
        default_dim: Width of a head; None: the hidden width over the heads.
        head_norms: Norms on queries and keys, head by head; `all_head_norms` over all heads together.
        all_head_norms: See `head_norms`.
        window: Tokens of the sliding window if `sliding_window` is missing; `window_pattern` says in which layers.
        window_pattern: Each of so many layers sees all; None: none does.
        norms: Norms of a layer, each of `norm_vectors` vectors: 2 for a LayerNorm with bias, 0 for one without weight.
        norm_vectors: See `norms`.
        mlp_bias: Key of the biases of the MLP.
        gated: Whether the MLP has a gate.
        tied: Default of `tie_word_embeddings`.
    """

    def read(config: Config) -> ModelShape:
        has_bias = config.flag(bias_key, bias)
        attention = make_attention(
            config,
            default_dim=default_dim,
            head_norms=head_norms,
            qkv_bias=has_bias,
            output_bias=has_bias if output_bias is None else bool(output_bias) and config.flag(output_bias),
        )
        if all_head_norms:
            attention = norms_of_all_heads(attention)
        if window is not None or config.data.get("sliding_window") is not None:
            layers = None if window_pattern is None else window_layers(config, window_pattern)
            attention = windowed(config, attention, layers, window)
        return make_shape(
            config,
            attention,
            gated=gated,
            mlp_bias=config.flag(mlp_bias, bias and mlp_bias == bias_key),
            norms=norms,
            norm_width=norm_vectors * config.integer("hidden_size"),
            default_tied=tied,
        )

    return read


def qwen_window(config: Config, attention: AttentionShape) -> AttentionShape:
    """Qwen slides only if `use_sliding_window` says so: 4096 tokens, in the layers from `max_window_layers` (28) on."""
    if not config.flag("use_sliding_window"):
        return attention
    return windowed(config, attention, max(0, config.layers - config.integer("max_window_layers", 28)), 4096)


def qwen3_attention(config: Config, default_dim: int | None = 128) -> AttentionShape:
    """Norms on queries and keys, head by head."""
    return qwen_window(config, make_attention(config, default_dim=default_dim, head_norms=True, **biased(config)))


def _gemma3_text(config: Config) -> ModelShape:
    """Gemma3TextConfig: 8 heads, 4 of keys and values, of 256; 262,208 tokens; five layers in six see 4096."""
    attention = make_attention(config, default_dim=256, heads=8, kv_heads=4, head_norms=True, **biased(config))
    attention = windowed(config, attention, window_layers(config, 6), 4096)
    return make_shape(config, attention, norms=4, default_vocabulary=262_208, default_tied=True)


def _phi(config: Config) -> ModelShape:
    """Phi-1 and Phi-2: one LayerNorm per layer, biases throughout, an MLP without a gate."""
    attention = make_attention(config, qkv_bias=True, output_bias=True)
    if config.flag("qk_layernorm"):
        attention = dataclasses.replace(attention, vector_parameters=4 * attention.head_dim)
    width = 2 * config.integer("hidden_size")
    return make_shape(config, attention, gated=False, mlp_bias=True, norms=1, norm_width=width, head_bias=True)


def _cohere(config: Config) -> ModelShape:
    """Command R: one LayerNorm without bias per layer; with `use_qk_norm` a norm for each head."""
    attention = make_attention(config, **biased(config))
    if config.flag("use_qk_norm"):
        attention = norms_of_all_heads(attention)
    return make_shape(config, attention, norms=1, default_tied=True)


def _stablelm(config: Config) -> ModelShape:
    """StableLmConfig: LayerNorms with bias, one fewer where `use_parallel_residual` says so."""
    attention = make_attention(config, qkv_bias=config.flag("use_qkv_bias"))
    if config.flag("qk_layernorm"):
        attention = norms_of_all_heads(attention)
    norms = 1 if config.flag("use_parallel_residual") else 2
    return make_shape(config, attention, norms=norms, norm_width=2 * config.integer("hidden_size"))


def _apertus(config: Config) -> ModelShape:
    """Apertus: norms on queries and keys; its activation, xIELU, has two parameters in each layer."""
    shape = dense(head_norms=True, gated=False)(config)
    return dataclasses.replace(shape, other_parameters=shape.other_parameters + 2 * shape.layers)


def _qwen2(config: Config) -> ModelShape:
    """Qwen 1.5, 2 and 2.5: queries, keys and values have biases."""
    return make_shape(config, qwen_window(config, make_attention(config, qkv_bias=True)))


def _qwen3(config: Config) -> ModelShape:
    return make_shape(config, qwen3_attention(config))


DENSE: Mapping[str, Reader] = {
    "apertus": _apertus,
    "arcee": dense(gated=False),
    "cohere": _cohere,
    "cohere2": dense(window=4096, window_pattern=4, norms=1, tied=True),
    "ernie4_5": dense(bias_key="use_bias", mlp_bias="use_bias", default_dim=128, tied=True),
    "exaone4": dense(head_norms=True, window=4096, window_pattern=4),
    "gemma": dense(default_dim=256, tied=True),
    "gemma2": dense(default_dim=256, window=4096, window_pattern=2, norms=4, tied=True),
    "gemma3_text": _gemma3_text,
    "glm": dense(bias=True, output_bias="", default_dim=128),
    "glm4": dense(bias=True, output_bias="", default_dim=128, norms=4),
    "granite": dense(),
    "hunyuan_v1_dense": dense(head_norms=True),
    # Llama 2 and 3, and what is built alike.
    "llama": dense(),
    # Custom code, of the class of Qwen2; its layer for multi-token prediction is not counted.
    "mimo": _qwen2,
    "ministral": dense(window=4096),
    "ministral3": dense(default_dim=128),
    # MistralConfig: a window of 4096 tokens unless the configuration says null.
    "mistral": lambda c: make_shape(c, windowed(c, make_attention(c), default=4096)),
    "nemotron": dense(norm_vectors=2, gated=False),
    # OLMo's norms have no parameters.
    "olmo": dense(norm_vectors=0),
    "olmo2": dense(all_head_norms=True),
    "olmo3": dense(all_head_norms=True, window=4096, window_pattern=4),
    "phi": _phi,
    # Its fused matrices have the same entries as separate ones; Phi3Config: no window.
    "phi3": lambda c: make_shape(c, windowed(c, make_attention(c))),
    "qwen2": _qwen2,
    "qwen2_5_vl_text": _qwen2,
    "qwen2_vl_text": _qwen2,
    "qwen3": _qwen3,
    "qwen3_vl_text": _qwen3,
    "seed_oss": dense(bias=True, output_bias="attention_out_bias", default_dim=128),
    "smollm3": dense(tied=True),
    "stablelm": _stablelm,
    "starcoder2": dense(bias=True, bias_key="use_bias", mlp_bias="use_bias", norm_vectors=2, gated=False, tied=True),
}
"""Readers by `model_type`."""
