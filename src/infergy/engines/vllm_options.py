"""Options of vLLM (0.25): as an engine set-up asks for them, and as vLLM resolved them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infergy.engines.config_files import config_folder
from infergy.engines.vllm_drafts import tell_speculation
from infergy.engines.weights import LAWS
from infergy.records import DEFAULT_DTYPE, FP8, Decoding, EngineSetup

ONLINE_FP8 = "fp8_per_tensor"
"""Vllm quantises the matrices of a bfloat16 checkpoint while it loads them (vllm.config.quantization)."""


def engine_options(setup: EngineSetup, config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The arguments of vLLM's engine, alike for its `LLM` class and for its server."""
    is_random = setup.weights in LAWS
    optional = {
        "max_num_seqs": setup.max_sequences,
        "max_num_batched_tokens": setup.max_batched_tokens,
        "gpu_memory_utilization": setup.gpu_memory_utilization,
        "max_model_len": setup.max_model_len,
    }
    return {
        "model": str(config_folder(config)) if is_random else setup.weights,
        "load_format": "dummy" if is_random else "auto",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "enable_prefix_caching": setup.prefix_caching,
        "dtype": DEFAULT_DTYPE if setup.dtype == FP8 else setup.dtype,
        "quantization": ONLINE_FP8 if setup.dtype == FP8 else None,
        "tensor_parallel_size": setup.tensor_parallel,
        "enforce_eager": setup.cuda_graphs is False,
        "seed": seed,
        **{name: value for name, value in optional.items() if value is not None},
    }


def resolved_options(config: Any) -> dict[str, str | None]:
    """The options as vLLM resolved them, from its `VllmConfig`: all that a simulation of its scheduler asks for."""
    scheduler, cache, compilation = config.scheduler_config, config.cache_config, config.compilation_config
    later = {
        "async_scheduling": getattr(scheduler, "async_scheduling", None),
        "chunked_prefill": getattr(scheduler, "enable_chunked_prefill", None),
        "long_prefill_token_threshold": getattr(scheduler, "long_prefill_token_threshold", None),
        "cuda_graph_sizes": getattr(compilation, "cudagraph_capture_sizes", None),
    }
    return {
        "dtype": str(config.model_config.dtype),
        "max_model_len": str(config.model_config.max_model_len),
        "max_num_seqs": str(scheduler.max_num_seqs),
        "max_num_batched_tokens": str(scheduler.max_num_batched_tokens),
        "gpu_memory_utilization": str(cache.gpu_memory_utilization),
        "kv_cache_blocks": str(cache.num_gpu_blocks),
        "kv_block_size": str(cache.block_size),
        "prefix_caching": str(cache.enable_prefix_caching),
        "enforce_eager": str(config.model_config.enforce_eager),
        "cuda_graphs": str(compilation.cudagraph_mode),
        "compilation": str(compilation.mode),
        "batching": "continuous",
        **{name: str(value) for name, value in later.items() if value is not None},
        **tell_speculation(config),
        **_quantization(config.model_config),
        **_runner(config),
    }


def join_uuids(workers: Sequence[str | None]) -> str | None:
    """UUIDs of the workers' GPUs with commas between; None unless all of them tell."""
    uuids = [uuid for uuid in workers if uuid is not None]
    return ",".join(uuids) if uuids and len(uuids) == len(workers) else None


def choose_by(decoding: Decoding) -> dict[str, Any]:
    """VLLM's sampling parameters of a decoding.

    No seed for each request: the engine's own is set, and one for each would have every request sampled by itself.
    """
    if decoding.temperature is None:
        return {"temperature": 0.0}
    top_k = {} if decoding.top_k is None else {"top_k": decoding.top_k}
    return {"temperature": decoding.temperature, "top_p": decoding.top_p, **top_k}


def _quantization(config: Any) -> dict[str, str | None]:
    """What is quantised how; nothing where nothing is, as in rows from before there was any."""
    return {} if config.quantization is None else {"quantization": str(config.quantization)}


def _runner(config: Any) -> dict[str, str]:
    """The first of vLLM's two model runners, where it falls back to it; nothing of the second, its default.

    It falls back for a draft model and for most mixtures of experts (vLLM 0.25, `VllmConfig.use_v2_model_runner`), so
    that a difference to a set-up without is in part one of runners.
    """
    return {"model_runner": "v1"} if getattr(config, "use_v2_model_runner", None) is False else {}
