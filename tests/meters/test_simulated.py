"""The simulated GPU's sensors against its own truth."""

from __future__ import annotations

import pytest

from infergy.meters import Power, powers_of
from infergy.meters.simulated import CounterSensor, Sensors, SimulatedGpu, SimulatedMeter, SteadyMeter
from infergy.records import GpuIdentity

IDLE_W, FULL_W = 120.0, 700.0


def test_by_default_the_fields_show_the_truth_and_the_average_its_last_second() -> None:
    gpu = SimulatedGpu(GpuIdentity(uuid="GPU-a", name="simulated"), idle_w=IDLE_W)
    gpu.sleep(2.0)
    gpu.advance(0.25, FULL_W)
    assert gpu.instant_w() == FULL_W
    assert gpu.average_w() == pytest.approx(0.75 * IDLE_W + 0.25 * FULL_W)


def test_a_part_time_counter_is_right_under_a_steady_load_and_wrong_under_one_that_it_misses() -> None:
    sensors = Sensors(counter=CounterSensor(share=0.25))
    gpu = SimulatedGpu(GpuIdentity(uuid="GPU-a", name="x"), idle_w=IDLE_W, phase_s=0.1, sensors=sensors)
    gpu.sleep(1.0005)
    assert gpu.counter_j == pytest.approx(1.0 * IDLE_W, abs=0.002)
    for _ in range(10):
        gpu.advance(0.05, FULL_W)
        gpu.sleep(0.05)
    assert gpu.counter_j == pytest.approx(2.0 * IDLE_W, abs=0.01)
    assert gpu.true_j == pytest.approx(1.5005 * IDLE_W + 0.5 * FULL_W)


def test_work_that_goes_on_by_itself_draws_its_power_while_time_passes() -> None:
    gpu = SimulatedGpu(GpuIdentity(uuid="GPU-a", name="x"), idle_w=IDLE_W)
    gpu.sleep(1.0)
    gpu.load_w = FULL_W
    gpu.sleep(1.0)
    gpu.load_w = None
    gpu.sleep(1.0)
    assert gpu.true_j == pytest.approx(2 * IDLE_W + FULL_W)


def test_a_late_counter_in_coarse_steps_shows_the_past_in_whole_steps() -> None:
    sensors = Sensors(counter=CounterSensor(delay_s=0.03, step_j=2.5))
    gpu = SimulatedGpu(GpuIdentity(uuid="GPU-a", name="x"), idle_w=IDLE_W, phase_s=0.1, sensors=sensors)
    gpu.sleep(0.9995)
    gpu.advance(0.0015, FULL_W)
    assert gpu.counter_j == 117.5  # 0.97 s of 120 W are 116.4 J


def test_a_meter_without_power_fields_reports_those_of_its_states() -> None:
    assert powers_of(SteadyMeter(power_w=90.0)) == {"GPU-simulated-0": Power(instant_w=90.0, average_w=None)}
    gpu = SimulatedGpu(GpuIdentity(uuid="GPU-a", name="x"), idle_w=IDLE_W)
    assert powers_of(SimulatedMeter(gpu)) == {"GPU-a": Power(instant_w=IDLE_W, average_w=IDLE_W)}
