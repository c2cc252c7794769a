"""The step-cost model of one server: what the simulation asks for, and how uncertain its sums are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infergy.catalog import Gpu, ModelShape
from infergy.cost.constants import Column, Fit
from infergy.cost.rates import Rates, rates_of
from infergy.cost.step import Pace, Steps, StepSums, added_j, compress, free_s, half_doublings, slowed_j, sums_of
from infergy.cost.table import MeasuredServer, ServedBy
from infergy.cost.work import ServerWork

PART = 32_768
"""Entries whose energy is computed at once."""
SHIFT = 0.02
"""Of a constant's logarithm, for derivatives."""
STRETCHED = 1.05
"""Logged over free seconds from which a step counts as held by the power limit."""
SHRUNK = 0.99
"""Decode steps over those of the run, for the derivative of their seconds by their number."""
UNSEEN_GPU_SD, UNSEEN_SERVER_SD, UNSEEN_EXPERTS_SD, UNSEEN_FORMAT_SD, UNSEEN_DOUBLING_SD = 0.10, 0.06, 0.12, 0.08, 0.06
"""What energy errs by beside its constants' uncertainty where no row is of the kind of GPU; of the model, precision and
GPU count; where that model has experts; where no row of the engine is in the precision; and for each doubling of GPUs
beyond those of rows: by our rows, of which each was left out (docs/cost.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What serves: a model on GPUs, under an engine.

    Attributes:
        engine: ``vllm`` or ``transformers``.
        work: What steps are made of; `model` the model's name.
        gpu: Kind of its GPUs.
        idle_w: Watts of all GPUs, idle, with the model loaded.
        is_api: Whether an API server hands out each token, rather than a batch interface all at the end.
        errors: Standard deviations of the logarithms of what the fit leaves of energy and of time of its rows; None
            where no row of this model, precision and GPU count on this kind of GPU was fitted.
        unseen_sd: What energy errs by then, beside its constants' uncertainty (`unseen_sd`).
    """

    engine: str
    model: str
    work: ServerWork
    gpu: Gpu
    idle_w: float
    is_api: bool
    errors: tuple[float, float] | None = None
    unseen_sd: float = UNSEEN_SERVER_SD

    @classmethod
    def of(
        cls, by: ServedBy, shape: ModelShape, gpu: Gpu, idle_w: float, measured: Iterable[MeasuredServer] = ()
    ) -> Server:
        """The server of a measured cell, or of one that could be, beside those that were `measured`."""
        known = {replace(one.served_by, is_api=False): one for one in measured}
        own = known.get(replace(by, is_api=False))
        return cls(
            engine=by.engine,
            model=by.model,
            work=by.work(shape),
            gpu=gpu,
            idle_w=idle_w,
            is_api=by.is_api,
            errors=None if own is None else (own.energy_sd, own.time_sd),
            unseen_sd=unseen_sd(by, has_experts=shape.experts is not None, measured=known),
        )


def unseen_sd(by: ServedBy, *, has_experts: bool, measured: Iterable[ServedBy]) -> float:
    """What energy errs by beside its constants' uncertainty, by how far a server is from those that were measured.

    A standard deviation of the logarithm; 0 where the server is one of them.
    """
    near = [one for one in measured if one.engine == by.engine]
    if replace(by, is_api=False) in near:
        return 0.0
    parts = [UNSEEN_SERVER_SD]
    if has_experts and by.model not in {one.model for one in near}:
        parts.append(UNSEEN_EXPERTS_SD)
    if by.dtype not in {one.dtype for one in near}:
        parts.append(UNSEEN_FORMAT_SD)
    doublings = math.log2(by.gpus / max((one.gpus for one in near), default=1))
    parts.append(UNSEEN_DOUBLING_SD * max(0.0, doublings))
    return math.hypot(*parts)


class StepCost:
    """Seconds and energy of steps of one server, with the likeliest constants of a fit.

    Attributes:
        intake_s: Seconds from a request's arrival until the scheduler can see it.
        intake_gap_s: Least seconds between two requests becoming visible.
        call_s: Seconds of the front end for requests that are handed over all at once.
        masked_attention: Positions that attention reads in a padded batch, over those that there are.
        idle_w: Watts of all GPUs, idle, with the model loaded.
    """

    def __init__(self, server: Server, fit: Fit) -> None:
        self.server, self.fit = server, fit
        self.constants = fit.constants(server.gpu.name)
        self.rates = self._rates(self.constants)
        # A batch interface takes requests in one call, which vLLM's hands on one by one.
        self.intake_s = self.constants["intake_s"] if server.is_api else 0.0
        self.intake_gap_s = self.constants["intake_gap_s"] if server.engine == "vllm" else 0.0
        self.call_s = self.constants["call_s"]
        self.masked_attention = self.constants.get("masked_attention", 1.0)
        self.idle_w = server.idle_w

    def start(self) -> Pace:
        """A clock for one replica that has been idle."""
        return Pace(self.rates)

    def step_energy_j(self, steps: Steps) -> Column:
        """Energy of one step of each entry, at its logged seconds."""
        power, joules = self.rates.power, np.empty(len(steps))
        for begin in range(0, len(steps), PART):  # in the cache, and without temporary columns of millions
            part = slice(begin, begin + PART)
            sums, seconds = StepSums(*(column[part] for column in sums_of(steps))), steps.step_s[part]
            free = np.minimum(free_s(self.rates, sums), seconds)
            joules[part] = slowed_j(power, added_j(self.rates, sums), free, seconds) + power.base_w * seconds
        return joules

    def log_slopes(self, steps: Steps, idle_j: float, open_share: float = 0.0) -> Column:
        """Derivatives of the logarithms of a run's energy, and of its steps' seconds in total, by those of constants.

        Args:
            steps: The entries of the run.
            idle_j: Energy of the run while nothing was served.
            open_share: Share of the time in which requests still arrive and none waits (`infergy.cost.model`).

        Returns:
            Shape (constants, 2), constants in the order of `infergy.cost.constants.constants_of`.
        """
        values = self.constants
        run = RunSums.of(steps, self.rates, idle_j, open_share)
        names, _, _ = self.fit.logs(self.server.gpu.name)
        shifted = [run.log_totals(self._rates({**values, name: values[name] * math.exp(SHIFT)})) for name in names]
        slopes: Column = (np.array(shifted) - run.log_totals(self.rates)) / SHIFT
        return slopes

    def log_sd(self, steps: Steps, idle_j: float, open_share: float = 0.0) -> tuple[float, float]:
        """Standard deviations of the logarithms of a run's energy, and of its steps' seconds in total.

        Constants, the model's own error, and how single GPUs differ; idle power is taken for known.

        Args:
            steps: The entries of the run.
            idle_j: Energy of the run while nothing was served.
            open_share: Share of the time in which requests still arrive and none waits.
        """
        _, _, covariance = self.fit.logs(self.server.gpu.name)
        energy, seconds = (float(slope @ covariance @ slope) for slope in self.log_slopes(steps, idle_j, open_share).T)
        left_j, left_s = self.errors
        unseen = self.unseen_gpu_variance + self.unseen_server_variance
        energy += left_j**2 + self.fit.unit_energy_sd**2 + unseen
        seconds += left_s**2 + self.fit.unit_time_sd**2 + unseen
        return math.sqrt(energy), math.sqrt(seconds)

    @property
    def errors(self) -> tuple[float, float]:
        """Standard deviations of the logarithms of what the fit leaves of energy and of time."""
        return self.server.errors or (self.fit.energy_sd, self.fit.time_sd)

    @property
    def unseen_gpu_variance(self) -> float:
        """Of the logarithm of energy, where no row is of the kind of GPU; else 0."""
        return 0.0 if self.server.gpu.name in self.fit.rows else UNSEEN_GPU_SD**2

    @property
    def unseen_server_variance(self) -> float:
        """Of the logarithm of energy, where no row is of the model, precision and GPU count; else 0."""
        return 0.0 if self.server.errors is not None else self.server.unseen_sd**2

    @property
    def peak_flops(self) -> float:
        """Dense peak of all GPUs, in FLOP/s."""
        gpu, work = self.server.gpu, self.server.work
        base = gpu.dense_flops("bfloat16")
        return work.gpus * (gpu.peak_flops.get("fp8", base) if work.dtype == "fp8" else base)

    def floor_s(self, steps: Steps) -> Column:
        """Least seconds of a step of each entry: its bytes at full bandwidth, or its FLOPs at the dense peak."""
        flops, moved = self.work_of(sums_of(steps))
        bandwidth = self.server.gpu.memory_bandwidth * self.server.work.gpus
        floor: Column = np.maximum(moved / bandwidth, flops / self.peak_flops)
        return floor

    def work_of(self, s: StepSums) -> tuple[Column, Column]:
        """FLOPs and bytes of a step of each entry, on all GPUs."""
        work, attention = self.server.work, self.server.work.attention
        tokens = s.decodes + s.prefill_tokens
        seen = np.minimum(s.context, s.decodes * attention.window_tokens) if attention.window_read_bytes else 0.0
        pairs = (
            np.minimum(s.prefill_pairs, s.prefill_tokens * attention.window_tokens)
            if attention.window_pair_flops
            else 0.0
        )
        flops = work.token_flops * tokens + work.head_flops * s.sampled
        flops = flops + attention.pair_flops * (s.context + attention.prefill_ratio * s.prefill_pairs)
        flops = flops + attention.window_pair_flops * (seen + attention.prefill_ratio * pairs)
        moved = work.weight_bytes + attention.read_bytes * s.context + attention.write_bytes * tokens
        moved = moved + attention.window_read_bytes * seen + attention.state_bytes * (s.decodes + s.prefills)
        if work.experts is not None:
            moved = moved + work.experts.routed_bytes * (1.0 - (1.0 - work.experts.share) ** tokens)
        return flops, moved

    def _rates(self, constants: Mapping[str, Any]) -> Rates:
        server = self.server
        return rates_of(server.work, server.gpu, constants, idle_w=server.idle_w, server=server.is_api)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSums:
    """A run as its derivatives need it: its entries joined to few.

    Attributes:
        count: Steps of each entry, which cost by `sums`.
        stretched: Whether the power limit holds them.
        busy_s: Seconds of all steps, at the rates that the run was served at.
        idle_j: Joules while nothing was served; `idle_share` of the time was.
        open_share: Share of the time in which requests still arrive and none waits.
    """

    count: Column
    sums: StepSums
    stretched: NDArray[np.bool_]
    busy_s: float
    idle_j: float
    idle_share: float
    open_share: float

    @classmethod
    def of(cls, steps: Steps, rates: Rates, idle_j: float, open_share: float) -> RunSums:
        """The sums of a run that was served at `rates`."""
        count, step_s, *columns = compress(steps).T
        sums = StepSums(*columns)
        stretched = step_s > free_s(rates, sums) * STRETCHED
        busy_s = float(count @ _steps(rates, sums, stretched)[0])
        idle_s = idle_j / rates.power.idle_w if rates.power.idle_w else 0.0
        return cls(
            count=count,
            sums=sums,
            stretched=stretched,
            busy_s=busy_s,
            idle_j=idle_j,
            idle_share=idle_s / (idle_s + busy_s),
            open_share=open_share,
        )

    def log_totals(self, rates: Rates) -> Column:
        """Logarithms of the energy at other rates, and of the seconds of the same steps."""
        seconds, joules = _steps(rates, self.sums, self.stretched)
        busy_s = float(self.count @ seconds)
        energy_j = float(self.count @ joules) + self.idle_j
        # Busy periods that begin at random leave exp(-a) of the time idle: longer ones by da take a exp(-a) da of it.
        share = self.idle_share
        from_idle = -share * math.log(share) / (1.0 - share) if 0.0 < share < 1.0 else 0.0
        longer_s = self.open_share * (busy_s - self.busy_s)
        energy_j -= rates.power.idle_w * from_idle * longer_s
        decoding = self.sums.prefills == 0
        if longer_s and decoding.any():
            energy_j += self._fewer(rates, decoding, (1.0 - from_idle) * longer_s)
        logs: Column = np.log(np.array([energy_j, busy_s]))
        return logs

    def _fewer(self, rates: Rates, decoding: NDArray[np.bool_], less_s: float) -> float:
        """Joules more where so many fewer decode steps serve the same tokens that they take `less_s` less."""
        sums = StepSums(*(column[decoding] for column in self.sums))
        count, stretched = self.count[decoding], self.stretched[decoding]

        def totals(share: float) -> tuple[float, float]:
            # What is decoded in fewer steps is decoded by larger batches.
            larger = sums._replace(
                decodes=sums.decodes / share, context=sums.context / share, sampled=sums.sampled / share
            )
            seconds, joules = _steps(rates, larger, stretched)
            return float(share * count @ seconds), float(share * count @ joules)

        seconds, joules = totals(1.0)
        fewer_s, fewer_j = totals(SHRUNK)
        return (joules - fewer_j) / (fewer_s - seconds) * less_s if fewer_s < seconds else 0.0


def _steps(rates: Rates, sums: StepSums, stretched: NDArray[np.bool_]) -> tuple[Column, Column]:
    """Seconds and energy of a step: at the power limit where the run was held by it."""
    free, added, power = free_s(rates, sums), added_j(rates, sums), rates.power
    over = added / ((power.limit_w - power.base_w) * free)
    limited = free * np.maximum(over, 1.0) ** (1.0 / (1.0 + power.slowing))
    seconds: Column = np.where(stretched, limited, free)
    joules: Column = slowed_j(power, added, free, seconds) + power.base_w * seconds
    return seconds, joules


class CostedRun(NamedTuple):
    """A run as its uncertainty needs it.

    Attributes:
        cost: The server's step costs.
        steps: The entries of the run.
        idle_j: Energy of the run while nothing was served.
        slopes: Derivatives of the logarithm of its energy by those of the constants.
    """

    cost: StepCost
    steps: Steps
    idle_j: float
    slopes: Column

    @classmethod
    def of(cls, cost: StepCost, steps: Steps, idle_j: float, open_share: float) -> CostedRun:
        """A run and its derivatives (`StepCost.log_slopes`)."""
        return cls(cost, steps, idle_j, cost.log_slopes(steps, idle_j, open_share)[:, 0])


def log_ratio_sd(first: CostedRun, second: CostedRun) -> float:
    """Standard deviation of the logarithm of the ratio of two runs' energies on one kind of GPU.

    Which GPU of the kind serves is common to both. So are the constants, of one engine's fit: only the difference of
    the derivatives counts. The model's own error is common in steps of the same kinds, and independent in the share of
    the energy that is left. Fits of two engines are independent, but for a kind of GPU that neither was measured on.
    """
    own, other = first.cost, second.cost
    is_same_fit = own.fit is other.fit
    differences = (
        [(own, first.slopes - second.slopes)] if is_same_fit else [(own, first.slopes), (other, second.slopes)]
    )
    variance = sum(float(slope @ cost.fit.logs(cost.server.gpu.name)[2] @ slope) for cost, slope in differences)
    is_same_server = is_same_fit and own.server.model == other.server.model and own.server.work == other.server.work
    common = _common_share(first, second) if is_same_server else 0.0
    variance += (1.0 - common) ** 2 * (own.errors[0] ** 2 + other.errors[0] ** 2)
    variance += abs(own.unseen_gpu_variance - other.unseen_gpu_variance)
    if is_same_server:
        return math.sqrt(variance + abs(own.unseen_server_variance - other.unseen_server_variance))
    return math.sqrt(variance + own.unseen_server_variance + other.unseen_server_variance)


def _common_share(first: CostedRun, second: CostedRun) -> float:
    """Share of the energy that both spend in steps of the same kinds: with prompts or not, of like sizes."""
    kinds = [  # with prompts or not, with a CUDA graph or not, sequences and prompt tokens to the half doubling
        np.column_stack([s.prefills > 0, s.padded > 0, half_doublings(s.decodes), half_doublings(s.prefill_tokens)])
        for s in (first.steps, second.steps)
    ]
    _, kind = np.unique(np.vstack(kinds), axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    size = len(first.steps.count)
    shares = [
        np.bincount(kind[part], weights=run.cost.step_energy_j(run.steps) * run.steps.count, minlength=kind.max() + 1)
        for run, part in ((first, slice(0, size)), (second, slice(size, None)))
    ]
    # What is idle is known in both.
    idle = min(run.idle_j / (run.idle_j + share.sum()) for run, share in zip((first, second), shares, strict=True))
    of_all = [share / (run.idle_j + share.sum()) for run, share in zip((first, second), shares, strict=True)]
    return min(1.0, float(np.minimum(*of_all).sum() + idle))
