"""What vLLM's `LLM` class and its server share (vLLM 0.25): options, draft models, resolved facts, failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infergy.engines.engine import EngineOutOfMemoryError
from infergy.engines.weights import LAWS, config_folder, draw_weights
from infergy.errors import EngineError
from infergy.records import DEFAULT_DTYPE, FP8, Decoding, EngineSetup
from infergy.records.engine_setup import Speculation
from infergy.records.window import Drafts

ONLINE_FP8 = "fp8_per_tensor"
"""vLLM quantises the matrices of a bfloat16 checkpoint while it loads them (vllm.config.quantization)."""

FORCED: Mapping[str, Any] = {"ignore_eos": True, "detokenize": False}
"""Sampling parameters of all requests: exactly the tokens asked for, and no tokenizer."""

CACHE_IN_USE = "its prefix cache cannot be emptied: blocks are in use although no request runs"


def engine_options(setup: EngineSetup, config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The arguments of vLLM's engine, the same for its `LLM` class and for its server."""
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


def speculate(speculation: Speculation, tensor_parallel: int, draft: Mapping[str, Any] | None) -> dict[str, Any]:
    """The `speculative_config` of vLLM; with random weights the draft is loaded from its configuration.

    vLLM's synthetic acceptance takes the probability that all tokens up to each position are accepted
    (``vllm/config/speculative.py``); if each is accepted with probability a, independently, that is a, a², a³, …

    The load format of the model is the draft's too, and its tensor parallelism must be.
    """
    options: dict[str, Any] = {
        "method": "draft_model",
        "model": speculation.weights,
        "num_speculative_tokens": speculation.look_ahead,
        "draft_tensor_parallel_size": tensor_parallel,
    }
    if speculation.weights is None and draft is not None:
        options["model"] = str(config_folder(draft))
    if speculation.acceptance is not None:
        rates = [speculation.acceptance**position for position in range(1, speculation.look_ahead + 1)]
        options |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}
    return options


def draw_draft_weights(worker: Any, law: str, seed: int) -> int:
    """Draw the draft's weights as the model's are drawn; runs inside vLLM's workers, on each of them.

    vLLM's first model runner has the draft model in `drafter`, its second in `speculator`.
    """
    runner = worker.model_runner
    drafter = getattr(runner, "drafter", None) or runner.speculator
    return draw_weights(drafter.model, law, seed)


class DraftCounts:
    """Sums what vLLM's scheduler reports of each step; it replaces vLLM's loggers of statistics.

    `LLMEngine.step` calls `record` for each step, `LLMEngine.do_log_stats` calls `log` every 10 s.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set the counts to zero."""
        self._rounds = self._drafted = self._accepted = 0

    def total(self) -> Drafts:
        """The counts since `reset`."""
        return Drafts(rounds=self._rounds, drafted_tokens=self._drafted, accepted_tokens=self._accepted)

    def record(self, scheduler_stats: Any = None, iteration_stats: Any = None, **others: Any) -> None:
        """Add a step: vLLM's `SpecDecodingStats`, None where no request of the step had drafted tokens."""
        step = getattr(scheduler_stats, "spec_decoding_stats", None)
        if step is not None:
            self._rounds += step.num_drafts
            self._drafted += step.num_draft_tokens
            self._accepted += step.num_accepted_tokens

    def log(self) -> None:
        """Print nothing."""


def resolved_options(config: Any) -> dict[str, str | None]:
    """The options as vLLM resolved them, from its `VllmConfig`: all that a simulation of its scheduler needs.

    Facts of later versions, of a draft model and of quantisation are left out where there are none, as in older rows.
    """
    model, scheduler, cache, compilation = (
        config.model_config,
        config.scheduler_config,
        config.cache_config,
        config.compilation_config,
    )
    drafts = getattr(config, "speculative_config", None)
    optional = {
        "async_scheduling": getattr(scheduler, "async_scheduling", None),
        "chunked_prefill": getattr(scheduler, "enable_chunked_prefill", None),
        "long_prefill_token_threshold": getattr(scheduler, "long_prefill_token_threshold", None),
        "cuda_graph_sizes": getattr(compilation, "cudagraph_capture_sizes", None),
        "quantization": model.quantization,
        # vLLM falls back to its first model runner for a draft model and for most mixtures of experts (0.25,
        # `VllmConfig.use_v2_model_runner`), so that a difference to a config without is in part one of runners.
        "model_runner": "v1" if getattr(config, "use_v2_model_runner", None) is False else None,
    }
    return {
        "dtype": str(model.dtype),
        "max_model_len": str(model.max_model_len),
        "max_num_seqs": str(scheduler.max_num_seqs),
        "max_num_batched_tokens": str(scheduler.max_num_batched_tokens),
        "gpu_memory_utilization": str(cache.gpu_memory_utilization),
        "kv_cache_blocks": str(cache.num_gpu_blocks),
        "kv_block_size": str(cache.block_size),
        "prefix_caching": str(cache.enable_prefix_caching),
        "enforce_eager": str(model.enforce_eager),
        "cuda_graphs": str(compilation.cudagraph_mode),
        "compilation": str(compilation.mode),
        "batching": "continuous",
        **{name: str(value) for name, value in optional.items() if value is not None},
        **({} if drafts is None else _draft_facts(drafts)),
    }


def _draft_facts(speculative: Any) -> dict[str, str]:
    return {
        "speculative_method": str(speculative.method),
        "speculative_tokens": str(speculative.num_speculative_tokens),
        "rejection_sampling": str(speculative.rejection_sample_method),
        "acceptance_rates": str(speculative.synthetic_acceptance_rates),
        "draft_sampling": str(speculative.draft_sample_method),
    }


def join_uuids(workers: Sequence[str | None]) -> str | None:
    """UUIDs of the workers' GPUs with commas between; None unless all are known."""
    uuids = [uuid for uuid in workers if uuid is not None]
    return ",".join(uuids) if uuids and len(uuids) == len(workers) else None


def sampling_options(decoding: Decoding) -> dict[str, Any]:
    """The part of vLLM's sampling parameters that a decoding sets.

    No seed per request: the engine's own is set, and one per request would have each sampled by itself.
    """
    if decoding.temperature is None:
        return {"temperature": 0.0}
    top_k = {} if decoding.top_k is None else {"top_k": decoding.top_k}
    return {"temperature": decoding.temperature, "top_p": decoding.top_p, **top_k}


def not_loaded(setup: EngineSetup, error: Exception) -> EngineError:
    """The error of a model that vLLM could not load."""
    message = f"vLLM could not load {setup.model}: {error}"
    return EngineError(message, code="load-failed", engine="vllm", model=setup.model, reason=str(error))


def failed(error: Exception) -> EngineError:
    """The error of a run that vLLM could not finish; vLLM is unusable after it."""
    if "out of memory" in str(error).lower():
        return EngineOutOfMemoryError(str(error).split("\n")[0], is_usable=False)
    message = f"vLLM failed: {type(error).__name__}: {error}"
    return EngineError(message, code="engine-failed", engine="vllm", reason=str(error))
