"""The rates of a server: what each sum of its steps takes in seconds and joules, from constants and datasheets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infergy.catalog.gpus import Gpu
from infergy.catalog.layers import AttentionShape
from infergy.catalog.shape import ModelShape, cache_bytes, dtype_bytes
from infergy.records.engine_setup import FP8, WEIGHT_ONLY

ACTIVATION_BYTES = 2.0
"""A value that GPUs exchange: bfloat16, also where weights are narrower."""
REFERENCE_EXPERT_BYTES = 30e6
NVLINK_4 = 450e9
"""Bytes/s in one direction, where the catalog knows no link."""


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
        expert_bytes: Bytes of one expert on one GPU.
        row_flops: FLOPs of one row in every expert of all layers.
        dispatched: Whether experts are divided among GPUs whole (expert parallel), not each over all GPUs.
    """

    routed_bytes: float
    share: float
    experts: float
    layers: float
    expert_bytes: float
    row_flops: float
    dispatched: bool = False


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
        replicated: Whether each GPU does attention for its own requests (data parallel), with weights of its own.
        compiled: Whether kernels of a layer are fused by the compiler; no part of what two servers have in common.
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
    replicated: bool = False
    compiled: bool = field(default=True, compare=False)


def server_work(
    shape: ModelShape,
    *,
    dtype: str = "bfloat16",
    gpus: int = 1,
    dispatched: bool = False,
    replicated: bool = False,
    compiled: bool = True,
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
        experts=_experts(shape, dtype, gpus, dispatched=dispatched),
        replicated=replicated,
        compiled=compiled,
    )


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


def _experts(shape: ModelShape, dtype: str, gpus: int, *, dispatched: bool) -> ExpertWork | None:
    experts = shape.experts
    if experts is None:
        return None
    matmul = experts.expert_matmul(shape.hidden)
    return ExpertWork(
        routed_bytes=shape.routed_bytes(dtype),
        share=experts.experts_per_token / experts.experts,
        experts=experts.experts,
        layers=experts.layers,
        expert_bytes=matmul * dtype_bytes(dtype) / (1 if dispatched else gpus),
        row_flops=2.0 * matmul * experts.layers * experts.experts,
        dispatched=dispatched,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MatmulRates:
    """Seconds and energy of matmuls, on all GPUs of a server at once; experts count per share of them visited.

    Attributes:
        weight: Of reading the weights that every step reads; `expert` of all routed experts.
        token: Of the FLOPs of one token; `head` of sampling one; `row` of the rows that experts compute beside tokens'.
        miss: Share of the experts that one token does not visit; 0 for a dense model.
        lag: Of the fullest GPU, where experts are divided whole, at the square root of the share of them visited.
    """

    weight: Any
    expert: Any
    token: Any
    head: Any
    row: Any
    miss: Any
    lag: Any = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRates:
    """Seconds or energy of attention, on all GPUs of a server at once.

    Attributes:
        read: Of a position that a decoding sequence reads; `window_read` in layers with a window.
        window: Tokens of that window; None where no layer has one.
        write: Of a token's keys and values; `state` of a sequence's recurrent state.
        pair: Of the FLOPs of a decoded token at one position; `window_pair` in layers with a window.
        ratio: FLOPs of a prompt's token over those of a decoded one.
    """

    read: Any
    window_read: Any
    window: Any | None
    write: Any
    state: Any
    pair: Any
    window_pair: Any
    ratio: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRates:
    """Seconds that do not shrink with the work.

    Attributes:
        launch: Of a step, on the GPU: kernels and all-reduces; `exchange` of one token's all-reduced values.
        eager: Least seconds of a step without a CUDA graph; `piecewise` of one with prompts inside graphs;
            `mixed` more where prompts join decodes.
        step: Of a step; `sequence` of one that samples; `prefill` of one prompt or chunk.
    """

    launch: Any
    exchange: Any
    eager: Any
    piecewise: Any
    mixed: Any
    step: Any
    sequence: Any
    prefill: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerRates:
    """Watts of all GPUs of a server.

    Attributes:
        base_w: While busy, beside bytes and FLOPs.
        limit_w: What the limiter holds on average over `limiter_s`.
        slowing: Exponent by which work takes less energy as its clocks are slowed.
        idle_w: With the model loaded and nothing to do.
    """

    base_w: Any
    limit_w: Any
    limiter_s: Any
    slowing: Any
    idle_w: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """All rates of a server: matmuls and attention in seconds and in joules, host and power."""

    matmul_s: MatmulRates
    matmul_j: MatmulRates
    attention_s: AttentionRates
    attention_j: AttentionRates
    host: HostRates
    power: PowerRates


def rates_of(work: ServerWork, gpu: Gpu, constants: Mapping[str, Any], *, idle_w: Any, server: bool = False) -> Rates:
    """The rates of a server.

    Args:
        work: What its steps are made of.
        gpu: Its GPUs.
        constants: A value for each constant (`infergy.cost.constants`); columns of shape (k, 1) are k variants.
        idle_w: Watts of all GPUs, idle, with the model loaded; one for each row where sums are columns of rows.
        server: Whether an API server hands out each token as it comes.
    """
    c = constants
    tdp_w = gpu.tdp_w * work.gpus
    matmul_s, matmul_j = _matmul_rates(work, gpu, c)
    traffic = c.get("cache_traffic", 1.0)
    cache_s = 1.0 / (c["cache_efficiency"] * gpu.memory_bandwidth * work.gpus)
    pair_s = 1.0 / (c["attention_efficiency"] * gpu.dense_flops("bfloat16") * work.gpus)
    pair_j = _flop_j(gpu, c) * c["attention_energy"]
    return Rates(
        matmul_s=matmul_s,
        matmul_j=matmul_j,
        attention_s=_attention_rates(work, cache_s, pair_s, traffic),
        attention_j=_attention_rates(work, c["byte_j"] * c["cache_energy"], pair_j, traffic),
        host=_host_rates(work, gpu, c, server=server),
        power=PowerRates(
            base_w=idle_w + (c["busy_share"] + (c["parallel_share"] if work.gpus > 1 else 0.0)) * tdp_w,
            limit_w=c["limit_share"] * tdp_w,
            limiter_s=c["limiter_s"],
            slowing=c["slowing"],
            idle_w=idle_w,
        ),
    )


def _flop_j(gpu: Gpu, c: Mapping[str, Any]) -> Any:
    return c["flop_share"] * gpu.tdp_w / (0.6 * gpu.dense_flops("bfloat16"))


def _matmul_rates(work: ServerWork, gpu: Gpu, c: Mapping[str, Any]) -> tuple[MatmulRates, MatmulRates]:
    """Seconds, and joules."""
    narrow, widened, byte_energy, flop_energy = _format_factors(work, gpu, c)
    peak = gpu.dense_flops("fp8" if _is_in_fp8(work, gpu) else "bfloat16")
    byte_s = 1.0 / (c["weight_efficiency"] * gpu.memory_bandwidth * work.gpus)
    flop_s = widened / (c["compute_efficiency"] * peak * work.gpus)
    byte_j = c["byte_j"] * byte_energy
    flop_j = _flop_j(gpu, c) * widened * flop_energy
    read, rows, miss = _expert_factors(work, c, narrow)
    routed, row_flops, lag = 0.0, 0.0, 0.0
    if work.experts is not None:
        routed, row_flops = work.experts.routed_bytes, work.experts.row_flops * rows
        if work.experts.dispatched:
            # Of n experts dropped on G GPUs the fullest has n / G + sqrt(2 n ln G / G), n large (Raab and Steger 1998).
            fullest = math.sqrt(2 * math.log(work.gpus) * work.gpus / work.experts.experts)
            lag = c["imbalance"] * fullest * routed * read * byte_s

    def rates(weight: Any, expert: Any, flop: Any, lag: Any) -> MatmulRates:
        return MatmulRates(
            weight=work.weight_bytes * weight,
            expert=routed * expert,
            token=work.token_flops * flop,
            head=work.head_flops * flop,
            row=row_flops * flop,
            miss=miss,
            lag=lag,
        )

    return rates(narrow * byte_s, read * byte_s, flop_s, lag), rates(byte_j, read**0.5 * byte_j, flop_j, 0.0)


def _is_in_fp8(work: ServerWork, gpu: Gpu) -> bool:
    """Whether matmuls are computed in fp8; elsewhere, and of other formats always, weights are widened."""
    return work.dtype == "fp8" and gpu.has_units("fp8")


def _format_factors(work: ServerWork, gpu: Gpu, c: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Factors of a format of weights, over bfloat16: seconds of a byte, work and energy of a FLOP, energy of a byte."""
    if work.dtype in WEIGHT_ONLY:
        return c["mxfp4_bytes"], c["mxfp4_flops"], 1.0, 1.0
    if work.dtype != FP8:
        return 1.0, 1.0, 1.0, 1.0
    byte_energy = c["fp8_byte_energy"] * (c["block_byte_energy"] if work.scaled_in_blocks else 1.0)
    if not gpu.has_units("fp8"):
        return c["fp8_bytes"], c["mxfp4_flops"], byte_energy, 1.0
    widened = c["fp8_flops"] * (c["block_flops"] if work.scaled_in_blocks else 1.0)
    return c["fp8_bytes"], widened, byte_energy, c["fp8_flop_energy"]


def _expert_factors(work: ServerWork, c: Mapping[str, Any], narrow: Any) -> tuple[Any, Any, float]:
    """Factor on reading routed experts, rows that each computes beside its tokens', and a token's share of misses."""
    experts: ExpertWork | None = work.experts
    if experts is None:
        return 1.0, 0.0, 0.0
    grouping = np.maximum(1.0, c["expert_read"] * (experts.expert_bytes / REFERENCE_EXPERT_BYTES) ** -c["expert_size"])
    if not isinstance(grouping, np.ndarray):
        grouping = float(grouping)
    # Scales of blocks are read beside the experts, and take the place of the other formats' factor.
    rows = c["expert_rows"] + c["replica_rows"] if work.replicated else c["expert_rows"]
    return grouping * (c["block_bytes"] if work.scaled_in_blocks else narrow), rows, 1.0 - experts.share


def _attention_rates(work: ServerWork, byte: Any, flop: Any, traffic: Any) -> AttentionRates:
    a = work.attention
    return AttentionRates(
        read=a.read_bytes * byte * traffic,
        window_read=a.window_read_bytes * byte * traffic,
        window=a.window_tokens if a.window_tokens < math.inf else None,
        write=a.write_bytes * byte,
        state=a.state_bytes * byte,
        pair=a.pair_flops * flop,
        window_pair=a.window_pair_flops * flop,
        ratio=a.prefill_ratio,
    )


def _host_rates(work: ServerWork, gpu: Gpu, c: Mapping[str, Any], *, server: bool) -> HostRates:
    expert_layers = 0.0 if work.experts is None else work.experts.layers
    is_fp8 = _is_in_fp8(work, gpu)  # activations are quantised only to compute in it
    narrow_s = c["fp8_layer_s"] if is_fp8 else c["mxfp4_layer_s"] if work.dtype in WEIGHT_ONLY else 0.0
    launch = work.layers * (c["layer_s"] + narrow_s)
    launch = launch + expert_layers * c["expert_layer_s"] + work.attention.state_layers * c["state_layer_s"]
    exchange: Any = 0.0
    if work.gpus > 1:
        launch = launch + 2 * work.layers * c["reduce_s"] * (work.gpus / 2) ** c["reduce_growth"]
        if work.experts is not None and work.experts.dispatched:
            launch = launch + expert_layers * c["dispatch_s"] * work.gpus / 2
        exchange = work.exchange_bytes / (NVLINK_4 if gpu.link is None else gpu.link.bandwidth)
    return HostRates(
        launch=launch,
        exchange=exchange,
        eager=work.layers * c["eager_layer_s"] * (c["fp8_eager"] if is_fp8 and not work.compiled else 1.0),
        piecewise=work.layers * c["piecewise_layer_s"],
        mixed=work.layers * c["mixed_layer_s"],
        step=c["step_s"] + (c["server_step_s"] if server else 0.0),
        sequence=c["sequence_s"] + work.vocabulary * c["logit_s"],
        prefill=c["prefill_s"],
    )
