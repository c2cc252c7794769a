"""The format of quantised checkpoints, by what their tools write; cases of public models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.catalog import get_model, model_config, read_shape
from infergy.catalog.quantization import weights_format
from infergy.cli import app
from infergy.engines.weights import config_folder
from infergy.estimates.servers import ServerSpec, open_server
from raising import raises

NVFP4 = {"config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}}}
W4A16 = {"config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}}}
W8A8 = {"config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4"),
        ({"quant_method": "compressed-tensors", **NVFP4}, "nvfp4"),
        ({"quant_method": "compressed-tensors", **W4A16}, "int4"),
        ({"quant_method": "compressed-tensors", **W8A8}, "fp8"),
        ({"quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_algo": "W4A16_AWQ"}, "int4"),
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "exl2", "bits": 4.0}, "exl2"),
        ({"group_size": 64, "bits": 4}, "int4"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}, "int4"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}}, "fp8"),
        ({"quant_algo": "W8A8_SQ_PER_CHANNEL"}, "int8"),
        ({"quant_algo": "FP8_PB_WO"}, "fp8"),
    ],
)
def test_formats(quantization: dict[str, Any], expected: str) -> None:
    assert weights_format(quantization) == expected


def checkpoint(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model_config("llama-3.1-8b") | changes), encoding="utf-8")
    return folder


def test_modelopt_keeps_the_format_beside_the_configuration(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "llama-fp8")
    assert get_model(str(folder)).precision == "bfloat16"
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}', encoding="utf-8")
    shape = get_model(str(folder))
    assert (shape.checkpoint.dtype, shape.precision) == ("fp8", "fp8")


@pytest.mark.parametrize(
    ("model", "quantization", "expected_gib"),
    [
        # 6.98 B in matrices of layers, two tables of 0.525 B at 16 bits; published: 5.73 GB.
        ("llama-3.1-8b", {"quant_method": "awq", "bits": 4}, 5.33),
        ("llama-3.1-8b", {"quant_method": "compressed-tensors", **NVFP4}, 5.61),
        # Groups of 32 values, each with a scale of 16 bits and no zero: 4.5 bits.
        ("llama-3.1-8b", {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}, 5.61),
        ("llama-3.1-70b", {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}, 67.66),
        # Attention in 16 bits: 61 layers of 187 M entries, 1.4375 bytes more each.
        ("deepseek-v3", {"quant_algo": "NVFP4", "exclude_modules": ["re:.*self_attn.*"]}, 369.3),
        (
            "deepseek-v3",
            {"quant_algo": "NVFP4", "ignore": [f"model.layers.{i}.self_attn.q_a_proj" for i in range(61)]},
            369.3,
        ),
        # Routers and norms that are named weigh nothing.
        (
            "qwen3-30b-a3b",
            {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.mlp.gate", "post_attention_layernorm"]},
            29.01,
        ),
    ],
)
def test_the_weights_of_a_checkpoint_take_its_bytes(
    tmp_path: Path, model: str, quantization: dict[str, Any], expected_gib: float
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model_config(model) | {"quantization_config": quantization}))
    shape = get_model(str(tmp_path))
    assert shape.weight_bytes(shape.precision) / 2**30 == pytest.approx(expected_gib, rel=1e-3)
    assert shape.weight_bytes() == get_model(model).weight_bytes()


def test_a_mixed_checkpoint_has_a_format_for_each_part() -> None:
    layers = {
        f"model.layers.{i}.mlp.{name}_proj": {"quant_algo": "NVFP4"} for i in range(32) for name in ("up", "down")
    }
    layers |= {f"model.layers.{i}.self_attn.q_proj": {"quant_algo": "FP8"} for i in range(32)}
    shape = read_shape(
        model_config("llama-3.1-8b")
        | {"quantization_config": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}},
        name="mixed",
    )
    attention = 32 * shape.attention.matmul_parameters(shape.hidden)
    assert shape.precision == "nvfp4"
    assert shape.checkpoint.wider_bytes == attention * (1 - 0.5625)


def test_a_checkpoint_is_served_in_its_own_format_and_one_that_was_not_measured_says_so(tmp_path: Path) -> None:
    def estimate(*more: str, **quantization: Any) -> str:
        folder = checkpoint(tmp_path / quantization["quant_method"], quantization_config=quantization)
        command = ["estimate", "azure-conv-2023", "--requests", "50", "-m", str(folder), "-g", "l4", *more]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    assert "vllm-fp8" in estimate(quant_method="fp8")
    four = estimate(quant_method="awq", bits=4)
    assert "int4 was not measured anywhere" in four
    assert "5.33 GiB" in four
    assert "is in aqlm, which is not simulated under vllm" in estimate(quant_method="aqlm")


def test_what_does_not_fit_names_the_format_of_the_checkpoint() -> None:
    with raises("does-not-fit") as caught:
        open_server(ServerSpec(model="gpt-oss-120b", gpu="h100-sxm", precision="bfloat16"))
    assert "--precision mxfp4 would" in str(caught.value)
    assert open_server(ServerSpec(model="gpt-oss-120b", gpu="h100-sxm")).setup.dtype == "mxfp4"
    with raises("does-not-fit") as caught:
        open_server(ServerSpec(engine="transformers", model="gpt-oss-120b", gpu="h100-sxm"))
    assert "--engine vllm serves it in mxfp4" in str(caught.value)


def test_random_weights_are_in_the_format_of_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = {"model_type": "x", "quantization_config": {"quant_method": "awq"}}
    folder = config_folder(config | {"text_config": config})
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert written == {"model_type": "x", "text_config": {"model_type": "x"}}
