"""Windows over any block: the joules of the block, not of the waits around it, and no harm to the block."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import infergy
from infergy.errors import MeterError
from infergy.measure.block import window
from infergy.meters.simulated import CounterSensor, Sensors, SimulatedGpu, SimulatedMeter, SteadyMeter
from infergy.records import GpuIdentity, GpuState
from raising import raises
from stalls import POINTS, STEADY_W, StoppedMeter

IDLE_W = 120.0


class HalfMeter(SimulatedMeter):
    """Its counter gives a share of the energy that its power field reports."""

    share = 0.5

    def read(self) -> Mapping[str, float]:
        return {uuid: self.share * energy_j for uuid, energy_j in super().read().items()}


@pytest.fixture
def gpu() -> SimulatedGpu:
    return SimulatedGpu(GpuIdentity(uuid="GPU-a", name="simulated"), idle_w=IDLE_W)


def test_with_idle_power_known_the_block_has_its_own_joules(gpu: SimulatedGpu) -> None:
    with window("serve", idle_s=2.0, meter=SimulatedMeter(gpu)) as w:
        gpu.advance(4.03, 500.0)
    assert w.energy_j == pytest.approx(4.03 * 500.0, rel=0.001)
    assert w.duration_s == pytest.approx(4.03, abs=1e-4)
    assert w.power_w == pytest.approx(500.0, rel=0.001)
    assert w.energy_by_gpu_j == {"GPU-a": w.energy_j}
    found = w.result
    assert found.name == "serve"
    assert found.idle_power_w == pytest.approx(IDLE_W, rel=0.001)
    assert found.net_j == pytest.approx(4.03 * (500.0 - IDLE_W), rel=0.002)
    assert found.simulated
    assert found.reason is None
    assert len(found.warnings) == 1


def test_a_late_counter_and_clocks_that_stay_high_do_not_bias_a_block() -> None:
    device = SimulatedGpu(
        GpuIdentity(uuid="GPU-a", name="simulated"),
        idle_w=80.0,
        hot_idle_w=160.0,
        sensors=Sensors(counter=CounterSensor(delay_s=0.1)),
    )
    device.advance(1.0, 600.0)
    device.sleep(0.2)
    with window(meter=SimulatedMeter(device)) as w:
        device.advance(3.0, 600.0)
    assert w.energy_j == pytest.approx(1800.0, rel=0.001)


@given(
    st.floats(0.01, 20.0),
    st.floats(IDLE_W, 700.0),
    st.floats(0.0, 0.1),
    st.booleans(),
)
def test_the_truth_lies_between_the_bounds(seconds: float, power_w: float, before_s: float, knows_idle: bool) -> None:
    device = SimulatedGpu(GpuIdentity(uuid="GPU-a", name="simulated"), idle_w=IDLE_W)
    device.sleep(before_s)
    with window(idle_s=1.0 if knows_idle else 0.0, meter=SimulatedMeter(device)) as w:
        device.advance(seconds, power_w)
    found = w.result
    assert found.low_j is not None
    assert found.high_j is not None
    assert found.energy_j is not None
    # The counter shows whole millijoules.
    assert found.low_j - 0.002 <= seconds * power_w <= found.high_j + 0.002
    assert found.low_j <= found.energy_j <= found.high_j


def test_a_block_that_drowns_in_its_edges_has_a_reason_not_a_negative_joule() -> None:
    """Stamps that come 20 ms late, and a microsecond of work."""
    found = []
    for number in range(30):
        device = SimulatedGpu(
            GpuIdentity(uuid="GPU-a", name="simulated"), idle_w=IDLE_W, sensors=Sensors(read_gap_s=0.02)
        )
        device.sleep(0.003 * number)
        with window(meter=SimulatedMeter(device)) as w:
            device.advance(1e-6, 500.0)
        found.append(w.result)
    assert all(one.energy_j is None or one.energy_j > 0 for one in found)
    unknown = [one for one in found if one.energy_j is None]
    assert unknown
    assert all(one.reason is not None and "too short for the counter" in one.reason for one in unknown)


def test_a_short_block_is_warned_of_and_says_what_to_do(gpu: SimulatedGpu) -> None:
    with window(meter=SimulatedMeter(gpu)) as w:
        gpu.advance(0.5, 300.0)
    assert any("repeat it until it takes 3 s" in warning for warning in w.result.warnings)


class CrowdedMeter(SimulatedMeter):
    def states(self) -> tuple[GpuState, ...]:
        return (GpuState(uuid="GPU-a", processes=2),)


def test_another_process_on_the_gpu_is_warned_of(gpu: SimulatedGpu) -> None:
    with window(meter=CrowdedMeter(gpu)) as w:
        gpu.advance(5.0, 300.0)
    assert any("another process" in warning for warning in w.result.warnings)


@pytest.mark.parametrize(("own", "is_warned"), [(0, True), (1, False)])
def test_where_the_block_has_no_process_of_its_own_one_is_too_many(
    gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch, own: int, is_warned: bool
) -> None:
    meter = SimulatedMeter(gpu)
    monkeypatch.setattr(meter, "states", lambda: (GpuState(uuid="GPU-a", processes=1),))
    with window(meter=meter, own_processes=own) as w:
        gpu.advance(5.0, 300.0)
    assert any("another process was on the GPU" in warning for warning in w.result.warnings) is is_warned


@pytest.mark.parametrize("idle_s", [0.0, 1.0])
@pytest.mark.parametrize(("share", "is_named"), [(0.5, True), (0.7, True), (1.5, True), (0.9, False), (1.0, False)])
def test_a_counter_that_disagrees_with_steady_power_is_warned_of(
    gpu: SimulatedGpu, share: float, is_named: bool, idle_s: float
) -> None:
    meter = HalfMeter(gpu)
    meter.share = share
    with window(meter=meter, idle_s=idle_s) as w:
        gpu.advance(4.0, IDLE_W)
    assert any("disagrees with its power" in warning for warning in w.result.warnings) == is_named


def test_a_counter_of_a_module_may_give_more_than_the_power_of_the_gpu(gpu: SimulatedGpu) -> None:
    meter = HalfMeter(gpu)
    meter.share, meter.scope = 1.6, "gpu-module"
    with window(meter=meter) as w:
        gpu.advance(4.0, IDLE_W)
    assert not any("disagrees" in warning for warning in w.result.warnings)


def test_heat_and_what_it_does_to_clocks_are_warned_of(gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = SimulatedMeter(gpu)
    told = iter(
        [
            GpuState(uuid="GPU-a", temperature_c=40.0, slowdowns=("sw_power_cap",)),
            GpuState(uuid="GPU-a", temperature_c=70.0, slowdowns=("sw_power_cap", "hw_thermal_slowdown")),
        ]
    )
    monkeypatch.setattr(meter, "states", lambda: (next(told, GpuState(uuid="GPU-a")),))
    with window(meter=meter) as w:
        gpu.advance(5.0, 300.0)
    assert w.result.warnings[1:] == (
        "clocks of the GPU were lowered by hw_thermal_slowdown (nvidia-smi -q -d PERFORMANCE)",
        "the GPU went from 40 to 70 °C: repeat the block when warm",
    )


class LostMeter(SimulatedMeter):
    """Its GPU is lost once the block has begun."""

    lost = False

    def read(self) -> Mapping[str, float]:
        if self.lost:
            raise MeterError("GPU is lost")
        return super().read()


def test_a_meter_that_fails_at_the_end_leaves_a_reason_not_an_error(gpu: SimulatedGpu) -> None:
    meter = LostMeter(gpu)
    with window(meter=meter) as w:
        gpu.advance(4.0, 300.0)
        meter.lost = True
    assert w.energy_j is w.power_w is w.result.low_j is None
    assert w.result.reason == "GPU is lost"
    assert w.duration_s == pytest.approx(4.0, abs=1e-3)


def test_what_the_block_raises_comes_through_and_its_joules_are_known(gpu: SimulatedGpu) -> None:
    def fail() -> None:
        gpu.advance(4.0, 300.0)
        raise KeyError("the user's own")

    measured = window(meter=SimulatedMeter(gpu))
    with pytest.raises(KeyError), measured:
        fail()
    assert measured.energy_j == pytest.approx(1200.0, rel=0.05)


def test_before_its_end_a_window_has_no_joules(gpu: SimulatedGpu) -> None:
    with window(meter=SimulatedMeter(gpu)) as w, raises("window-open"):
        _ = w.energy_j


def test_windows_nest(gpu: SimulatedGpu) -> None:
    with window("outer", meter=SimulatedMeter(gpu)) as outer:
        gpu.advance(3.0, 200.0)
        with window("inner", meter=SimulatedMeter(gpu)) as inner:
            gpu.advance(4.0, 600.0)
    assert inner.energy_j == pytest.approx(2400.0, rel=0.03)
    assert outer.energy_j == pytest.approx(600.0 + 2400.0 + 0.1 * IDLE_W, rel=0.02)


def test_queued_gpu_work_is_waited_for(gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `torch.cuda.synchronize` would: the block ends when the GPU has done what it was given."""
    queued_s = [0.0]

    def synchronize() -> None:
        gpu.advance(queued_s.pop() if queued_s else 0.0, 650.0)

    cuda = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, synchronize=synchronize)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    with window(idle_s=1.0, meter=SimulatedMeter(gpu)) as w:
        queued_s.append(5.0)
    assert w.energy_j == pytest.approx(5.0 * 650.0, rel=0.002)


def test_a_sync_that_fails_harms_nobody(gpu: SimulatedGpu) -> None:
    calls: list[int] = []

    def sync() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("device-side assert")

    with window(sync=sync, meter=SimulatedMeter(gpu)) as w:
        gpu.advance(4.0, 300.0)
    assert w.energy_j == pytest.approx(1200.0, rel=0.05)


def test_without_nvml_entering_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with raises("package-missing", package="nvidia-ml-py"), window():
        pytest.fail("the block must not run")


def test_it_is_public_and_works_in_real_time() -> None:
    with infergy.window(meter=SteadyMeter(power_w=200.0)) as w:
        time.sleep(0.5)
    assert isinstance(w.result, infergy.BlockEnergy)
    assert w.duration_s >= 0.5
    hold_truth(w.result, 200.0)


def hold_truth(found: infergy.BlockEnergy, power_w: float) -> None:
    """A block has bounds that hold the truth, or a reason why it has none: that the machine was too busy."""
    if found.reason is not None:
        assert "this machine was too busy" in found.reason or "too short for the counter" in found.reason
        return
    assert found.low_j is not None
    assert found.high_j is not None
    assert found.low_j - 1e-6 <= found.duration_s * power_w <= found.high_j + 1e-6


@given(st.integers(0, 3 * POINTS), st.floats(0.001, 5.0), st.sampled_from([0.5, 3.0]))
def test_a_process_that_is_stopped_once_anywhere_has_joules_within_their_bounds(
    place: int, seconds: float, block_s: float
) -> None:
    meter = StoppedMeter({place: seconds})
    with window(meter=meter) as w:
        meter.clock.sleep(block_s)
    assert w.result.reason is None
    hold_truth(w.result, STEADY_W)


@given(st.dictionaries(st.integers(0, 3 * POINTS), st.floats(0.001, 5.0), max_size=40), st.sampled_from([0.01, 0.5, 3]))
def test_one_that_is_stopped_again_and_again_has_them_too_or_says_why_not(
    stops: dict[int, float], block_s: float
) -> None:
    meter = StoppedMeter(stops)
    with window(meter=meter) as w:
        meter.clock.sleep(block_s)
    hold_truth(w.result, STEADY_W)


class MeterOfTheHouse(SimulatedMeter):
    closed = 0
    broken = False

    def states(self) -> tuple[GpuState, ...]:
        if self.broken:
            raise MeterError("GPU is lost")
        return super().states()

    def close(self) -> None:
        self.closed += 1


def test_a_meter_that_was_opened_here_is_closed_whatever_fails(
    gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = MeterOfTheHouse(gpu)
    monkeypatch.setattr("infergy.measure.block.open_meter", lambda name, gpus: meter)
    with window(meter="house"):
        gpu.advance(3.0, 300.0)
    assert meter.closed == 1
    meter.broken = True
    with pytest.raises(MeterError), window(meter="house"):
        pass
    assert meter.closed == 2


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_bounds_hold_the_truth_whatever_the_counter_does(share: float) -> None:
    rng = random.Random(3)
    held = 0
    for _ in range(200):
        sensors = Sensors(counter=CounterSensor(delay_s=rng.uniform(0.0, 0.1), share=share))
        device = SimulatedGpu(
            GpuIdentity(uuid="GPU-a", name="simulated"), idle_w=rng.uniform(60, 130), hot_idle_w=150.0, sensors=sensors
        )
        device.sleep(1.0 + rng.uniform(0.0, 0.1))
        seconds, power_w = rng.uniform(0.5, 6.0), rng.uniform(200.0, 700.0)
        with window(meter=SimulatedMeter(device)) as w:
            device.advance(seconds, power_w)
        assert w.result.low_j is not None
        assert w.result.high_j is not None
        held += w.result.low_j <= seconds * power_w <= w.result.high_j
    assert held >= 195
