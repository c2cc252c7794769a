"""What readers of text models' configurations share: keys that are checked as they are read, and parts of a shape.

A key that a family's published configurations always have is required; a key that they leave out takes the default of
the family's configuration class in transformers (5.x), named in the reader. Nothing else is guessed. Standard library
only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infergy.catalog.layers import AttentionShape, ExpertShape, MambaShape, MlpShape, Window
from infergy.catalog.shape import Checkpoint, ModelShape
from infergy.errors import DataError, UsageError

SLIDING, FULL = "sliding_attention", "full_attention"
LARGEST, MOST_LAYERS = 10**9, 10_000
"""Bounds of what a width, a vocabulary or a number of layers can be."""
ALIASES: Mapping[str, tuple[str, ...]] = {
    "head_dim": ("attention_head_dim", "kv_channels"),
    "hidden_size": ("d_model", "n_embd"),
    "layer_types": ("layers_block_type",),
    "moe_intermediate_size": ("expert_ffn_hidden_size",),
    "n_routed_experts": ("num_local_experts", "num_experts", "moe_num_experts"),
    "n_shared_experts": ("num_shared_experts", "moe_num_shared_experts"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": ("num_experts_per_token", "moe_k", "moe_topk", "moe_top_k", "top_k_experts"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_key_value_heads": ("num_attention_groups",),
    "num_local_experts": ("num_experts", "n_routed_experts"),
    "vt_hidden_size": ("hidden_size",),
    "vt_intermediate_size": ("intermediate_size",),
    "vt_num_hidden_layers": ("num_hidden_layers",),
}
"""Other names of a key: those that transformers' `attribute_map`s take, and under which its version 5 saves some."""


KV_HEADS: Mapping[str, int] = (
    dict.fromkeys(("ernie4_5", "glm", "glm4", "qwen3_5_moe_text", "qwen3_next", "starcoder2"), 2)
    | dict.fromkeys(("ernie4_5_moe", "gemma2", "gemma4_text", "qwen3_5_text", "qwen3_moe", "smollm3"), 4)
    | dict.fromkeys(("glm4_moe", "gpt_oss", "llama4_text", "minimax_m2", "ministral", "ministral3", "mistral"), 8)
    | dict.fromkeys(("mixtral", "nemotron_h", "phimoe", "qwen2_5_vl_text", "qwen2_vl_text", "seed_oss"), 8)
    | dict.fromkeys(("gemma", "qwen2_moe", "qwen3_vl_moe_text"), 16)
    | dict.fromkeys(("exaone4", "qwen2", "qwen3", "qwen3_vl_text", "stablelm"), 32)
)
"""Heads of keys and values where `num_key_value_heads` is missing, by `model_type`; of the others as many as heads."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration whose keys are checked as they are read; a null counts as missing."""

    data: Mapping[str, Any]
    name: str

    def get(self, key: str) -> Any:
        """What is under a key or another name of it; None if there is nothing."""
        values = (self.data.get(name) for name in (key, *ALIASES.get(key, ())))
        return next((value for value in values if value is not None), None)

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least `least`, within reason; without a `default` it is required."""
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            raise self.missing(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
            raise DataError.bad_field(self.name, key, value, f"a whole number of {least} to {LARGEST:,}")
        return value

    @property
    def layers(self) -> int:
        """Number of layers, where it is left out that of their kinds."""
        kinds = self.get("layer_types")
        layers = self.integer("num_hidden_layers", len(kinds) if isinstance(kinds, list) and kinds else None)
        if layers > MOST_LAYERS:
            raise DataError.bad_field(self.name, "num_hidden_layers", layers, f"at most {MOST_LAYERS:,}")
        return layers

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = default if self.data.get(key) is None else self.data[key]
        if not isinstance(value, bool):
            raise DataError.bad_field(self.name, key, value, "true or false")
        return value

    def listed(self, key: str, default: Sequence[Any]) -> Sequence[Any]:
        """A list."""
        value = self.get(key)
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
            raise self.missing(key)
        return part

    def kinds(self, known: Mapping[str, str]) -> list[str] | None:
        """The kind of each layer as `layer_types` lists them, named by `known`; None if it is missing."""
        kinds = self.get("layer_types")
        if kinds is None:
            return None
        if not isinstance(kinds, list) or len(kinds) != self.layers:
            raise DataError.bad_field(self.name, "layer_types", kinds, f"a list of {self.layers}")
        unknown = sorted(set(map(str, kinds)) - set(known))
        if unknown:
            raise self.unsupported("layer_types", unknown, f"known kinds of layers: {', '.join(known)}")
        return [known[kind] for kind in kinds]

    def window_count(self, default: int) -> int:
        """Layers with sliding attention: as `layer_types` lists them, else `default`."""
        kinds = self.kinds({SLIDING: SLIDING, FULL: FULL})
        return default if kinds is None else kinds.count(SLIDING)

    @property
    def checkpoint_dtype(self) -> str | None:
        """Format of the published weights, unless they are quantised."""
        dtype = self.data.get("torch_dtype") or self.data.get("dtype")
        return None if dtype is None else str(dtype)

    def unsupported(self, key: str, value: object, why: str) -> UsageError:
        """An architecture that no reader knows because of one key."""
        message = f"{self.name}: {key} = {value!r} is not supported; {why}"
        return UsageError(message, code="unknown-architecture", place=self.name, key=key, value=value)

    def missing(self, key: str) -> DataError:
        """A required key is missing."""
        why = f"model_type {self.data.get('model_type')!r} needs it; take the whole config.json of the model's hub page"
        return DataError.missing_field(self.name, [key], why)


def make_shape(
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


def make_attention(
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
    if "num_key_value_heads" not in config.data:
        kv_heads = kv_heads or KV_HEADS.get(str(config.data.get("model_type")))
    kv_heads = config.integer("num_key_value_heads", kv_heads or heads)
    head_dim = config.integer("head_dim", default_dim or config.integer("hidden_size") // heads)
    if heads % kv_heads:
        divisor = f"a divisor of num_attention_heads ({heads})"
        raise DataError.bad_field(config.name, "num_key_value_heads", kv_heads, divisor)
    if head_norms:
        others["vector_parameters"] = others.get("vector_parameters", 0) + 2 * head_dim
    return AttentionShape(heads=heads, kv_heads=kv_heads, head_dim=head_dim, value_dim=head_dim, **others)


def biased(config: Config, default: bool = False) -> dict[str, bool]:
    """The biases of all projections of attention."""
    bias = config.flag("attention_bias", default)
    return {"qkv_bias": bias, "output_bias": bias}


def windowed(
    config: Config,
    attention: AttentionShape,
    layers: int | None = None,
    default: int | None = None,
    own: AttentionShape | None = None,
) -> AttentionShape:
    """`attention` with `sliding_window` (null: none) in `layers` [default: all]; `layer_types` overrides it.

    `own` is the attention of those layers, where it differs.
    """
    count = config.window_count(config.layers if layers is None else layers)
    if not count or not config.data.get("sliding_window", default):
        return attention
    window = Window(tokens=config.integer("sliding_window", default), layers=count, attention=own)
    return dataclasses.replace(attention, window=window)


def window_layers(config: Config, pattern: int) -> int:
    """Layers with a window, where each `pattern`-th has none: a number, or a text of as many letters (``LLLG``)."""
    given = config.data.get("sliding_window_pattern")
    every = len(given) if isinstance(given, str) and given else config.integer("sliding_window_pattern", pattern)
    return config.layers - config.layers // every


def make_experts(
    config: Config, count: str, *, width: str = "moe_intermediate_size", layers: int | None = None, **others: Any
) -> ExpertShape:
    """Experts in `layers` [default: all]; `count` and `width` are keys of the configuration."""
    experts, visited = config.integer(count), config.integer("num_experts_per_tok")
    if visited > experts:
        raise DataError.bad_field(config.name, "num_experts_per_tok", visited, f"at most {count} ({experts})")
    return ExpertShape(
        experts=experts,
        experts_per_token=visited,
        intermediate=config.integer(width),
        layers=config.layers if layers is None else layers,
        **others,
    )


def norms_of_all_heads(attention: AttentionShape) -> AttentionShape:
    """`attention` with norms over all queries together and over all keys together, not head by head."""
    norms = (attention.heads + attention.kv_heads) * attention.head_dim
    return dataclasses.replace(attention, vector_parameters=attention.vector_parameters + norms)


Reader = Callable[[Config], ModelShape]
