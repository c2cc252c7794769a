"""How many requests fit a GPU at once. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from infergy.catalog.gpus import Gpu
from infergy.catalog.models import Draft
from infergy.catalog.shape import ModelShape, dtype_bytes
from infergy.errors import UsageError
from infergy.records import ENGINES
from infergy.units import format_bytes

RESERVE_BYTES = 3 * 2**30
"""A GPU's CUDA context, cuBLAS workspaces and captured graphs (AIConfigurator's systems/h100_sxm.yaml: 3.5 GB)."""

CHUNK_TOKENS = 16384
"""Tokens of one forward in vLLM: `max_num_batched_tokens` of its offline `LLM` class on GPUs of 70 GiB and more."""

BLOCK_TOKENS = 16
"""Tokens in a block of vLLM's KV cache."""

LOGIT_BYTES = 4.0
"""Logits of the last position are float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimit:
    """The largest batch, and what limits it; bytes are of all GPUs of a tensor-parallel group together.

    Attributes:
        batch: Requests that fit at once; 0 if not one does.
        weight_bytes: Of the weights, a draft model's too.
        kv_bytes_per_request: Of the KV cache and state of one request at its longest, a draft model's too.
        activation_bytes_per_request: Of intermediate results that grow with the batch.
        memory_bytes: What the engine may use.
        reason: The sum in words.
    """

    batch: int
    weight_bytes: float
    kv_bytes_per_request: float
    activation_bytes_per_request: float
    memory_bytes: float
    reason: str


def largest_batch(
    shape: ModelShape,
    gpu: Gpu,
    input_tokens: int,
    output_tokens: int,
    *,
    engine: str,
    dtype: str = "bfloat16",
    tensor_parallel: int = 1,
    memory_fraction: float = 0.9,
    draft: Draft | None = None,
) -> BatchLimit:
    """How many requests of `input_tokens` in and `output_tokens` out fit at once.

    vLLM prefills in chunks, so its activations do not grow with the batch; transformers processes all prompts of the
    batch at once, and its cache grows by concatenation, one layer at a time in two copies (under MLA the second holds
    expanded keys and values). With tensor parallelism, KV heads fewer than GPUs (and MLA's latent) are replicated.

    `dtype` is that of weights, activations and KV cache; `memory_fraction` the share of the memory that the engine may
    use (vLLM's `gpu_memory_utilization`). A `draft` has weights and a KV cache of its own, and both caches have slots
    for the tokens that are drafted past the last one (vLLM's look-ahead slots).

    Raises:
        UsageError: Engine or dtype is not known.
    """
    if engine not in ENGINES:
        raise UsageError.unknown("engine", engine, ENGINES, code="unknown-engine")
    memory = gpu.memory_bytes * memory_fraction * tensor_parallel
    weights = shape.weight_bytes(dtype) + (0.0 if draft is None else draft.shape.weight_bytes(dtype))
    fixed = weights + RESERVE_BYTES * tensor_parallel
    tokens = input_tokens + output_tokens + (0 if draft is None else draft.look_ahead)
    blocks = -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS
    wide = max(2.0, dtype_bytes(dtype))
    per_token = shape.activation_values * wide
    if engine == "transformers":
        kv = shape.kv_bytes(tokens, dtype) + tokens * shape.attention.key_values * wide
        activations = per_token * input_tokens + shape.vocabulary * LOGIT_BYTES
    else:
        kv, activations = shape.kv_bytes(blocks, dtype), 0.0
        fixed += per_token * CHUNK_TOKENS
    # Heads of a Mamba-2 state are split as evenly as the model, so no GPU holds another's.
    kv = kv * _replicas(shape, tensor_parallel) + shape.state_bytes
    if draft is not None:
        # The two run one after the other: the larger model's activations suffice for both.
        kv += draft.shape.kv_bytes(blocks, dtype) * _replicas(draft.shape, tensor_parallel) + draft.shape.state_bytes
    return BatchLimit(
        batch=max(0, int((memory - fixed) // (kv + activations))),
        weight_bytes=weights,
        kv_bytes_per_request=kv,
        activation_bytes_per_request=activations,
        memory_bytes=memory,
        reason=_reason(memory, fixed, kv + activations),
    )


def _replicas(shape: ModelShape, tensor_parallel: int) -> float:
    """How many copies of the same KV cache the group of GPUs holds."""
    return max(1.0, tensor_parallel / shape.attention.cached_heads)


def _reason(memory: float, fixed: float, per_request: float) -> str:
    if fixed >= memory:
        return f"weights and workspaces need {format_bytes(fixed)} of the {format_bytes(memory)} usable"
    return (
        f"{format_bytes(memory)} usable less {format_bytes(fixed)} for weights and workspaces leaves "
        f"{format_bytes(memory - fixed)}; a request takes {format_bytes(per_request)}"
    )
