"""What an engine runs with: vLLM's options, resolved by its own defaults for a version, a GPU and a usage context.

Sources: `vllm/engine/arg_utils.py` (get_batch_defaults), `vllm/config/{scheduler,vllm,cache}.py` of 0.25.0 and 0.33.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from infergy.errors import UsageError
from infergy.hardware.gpus import Gpu
from infergy.hardware.shape import ModelShape
from infergy.serving.capacity import kv_blocks
from infergy.serving.limits import SchedulerLimits

UsageContext = Literal["server", "llm"]
USAGE_CONTEXTS: tuple[UsageContext, ...] = ("server", "llm")
VERSIONS = ("0.25", "0.33")
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the user says, in vLLM's words; None is the engine's default.

    Attributes:
        max_num_seqs: Requests that run at once.
        max_num_batched_tokens: Tokens of a step.
        max_model_len: Longest request, prompt and answer together.
        gpu_memory_utilization: Share of a GPU's memory that the engine takes.
        enable_prefix_caching: Whether blocks of finished requests are kept and found again.
        long_prefill_token_threshold: Most prompt tokens of one request in a step; 0: no limit.
        num_gpu_blocks: Blocks of the KV cache, the null block included, for who knows them.
        block_size: Tokens of a block.
        async_scheduling: Whether a step is planned while the one before it runs.
        tensor_parallel_size: GPUs of a replica.
        enforce_eager: Without CUDA graphs.
        cudagraph_capture_sizes: Token counts with a CUDA graph.
    """

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.92
    enable_prefix_caching: bool = True
    long_prefill_token_threshold: int = 0
    num_gpu_blocks: int | None = None
    block_size: int = 16
    async_scheduling: bool = True
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    cudagraph_capture_sizes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """A resolved configuration of vLLM.

    Attributes:
        version: Whose rules: ``0.25`` or ``0.33``.
        usage_context: Whose defaults: ``server`` (`vllm serve`, AsyncLLM) or ``llm`` (the `LLM` class).
        limits: What bounds a step.
        max_model_len: Longest request, prompt and answer together; longer ones are rejected.
        tensor_parallel_size: GPUs of a replica.
        gpu_memory_utilization: Share of a GPU's memory that the engine takes.
        cudagraph_capture_sizes: Token counts with a CUDA graph, ascending; empty: eager.
        notes: What had to be assumed, in sentences.
    """

    version: str
    usage_context: UsageContext
    limits: SchedulerLimits
    max_model_len: int
    tensor_parallel_size: int
    gpu_memory_utilization: float
    cudagraph_capture_sizes: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def padded_sizes(self) -> list[int]:
        """By tokens of a step, its tokens after padding; a step past the list's end is not padded."""
        table = [0]
        for size in self.cudagraph_capture_sizes:
            table += [size] * (size - len(table) + 1)
        return table

    def options(self) -> dict[str, Any]:
        """All options in vLLM's words."""
        limits = self.limits
        return {
            "version": self.version,
            "usage_context": self.usage_context,
            "max_num_seqs": limits.max_num_seqs,
            "max_num_batched_tokens": limits.max_num_batched_tokens,
            "max_model_len": self.max_model_len,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "enable_prefix_caching": limits.enable_prefix_caching,
            "long_prefill_token_threshold": limits.long_prefill_token_threshold,
            "num_gpu_blocks": limits.num_gpu_blocks,
            "block_size": limits.block_size,
            "async_scheduling": limits.async_scheduling,
            "tensor_parallel_size": self.tensor_parallel_size,
            "enforce_eager": not self.cudagraph_capture_sizes,
        }


def resolve(
    shape: ModelShape,
    gpu: Gpu,
    options: EngineOptions | None = None,
    *,
    dtype: str = "bfloat16",
    version: str = "0.25",
    usage_context: UsageContext = "server",
    context_tokens: int | None = None,
) -> EngineConfig:
    """What vLLM runs `shape` with on `gpu`.

    `dtype` is that of the weights; the KV cache is of the model's own precision. `context_tokens` is the model's
    longest context (`model_context`); None: not known, and the cache bounds it.

    Raises:
        UsageError: An option that vLLM rejects, or a model that does not fit.
    """
    options = options or EngineOptions()
    version = next((known for known in VERSIONS if version == known or version.startswith(f"{known}.")), version)
    if version not in VERSIONS:
        raise UsageError.unknown("version of vLLM", version, VERSIONS, code="unknown-name", option="--vllm-version")
    if usage_context not in USAGE_CONTEXTS:
        raise UsageError.unknown(
            "usage context", usage_context, USAGE_CONTEXTS, code="unknown-name", option="--usage-context"
        )
    _check(shape, options, context_tokens)
    default_tokens, default_seqs = batch_defaults(gpu, version, usage_context)
    notes = [] if "nvidia" in gpu.title.lower() else [_unknown_hardware(gpu, default_tokens, default_seqs)]
    if shape.attention.window_tokens is not None or shape.mamba is not None:
        notes.append(f"the KV cache of {shape.name} is counted as if all its attention were full")
    wanted_len = options.max_model_len or context_tokens
    tokens, seqs = _batch(options, default_tokens, default_seqs, wanted_len)
    blocks = options.num_gpu_blocks
    if blocks is None:
        blocks = kv_blocks(shape, gpu, options, dtype=dtype, tokens=tokens, server=usage_context == "server")
    length, note = _longest(shape, wanted_len, blocks, options)
    return EngineConfig(
        version=version,
        usage_context=usage_context,
        limits=SchedulerLimits(
            max_num_batched_tokens=tokens,
            max_num_seqs=seqs,
            num_gpu_blocks=blocks,
            block_size=options.block_size,
            enable_prefix_caching=options.enable_prefix_caching,
            long_prefill_token_threshold=options.long_prefill_token_threshold,
            async_scheduling=options.async_scheduling,
            lone_threshold=version == "0.25",
        ),
        max_model_len=length,
        tensor_parallel_size=options.tensor_parallel_size,
        gpu_memory_utilization=options.gpu_memory_utilization,
        cudagraph_capture_sizes=_graph_sizes(options, gpu, version, tokens, seqs),
        notes=(*notes, *note),
    )


def batch_defaults(gpu: Gpu, version: str, usage_context: UsageContext) -> tuple[int, int]:
    """VLLM's default `max_num_batched_tokens` and `max_num_seqs` on a GPU."""
    server = usage_context == "server"
    if version != "0.25" and gpu.memory_bytes >= 160 * GIB:
        return 16384, 1024
    large = gpu.memory_bytes >= 70 * GIB and "a100" not in gpu.title.lower()
    if large and not (version != "0.25" and gpu.compute_capability == "12.1"):
        return (8192 if server else 16384), 1024
    return (2048 if server else 8192), 256


def _batch(options: EngineOptions, tokens: int, seqs: int, longest: int | None) -> tuple[int, int]:
    """Tokens and sequences of a step, of the options and vLLM's defaults `tokens` and `seqs`."""
    seqs = options.max_num_seqs or seqs
    tokens = options.max_num_batched_tokens or min(tokens, seqs * (longest or tokens))
    if options.max_num_seqs is None:
        seqs = min(seqs, tokens)
    if tokens < seqs:
        raise UsageError.bad_value(
            "--max-num-batched-tokens",
            tokens,
            f"at least --max-num-seqs, {seqs}; or type --max-num-seqs {tokens} or fewer",
        )
    return tokens, seqs


def model_context(config: Mapping[str, Any]) -> int | None:
    """The longest context that a Hugging Face `config.json` states; None if it states none."""
    text = config.get("text_config")
    for facts in (config, text if isinstance(text, Mapping) else {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length"):
            if isinstance(facts.get(key), int):
                return int(facts[key])
    return None


def check_context(shape: ModelShape, max_model_len: int | None, context_tokens: int | None) -> None:
    """Reject a longest request that is longer than the model's context.

    Raises:
        UsageError: It is.
    """
    if max_model_len and context_tokens and max_model_len > context_tokens:
        raise UsageError.bad_value(
            "--max-model-len", max_model_len, f"at most {context_tokens}, the context of {shape.name}"
        )


def _check(shape: ModelShape, options: EngineOptions, context_tokens: int | None) -> None:
    lowest = {
        "max_num_seqs": 1,
        "max_num_batched_tokens": 1,
        "max_model_len": 1,
        "long_prefill_token_threshold": 0,
        "num_gpu_blocks": 2,
        "block_size": 1,
        "tensor_parallel_size": 1,
    }
    for name, least in lowest.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError.bad_value(f"--{name.replace('_', '-')}", value, f"at least {least}")
    if not 0 < options.gpu_memory_utilization <= 1:
        raise UsageError.bad_value(
            "--gpu-memory-utilization", options.gpu_memory_utilization, "a share above 0, up to 1"
        )
    check_context(shape, options.max_model_len, context_tokens)
    heads, size = shape.attention.heads, options.tensor_parallel_size
    if heads % size:
        fitting = ", ".join(str(k) for k in range(1, 17) if heads % k == 0)
        raise UsageError.bad_value(
            "--tensor-parallel-size", size, f"a divisor of the {heads} attention heads of {shape.name}: {fitting}"
        )


def _unknown_hardware(gpu: Gpu, tokens: int, seqs: int) -> str:
    return (
        f"vLLM's defaults on {gpu.title} are not known: those of an NVIDIA GPU with its memory are taken "
        f"({tokens} tokens, {seqs} sequences); --max-num-batched-tokens and --max-num-seqs set them"
    )


def _longest(shape: ModelShape, wanted: int | None, blocks: int, options: EngineOptions) -> tuple[int, tuple[str, ...]]:
    """The longest request: what is wanted, or what the cache keeps where the engine would not start."""
    cached = (blocks - 1) * options.block_size
    if wanted is None:
        return cached, (f"the longest context of {shape.name} is not known: the cache bounds it, {cached} tokens",)
    if wanted <= cached:
        return wanted, ()
    if options.max_model_len is not None:
        raise UsageError.bad_value(
            "--max-model-len",
            wanted,
            f"at most {cached}, the tokens that the KV cache of {shape.name} keeps, or more GPUs",
        )
    return cached, (
        f"vLLM would not start with the context of {shape.name}, {wanted} tokens, since the KV cache keeps {cached}: "
        f"--max-model-len {cached} is taken",
    )


def _graph_sizes(options: EngineOptions, gpu: Gpu, version: str, tokens: int, seqs: int) -> tuple[int, ...]:
    """The `cudagraph_capture_sizes` of vLLM: 1, 2, 4, eights below 256, then sixteens."""
    if options.enforce_eager:
        return ()
    if options.cudagraph_capture_sizes is not None:
        return tuple(sorted({size for size in options.cudagraph_capture_sizes if size <= tokens}))
    recent = version != "0.25"
    most = min(2 * seqs, 1024 if recent and gpu.compute_capability.startswith("10.") else 512, tokens)
    sizes = {size for size in (1, 2, 4, *range(8, 256, 8), *range(256, most + 1, 16)) if size <= most}
    if tokens <= most:
        sizes.add(tokens)
    if recent and seqs <= most:
        sizes.add(seqs)
    return tuple(sorted(sizes))
