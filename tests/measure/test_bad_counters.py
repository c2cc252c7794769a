"""Counters, clocks and meters that fail in mid-window: a failed or flagged row with its reason, never a wrong joule."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from infergy.engines import Completion, Work
from infergy.errors import MeterError
from infergy.measure.block import window
from infergy.measure.cell import check_window, measure_idle
from infergy.measure.power_sampler import NO_SAMPLER, SimulatedSampler
from infergy.measure.worker import attempt
from infergy.meters.simulated import CounterSensor, Sensors, SimulatedGpu, SimulatedMeter
from infergy.records import GpuIdentity, GpuState, Measurement
from infergy.records.check import check_rows
from measure.test_measure import LoggedSession, surroundings_of, tiny_plan
from raising import raises

TRUE_J = 850.0
"""A batch of 1.7 s at 500 W."""

IN_WATCHED, IN_SECOND = 3, 7
"""The batch at which it breaks: the first after the warm-up is the watched window's, two more are each window's."""

Fault = Callable[[float], float]


class BreakingMeter(SimulatedMeter):
    """Once `is_broken`, its counter is as `fault` makes it, or its states raise `error`."""

    fault: Fault | None = None
    error: Exception | None = None
    is_broken = False

    def read(self) -> Mapping[str, float]:
        found = super().read()
        return {uuid: self.fault(j) for uuid, j in found.items()} if self.is_broken and self.fault else found

    def states(self) -> tuple[GpuState, ...]:
        if self.is_broken and self.error is not None:
            raise self.error
        return super().states()


class BreakingSession(LoggedSession):
    """Breaks the meter in its `fatal`-th batch, or lets the clock jump by `jump_s` there."""

    def __init__(self, gpu: SimulatedGpu, meter: BreakingMeter, fatal: int, jump_s: float) -> None:
        super().__init__(gpu, [], seconds=1.7, power_w=500.0)
        self._meter, self._fatal, self._jump_s, self._runs = meter, fatal, jump_s, 0

    def run(self, work: Work) -> Completion:
        self._runs += 1
        if self._runs == self._fatal:
            self._meter.is_broken = True
            self._gpu._now_s += self._jump_s
        return super().run(work)


def measured(
    fatal: int,
    fault: Fault | None = None,
    *,
    error: Exception | None = None,
    jump_s: float = 0.0,
    sees: bool = True,
    sensors: Sensors | None = None,
) -> tuple[Measurement, list[str]]:
    """The row of a cell and its flags."""
    identity = GpuIdentity(uuid="GPU-a", name="simulated", power_limit_w=700.0)
    gpu = SimulatedGpu(identity, idle_w=120.0, sensors=sensors or Sensors(counter=CounterSensor(start_j=1e6)))
    meter, plan = BreakingMeter(gpu), tiny_plan()
    meter.fault, meter.error = fault, error
    idle = measure_idle(meter, 2.0)
    session = BreakingSession(gpu, meter, fatal, jump_s)
    sampler = SimulatedSampler(meter, 0.02) if sees else NO_SAMPLER
    row, _ = attempt(session, meter, plan.cells[1], plan, surroundings_of(gpu), idle, (), sampler)
    (checked,) = check_rows([row], target=0.02)
    return row, [flag.code for flag in checked.flags]


def test_nothing_that_breaks_nothing_is_doubted() -> None:
    row, flags = measured(0)
    assert row.result is not None
    assert row.result.energy_j == pytest.approx(TRUE_J, rel=0.001)
    assert not flags


@pytest.mark.parametrize(
    ("fault", "jump_s", "words"),
    [
        (lambda j: j - 1e6, 0.0, "moved by -"),
        (lambda j: j + 2**32 / 1000, 0.0, r"mean power of 1.26.e\+06 W, expected at most 2 times its limit of 700 W"),
        (lambda j: j - 1600, 0.0, "while it worked, 120 W when idle: it began again or stood still"),
        (None, 30.0, "while it worked, 120 W when idle"),
        (None, -5.0, "the clock went back by"),
    ],
    ids=["begins again", "overflows upwards", "loses most of a window", "clock leaps", "clock goes back"],
)
def test_what_cannot_be_is_no_joule_wherever_it_comes(fault: Fault | None, jump_s: float, words: str) -> None:
    row, flags = measured(IN_WATCHED, fault, jump_s=jump_s)
    assert row.failure is not None
    assert row.failure.code == "meter"
    assert row.result is None
    assert not flags
    assert re.search(words, row.failure.message), row.failure.message

    row, flags = measured(IN_SECOND, fault, jump_s=jump_s)
    assert row.result is not None
    assert row.result.energy_j == pytest.approx(TRUE_J, rel=0.001)
    assert row.interrupted is not None
    assert flags == ["interrupted"]


@pytest.mark.parametrize("sees", [True, False])
def test_joules_that_a_counter_loses_or_adds_unseen_widen_the_interval_or_are_flagged(sees: bool) -> None:
    for change_j in (-500.0, -100.0, 300.0, 1000.0):
        row, flags = measured(IN_SECOND, lambda j, by=change_j: j + by, sees=sees)  # type: ignore[misc]
        assert row.result is not None
        error = abs(row.result.energy_j / TRUE_J - 1)
        assert error < 0.02 or "uncertain" in flags, (change_j, error, flags)


@pytest.mark.parametrize("seconds", [5, 8, 12, 16, 20])
def test_a_counter_that_begins_again_at_any_time_leaves_rows_that_can_be_judged(seconds: int) -> None:
    row, flags = measured(0, sensors=Sensors(counter=CounterSensor(reset_s=seconds)))
    if row.result is None:
        assert row.failure is not None
        assert "moved by -" in row.failure.message
    else:
        assert row.result.energy_j == pytest.approx(TRUE_J, rel=0.001)
        assert flags == ["interrupted"]


def test_states_that_fail_end_the_cell_with_what_was_whole_before() -> None:
    row, flags = measured(IN_SECOND, error=MeterError("states are gone"))
    assert row.is_ok
    assert flags == ["interrupted"]


@pytest.mark.parametrize(("change_j", "words"), [(1e5, "limit of 700 W: it jumped"), (-1800.0, "120 W when idle")])
def test_a_block_whose_joules_cannot_be_has_a_reason(change_j: float, words: str) -> None:
    identity = GpuIdentity(uuid="GPU-a", name="simulated", power_limit_w=700.0)
    gpu = SimulatedGpu(identity, idle_w=120.0, sensors=Sensors(counter=CounterSensor(start_j=1e6)))
    meter = BreakingMeter(gpu)
    meter.fault = lambda joules: joules + change_j
    with window(meter=meter, idle_s=1.0) as w:
        gpu.advance(4.0, 500.0)
        meter.is_broken = True
    assert w.energy_j is None
    assert w.power_w is None
    assert w.result.reason is not None
    assert words in w.result.reason


def test_a_clock_that_goes_back_between_batches_is_told() -> None:
    row, _ = measured(0)
    first, second = row.windows[0].batches
    back = replace(second, start_s=first.end_s - 0.5, end_s=first.end_s + 1.2)
    assert row.loaded_idle is not None
    with raises("clock-wrong"):
        check_window(replace(row.windows[0], batches=(first, back)), row.loaded_idle, row.environment.gpus)
