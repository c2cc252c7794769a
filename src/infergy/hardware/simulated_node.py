"""Several simulated GPUs on one virtual clock: what a tensor-parallel engine and its meter share."""

from __future__ import annotations

from collections.abc import Sequence

from infergy.hardware.gpus import IDLE_SHARE, SIMULATED_PREFIX, Gpu
from infergy.hardware.simulated import COUNTER_PERIOD_S, SimulatedGpu
from infergy.records import GpuIdentity

FIRST_PHASE_S = 0.037
PHASE_STEP_S = 0.0618
"""From one GPU's first tick to the next one's, modulo the counter's period: no two tick together."""

UNEVEN = 0.04
"""The first of several GPUs draws so much less than their mean, the last so much more: no two are alike."""


class SimulatedNode:
    """GPUs whose clocks move together; one alone behaves as that `SimulatedGpu`.

    Args:
        gpus: The GPUs, in the engine's order.
        weights: What each draws of the power of work, over the mean of all; None for evenly.
    """

    def __init__(self, gpus: Sequence[SimulatedGpu], weights: Sequence[float] | None = None) -> None:
        self.gpus = tuple(gpus)
        self._shares = [weight / len(self.gpus) for weight in weights or [1.0] * len(self.gpus)]

    def now_s(self) -> float:
        """The virtual clock, in seconds."""
        return self.gpus[0].now_s()

    def sleep(self, seconds: float) -> None:
        """Let time pass for all of them, idle or under their own load."""
        for gpu in self.gpus:
            gpu.sleep(seconds)

    def pause(self) -> None:
        """Wait between two looks at the counters, as one GPU's clock does."""
        for gpu in self.gpus:
            gpu.pause()

    def advance(self, seconds: float, power_w: float) -> None:
        """Let time pass while all of them together draw `power_w`."""
        for gpu, share in zip(self.gpus, self._shares, strict=True):
            gpu.advance(seconds, power_w * share)

    def read(self) -> dict[str, float]:
        """Joules of each counter by UUID, read one after the other at the cost of a call each."""
        found: dict[str, float] = {}
        for gpu in self.gpus:
            begun_s = gpu.now_s()
            found[gpu.identity.uuid] = gpu.read()
            for other in self.gpus:
                if other is not gpu:
                    other.sleep(gpu.now_s() - begun_s)
        return found


def pretend_node(gpu: Gpu, count: int) -> SimulatedNode:
    """`count` pretended boards of a kind; each ticks at another instant, and draws another power, idle and busy."""
    weights = _weights(count)
    return SimulatedNode(
        [
            SimulatedGpu(
                GpuIdentity(
                    uuid=f"GPU-simulated-{index}",
                    name=f"{SIMULATED_PREFIX}{gpu.title}",
                    memory_bytes=gpu.memory_bytes,
                ),
                idle_w=gpu.tdp_w * IDLE_SHARE * weight,
                phase_s=(FIRST_PHASE_S + index * PHASE_STEP_S) % COUNTER_PERIOD_S,
            )
            for index, weight in enumerate(weights)
        ],
        weights,
    )


def _weights(count: int) -> list[float]:
    """What each draws over the mean of all, rising by equal steps; 1 for one alone."""
    return [1.0] if count == 1 else [1 + UNEVEN * (2 * index / (count - 1) - 1) for index in range(count)]
