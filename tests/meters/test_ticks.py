"""Ticks: where windows open and close."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.meters import next_tick, sharp_tick
from infergy.meters.simulated import SimulatedGpu, SimulatedMeter
from infergy.meters.ticks import counter_period_s
from infergy.records import GpuIdentity
from raising import raises
from stalls import POINTS, STEADY_W, StoppedMeter


def simulated(
    period_s: float = 0.1, phase_s: float = 0.037, idle_w: float = 100.0
) -> tuple[SimulatedGpu, SimulatedMeter]:
    gpu = SimulatedGpu(GpuIdentity(uuid="GPU-a", name="simulated"), idle_w=idle_w, period_s=period_s, phase_s=phase_s)
    return gpu, SimulatedMeter(gpu)


def test_the_counter_is_coarse_and_never_ahead_of_the_truth() -> None:
    gpu, _ = simulated()
    gpu.advance(0.036, 500.0)
    assert gpu.counter_j == 0.0
    gpu.advance(0.100, 500.0)
    assert gpu.counter_j == pytest.approx(0.037 * 500, abs=1e-3)
    assert gpu.true_j == pytest.approx(0.136 * 500)


def test_next_tick_returns_just_after_the_counter_moved() -> None:
    gpu, meter = simulated()
    edge = next_tick(meter)
    tick = edge.ticks["GPU-a"]
    assert 0.037 <= tick.time_s <= 0.037 + edge.uncertainty_s
    assert edge.uncertainty_s < 0.001
    assert tick.energy_j == gpu.counter_j


def test_two_ticks_in_a_row_are_one_period_apart() -> None:
    _, meter = simulated(period_s=0.05)
    assert counter_period_s(meter) == pytest.approx(0.05, abs=0.001)


@given(power_w=st.floats(50, 700), seconds=st.floats(0.5, 20), phase_s=st.floats(0, 0.0999))
def test_a_window_cut_at_ticks_recovers_the_true_joules(power_w: float, seconds: float, phase_s: float) -> None:
    gpu, meter = simulated(phase_s=phase_s)
    opened = next_tick(meter)
    begun_j, begun_s = gpu.true_j, gpu.now_s()
    gpu.advance(seconds, power_w)
    true_j = gpu.true_j - begun_j
    closed = next_tick(meter)
    window_s = closed.ticks["GPU-a"].time_s - opened.ticks["GPU-a"].time_s
    counted_j = closed.ticks["GPU-a"].energy_j - opened.ticks["GPU-a"].energy_j
    idle_j = (window_s - (seconds)) * gpu.idle_w
    doubt_j = (opened.uncertainty_s + closed.uncertainty_s) * (power_w + gpu.idle_w) + 0.01
    assert begun_s >= opened.ticks["GPU-a"].time_s
    assert counted_j - idle_j == pytest.approx(true_j, abs=doubt_j)


class StuckMeter(SimulatedMeter):
    def read(self) -> Mapping[str, float]:
        super().read()
        return {"GPU-a": 5.0}


def test_a_counter_that_stands_still_is_an_error_that_names_the_gpu() -> None:
    gpu, _ = simulated()
    with raises("counter-stuck", uuid="GPU-a"):
        next_tick(StuckMeter(gpu))


@given(st.dictionaries(st.integers(0, POINTS), st.floats(0.001, 5.0), max_size=4))
def test_a_tick_came_within_what_its_stamp_says_wherever_the_process_is_stopped(stops: dict[int, float]) -> None:
    edge = next_tick(StoppedMeter(stops))
    (tick,) = edge.ticks.values()
    came_s = tick.energy_j / STEADY_W
    assert tick.time_s - edge.uncertainty_s - 1e-6 <= came_s <= tick.time_s + 1e-6


@pytest.mark.parametrize("place", range(12))
def test_a_process_that_was_stopped_for_longer_than_a_counter_may_stand_still_blames_no_counter(place: int) -> None:
    assert next_tick(StoppedMeter({place: 5.0})).ticks


@pytest.mark.parametrize(("slow", "skipped"), [((), {0}), ((1,), {1}), ((1, 2), {0, 1}), ((2,), {0})])
def test_a_tick_that_was_found_late_is_passed_by_for_one_that_is_not(slow: tuple[int, ...], skipped: set[int]) -> None:
    """`slow` are the ticks, from 1 on, at which a read takes 20 ms, as on an H200 behind a hypervisor."""
    gpu, _ = simulated()

    class SlowMeter(SimulatedMeter):
        def read(self) -> Mapping[str, float]:
            late_s = gpu.now_s() - 0.037
            if any(-0.002 < late_s - 0.1 * (tick - 1) < 0 for tick in slow):
                gpu.sleep(0.02)
            return super().read()

    edge = sharp_tick(SlowMeter(gpu))
    (tick,) = edge.ticks.values()
    assert int((tick.time_s - 0.037) / 0.1) in skipped
    assert edge.uncertainty_s == pytest.approx(0.02 if slow == (1, 2) else 0.0005, abs=0.002)
