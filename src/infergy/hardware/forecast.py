"""How long one batch takes and what it uses, roughly: what planning and the simulated GPU go by.

A roofline with constants seen on one H200 (Llama-3.1-8B in bfloat16, three engine set-ups, 18 cells): each measured
time is within 10 %, each energy within 14 %. It chooses batch sizes and tells how long a sweep will take; no estimate
rests on it. On other GPUs, models and several GPUs it is unchecked: traffic between GPUs is left out.

    prefill = max(FLOPs / (efficiency × peak), weights / bandwidth, host)
    decode  = steps × max(max(bytes / bandwidth, FLOPs / (0.6 × peak)) + host time of the requests, host)
    host    = layers × time to launch a layer's kernels; 0 with CUDA graphs
"""

from __future__ import annotations

from dataclasses import dataclass

from infergy.errors import UsageError
from infergy.hardware.gpus import Gpu
from infergy.hardware.shape import ModelShape
from infergy.records import ENGINES

COMPUTE_EFFICIENCY = {"transformers": 0.55, "vllm": 0.62}
"""Share of the dense peak that prefill reaches."""

DECODE_COMPUTE_EFFICIENCY = 0.6
BANDWIDTH_EFFICIENCY = 0.8
"""Share of the datasheet's bandwidth that decode reaches (AIConfigurator's own prior as well)."""

HOST_S_PER_LAYER = {"transformers": 560e-6, "vllm-eager": 420e-6}
"""Time to launch one layer's kernels without CUDA graphs: a floor under each decode step."""

GRAPH_STEP_S = 1e-3
REQUEST_STEP_S = 20e-6
"""Host time of a decode step with CUDA graphs, and for each request in it."""

CACHE_COPIES = {"transformers": 3.0, "vllm": 1.0}
"""How often a step moves the KV cache: transformers' dynamic cache is read, written anew and read by attention."""

BASE_SHARE_OF_TDP = 0.21
JOULES_PER_BYTE = 115e-12
JOULES_PER_FLOP = 0.90e-12
"""Base power and what work adds to it; AIConfigurator's power tables of H200 kernels: 0.21, 110e-12, 0.83e-12."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One batch, forecast.

    Attributes:
        prefill_s: Until the first token.
        decode_s: From there to the last.
        gpu_bound_s: Both, if launching kernels cost nothing: what batches are chosen by.
        prefill_energy_j: Joules of all GPUs until the first token.
        decode_energy_j: From there to the last; 0 for one output token.
    """

    prefill_s: float
    decode_s: float
    gpu_bound_s: float
    prefill_energy_j: float
    decode_energy_j: float

    @property
    def energy_j(self) -> float:
        """Joules of all GPUs for the whole batch."""
        return self.prefill_energy_j + self.decode_energy_j


def forecast(
    shape: ModelShape,
    gpu: Gpu,
    input_tokens: int,
    output_tokens: int,
    batch: int,
    *,
    engine: str,
    cuda_graphs: bool | None = None,
    tensor_parallel: int = 1,
    compiled: bool = False,
    dtype: str = "bfloat16",
) -> Forecast:
    """Time and energy of `batch` requests of `input_tokens` in and `output_tokens` out, served at once.

    Decode steps grow linearly with the context, so they are counted at the mean context.

    `engine` is ``transformers`` or ``vllm``; `cuda_graphs` None leaves it the engine's own default (vllm: yes;
    transformers: has none unless `compiled`); `tensor_parallel` GPUs share work and bandwidth evenly; `dtype` is that
    of weights, arithmetic and KV cache.

    Raises:
        UsageError: The engine is not known, or the GPU has no such dtype.
    """
    if engine not in ENGINES:
        raise UsageError.unknown("engine", engine, ENGINES)
    peak = gpu.dense_flops(dtype) * tensor_parallel
    bandwidth = gpu.memory_bandwidth * tensor_parallel * BANDWIDTH_EFFICIENCY
    label = "vllm-eager" if engine == "vllm" and cuda_graphs is False else engine
    # What is compiled replays CUDA graphs.
    host_s = 0.0 if compiled else HOST_S_PER_LAYER.get(label, 0.0) * shape.layers

    prefill_flops = shape.prefill_flops(input_tokens) * batch
    weight_bytes = shape.weight_bytes(dtype)
    prefill_gpu_s = max(prefill_flops / (peak * COMPUTE_EFFICIENCY[engine]), weight_bytes / bandwidth)

    steps = output_tokens - 1
    context = input_tokens + output_tokens // 2
    step_bytes = shape.step_weight_bytes(batch, dtype)
    step_bytes += batch * shape.kv_bytes(context, dtype) * CACHE_COPIES[engine]
    step_flops = batch * shape.decode_flops(context, absorbed=engine == "vllm")
    step_gpu_s = max(step_bytes / bandwidth, step_flops / (peak * DECODE_COMPUTE_EFFICIENCY))
    step_gpu_s += batch * REQUEST_STEP_S + (GRAPH_STEP_S if label == "vllm" else 0.0)

    prefill_s, decode_s = max(prefill_gpu_s, host_s), steps * max(step_gpu_s, host_s)
    base_w = gpu.tdp_w * BASE_SHARE_OF_TDP * tensor_parallel
    # Nobody measured it: twice the rate of narrower numbers is taken to draw what the wider ones do.
    joules_per_flop = JOULES_PER_FLOP * gpu.dense_flops("bfloat16") * tensor_parallel / peak
    return Forecast(
        prefill_s=prefill_s,
        decode_s=decode_s,
        gpu_bound_s=prefill_gpu_s + steps * step_gpu_s,
        prefill_energy_j=base_w * prefill_s + JOULES_PER_BYTE * weight_bytes + joules_per_flop * prefill_flops,
        decode_energy_j=base_w * decode_s + steps * (JOULES_PER_BYTE * step_bytes + joules_per_flop * step_flops),
    )
