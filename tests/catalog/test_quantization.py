"""The format of quantised checkpoints, by what their tools write; cases of public models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.catalog import get_model, model_config
from infergy.catalog.configs import weights_format
from infergy.cli import app

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


def test_an_fp8_checkpoint_is_served_in_fp8_and_an_int4_one_is_named(tmp_path: Path) -> None:
    def estimate(**quantization: Any) -> str:
        folder = checkpoint(tmp_path / quantization["quant_method"], quantization_config=quantization)
        done = CliRunner().invoke(app, ["estimate", "azure-conv-2023", "--requests", "50", "-m", str(folder)])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    assert "vllm-fp8" in estimate(quant_method="fp8")
    four = estimate(quant_method="awq", bits=4)
    assert "is in int4" in four
    assert "taken as bfloat16" in four
