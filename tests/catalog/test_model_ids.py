"""Shapes by the names that models have on Hugging Face's hub."""

from __future__ import annotations

import re

import pytest

from infergy.catalog import get_model, model_names, shape_of_id
from infergy.catalog.models import id_rules
from raising import raises

BENCHMARKED = {
    # The models of the ML.ENERGY benchmark's rows, by the names that stand there.
    "Qwen/Qwen3-235B-A22B-Instruct-2507": ("qwen3-235b-a22b", "bfloat16"),
    "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8": ("qwen3-235b-a22b", "fp8"),
    "Qwen/Qwen3-235B-A22B-Thinking-2507": ("qwen3-235b-a22b", "bfloat16"),
    "Qwen/Qwen3-235B-A22B-Thinking-2507-FP8": ("qwen3-235b-a22b", "fp8"),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": ("qwen3-30b-a3b", "bfloat16"),
    "Qwen/Qwen3-30B-A3B-Thinking-2507": ("qwen3-30b-a3b", "bfloat16"),
    "Qwen/Qwen3-32B": ("qwen3-32b", "bfloat16"),
    "Qwen/Qwen3-8B": ("qwen3-8b", "bfloat16"),
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": ("qwen3-30b-a3b", "bfloat16"),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": ("qwen3-coder-480b-a35b", "bfloat16"),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8": ("qwen3-coder-480b-a35b", "fp8"),
    "Qwen/Qwen3-Omni-30B-A3B-Instruct": ("qwen3-omni-30b-a3b", "bfloat16"),
    "Qwen/Qwen3-VL-235B-A22B-Instruct": ("qwen3-vl-235b-a22b", "bfloat16"),
    "Qwen/Qwen3-VL-235B-A22B-Instruct-FP8": ("qwen3-vl-235b-a22b", "fp8"),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": ("qwen3-vl-30b-a3b", "bfloat16"),
    "Qwen/Qwen3-VL-32B-Instruct": ("qwen3-vl-32b", "bfloat16"),
    "Qwen/Qwen3-VL-8B-Instruct": ("qwen3-vl-8b", "bfloat16"),
    "deepseek-ai/DeepSeek-R1-0528": ("deepseek-v3", "fp8"),
    "deepseek-ai/DeepSeek-V3.1": ("deepseek-v3", "fp8"),
    "google/gemma-3-27b-it": ("gemma-3-27b", "bfloat16"),
    "meta-llama/Llama-3.1-405B-Instruct": ("llama-3.1-405b", "bfloat16"),
    "meta-llama/Llama-3.1-405B-Instruct-FP8": ("llama-3.1-405b", "fp8"),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama-3.1-8b", "bfloat16"),
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8": ("llama-4-maverick-17b-128e", "fp8"),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": ("llama-4-scout-17b-16e", "bfloat16"),
    "nvidia/NVIDIA-Nemotron-Nano-12B-v2": ("nemotron-nano-12b-v2", "bfloat16"),
    "nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16": ("nemotron-nano-12b-v2-vl", "bfloat16"),
    "openai/gpt-oss-120b": ("gpt-oss-120b", "mxfp4"),
    "Qwen/Qwen3-8B-AWQ": ("qwen3-8b", "int4"),
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16": ("llama-3.1-8b", "int4"),
    "Qwen/Qwen2.5-32B-Instruct-GPTQ-Int8": ("qwen2.5-32b", "int8"),
}
RELATIVES = {
    "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B": "qwen3-8b",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": "llama-3.3-70b",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": "deepseek-r1-distill-qwen-32b",
    "deepseek-ai/DeepSeek-V3-0324": "deepseek-v3",
    "google/gemma-3-12b-pt": "gemma-3-12b",
    "meta-llama/Meta-Llama-3.1-70B": "llama-3.1-70b",
    "microsoft/Phi-4-mini-instruct": "phi-4-mini",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral-7b-v0.3",
    "mistralai/Mistral-Large-Instruct-2411": "mistral-large-123b",
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": "mistral-small-3.2-24b",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "mixtral-8x7b",
    "moonshotai/Kimi-K2-Instruct-0905": "kimi-k2",
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": "nemotron-nano-9b-v2",
    "Qwen/QwQ-32B": "qwen2.5-32b",
    "Qwen/Qwen2.5-72B-Instruct": "qwen2.5-72b",
    "Qwen/Qwen3-4B-Thinking-2507": "qwen3-4b",
    "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic": "llama-3.3-70b",
    "zai-org/GLM-4.5-Air-FP8": "glm-4.5-air",
    "zai-org/GLM-4.7": "glm-4.5",
}


@pytest.mark.parametrize("model_id", BENCHMARKED)
def test_each_model_of_the_benchmark_has_its_shape_and_format(model_id: str) -> None:
    shape = shape_of_id(model_id)
    assert shape is not None
    assert (shape.name, shape.checkpoint.dtype) == BENCHMARKED[model_id]
    assert shape.parameters == get_model(shape.name).parameters


@pytest.mark.parametrize(
    ("model_id", "blocks"),
    [
        ("Qwen/Qwen3-32B-FP8", True),
        ("RedHatAI/Qwen3-32B-FP8-dynamic", False),
        ("deepseek-ai/DeepSeek-V3", True),
        ("someone/DeepSeek-V3-FP8", True),
        ("meta-llama/Llama-3.1-405B-Instruct-FP8", False),
        ("Qwen/Qwen3-32B", False),
    ],
)
def test_fp8_is_scaled_in_blocks_where_the_configuration_or_the_family_says_so(model_id: str, blocks: bool) -> None:
    shape = shape_of_id(model_id)
    assert shape is not None
    assert shape.checkpoint.scaled_in_blocks is blocks


@pytest.mark.parametrize("model_id", RELATIVES)
def test_relatives_go_by_the_shape_of_their_network(model_id: str) -> None:
    shape = shape_of_id(model_id)
    assert shape is not None
    assert shape.name == RELATIVES[model_id]


@pytest.mark.parametrize(
    "model_id",
    ["Qwen/Qwen3-Next-80B-A3B-Instruct", "Qwen/Qwen3-8B-EXL2", "Qwen/Qwen3-8", "x/llama-3.1-8b-vision", "", "/"],
)
def test_another_network_is_not_mistaken(model_id: str) -> None:
    assert shape_of_id(model_id) is None


def test_a_shipped_name_is_its_own_and_the_owner_may_be_left_out() -> None:
    for name in model_names():
        assert shape_of_id(name) == get_model(name)
    assert shape_of_id("qwen3-8b-FP8") == shape_of_id("Qwen/Qwen3-8B-FP8")


def test_every_rule_leads_to_a_shipped_model_and_none_hides_another() -> None:
    rules = id_rules()
    assert set(rules["models"]) <= set(model_names())
    for target, rule in rules["models"].items():
        assert {name for name in model_names() if re.fullmatch(rule, name)} <= {target}


def test_a_hubs_name_in_place_of_a_shipped_one_is_answered_with_that() -> None:
    with raises("unknown-model", name="Qwen/Qwen3-VL-8B-Instruct", nearest=["qwen3-vl-8b"]):
        get_model("Qwen/Qwen3-VL-8B-Instruct")
