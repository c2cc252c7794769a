"""The meter of the simulated GPU, for machines without one and for tests against a known truth."""

from __future__ import annotations

from collections.abc import Mapping

from infergy.hardware.simulated import COUNTER_PERIOD_S, SimulatedGpu
from infergy.hardware.simulated_node import SimulatedNode
from infergy.meters.protocol import Clock, Power, SystemClock
from infergy.records import GpuIdentity, GpuState


class SimulatedMeter:
    """Reads the coarse counters of simulated GPUs; its rows are marked and refused in an estimate unless asked for."""

    name = "simulated"
    scope = "gpu-board"
    is_simulated = True

    def __init__(self, device: SimulatedGpu | SimulatedNode) -> None:
        self._node = device if isinstance(device, SimulatedNode) else SimulatedNode([device])
        self.clock: Clock = device
        self.gpus: tuple[GpuIdentity, ...] = tuple(gpu.identity for gpu in self._node.gpus)

    def read(self) -> Mapping[str, float]:
        """Joules of the counters, by UUID."""
        return self._node.read()

    def states(self) -> tuple[GpuState, ...]:
        """The present power; a simulated GPU has no temperature or clocks."""
        return tuple(GpuState(uuid=gpu.identity.uuid, power_w=gpu.instant_w(), slowdowns=()) for gpu in self._node.gpus)

    def powers(self) -> Mapping[str, Power]:
        """The power fields, as the GPUs' sensors show them."""
        return {
            gpu.identity.uuid: Power(instant_w=gpu.instant_w(), average_w=gpu.average_w()) for gpu in self._node.gpus
        }

    def watch(self, every_s: float) -> None:
        """From now on, look at instant power every so often, on the virtual clock."""
        for gpu in self._node.gpus:
            gpu.watch(every_s)

    def seen(self) -> Mapping[str, list[tuple[float, float]]]:
        """Seconds and watts of each look since `watch`, by UUID; from now on there are no more."""
        return {gpu.identity.uuid: gpu.seen() for gpu in self._node.gpus}

    def facts(self) -> Mapping[str, str]:
        """Nothing lies under a simulation."""
        return {}

    def close(self) -> None:
        """Nothing is held."""


class SteadyMeter:
    """Pretended GPUs in real time that always draw the same power, for programs where there is no GPU.

    The first of `count` draws `power_w`, each other one a tenth of it more than the one before.
    """

    name = "simulated"
    scope = "gpu-board"
    is_simulated = True

    def __init__(self, power_w: float = 100.0, count: int = 1) -> None:
        self._power_w = {f"GPU-simulated-{index}": power_w * (1 + index / 10) for index in range(count)}
        self.clock: Clock = SystemClock()
        self.gpus: tuple[GpuIdentity, ...] = tuple(
            GpuIdentity(uuid=uuid, name="simulated steady GPU") for uuid in self._power_w
        )

    def read(self) -> Mapping[str, float]:
        """Joules since the clock began, as they stood at the last tick of the counter."""
        ticks = self.clock.now_s() // COUNTER_PERIOD_S
        return {uuid: ticks * COUNTER_PERIOD_S * power_w for uuid, power_w in self._power_w.items()}

    def states(self) -> tuple[GpuState, ...]:
        """The power that never changes."""
        return tuple(GpuState(uuid=uuid, power_w=power_w, slowdowns=()) for uuid, power_w in self._power_w.items())

    def facts(self) -> Mapping[str, str]:
        """Nothing lies under a simulation."""
        return {}

    def close(self) -> None:
        """Nothing is held."""
