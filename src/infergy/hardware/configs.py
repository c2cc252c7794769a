"""Reads the shape of a model from its Hugging Face `config.json`, one reader a family. Standard library only.

A key that a family's published configurations always carry must be there; a key that they leave out takes the default
of the family's configuration class in transformers (5.x), named beside it. Nothing else is guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from infergy.errors import DataError, UsageError
from infergy.hardware.shape import AttentionShape, ExpertShape, LatentAttention, ModelShape

SLIDING = "sliding_attention"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """A configuration whose keys are checked as they are read."""

    data: Mapping[str, Any]
    name: str

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive whole number; `default` if the key is missing or null, unless that is None."""
        value = self.data.get(key)
        if value is None:
            value = default
        if value is None:
            raise DataError(
                f"{self.name}: the configuration has no {key!r} (needed for model_type "
                f"{self.data.get('model_type')!r}); take config.json whole from the model's page on the hub"
            )
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"{self.name}: {key} is {value!r}; expected a whole number of at least 1")
        return value

    def count(self, key: str) -> int:
        """A whole number that may be 0; it must be there."""
        return 0 if self.data.get(key) == 0 else self.integer(key)

    def flag(self, key: str, default: bool) -> bool:
        """True or false; `default` if the key is missing or null."""
        value = self.data.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise DataError(f"{self.name}: {key} is {value!r}; expected true or false")
        return value

    def kinds(self, layers: int) -> list[str] | None:
        """The attention of each layer, if `layer_types` tells."""
        kinds = self.data.get("layer_types")
        if kinds is None:
            return None
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise DataError(f"{self.name}: layer_types must name the attention of each of the {layers} layers")
        unknown = sorted(set(map(str, kinds)) - {SLIDING, "full_attention"})
        if unknown:
            raise UsageError(
                f"{self.name}: attention {', '.join(unknown)} is not known; known: {SLIDING}, full_attention"
            )
        return kinds

    def checkpoint_dtype(self) -> str | None:
        """Format of the published weights."""
        quantization = self.data.get("quantization_config")
        if isinstance(quantization, Mapping) and "quant_method" in quantization:
            return str(quantization["quant_method"])
        dtype = self.data.get("torch_dtype") or self.data.get("dtype")
        return None if dtype is None else str(dtype)


def read_shape(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """The shape that `config` describes.

    Raises:
        UsageError: Its `model_type` is not known.
        DataError: A key is missing or has no usable value.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise DataError(f"{name}: no 'model_type': not the config.json of a Hugging Face model")
    if model_type not in READERS:
        raise UsageError.unknown(f"architecture (model_type of {name})", model_type, READERS)
    return READERS[model_type](_Config(data=config, name=name))


def _dense(config: _Config, attention: AttentionShape, **others: Any) -> ModelShape:
    """What all families share; `others` replace or add."""
    hidden = config.integer("hidden_size")
    facts: dict[str, Any] = {
        "name": config.name,
        "architecture": str(config.data.get("model_type")),
        "layers": config.integer("num_hidden_layers"),
        "hidden": hidden,
        "vocabulary": config.integer("vocab_size", others.pop("default_vocabulary", None)),
        "tied": config.flag("tie_word_embeddings", others.pop("default_tied", False)),
        "attention": attention,
        "norm_parameters": hidden,
        "checkpoint_dtype": config.checkpoint_dtype(),
    }
    if "intermediate" not in others:
        facts["intermediate"] = config.integer("intermediate_size")
    return ModelShape(**(facts | others))


def _attention(
    config: _Config,
    *,
    default_head_dim: int | None = None,
    default_heads: int | None = None,
    default_kv_heads: int | None = None,
    **others: Any,
) -> AttentionShape:
    """Grouped-query attention; without `num_key_value_heads` every head has its own keys and values."""
    heads = config.integer("num_attention_heads", default_heads)
    kv_heads = config.integer("num_key_value_heads", default_kv_heads or heads)
    head_dim = config.integer("head_dim", default_head_dim or config.integer("hidden_size") // heads)
    if heads % kv_heads:
        raise DataError(f"{config.name}: {heads} attention heads do not share {kv_heads} key-value heads evenly")
    return AttentionShape(heads=heads, kv_heads=kv_heads, head_dim=head_dim, value_dim=head_dim, **others)


def _windowed(
    config: _Config, attention: AttentionShape, sliding_layers: int, default_window: int | None = None
) -> AttentionShape:
    """`attention` with `sliding_window` (null: none) in as many layers; `layer_types` wins over that number."""
    layers = config.integer("num_hidden_layers")
    kinds = config.kinds(layers)
    count = sliding_layers if kinds is None else kinds.count(SLIDING)
    if not count or config.data.get("sliding_window", default_window) is None:
        return attention
    window = config.integer("sliding_window", default_window)
    return dataclasses.replace(attention, window_tokens=window, window_layers=count)


def _llama(config: _Config) -> ModelShape:
    bias = config.flag("attention_bias", False)
    attention = _attention(config, qkv_bias=bias, output_bias=bias)
    return _dense(config, attention, mlp_bias=config.flag("mlp_bias", False))


def _mistral(config: _Config) -> ModelShape:
    """MistralConfig: a window of 4096 tokens unless the configuration says null."""
    layers = config.integer("num_hidden_layers")
    return _dense(config, _windowed(config, _attention(config), layers, 4096))


def _phi3(config: _Config) -> ModelShape:
    """Its fused matrices hold what separate ones do; Phi3Config: no window."""
    return _dense(config, _windowed(config, _attention(config), config.integer("num_hidden_layers")))


def _mixtral(config: _Config) -> ModelShape:
    attention = _windowed(config, _attention(config), config.integer("num_hidden_layers"))
    experts = ExpertShape(
        experts=config.integer("num_local_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=config.integer("intermediate_size"),
        shared_intermediate=0,
        layers=config.integer("num_hidden_layers"),
    )
    return _dense(config, attention, intermediate=0, experts=experts)


def _qwen_window(config: _Config, attention: AttentionShape) -> AttentionShape:
    """Qwen slides only if `use_sliding_window` says so: 4096 tokens, in the layers from `max_window_layers` (28) on."""
    if not config.flag("use_sliding_window", False):
        return attention
    full = config.integer("max_window_layers", 28)
    return _windowed(config, attention, max(0, config.integer("num_hidden_layers") - full), 4096)


def _qwen2(config: _Config) -> ModelShape:
    return _dense(config, _qwen_window(config, _attention(config, qkv_bias=True)))


def _qwen3_attention(config: _Config) -> AttentionShape:
    bias = config.flag("attention_bias", False)
    attention = _attention(config, default_head_dim=128, qkv_bias=bias, output_bias=bias)
    return _qwen_window(config, dataclasses.replace(attention, norm_parameters=2 * attention.head_dim))


def _qwen3(config: _Config) -> ModelShape:
    return _dense(config, _qwen3_attention(config))


def _qwen3_moe(config: _Config) -> ModelShape:
    layers, step = config.integer("num_hidden_layers"), config.integer("decoder_sparse_step", 1)
    dense = set(config.data.get("mlp_only_layers") or [])
    experts = ExpertShape(
        experts=config.integer("num_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=config.integer("moe_intermediate_size"),
        shared_intermediate=0,
        layers=sum(layer not in dense and (layer + 1) % step == 0 for layer in range(layers)),
    )
    return _dense(config, _qwen3_attention(config), experts=experts)


def _gemma3_text(config: _Config) -> ModelShape:
    """Gemma3TextConfig: 8 heads, 4 of keys and values, of 256; 262,208 tokens; five layers in six see 4096."""
    bias = config.flag("attention_bias", False)
    attention = _attention(
        config, default_head_dim=256, default_heads=8, default_kv_heads=4, qkv_bias=bias, output_bias=bias
    )
    layers, pattern = config.integer("num_hidden_layers"), config.integer("sliding_window_pattern", 6)
    attention = dataclasses.replace(attention, norm_parameters=2 * attention.head_dim)
    attention = _windowed(config, attention, layers - layers // pattern, 4096)
    return _dense(config, attention, norms=4, default_vocabulary=262_208, default_tied=True)


def _gemma3(config: _Config) -> ModelShape:
    """The text model inside, with the image encoder's parameters beside it."""
    text = config.data.get("text_config")
    if not isinstance(text, Mapping):
        raise DataError(f"{config.name}: the configuration has no 'text_config' (needed for model_type 'gemma3')")
    shape = _gemma3_text(_Config(data=text, name=config.name))
    vision = config.data.get("vision_config")
    encoder = 0
    if isinstance(vision, Mapping):
        encoder = _siglip_parameters(_Config(data=vision, name=f"{config.name} vision_config"), shape.hidden)
    dtype = config.checkpoint_dtype() or shape.checkpoint_dtype
    return dataclasses.replace(shape, architecture="gemma3", vision_parameters=encoder, checkpoint_dtype=dtype)


def _siglip_parameters(vision: _Config, text_hidden: int) -> int:
    """Parameters of a SigLIP encoder without its pooling head, and of Gemma 3's projector (one matrix, one norm)."""
    hidden, inner = vision.integer("hidden_size"), vision.integer("intermediate_size")
    patch, image = vision.integer("patch_size"), vision.integer("image_size")
    embeddings = hidden * (3 * patch**2 + 1) + hidden * (image // patch) ** 2
    attention = 4 * (hidden * hidden + hidden)
    mlp = 2 * hidden * inner + inner + hidden
    layers = vision.integer("num_hidden_layers") * (attention + mlp + 4 * hidden)
    return embeddings + layers + 2 * hidden + hidden * text_hidden + hidden


def _gpt_oss(config: _Config) -> ModelShape:
    """GptOssConfig: heads of 64, biases throughout, every other layer sees 128 tokens, the first one does."""
    layers = config.integer("num_hidden_layers")
    bias = config.flag("attention_bias", True)
    attention = _attention(config, default_head_dim=64, qkv_bias=bias, output_bias=bias, sinks=True)
    experts = ExpertShape(
        experts=config.integer("num_local_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=config.integer("intermediate_size"),
        shared_intermediate=0,
        layers=layers,
        bias=True,
        router_parameters=config.integer("num_local_experts"),
    )
    return _dense(config, _windowed(config, attention, (layers + 1) // 2, 128), intermediate=0, experts=experts)


def _olmo(config: _Config) -> ModelShape:
    """OLMo's norms have no parameters."""
    bias = config.flag("attention_bias", False)
    return _dense(config, _attention(config, qkv_bias=bias, output_bias=bias), norm_parameters=0)


def _olmo_attention(config: _Config) -> AttentionShape:
    """Norms over all queries together and over all keys together, not head by head."""
    bias = config.flag("attention_bias", False)
    attention = _attention(config, qkv_bias=bias, output_bias=bias)
    norms = (attention.heads + attention.kv_heads) * attention.head_dim
    return dataclasses.replace(attention, norm_parameters=norms)


def _olmo2(config: _Config) -> ModelShape:
    return _dense(config, _olmo_attention(config))


def _olmoe(config: _Config) -> ModelShape:
    experts = ExpertShape(
        experts=config.integer("num_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=config.integer("intermediate_size"),
        shared_intermediate=0,
        layers=config.integer("num_hidden_layers"),
    )
    return _dense(config, _olmo_attention(config), intermediate=0, experts=experts)


def _deepseek_v3(config: _Config) -> ModelShape:
    """The module for multi-token prediction is not counted: plain decoding does not load it."""
    bias = config.flag("attention_bias", False)
    heads, rope = config.integer("num_attention_heads"), config.integer("qk_rope_head_dim")
    kv_rank = config.integer("kv_lora_rank")
    rank = None if config.data.get("q_lora_rank") is None else config.integer("q_lora_rank")
    hidden, layers = config.integer("hidden_size"), config.integer("num_hidden_layers")
    if bias:
        raise UsageError(f"{config.name}: deepseek_v3 with attention_bias is not known; no published model has it")
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
    return _dense(config, attention, hidden=hidden, experts=experts)


def _phi(config: _Config) -> ModelShape:
    """Phi-1 and Phi-2: one LayerNorm a layer, biases throughout, an MLP without a gate."""
    attention = _attention(config, qkv_bias=True, output_bias=True)
    if config.flag("qk_layernorm", False):
        attention = dataclasses.replace(attention, norm_parameters=4 * attention.head_dim)
    hidden = config.integer("hidden_size")
    return _dense(config, attention, gated=False, mlp_bias=True, norms=1, norm_parameters=2 * hidden, head_bias=True)


READERS: Mapping[str, Callable[[_Config], ModelShape]] = {
    "deepseek_v3": _deepseek_v3,
    "gemma3": _gemma3,
    "gemma3_text": _gemma3_text,
    "gpt_oss": _gpt_oss,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "olmoe": _olmoe,
    "phi": _phi,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
}
"""By `model_type`."""
