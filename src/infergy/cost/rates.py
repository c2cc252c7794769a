"""The rates of a server: what each sum of its steps takes in seconds and joules, from constants and datasheets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from infergy.catalog.gpus import Gpu
from infergy.cost.work import ExpertWork, ServerWork
from infergy.records.engine_setup import FP8, WEIGHT_ONLY

REFERENCE_EXPERT_BYTES = 30e6
NVLINK_4 = 450e9
"""Bytes/s in one direction, where the catalog knows no link."""


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
