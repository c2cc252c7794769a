"""What an engine runs with: vLLM's options, resolved by its own defaults for a version, a GPU and a usage context.

Sources: `vllm/engine/arg_utils.py` (get_batch_defaults), `vllm/config/{scheduler,vllm,cache}.py` of 0.25.0 and 0.33.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from infergy.catalog.gpus import Gpu
from infergy.catalog.shape import ModelShape, dtype_bytes
from infergy.errors import UsageError
from infergy.records import FP8
from infergy.units import format_bytes

UsageContext = Literal["server", "llm"]
USAGE_CONTEXTS: tuple[UsageContext, ...] = ("server", "llm")
VERSIONS = ("0.25", "0.33")
GIB = 2**30
FEWER_TOKENS = (16384, 8192, 2048)
"""Tokens of a step to advise where more leave no room: vLLM's defaults."""
FIXED_BYTES = 0.57e9
MEMORY_SHARE = 0.0021
ACTIVATION_SHARE = 0.92
LINK_BYTES = 0.43e9
SERVER_SHARE = 0.0212
"""What vLLM keeps back on each GPU, calibrated to `num_gpu_blocks` of 16 engines of 0.25.0 on H100s and H200s (Llama
1B and 8B, OLMo 1B and 7B, OLMoE, Qwen 32B; bf16 and FP8; 1, 2 and 4 GPUs), all met within 1 %: 0.57 GB and 0.21 % of
the memory (the driver reports more than CUDA hands out), 92 % of the upper bound of a step's activations, 0.43 GB for
collectives of several GPUs, and of a mixture the outputs of the visited experts. The API server kept
back 2.1 % of the memory more, in both of its configurations on an H200; the cause is not known, so it is taken as a
share of the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the user says, in vLLM's words; None is the engine's default.

    Attributes:
        max_model_len: Longest request, prompt and answer together.
        long_prefill_token_threshold: Most prompt tokens of one request in a step; 0: no limit.
        num_gpu_blocks: Blocks of the KV cache, the null block included, for who knows them.
        async_scheduling: Whether a step is planned while the one before it runs.
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
class SchedulerLimits:
    """What bounds a step, in vLLM's words.

    Attributes:
        num_gpu_blocks: Blocks of the KV cache, the null block included, which no request gets.
        lone_threshold: 0.25: the threshold applies even where only one request exists.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    num_gpu_blocks: int
    block_size: int = 16
    enable_prefix_caching: bool = True
    long_prefill_token_threshold: int = 0
    async_scheduling: bool = True
    lone_threshold: bool = True

    def chunk_threshold(self, requests: int) -> int:
        """Tokens of a prompt's chunk at most where so many requests exist; 0 for any."""
        return self.long_prefill_token_threshold if requests > 1 or self.lone_threshold else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """A resolved configuration of vLLM.

    Attributes:
        version: Whose rules: ``0.25`` or ``0.33``.
        usage_context: Whose defaults: ``server`` (`vllm serve`, AsyncLLM) or ``llm`` (the `LLM` class).
        limits: What bounds a step.
        max_model_len: Longest request, prompt and answer together; longer ones are rejected.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticConfig:
    """Static batching.

    Attributes:
        max_num_seqs: Requests of a batch, at most.
        max_model_len: Longest request, prompt and answer together; None: not bounded.
        tensor_parallel_size: GPUs of a replica.
        has_graphs: Whether decode steps are compiled and replay CUDA graphs.
        notes: What had to be assumed, in sentences.
        fits: How many of so many requests the memory takes at once, by their longest input and output; None: all.
    """

    max_num_seqs: int
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    has_graphs: bool = False
    notes: tuple[str, ...] = ()
    fits: Callable[[int, int, int], int] | None = field(default=None, compare=False, repr=False)

    def padded_sizes(self) -> list[int]:
        """By tokens of a step, its tokens in a CUDA graph: a decode step's own, where there are graphs."""
        return list(range(self.max_num_seqs + 1)) if self.has_graphs else [0]

    def options(self) -> dict[str, Any]:
        """All options, by name."""
        return {
            "max_num_seqs": self.max_num_seqs,
            "max_model_len": self.max_model_len,
            "tensor_parallel_size": self.tensor_parallel_size,
            "compiled": self.has_graphs,
        }

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise UsageError.bad_value("--max-num-seqs", self.max_num_seqs, "a number of at least 1")


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
    longest context (`infergy.catalog.models.model_context`); None: not known, and the cache bounds it.

    Raises:
        UsageError: An option that vLLM rejects, or a model that does not fit.
    """
    options = options or EngineOptions()
    version = _known_version(version, usage_context)
    _check(shape, options, context_tokens)
    default_tokens, default_seqs = batch_defaults(gpu, version, usage_context)
    wanted_len = options.max_model_len or context_tokens
    tokens, seqs = _batch(options, default_tokens, default_seqs, wanted_len)
    blocks = options.num_gpu_blocks or kv_blocks(
        shape, gpu, options, dtype=dtype, tokens=tokens, server=usage_context == "server"
    )
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
        notes=(*_assumed(shape, gpu, default_tokens, default_seqs), *note),
    )


def _assumed(shape: ModelShape, gpu: Gpu, tokens: int, seqs: int) -> list[str]:
    notes = []
    if "nvidia" not in gpu.title.lower():
        notes.append(
            f"vLLM's defaults on {gpu.title} are not known: those of an NVIDIA GPU with its memory are taken "
            f"({tokens} tokens, {seqs} sequences); --max-num-batched-tokens and --max-num-seqs set them"
        )
    if shape.attention.window is not None or shape.mamba is not None:
        notes.append(f"the KV cache of {shape.name} is counted as if all its attention were full")
    return notes


def _known_version(version: str, context: str) -> str:
    known = next((known for known in VERSIONS if f"{version}.".startswith(f"{known}.")), version)
    for what, name, names, option in (
        ("version of vLLM", known, VERSIONS, "--vllm-version"),
        ("usage context", context, USAGE_CONTEXTS, "--usage-context"),
    ):
        if name not in names:
            raise UsageError.unknown(what, name, names, code="unknown-name", option=option)
    return known


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


def check_context(shape: ModelShape, max_model_len: int | None, context_tokens: int | None) -> None:
    """Raise UsageError for a longest request that is longer than the model's context."""
    if max_model_len and context_tokens and max_model_len > context_tokens:
        raise UsageError.bad_value(
            "--max-model-len", max_model_len, f"at most {context_tokens}, the context of {shape.name}"
        )


def check_options(options: EngineOptions) -> None:
    """Raise UsageError for a value that is out of its range, whatever the model."""
    counts = ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size", "tensor_parallel_size")
    lowest = dict.fromkeys(counts, 1) | {"long_prefill_token_threshold": 0, "num_gpu_blocks": 2}
    for name, least in lowest.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError.bad_value(f"--{name.replace('_', '-')}", value, f"at least {least}")
    if not 0 < options.gpu_memory_utilization <= 1:
        raise UsageError.bad_value(
            "--gpu-memory-utilization", options.gpu_memory_utilization, "a share above 0, up to 1"
        )


def _check(shape: ModelShape, options: EngineOptions, context_tokens: int | None) -> None:
    check_options(options)
    check_context(shape, options.max_model_len, context_tokens)
    heads, size = shape.attention.heads, options.tensor_parallel_size
    if heads % size:
        fitting = ", ".join(str(k) for k in range(1, heads + 1) if heads % k == 0)
        raise UsageError.bad_value(
            "--tensor-parallel-size", size, f"a divisor of the {heads} attention heads of {shape.name}: {fitting}"
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
    sizes = (1, 2, 4, *range(8, 256, 8), *range(256, most + 1, 16), tokens, seqs if recent else 1)
    return tuple(sorted({size for size in sizes if size <= most}))


def kv_blocks(shape: ModelShape, gpu: Gpu, options: EngineOptions, *, dtype: str, tokens: int, server: bool) -> int:
    """VLLM's `num_gpu_blocks`, the null block included; `tokens` is the largest step.

    Raises:
        UsageError: The weights leave no room for a block on each GPU.
    """
    gpus, per_block = options.tensor_parallel_size, options.block_size * shape.kv_bytes_per_token()
    heads = shape.attention.cached_heads
    kept_back = FIXED_BYTES + gpu.memory_bytes * (MEMORY_SHARE + (SERVER_SHARE if server else 0.0))
    whole = 3 * shape.hidden  # the residual stream, which each GPU keeps all of
    visited = 0 if shape.experts is None else shape.experts.experts_per_token * shape.hidden

    def room(dtype: str = dtype, gpus: int = gpus, tokens: int = tokens) -> int:
        left = options.gpu_memory_utilization * gpu.memory_bytes - shape.weight_bytes(dtype) / gpus
        values = (whole + (shape.activation_values - whole) / gpus) * ACTIVATION_SHARE + visited
        left -= 2.0 * tokens * values + kept_back + (LINK_BYTES if gpus > 1 else 0.0)
        # Heads fewer than GPUs, and MLA's latent, are copied.
        return int(left // (per_block * max(1.0, gpus / heads) / gpus)) if per_block else 0

    blocks = room()
    if blocks < 2:
        raise _does_not_fit(room, shape, gpu, options, dtype, tokens)
    return blocks


def _does_not_fit(
    room: Callable[..., int], shape: ModelShape, gpu: Gpu, options: EngineOptions, dtype: str, tokens: int
) -> UsageError:
    """The error that names what would give `room`, of `dtype`, `gpus` and `tokens`, for more than the null block."""
    gpus = options.tensor_parallel_size
    formats = [one for one in (shape.precision, FP8, "int4") if dtype_bytes(one) < dtype_bytes(dtype)]
    sizes = [size for size in (2, 4, 8, 16) if size > gpus and shape.attention.heads % size == 0]
    few, *ways = (
        next((f"--{option} {value}" for value in values if room(**{name: value}) > 1), None)
        for option, name, values in (
            ("max-num-batched-tokens", "tokens", FEWER_TOKENS),
            ("tensor-parallel-size", "gpus", sizes),
            ("precision", "dtype", formats),
        )
    )
    if few is not None:
        message = (
            f"--max-num-batched-tokens {tokens}: activations of a step of so many tokens leave no room for the KV "
            f"cache of {shape.name} on {gpus} × {gpu.title}: type {few}, for example"
        )
        details = {"option": "--max-num-batched-tokens", "value": tokens}
        return UsageError(message, code="does-not-fit", model=shape.name, gpu=gpu.name, **details)
    share = options.gpu_memory_utilization
    more = "a larger --gpu-memory-utilization" if share < EngineOptions().gpu_memory_utilization else None
    fixes = " or ".join(filter(None, (more, *ways)))
    weights, taken = shape.weight_bytes(dtype), share * gpu.memory_bytes * gpus
    message = (
        f"{shape.name} does not fit: its {dtype} weights need {format_bytes(weights)}, and activations and CUDA graphs "
        f"more, on {gpus} × {gpu.title}, of which vLLM takes {format_bytes(taken)}; "
        f"{fixes or 'no --tensor-parallel-size up to 16 and no --precision'} would"
    )
    return UsageError(message, code="does-not-fit", model=shape.name, gpu=gpu.name)
