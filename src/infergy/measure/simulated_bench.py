"""A calibration's work on a simulated GPU that obeys known constants: what a fit must find again.

Nothing here says anything of real hardware.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from infergy.hardware.gpus import Gpu
from infergy.measure.bench import look_nowhere
from infergy.measure.calibration_plan import Traits
from infergy.meters.simulated import SimulatedNode
from infergy.records.calibration import ATTENTION, COPY, LAUNCH, PRODUCT, REDUCE, Workload

L2_BYTES = 60 * 2**20
CORNER, LIMIT, SLOWING = 4.0, 32.0, 1.5
"""Exponents of the roofline, of the power limit and of what slowed clocks save, as in `infergy.cost.step`."""

IDLE_SHARE, LIMIT_SHARE, FLOP_SHARE_AT = 0.175, 0.994, 0.6
"""Idle power with work loaded and power at the limit, over TDP; the share of the peak to which `flop_share` belongs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What the simulated GPU obeys; names and units as in `infergy.cost.constants`.

    Attributes:
        launch_s: A twelfth of `layer_s`.
        eager_s: Of a kernel that no graph launches.
        copy_efficiency: Share of the bandwidth that copies reach, and `cached_bytes_per_s` within L2.
        scatter: Standard deviation of the logarithm of seconds and watts, from one window to the next.
    """

    weight_efficiency: float
    cache_efficiency: float
    compute_efficiency: float
    launch_s: float
    busy_share: float
    byte_j: float
    flop_share: float
    cache_energy: float
    fp8_bytes: float
    fp8_flops: float
    fp8_byte_energy: float
    fp8_flop_energy: float
    reduce_s: float
    eager_s: float = 6e-6
    copy_efficiency: float = 0.85
    cached_bytes_per_s: float = 8e12
    scatter: float = 0.01

    @classmethod
    def drawn(cls, seed: int) -> Truth:
        """Any GPU: each constant evenly from a range."""
        draw = random.Random(seed).uniform
        return cls(
            weight_efficiency=draw(0.65, 0.95),
            cache_efficiency=draw(0.5, 0.95),
            compute_efficiency=draw(0.7, 0.88),
            launch_s=draw(0.6e-6, 3e-6),
            busy_share=draw(0.05, 0.19),
            byte_j=draw(0.65e-10, 1.15e-10),
            flop_share=draw(0.5, 1.0),
            cache_energy=draw(0.9, 1.4),
            fp8_bytes=draw(0.9, 1.6),
            fp8_flops=draw(0.9, 1.6),
            fp8_byte_energy=draw(0.8, 1.5),
            fp8_flop_energy=draw(0.45, 1.0),
            reduce_s=draw(5e-6, 25e-6),
        )


class SimulatedBench:
    """Work on the first GPU of a node, or on all of it."""

    def __init__(self, node: SimulatedNode, gpu: Gpu, truth: Truth, seed: int = 0) -> None:
        self.name = "simulated"
        self.traits = Traits(memory_bytes=gpu.memory_bytes, l2_bytes=L2_BYTES, has_fp8="fp8" in gpu.peak_flops)
        self.node = node
        self._gpu = gpu
        self._truth = truth
        self.random = random.Random(f"{seed} {gpu.name}")

    def load(self, work: Workload) -> SimulatedWork:
        """Seconds and watts of a call, with this window's scatter."""
        call_s, power_w = self.expect(work)
        off_s, off_w = (self.random.lognormvariate(0.0, self._truth.scatter) for _ in range(2))
        return SimulatedWork(self.node, call_s * off_s, power_w * off_w)

    def expect(self, work: Workload) -> tuple[float, float]:
        """Seconds of a call and watts of all GPUs, without scatter."""
        gpu, truth = self._gpu, self._truth
        is_fp8 = work.dtype == "fp8"
        memory_s = work.memory_bytes * (truth.fp8_bytes if is_fp8 else 1.0) / gpu.memory_bandwidth
        memory_s /= self._efficiency(work)
        peak = gpu.peak_flops.get("fp8" if is_fp8 else "bfloat16", gpu.peak_flops["bfloat16"])
        compute_s = work.flops * (truth.fp8_flops if is_fp8 else 1.0) / (truth.compute_efficiency * peak)
        call_s = (memory_s**CORNER + compute_s**CORNER) ** (1 / CORNER)
        call_s += work.launches * (truth.launch_s if work.in_graph else truth.eager_s)
        if work.kind == COPY and not work.memory_bytes:
            call_s += 2 * work.sizes[0] / truth.cached_bytes_per_s
        if work.kind == REDUCE:
            call_s = truth.reduce_s + work.link_bytes / gpu.link.bandwidth
        base_w = (IDLE_SHARE + truth.busy_share) * gpu.tdp_w * work.gpus
        flop_j = truth.flop_share * gpu.tdp_w / (FLOP_SHARE_AT * gpu.peak_flops["bfloat16"])
        more = truth.cache_energy if work.kind == ATTENTION else truth.fp8_byte_energy if is_fp8 else 1.0
        added_j = truth.byte_j * work.memory_bytes * more
        computed = work.flops * (truth.fp8_flops * truth.fp8_flop_energy if is_fp8 else 1.0)
        added_j += flop_j * computed
        room_j = (LIMIT_SHARE * gpu.tdp_w * work.gpus - base_w) * call_s
        slower = (1 + (added_j / room_j) ** LIMIT) ** (1 / (LIMIT * (1 + SLOWING)))
        call_s *= slower
        return call_s, base_w + added_j * slower**-SLOWING / call_s

    def close(self) -> None:
        """Nothing is held."""

    def _efficiency(self, work: Workload) -> float:
        if work.kind in (PRODUCT, LAUNCH):
            return self._truth.weight_efficiency
        return self._truth.copy_efficiency if work.kind == COPY else self._truth.cache_efficiency


class SimulatedWork:
    """Time that passes at some power."""

    def __init__(self, node: SimulatedNode, call_s: float, power_w: float) -> None:
        self.how = "simulated"
        self.in_graph: bool | None = None
        self._node = node
        self._call_s = call_s
        self._power_w = power_w

    def run(self, seconds: float, look: Callable[[], None] = look_nowhere) -> int:
        """Let whole calls pass."""
        calls = max(1, round(seconds / self._call_s))
        first = calls // 2
        self._node.advance(first * self._call_s, self._power_w)
        look()
        self._node.advance((calls - first) * self._call_s, self._power_w)
        return calls

    def close(self) -> None:
        """Nothing is held."""
