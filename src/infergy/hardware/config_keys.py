"""Keys of a Hugging Face `config.json`, checked as they are read, and what all families share. Standard library only.

A key that a family's published configurations always carry must be there; a key that they leave out takes the default
of the family's configuration class in transformers (5.x), named beside it. Nothing else is guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from infergy.errors import DataError, UsageError
from infergy.hardware.layers import AttentionShape
from infergy.hardware.shape import ModelShape

SLIDING = "sliding_attention"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration whose keys are checked as they are read."""

    data: Mapping[str, Any]
    name: str

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive whole number; `default` if the key is missing or null, unless that is None."""
        value = self.data.get(key)
        if value is None:
            value = default
        if value is None:
            raise self._missing(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError.bad_field(self.name, key, value, "a whole number of at least 1")
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
            raise DataError.bad_field(self.name, key, value, "true or false")
        return value

    def listed(self, key: str, default: Sequence[Any]) -> Sequence[Any]:
        """A list; `default` if the key is missing or null."""
        value = self.data.get(key)
        if value is None:
            return default
        if not isinstance(value, list):
            raise DataError.bad_field(self.name, key, value, "a list")
        return value

    def inside(self, key: str) -> Config:
        """The configuration of a part, which must be there."""
        part = self.part(key)
        if part is None:
            raise self._missing(key)
        return part

    def part(self, key: str) -> Config | None:
        """The configuration of a part; None if it is not there."""
        value = self.data.get(key)
        return Config(data=value, name=f"{self.name} {key}") if isinstance(value, Mapping) else None

    def _missing(self, key: str) -> DataError:
        hint = "take config.json whole from the model's page on the hub"
        return DataError.missing_field(self.name, [key], f"model_type {self.data.get('model_type')!r} needs it; {hint}")

    def kinds(self, layers: int) -> list[str] | None:
        """The attention of each layer, if `layer_types` tells."""
        kinds = self.data.get("layer_types")
        if kinds is None:
            return None
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise DataError.bad_field(self.name, "layer_types", kinds, f"a list of {layers}")
        unknown = sorted(set(map(str, kinds)) - {SLIDING, "full_attention"})
        if unknown:
            message = f"{self.name}: attention {', '.join(unknown)} is not known; known: {SLIDING}, full_attention"
            raise UsageError(
                message,
                code="unknown-architecture",
                place=self.name,
                key="layer_types",
                value=unknown,
                known=[SLIDING, "full_attention"],
            )
        return kinds

    def checkpoint_dtype(self) -> str | None:
        """Format of the published weights."""
        quantization = self.data.get("quantization_config")
        if isinstance(quantization, Mapping) and "quant_method" in quantization:
            return str(quantization["quant_method"])
        dtype = self.data.get("torch_dtype") or self.data.get("dtype")
        return None if dtype is None else str(dtype)


def dense_shape(config: Config, attention: AttentionShape, **others: Any) -> ModelShape:
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


def attention_shape(
    config: Config,
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
        raise DataError.bad_field(
            config.name, "num_key_value_heads", kv_heads, f"a divisor of num_attention_heads ({heads})"
        )
    return AttentionShape(heads=heads, kv_heads=kv_heads, head_dim=head_dim, value_dim=head_dim, **others)


def windowed(
    config: Config, attention: AttentionShape, sliding_layers: int, default_window: int | None = None
) -> AttentionShape:
    """`attention` with `sliding_window` (null: none) in as many layers; `layer_types` wins over that number."""
    layers = config.integer("num_hidden_layers")
    kinds = config.kinds(layers)
    count = sliding_layers if kinds is None else kinds.count(SLIDING)
    if not count or config.data.get("sliding_window", default_window) is None:
        return attention
    window = config.integer("sliding_window", default_window)
    return dataclasses.replace(attention, window_tokens=window, window_layers=count)
