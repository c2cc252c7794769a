"""The likeliest constants of the physical model, given the windows of a calibration and the priors.

    minimise  Σ windows  ρ(log t model − log t) + ρ(log E model − log E)  +  Σ constants  (log value / prior)² / spread²

Times are those of `Physics.passes`, the stretch at the power limit included. Joules are base × t + e_byte × bytes +
e_FLOP × FLOPs at the time that was measured: stretched or not, that holds. ρ is Cauchy's, so that a window that no
constant explains pulls none far. A constant on which no window bears keeps its prior, and its prior's spread. The
spreads found are those of the linearised model at the minimum (Gauss and Newton).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infergy.energy.demand import Demand
from infergy.energy.physics import BY_NAME, Chips, Constant, Physics
from infergy.errors import MissingError
from infergy.hardware.gpus import Gpu
from infergy.records.calibration import ATTENTION, COPY, LAUNCH, PRODUCT, REDUCE, CalibrationWindow

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[np.float64]]

LAUNCHES_A_LAYER = 12.0
"""Kernels of a layer, as the prior of `layer_s` has it: 10 to 14."""

TIME_SPREAD: Mapping[str, float] = {PRODUCT: 0.08, ATTENTION: 0.12, LAUNCH: 0.25, REDUCE: 0.15, COPY: math.inf}
"""Standard deviation of a window's seconds, in logarithm, about the model with the right constants. Kernels of one kind
differ by some percent from size to size; that a layer is as twelve small additions is a convention. Our own estimate.
How fast copies are is no constant of the model."""

ENERGY_SPREAD: Mapping[str, float] = {PRODUCT: 0.06, ATTENTION: 0.06, LAUNCH: 0.06, COPY: 0.06, REDUCE: math.inf}
"""The same of its joules; what a link takes is no constant of the model."""

DOUBT = 3.0
"""By how much less a window counts that is flagged: its spread times this."""

SIGMAS_90 = 1.645

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
    "base_share": _any_of(LAUNCH, PRODUCT, ATTENTION, COPY),
    "byte_share": lambda one: _any_of(COPY, PRODUCT, ATTENTION)(one) and one.workload.memory_bytes > 0,
    "flop_share": _any_of(PRODUCT, ATTENTION),
    "fp8_bytes": _of(PRODUCT, "fp8"),
    "fp8_flops": _of(PRODUCT, "fp8"),
    "fp8_byte_energy": _of(PRODUCT, "fp8"),
    "fp8_flop_energy": _of(PRODUCT, "fp8"),
    "reduce_s": _of(REDUCE),
}
"""The constants that a calibration tells, and which windows bear on each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A constant's likeliest `value`, and the standard deviation of its logarithm."""

    value: float
    spread: float


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


def fit(used: Sequence[CalibrationWindow], chip: Gpu) -> Mapping[str, Found]:
    """The constants of `BEARS`, by name. Deterministic.

    Raises:
        MissingError: numpy or scipy is missing.
    """
    try:
        import numpy as np
        from scipy.optimize import least_squares
    except ImportError as error:
        raise MissingError(
            f"the constants need numpy and scipy ({error}): the windows are kept; copy the file to where infergy is "
            "installed whole, and type infergy calibrate --show FILE"
        ) from error
    problem = _Problem.of(used, chip)
    names = tuple(BEARS)
    priors = np.array([prior_spread(BY_NAME[name]) for name in names])

    def residuals(theta: Column) -> Column:
        off = problem.off(dict(zip(names, np.exp(theta), strict=True)))
        robust = np.sign(off) * np.sqrt(np.log1p(off**2 / 2) * 2)
        return np.concatenate([robust, theta / priors])

    found = least_squares(residuals, np.zeros(len(names)), method="trf", x_scale=priors)
    covariance = np.linalg.inv(found.jac.T @ found.jac)
    return {
        name: Found(value=BY_NAME[name].value * math.exp(theta), spread=min(prior, math.sqrt(variance)))
        for name, theta, variance, prior in zip(
            names, found.x.tolist(), np.diag(covariance).tolist(), priors.tolist(), strict=True
        )
    }


def prior_spread(constant: Constant) -> float:
    """Of a GPU that nobody measured: what all GPUs share is not certain, and this one differs."""
    return math.hypot(constant.spread, constant.differs)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Windows as columns, the sums over GPUs apart."""

    demand: Demand
    chips: Chips
    call_s: Column
    call_j: Column
    time_spread: Column
    energy_spread: Column
    link_s: Column
    sum_s: Column
    sum_spread: Column

    @classmethod
    def of(cls, used: Sequence[CalibrationWindow], chip: Gpu) -> _Problem:
        import numpy as np

        one_gpu = [one for one in used if one.workload.kind != REDUCE]
        sums = [one for one in used if one.workload.kind == REDUCE]
        link = Chips.of([chip], ["bfloat16"]).link[0]

        def column(values: Sequence[float]) -> Column:
            return np.array(values, dtype=float)

        return cls(
            demand=_demand(one_gpu),
            chips=Chips.of([chip] * len(one_gpu), [one.workload.dtype for one in one_gpu]),
            call_s=column([one.call_s for one in one_gpu]),
            call_j=column([(one.energy_j or 0.0) / max(1, one.calls) for one in one_gpu]),
            time_spread=column([TIME_SPREAD[one.workload.kind] * _doubt(one) for one in one_gpu]),
            energy_spread=column([_energy_spread(one) * _doubt(one) for one in one_gpu]),
            link_s=column([one.workload.link_bytes / link for one in sums]),
            sum_s=column([one.call_s for one in sums]),
            sum_spread=column([TIME_SPREAD[REDUCE] * _doubt(one) for one in sums]),
        )

    def off(self, factors: Mapping[str, float]) -> Column:
        """By how many spreads the model is off: seconds of each window, joules of each, seconds of each sum."""
        import numpy as np

        # Bare kernels have no engine about them, and their operands came in fp8.
        bare = {"step_s": 0.0, "fp8_layer_s": 0.0}
        values = {name: BY_NAME[name].value * float(factor) for name, factor in factors.items()}
        physics = Physics(values=values | bare)
        chips, d = self.chips, self.demand
        seconds = physics.passes(d, chips).seconds
        is_fp8 = d.is_fp8 > 0
        byte_j = values["byte_share"] * chips.tdp_w / (0.8 * chips.bandwidth)
        flop_j = values["flop_share"] * chips.tdp_w / (0.6 * chips.base_peak)
        flops = d.linear_flops * np.where(is_fp8, values["fp8_flops"] * values["fp8_flop_energy"], 1.0)
        flops = flops + d.attention_flops
        moved = d.weight_bytes * np.where(is_fp8, values["fp8_byte_energy"], 1.0) + d.cache_bytes
        energy_j = values["base_share"] * chips.tdp_w * self.call_s + byte_j * moved + flop_j * flops
        off_s = np.log(seconds / self.call_s) / self.time_spread
        off_j = np.log(energy_j / self.call_j) / self.energy_spread
        off_sums = np.log((values["reduce_s"] + self.link_s) / self.sum_s) / self.sum_spread
        return np.concatenate([off_s, off_j, off_sums])


def _demand(windows: Sequence[CalibrationWindow]) -> Demand:
    """A call of each window as a forward pass of as many layers as it has launches."""
    import numpy as np

    def column(of: Callable[[CalibrationWindow], float]) -> Column:
        return np.array([of(one) for one in windows], dtype=float)

    none, one_each = np.zeros(len(windows)), np.ones(len(windows))
    return Demand(
        sequences=none,
        weight_bytes=column(lambda one: 0.0 if one.workload.kind == ATTENTION else one.workload.memory_bytes),
        expert_bytes=none,
        cache_bytes=column(lambda one: one.workload.memory_bytes if one.workload.kind == ATTENTION else 0.0),
        linear_flops=column(lambda one: 0.0 if one.workload.kind == ATTENTION else one.workload.flops),
        attention_flops=column(lambda one: one.workload.flops if one.workload.kind == ATTENTION else 0.0),
        expert_row_flops=none,
        layers=column(lambda one: one.workload.launches / LAUNCHES_A_LAYER),
        expert_layers=none,
        state_layers=none,
        expert_size_bytes=one_each,
        experts_visited=one_each,
        gpus=one_each,
        reduced_bytes=none,
        is_fp8=column(lambda one: float(one.workload.dtype == "fp8")),
        is_block_scaled=none,
        is_mxfp4=none,
        is_dispatched=none,
        is_replicated=none,
    )


def _doubt(one: CalibrationWindow) -> float:
    return DOUBT if one.doubts else 1.0


def _energy_spread(one: CalibrationWindow) -> float:
    """Of the model, and of the counter's ticks."""
    spread = ENERGY_SPREAD[one.workload.kind]
    if not one.energy_j or one.low_j is None or one.high_j is None:
        return spread
    return math.hypot(spread, (one.high_j - one.low_j) / 2 / SIGMAS_90 / one.energy_j)
