"""References for the same work on perfect hardware. Neither is a physical floor.

The study's ideal charges only arithmetic, at peak rate and full power. The roofline also charges the bytes that decode
must move, at full power; a memory-bound phase draws less than that, so measurements can beat it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infergy.errors import UsageError
from infergy.hardware import Gpu, ModelShape
from infergy.units import format_number, format_si
from infergy.workload import Bin, Histogram

IDEALS = ("dense", "paper", "roofline")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ideal:
    """A reference for the same work.

    Attributes:
        energy_j: Joules of the reference.
        duration_s: GPU-seconds of the reference.
        basis: What it charges, in words.
    """

    energy_j: float
    duration_s: float
    basis: str


def flops_ideal(
    histogram: Histogram, shape: ModelShape, gpu: Gpu, *, headline: bool = False, dtype: str = "bfloat16"
) -> Ideal:
    """E = TDP / peak × Σ N(I*, O*) × FLOPs(I*, O*) (arXiv 2504.17674, section 2), over the binned lengths.

    Args:
        histogram: The requests, by bin.
        shape: The model.
        gpu: The GPU, by its datasheet.
        dtype: Whose dense peak to take.
        headline: Take the vendor's headline peak, which counts sparsity, as the study does for the A6000.

    Raises:
        UsageError: The vendor has no headline for this GPU that differs from its dense peak.
    """
    peak = gpu.headline_flops if headline else gpu.peak_flops.get(dtype)
    if peak is None:
        other = "--ideal dense" if headline else f"a dtype of {', '.join(gpu.peak_flops)}"
        raise UsageError(f"{gpu.title} has no {'headline' if headline else dtype} peak in the catalogue; use {other}")
    flops = sum(
        count.requests * shape.request_flops(count.bin.input_tokens, count.bin.output_tokens)
        for count in histogram.counts
    )
    kind = "headline (sparse)" if headline else f"dense {dtype}"
    return Ideal(
        energy_j=gpu.tdp_w / peak * flops,
        duration_s=flops / peak,
        basis=f"FLOPs of the binned requests at the {kind} peak, {format_si(peak, 'FLOP/s')}, "
        f"and {format_number(gpu.tdp_w)} W; a reference, not a floor",
    )


def roofline_ideal(
    histogram: Histogram, shape: ModelShape, gpu: Gpu, batch_of: Callable[[Bin], int], *, dtype: str = "bfloat16"
) -> Ideal:
    """Time of each batch at peak FLOP/s or peak bandwidth, whichever is longer for prefill and for decode, at TDP.

    Args:
        histogram: The requests, by bin.
        shape: The model.
        gpu: The GPU, by its datasheet.
        dtype: Arithmetic and weights.
        batch_of: Batch size at which a bin is served: weights are read once a step for the whole batch.
    """
    seconds = 0.0
    for count in histogram.counts:
        load, batch = count.bin, batch_of(count.bin)
        peak = gpu.peak_flops[dtype]
        prefill_s = max(
            batch * shape.prefill_flops(load.input_tokens) / peak, shape.weight_bytes(dtype) / gpu.memory_bandwidth
        )
        context = load.input_tokens + load.output_tokens // 2
        step_bytes = shape.step_weight_bytes(batch, dtype) + batch * shape.kv_bytes(context, dtype)
        step_s = max(batch * shape.decode_flops(context) / peak, step_bytes / gpu.memory_bandwidth)
        seconds += count.requests / batch * (prefill_s + (load.output_tokens - 1) * step_s)
    return Ideal(
        energy_j=seconds * gpu.tdp_w,
        duration_s=seconds,
        basis=f"roofline time of the binned batches at peak FLOP/s and {format_si(gpu.memory_bandwidth, 'B/s')}, "
        f"at {format_number(gpu.tdp_w)} W; memory-bound decode draws less and can beat it",
    )
