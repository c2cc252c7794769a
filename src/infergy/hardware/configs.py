"""Reads the shape of a model from its Hugging Face `config.json`, one reader a family. Standard library only.

A key that a family's published configurations always carry must be there; a key that they leave out takes the default
of the family's configuration class in transformers (5.x), named beside it. Nothing else is guessed. What no reader
knows can be told by hand (`infergy.hardware.by_hand`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from infergy.errors import DataError, UsageError
from infergy.hardware import families, multimodal
from infergy.hardware.by_hand import is_by_hand, read_by_hand
from infergy.hardware.config_keys import Config
from infergy.hardware.shape import ModelShape

HOW_BY_HAND = "Or give its numbers by hand in a small TOML file: docs/models.md"


def read_shape(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """The shape that `config` describes: a Hugging Face configuration, or numbers by hand.

    Raises:
        UsageError: Its `model_type` is not known.
        DataError: A key is missing or has no usable value.
    """
    if is_by_hand(config):
        return read_by_hand(config, name=name)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise DataError.missing_field(name, ["model_type"], HOW_BY_HAND)
    if model_type not in READERS:
        raise UsageError.unknown(
            f"architecture (model_type of {name})",
            model_type,
            READERS,
            HOW_BY_HAND,
            code="unknown-architecture",
            place=name,
            key="model_type",
        )
    shape = READERS[model_type](Config(data=config, name=name))
    return dataclasses.replace(shape, scaled_in_blocks=True) if _is_scaled_in_blocks(config) else shape


def _is_scaled_in_blocks(config: Mapping[str, Any]) -> bool:
    quantization = config.get("quantization_config")
    return isinstance(quantization, Mapping) and bool(quantization.get("weight_block_size"))


READERS: Mapping[str, Callable[[Config], ModelShape]] = {
    "NemotronH_Nano_VL_V2": multimodal.read_nemotron_vl,
    "deepseek_v3": families.read_deepseek_v3,
    "gemma3": multimodal.read_gemma3,
    "gemma3_text": families.read_gemma3_text,
    "glm4_moe": families.read_glm4_moe,
    "gpt_oss": families.read_gpt_oss,
    "kimi_k2": families.read_deepseek_v3,
    "llama": families.read_llama,
    "llama4": multimodal.read_llama4,
    "llama4_text": families.read_llama4_text,
    "mistral": families.read_mistral,
    "mistral3": multimodal.read_mistral3,
    "mixtral": families.read_mixtral,
    "nemotron_h": families.read_nemotron_h,
    "olmo": families.read_olmo,
    "olmo2": families.read_olmo2,
    "olmoe": families.read_olmoe,
    "phi": families.read_phi,
    "phi3": families.read_phi3,
    "qwen2": families.read_qwen2,
    "qwen3": families.read_qwen3,
    "qwen3_moe": families.read_qwen3_moe,
    "qwen3_omni_moe": multimodal.read_qwen3_omni_moe,
    "qwen3_vl": multimodal.read_qwen3_vl,
    "qwen3_vl_moe": multimodal.read_qwen3_vl_moe,
    "qwen3_vl_moe_text": families.read_qwen3_moe,
    "qwen3_vl_text": families.read_qwen3,
}
"""By `model_type`."""
