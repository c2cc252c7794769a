"""The likeliest constants of the step-cost model, given the windows of a calibration and the priors.

    minimise  sum over windows  rho(log t model - log t) + rho(log E model - log E)
              + sum over constants  (log value / prior)^2 / sd^2

A call of a window is a step of a server of one GPU: its bytes and FLOPs are those of matmuls, or of attention, and its
kernels layers. Energy is that at the measured time: stretched at the power limit or not, that agrees. rho is Cauchy's,
so that a window that no constant explains pulls none far. A constant on which no window bears keeps its prior and its
prior's sd. The sds are those of the linearised model at the minimum (Gauss and Newton).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from infergy.catalog.gpus import IDLE_SHARE, Gpu
from infergy.cost.constants import BY_NAME, Column, Constant
from infergy.cost.rates import NVLINK_4, AttentionWork, Rates, ServerWork, rates_of
from infergy.cost.step import StepSums, added_j, free_s, slowed_j, stretched_s
from infergy.records.calibration import ATTENTION, COPY, LAUNCH, PRODUCT, REDUCE, CalibrationWindow, Workload

LAUNCHES_A_LAYER = 12.0
"""Kernels of a layer: 10 to 14."""
TIME_SD: Mapping[str, float] = {PRODUCT: 0.08, ATTENTION: 0.12, LAUNCH: 0.25, REDUCE: 0.15, COPY: math.inf}
"""Standard deviation of a window's seconds, in logarithm, about the model with the right constants. Kernels of one kind
differ by some percent from size to size; that a layer is as twelve small additions is a convention. Our own estimate.
How fast copies are is no constant of the model."""
ENERGY_SD: Mapping[str, float] = {PRODUCT: 0.06, ATTENTION: 0.06, LAUNCH: 0.06, COPY: 0.06, REDUCE: math.inf}
"""The same of its energy; what a link takes is no constant of the model."""
PLAIN_SD: Mapping[str, float] = {"compute_efficiency": 0.15}
"""Of a prior that knows an engine's kernels better than the plain ones of a window: our own estimate."""
DOUBT = 3.0
"""By how much less a window counts that is flagged: its sd times this."""
Z90 = 1.645
SHIFT = 1e-4
"""Of a constant's logarithm, for derivatives."""
CALL = StepSums(decodes=1, context=1.0, prefill_tokens=0, prefill_pairs=0.0, prefills=0, sampled=0, padded=1)
"""One call of a workload: one token at one position, in a CUDA graph."""
TILE, FEWEST_TILES = 128, 128
"""128 × 128 results each: a matmul of fewer, all within L2, leaves multiprocessors of a large GPU idle (an H100 has
132), and its time would pass for a slow launch."""
NO_WINDOW = 1e12
"""Tokens; more than any context."""
SMALL_SUM = 2**20
"""Bytes of an all-reduce below which its time is latency."""
UNITS: Mapping[str, str] = {
    "weight_efficiency": "of bandwidth",
    "cache_efficiency": "of bandwidth",
    "compute_efficiency": "of peak",
    "layer_s": "s",
    "busy_share": "of TDP",
    "byte_j": "J",
    "flop_share": "of TDP",
    "reduce_s": "s",
}


Residuals = Callable[[Mapping[str, Column]], Column]


def _of(*kinds: str, dtype: str = "", reads: bool = False) -> Callable[[CalibrationWindow], bool]:
    """Whether a window is of one of these kinds, this dtype, and moves bytes past L2."""
    return lambda window: (
        window.workload.kind in kinds
        and dtype in ("", window.workload.dtype)
        and (not reads or window.workload.memory_bytes > 0)
    )


BEARS: Mapping[str, Callable[[CalibrationWindow], bool]] = {
    "weight_efficiency": _of(PRODUCT, reads=True),
    "cache_efficiency": _of(ATTENTION),
    "compute_efficiency": _of(PRODUCT),
    "layer_s": _of(LAUNCH, PRODUCT, ATTENTION),
    "busy_share": _of(LAUNCH, PRODUCT, ATTENTION, COPY),
    "byte_j": _of(COPY, PRODUCT, ATTENTION, reads=True),
    "flop_share": _of(PRODUCT, ATTENTION),
    "cache_energy": _of(ATTENTION),
    "fp8_bytes": _of(PRODUCT, dtype="fp8"),
    "fp8_flops": _of(PRODUCT, dtype="fp8"),
    "fp8_byte_energy": _of(PRODUCT, dtype="fp8"),
    "fp8_flop_energy": _of(PRODUCT, dtype="fp8"),
    "reduce_s": _of(REDUCE),
}
"""The constants that a calibration estimates, and which windows bear on each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """One constant.

    Attributes:
        name: As in `infergy.cost.constants.CONSTANTS`.
        unit: ``s``, ``J``, ``of TDP``, ``of bandwidth``, ``of peak``; ``ratio`` otherwise.
        prior: Its value from the datasheet alone.
        prior_sd: Standard deviation of the prior's logarithm, for a kind of GPU without measurements.
        value: Posterior median, given the windows and the prior.
        low: Lower end of its 90 % interval; `high` the upper. How engines' kernels differ is not in it.
        sd: Standard deviation of its logarithm, from the same fit.
        windows: How many bear on it; 0 leaves the prior.
    """

    name: str
    unit: str
    prior: float
    prior_sd: float
    value: float
    low: float
    high: float
    sd: float
    windows: int


def is_used(window: CalibrationWindow) -> bool:
    """Whether a window enters the fit.

    Idle, kernels without a graph, copies within L2 and matmuls too small for all multiprocessors do not.
    """
    work = window.workload
    if work.kind == PRODUCT and not work.memory_bytes:
        return work.sizes[0] * work.sizes[2] >= FEWEST_TILES * TILE**2
    if work.kind == LAUNCH:
        return work.in_graph
    if work.kind == REDUCE:
        return work.sizes[0] <= SMALL_SUM
    return work.kind in (PRODUCT, ATTENTION) or (work.kind == COPY and work.memory_bytes > 0)


def fit(used: Sequence[CalibrationWindow], gpu: Gpu) -> tuple[Calibrated, ...]:
    """The constants of `BEARS`. Deterministic."""
    from scipy.optimize import least_squares

    constants = [BY_NAME[name] for name in BEARS]
    priors = np.array([_prior_sd(constant) for constant in constants])
    off = _residuals_of(used, gpu)

    def residuals(logs: Column) -> Column:
        """Of shape (k, windows' times and energies, and parameters)."""
        away = off({name: np.exp(logs[:, [index]]) for index, name in enumerate(BEARS)})
        robust = np.sign(away) * np.sqrt(np.log1p(away**2 / 2) * 2)
        return np.hstack([robust, logs / priors])

    def slopes(logs: Column) -> Column:
        shifted = residuals(logs + np.vstack([np.zeros(len(priors)), SHIFT * np.eye(len(priors))]))
        columns: Column = (shifted[1:] - shifted[0]).T / SHIFT
        return columns

    best = least_squares(
        lambda logs: residuals(logs[None, :])[0], np.zeros(len(priors)), jac=slopes, method="trf", x_scale=priors
    )
    sds = np.minimum(priors, np.sqrt(np.diag(np.linalg.inv(best.jac.T @ best.jac))))
    return tuple(
        Calibrated(
            name=constant.name,
            unit=UNITS.get(constant.name, "ratio"),
            prior=constant.value,
            prior_sd=_prior_sd(constant),
            value=constant.value * math.exp(log),
            low=constant.value * math.exp(log - Z90 * sd),
            high=constant.value * math.exp(log + Z90 * sd),
            sd=sd,
            windows=sum(map(BEARS[constant.name], used)),
        )
        for constant, log, sd in zip(constants, best.x.tolist(), sds.tolist(), strict=True)
    )


def _prior_sd(constant: Constant) -> float:
    """Of a kind of GPU that was never measured: what all GPUs share is uncertain, and this one differs."""
    return math.hypot(PLAIN_SD.get(constant.name, constant.sd), constant.gpu_sd)


def _residuals_of(used: Sequence[CalibrationWindow], gpu: Gpu) -> Residuals:
    """By how many sds the model is off, given factors on constants: all-reduces apart, on seconds alone.

    Factors have shape (k, 1), the result (k, seconds and energy of each window, seconds of each all-reduce).
    """
    alone = [window for window in used if window.workload.kind != REDUCE]
    reduced = [window for window in used if window.workload.kind == REDUCE]
    parts = [of(part, gpu) for of, part in ((_kernel_residuals, alone), (_reduce_residuals, reduced)) if part]

    def off(factors: Mapping[str, Column]) -> Column:
        plain = np.ones_like(next(iter(factors.values())))
        values = {name: constant.value * factors.get(name, plain) for name, constant in BY_NAME.items()}
        return np.hstack([part(values) for part in parts])

    return off


def _kernel_residuals(windows: Sequence[CalibrationWindow], gpu: Gpu) -> Residuals:
    works = [_work(window.workload) for window in windows]
    call_s = np.array([window.call_s for window in windows])
    call_j = np.array([(window.energy_j or 0.0) / max(1, window.calls) for window in windows])
    time_sd, energy_sd = (np.array([sd(window) for window in windows]) for sd in (_time_sd, _energy_sd))

    def off(values: Mapping[str, Column]) -> Column:
        # Bare kernels have no engine about them, and their operands came in fp8.
        bare = {**values, **dict.fromkeys(("step_s", "fp8_layer_s"), 0.0 * values["step_s"])}
        idle_w = IDLE_SHARE * gpu.tdp_w
        rates = columns_of([rates_of(work, gpu, bare, idle_w=idle_w) for work in works], np.arange(len(works)))
        added, free, power = added_j(rates, CALL), free_s(rates, CALL), rates.power
        seconds = stretched_s(power, added, free, power.limit_w, np.exp, np.maximum)
        worked = slowed_j(power, added, free, seconds)
        energy_off = np.log((worked + power.base_w * call_s) / call_j) / energy_sd
        return np.hstack([np.log(seconds / call_s) / time_sd, energy_off])

    return off


def _reduce_residuals(windows: Sequence[CalibrationWindow], gpu: Gpu) -> Residuals:
    link = NVLINK_4 if gpu.link is None else gpu.link.bandwidth
    link_s, call_s, sd = np.array([(w.workload.link_bytes / link, w.call_s, _time_sd(w)) for w in windows]).T
    return lambda values: np.log((values["reduce_s"] + link_s) / call_s) / sd


def _work(workload: Workload) -> ServerWork:
    """A call as the step `CALL` of a server of as many layers as it has launches."""
    moved, flops, is_attention = workload.memory_bytes, workload.flops, workload.kind == ATTENTION
    return ServerWork(
        dtype=workload.dtype,
        weight_bytes=0.0 if is_attention else moved,
        token_flops=0.0 if is_attention else flops,
        layers=workload.launches / LAUNCHES_A_LAYER,
        attention=AttentionWork(read_bytes=moved, pair_flops=flops) if is_attention else AttentionWork(),
    )


def _time_sd(window: CalibrationWindow) -> float:
    return TIME_SD[window.workload.kind] * (DOUBT if window.doubts else 1.0)


def _energy_sd(window: CalibrationWindow) -> float:
    """Of the model, and of the counter's ticks."""
    sd = ENERGY_SD[window.workload.kind]
    if window.energy_j and window.low_j is not None and window.high_j is not None:
        sd = math.hypot(sd, (window.high_j - window.low_j) / 2 / Z90 / window.energy_j)
    return sd * (DOUBT if window.doubts else 1.0)


def columns_of(rates: Sequence[Rates], rows: np.ndarray[Any, np.dtype[np.int64]]) -> Rates:
    """Rates of several servers as columns of shape (k, rows).

    Args:
        rates: Of each server, from constants of one shape, (k, 1).
        rows: For each row the index of its server.
    """
    columns: Rates = _joined(rates, rows)
    return columns


def _joined(parts: Sequence[Any], rows: Any) -> Any:
    if is_dataclass(parts[0]):
        kind: Any = type(parts[0])
        return kind(**{f.name: _joined([getattr(part, f.name) for part in parts], rows) for f in fields(kind)})
    if all(part is None for part in parts):
        return None
    # No window beside those of other servers: a finite one, since 0 decodes x infinity is no number.
    values = [np.atleast_2d(NO_WINDOW if part is None else part) for part in parts]
    return np.hstack(np.broadcast_arrays(*values))[:, rows]
