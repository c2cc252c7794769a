"""vLLM's own defaults, the options that it rejects, and the blocks that it finds room for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from infergy.catalog.gpus import get_gpu
from infergy.catalog.models import get_model, model_config, model_context
from infergy.serving.config import EngineOptions, batch_defaults, resolve
from raising import raises

H200, LLAMA = get_gpu("h200"), get_model("llama-3.1-8b")


@pytest.mark.parametrize(
    ("gpu", "version", "server", "llm"),
    [
        ("h200", "0.25", (8192, 1024), (16384, 1024)),
        ("h100-sxm", "0.33", (8192, 1024), (16384, 1024)),
        ("b200", "0.25", (8192, 1024), (16384, 1024)),
        ("b200", "0.33", (16384, 1024), (16384, 1024)),
        ("a100-80gb-sxm", "0.25", (2048, 256), (8192, 256)),
        ("l40s", "0.33", (2048, 256), (8192, 256)),
    ],
)
def test_defaults_by_gpu_version_and_context(
    gpu: str, version: str, server: tuple[int, int], llm: tuple[int, int]
) -> None:
    assert batch_defaults(get_gpu(gpu), version, "server") == server
    assert batch_defaults(get_gpu(gpu), version, "llm") == llm


def test_a_small_machine_of_much_memory_is_a_small_gpu_from_0_33_on() -> None:
    spark = replace(H200, title="NVIDIA GB10", compute_capability="12.1")
    assert batch_defaults(spark, "0.25", "server") == (8192, 1024)
    assert batch_defaults(spark, "0.33", "server") == (2048, 256)


def test_resolved_options_are_in_the_engines_words() -> None:
    config = resolve(LLAMA, H200, EngineOptions(num_gpu_blocks=56057), context_tokens=131072)
    options = config.options()
    assert options["max_num_seqs"] == 1024
    assert options["max_num_batched_tokens"] == 8192
    assert options["max_model_len"] == 131072
    assert options["num_gpu_blocks"] == 56057
    assert options["gpu_memory_utilization"] == 0.92
    assert options["enable_prefix_caching"] is True
    assert options["async_scheduling"] is True
    assert config.notes == ()


def test_graph_sizes() -> None:
    assert resolve(LLAMA, H200).cudagraph_capture_sizes[:6] == (1, 2, 4, 8, 16, 24)
    assert resolve(LLAMA, H200).cudagraph_capture_sizes[-3:] == (480, 496, 512)
    assert resolve(LLAMA, H200, EngineOptions(max_num_seqs=16)).cudagraph_capture_sizes == (1, 2, 4, 8, 16, 24, 32)
    assert resolve(LLAMA, H200, EngineOptions(enforce_eager=True)).cudagraph_capture_sizes == ()
    assert resolve(LLAMA, get_gpu("b200"), version="0.33").cudagraph_capture_sizes[-1] == 1024
    assert 5 in resolve(LLAMA, H200, EngineOptions(max_num_seqs=5), version="0.33.0").cudagraph_capture_sizes
    padded = resolve(LLAMA, H200, EngineOptions(max_num_seqs=16)).padded_sizes()
    assert [padded[k] for k in (0, 1, 2, 3, 5, 8, 9, 25, 32)] == [0, 1, 2, 4, 8, 8, 16, 32, 32]
    assert len(padded) == 33


def test_tokens_are_no_more_than_the_longest_requests_together() -> None:
    options = EngineOptions(max_num_seqs=4, max_model_len=100)
    assert resolve(LLAMA, H200, options).limits.max_num_batched_tokens == 400
    assert resolve(LLAMA, H200, EngineOptions(max_num_batched_tokens=64)).limits.max_num_seqs == 64


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_num_seqs": 0}, "--max-num-seqs"),
        ({"max_num_seqs": 512, "max_num_batched_tokens": 256}, "--max-num-batched-tokens"),
        ({"gpu_memory_utilization": 1.2}, "--gpu-memory-utilization"),
        ({"max_model_len": 200_000}, "--max-model-len"),
        ({"long_prefill_token_threshold": -1}, "--long-prefill-token-threshold"),
        ({"tensor_parallel_size": 3}, "--tensor-parallel-size"),
        ({"num_gpu_blocks": 1}, "--num-gpu-blocks"),
        ({"num_gpu_blocks": 100, "max_model_len": 10_000}, "--max-model-len"),
    ],
)
def test_options_that_the_engine_rejects(options: dict[str, Any], named: str) -> None:
    with raises("bad-value", option=named):
        resolve(LLAMA, H200, EngineOptions(**options), context_tokens=131072)


@pytest.mark.parametrize("wrong", [{"version": "0.9"}, {"usage_context": "notebook"}])
def test_unknown_profiles_are_rejected(wrong: dict[str, Any]) -> None:
    with raises("unknown-name", name=next(iter(wrong.values()))):
        resolve(LLAMA, H200, **wrong)


def test_a_model_that_does_not_fit_names_what_would() -> None:
    with raises("does-not-fit", model="llama-3.1-70b", gpu="h200") as error:
        resolve(get_model("llama-3.1-70b"), get_gpu("h200"))
    assert "--tensor-parallel-size 2 or --precision fp8 would" in str(error.value)
    with raises("does-not-fit", gpu="a100-40gb-sxm") as error:
        resolve(get_model("llama-3.1-70b"), get_gpu("a100-40gb-sxm"))
    assert "; --tensor-parallel-size 4 would" in str(error.value)


def test_a_default_context_that_the_cache_cannot_keep_is_cut_and_noted() -> None:
    config = resolve(LLAMA, H200, EngineOptions(num_gpu_blocks=101), context_tokens=131072)
    assert config.max_model_len == 1600
    assert len(config.notes) == 1
    assert "--max-model-len 1600" in config.notes[0]


def test_defaults_on_unknown_hardware_are_noted() -> None:
    other = replace(H200, title="Gaudi 3")
    assert any("Gaudi 3" in note for note in resolve(LLAMA, other, context_tokens=131072).notes)


def test_the_context_of_a_model_is_read_from_its_config() -> None:
    assert model_context(model_config("llama-3.1-8b")) == 131072
    assert model_context({"text_config": {"max_position_embeddings": 7}}) == 7
    assert model_context(model_config("qwen3-omni-30b-a3b")) == 65536
    assert model_context({}) is None


@pytest.mark.parametrize(
    ("model", "gpu", "size", "dtype", "tokens", "blocks"),
    [
        ("llama-3.1-8b", "h200", 1, "bfloat16", 8192, 56057),
        ("llama-3.1-8b", "h200", 1, "bfloat16", 2048, 56105),
        ("llama-3.1-8b", "h200", 1, "bfloat16", 16384, 57144),
        ("llama-3.1-8b", "h200", 1, "fp8", 16384, 60466),
        ("llama-3.1-8b", "h100-sxm", 1, "bfloat16", 16384, 28594),
        ("llama-3.1-8b", "h100-sxm", 1, "fp8", 16384, 31911),
        ("llama-3.1-8b", "h100-sxm", 2, "bfloat16", 16384, 65250),
        ("llama-3.1-8b", "h100-sxm", 4, "bfloat16", 16384, 138480),
        ("llama-3.2-1b", "h100-sxm", 1, "bfloat16", 16384, 141893),
        ("olmo-1b", "h100-sxm", 1, "bfloat16", 16384, 35537),
        ("olmo-7b", "h100-sxm", 1, "bfloat16", 16384, 7465),
        ("olmoe-1b-7b", "h100-sxm", 1, "bfloat16", 16384, 29468),
        ("qwen-1.5-32b", "h100-sxm", 1, "bfloat16", 16384, 2278),
        ("qwen-1.5-32b", "h100-sxm", 2, "bfloat16", 16384, 20538),
        ("qwen-1.5-32b", "h100-sxm", 4, "bfloat16", 16384, 57310),
    ],
)
def test_blocks_are_those_that_engines_reported(
    model: str, gpu: str, size: int, dtype: str, tokens: int, blocks: int
) -> None:
    options = EngineOptions(max_num_batched_tokens=tokens, max_num_seqs=16, tensor_parallel_size=size)
    context = "llm" if tokens == 16384 else "server"
    config = resolve(get_model(model), get_gpu(gpu), options, dtype=dtype, usage_context=context)  # type: ignore[arg-type]
    assert config.limits.num_gpu_blocks == pytest.approx(blocks, rel=0.01)


def test_layers_that_keep_less_are_noted() -> None:
    assert resolve(get_model("gpt-oss-20b"), H200, context_tokens=131072).notes
