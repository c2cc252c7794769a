"""The rates of a server: what each sum of its steps takes in seconds and joules, from constants and datasheets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from infergy.catalog.gpus import Gpu
from infergy.cost.work import ServerWork
from infergy.records.engine_setup import DEFAULT_DTYPE, FP8, WEIGHT_ONLY

FP4 = ("mxfp4", "nvfp4")
REFERENCE_EXPERT_BYTES = 30e6
LARGER_TILES = 4.0
"""Rows of a tile of vLLM's grouped matmuls of more tokens than experts, over those of one of fewer: 64 and 16."""
NVLINK_4 = 450e9
"""Bytes/s in one direction, where the catalog knows no link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatmulRates:
    """Seconds or energy of matmuls, routed experts' apart, on all GPUs of a server at once.

    Attributes:
        weight: Of reading the weights that every step reads.
        token: Of the FLOPs of one token; `head` of sampling one.
    """

    weight: Any
    token: Any
    head: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertRates:
    """Seconds or energy of routed experts, on all GPUs of a server at once; zeros for a dense model.

    Attributes:
        read: Of reading all of them; `row` of the FLOPs of one row in each.
        miss: Share of the experts that one token does not visit.
        few: Tokens up to which each visited expert computes `small` rows beside its tokens', and beyond which `large`.
        padded: Whether those that no token visits compute them too.
        rows: Rows of each expert for a token, in the mean; `waiting` of the GPUs that wait for one with a prompt.
        gathered: Of copying the experts of a decoded token.
        lag: Of the fullest GPU, where experts are divided whole, at the square root of the share of them visited.
    """

    read: Any = 0.0
    row: Any = 0.0
    miss: Any = 0.0
    few: Any = 0.0
    small: Any = 0.0
    large: Any = 0.0
    padded: Any = 0.0
    rows: Any = 0.0
    waiting: Any = 0.0
    gathered: Any = 0.0
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
    """All rates of a server: matmuls, experts and attention in seconds and in joules, host and power."""

    matmul_s: MatmulRates
    matmul_j: MatmulRates
    experts_s: ExpertRates
    experts_j: ExpertRates
    attention_s: AttentionRates
    attention_j: AttentionRates
    host: HostRates
    power: PowerRates


def rates_of(
    work: ServerWork, gpu: Gpu, constants: Mapping[str, Any], *, idle_w: Any, server: bool = False, sorts: bool = False
) -> Rates:
    """The rates of a server.

    Args:
        work: What its steps are made of.
        gpu: Its GPUs.
        constants: A value for each constant (`infergy.cost.constants`); columns of shape (k, 1) are k variants.
        idle_w: Watts of all GPUs, idle, with the model loaded; one for each row where sums are columns of rows.
        server: Whether an API server hands out each token as it comes.
        sorts: Whether tokens are sampled from the most probable (top-p), for which the vocabulary is sorted.
    """
    c = constants
    tdp_w = gpu.tdp_w * work.gpus
    matmul_s, matmul_j = _matmul_rates(work, gpu, c)
    experts_s, experts_j = _expert_rates(work, gpu, c)
    traffic = c.get("cache_traffic", 1.0)
    cache_s = 1.0 / (c["cache_efficiency"] * gpu.memory_bandwidth * work.gpus)
    pair_s = 1.0 / (c["attention_efficiency"] * gpu.dense_flops("bfloat16") * work.gpus)
    pair_j = _flop_j(gpu, c) * c["attention_energy"]
    return Rates(
        matmul_s=matmul_s,
        matmul_j=matmul_j,
        experts_s=experts_s,
        experts_j=experts_j,
        attention_s=_attention_rates(work, cache_s, pair_s, traffic),
        attention_j=_attention_rates(work, c["byte_j"] * c["cache_energy"], pair_j, traffic),
        host=_host_rates(work, gpu, c, server=server, sorts=sorts),
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
    dtype = DEFAULT_DTYPE if work.dtype == "mxfp4" else work.dtype  # a format of experts' matrices only
    byte_s, flop_s, byte_j, flop_j = _unit_rates(work, gpu, c, dtype)
    experts = work.experts
    token_flops = work.token_flops - (0.0 if experts is None else experts.row_flops * experts.share)

    def rates(byte: Any, flop: Any) -> MatmulRates:
        return MatmulRates(weight=work.weight_bytes * byte, token=token_flops * flop, head=work.head_flops * flop)

    return rates(byte_s, flop_s), rates(byte_j, flop_j)


def _expert_rates(work: ServerWork, gpu: Gpu, c: Mapping[str, Any]) -> tuple[ExpertRates, ExpertRates]:
    """Seconds, and joules."""
    experts = work.experts
    if experts is None:
        return ExpertRates(), ExpertRates()
    byte_s, flop_s, byte_j, flop_j = _unit_rates(work, gpu, c, work.dtype)
    read = np.maximum(1.0, c["expert_read"] * (experts.expert_bytes / REFERENCE_EXPERT_BYTES) ** -c["expert_size"])
    lag: Any = 0.0
    if experts.dispatched:
        # Of n experts dropped on G GPUs the fullest has n / G + sqrt(2 n ln G / G), n large (Raab and Steger 1998).
        fullest = math.sqrt(2 * math.log(work.gpus) * work.gpus / experts.experts)
        lag = c["imbalance"] * fullest * experts.routed_bytes * read * byte_s
    is_padded, is_gathered = experts.kernel == "padded", experts.kernel == "gathered"
    small = c["padded_rows"] if is_padded else 0.0 if is_gathered else c["expert_rows"]
    copied = experts.routed_bytes * experts.share * c["expert_traffic"] if is_gathered else 0.0
    # Triton's kernels are slow; those that compute in 8 bits are others.
    is_slow = not _is_in_fp8(work, gpu) and not is_gathered
    factor, energy = (c["expert_flops"], c["expert_energy"]) if is_slow else (1.0, 1.0)
    # DeepGEMM has rows for each token on each GPU; GPUs with requests of their own take as many as the longest prompt.
    rows = experts.share * (work.gpus if is_padded and experts.dispatched else 1)
    seconds = ExpertRates(
        read=experts.routed_bytes * read * byte_s,
        row=experts.row_flops * flop_s * factor,
        miss=1.0 - experts.share,
        few=experts.local,
        small=small,
        large=small * (LARGER_TILES if experts.kernel == "tiled" else 1.0),
        padded=float(is_padded),
        rows=rows,
        waiting=rows * (work.gpus - 1) if experts.replicated else 0.0,
        gathered=copied * byte_s,
        lag=lag,
    )
    row_j = experts.row_flops * flop_j * energy
    return seconds, replace(seconds, read=experts.routed_bytes * byte_j, row=row_j, gathered=copied * byte_j, lag=0.0)


def _unit_rates(work: ServerWork, gpu: Gpu, c: Mapping[str, Any], dtype: str) -> tuple[Any, Any, Any, Any]:
    """Seconds of a byte and of a FLOP in a format, on all GPUs at once, and energy of each."""
    is_in_fp8 = dtype == work.dtype and _is_in_fp8(work, gpu)
    byte, flop, byte_energy, flop_energy = _format_factors(work, gpu, c) if dtype != DEFAULT_DTYPE else (1.0,) * 4
    byte_s = byte / (c["weight_efficiency"] * gpu.memory_bandwidth * work.gpus)
    flop_s = flop / (c["compute_efficiency"] * gpu.dense_flops(FP8 if is_in_fp8 else DEFAULT_DTYPE) * work.gpus)
    return byte_s, flop_s, c["byte_j"] * byte_energy, _flop_j(gpu, c) * flop * flop_energy


def _is_in_fp8(work: ServerWork, gpu: Gpu) -> bool:
    """Whether matmuls are computed in 8 bits; elsewhere, and in other formats, weights are widened."""
    return (work.dtype == FP8 and gpu.has_units(FP8)) or (work.dtype in FP4 and gpu.has_units("fp4"))


def _format_factors(work: ServerWork, gpu: Gpu, c: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Factors of a format of weights, over bfloat16: seconds of a byte, work and energy of a FLOP, energy of a byte."""
    if work.dtype in WEIGHT_ONLY:
        if _is_in_fp8(work, gpu):
            return c["mxfp4_bytes"], c["fp8_flops"], 1.0, c["fp8_flop_energy"]
        return c["mxfp4_bytes"], c["mxfp4_flops"], 1.0, 1.0
    if work.dtype != FP8:
        return 1.0, 1.0, 1.0, 1.0
    byte_energy = c["fp8_byte_energy"] * (c["block_byte_energy"] if work.scaled_in_blocks else 1.0)
    if not gpu.has_units("fp8"):
        return c["fp8_bytes"], c["mxfp4_flops"], byte_energy, 1.0
    widened = c["fp8_flops"] * (c["block_flops"] if work.scaled_in_blocks else 1.0)
    return c["fp8_bytes"], widened, byte_energy, c["fp8_flop_energy"]


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


def _host_rates(work: ServerWork, gpu: Gpu, c: Mapping[str, Any], *, server: bool, sorts: bool) -> HostRates:
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
    eager_s = c["eager_layer_s"] * (c["fp8_eager"] if is_fp8 and not work.compiled else 1.0)
    return HostRates(
        launch=launch,
        exchange=exchange,
        eager=work.layers * work.launches * eager_s,
        piecewise=work.layers * c["piecewise_layer_s"],
        mixed=work.layers * c["mixed_layer_s"],
        step=c["step_s"] + (c["server_step_s"] if server else 0.0),
        sequence=c["sequence_s"] + work.vocabulary * (c["logit_s"] + (c["sort_s"] if sorts else 0.0)),
        prefill=c["prefill_s"],
    )
