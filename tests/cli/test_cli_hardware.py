"""`infergy list gpus` and `infergy list models` as a user meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.catalog import get_model, gpu_names, model_config, model_names
from infergy.cli import app
from infergy.errors import UsageError
from infergy.meters.simulated import SimulatedGpu, SimulatedMeter
from infergy.records import GpuIdentity
from raising import raises


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_gpus_lists_the_catalog_one_a_line() -> None:
    lines = run("list", "gpus").splitlines()
    assert [line.split()[0] for line in lines[3:-1]] == list(gpu_names())


def test_a_gpu_is_told_with_its_source() -> None:
    text = run("list", "gpus", "NVIDIA H200")
    assert "989.5 TFLOP/s" in text
    assert "140 GiB" in text
    assert "https://www.nvidia.com" in text


def test_json_of_a_gpu_is_in_si_units_and_unknown_is_null() -> None:
    facts = run_json("list", "gpus", "a100-80gb-sxm")
    assert facts["memory_bandwidth"] == 2.039e12
    assert facts["headline_flops"] is None
    assert facts["headline_basis"]
    assert [gpu["name"] for gpu in run_json("list", "gpus")] == list(gpu_names())


def test_models_lists_what_ships() -> None:
    lines = run("list", "models").splitlines()
    assert [line.split()[0] for line in lines[3:-1]] == list(model_names())


def test_a_model_is_told_with_its_largest_batch() -> None:
    text = run("list", "models", "llama-3.1-8b")
    assert "8,030,261,248" in text
    assert "128 KiB per token" in text
    assert "NVIDIA H200" in text


def test_a_hybrid_tells_its_kinds_of_layers_and_its_state() -> None:
    text, facts = run("list", "models", "nemotron-nano-12b-v2"), run_json("list", "models", "nemotron-nano-12b-v2")
    assert "62 layers: 28 Mamba-2, 6 attention, 28 MLP" in text
    assert "142 MiB per request of any length" in text
    assert facts["state_bytes"] == get_model("nemotron-nano-12b-v2").state_bytes
    assert facts["attention_layers"] == 6
    assert run_json("list", "models", "llama-3.1-8b")["state_bytes"] == 0
    assert "Mamba" not in run("list", "models", "llama-3.1-8b")


def test_the_files_that_the_documentation_shows_are_read(tmp_path: Path) -> None:
    """docs/models.md: a model's numbers and a GPU's, as a user copies them."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(shown) == 3
    paths = [tmp_path / name for name in ("model.toml", "hybrid.toml", "gpu.toml")]
    for path, text in zip(paths, shown, strict=True):
        path.write_text(text, encoding="utf-8")
    facts = run_json("list", "models", str(paths[0]), "--gpu", str(paths[2]))
    assert facts["parameters"] == pytest.approx(get_model("qwen3-30b-a3b").parameters, rel=1e-4)
    assert facts["largest_batch"]["vllm"]["batch"] > 0
    hybrid = run_json("list", "models", str(paths[1]))
    assert hybrid["parameters"] == pytest.approx(get_model("nemotron-nano-12b-v2").parameters, rel=1e-4)
    assert hybrid["state_bytes"] == get_model("nemotron-nano-12b-v2").state_bytes
    assert "gpu" in run("list", "gpus", str(paths[2]))


def test_json_of_a_model_agrees_with_the_library() -> None:
    facts, shape = run_json("list", "models", "gpt-oss-20b", "--gpu", "h100-sxm"), get_model("gpt-oss-20b")
    assert facts["parameters"] == shape.parameters
    assert facts["weight_bytes"] == {"bfloat16": shape.weight_bytes(), "mxfp4": shape.weight_bytes("mxfp4")}
    assert facts["example"]["request_flops"] == shape.request_flops(2048, 512)
    assert facts["gpu"] == "h100-sxm"
    assert facts["largest_batch"]["vllm"]["batch"] > 0
    assert len(run_json("list", "models")) == len(model_names())


def test_a_configuration_of_the_users_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(model_config("qwen3-8b") | {"num_hidden_layers": 2}), encoding="utf-8")
    assert run_json("list", "models", str(path))["layers"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "name"),
    [
        (("list", "gpus", "h300"), "unknown-gpu", "h300"),
        (("list", "models", "lama"), "unknown-model", "lama"),
        (("list", "models", "qwen3-8b", "--gpu", "h20"), "unknown-gpu", "h20"),
    ],
)
def test_an_unknown_name_is_a_usage_error(arguments: tuple[str, ...], code: str, name: str) -> None:
    with raises(code, name=name):
        run(*arguments)


def test_a_mixture_tells_which_share_of_its_experts_a_batch_is_expected_to_visit() -> None:
    (line,) = (line for line in run("list", "models", "olmoe-1b-7b").splitlines() if line.startswith("experts"))
    assert "64, 8 per token; a step reads 12.5 % at batch 1, " in line
    assert run_json("list", "models", "olmoe-1b-7b")["expected_experts_touched"]["8"] == pytest.approx(1 - (7 / 8) ** 8)
    dense = run_json("list", "models", "llama-3.1-8b")
    assert dense["experts"] is None
    assert dense["expected_experts_touched"] == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [("NVIDIA Mystery", "NVIDIA Mystery is not in the catalog"), ("Tesla T4", "does not compute in bfloat16")],
)
def test_on_a_gpu_that_the_catalog_lacks_nothing_is_planned_for_another(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = SimulatedMeter(SimulatedGpu(GpuIdentity(uuid="GPU-a", name=name), idle_w=100.0))
    monkeypatch.setattr("infergy.meters.open_meter", lambda *_: here)
    cell = ["measure", "-e", "vllm", "--input", "512", "--output", "64", "--batch", "largest", "--dry-run"]
    done = CliRunner().invoke(app, cell)
    assert isinstance(done.exception, UsageError)
    assert done.exception.fields == {"name": name, "option": "--gpu"}
    assert words in str(done.exception)
    assert "on a10g: 1 cell" in CliRunner().invoke(app, [*cell, "-g", "a10g"]).output
    here.gpus = (GpuIdentity(uuid="GPU-a", name="NVIDIA A10G"),)
    assert "on a10g: 1 cell" in CliRunner().invoke(app, cell).output
