"""The meter of the simulated GPU, for machines without one and for tests against a known truth."""

from __future__ import annotations

from collections.abc import Mapping

from infergy.hardware.simulated import COUNTER_PERIOD_S, SimulatedGpu
from infergy.meters.protocol import Clock, Power, SystemClock
from infergy.records import GpuIdentity, GpuState


class SimulatedMeter:
    """Reads the coarse counter of a `SimulatedGpu`; its rows are marked and refused in an estimate unless asked for."""

    name = "simulated"
    scope = "gpu-board"
    is_simulated = True

    def __init__(self, gpu: SimulatedGpu) -> None:
        self._gpu = gpu
        self.clock: Clock = gpu
        self.gpus: tuple[GpuIdentity, ...] = (gpu.identity,)

    def read(self) -> Mapping[str, float]:
        """Joules of the counter, by UUID."""
        return {self._gpu.identity.uuid: self._gpu.read()}

    def states(self) -> tuple[GpuState, ...]:
        """The present power; a simulated GPU has no temperature or clocks."""
        return (GpuState(uuid=self._gpu.identity.uuid, power_w=self._gpu.instant_w(), slowdowns=()),)

    def powers(self) -> Mapping[str, Power]:
        """The power fields, as the GPU's sensors show them."""
        return {self._gpu.identity.uuid: Power(instant_w=self._gpu.instant_w(), average_w=self._gpu.average_w())}

    def facts(self) -> Mapping[str, str]:
        """Nothing lies under a simulation."""
        return {}

    def close(self) -> None:
        """Nothing is held."""


class SteadyMeter:
    """A pretended GPU in real time that always draws the same power, for programs where there is no GPU."""

    name = "simulated"
    scope = "gpu-board"
    is_simulated = True

    def __init__(self, power_w: float = 100.0) -> None:
        self._power_w = power_w
        self.clock: Clock = SystemClock()
        self.gpus: tuple[GpuIdentity, ...] = (GpuIdentity(uuid="GPU-simulated-0", name="simulated steady GPU"),)

    def read(self) -> Mapping[str, float]:
        """Joules since the clock began, as they stood at the last tick of the counter."""
        ticks = self.clock.now_s() // COUNTER_PERIOD_S
        return {self.gpus[0].uuid: ticks * COUNTER_PERIOD_S * self._power_w}

    def states(self) -> tuple[GpuState, ...]:
        """The power that never changes."""
        return (GpuState(uuid=self.gpus[0].uuid, power_w=self._power_w, slowdowns=()),)

    def facts(self) -> Mapping[str, str]:
        """Nothing lies under a simulation."""
        return {}

    def close(self) -> None:
        """Nothing is held."""
