"""What one forward pass asks of GPUs: bytes, FLOPs, launches. Columns, one entry a pass: many are told at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from infergy.hardware.shape import ModelShape, dtype_bytes

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[np.float64]]

ACTIVATION_BYTES = 2.0
"""Of a value that GPUs add up among themselves: bfloat16, also where weights are narrower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Forward passes; every column has the same length n, and counts over all GPUs of a pass unless it says otherwise.

    Attributes:
        sequences: Sequences that the pass serves.
        weight_bytes: Weights read whatever is routed: layers and output head; by each GPU for itself where attention is
            replicated.
        expert_bytes: Weights of the routed experts that are visited, in expectation under uniform routing.
        cache_bytes: KV cache and states read and written, by all GPUs: where there are more of them than heads of keys
            and values, each head lies on several, and MLA's latents on all.
        linear_flops: FLOPs of all matrices on all tokens, and of Mamba-2 states.
        attention_flops: FLOPs of scores and weighted sums.
        expert_row_flops: FLOPs of one row in each expert that is visited, in all layers; 0 without experts.
        layers: Layers of all kinds; `expert_layers` and `state_layers` those with experts and with a Mamba-2 state.
        expert_size_bytes: One expert, on one GPU; 1 without experts.
        experts_visited: Of one layer; 1 without experts.
        gpus: GPUs that share the pass.
        reduced_bytes: What each GPU sends, and gets, of the sums that GPUs exchange.
        is_fp8: 1 where matrices are in fp8, else 0; `is_mxfp4` likewise of experts in mxfp4.
        is_block_scaled: 1 where fp8 weights have a scale for each block, else 0.
        is_dispatched: 1 where experts are divided among GPUs whole (expert parallel), else 0.
        is_replicated: 1 where attention is not divided among GPUs but done by each for its own requests.
    """

    sequences: Column
    weight_bytes: Column
    expert_bytes: Column
    cache_bytes: Column
    linear_flops: Column
    attention_flops: Column
    expert_row_flops: Column
    layers: Column
    expert_layers: Column
    state_layers: Column
    expert_size_bytes: Column
    experts_visited: Column
    gpus: Column
    reduced_bytes: Column
    is_fp8: Column
    is_block_scaled: Column
    is_mxfp4: Column
    is_dispatched: Column
    is_replicated: Column

    def __len__(self) -> int:
        return len(self.sequences)

    def take(self, rows: Any) -> Demand:
        """The passes at these places, or where a mask says so."""
        return Demand(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def join(parts: Sequence[Demand]) -> Demand:
    """One after the other."""
    import numpy as np

    return Demand(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Demand)})


def decode_demand(
    shape: ModelShape,
    batch: Column,
    context: Column,
    *,
    dtype: str = "bfloat16",
    gpus: Column | float = 1.0,
    is_dispatched: bool = False,
    is_replicated: bool = False,
) -> Demand:
    """Decode steps of `batch` sequences at `context` tokens each (both at least 1; `batch` may be a mean)."""
    import numpy as np

    batch, context = np.broadcast_arrays(np.asarray(batch, dtype=float), np.asarray(context, dtype=float))
    read, flops, looking = _by_length(
        context,
        lambda tokens: shape.kv_bytes(tokens, dtype),
        shape.decode_flops,
        lambda tokens: shape.attention_flops(tokens, tokens),
    )
    return _demand(
        shape,
        dtype=dtype,
        gpus=gpus,
        batch=batch,
        tokens=batch,
        kv_bytes=batch * (read + shape.kv_bytes_per_token(dtype)),
        state_bytes=batch * 2 * shape.state_bytes,
        flops=batch * flops,
        attention_flops=batch * looking,
        is_dispatched=is_dispatched,
        is_replicated=is_replicated,
    )


def prefill_demand(
    shape: ModelShape,
    batch: Column,
    input_tokens: Column,
    *,
    dtype: str = "bfloat16",
    gpus: Column | float = 1.0,
    is_dispatched: bool = False,
    is_replicated: bool = False,
) -> Demand:
    """Prefills of `batch` prompts of `input_tokens` each, in one pass: weights are read once, the cache is written."""
    import numpy as np

    batch, tokens = np.broadcast_arrays(np.asarray(batch, dtype=float), np.asarray(input_tokens, dtype=float))
    flops, looking = _by_length(
        tokens, shape.prefill_flops, lambda count: shape.attention_flops(1, count, absorbed=False)
    )
    return _demand(
        shape,
        dtype=dtype,
        gpus=gpus,
        batch=batch,
        tokens=batch * tokens,
        kv_bytes=batch * tokens * shape.kv_bytes_per_token(dtype),
        state_bytes=batch * shape.state_bytes,
        flops=batch * flops,
        attention_flops=batch * looking,
        is_dispatched=is_dispatched,
        is_replicated=is_replicated,
    )


def _demand(
    shape: ModelShape,
    *,
    dtype: str,
    gpus: Column | float,
    batch: Column,
    tokens: Column,
    kv_bytes: Column,
    state_bytes: Column,
    flops: Column,
    attention_flops: Column,
    is_dispatched: bool,
    is_replicated: bool,
) -> Demand:
    import numpy as np

    def full(value: float) -> Column:
        return np.full(batch.shape, float(value))

    devices = full(1.0) * gpus
    experts = shape.experts
    if experts is None:
        visited, size, routed, row = full(1.0), full(1.0), full(0.0), full(0.0)
    else:
        # As `ExpertShape.expected_coverage`, for a mean batch too.
        share = 1.0 - (1.0 - experts.experts_per_token / experts.experts) ** tokens
        visited = experts.experts * share
        routed = shape.routed_bytes(dtype) * share
        size = full(experts.expert_matmul(shape.hidden) * dtype_bytes(dtype))
        size = size if is_dispatched else size / devices
        row = 2.0 * experts.expert_matmul(shape.hidden) * experts.layers * visited
    # A GPU sends and gets 2 (G − 1) / G of each sum (how nccl-tests count bus bandwidth); two sums a layer.
    reduced = 2 * (devices - 1) / devices * tokens * shape.hidden * ACTIVATION_BYTES * 2 * shape.layers
    return Demand(
        sequences=batch,
        weight_bytes=shape.step_weight_bytes(0, dtype) * (devices if is_replicated else full(1.0)),
        expert_bytes=routed,
        cache_bytes=kv_bytes * (1.0 if is_replicated else copies_of_cache(shape, devices)) + state_bytes,
        linear_flops=flops - attention_flops,
        attention_flops=attention_flops,
        expert_row_flops=row,
        layers=full(shape.layers),
        expert_layers=full(0 if experts is None else experts.layers),
        state_layers=full(0 if shape.mamba is None else shape.mamba.layers),
        expert_size_bytes=size,
        experts_visited=visited,
        gpus=devices,
        reduced_bytes=reduced,
        is_fp8=full(dtype == "fp8"),
        is_block_scaled=full(dtype == "fp8" and shape.scaled_in_blocks),
        is_mxfp4=full(dtype == "mxfp4"),
        is_dispatched=full(is_dispatched),
        is_replicated=full(is_replicated),
    )


def copies_of_cache(shape: ModelShape, gpus: Column) -> Column:
    """On how many of the GPUs that share attention each value of the KV cache lies."""
    import numpy as np

    heads = 1 if shape.attention.latent is not None else shape.attention.kv_heads
    return np.asarray(np.maximum(1.0, gpus / heads))


def _by_length(tokens: Column, *functions: Callable[[int], float]) -> list[Column]:
    """Functions of whole tokens at each entry, each called once for each length that occurs."""
    import numpy as np

    lengths, places = np.unique(np.maximum(1, np.rint(tokens)).astype(int), return_inverse=True)
    found = [np.array([float(of(length)) for length in lengths.tolist()]) for of in functions]
    return [values[places].reshape(tokens.shape) for values in found]
