"""The format of a checkpoint's weights, as the tool that quantised it wrote it. Standard library only.

Keys: transformers' quantization configs (5.x), compressed-tensors' `config_groups` and `ignore`, ModelOpt's
`quant_algo`, `quantized_layers` and `exclude_modules`.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from infergy.catalog.shape import DTYPE_BYTES, EXPERTS_ONLY, ModelShape

KEYS = ("quantization_config", "compression_config", "quantization")
"""The second is what compressed-tensors wrote before its version 0.8, the third what MLX writes."""
EXCLUDED = ("ignore", "exclude_modules", "modules_to_not_convert", "llm_int8_skip_modules")
FLOATS = {"4": "fp4", "8": "fp8"}
GROUPS_OF_FLOAT4 = {"16": "nvfp4", "32": "mxfp4"}
WORDS = {"float8": "fp8", "fp8": "fp8", "int4": "int4", "int8": "int8"}
"""Of torchao, quanto and quark, whose keys nest; the first that stands anywhere counts."""
FORMATS = {"nvfp4": "nvfp4", "mxfp4": "mxfp4", "fp8": "fp8"}
ALGORITHMS = {"int4": "int4", "w4a16": "int4", "w4a8": "int4", "int8": "int8", "w8a8": "int8", "w8a16": "int8"}
PARTS: Mapping[str, str] = {
    "encoders": r"visual|vision|audio|projector",
    "attention": r"attn|attention|[qkvo]_proj",
    "mamba": r"linear_attn|mamba|mixer\.(in_proj|out_proj)",
    "shared": r"shared_expert",
    "experts": r"experts",
    "mlp": r"mixer\.(up|down)_proj|(mlp|ffn)(\*|$|[\\.]+\(?(gate\||gate_proj|gate_up|up_proj|down_proj))",
}
"""Names of modules, by the part of a shape that they belong to; the first that matches counts."""
LAYER = re.compile(r"layers\.(\d+)")


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


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` of a model in 16 bits: nothing of it, or of its parts, says that its weights are quantised."""
    return {
        key: without_quantization(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in KEYS
    }


def with_quantization(shape: ModelShape, quantization: Mapping[str, Any]) -> ModelShape:
    """`shape` with the format of its checkpoint, and the bytes of the parts that it keeps wider."""
    formats = _formats_of_parts(quantization)
    dtype = weights_format(quantization)
    if formats:
        # Of a mixed checkpoint the format of the most parameters: the experts', else the MLPs'.
        dtype = next((formats[part] for part in ("experts", "mlp", "attention") if part in formats), dtype)
    checkpoint = dataclasses.replace(
        shape.checkpoint,
        dtype=dtype,
        scaled_in_blocks=bool(quantization.get("weight_block_size")),
        wider_bytes=_wider_bytes(shape, dtype, formats, quantization) + _scale_bytes(shape, dtype, quantization),
    )
    return dataclasses.replace(shape, checkpoint=checkpoint)


def weights_format(quantization: Mapping[str, Any]) -> str:
    """``fp8``, ``mxfp4``, ``nvfp4``, ``int4``, ``int8``; else the name of the method, in lower case."""
    name = str(quantization.get("quant_algo") or quantization.get("quant_method", "")).lower()
    if known := _first_in(name, FORMATS):
        return known
    groups = quantization.get("config_groups")
    if isinstance(groups, Mapping) and groups:
        return min(map(_group_format, groups.values()), key=lambda one: DTYPE_BYTES.get(one, 2.0))
    if known := _first_in(name, ALGORITHMS):
        return known
    loaded = {4: quantization.get("load_in_4bit"), 8: quantization.get("load_in_8bit")}
    bits = next((bits for bits, is_so in loaded.items() if is_so), quantization.get("bits", quantization.get("w_bit")))
    if isinstance(bits, int):
        return f"int{bits}"
    return _first_in(str([value for key, value in quantization.items() if key not in EXCLUDED]).lower(), WORDS) or name


def _first_in(text: str, meanings: Mapping[str, str]) -> str | None:
    return next((meant for word, meant in meanings.items() if word in text), None)


def _group_format(group: Any) -> str:
    """The format of a group of compressed-tensors."""
    weights = group.get("weights") if isinstance(group, Mapping) else None
    weights = weights if isinstance(weights, Mapping) else {}
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    named = f"int{bits}" if kind == "int" else FLOATS.get(str(bits), f"{kind}{bits}")
    return GROUPS_OF_FLOAT4.get(str(weights.get("group_size")), named) if named == "fp4" else named


def _formats_of_parts(quantization: Mapping[str, Any]) -> dict[str, str]:
    """The format of each part of a mixed checkpoint: that of most of its modules; empty where one format is all."""
    modules = quantization.get("quantized_layers")
    if not isinstance(modules, Mapping):
        return {}
    counts: dict[str, Counter[str]] = {}
    for name, module in modules.items():
        if isinstance(module, Mapping) and (part := _part_of(str(name))) is not None:
            counts.setdefault(part, Counter())[weights_format(module)] += 1
    return {part: count.most_common(1)[0][0] for part, count in counts.items()}


def _part_of(module: str) -> str | None:
    if "norm" in module:
        return None
    return next((part for part, names in PARTS.items() if re.search(names, module)), None)


def _wider_bytes(shape: ModelShape, dtype: str, formats: Mapping[str, str], quantization: Mapping[str, Any]) -> float:
    """Bytes by which parts outweigh `dtype`: those in another format, and those that are not quantised."""
    narrow = DTYPE_BYTES.get(dtype)
    if narrow is None or dtype in EXPERTS_ONLY:
        return 0.0
    lists = [listed for listed in map(quantization.get, EXCLUDED) if isinstance(listed, list)]
    names = [name for listed in lists for name in listed if isinstance(name, str)]
    wide = _excluded_layers(names)
    wider = 0.0
    for part, (layers, parameters) in _parts(shape).items():
        own = DTYPE_BYTES.get(formats.get(part, dtype if not formats else "bfloat16"), 2.0)
        share = min(1.0, wide.get(part, 0.0) / layers)
        wider += parameters * (own + share * (2.0 - own) - narrow)
    return wider


def _scale_bytes(shape: ModelShape, dtype: str, quantization: Mapping[str, Any]) -> float:
    """Bytes of scales and zeros of int4 beyond those of groups of 128 values with both, which `DTYPE_BYTES` has."""
    groups = quantization.get("config_groups")
    group = next(iter(groups.values())) if isinstance(groups, Mapping) and groups else quantization
    weights = group.get("weights", group) if isinstance(group, Mapping) else None
    weights = weights if isinstance(weights, Mapping) else {}
    size = weights.get("group_size", weights.get("q_group_size"))
    if dtype != "int4" or isinstance(size, bool) or not isinstance(size, int) or size < 1:
        return 0.0
    is_symmetric = weights.get("symmetric", weights.get("sym", False)) is True or weights.get("zero_point") is False
    bits = (16 if is_symmetric else 20) / size
    values = sum(parameters for _, parameters in _parts(shape).values()) + shape.routed_parameters
    return values * ((4 + bits) / 8 - DTYPE_BYTES["int4"])


def _excluded_layers(names: Iterable[str]) -> dict[str, float]:
    """How many layers of each part are named; infinite where a name has no layer."""
    layers: dict[str, set[str | None]] = {}
    for name in names:
        if (part := _part_of(name)) is not None:
            match = LAYER.search(name)
            layers.setdefault(part, set()).add(match and match[1])
    return {part: float("inf") if None in found else float(len(found)) for part, found in layers.items()}


def _parts(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Layers and matrix entries of each part, in all its layers; the routed experts set the format itself."""
    hidden, experts = shape.hidden, shape.experts
    parts = {
        "attention": (shape.attention_layers, shape.attention.matmul_parameters(hidden)),
        "mlp": (shape.mlp.layers, shape.mlp.matmul_parameters(hidden)),
    }
    if shape.mamba is not None:
        parts["mamba"] = (shape.mamba.layers, shape.mamba.matmul_parameters(hidden))
    if experts is not None:
        parts["shared"] = (experts.layers, experts.matmul_parameters(hidden))
    return {part: (layers, layers * each) for part, (layers, each) in parts.items() if layers}
