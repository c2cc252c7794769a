"""Readers of text models' Hugging Face `config.json`, one per family. Standard library only.

A key that a family's published configurations always have is required; a key that they leave out takes the default of
the family's configuration class in transformers (5.x), named in the reader. Nothing else is guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infergy.catalog.layers import AttentionShape, ExpertShape, LatentAttention, MambaShape, MlpShape
from infergy.catalog.shape import Checkpoint, ModelShape, dtype_bytes
from infergy.errors import DataError, UsageError

SLIDING, FULL = "sliding_attention", "full_attention"
NEMOTRON_LAYERS = {"M": "Mamba-2", "*": "attention", "-": "MLP", "E": "experts"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration whose keys are checked as they are read; a null counts as missing."""

    data: Mapping[str, Any]
    name: str

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least `least`; without a `default` it is required."""
        value = default if self.data.get(key) is None else self.data[key]
        if value is None:
            raise self._missing(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise DataError.bad_field(self.name, key, value, f"a whole number of at least {least}")
        return value

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.integer("num_hidden_layers")

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = default if self.data.get(key) is None else self.data[key]
        if not isinstance(value, bool):
            raise DataError.bad_field(self.name, key, value, "true or false")
        return value

    def listed(self, key: str, default: Sequence[Any]) -> Sequence[Any]:
        """A list."""
        value = self.data.get(key)
        if value is not None and not isinstance(value, list):
            raise DataError.bad_field(self.name, key, value, "a list")
        return default if value is None else value

    def part(self, key: str) -> Config | None:
        """The configuration of a part; None if it is missing."""
        value = self.data.get(key)
        return Config(data=value, name=f"{self.name} {key}") if isinstance(value, Mapping) else None

    def required_part(self, key: str) -> Config:
        """The configuration of a part that is required."""
        part = self.part(key)
        if part is None:
            raise self._missing(key)
        return part

    def window_count(self, default: int) -> int:
        """Layers with sliding attention: as `layer_types` lists them, else `default`."""
        kinds = self.data.get("layer_types")
        if kinds is None:
            return default
        if not isinstance(kinds, list) or len(kinds) != self.layers:
            raise DataError.bad_field(self.name, "layer_types", kinds, f"a list of {self.layers}")
        unknown = sorted(set(map(str, kinds)) - {SLIDING, FULL})
        if unknown:
            raise self.unsupported("layer_types", unknown, f"known kinds of attention: {SLIDING}, {FULL}")
        return kinds.count(SLIDING)

    @property
    def checkpoint_dtype(self) -> str | None:
        """Format of the published weights, unless they are quantised."""
        dtype = self.data.get("torch_dtype") or self.data.get("dtype")
        return None if dtype is None else str(dtype)

    def unsupported(self, key: str, value: object, why: str) -> UsageError:
        """An architecture that no reader knows because of one key."""
        message = f"{self.name}: {key} = {value!r} is not supported; {why}"
        return UsageError(message, code="unknown-architecture", place=self.name, key=key, value=value)

    def _missing(self, key: str) -> DataError:
        why = f"model_type {self.data.get('model_type')!r} needs it; take the whole config.json of the model's hub page"
        return DataError.missing_field(self.name, [key], why)


def _shape(
    config: Config,
    attention: AttentionShape,
    *,
    attention_layers: int | None = None,
    mlp_width: int | None = None,
    mlp_layers: int | None = None,
    gated: bool = True,
    mlp_bias: bool = False,
    experts: ExpertShape | None = None,
    mamba: MambaShape | None = None,
    norms: int = 2,
    norm_width: int | None = None,
    head_bias: bool = False,
    default_vocabulary: int | None = None,
    default_tied: bool = False,
) -> ModelShape:
    """What all families share: by default all layers have attention and those without experts an MLP."""
    hidden, layers = config.integer("hidden_size"), config.layers
    vocabulary = config.integer("vocab_size", default_vocabulary)
    dense = layers - (0 if experts is None else experts.layers)
    return ModelShape(
        name=config.name,
        layers=layers,
        hidden=hidden,
        vocabulary=vocabulary,
        tied=config.flag("tie_word_embeddings", default_tied),
        attention=attention,
        attention_layers=layers if attention_layers is None else attention_layers,
        mlp=MlpShape(
            intermediate=config.integer("intermediate_size") if mlp_width is None else mlp_width,
            layers=dense if mlp_layers is None else mlp_layers,
            gated=gated,
            bias=mlp_bias,
        ),
        experts=experts,
        mamba=mamba,
        other_parameters=(layers * norms + 1) * (hidden if norm_width is None else norm_width) + vocabulary * head_bias,
        checkpoint=Checkpoint(architecture=str(config.data.get("model_type")), dtype=config.checkpoint_dtype),
    )


def _attention(
    config: Config,
    *,
    default_dim: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_norms: bool = False,
    **others: Any,
) -> AttentionShape:
    """Grouped-query attention with defaults; `kv_heads` else equals heads, `head_norms` are on queries and keys."""
    heads = config.integer("num_attention_heads", heads)
    kv_heads = config.integer("num_key_value_heads", kv_heads or heads)
    head_dim = config.integer("head_dim", default_dim or config.integer("hidden_size") // heads)
    if heads % kv_heads:
        divisor = f"a divisor of num_attention_heads ({heads})"
        raise DataError.bad_field(config.name, "num_key_value_heads", kv_heads, divisor)
    if head_norms:
        others["norm_parameters"] = 2 * head_dim
    return AttentionShape(heads=heads, kv_heads=kv_heads, head_dim=head_dim, value_dim=head_dim, **others)


def _biased(config: Config, default: bool = False) -> dict[str, bool]:
    """The biases of all projections of attention."""
    bias = config.flag("attention_bias", default)
    return {"qkv_bias": bias, "output_bias": bias}


def _windowed(
    config: Config, attention: AttentionShape, layers: int | None = None, default: int | None = None
) -> AttentionShape:
    """`attention` with `sliding_window` (null: none) in `layers` [default: all]; `layer_types` overrides it."""
    count = config.window_count(config.layers if layers is None else layers)
    if not count or config.data.get("sliding_window", default) is None:
        return attention
    return dataclasses.replace(attention, window_tokens=config.integer("sliding_window", default), window_layers=count)


def _experts(
    config: Config, count: str, *, width: str = "moe_intermediate_size", layers: int | None = None, **others: Any
) -> ExpertShape:
    """Experts in `layers` [default: all]; `count` and `width` are keys of the configuration."""
    return ExpertShape(
        experts=config.integer(count),
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=config.integer(width),
        layers=config.layers if layers is None else layers,
        **others,
    )


def _deepseek_experts(config: Config) -> ExpertShape:
    """Routed experts with a correction each, and shared ones of the same width; the first layers are dense."""
    shared = config.integer("moe_intermediate_size") * config.integer("n_shared_experts", least=0)
    layers = config.layers - config.integer("first_k_dense_replace", least=0)
    routed = config.integer("n_routed_experts")
    return _experts(config, "n_routed_experts", layers=layers, shared_intermediate=shared, router_parameters=routed)


def _qwen_window(config: Config, attention: AttentionShape) -> AttentionShape:
    """Qwen slides only if `use_sliding_window` says so: 4096 tokens, in the layers from `max_window_layers` (28) on."""
    if not config.flag("use_sliding_window"):
        return attention
    return _windowed(config, attention, max(0, config.layers - config.integer("max_window_layers", 28)), 4096)


def _qwen3_attention(config: Config) -> AttentionShape:
    return _qwen_window(config, _attention(config, default_dim=128, head_norms=True, **_biased(config)))


def _qwen3_moe(config: Config) -> ModelShape:
    """Qwen3 with experts in every `decoder_sparse_step`-th layer, except those that `mlp_only_layers` names."""
    step, dense = config.integer("decoder_sparse_step", 1), set(config.listed("mlp_only_layers", ()))
    layers = sum(layer not in dense and (layer + 1) % step == 0 for layer in range(config.layers))
    return _shape(config, _qwen3_attention(config), experts=_experts(config, "num_experts", layers=layers))


def _gemma3_text(config: Config) -> ModelShape:
    """Gemma3TextConfig: 8 heads, 4 of keys and values, of 256; 262,208 tokens; five layers in six see 4096."""
    attention = _attention(config, default_dim=256, heads=8, kv_heads=4, head_norms=True, **_biased(config))
    layers = config.layers - config.layers // config.integer("sliding_window_pattern", 6)
    attention = _windowed(config, attention, layers, 4096)
    return _shape(config, attention, norms=4, default_vocabulary=262_208, default_tied=True)


def _gpt_oss(config: Config) -> ModelShape:
    """GptOssConfig: heads of 64, biases throughout, every other layer sees 128 tokens, starting with the first."""
    attention = _attention(config, default_dim=64, sinks=True, **_biased(config, default=True))
    experts = _experts(
        config,
        "num_local_experts",
        width="intermediate_size",
        bias=True,
        router_parameters=config.integer("num_local_experts"),
    )
    return _shape(config, _windowed(config, attention, (config.layers + 1) // 2, 128), mlp_width=0, experts=experts)


def _olmo_attention(config: Config) -> AttentionShape:
    """Norms over all queries together and over all keys together, not head by head."""
    attention = _attention(config, **_biased(config))
    norms = (attention.heads + attention.kv_heads) * attention.head_dim
    return dataclasses.replace(attention, norm_parameters=norms)


def _deepseek_v3(config: Config) -> ModelShape:
    """The module for multi-token prediction is not counted: plain decoding does not load it."""
    if config.flag("attention_bias"):
        raise config.unsupported("attention_bias", True, "no published deepseek_v3 has it")
    heads, rope = config.integer("num_attention_heads"), config.integer("qk_rope_head_dim")
    kv_rank = config.integer("kv_lora_rank")
    rank = None if config.data.get("q_lora_rank") is None else config.integer("q_lora_rank")
    attention = AttentionShape(
        heads=heads,
        kv_heads=heads,
        head_dim=config.integer("qk_nope_head_dim") + rope,
        value_dim=config.integer("v_head_dim"),
        norm_parameters=kv_rank + (rank or 0),
        latent=LatentAttention(query_rank=rank, kv_rank=kv_rank, rope_dim=rope),
    )
    return _shape(config, attention, experts=_deepseek_experts(config))


def _phi(config: Config) -> ModelShape:
    """Phi-1 and Phi-2: one LayerNorm per layer, biases throughout, an MLP without a gate."""
    attention = _attention(config, qkv_bias=True, output_bias=True)
    if config.flag("qk_layernorm"):
        attention = dataclasses.replace(attention, norm_parameters=4 * attention.head_dim)
    width = 2 * config.integer("hidden_size")
    return _shape(config, attention, gated=False, mlp_bias=True, norms=1, norm_width=width, head_bias=True)


def _glm4_moe(config: Config) -> ModelShape:
    """GLM-4.5: queries, keys and values have biases, the output has none. Multi-token prediction is not counted.

    Glm4MoeConfig: no norms on queries and keys unless `use_qk_norm` says so.
    """
    attention = _attention(config, qkv_bias=config.flag("attention_bias"), head_norms=config.flag("use_qk_norm"))
    return _shape(config, attention, experts=_deepseek_experts(config))


def _nemotron_h(config: Config) -> ModelShape:
    """Each layer is one of four kinds with one norm; its MLPs and experts have no gate (squared ReLU).

    NemotronHConfig: no biases except the convolution's; heads of 128; states in float32.
    """
    layers, pattern = config.layers, config.data.get("hybrid_override_pattern")
    if not isinstance(pattern, str) or len(pattern) != layers or not set(pattern) <= set(NEMOTRON_LAYERS):
        kinds = ", ".join(f"{sign} ({kind})" for sign, kind in NEMOTRON_LAYERS.items())
        expected = f"a sign per layer ({layers}): {kinds}"
        raise DataError.bad_field(config.name, "hybrid_override_pattern", pattern, expected)
    mamba = MambaShape(
        layers=pattern.count("M"),
        heads=config.integer("mamba_num_heads"),
        head_dim=config.integer("mamba_head_dim"),
        state=config.integer("ssm_state_size"),
        groups=config.integer("n_groups"),
        kernel=config.integer("conv_kernel", 4),
        projection_bias=config.flag("use_bias"),
        convolution_bias=config.flag("use_conv_bias", True),
        state_value_bytes=dtype_bytes(str(config.data.get("mamba_ssm_cache_dtype", "float32"))),
    )
    return _shape(
        config,
        _attention(config, default_dim=128, **_biased(config)),
        experts=_nemotron_experts(config, pattern.count("E")) if "E" in pattern else None,
        gated=False,
        mlp_bias=config.flag("mlp_bias"),
        norms=1,
        attention_layers=pattern.count("*"),
        mlp_layers=pattern.count("-"),
        mamba=mamba,
    )


def _nemotron_experts(config: Config, layers: int) -> ExpertShape:
    latent = config.data.get("moe_latent_size")
    if latent is not None:
        raise config.unsupported("moe_latent_size", latent, "experts of nemotron_h must not have a latent")
    has_shared = config.integer("n_shared_experts", least=0) > 0
    return _experts(
        config,
        "n_routed_experts",
        layers=layers,
        shared_intermediate=config.integer("moe_shared_expert_intermediate_size") if has_shared else 0,
        gated=False,
        router_parameters=config.integer("n_routed_experts"),
    )


def _llama4_text(config: Config) -> ModelShape:
    """Llama 4: one shared expert as wide as a routed one; `intermediate_size_mlp` in the layers without experts.

    Llama4TextConfig: three layers in four see their own chunk of 8192 tokens; heads of 128; norms on queries and keys
    have no parameters.
    """
    layers, step = config.layers, config.integer("interleave_moe_layer_step", 1)
    width, interval = config.integer("intermediate_size"), config.integer("no_rope_layer_interval", 4)
    attention = _attention(config, default_dim=128)
    if config.data.get("attention_chunk_size", 8192) is not None:
        signs = config.listed("no_rope_layers", ()) or [(layer + 1) % interval for layer in range(layers)]
        attention = dataclasses.replace(
            attention,
            window_tokens=config.integer("attention_chunk_size", 8192),
            window_layers=sum(bool(sign) for sign in signs),
            chunked=True,
        )
    sparse = len(config.listed("moe_layers", range(step - 1, layers, step)))
    experts = _experts(config, "num_local_experts", width="intermediate_size", layers=sparse, shared_intermediate=width)
    dense = config.integer("intermediate_size_mlp") if sparse < layers else 0
    return _shape(config, attention, mlp_width=dense, experts=experts)


Reader = Callable[[Config], ModelShape]
TEXT_MODELS: Mapping[str, Reader] = {
    "deepseek_v3": _deepseek_v3,
    "gemma3_text": _gemma3_text,
    "glm4_moe": _glm4_moe,
    "gpt_oss": _gpt_oss,
    "kimi_k2": _deepseek_v3,
    # Llama 2 and 3, and what is built alike.
    "llama": lambda c: _shape(c, _attention(c, **_biased(c)), mlp_bias=c.flag("mlp_bias")),
    "llama4_text": _llama4_text,
    # MistralConfig: a window of 4096 tokens unless the configuration says null.
    "mistral": lambda c: _shape(c, _windowed(c, _attention(c), default=4096)),
    # Every layer has experts; `intermediate_size` is the width of one.
    "mixtral": lambda c: _shape(
        c,
        _windowed(c, _attention(c)),
        mlp_width=0,
        experts=_experts(c, "num_local_experts", width="intermediate_size"),
    ),
    "nemotron_h": _nemotron_h,
    # OLMo's norms have no parameters.
    "olmo": lambda c: _shape(c, _attention(c, **_biased(c)), norm_width=0),
    "olmo2": lambda c: _shape(c, _olmo_attention(c)),
    "olmoe": lambda c: _shape(
        c, _olmo_attention(c), mlp_width=0, experts=_experts(c, "num_experts", width="intermediate_size")
    ),
    "phi": _phi,
    # Its fused matrices have the same entries as separate ones; Phi3Config: no window.
    "phi3": lambda c: _shape(c, _windowed(c, _attention(c))),
    # Qwen 1.5, 2 and 2.5: queries, keys and values have biases.
    "qwen2": lambda c: _shape(c, _qwen_window(c, _attention(c, qkv_bias=True))),
    # Norms on queries and keys, head by head.
    "qwen3": lambda c: _shape(c, _qwen3_attention(c)),
    "qwen3_moe": _qwen3_moe,
    "qwen3_vl_moe_text": _qwen3_moe,
    "qwen3_vl_text": lambda c: _shape(c, _qwen3_attention(c)),
}
"""Readers by `model_type`."""
