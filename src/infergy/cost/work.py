"""The work of a server: FLOPs and bytes of its steps, over all layers and all GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from infergy.catalog.layers import AttentionShape
from infergy.catalog.shape import ModelShape, cache_bytes, dtype_bytes
from infergy.records.engine_setup import FP8, WEIGHT_ONLY

ExpertKernel = Literal["tiled", "fitted", "padded", "gathered"]
"""How rows of experts are rounded up: to tiles whose size grows with a step's tokens (vLLM's Triton kernels), to tiles
fitted to an expert's tokens (CUTLASS, TensorRT-LLM, matmul_ogs), or of all experts to tiles of 128 (DeepGEMM).
Gathered: each decoded token copies the matrices of its experts, then multiplies (transformers)."""
PLAIN_LAUNCHES, NORM_LAUNCHES, EXPERT_LAUNCHES = 36, 12, 11
"""Kernels that transformers launches for a layer of Llama; more for norms on queries and keys; more for experts than
for an MLP: router, softmax, top k, gather, two products, activation, weights, sum."""
ACTIVATION_BYTES = 2.0
"""A value that GPUs exchange: bfloat16, also where weights are narrower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWork:
    """Attention over all layers and all GPUs of a server.

    Attributes:
        read_bytes: KV cache that one decoding sequence reads for each position, in layers without a window.
        window_read_bytes: The same in layers with a sliding window.
        window_tokens: Positions that such a layer sees at most; infinite without one.
        write_bytes: KV cache that one token adds.
        state_bytes: Bytes of recurrent state that one sequence reads and writes in a step.
        state_layers: Layers with such a state.
        pair_flops: FLOPs of one decoded token at one position, in layers without a window; `window_pair_flops` with.
        prefill_ratio: FLOPs of a prompt's token over those of a decoded one: MLA decodes on latents.
    """

    read_bytes: float = 0.0
    window_read_bytes: float = 0.0
    window_tokens: float = math.inf
    write_bytes: float = 0.0
    state_bytes: float = 0.0
    state_layers: float = 0.0
    pair_flops: float = 0.0
    window_pair_flops: float = 0.0
    prefill_ratio: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWork:
    """Routed experts over all layers.

    Attributes:
        routed_bytes: Bytes of all of them.
        share: Experts that a token visits, over all experts of a layer.
        experts: Experts of a layer; `layers` with experts.
        local: Experts on one GPU, `expert_bytes` bytes of one of them.
        row_flops: FLOPs of one row in every expert of all layers.
        kernel: Of the grouped matmuls (`ExpertKernel`).
        dispatched: Whether experts are divided among GPUs whole (expert parallel), not each over all GPUs.
        replicated: Whether each GPU does attention for its own requests (data parallel), with weights of its own.
    """

    routed_bytes: float
    share: float
    experts: float
    layers: float
    local: float
    expert_bytes: float
    row_flops: float
    kernel: ExpertKernel
    dispatched: bool = False
    replicated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerWork:
    """What steps of a server are made of.

    Attributes:
        dtype: Format of weights and matmuls; `scaled_in_blocks` where fp8 weights carry a scale for each block.
        gpus: GPUs that share the model by tensor parallelism.
        weight_bytes: Weights that every step reads: layers and output head, without routed experts.
        token_flops: FLOPs of one token in all matmuls but the output head; `head_flops` those of the head.
        exchange_bytes: Bytes that each GPU sends for one token in the all-reduces of a step.
        vocabulary: Entries of a sequence's logits.
        layers: Layers of all kinds.
        experts: None for a dense model.
        compiled: Whether kernels of a layer are fused by the compiler; no part of what two servers have in common.
        launches: Kernels that the host launches for a layer without a CUDA graph, over those of a layer of Llama.
    """

    dtype: str
    weight_bytes: float
    token_flops: float
    layers: float
    attention: AttentionWork
    scaled_in_blocks: bool = False
    gpus: int = 1
    head_flops: float = 0.0
    exchange_bytes: float = 0.0
    vocabulary: int = 0
    experts: ExpertWork | None = None
    compiled: bool = field(default=True, compare=False)
    launches: float = 1.0


def server_work(
    shape: ModelShape,
    *,
    dtype: str = "bfloat16",
    gpus: int = 1,
    dispatched: bool = False,
    replicated: bool = False,
    compiled: bool = True,
    kernel: ExpertKernel | None = None,
) -> ServerWork:
    """The work of a model served in `dtype` on `gpus` GPUs; the rest as in the classes above.

    Raises:
        UsageError: `dtype` is not known.
    """
    # A GPU sends 2 (G - 1) / G of each all-reduced value (nccl-tests, doc/PERFORMANCE.md), twice a layer.
    exchange = 2 * (gpus - 1) / gpus * shape.hidden * ACTIVATION_BYTES * 2 * shape.layers
    state_flops = 0 if shape.mamba is None else shape.mamba.layers * shape.mamba.token_flops
    return ServerWork(
        dtype=dtype,
        scaled_in_blocks=dtype == "fp8" and shape.checkpoint.scaled_in_blocks,
        gpus=gpus,
        weight_bytes=shape.step_weight_bytes(0, dtype) * (gpus if replicated else 1),
        token_flops=2.0 * shape.matmul_parameters + state_flops,
        head_flops=2.0 * shape.vocabulary * shape.hidden,
        exchange_bytes=exchange,
        vocabulary=shape.vocabulary,
        layers=shape.layers,
        attention=_attention(shape, dtype, 1 if replicated else gpus),
        experts=_experts(shape, dtype, gpus, dispatched=dispatched, replicated=replicated, kernel=kernel),
        compiled=compiled,
        launches=_launches(shape),
    )


def _launches(shape: ModelShape) -> float:
    launches = PLAIN_LAUNCHES + (NORM_LAUNCHES if shape.attention.vector_parameters else 0)
    mixtures = 0.0 if shape.experts is None else shape.experts.layers / shape.layers
    return (launches + mixtures * EXPERT_LAUNCHES) / PLAIN_LAUNCHES


def _attention(shape: ModelShape, dtype: str, gpus: int) -> AttentionWork:
    def bytes_of(attention: AttentionShape) -> float:
        # Beyond one GPU a head of keys and values, heads are copied; MLA's latents lie on every GPU.
        return attention.cached_values * cache_bytes(dtype) * max(1.0, gpus / attention.cached_heads)

    attention, indexer = shape.attention, shape.attention.indexer
    (full, _, _), *windowed = shape.attentions
    ratio = attention.pair_flops() / attention.pair_flops(absorbed=True)
    sums = [
        (layers * bytes_of(one), layers * one.pair_flops(absorbed=True), window.tokens)
        for layers, one, window in windowed
        if window is not None
    ]
    read, pair = full * bytes_of(attention), full * attention.pair_flops(absorbed=True)
    window_read, window_pair, tokens = sums[0] if sums else (0.0, 0, math.inf)
    write = read + window_read
    if indexer is not None:
        # It reads its keys of all positions, attention those that it chose: as a window of so many.
        window_read, window_pair, tokens = read, pair, indexer.tokens
        read, pair = indexer.layers * indexer.head_dim * cache_bytes(dtype) * gpus, indexer.layers * indexer.pair_flops
        write += read
    return AttentionWork(
        read_bytes=read,
        window_read_bytes=window_read,
        window_tokens=float(tokens),
        write_bytes=write,
        state_bytes=2.0 * shape.state_bytes,
        state_layers=0 if shape.mamba is None else shape.mamba.layers,
        pair_flops=pair,
        window_pair_flops=window_pair,
        prefill_ratio=ratio,
    )


def _experts(
    shape: ModelShape, dtype: str, gpus: int, *, dispatched: bool, replicated: bool, kernel: ExpertKernel | None
) -> ExpertWork | None:
    experts = shape.experts
    if experts is None:
        return None
    matmul = experts.expert_matmul(shape.hidden)
    usual: ExpertKernel = "fitted" if dtype in (FP8, *WEIGHT_ONLY) else "tiled"
    if dtype == FP8 and shape.checkpoint.scaled_in_blocks:
        usual = "padded"
    return ExpertWork(
        routed_bytes=shape.routed_bytes(dtype),
        share=experts.experts_per_token / experts.experts,
        experts=experts.experts,
        layers=experts.layers,
        local=experts.experts / (gpus if dispatched else 1),
        expert_bytes=matmul * dtype_bytes(dtype) / (1 if dispatched else gpus),
        row_flops=2.0 * matmul * experts.layers * experts.experts,
        kernel=kernel or usual,
        dispatched=dispatched,
        replicated=replicated,
    )
