"""Forecasts beside what one H200 measured, and their laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.errors import UsageError
from infergy.hardware import Forecast, forecast, get_gpu, get_model

LLAMA, H200 = get_model("llama-3.1-8b"), get_gpu("h200")

# Llama-3.1-8B in bfloat16 with random weights on one NVIDIA H200, transformers 5.17 and vLLM 0.25:
# engine, CUDA graphs, input tokens, output tokens, batch, seconds and joules a batch.
MEASURED = [
    ("transformers", None, 512, 64, 1, 1.1656, 267.98),
    ("transformers", None, 512, 64, 8, 1.2286, 358.39),
    ("transformers", None, 512, 64, 32, 1.7213, 686.35),
    ("transformers", None, 512, 64, 128, 2.9698, 1918.32),
    ("transformers", None, 512, 64, 512, 10.1135, 6866.85),
    ("transformers", None, 2048, 32, 32, 2.4243, 1533.67),
    ("vllm", False, 512, 64, 1, 0.8645, 227.53),
    ("vllm", False, 512, 64, 8, 1.0347, 310.59),
    ("vllm", False, 512, 64, 32, 1.2039, 534.04),
    ("vllm", False, 512, 64, 128, 2.535, 1507.83),
    ("vllm", False, 512, 64, 512, 7.946, 5354.4),
    ("vllm", False, 2048, 32, 32, 1.9787, 1248.9),
    ("vllm", True, 512, 64, 1, 0.3283, 160.83),
    ("vllm", True, 512, 64, 8, 0.4162, 234.07),
    ("vllm", True, 512, 64, 32, 0.7334, 477.96),
    ("vllm", True, 512, 64, 128, 2.0367, 1379.45),
    ("vllm", True, 512, 64, 512, 7.5652, 5225.02),
    ("vllm", True, 2048, 32, 32, 1.7495, 1188.17),
]


@pytest.mark.parametrize("row", MEASURED, ids=str)
def test_forecast_is_near_what_was_measured(row: tuple[str, bool | None, int, int, int, float, float]) -> None:
    engine, graphs, inputs, outputs, batch, seconds, joules = row
    found = forecast(LLAMA, H200, inputs, outputs, batch, engine=engine, cuda_graphs=graphs)
    assert found.prefill_s + found.decode_s == pytest.approx(seconds, rel=0.10)
    assert found.energy_j == pytest.approx(joules, rel=0.14)


def both(inputs: int, outputs: int, batch: int, name: str) -> list[Forecast]:
    return [forecast(get_model(name), H200, inputs, outputs, batch, engine=e) for e in ("transformers", "vllm")]


@given(
    inputs=st.integers(1, 9000),
    outputs=st.integers(1, 2000),
    batch=st.integers(1, 300),
    name=st.sampled_from(["llama-3.1-8b", "gpt-oss-20b", "qwen3-30b-a3b"]),
)
def test_more_work_never_takes_less(inputs: int, outputs: int, batch: int, name: str) -> None:
    base = both(inputs, outputs, batch, name)
    for more in (
        both(inputs + 1, outputs, batch, name),
        both(inputs, outputs + 1, batch, name),
        both(inputs, outputs, batch + 1, name),
    ):
        for less, found in zip(base, more, strict=True):
            assert found.prefill_s >= less.prefill_s
            assert found.decode_s >= less.decode_s
            assert found.energy_j > less.energy_j


def test_launching_kernels_is_no_work_of_the_gpu() -> None:
    slow = forecast(LLAMA, H200, 512, 64, 1, engine="vllm", cuda_graphs=False)
    assert slow.gpu_bound_s < (slow.prefill_s + slow.decode_s) / 3
    quick = forecast(LLAMA, H200, 512, 64, 1, engine="vllm")
    assert quick.gpu_bound_s == quick.prefill_s + quick.decode_s


def test_one_output_token_needs_no_decode_step() -> None:
    alone = forecast(LLAMA, H200, 512, 1, 8, engine="vllm")
    assert alone.decode_s == alone.decode_energy_j == 0
    with_decode = forecast(LLAMA, H200, 512, 64, 8, engine="vllm")
    assert with_decode.prefill_s == alone.prefill_s
    assert with_decode.prefill_energy_j == alone.prefill_energy_j
    assert with_decode.energy_j == alone.energy_j + with_decode.decode_energy_j


def test_an_unknown_engine_or_dtype_is_named() -> None:
    with pytest.raises(UsageError, match="unknown engine 'tgi'"):
        forecast(LLAMA, H200, 512, 64, 1, engine="tgi")
    with pytest.raises(UsageError, match="unknown dtype of NVIDIA H200 SXM 141GB 'fp4'"):
        forecast(LLAMA, H200, 512, 64, 1, engine="vllm", dtype="fp4")
