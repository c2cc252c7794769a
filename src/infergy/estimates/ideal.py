"""Two stated references for the energy of a workload. Neither is a physical floor.

`flops_ideal` is the study's (arXiv 2504.17674, section 2): all FLOPs at the peak rate and TDP. `roofline_ideal` adds
the bytes that decode must move, at the peak bandwidth and TDP. A GPU whose clocks or units rest while memory is the
bottleneck draws less than TDP, so measured energy can lie below the second; one that works at a lower power limit, or
in a narrower dtype, can lie below both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from infergy.errors import UsageError
from infergy.hardware import Gpu, ModelShape
from infergy.units import count_of, format_si
from infergy.workload.bins import Bin, Histogram

DENSE, PAPER_IDEAL, ROOFLINE = "dense", "paper", "roofline"
IDEALS = (DENSE, PAPER_IDEAL, ROOFLINE)
"""`flops_ideal` at the dense peak, at the vendor's headline, or `roofline_ideal`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ideal:
    """A stated reference for the same work.

    Attributes:
        energy_j: Joules of the whole workload.
        duration_s: GPU-seconds that the reference takes for it.
        basis: How it was computed, in words.
    """

    energy_j: float
    duration_s: float
    basis: str


def flops_ideal(
    histogram: Histogram,
    shape: ModelShape,
    gpu: Gpu,
    *,
    headline: bool = False,
    dtype: str = "bfloat16",
) -> Ideal:
    """E = TDP / peak × sum over bins of N(I*, O*) × FLOPs(I*, O*), each request at its bin's upper corner.

    FLOPs are `ModelShape.request_flops` with causal attention; the peak is the GPU's dense one at `dtype`. With
    `headline` both are as in the study: the vendor's headline, which counts sparsity (309.7 TFLOP/s for the RTX A6000)
    and may be of another dtype, and attention over the full square, as its profiler counts.
    What the histogram leaves out is left out here.

    Raises:
        UsageError: The GPU has no such dtype, or no headline that counts sparsity.
    """
    if not headline:
        peak, kind = gpu.dense_flops(dtype), f"dense {dtype}"
    elif gpu.headline_flops is None:
        message = (
            f"{gpu.title} has no headline peak to set beside the study's: {gpu.headline_basis}. "
            "Take the dense peak: --ideal dense"
        )
        raise UsageError(message, code="not-supported", gpu=gpu.name, option="--ideal")
    else:
        peak, kind = gpu.headline_flops, f"the vendor's headline, {gpu.headline_basis}"
    flops = sum(
        count.requests * shape.request_flops(count.bin.input_tokens, count.bin.output_tokens, causal=not headline)
        for count in histogram.counts
    )
    basis = f"a reference, not a floor: FLOPs at {format_si(peak, 'FLOP/s', 4)} ({kind}) and {_tdp(gpu)}"
    return Ideal(energy_j=flops / peak * gpu.tdp_w, duration_s=flops / peak, basis=basis)


def roofline_ideal(
    histogram: Histogram,
    shape: ModelShape,
    gpu: Gpu,
    batch_of: Callable[[Bin], int],
    *,
    dtype: str = "bfloat16",
) -> Ideal:
    """TDP × the time that FLOPs or bytes take at the peak rates, whichever is longer, in prefill and in decode.

    Each phase of a batch counts as one block in which computing and moving overlap wholly (Williams et al., "Roofline",
    CACM 2009). Prefill reads the weights once a batch and writes the prompts' KV cache, decode moves
    `ModelShape.output_bytes`. A bin of N requests takes N / `batch_of`(bin) batches, a fraction of one included.

    Raises:
        UsageError: The GPU has no such dtype, or a batch is below 1.
    """
    peak = gpu.dense_flops(dtype)
    duration_s = 0.0
    for count in histogram.counts:
        batch = batch_of(count.bin)
        if batch < 1:
            raise UsageError(
                f"a batch of {count_of(batch, 'request')} for {count.bin.input_tokens}→{count.bin.output_tokens}: "
                "not one fits; take a GPU with more memory, or more GPUs",
                code="does-not-fit",
                batch=batch,
                lengths=[count.bin.input_tokens, count.bin.output_tokens],
            )
        duration_s += count.requests / batch * _batch_s(shape, gpu, count.bin, batch, peak, dtype)
    basis = (
        f"a reference, not a floor: FLOPs at {format_si(peak, 'FLOP/s', 4)} (dense {dtype}) or bytes at "
        f"{format_si(gpu.memory_bandwidth, 'B/s', 4)}, whichever take longer, and {_tdp(gpu)}"
    )
    return Ideal(energy_j=duration_s * gpu.tdp_w, duration_s=duration_s, basis=basis)


def _batch_s(shape: ModelShape, gpu: Gpu, corner: Bin, batch: int, peak: float, dtype: str) -> float:
    inputs, outputs = corner.input_tokens, corner.output_tokens
    moved_once = shape.step_weight_bytes(batch * inputs, dtype) + batch * inputs * shape.kv_bytes_per_token(dtype)
    prefill = (batch * shape.prefill_flops(inputs), moved_once)
    decode = (batch * shape.output_flops(inputs, outputs), shape.output_bytes(inputs, outputs, batch, dtype))
    phases: Iterable[tuple[float, float]] = (prefill, decode)
    return sum(max(flops / peak, moved / gpu.memory_bandwidth) for flops, moved in phases)


def _tdp(gpu: Gpu) -> str:
    return f"TDP ({gpu.tdp_w:g} W) of {gpu.title}"
