"""Windows of plain kernels on a GPU, and the constants of the step-cost model that follow from them.

The rows are of `infergy calibrate`, a former command: copies, matmuls, attention and chains of small kernels, whose
bytes and FLOPs are known exactly (`benchmarks/rows/*-calibration*.jsonl`). `benchmarks/quick_alone.py` compares what
they predict with what a few cells of a model predict.

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
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from infergy.catalog.gpus import IDLE_SHARE, Gpu, find_gpu_by_driver_name, get_gpu
from infergy.cost.constants import BY_NAME, Column, Constant, Fit, constants_of
from infergy.cost.rates import NVLINK_4, rates_of
from infergy.cost.step import StepSums, added_j, free_s, slowed_j, stretched_s
from infergy.cost.work import AttentionWork, ServerWork
from infergy.files import parse_json
from infergy.records.codec import from_json
from infergy.records.environment import Environment, GpuState, processes_by_gpu, slowdowns_by_gpu
from scoreboard.steps import columns_of

IDLE, COPY, PRODUCT, ATTENTION, LAUNCH, REDUCE = KINDS = ("idle", "copy", "product", "attention", "launch", "reduce")

WORDS_OF_LAUNCH = {"in a CUDA graph": True, "one by one": False}

FEWEST_S = 2.5
"""Below, the edges of a window weigh: an H200's counter ticks each 0.1 s."""

WIDEST = 0.1
"""Relative uncertainty of a window's joules, from the timestamps of its ticks, above which its weight is reduced."""
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
SMALL_SUM = 2**20
"""Bytes of an all-reduce below which its time is latency."""
ENGINES_DIFFER = 0.1
"""Standard deviation of the logarithm of an engine's constant over that of plain kernels: our own estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Work that is repeated through a window; counts are of one call.

    Attributes:
        name: What it is called in the file; a window of that name is measured once.
        kind: ``idle``, ``copy``, ``product``, ``attention``, ``launch`` or ``reduce``.
        sizes: Of a copy and a sum: bytes. Of a product: rows, and rows and columns of the weights. Of attention:
            sequences, tokens of context, heads, heads of the cache, width of a head. Of a launch: numbers of a kernel.
        dtype: Of the operands: ``bfloat16`` or ``fp8``.
        memory_bytes: Moved to and from the GPU's memory; 0 for what stays in its L2 cache.
        flops: Floating-point operations.
        launches: Kernels.
        copies: Operands are cycled over, so many of them that none is still in L2 when its turn comes.
        in_graph: Whether kernels are to be launched by a CUDA graph.
        gpus: GPUs that take part.
        link_bytes: What each GPU sends, and gets.
    """

    name: str
    kind: str
    sizes: tuple[int, ...] = ()
    dtype: str = "bfloat16"
    memory_bytes: float = 0.0
    flops: float = 0.0
    launches: float = 1.0
    copies: int = 1
    in_graph: bool = True
    gpus: int = 1
    link_bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationWindow:
    """One window, or why there is none.

    Attributes:
        calls: How often the workload ran; 0 for an idle GPU.
        duration_s: From the first call to when the last one was done.
        energy_j: Energy of all GPUs in that time, idle power included; None where `reason` says why.
        low_j: What it was at least, and `high_j` at most, by the counter's ticks.
        energy_by_gpu_j: By UUID.
        before: State of each GPU before the work; `during` in the midst of it; `after` it.
        how: Which kernels did the work, and whether a CUDA graph launched them, in words.
        in_graph: Whether a CUDA graph launched them; None where nothing was launched, or only `how` of an old row says.
        reason: Why there is no window; None if there is one.
    """

    workload: Workload
    measured_utc: str
    simulated: bool
    calls: int
    duration_s: float
    energy_j: float | None
    low_j: float | None
    high_j: float | None
    environment: Environment
    energy_by_gpu_j: Mapping[str, float] = field(default_factory=dict)
    before: tuple[GpuState, ...] = ()
    during: tuple[GpuState, ...] = ()
    after: tuple[GpuState, ...] = ()
    how: str | None = None
    in_graph: bool | None = None
    reason: str | None = None
    schema: str = "infergy.calibration-window/1"

    @property
    def is_whole(self) -> bool:
        """Whether there is a window."""
        return self.reason is None and self.energy_j is not None

    @property
    def call_s(self) -> float:
        """Seconds of a call."""
        return self.duration_s / max(1, self.calls)

    @property
    def power_w(self) -> float | None:
        """Mean watts of all GPUs; None without joules."""
        return None if self.energy_j is None or self.duration_s <= 0 else self.energy_j / self.duration_s

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why to trust it less, in words; a power cap is no reason, since throttling is part of the model."""
        found = []
        states = (*self.before, *self.during, *self.after)
        harmful = sorted({reason for reasons in slowdowns_by_gpu(states).values() for reason in reasons})
        if harmful:
            found.append(f"clocks were lowered ({', '.join(harmful)})")
        # A sum over GPUs runs in processes of its own, beside that which measures.
        most = max(processes_by_gpu(states).values(), default=0)
        if most > (1 if self.workload.gpus == 1 else 2):
            found.append("another process was on the GPU (see nvidia-smi)")
        if self.duration_s < FEWEST_S:
            found.append(f"it took {self.duration_s:.2g} s only: the edges weigh")
        if self.energy_j and self.low_j is not None and self.high_j is not None:
            doubt = (self.high_j - self.low_j) / 2 / self.energy_j
            if doubt > WIDEST:
                found.append(f"its energy is uncertain by ±{doubt:.0%}")
        return tuple(found)


def read_windows(path: Path) -> tuple[CalibrationWindow, ...]:
    """Of each workload on each GPU the last whole window; in the file's order."""
    found: dict[tuple[str, str], CalibrationWindow] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        data = parse_json(line, path, "Expected a window of plain kernels", number)
        window = from_json(CalibrationWindow, data, f"{path} line {number}")
        if window.in_graph is None and window.how is not None and window.calls:
            # Rows from before the field say it in words only.
            window = replace(window, in_graph=WORDS_OF_LAUNCH.get(window.how.rpartition(", ")[2]))
        if window.is_whole:
            found[window.workload.name, window.environment.gpus[0].uuid] = window
    return tuple(found.values())


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
        prior: Its value from the datasheet alone.
        prior_sd: Standard deviation of the prior's logarithm, for a kind of GPU without measurements.
        value: Posterior median, given the windows and the prior.
        low: Lower end of its 90 % interval; `high` the upper. How engines' kernels differ is not in it.
        sd: Standard deviation of its logarithm, from the same fit.
        windows: How many bear on it; 0 leaves the prior.
    """

    name: str
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


def narrow(fit: Fit, gpu: str, constants: Sequence[tuple[str, float, float]]) -> Fit:
    """A fit, given what a calibration of one kind of GPU found.

    Both are Gaussian in logarithms: the fit of what the constants are in all GPUs and how this one differs, the
    calibration of their sum, with `ENGINES_DIFFER` more.

    Args:
        fit: Of rows of an engine, or its priors.
        gpu: Kind of the calibrated GPU.
        constants: Name, value, and standard deviation of its logarithm; what the engine has no constant for is ignored.
    """
    priors = constants_of(fit.engine)
    known = [(priors[name], value, sd) for name, value, sd in constants if name in priors]
    if not known:
        return fit
    sds = {c.name: c.sd for c, _, _ in known} | {f"{c.name}@{gpu}": c.gpu_sd for c, _, _ in known if c.gpu_sd}
    added = [name for name in sds if name not in fit.names]
    names, old = (*fit.names, *added), len(fit.names)
    mean = np.concatenate([fit.mean, np.zeros(len(added))])
    covariance = np.diag([0.0] * old + [sds[name] ** 2 for name in added])
    covariance[:old, :old] = fit.covariance
    select = np.array([[float(name in (c.name, f"{c.name}@{gpu}")) for name in names] for c, _, _ in known])
    logs = np.array([math.log(value / c.value) for c, value, _ in known])
    noise = np.diag([sd**2 + ENGINES_DIFFER**2 for _, _, sd in known])
    gain = np.linalg.solve(select @ covariance @ select.T + noise, select @ covariance).T
    left = np.eye(len(names)) - gain @ select
    # Joseph's form, which stays symmetric and positive.
    return replace(
        fit,
        names=names,
        mean=mean + gain @ (logs - select @ mean),
        covariance=left @ covariance @ left.T + gain @ noise @ gain.T,
    )


def constants_of_file(path: Path) -> tuple[str, tuple[tuple[str, float, float], ...]]:
    """The kind of GPU of a file, and the constants on which its windows bear: name, value, sd of its logarithm."""
    windows = read_windows(path)
    known = find_gpu_by_driver_name(windows[0].environment.gpus[0].name)
    assert known is not None
    found = fit(list(filter(is_used, windows)), get_gpu(known.name))
    return known.name, tuple((c.name, c.value, c.sd) for c in found if c.windows)
