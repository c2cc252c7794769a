"""Readers of text models, one a family. Standard library only.

What a key's absence means is that of the family's configuration class in transformers (5.x), named beside it.
"""

from __future__ import annotations

import dataclasses

from infergy.errors import DataError, UsageError
from infergy.hardware.config_keys import Config, attention_shape, dense_shape, windowed
from infergy.hardware.layers import AttentionShape, ExpertShape, LatentAttention
from infergy.hardware.mamba import MambaShape
from infergy.hardware.shape import ModelShape, dtype_bytes
from infergy.units import count_of


def read_llama(config: Config) -> ModelShape:
    """Llama 2 and 3, and what is built alike."""
    bias = config.flag("attention_bias", False)
    attention = attention_shape(config, qkv_bias=bias, output_bias=bias)
    return dense_shape(config, attention, mlp_bias=config.flag("mlp_bias", False))


def read_mistral(config: Config) -> ModelShape:
    """MistralConfig: a window of 4096 tokens unless the configuration says null."""
    layers = config.integer("num_hidden_layers")
    return dense_shape(config, windowed(config, attention_shape(config), layers, 4096))


def read_phi3(config: Config) -> ModelShape:
    """Its fused matrices hold what separate ones do; Phi3Config: no window."""
    return dense_shape(config, windowed(config, attention_shape(config), config.integer("num_hidden_layers")))


def read_mixtral(config: Config) -> ModelShape:
    """Every layer has experts; `intermediate_size` is the width of one."""
    attention = windowed(config, attention_shape(config), config.integer("num_hidden_layers"))
    experts = ExpertShape(
        experts=config.integer("num_local_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=config.integer("intermediate_size"),
        shared_intermediate=0,
        layers=config.integer("num_hidden_layers"),
    )
    return dense_shape(config, attention, intermediate=0, experts=experts)


def _qwen_window(config: Config, attention: AttentionShape) -> AttentionShape:
    """Qwen slides only if `use_sliding_window` says so: 4096 tokens, in the layers from `max_window_layers` (28) on."""
    if not config.flag("use_sliding_window", False):
        return attention
    full = config.integer("max_window_layers", 28)
    return windowed(config, attention, max(0, config.integer("num_hidden_layers") - full), 4096)


def read_qwen2(config: Config) -> ModelShape:
    """Qwen 1.5, 2 and 2.5: queries, keys and values have biases."""
    return dense_shape(config, _qwen_window(config, attention_shape(config, qkv_bias=True)))


def _qwen3_attention(config: Config) -> AttentionShape:
    bias = config.flag("attention_bias", False)
    attention = attention_shape(config, default_head_dim=128, qkv_bias=bias, output_bias=bias)
    return _qwen_window(config, dataclasses.replace(attention, norm_parameters=2 * attention.head_dim))


def read_qwen3(config: Config) -> ModelShape:
    """Qwen3: norms on queries and keys, head by head."""
    return dense_shape(config, _qwen3_attention(config))


def read_qwen3_moe(config: Config) -> ModelShape:
    """Qwen3 with experts in every `decoder_sparse_step`-th layer, but those that `mlp_only_layers` names."""
    layers, step = config.integer("num_hidden_layers"), config.integer("decoder_sparse_step", 1)
    dense = set(config.listed("mlp_only_layers", ()))
    experts = ExpertShape(
        experts=config.integer("num_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=config.integer("moe_intermediate_size"),
        shared_intermediate=0,
        layers=sum(layer not in dense and (layer + 1) % step == 0 for layer in range(layers)),
    )
    return dense_shape(config, _qwen3_attention(config), experts=experts)


def read_gemma3_text(config: Config) -> ModelShape:
    """Gemma3TextConfig: 8 heads, 4 of keys and values, of 256; 262,208 tokens; five layers in six see 4096."""
    bias = config.flag("attention_bias", False)
    attention = attention_shape(
        config, default_head_dim=256, default_heads=8, default_kv_heads=4, qkv_bias=bias, output_bias=bias
    )
    layers, pattern = config.integer("num_hidden_layers"), config.integer("sliding_window_pattern", 6)
    attention = dataclasses.replace(attention, norm_parameters=2 * attention.head_dim)
    attention = windowed(config, attention, layers - layers // pattern, 4096)
    return dense_shape(config, attention, norms=4, default_vocabulary=262_208, default_tied=True)


def read_gpt_oss(config: Config) -> ModelShape:
    """GptOssConfig: heads of 64, biases throughout, every other layer sees 128 tokens, the first one does."""
    layers = config.integer("num_hidden_layers")
    bias = config.flag("attention_bias", True)
    attention = attention_shape(config, default_head_dim=64, qkv_bias=bias, output_bias=bias, sinks=True)
    experts = ExpertShape(
        experts=config.integer("num_local_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=config.integer("intermediate_size"),
        shared_intermediate=0,
        layers=layers,
        bias=True,
        router_parameters=config.integer("num_local_experts"),
    )
    return dense_shape(config, windowed(config, attention, (layers + 1) // 2, 128), intermediate=0, experts=experts)


def read_olmo(config: Config) -> ModelShape:
    """OLMo's norms have no parameters."""
    bias = config.flag("attention_bias", False)
    return dense_shape(config, attention_shape(config, qkv_bias=bias, output_bias=bias), norm_parameters=0)


def _olmo_attention(config: Config) -> AttentionShape:
    """Norms over all queries together and over all keys together, not head by head."""
    bias = config.flag("attention_bias", False)
    attention = attention_shape(config, qkv_bias=bias, output_bias=bias)
    norms = (attention.heads + attention.kv_heads) * attention.head_dim
    return dataclasses.replace(attention, norm_parameters=norms)


def read_olmo2(config: Config) -> ModelShape:
    """OLMo 2."""
    return dense_shape(config, _olmo_attention(config))


def read_olmoe(config: Config) -> ModelShape:
    """OLMoE: experts in every layer."""
    experts = ExpertShape(
        experts=config.integer("num_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=config.integer("intermediate_size"),
        shared_intermediate=0,
        layers=config.integer("num_hidden_layers"),
    )
    return dense_shape(config, _olmo_attention(config), intermediate=0, experts=experts)


def read_deepseek_v3(config: Config) -> ModelShape:
    """The module for multi-token prediction is not counted: plain decoding does not load it."""
    bias = config.flag("attention_bias", False)
    heads, rope = config.integer("num_attention_heads"), config.integer("qk_rope_head_dim")
    kv_rank = config.integer("kv_lora_rank")
    rank = None if config.data.get("q_lora_rank") is None else config.integer("q_lora_rank")
    hidden, layers = config.integer("hidden_size"), config.integer("num_hidden_layers")
    if bias:
        message = f"{config.name}: deepseek_v3 with attention_bias is not known; no published model has it"
        raise UsageError(message, code="unknown-architecture", place=config.name, key="attention_bias", value=True)
    attention = AttentionShape(
        heads=heads,
        kv_heads=heads,
        head_dim=config.integer("qk_nope_head_dim") + rope,
        value_dim=config.integer("v_head_dim"),
        norm_parameters=kv_rank + (rank or 0),
        latent=LatentAttention(query_rank=rank, kv_rank=kv_rank, rope_dim=rope),
    )
    dense = config.count("first_k_dense_replace")
    routed, width = config.integer("n_routed_experts"), config.integer("moe_intermediate_size")
    experts = ExpertShape(
        experts=routed,
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=width,
        shared_intermediate=width * config.count("n_shared_experts"),
        layers=layers - dense,
        router_parameters=routed,
    )
    return dense_shape(config, attention, hidden=hidden, experts=experts)


def read_phi(config: Config) -> ModelShape:
    """Phi-1 and Phi-2: one LayerNorm a layer, biases throughout, an MLP without a gate."""
    attention = attention_shape(config, qkv_bias=True, output_bias=True)
    if config.flag("qk_layernorm", False):
        attention = dataclasses.replace(attention, norm_parameters=4 * attention.head_dim)
    hidden = config.integer("hidden_size")
    return dense_shape(
        config, attention, gated=False, mlp_bias=True, norms=1, norm_parameters=2 * hidden, head_bias=True
    )


def read_glm4_moe(config: Config) -> ModelShape:
    """GLM-4.5: queries, keys and values have biases, the output has none. Its module for several tokens is not counted.

    Glm4MoeConfig: no norms on queries and keys unless `use_qk_norm` says so.
    """
    attention = attention_shape(config, qkv_bias=config.flag("attention_bias", False))
    if config.flag("use_qk_norm", False):
        attention = dataclasses.replace(attention, norm_parameters=2 * attention.head_dim)
    routed, width = config.integer("n_routed_experts"), config.integer("moe_intermediate_size")
    experts = ExpertShape(
        experts=routed,
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=width,
        shared_intermediate=width * config.count("n_shared_experts"),
        layers=config.integer("num_hidden_layers") - config.count("first_k_dense_replace"),
        router_parameters=routed,
    )
    return dense_shape(config, attention, experts=experts)


NEMOTRON_LAYERS = {"M": "Mamba-2", "*": "attention", "-": "MLP", "E": "experts"}


def read_nemotron_h(config: Config) -> ModelShape:
    """Each layer is one of four kinds with one norm; its MLPs and experts have no gate (squared ReLU).

    NemotronHConfig: no biases but the convolution's; heads of 128; states in float32.
    """
    layers, pattern = config.integer("num_hidden_layers"), config.data.get("hybrid_override_pattern")
    if not isinstance(pattern, str) or len(pattern) != layers or not set(pattern) <= set(NEMOTRON_LAYERS):
        kinds = ", ".join(f"{sign} ({kind})" for sign, kind in NEMOTRON_LAYERS.items())
        raise DataError.bad_field(
            config.name,
            "hybrid_override_pattern",
            pattern,
            f"a sign for each of the {count_of(layers, 'layer')}: {kinds}",
        )
    bias = config.flag("use_bias", False)
    mamba = MambaShape(
        layers=pattern.count("M"),
        heads=config.integer("mamba_num_heads"),
        head_dim=config.integer("mamba_head_dim"),
        state=config.integer("ssm_state_size"),
        groups=config.integer("n_groups"),
        kernel=config.integer("conv_kernel", 4),
        projection_bias=bias,
        convolution_bias=config.flag("use_conv_bias", True),
        state_value_bytes=dtype_bytes(str(config.data.get("mamba_ssm_cache_dtype", "float32"))),
    )
    qkv_bias = config.flag("attention_bias", False)
    return dense_shape(
        config,
        attention_shape(config, default_head_dim=128, qkv_bias=qkv_bias, output_bias=qkv_bias),
        experts=_nemotron_experts(config, pattern.count("E")),
        gated=False,
        mlp_bias=config.flag("mlp_bias", False),
        norms=1,
        attention_layers=pattern.count("*"),
        mlp_layers=pattern.count("-"),
        mamba=mamba,
    )


def _nemotron_experts(config: Config, layers: int) -> ExpertShape | None:
    if not layers:
        return None
    if config.data.get("moe_latent_size") is not None:
        message = f"{config.name}: experts of nemotron_h behind a latent (moe_latent_size) are not known"
        raise UsageError(
            message,
            code="unknown-architecture",
            place=config.name,
            key="moe_latent_size",
            value=config.data["moe_latent_size"],
        )
    routed = config.integer("n_routed_experts")
    shared = config.integer("moe_shared_expert_intermediate_size") if config.count("n_shared_experts") else 0
    return ExpertShape(
        experts=routed,
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=config.integer("moe_intermediate_size"),
        shared_intermediate=shared,
        layers=layers,
        gated=False,
        router_parameters=routed,
    )


def read_llama4_text(config: Config) -> ModelShape:
    """Llama 4: one shared expert as wide as a routed one; `intermediate_size_mlp` in the layers without experts.

    Llama4TextConfig: three layers in four see their own chunk of 8192 tokens; heads of 128; norms on queries and keys
    have no parameters.
    """
    layers, step = config.integer("num_hidden_layers"), config.integer("interleave_moe_layer_step", 1)
    width, interval = config.integer("intermediate_size"), config.integer("no_rope_layer_interval", 4)
    sparse = len(config.listed("moe_layers", range(step - 1, layers, step)))
    attention = attention_shape(config, default_head_dim=128)
    if config.data.get("attention_chunk_size", 8192) is not None:
        signs = config.listed("no_rope_layers", ()) or [(layer + 1) % interval for layer in range(layers)]
        attention = dataclasses.replace(
            attention,
            window_tokens=config.integer("attention_chunk_size", 8192),
            window_layers=sum(bool(sign) for sign in signs),
            chunked=True,
        )
    experts = ExpertShape(
        experts=config.integer("num_local_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=width,
        shared_intermediate=width,
        layers=sparse,
    )
    dense = config.integer("intermediate_size_mlp") if sparse < layers else 0
    return dense_shape(config, attention, intermediate=dense, experts=experts)
