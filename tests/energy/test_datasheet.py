"""Estimates from datasheets: of what nobody measured, and against what was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from infergy.cli import app
from infergy.cli.schema import make_schema
from infergy.energy.datasheet import DatasheetEstimate, estimate_from_datasheet
from infergy.energy.demand import decode_demand, prefill_demand
from infergy.energy.load import load_table
from infergy.energy.physics import Chips, Physics
from infergy.errors import UsageError
from infergy.hardware.gpus import get_gpu
from infergy.hardware.models import get_model
from infergy.workload.bins import Bin, BinCount, Bins, Histogram


def histogram(*bins: tuple[int, int, int]) -> Histogram:
    """Requests at the upper corners of bins: input, output, count."""
    return Histogram(
        source="test",
        bins=Bins.powers_of_two(4096, 512),
        counts=tuple(
            BinCount(
                bin=Bin(input_tokens=i, output_tokens=o, input_floor=i // 2, output_floor=o // 2),
                requests=n,
                input_tokens=i * n,
                output_tokens=o * n,
            )
            for i, o, n in bins
        ),
    )


def priced(
    model: str = "llama-3.1-8b", gpu: str = "h200", gpus: int = 1, precision: str = "bfloat16"
) -> DatasheetEstimate:
    trace = histogram((512, 64, 1000), (2048, 256, 100))
    return estimate_from_datasheet(trace, model=model, gpu=gpu, gpus=gpus, precision=precision)


def test_the_datasheet_alone_is_near_what_vllm_took_on_an_h200() -> None:
    """All measured cells of Llama-3.1-8B; no constant was fitted to them. docs/physics.md tells these figures."""
    cells = load_table(with_shipped=True).find("h200", "llama-3.1-8b", "vllm").cells
    batch, inputs, outputs, measured_j = (
        np.array([getattr(cell, name) for cell in cells], dtype=float)
        for name in ("batch", "input_tokens", "output_tokens", "energy_j")
    )
    shape, chips = get_model("llama-3.1-8b"), Chips.of([get_gpu("h200")], ["bfloat16"])
    prefill = Physics().passes(prefill_demand(shape, batch, inputs), chips)
    step = Physics().passes(decode_demand(shape, batch, inputs + outputs / 2), chips)
    off = np.abs((prefill.energy_j + (outputs - 1) * step.energy_j) / batch / measured_j - 1)
    assert len(off) > 45
    assert np.median(off) < 0.05
    assert np.quantile(off, 0.9) < 0.1
    assert off.max() < 0.2


def test_requests_add_up_and_the_range_holds_the_figure() -> None:
    found = priced()
    assert found.energy_j == pytest.approx(sum(one.energy_j for one in found.bins))
    assert found.low_j < found.energy_j < found.high_j
    assert found.energy_per_request_j == pytest.approx(found.energy_j / 1100)
    assert found.power_w <= found.limit_w * 1.001
    assert found.basis.startswith("DATASHEET: nothing of this was measured")


def test_smaller_models_narrower_weights_and_newer_gpus_take_fewer_joules() -> None:
    joules = {
        name: priced(**options).energy_j  # type: ignore[arg-type]
        for name, options in {
            "8b": {},
            "1b": {"model": "llama-3.2-1b"},
            "32b": {"model": "qwen3-32b"},
            "fp8": {"precision": "fp8"},
            "a100": {"gpu": "a100-80gb-sxm"},
            "b200": {"gpu": "b200"},
        }.items()
    }
    assert joules["1b"] < joules["fp8"] < joules["8b"] < joules["32b"]
    assert joules["b200"] < joules["8b"] < joules["a100"]


def test_batches_fit_and_answer_in_time() -> None:
    found = estimate_from_datasheet(histogram((4096, 512, 50)), model="llama-3.1-8b", gpu="h200", max_batch_s=2.0)
    hurried = found.bins[0].batch
    assert hurried < estimate_from_datasheet(histogram((4096, 512, 50)), model="llama-3.1-8b", gpu="h200").bins[0].batch


def test_a_model_that_does_not_fit_is_told_with_how_many_gpus_would() -> None:
    with pytest.raises(UsageError, match="do not fit 1 × NVIDIA A100 80GB SXM: --gpus 2 would do"):
        priced(model="llama-3.1-70b", gpu="a100-80gb-sxm")
    with pytest.raises(UsageError, match="not even 8 GPUs hold it"):
        priced(model="deepseek-v3", gpu="a100-80gb-sxm")
    with pytest.raises(UsageError, match="expected 1 to 8"):
        priced(gpus=9)


def test_any_config_json_and_any_described_gpu_will_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        (Path(__file__).parents[2] / "src/infergy/data/models/qwen3-8b.json").read_text()
    )
    shipped, mine = (priced(model=model) for model in ("qwen3-8b", str(tmp_path)))
    assert mine.energy_j == shipped.energy_j
    (tmp_path / "mine.toml").write_text(
        "peak_flops = { bfloat16 = 989.5e12 }\nmemory_bytes = 150_000_000_000\nmemory_bandwidth = 4.8e12\n"
        'tdp_w = 350\nlink = { kind = "NVLink 4", bandwidth = 450e9 }\n'
    )
    assert priced(gpu=str(tmp_path / "mine.toml")).energy_j < priced().energy_j


def test_the_verb_marks_what_nobody_measured_and_refuses_tables_beside_it() -> None:
    arguments = ["estimate", "azure-code-2023", "--method", "datasheet", "--gpu", "a100-80gb-sxm", "--gpus", "2"]
    told = CliRunner().invoke(app, [*arguments, "--model", "qwen3-32b"])
    assert told.exit_code == 0, told.output
    assert "NOTHING OF THIS WAS MEASURED" in told.stdout
    assert "2 a100-80gb-sxm" in told.stdout
    printed = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    Draft202012Validator(make_schema("datasheet")).validate(printed)
    assert (printed["gpu"], printed["gpus"], printed["model"]) == ("a100-80gb-sxm", 2, "llama-3.1-8b")
    refused = CliRunner().invoke(app, [*arguments, "--engine", "vllm"])
    assert "Leave one of them out" in str(refused.exception)


@pytest.mark.parametrize(
    "asked",
    [
        ("--gpu", "a100-80gb-sxm"),
        ("--model", "qwen3-32b"),
        # Measured, but not on the default GPU.
        ("--model", "olmo-1b"),
        ("--model", "qwen3-32b", "--gpu", "a100-80gb-sxm", "--gpus", "2", "--precision", "fp8"),
        ("--gpus", "2"),
        ("--precision", "fp8"),
    ],
)
def test_where_nothing_was_measured_the_datasheet_answers(asked: tuple[str, ...]) -> None:
    told = CliRunner().invoke(app, ["estimate", "azure-code-2023", *asked])
    assert told.exit_code == 0, told.output
    assert "NOTHING OF THIS WAS MEASURED" in told.stdout


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("--gpu", "a100-80gb-sxm", "--method", "ceiling"), "Without a measurement: --method datasheet"),
        (("--gpu", "a100-80gb-sxm", "--engine", "vllm"), "unknown measured GPU"),
        (("--engine", "vllm", "--gpus", "2"), "measured: --engine vllm-tp2"),
        (("--gpu", "a100x"), "unknown GPU 'a100x'"),
    ],
)
def test_who_asks_for_measurements_is_not_given_the_datasheet(asked: tuple[str, ...], words: str) -> None:
    assert words in str(CliRunner().invoke(app, ["estimate", "azure-code-2023", *asked]).exception)
