"""The step-cost model of one server: what the simulation asks for, and how uncertain its sums are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from infergy.cost.fit import Column, Fit
from infergy.cost.rates import Rates, rates_of
from infergy.cost.slopes import RunSums
from infergy.cost.step import Pace, Steps, added_j, free_s, slowed_j, sums_of
from infergy.cost.work import ServerWork
from infergy.hardware.gpus import Gpu

SHIFT = 0.02
"""Of a constant's logarithm, for derivatives."""
UNSEEN_GPU_SD, UNSEEN_SERVER_SD = 0.10, 0.06
"""What energy errs by beside its constants' uncertainty where no row is of the kind of GPU, or of the model, precision
and GPU count: our own estimates."""


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
    """

    engine: str
    model: str
    work: ServerWork
    gpu: Gpu
    idle_w: float
    is_api: bool
    errors: tuple[float, float] | None = None


class StepCost:
    """Seconds and joules of steps of one server, with the likeliest constants of a fit.

    Attributes:
        intake_s: Seconds from a request's arrival until the scheduler can see it.
        intake_gap_s: Least seconds between two requests becoming visible.
        call_s: Seconds of the front end for requests that are handed over all at once.
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
        self.idle_w = server.idle_w

    def start(self) -> Pace:
        """A clock for one replica that has been idle."""
        return Pace(self.rates)

    def step_energy_j(self, steps: Steps) -> Column:
        """Joules of one step of each entry, at its logged seconds."""
        sums, power = sums_of(steps), self.rates.power
        free = np.minimum(free_s(self.rates, sums), steps.step_s)
        joules: Column = slowed_j(power, added_j(self.rates, sums), free, steps.step_s) + power.base_w * steps.step_s
        return joules

    def log_slopes(self, steps: Steps, idle_j: float, open_share: float = 0.0) -> Column:
        """Derivatives of the logarithms of a run's energy, and of its steps' seconds in total, by those of constants.

        Args:
            steps: The entries of the run.
            idle_j: Joules of the run while nothing was served.
            open_share: Share of the time in which requests still arrive and none waits (`infergy.cost.slopes`).

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
            idle_j: Joules of the run while nothing was served.
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
        return 0.0 if self.server.errors is not None else UNSEEN_SERVER_SD**2

    def floor_s(self, steps: Steps) -> Column:
        """Least seconds of a step of each entry: its bytes at full bandwidth, or its FLOPs at the dense peak."""
        work, gpu = self.server.work, self.server.gpu
        flops, moved = self.work_of(steps)
        peak = gpu.peak_flops.get("fp8" if work.dtype == "fp8" else "bfloat16", gpu.dense_flops("bfloat16"))
        floor: Column = np.maximum(moved / gpu.memory_bandwidth, flops / peak) / work.gpus
        return floor

    def work_of(self, steps: Steps) -> tuple[Column, Column]:
        """FLOPs and bytes of a step of each entry, on all GPUs."""
        s, work, attention = sums_of(steps), self.server.work, self.server.work.attention
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
