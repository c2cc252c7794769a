"""Reading shapes from configurations: published parameter counts, windows, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.catalog import AttentionShape, get_model, model_config, model_names, read_shape
from infergy.errors import InfergyError
from raising import raises

PUBLISHED = {
    # Tensors of the checkpoints on the hub, as its pages count them (safetensors).
    "deepseek-r1-distill-qwen-1.5b": 1_777_088_000,
    "deepseek-r1-distill-qwen-32b": 32_763_876_352,
    "deepseek-v3": 671_026_419_200,
    "gemma-3-12b": 12_187_325_040,
    "gemma-3-1b": 999_885_952,
    "gemma-3-27b": 27_432_406_640,
    "gemma-3-4b": 4_300_079_472,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-small-24b": 23_572_403_200,
    "mixtral-8x7b": 46_702_792_704,
    "olmo-1b": 1_176_764_416,
    "olmo-2-7b": 7_298_617_344,
    "olmo-7b": 6_888_095_744,
    "olmoe-1b-7b": 6_919_161_856,
    "qwen-1.5-32b": 32_512_218_112,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-32b": 32_762_123_264,
    "qwen3-8b": 8_190_735_360,
}

ROUNDED = {
    # Billions of all parameters, as the named page or report rounds them.
    "glm-4.5": (355, "GLM-4.5 model card"),
    "glm-4.5-air": (106, "GLM-4.5 model card"),
    "kimi-k2": (1026, "checkpoint of Kimi-K2-Instruct; its card says 1T"),
    "llama-3.1-405b": (405, "The Llama 3 Herd of Models, arXiv 2407.21783, table 3"),
    "llama-4-maverick-17b-128e": (400, "Llama 4 model card"),
    "llama-4-scout-17b-16e": (109, "Llama 4 model card"),
    "mistral-large-123b": (123, "Mistral Large 2 model card"),
    "mistral-nemo-12b": (12.2, "checkpoint on the hub; its card says 12B"),
    "mistral-small-3.2-24b": (24, "Mistral Small 3.1 and 3.2 model cards"),
    "mixtral-8x22b": (141, "Mixtral 8x22B announcement"),
    "nemotron-3-nano-30b-a3b": (31.6, "Nemotron 3 Nano report, arXiv 2512.20848"),
    "nemotron-nano-12b-v2": (12.31, "Nemotron Nano 2 report, arXiv 2508.14444 (12.31B)"),
    "nemotron-nano-12b-v2-vl": (13.2, "checkpoint on the hub"),
    "nemotron-nano-9b-v2": (8.89, "Nemotron Nano 2 report, arXiv 2508.14444 (8.89B)"),
    "phi-3.5-mini": (3.8, "Phi-3.5-mini model card"),
    "phi-4": (14.7, "checkpoint on the hub; its card says 14B"),
    "phi-4-mini": (3.8, "Phi-4-mini model card"),
    "qwen2.5-0.5b": (0.49, "Qwen2.5 model cards"),
    "qwen2.5-1.5b": (1.54, "Qwen2.5 model cards"),
    "qwen2.5-14b": (14.7, "Qwen2.5 model cards"),
    "qwen2.5-32b": (32.5, "Qwen2.5 model cards"),
    "qwen2.5-3b": (3.09, "Qwen2.5 model cards"),
    "qwen2.5-72b": (72.7, "Qwen2.5 model cards"),
    "qwen2.5-7b": (7.61, "Qwen2.5 model cards"),
    "qwen3-0.6b": (0.596, "Qwen3-0.6B: 0.44B beside the embeddings, of 151,936 × 1024"),
    "qwen3-1.7b": (1.72, "Qwen3-1.7B: 1.4B beside the embeddings, of 151,936 × 2048"),
    "qwen3-14b": (14.8, "Qwen3-14B model card"),
    "qwen3-4b": (4.0, "Qwen3-4B model card"),
    "qwen3-coder-480b-a35b": (480, "Qwen3-Coder model card"),
    "qwen3-omni-30b-a3b": (
        31.7,
        "thinker alone: text as Qwen3-30B-A3B, 0.54B of images, 0.65B of sound (report, table 1)",
    ),
    "qwen3-vl-235b-a22b": (236, "checkpoint on the hub"),
    "qwen3-vl-2b": (2.13, "checkpoint on the hub"),
    "qwen3-vl-30b-a3b": (31.1, "checkpoint on the hub"),
    "qwen3-vl-32b": (33.4, "checkpoint on the hub"),
    "qwen3-vl-4b": (4.44, "checkpoint on the hub"),
    "qwen3-vl-8b": (8.77, "checkpoint on the hub"),
}

ACTIVE = {
    # Billions that one token visits, as the model's card or report says, and how many of the two tables of the
    # vocabulary that figure leaves out.
    "deepseek-v3": ("37", 1),
    "glm-4.5": ("32", 2),
    "glm-4.5-air": ("12", 2),
    "kimi-k2": ("32", 1),
    "llama-4-maverick-17b-128e": ("17", 0),
    "llama-4-scout-17b-16e": ("17", 0),
    "mixtral-8x22b": ("39", 0),
    "mixtral-8x7b": ("12.9", 0),
    "nemotron-3-nano-30b-a3b": ("3.6", 0),
    "olmoe-1b-7b": ("1.3", 0),
    "qwen3-235b-a22b": ("22", 0),
    "qwen3-30b-a3b": ("3.3", 0),
    "qwen3-coder-480b-a35b": ("35", 0),
    "qwen3-omni-30b-a3b": ("3.3", 0),
    "qwen3-vl-235b-a22b": ("22", 0),
    "qwen3-vl-30b-a3b": ("3.3", 0),
}


def test_every_shipped_model_has_its_published_number_of_parameters() -> None:
    assert {name: get_model(name).parameters for name in PUBLISHED} == PUBLISHED
    assert set(model_names()) == PUBLISHED.keys() | ROUNDED.keys()


@pytest.mark.parametrize("name", ROUNDED)
def test_a_shipped_model_agrees_with_the_rounded_number_published(name: str) -> None:
    billions, source = ROUNDED[name]
    assert get_model(name).parameters / 1e9 == pytest.approx(billions, rel=0.01), source


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters_are_the_published_ones(name: str) -> None:
    told, tables = ACTIVE[name]
    shape = get_model(name)
    active = (shape.active_parameters - tables * shape.vocabulary * shape.hidden) / 1e9
    digits = len(told.partition(".")[2])
    # Some publishers round, some cut.
    assert float(told) in {round(active, digits), math.floor(active * 10**digits) / 10**digits}


@pytest.mark.parametrize(("name", "billions"), [("gpt-oss-20b", 3.61), ("gpt-oss-120b", 5.13)])
def test_gpt_oss_counts_active_parameters_without_the_embedding_table(name: str, billions: float) -> None:
    shape = get_model(name)
    assert (shape.active_parameters - shape.vocabulary * shape.hidden) / 1e9 == pytest.approx(billions, abs=0.005)


def window_of(attention: AttentionShape) -> tuple[int | None, int]:
    """Tokens of its window, and layers that have it."""
    return (None, 0) if attention.window is None else (attention.window.tokens, attention.window.layers)


@pytest.mark.parametrize(
    ("name", "window", "layers"),
    [("gemma-3-4b", 1024, 29), ("gemma-3-27b", 1024, 52), ("gpt-oss-20b", 128, 12), ("qwen3-8b", None, 0)],
)
def test_windows_are_in_as_many_layers_as_published(name: str, window: int | None, layers: int) -> None:
    attention = get_model(name).attention
    assert window_of(attention) == (window, layers)


def small(**changes: Any) -> dict[str, Any]:
    """A small Llama's configuration with `changes`; None removes a key."""
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    return {key: value for key, value in (config | changes).items() if value is not None}


@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
def test_a_missing_key_is_named(key: str) -> None:
    with raises("missing-field", place="tiny", keys=[key]):
        read_shape(small(**{key: None}), name="tiny")


@pytest.mark.parametrize("value", [0, -1, 2.5, "8", True])
def test_a_value_that_is_no_positive_whole_number_is_named(value: object) -> None:
    with raises("bad-field", place="tiny", key="num_hidden_layers", value=value):
        read_shape(small(num_hidden_layers=value), name="tiny")


def test_a_switch_must_be_true_or_false() -> None:
    with raises("bad-field", key="tie_word_embeddings", value="yes", expected="true or false"):
        read_shape(small(tie_word_embeddings="yes"), name="tiny")


def test_heads_that_cannot_be_shared_are_rejected() -> None:
    with raises("bad-field", key="num_key_value_heads", value=3, expected="a divisor of num_attention_heads (4)"):
        read_shape(small(num_key_value_heads=3), name="tiny")


def test_an_unknown_architecture_is_named_with_the_nearest() -> None:
    with raises("unknown-architecture", place="tiny", name="llama9"):
        read_shape(small(model_type="llama9"), name="tiny")


def test_something_else_than_a_model_is_rejected() -> None:
    with raises("missing-field", place="tiny", keys=["model_type"]):
        read_shape({"name": "x"}, name="tiny")


def test_every_head_has_its_own_keys_where_the_configuration_is_silent() -> None:
    assert read_shape(small(), name="tiny").attention.kv_heads == 4


def test_layer_types_win_over_the_pattern() -> None:
    config = model_config("gpt-oss-20b")
    config["layer_types"] = ["full_attention"] * 23 + ["sliding_attention"]
    assert window_of(read_shape(config, name="x").attention)[1] == 1


@pytest.mark.parametrize(
    ("kinds", "code"),
    [(["full_attention"] * 3, "bad-field"), (["linear_attention"] * 24, "unknown-architecture")],
)
def test_layer_types_that_cannot_be_meant_are_rejected(kinds: list[str], code: str) -> None:
    config = model_config("gpt-oss-20b") | {"layer_types": kinds}
    with raises(code, place="x", key="layer_types"):
        read_shape(config, name="x")


def test_mistral_slides_unless_its_configuration_says_null() -> None:
    config = model_config("mistral-7b-v0.3")
    del config["sliding_window"]
    assert window_of(read_shape(config, name="x").attention)[0] == 4096
    assert get_model("mistral-7b-v0.3").attention.window is None


def test_gemma_without_its_text_is_rejected() -> None:
    config = model_config("gemma-3-4b")
    del config["text_config"]
    with raises("missing-field", place="x", keys=["text_config"]):
        read_shape(config, name="x")


def test_gemma_counts_its_image_encoder_but_does_not_read_it() -> None:
    config = model_config("gemma-3-4b")
    text = read_shape(config["text_config"], name="text")
    whole = get_model("gemma-3-4b")
    assert whole.checkpoint.encoder_parameters == whole.parameters - text.parameters > 400e6
    assert whole.step_weight_bytes(1) == text.step_weight_bytes(1)
    assert whole.active_parameters == text.parameters


def test_the_llama_of_the_shipped_table_is_whole_enough_for_engines() -> None:
    config = model_config("llama-3.1-8b")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["torch_dtype"] == "bfloat16"
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert config["max_position_embeddings"] == 131072
    assert (config["bos_token_id"], config["eos_token_id"]) == (128000, 128001)


@pytest.mark.parametrize(
    ("name", "outer", "inner"),
    [
        ("qwen3-vl-8b", "text_config", "hidden_size"),
        ("llama-4-scout-17b-16e", "text_config", "num_local_experts"),
        ("nemotron-nano-12b-v2-vl", "llm_config", "mamba_num_heads"),
        ("qwen3-vl-8b", "vision_config", "depth"),
    ],
)
def test_a_missing_key_of_a_part_is_named_with_the_part(name: str, outer: str, inner: str) -> None:
    config = model_config(name)
    del config[outer][inner]
    with raises("missing-field", place=f"x {outer}", keys=[inner]):
        read_shape(config, name="x")
    del config[outer]
    if outer != "vision_config":
        with raises("missing-field", place="x", keys=[outer]):
            read_shape(config, name="x")


def test_a_list_that_is_none_is_named() -> None:
    config = model_config("qwen3-vl-8b")
    config["vision_config"]["deepstack_visual_indexes"] = 3
    with raises("bad-field", place="x vision_config", key="deepstack_visual_indexes", value=3, expected="a list"):
        read_shape(config, name="x")


def test_llama_4_may_name_its_layers_with_experts() -> None:
    config = model_config("llama-4-maverick-17b-128e")
    config["text_config"]["moe_layers"] = [1, 3, 5]
    assert read_shape(config, name="x").mlp.layers == 45


def test_encoders_are_loaded_and_idle() -> None:
    for name, text in (("qwen3-vl-8b", "qwen3-8b"), ("qwen3-vl-235b-a22b", "qwen3-235b-a22b")):
        whole, alone = get_model(name), get_model(text)
        assert whole.parameters - alone.parameters == whole.checkpoint.encoder_parameters > 500e6
        assert whole.step_weight_bytes(8) == alone.step_weight_bytes(8)


@pytest.mark.parametrize("pattern", ["M-", "M-M-M-M?" + "-" * 54, None])
def test_a_pattern_that_does_not_describe_each_layer_is_rejected(pattern: str | None) -> None:
    config = model_config("nemotron-nano-12b-v2") | {"hybrid_override_pattern": pattern}
    with raises("bad-field", place="x", key="hybrid_override_pattern", value=pattern):
        read_shape(config, name="x")


def test_layers_without_experts_are_as_many_as_published() -> None:
    maverick, scout = get_model("llama-4-maverick-17b-128e"), get_model("llama-4-scout-17b-16e")
    assert (maverick.mlp.layers, scout.mlp.layers) == (24, 0)
    assert window_of(maverick.attention) == (8192, 36)
    assert get_model("glm-4.5").mlp.layers == 3
    assert get_model("kimi-k2").mlp.layers == 1


ODD = [None, 0, -1, 2, 2**40, 10**400, 1.5, math.nan, math.inf, "", "x", True, [], [None], [[1]], {}, {"a": [1]}]


def places(config: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The way to each value, parts included."""
    for key, value in config.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), name=st.sampled_from(model_names()))
def test_a_changed_configuration_is_a_shape_or_an_error_that_says_why(data: st.DataObject, name: str) -> None:
    config = json.loads(json.dumps(model_config(name)))
    for _ in range(2):
        way = data.draw(st.sampled_from(list(places(config)) or [("layers",)]))
        part = config
        for key in way[:-1]:
            part = part[key]
        part[way[-1]] = deepcopy(data.draw(st.sampled_from(ODD)))
    with suppress(InfergyError):
        shape = read_shape(config, name=name)
        assert 0 < shape.active_parameters <= shape.parameters
        assert shape.weight_bytes(shape.precision) > 0
        assert shape.kv_bytes(100) >= 0
        assert shape.prefill_flops(100) > 0
