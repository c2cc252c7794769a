"""Model shapes: what a Hugging Face `config.json` says about parameters, FLOPs and bytes. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from infergy.errors import DataError, UsageError

DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "int8": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The shape of a decoder-only transformer."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, name: str) -> ModelShape:
        """Read a Llama-like configuration."""
        if config.get("model_type") != "llama":
            raise UsageError(f"{name}: model_type {config.get('model_type')!r} is not known")
        heads = config["num_attention_heads"]
        return cls(
            name=name,
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads", heads),
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
        )

    @property
    def _layer_matmul(self) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """All parameters."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * (self._layer_matmul + 2 * self.hidden) + self.hidden + embeddings

    def weight_bytes(self, dtype: str = "bfloat16") -> float:
        """Bytes of all weights."""
        return self.parameters * DTYPE_BYTES[dtype]

    def step_weight_bytes(self, batch: int, dtype: str = "bfloat16") -> float:
        """Bytes of weights that one decode step reads: all but the embedding table."""
        return (self.layers * self._layer_matmul + self.vocabulary * self.hidden) * DTYPE_BYTES[dtype]

    def kv_bytes(self, context_tokens: int, dtype: str = "bfloat16") -> float:
        """Bytes of KV cache of one request."""
        return 2 * self.layers * self.kv_heads * self.head_dim * DTYPE_BYTES[dtype] * context_tokens

    def prefill_flops(self, input_tokens: int) -> float:
        """FLOPs of one prompt: two a weight and token, causal attention, the head on the last position."""
        matmul = 2 * self.layers * self._layer_matmul * input_tokens
        attention = 2 * self.layers * self.heads * self.head_dim * input_tokens**2
        return matmul + attention + 2 * self.vocabulary * self.hidden

    def decode_flops(self, context_tokens: int) -> float:
        """FLOPs of one output token at a context."""
        matmul = 2 * (self.layers * self._layer_matmul + self.vocabulary * self.hidden)
        return matmul + 4 * self.layers * self.heads * self.head_dim * context_tokens

    def request_flops(self, input_tokens: int, output_tokens: int) -> float:
        """FLOPs of a request: its prefill yields the first token, each further one is a decode step."""
        steps = output_tokens - 1
        return self.prefill_flops(input_tokens) + steps * self.decode_flops(input_tokens + output_tokens // 2)


def _folder() -> Any:
    return resources.files("infergy") / "data" / "models"


def model_names() -> tuple[str, ...]:
    """Names of the shipped configurations."""
    return tuple(sorted(f.name.removesuffix(".json") for f in _folder().iterdir() if f.name.endswith(".json")))


def model_config(name_or_path: str) -> dict[str, Any]:
    """The `config.json` of a shipped model, of a file, or of a folder.

    Raises:
        UsageError: No such model; the message gives the nearest.
        DataError: The file is no JSON object.
    """
    path = Path(name_or_path)
    if name_or_path.lower() in model_names():
        text = (_folder() / f"{name_or_path.lower()}.json").read_text(encoding="utf-8")
    elif path.is_dir() or path.suffix == ".json":
        path = path / "config.json" if path.is_dir() else path
        if not path.exists():
            raise DataError(f"{path}: no such file")
        text = path.read_text(encoding="utf-8")
    else:
        raise UsageError.unknown("model", name_or_path, model_names(), "Or give the path of a config.json")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: expected a JSON object")
    return config


def get_model(name_or_path: str) -> ModelShape:
    """The shape of a shipped model, or of a `config.json`."""
    return ModelShape.from_config(model_config(name_or_path), name=name_or_path)
