"""Shapes of published configurations have the parameters and KV bytes of the models that transformers builds of them.

Models are built on the meta device: shapes without memory. data/configs.jsonl has configurations that do not ship, as
their publishers wrote them, less keys that no count depends on (tokens, rotary embeddings, dropout, generation).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from infergy.catalog import get_model, model_config, model_names, read_shape

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")

LINES = (Path(__file__).parent / "data" / "configs.jsonl").read_text(encoding="utf-8").splitlines()
CONFIGS: dict[str, dict[str, Any]] = {name: config for line in LINES for name, config in json.loads(line).items()}
NOT_IN_TRANSFORMERS = {"nemotron-nano-12b-v2-vl"}
"""Its classes come with the checkpoint; the language model inside is nemotron-nano-12b-v2."""
SHIPPED = sorted(set(model_names()) - NOT_IN_TRANSFORMERS)
ENCODERS = re.compile("visual|vision|audio|projector")
CACHED = ("k_proj", "v_proj", "kv_a_proj_with_mqa", "indexer.wk")
"""Projections whose results are cached: keys, values, latents and an indexer's keys."""


def build(config: dict[str, Any]) -> Any:
    """The model on the meta device."""
    config = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    kind, architecture = config["model_type"], config["architectures"][0]
    # Kimi's class comes with the checkpoint, and names the architecture that it is.
    kind = "deepseek_v3" if kind == "kimi_k2" else kind
    built = transformers.CONFIG_MAPPING[kind].from_dict(config | {"model_type": kind})
    if kind == "qwen3_omni_moe":
        built, architecture = built.thinker_config, "Qwen3OmniMoeThinkerForConditionalGeneration"
    if kind == "kimi_k25":
        architecture = "Kimi_K25ForConditionalGeneration"
    with torch.device("meta"):
        return getattr(transformers, architecture)(built)


def cached_values(model: Any) -> int:
    """Values that a token adds to the cache, by the widths of the projections."""
    values = 0
    for name, module in model.named_modules():
        if ENCODERS.search(name):
            continue
        if name.endswith("qkv_proj"):
            values += module.out_features - module.in_features
        elif name.endswith(CACHED):
            values += module.out_features
        elif name.endswith("self_attn") and getattr(module, "use_alternative_attention", False):
            # Gemma 4's values are its keys.
            values += module.k_proj.out_features
    return values


def check(config: dict[str, Any], name: str) -> None:
    shape, model = read_shape(config, name=name), build(config)
    sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
    # The routing correction is a buffer in transformers, a tensor of the checkpoint all the same.
    sizes |= {key: buffer.numel() for key, buffer in model.named_buffers() if "correction" in key}
    whole = sum(sizes.values())
    assert shape.parameters == whole
    encoders = sum(size for key, size in sizes.items() if ENCODERS.search(key))
    active = whole - encoders
    if shape.experts is not None:
        routed = sum(size for key, size in sizes.items() if re.search(r"\.experts\.", key))
        active -= routed - routed // shape.experts.experts * shape.experts.experts_per_token
    assert shape.active_parameters == active
    assert shape.kv_bytes_per_token() == 2 * cached_values(model)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_shape_is_that_of_the_model(name: str) -> None:
    assert get_model(name).parameters == read_shape(model_config(name), name=name).parameters
    check(model_config(name), name)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_configuration_is_that_of_the_model(name: str) -> None:
    check(CONFIGS[name], name)


@pytest.mark.parametrize("name", [*SHIPPED, *CONFIGS])
def test_a_configuration_that_transformers_saved_again_is_the_same_model(name: str) -> None:
    config = CONFIGS.get(name) or model_config(name)
    shape, kind = read_shape(config, name=name), config["model_type"]
    config = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    kind = "deepseek_v3" if kind == "kimi_k2" else kind
    saved = transformers.CONFIG_MAPPING[kind].from_dict(config | {"model_type": kind}).to_dict()
    again = read_shape(saved, name=name)
    assert (again.parameters, again.active_parameters) == (shape.parameters, shape.active_parameters)
    assert (again.kv_bytes(4096), again.state_bytes) == (shape.kv_bytes(4096), shape.state_bytes)
