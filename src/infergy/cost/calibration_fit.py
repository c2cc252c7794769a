"""The likeliest constants of the step-cost model, given the windows of a calibration and the priors.

    minimise  sum over windows  rho(log t model - log t) + rho(log E model - log E)
              + sum over constants  (log value / prior)^2 / sd^2

A call of a window is a step of a server of one GPU: its bytes and FLOPs are those of matmuls, or of attention, and its
kernels layers. Joules are those at the time that was measured: stretched at the power limit or not, that holds. rho is
Cauchy's, so that a window that no constant explains pulls none far. A constant on which no window bears keeps its
prior, and its prior's sd. The sds are those of the linearised model at the minimum (Gauss and Newton).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infergy.cost.constants import BY_NAME, LOADED_IDLE_SHARE, Constant
from infergy.cost.fit import Column
from infergy.cost.rates import NVLINK_4, columns_of, rates_of
from infergy.cost.step import StepSums, added_j, free_s, slowed_j, stretched_s
from infergy.cost.work import AttentionWork, ServerWork
from infergy.errors import MissingError
from infergy.hardware.gpus import Gpu
from infergy.records.calibration import ATTENTION, COPY, LAUNCH, PRODUCT, REDUCE, CalibrationWindow, Workload

LAUNCHES_A_LAYER = 12.0
"""Kernels of a layer: 10 to 14."""

TIME_SD: Mapping[str, float] = {PRODUCT: 0.08, ATTENTION: 0.12, LAUNCH: 0.25, REDUCE: 0.15, COPY: math.inf}
"""Standard deviation of a window's seconds, in logarithm, about the model with the right constants. Kernels of one kind
differ by some percent from size to size; that a layer is as twelve small additions is a convention. Our own estimate.
How fast copies are is no constant of the model."""

ENERGY_SD: Mapping[str, float] = {PRODUCT: 0.06, ATTENTION: 0.06, LAUNCH: 0.06, COPY: 0.06, REDUCE: math.inf}
"""The same of its joules; what a link takes is no constant of the model."""

PLAIN_SD: Mapping[str, float] = {"compute_efficiency": 0.15}
"""Of a prior that knows an engine's kernels better than the plain ones of a window: our own estimate."""

DOUBT = 3.0
"""By how much less a window counts that is flagged: its sd times this."""

SIGMAS_90 = 1.645
SHIFT = 1e-4
"""Of a constant's logarithm, for derivatives."""

CALL = StepSums(decodes=1, context=1.0, prefill_tokens=0, prefill_pairs=0.0, prefills=0, sampled=0, padded=1)
"""One call of a workload: one token at one position, in a CUDA graph."""

TILE = 128
FEWEST_TILES = 128
"""Of 128 × 128 results each: a product of fewer, all within L2, leaves multiprocessors of a large GPU idle (an H100 has
132). Its time tells of that, and would else pass for a slow launch."""

SMALL_SUM = 2**20
"""Bytes of a sum over GPUs below which its time is latency."""


def _of(kind: str, dtype: str = "") -> Callable[[CalibrationWindow], bool]:
    return lambda one: one.workload.kind == kind and dtype in ("", one.workload.dtype)


def _any_of(*kinds: str) -> Callable[[CalibrationWindow], bool]:
    return lambda one: one.workload.kind in kinds


BEARS: Mapping[str, Callable[[CalibrationWindow], bool]] = {
    "weight_efficiency": lambda one: _of(PRODUCT)(one) and one.workload.memory_bytes > 0,
    "cache_efficiency": _of(ATTENTION),
    "compute_efficiency": _of(PRODUCT),
    "layer_s": _any_of(LAUNCH, PRODUCT, ATTENTION),
    "busy_share": _any_of(LAUNCH, PRODUCT, ATTENTION, COPY),
    "byte_j": lambda one: _any_of(COPY, PRODUCT, ATTENTION)(one) and one.workload.memory_bytes > 0,
    "flop_share": _any_of(PRODUCT, ATTENTION),
    "cache_energy": _of(ATTENTION),
    "fp8_bytes": _of(PRODUCT, "fp8"),
    "fp8_flops": _of(PRODUCT, "fp8"),
    "fp8_byte_energy": _of(PRODUCT, "fp8"),
    "fp8_flop_energy": _of(PRODUCT, "fp8"),
    "reduce_s": _of(REDUCE),
}
"""The constants that a calibration finds, and which windows bear on each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A constant's likeliest `value`, and the standard deviation of its logarithm."""

    value: float
    sd: float


def is_used(one: CalibrationWindow) -> bool:
    """Whether a window enters the fit.

    Idle, kernels that no graph launched, copies within L2 and products too small for all multiprocessors are context.
    """
    work = one.workload
    if work.kind == PRODUCT and not work.memory_bytes:
        rows, _, columns = work.sizes
        return rows * columns >= FEWEST_TILES * TILE**2
    if work.kind == LAUNCH:
        return work.in_graph
    if work.kind == REDUCE:
        return work.sizes[0] <= SMALL_SUM
    return work.kind in (PRODUCT, ATTENTION) or (work.kind == COPY and work.memory_bytes > 0)


def fit(used: Sequence[CalibrationWindow], gpu: Gpu) -> Mapping[str, Found]:
    """The constants of `BEARS`, by name. Deterministic.

    Raises:
        MissingError: scipy is missing.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        hint = "The windows are kept: copy the file to a whole installation, and type infergy calibrate --show FILE"
        raise MissingError.package("the fit of constants", "scipy", "pip install scipy", hint) from error
    problem = _Problem(used, gpu)
    names = tuple(BEARS)
    priors = np.array([prior_sd(BY_NAME[name]) for name in names])

    def residuals(theta: Column) -> Column:
        """Of shape (k, windows' times and joules, and parameters)."""
        off = problem.off({name: np.exp(theta[:, [index]]) for index, name in enumerate(names)})
        robust = np.sign(off) * np.sqrt(np.log1p(off**2 / 2) * 2)
        return np.hstack([robust, theta / priors])

    def slopes(theta: Column) -> Column:
        shifted = residuals(theta + np.vstack([np.zeros(len(names)), SHIFT * np.eye(len(names))]))
        columns: Column = (shifted[1:] - shifted[0]).T / SHIFT
        return columns

    best = least_squares(
        lambda theta: residuals(theta[None, :])[0], np.zeros(len(names)), jac=slopes, method="trf", x_scale=priors
    )
    covariance = np.linalg.inv(best.jac.T @ best.jac)
    return {
        name: Found(value=BY_NAME[name].value * math.exp(theta), sd=min(prior, math.sqrt(variance)))
        for name, theta, variance, prior in zip(
            names, best.x.tolist(), np.diag(covariance).tolist(), priors.tolist(), strict=True
        )
    }


def prior_sd(constant: Constant) -> float:
    """Of a kind of GPU that was never measured: what all GPUs share is uncertain, and this one differs."""
    return math.hypot(PLAIN_SD.get(constant.name, constant.sd), constant.gpu_sd)


class _Problem:
    """Windows as columns, the all-reduces apart."""

    def __init__(self, used: Sequence[CalibrationWindow], gpu: Gpu) -> None:
        on_one = [window for window in used if window.workload.kind != REDUCE]
        reduced = [window for window in used if window.workload.kind == REDUCE]
        self.gpu = gpu
        self.works = [_work(window.workload) for window in on_one]
        self.call_s = np.array([window.call_s for window in on_one])
        self.call_j = np.array([(window.energy_j or 0.0) / max(1, window.calls) for window in on_one])
        self.time_sd = np.array([TIME_SD[window.workload.kind] * _doubt(window) for window in on_one])
        self.energy_sd = np.array([_energy_sd(window) * _doubt(window) for window in on_one])
        link = NVLINK_4 if gpu.link is None else gpu.link.bandwidth
        self.link_s = np.array([window.workload.link_bytes / link for window in reduced])
        self.reduce_s = np.array([window.call_s for window in reduced])
        self.reduce_sd = np.array([TIME_SD[REDUCE] * _doubt(window) for window in reduced])

    def off(self, factors: Mapping[str, Column]) -> Column:
        """By how many sds the model is off: seconds of each window, joules of each, seconds of each all-reduce.

        Args:
            factors: By which constants differ from their priors, of shape (k, 1); the result has shape (k, residuals).
        """
        variants = len(next(iter(factors.values())))
        values = {name: np.full((variants, 1), constant.value) for name, constant in BY_NAME.items()}
        values |= {name: BY_NAME[name].value * factor for name, factor in factors.items()}
        parts = []
        if self.works:
            # Bare kernels have no engine about them, and their operands came in fp8.
            bare = {name: np.zeros((variants, 1)) for name in ("step_s", "fp8_layer_s")}
            idle_w = LOADED_IDLE_SHARE * self.gpu.tdp_w
            servers = [rates_of(work, self.gpu, values | bare, idle_w=idle_w) for work in self.works]
            rates = columns_of(servers, np.arange(len(servers)))
            added, free = added_j(rates, CALL), free_s(rates, CALL)
            power = rates.power
            seconds = stretched_s(power, added, free, power.limit_w, np.exp, np.maximum)
            parts.append(np.log(seconds / self.call_s) / self.time_sd)
            worked = slowed_j(power, added, free, seconds)
            parts.append(np.log((worked + power.base_w * self.call_s) / self.call_j) / self.energy_sd)
        if len(self.reduce_s):
            parts.append(np.log((values["reduce_s"] + self.link_s) / self.reduce_s) / self.reduce_sd)
        return np.hstack(parts)


def _work(workload: Workload) -> ServerWork:
    """A call as the step `CALL` of a server of as many layers as it has launches."""
    is_attention = workload.kind == ATTENTION
    matmul = (0.0, 0.0) if is_attention else (workload.memory_bytes, workload.flops)
    read, pairs = (workload.memory_bytes, workload.flops) if is_attention else (0.0, 0.0)
    return ServerWork(
        dtype=workload.dtype,
        scaled_in_blocks=False,
        gpus=1,
        weight_bytes=matmul[0],
        token_flops=matmul[1],
        head_flops=0.0,
        exchange_bytes=0.0,
        vocabulary=0,
        layers=workload.launches / LAUNCHES_A_LAYER,
        state_layers=0.0,
        attention=AttentionWork(
            read_bytes=read,
            window_read_bytes=0.0,
            window_tokens=math.inf,
            write_bytes=0.0,
            state_bytes=0.0,
            pair_flops=pairs,
            window_pair_flops=0.0,
            prefill_ratio=1.0,
        ),
        experts=None,
    )


def _doubt(window: CalibrationWindow) -> float:
    return DOUBT if window.doubts else 1.0


def _energy_sd(window: CalibrationWindow) -> float:
    """Of the model, and of the counter's ticks."""
    sd = ENERGY_SD[window.workload.kind]
    if not window.energy_j or window.low_j is None or window.high_j is None:
        return sd
    return math.hypot(sd, (window.high_j - window.low_j) / 2 / SIGMAS_90 / window.energy_j)
