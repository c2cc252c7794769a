"""The doctor: what is probed is what the meter does."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from infergy.hardware.simulated import SimulatedGpu
from infergy.measure.doctor import READS, examine
from infergy.meters.simulated import SimulatedMeter
from infergy.records import GpuIdentity, GpuState


@pytest.mark.parametrize("period_s", [0.02, 0.1, 0.5])
def test_the_period_of_the_counter_is_probed(period_s: float) -> None:
    gpu = SimulatedGpu(GpuIdentity(uuid="GPU-a", name="NVIDIA H200"), idle_w=100.0, period_s=period_s)
    found = examine(SimulatedMeter(gpu))
    assert found.can_measure
    assert found.counter_period_s == pytest.approx(period_s, abs=0.002)
    assert found.read_median_s == pytest.approx(1e-6)


class StillMeter(SimulatedMeter):
    """A counter that never moves, on a GPU whose driver tells little."""

    def read(self) -> Mapping[str, float]:
        self._gpu.advance(1e-3, 100.0)
        return {self.gpus[0].uuid: 5.0}

    def states(self) -> tuple[GpuState, ...]:
        return (GpuState(uuid=self.gpus[0].uuid, power_w=100.0, temperature_c=40.0),)


def test_a_counter_that_stands_still_cannot_measure_and_says_so() -> None:
    gpu = SimulatedGpu(GpuIdentity(uuid="GPU-a", name="Mystery 9000"), idle_w=100.0)
    found = examine(StillMeter(gpu))
    assert not found.can_measure
    assert found.counter_period_s is None
    assert any("did not move" in note for note in found.notes)
    (one,) = found.gpus
    assert one.catalogue is None
    assert one.answers == ("power_w", "temperature_c")
    assert "slowdowns" in one.silent


def test_what_could_not_be_opened_is_missing_with_its_reason() -> None:
    found = examine(None, "NVML does not start")
    assert not found.can_measure
    assert found.missing[0] == "NVML does not start"
    assert found.gpus == ()
    assert found.read_median_s is None


def test_a_slow_read_shows() -> None:
    class SlowMeter(SimulatedMeter):
        calls = 0

        def read(self) -> Mapping[str, float]:
            self.calls += 1
            if self.calls == READS // 2:
                self._gpu.sleep(0.026)
            return super().read()

    gpu = SimulatedGpu(GpuIdentity(uuid="GPU-a", name="NVIDIA H200"), idle_w=100.0)
    found = examine(SlowMeter(gpu))
    assert found.read_worst_s == pytest.approx(0.026, rel=0.01)
    assert found.read_median_s == pytest.approx(1e-6)
    assert found.gpus[0].catalogue == "h200"
