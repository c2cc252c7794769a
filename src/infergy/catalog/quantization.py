"""The format of a quantised checkpoint's weights, by the ``quantization_config`` of its `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = ("quantization_config", "compression_config")
"""The second is what compressed-tensors wrote before its version 0.8."""
FLOATS: Mapping[Any, str] = {4: "fp4", 8: "fp8"}
GROUPS_OF_FLOAT4: Mapping[Any, str] = {16: "nvfp4", 32: "mxfp4"}


def find_quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a configuration, or one of its parts (a multimodal model's text), says of its quantisation."""
    for key in KEYS:
        if isinstance(config.get(key), Mapping):
            own: Mapping[str, Any] = config[key]
            # hf_quant_config.json, which ModelOpt writes, has it one level down.
            inner = own.get("quantization")
            return inner if isinstance(inner, Mapping) else own
    parts = (part for part in config.values() if isinstance(part, Mapping))
    return next((found for found in map(find_quantization, parts) if found is not None), None)


def weights_format(quantization: Mapping[str, Any]) -> str:
    """``fp8``, ``mxfp4``, ``nvfp4``, ``int4``, ``int8``; else the name of the method, in lower case.

    Keys: transformers' quantization configs (5.x), compressed-tensors' `config_groups`, ModelOpt's `quant_algo`.
    """
    method = str(quantization.get("quant_method", "")).lower()
    groups = quantization.get("config_groups")
    name = str(quantization.get("quant_algo") or method).lower()
    for known in ("nvfp4", "mxfp4", "fp8"):
        if known in name:
            return known
    if isinstance(groups, Mapping) and groups:
        first = next(iter(groups.values()))
        weights = first.get("weights") if isinstance(first, Mapping) else None
        weights = weights if isinstance(weights, Mapping) else {}
        bits, kind = weights.get("num_bits"), weights.get("type", "int")
        named = f"int{bits}" if kind == "int" else FLOATS.get(bits, f"{kind}{bits}")
        return GROUPS_OF_FLOAT4.get(weights.get("group_size"), named) if named == "fp4" else named
    for known, meant in {"int4": "int4", "w4a16": "int4", "w4a8": "int4", "int8": "int8", "w8a8": "int8"}.items():
        if known in name:
            return meant
    bits = quantization.get("bits", quantization.get("w_bit"))
    if quantization.get("load_in_4bit"):
        bits = 4
    elif quantization.get("load_in_8bit"):
        bits = 8
    return name if bits is None else f"int{bits}"
