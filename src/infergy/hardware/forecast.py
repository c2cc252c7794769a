"""How long one batch takes and what it uses, roughly: what planning and the simulated GPU go by.

A roofline with constants seen on one H200 (Llama-3.1-8B in bfloat16, three engine set-ups, 18 cells): each measured
time is within 10 %, each energy within 14 %. It chooses batch sizes and tells how long a sweep will take; no estimate
rests on it. On other GPUs, models and several GPUs it is unchecked: traffic between GPUs is left out.

    prefill = max(FLOPs / (efficiency × peak), weights / bandwidth, host)
    decode  = steps × max(max(bytes / bandwidth, FLOPs / (0.6 × peak)) + host time of the requests, host)
    host    = layers × time to launch a layer's kernels; 0 with CUDA graphs

With a draft model both prefill, and steps become rounds: `look_ahead` steps of the draft and one of the model over
`look_ahead` + 1 tokens a request, which yields (1 − a^(k+1)) / (1 − a) tokens (Leviathan et al. 2023, arXiv 2211.17192,
equation 1), in the mean, so rounds are a fraction where few tokens are asked for. The engine's host time is spent once
a round. Of this nothing was checked against measured rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from infergy.errors import UsageError
from infergy.hardware.draft import Draft
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
    draft: Draft | None = None,
) -> Forecast:
    """Time and energy of `batch` requests of `input_tokens` in and `output_tokens` out, served at once.

    Decode steps grow linearly with the context, so they are counted at the mean context.

    `engine` is ``transformers`` or ``vllm``; `cuda_graphs` None leaves it the engine's own default (vllm: yes;
    transformers: has none unless `compiled`); `tensor_parallel` GPUs share work and bandwidth evenly; `dtype` is that
    of weights, arithmetic and KV cache; `draft` is loaded beside the model and shares its GPUs.

    Raises:
        UsageError: The engine is not known, or the GPU has no such dtype.
    """
    if engine not in ENGINES:
        raise UsageError.unknown("engine", engine, ENGINES)
    peak = gpu.dense_flops(dtype) * tensor_parallel
    chips = _Chips(
        peak=peak,
        bandwidth=gpu.memory_bandwidth * tensor_parallel * BANDWIDTH_EFFICIENCY,
        # Nobody measured it: twice the rate of narrower numbers is taken to draw what the wider ones do.
        joules_per_flop=JOULES_PER_FLOP * gpu.dense_flops("bfloat16") * tensor_parallel / peak,
        engine=engine,
        dtype=dtype,
    )
    label = "vllm-eager" if engine == "vllm" and cuda_graphs is False else engine
    # What is compiled replays CUDA graphs.
    layer_s = 0.0 if compiled else HOST_S_PER_LAYER.get(label, 0.0)

    context = input_tokens + output_tokens // 2
    together = 1 if draft is None else draft.look_ahead + 1
    prefills = [chips.prefill(shape, input_tokens, batch)]
    steps = [chips.step(shape, context, batch, together)]
    host_s = [layer_s * shape.layers]
    rounds = float(output_tokens - 1)
    if draft is not None:
        prefills.append(chips.prefill(draft.shape, input_tokens, batch))
        steps += [chips.step(draft.shape, context, batch)] * draft.look_ahead
        host_s += [layer_s * draft.shape.layers] * draft.look_ahead
        rounds /= draft.tokens_per_round
    round_host_s = batch * REQUEST_STEP_S + (GRAPH_STEP_S if label == "vllm" else 0.0)
    gpu_s = sum(step.seconds for step in steps) + round_host_s

    prefill_s = sum(max(one.seconds, launch_s) for one, launch_s in zip(prefills, host_s, strict=False))
    # The host time of the requests is spent with the model's own step.
    held = [steps[0].seconds + round_host_s, *(step.seconds for step in steps[1:])]
    decode_s = rounds * sum(max(seconds, launch_s) for seconds, launch_s in zip(held, host_s, strict=True))
    base_w = gpu.tdp_w * BASE_SHARE_OF_TDP * tensor_parallel
    return Forecast(
        prefill_s=prefill_s,
        decode_s=decode_s,
        gpu_bound_s=sum(one.seconds for one in prefills) + rounds * gpu_s,
        prefill_energy_j=base_w * prefill_s + sum(one.energy_j for one in prefills),
        decode_energy_j=base_w * decode_s + rounds * sum(step.energy_j for step in steps),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """One forward pass, launching kernels left out; `energy_j` is what it adds to base power."""

    seconds: float
    energy_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chips:
    """The GPUs of one engine: FLOP/s at their dense peak, and bytes a second as decode reaches them."""

    peak: float
    bandwidth: float
    joules_per_flop: float
    engine: str
    dtype: str

    def prefill(self, shape: ModelShape, input_tokens: int, batch: int) -> _Pass:
        """All prompts of a batch."""
        flops, moved = shape.prefill_flops(input_tokens) * batch, shape.weight_bytes(self.dtype)
        seconds = max(flops / (self.peak * COMPUTE_EFFICIENCY[self.engine]), moved / self.bandwidth)
        return _Pass(seconds=seconds, energy_j=JOULES_PER_BYTE * moved + self.joules_per_flop * flops)

    def step(self, shape: ModelShape, context: int, batch: int, together: int = 1) -> _Pass:
        """A step over `together` tokens of each request: weights and cache are read once for all of them."""
        moved = shape.step_weight_bytes(batch * together, self.dtype)
        moved += batch * shape.kv_bytes(context, self.dtype) * CACHE_COPIES[self.engine]
        moved += batch * 2 * shape.state_bytes
        flops = batch * together * shape.decode_flops(context, absorbed=self.engine == "vllm")
        seconds = max(moved / self.bandwidth, flops / (self.peak * DECODE_COMPUTE_EFFICIENCY))
        return _Pass(seconds=seconds, energy_j=JOULES_PER_BYTE * moved + self.joules_per_flop * flops)
