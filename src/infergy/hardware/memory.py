"""How many requests fit a GPU at once."""

from __future__ import annotations

from dataclasses import dataclass

from infergy.hardware.gpus import Gpu
from infergy.hardware.models import DTYPE_BYTES, ModelShape
from infergy.units import format_bytes

RESERVE_BYTES = 3 * 2**30
"""CUDA context, cuBLAS workspaces and captured graphs."""
CHUNK_TOKENS = 16384
"""Tokens of one forward in vLLM (its default `max_num_batched_tokens` on large GPUs)."""
BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimit:
    """The largest batch, and what it follows from."""

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
) -> BatchLimit:
    """How many requests of `input_tokens` in and `output_tokens` out fit at once; 0 where not one does."""
    memory = gpu.memory_bytes * memory_fraction * tensor_parallel
    weights = shape.weight_bytes(dtype)
    tokens = input_tokens + output_tokens
    per_token = (6 * shape.hidden + 3 * shape.intermediate) * DTYPE_BYTES[dtype]
    if engine == "transformers":
        kv = shape.kv_bytes(tokens, dtype) * (1 + 1 / shape.layers)
        activations, shared = per_token * input_tokens, 0.0
    else:
        blocks = -(-tokens // BLOCK_TOKENS)
        kv, activations, shared = shape.kv_bytes(blocks * BLOCK_TOKENS, dtype), 0.0, per_token * CHUNK_TOKENS
    free = memory - weights - RESERVE_BYTES * tensor_parallel - shared
    batch = max(0, int(free // (kv + activations)))
    return BatchLimit(
        batch=batch,
        weight_bytes=weights,
        kv_bytes_per_request=kv,
        activation_bytes_per_request=activations,
        memory_bytes=memory,
        reason=f"{format_bytes(memory)} of memory less {format_bytes(memory - free)} leaves {format_bytes(free)}; "
        f"a request takes {format_bytes(kv + activations)}",
    )
