"""The constants of the step-cost model: names, priors, and where these come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]

KERNELS = "power and time of H200 and B200 kernels in AIConfigurator's tables (vLLM 0.22; Apache-2.0)"
TILES = "half of the 16 to 128 rows of a tile of vLLM's grouped matmuls"
MEMORY = "1.05e-10 to 1.35e-10 on H100, H200 and B200 alike, whatever their TDP: our rows, and ML.ENERGY's"
VOLTAGE = "energy of a switch grows with the voltage squared, which falls with the clock; H200 replays (docs/replay.md)"
OURS = "our own estimate; its sd says how little it is trusted"
ONLINE = "latencies of vLLM 0.25 under arrivals on H200s (docs/replay.md)"
ONE_REPLAY = "TPOT of one replay of Llama-3.1-8B by vLLM 0.25 on an H200 (docs/replay.md)"

SORTS = "radix sort of 32-bit keys with their places on H100 and B200: 3 to 8e9 entries/s"

ENERGY_ERROR, TIME_ERROR = 0.012, 0.012
"""Standard deviation of the logarithm of what the model leaves of a measured row, before it is known."""
UNIT_ENERGY_SD, UNIT_TIME_SD = 0.02, 0.015
"""By how much single GPUs of a kind, with their hosts, differ: H100s of four hosts (docs/measurements.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One constant of the model.

    Attributes:
        value: Median of the prior.
        sd: Standard deviation of the prior's logarithm.
        gpu_sd: Standard deviation of the logarithm of the factor by which a kind of GPU differs; 0: none does.
        host_sd: The same of a single host.
        meaning: What it is, with its unit.
        source: Where the prior comes from.
    """

    name: str
    value: float
    sd: float
    meaning: str
    source: str = OURS
    gpu_sd: float = 0.0
    host_sd: float = 0.0


def _constant(
    name: str, value: float, sd: float, meaning: str, source: str = OURS, gpu_sd: float = 0.0, host_sd: float = 0.0
) -> Constant:
    return Constant(name=name, value=value, sd=sd, meaning=meaning, source=source, gpu_sd=gpu_sd, host_sd=host_sd)


CONSTANTS: tuple[Constant, ...] = (
    _constant("weight_efficiency", 0.8, 0.1, "share of the bandwidth at which weights are read", KERNELS, 0.1),
    _constant("cache_efficiency", 0.8, 0.2, "share of the bandwidth at which the KV cache is read", KERNELS, 0.1),
    _constant("compute_efficiency", 0.72, 0.01, "share of the dense peak of matmuls, unthrottled", ONLINE, 0.02),
    _constant("attention_efficiency", 0.55, 0.3, "share of bfloat16's dense peak that attention reaches", OURS, 0.1),
    _constant("layer_s", 15e-6, 0.5, "s a layer beside bytes and FLOPs, inside a CUDA graph", OURS, 0.15),
    _constant("eager_layer_s", 420e-6, 0.35, "s of host time a layer without a CUDA graph", ONLINE, 0.2),
    _constant("piecewise_layer_s", 250e-6, 0.35, "s of host time a layer, piecewise CUDA graphs", ONLINE, 0.2),
    _constant("mixed_layer_s", 190e-6, 0.05, "s more of host time a layer where prompts join decodes", ONLINE),
    _constant("expert_layer_s", 40e-6, 0.6, "s more for a layer with experts: routing, sorting, grouped matmuls"),
    _constant("state_layer_s", 130e-6, 0.6, "s more for a layer with a Mamba-2 state"),
    _constant("reduce_s", 10e-6, 0.5, "s of an all-reduce among two GPUs", "one-shot all-reduce: 8 to 12 us", 0.1),
    _constant("reduce_growth", 0.5, 0.5, "exponent of that in GPUs / 2"),
    _constant("sequence_s", 10e-6, 0.5, "s of output for a sequence in a step", OURS, 0.1),
    _constant("logit_s", 5e-11, 0.7, "s of sampling for each entry of the vocabulary and sequence"),
    _constant("sort_s", 3e-10, 0.5, "s of top-p sampling for each entry of the vocabulary and sequence", SORTS),
    _constant("step_s", 0.6e-3, 0.5, "s of a step beside its layers", "schedulers of vLLM: 0.2 to 1 ms", 0.2),
    _constant("server_step_s", 0.35e-3, 0.05, "s more of a step whose tokens an API server hands out", ONLINE),
    _constant("intake_s", 12e-3, 0.3, "s from a request's arrival until the scheduler can see it", ONLINE),
    _constant("intake_gap_s", 0.3e-3, 0.3, "s between two requests that arrive at once", ONLINE),
    _constant("prefill_s", 0.2e-3, 0.6, "s for each prompt, or chunk of one, in a step", OURS, 0.1),
    _constant("expert_read", 1.5, 0.4, "factor on the time of reading experts of 30 MB over dense weights"),
    _constant("expert_size", 0.25, 0.7, "exponent of that factor in 30 MB / size"),
    _constant("expert_rows", 16.0, 0.4, "rows of a tile of grouped matmuls of few tokens, a quarter of others'", TILES),
    _constant("padded_rows", 128.0, 0.4, "rows to which fp8 experts scaled in blocks are padded, all of them", TILES),
    _constant("expert_flops", 3.0, 0.5, "factor on the time of grouped matmuls over their FLOPs"),
    _constant("expert_energy", 1.5, 0.4, "energy of a FLOP of grouped matmuls over one of plain ones"),
    _constant("imbalance", 0.5, 0.5, "sd of visited experts over GPUs by which the fullest one lags"),
    _constant("dispatch_s", 15e-6, 0.7, "s of sending tokens to their experts' GPU, a layer and two GPUs"),
    _constant("fp8_bytes", 1.2, 0.3, "factor on the time of reading fp8 weights over their bytes"),
    _constant("fp8_flops", 1.2, 0.3, "factor on the time of fp8 matmuls over their FLOPs"),
    _constant("fp8_layer_s", 10e-6, 0.7, "s more for a layer in fp8: activations are quantised"),
    _constant("fp8_eager", 1.8, 0.2, "factor on eager_layer_s in fp8: the host launches more kernels", ONE_REPLAY),
    _constant("block_flops", 1.3, 0.4, "factor on fp8 matmuls scaled in blocks over other fp8"),
    _constant("mxfp4_bytes", 1.2, 0.3, "factor on the time of reading mxfp4 over its bytes"),
    _constant("mxfp4_flops", 1.2, 0.4, "factor on matmuls of mxfp4: weights are widened"),
    _constant("mxfp4_layer_s", 20e-6, 0.7, "s more for a layer in mxfp4"),
    _constant("busy_share", 0.15, 0.6, "power of a busy GPU over an idle one, without its work, over TDP", OURS, 0.3),
    _constant("byte_j", 1.1e-10, 0.3, "J of reading a byte from memory", MEMORY, 0.15),
    _constant("flop_share", 0.8, 0.3, "power of bfloat16 matmuls at 0.6 of the peak, over TDP", KERNELS, 0.1),
    _constant("parallel_share", 0.1, 0.5, "power of a GPU that shares a model, beside that of one alone, over TDP"),
    _constant("attention_energy", 1.05, 0.2, "energy of an attention FLOP over one of a matmul"),
    _constant(
        "slowing", 1.5, 0.03, "exponent by which work takes less energy as the power limit slows its clocks", VOLTAGE
    ),
    _constant("cache_energy", 1.2, 0.3, "energy of a byte of the KV cache over one of the weights"),
    _constant("fp8_byte_energy", 1.1, 0.25, "energy of a byte in fp8 over one in bfloat16"),
    _constant("fp8_flop_energy", 0.6, 0.25, "energy of a FLOP in fp8 over one in bfloat16", KERNELS),
    _constant("block_byte_energy", 1.3, 0.3, "energy of a byte scaled in blocks over other fp8"),
    _constant("limit_share", 0.994, 0.002, "power at which a busy GPU is held, over its limit", KERNELS),
    _constant("limiter_s", 0.25, 0.01, "s over which the power limiter averages", ONLINE),
    _constant("call_s", 2.5e-3, 0.5, "s of the front end between two batches handed over at once"),
)
"""Priors of an engine that replays CUDA graphs: vLLM."""

TRANSFORMERS = (
    _constant("eager_layer_s", 600e-6, 0.5, "s of host time a layer without a CUDA graph", "our rows", 0.15, 0.25),
    _constant(
        "expert_traffic",
        3.0,
        0.2,
        "bytes that a decoded token moves over those of its experts",
        "batched experts of transformers: the matrices of a token's experts are gathered (read, write), then read",
    ),
    _constant(
        "cache_traffic",
        3.0,
        0.5,
        "bytes that a decode step moves over those of the KV cache",
        "torch.cat in DynamicCache.update: read, write, read",
    ),
    _constant("compute_efficiency", 0.65, 0.15, "share of the dense peak of matmuls, unthrottled", KERNELS, 0.1),
    _constant(
        "masked_attention",
        5.5,
        0.2,
        "factor on the positions that attention reads where padding needs a mask",
        "four H100 rows of tasks, two H200 replays: with a mask keys and values are copied to all heads (repeat_kv)",
    ),
)
"""Where transformers differs."""

BY_NAME: Mapping[str, Constant] = {constant.name: constant for constant in CONSTANTS}


def constants_of(engine: str) -> Mapping[str, Constant]:
    """The constants of an engine with their priors, by name."""
    if engine != "transformers":
        return BY_NAME
    return {**BY_NAME, **{constant.name: constant for constant in TRANSFORMERS}}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """What measured rows say of an engine's constants.

    Attributes:
        engine: Name of the engine.
        names: Of the common logarithms, then ``constant@gpu`` for the differences of kinds of GPU.
        mean: Their values; `covariance` the same.
        energy_sd: Standard deviation of the logarithm of what is left of a row's energy; `time_sd` of its seconds.
        unit_energy_sd: By how much single GPUs differ; `unit_time_sd` the same.
        rows: How many rows were fitted, by kind of GPU.
        is_of_one_host: Whether the last rows were of one host, which is then the one that is asked for.
    """

    engine: str
    names: tuple[str, ...]
    mean: Column
    covariance: Column
    energy_sd: float
    time_sd: float
    unit_energy_sd: float = UNIT_ENERGY_SD
    unit_time_sd: float = UNIT_TIME_SD
    rows: Mapping[str, int] = field(default_factory=dict)
    is_of_one_host: bool = False

    def logs(self, gpu: str) -> tuple[tuple[str, ...], Column, Column]:
        """Names, means and covariance of the logarithms of all constants' factors over their priors, on a kind of GPU.

        A kind that no row is of has the common part, and the prior's variance of a difference.
        """
        constants = constants_of(self.engine)
        index_of = {name: index for index, name in enumerate(self.names)}
        select = np.zeros((len(constants), len(self.names)))
        extra = np.zeros(len(constants))
        for row, (name, constant) in enumerate(constants.items()):
            if name in index_of:
                select[row, index_of[name]] = 1.0
            else:
                extra[row] += constant.sd**2
            if f"{name}@{gpu}" in index_of:
                select[row, index_of[f"{name}@{gpu}"]] = 1.0
            else:
                extra[row] += constant.gpu_sd**2
            extra[row] += 0.0 if self.is_of_one_host else constant.host_sd**2
        return tuple(constants), select @ self.mean, select @ self.covariance @ select.T + np.diag(extra)

    def constants(self, gpu: str) -> dict[str, float]:
        """The likeliest value of each constant on a kind of GPU."""
        names, logs, _ = self.logs(gpu)
        priors = constants_of(self.engine)
        return {name: priors[name].value * float(np.exp(log)) for name, log in zip(names, logs, strict=True)}


def prior_fit(engine: str) -> Fit:
    """The fit without a row: priors alone."""
    constants = constants_of(engine)
    return Fit(
        engine=engine,
        names=tuple(constants),
        mean=np.zeros(len(constants)),
        covariance=np.diag([constant.sd**2 for constant in constants.values()]),
        energy_sd=ENERGY_ERROR,
        time_sd=TIME_ERROR,
    )


@cache
def published_fit(engine: str) -> Fit:
    """What rows that others published say of the constants, before a row of ours: of vLLM; priors alone of others."""
    path = resources.files("infergy") / "data" / "published_fit.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    if engine != stored["engine"]:
        return prior_fit(engine)
    return Fit(
        engine=engine,
        names=tuple(stored["names"]),
        mean=np.array(stored["mean"]),
        covariance=np.array(stored["covariance"]),
        energy_sd=stored["energy_sd"],
        time_sd=stored["time_sd"],
    )
