"""The meter of the simulated GPU, for machines without one and for tests against a known truth."""

from __future__ import annotations

from collections.abc import Mapping

from infergy.hardware.simulated import SimulatedGpu
from infergy.meters.protocol import Clock
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
        return (GpuState(uuid=self._gpu.identity.uuid, power_w=self._gpu.power_w, slowdowns=()),)

    def facts(self) -> Mapping[str, str]:
        """Nothing lies under a simulation."""
        return {}

    def close(self) -> None:
        """Nothing is held."""
