"""The second sampler: a process of its own on the system's clock, the sensor's own history on a virtual one."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infergy.engines import Completion, Work
from infergy.errors import MeterError
from infergy.measure import cell
from infergy.measure.cell import measure_cell, measure_idle
from infergy.measure.power_sampler import (
    SAMPLE,
    WAIT,
    PowerSampler,
    ProcessSampler,
    SimulatedSampler,
    moments,
    open_sampler,
)
from infergy.measure.sweep import sweep
from infergy.meters import Meter, Power, open_meter
from infergy.meters.simulated import PowerSensor, Sensors, SimulatedGpu, SimulatedMeter
from infergy.records import GpuIdentity, Measurement, MeasureOptions
from infergy.records.store import read_store
from infergy.records.timeline import PowerTimeline, ratio
from installed import install
from measure.test_measure import SRC, LoggedSession, surroundings_of, tiny_plan
from waiting import PATIENCE_S, is_running, wait_until

POWER = Power(instant_w=250.0, average_w=None)

STEADY = """
from infergy.meters.simulated import SimulatedMeter, SteadyMeter
from infergy.meters.simulated import SimulatedGpu
from infergy.errors import MeterError
from infergy.meters import Power
from infergy.records import GpuIdentity, Measurement, MeasureOptions
import os

class Steady(SteadyMeter):
    name = "steady"

    @classmethod
    def open(cls, count):
        return cls(250.0, count)

class Dumb(Steady):
    def powers(self):
        return {gpu.uuid: Power(instant_w=None, average_w=None) for gpu in self.gpus}

class Lost(Steady):
    def powers(self):
        if os.environ.get("LOST"):
            raise MeterError("GPU is lost")
        return {gpu.uuid: Power(instant_w=250.0, average_w=None) for gpu in self.gpus}
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Meters on the system's clock, seen by this process and by those that it starts."""
    folder = tmp_path / "site"
    module = f"steadymeters_{abs(hash(request.node.name))}"
    install(folder, "steady-meters", {name: f"{module}:{name.capitalize()}" for name in ("steady", "dumb", "lost")})
    (folder / f"{module}.py").write_text(STEADY)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{SRC}")
    return folder


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks of another process come when this machine lets it look."""
    monkeypatch.setattr("infergy.measure.power_sampler.START_S", PATIENCE_S)
    monkeypatch.setattr("infergy.measure.power_sampler.PATIENCE_S", PATIENCE_S)


def test_another_process_sees_the_power_of_each_gpu_on_our_clock(site: Path) -> None:
    sampler = open_sampler(open_meter("steady", 2), "steady", 0.005)
    assert isinstance(sampler, ProcessSampler)
    sampler.begin()
    start_s = time.monotonic()
    time.sleep(0.2)
    end_s = time.monotonic()
    found = sampler.take(start_s, end_s)
    sampler.close()
    assert sampler.reason is None
    assert [one.uuid for one in found] == ["GPU-simulated-0", "GPU-simulated-1"]
    assert [one.power_w for one in found] == [(250.0,), (275.0,)]
    for one, power_w in zip(found, (250.0, 275.0), strict=True):
        assert one.start_s <= start_s
        assert one.energy_j(start_s, end_s) == pytest.approx(power_w * (end_s - start_s))
        assert one.longest_gap_s > 0


def test_it_looks_only_between_begin_and_take(site: Path) -> None:
    sampler = open_sampler(open_meter("steady", 1), "steady", 0.005)
    assert isinstance(sampler, ProcessSampler)

    def looks() -> int:
        return os.fstat(sampler._file.fileno()).st_size

    def has_heard() -> bool:
        """Whether it took what it was told out of the pipe; then it is between two looks."""
        assert sampler._process.stdin is not None
        left = array("i", [0])
        fcntl.ioctl(sampler._process.stdin.fileno(), termios.FIONREAD, left)
        return left[0] == 0

    time.sleep(0.1)
    assert looks() == 0
    for _ in range(2):
        before = looks()
        sampler.begin()
        assert looks() > before
        now_s = time.monotonic()
        assert sampler.take(now_s, now_s + 0.05)
        wait_until(has_heard)
        after = looks()
        time.sleep(0.1)
        assert looks() == after
    sampler.close()
    sampler.close()


def test_told_to_wait_it_looks_no_more_however_late_the_next_look_was() -> None:
    commands, told = os.pipe()
    looks = moments(commands, 0.001, os.getppid())
    os.write(told, SAMPLE)
    next(looks)
    next(looks)
    os.write(told, WAIT)
    os.close(told)
    assert list(looks) == []
    os.close(commands)


def test_a_process_that_ends_is_a_reason_not_a_failure(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = open_meter("lost", 1)
    monkeypatch.setattr(meter, "powers", lambda: {gpu.uuid: POWER for gpu in meter.gpus})
    monkeypatch.setenv("LOST", "1")
    sampler = open_sampler(meter, "lost", 0.005)
    assert isinstance(sampler, ProcessSampler)
    sampler.begin()
    assert sampler.reason == "its process ended with status 3; see the log"
    now_s = time.monotonic()
    assert sampler.take(now_s - 0.1, now_s) == ()
    assert sampler.reason == "its process ended with status 3; see the log"
    sampler.close()


def test_a_process_that_is_killed_is_told_by_its_signal(site: Path) -> None:
    sampler = open_sampler(open_meter("steady", 1), "steady", 0.005)
    assert isinstance(sampler, ProcessSampler)
    sampler.begin()
    os.kill(sampler._process.pid, signal.SIGKILL)
    sampler._process.wait()
    now_s = time.monotonic()
    assert sampler.take(now_s - 0.1, now_s) == ()
    assert sampler.reason == "its process ended with signal 9; see the log"
    sampler.close()


def test_it_ends_when_its_parent_is_killed(site: Path) -> None:
    code = (
        "import time\n"
        "from infergy.measure.power_sampler import open_sampler\n"
        "from infergy.meters import open_meter\n"
        "print(open_sampler(open_meter('steady', 1), 'steady', 0.01)._process.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_running(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not is_running(pid))


def test_where_nothing_can_be_seen_it_says_why(site: Path, gpu: SimulatedGpu) -> None:
    steady: Meter = open_meter("steady", 1)
    reasons = {
        "not asked for: timeline_s is 0": open_sampler(steady, "steady", 0.0),
        "meter steady reports no power": open_sampler(open_meter("dumb", 1), "dumb", 0.02),
    }
    steady.clock = gpu
    reasons["meter steady has a clock of its own, which another process does not see"] = open_sampler(
        steady, "steady", 0.02
    )
    for reason, sampler in reasons.items():
        assert isinstance(sampler, PowerSampler)
        assert sampler.reason == reason
        assert sampler.take(0.0, 1.0) == ()
        sampler.begin()
        sampler.close()


@pytest.fixture
def gpu() -> SimulatedGpu:
    return SimulatedGpu(GpuIdentity(uuid="GPU-a", name="simulated"), idle_w=100.0)


def test_a_simulated_sensor_shows_what_it_showed_at_each_look() -> None:
    sensors = Sensors(power=PowerSensor(period_s=0.1, delay_s=0.05, gain=1.1))
    gpu = SimulatedGpu(GpuIdentity(uuid="GPU-a", name="simulated"), idle_w=100.0, phase_s=0.0, sensors=sensors)
    sampler = SimulatedSampler(SimulatedMeter(gpu), 0.02)
    sampler.begin()
    gpu.sleep(1.0)
    gpu.advance(2.0, 600.0)
    gpu.sleep(1.0)
    (found,) = sampler.take(0.5, 4.0)
    assert found.power_w == pytest.approx((110.0, 660.0, 110.0))
    # Changes show at the first look after the sensor's next period, 50 ms late.
    starts_s = [found.start_s + offset / 1000 for offset in found.offsets_ms[1:]]
    assert starts_s == pytest.approx([1.1, 3.1], abs=0.021)


def test_each_row_of_a_sweep_has_its_own_timeline_and_both_witnesses_agree(tmp_path: Path) -> None:
    plan = tiny_plan()
    list(sweep(plan, tmp_path / "rows.jsonl", simulate=True))
    rows = read_store(tmp_path / "rows.jsonl").rows
    assert len(rows) == 8
    for row in rows:
        (found,) = row.timeline
        assert row.watched is not None
        opened, closed = row.watched.open[found.uuid], row.watched.close[found.uuid]
        assert found.start_s <= opened.time_s
        assert found.end_s == closed.time_s
        assert closed.time_s < row.windows[0].open[found.uuid].time_s
        assert found.longest_gap_s < 0.05
        assert row.timeline_reason is None
        assert ratio(row) == pytest.approx(1.0, abs=0.02)


def test_without_a_timeline_rows_say_that_none_was_wanted(tmp_path: Path) -> None:
    plan = tiny_plan(options={"shuffle": False, "timeline_s": 0.0})
    list(sweep(plan, tmp_path / "rows.jsonl", simulate=True))
    for row in read_store(tmp_path / "rows.jsonl").rows:
        assert row.timeline == ()
        assert row.watched is None
        assert row.timeline_reason == "not asked for: timeline_s is 0"
        assert ratio(row) is None


def test_a_counter_that_loses_joules_shows_in_the_ratio_only(tmp_path: Path) -> None:
    list(sweep(tiny_plan(), tmp_path / "rows.jsonl", simulate=True))
    row = read_store(tmp_path / "rows.jsonl").rows[0]
    assert row.watched is not None
    ((uuid, tick),) = row.watched.close.items()
    lost = replace(row.watched, close={uuid: replace(tick, energy_j=tick.energy_j - 200.0)})
    found = ratio(replace(row, watched=lost))
    assert found is not None
    assert found < 0.95


class SlowingSampler(SimulatedSampler):
    """Looks at power, and an engine that waits for its host takes `SLOWER_S` more a batch meanwhile."""

    is_looking = False

    def begin(self) -> None:
        self.is_looking = True
        super().begin()

    def take(self, start_s: float, end_s: float) -> tuple[PowerTimeline, ...]:
        self.is_looking = False
        return super().take(start_s, end_s)


SLOWER_S = 0.3


class SlowedSession(LoggedSession):
    """Work of 1.2 s at 500 W."""

    def __init__(self, gpu: SimulatedGpu, sampler: SlowingSampler) -> None:
        super().__init__(gpu, [], seconds=1.2, power_w=500.0)
        self.asked: list[int] = []
        self._witness = sampler

    def run(self, work: Work) -> Completion:
        self.asked.append(work.output_tokens[0])
        if self._witness.is_looking:
            self._gpu.advance(SLOWER_S, 200.0)
        return super().run(work)


def watched_cell(gpu: SimulatedGpu, **changes: Any) -> tuple[Measurement, SlowedSession]:
    meter = SimulatedMeter(gpu)
    sampler = SlowingSampler(meter, 0.02)
    session = SlowedSession(gpu, sampler)
    planned = replace(tiny_plan().cells[1], **changes)
    row = measure_cell(
        session, meter, planned, MeasureOptions(), surroundings_of(gpu), measure_idle(meter, 1.0), (), sampler
    )
    return row, session


def test_looking_at_power_changes_no_joules_though_it_slows_the_engine(gpu: SimulatedGpu) -> None:
    row, _ = watched_cell(gpu)
    assert row.watched is not None
    assert {round(batch.duration_s, 3) for batch in row.watched.batches} == {1.2 + SLOWER_S}
    assert {round(batch.duration_s, 3) for window in row.windows for batch in window.batches} == {1.2}
    assert row.result is not None
    assert row.result.energy_j == pytest.approx(600.0, rel=1e-3)
    assert ratio(row) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("prefill_s", "batch_s", "output"), [(0.1, 4.9, 512), (1.0, 9.0, 256), (6.0, 9.0, 8), (9.0, 9.0, 512)]
)
def test_of_a_long_batch_only_the_begin_is_watched(
    gpu: SimulatedGpu, prefill_s: float, batch_s: float, output: int
) -> None:
    cell = tiny_plan().cells[1].cell
    long = replace(cell, load=replace(cell.load, output_tokens=512))
    row, session = watched_cell(gpu, cell=long, forecast_prefill_s=prefill_s, forecast_batch_s=batch_s)
    assert row.watched is not None
    warmed, *asked = session.asked
    watched = len(row.watched.batches)
    assert warmed == 8
    assert set(asked[:watched]) == {output}
    assert set(asked[watched:]) == {512}
    assert row.watched.batches[0].output_tokens == output * long.load.batch


class FlagSampler(PowerSampler):
    """A sampler that only knows whether it looks."""

    def __init__(self) -> None:
        super().__init__(None)
        self.is_looking = False

    def begin(self) -> None:
        self.is_looking = True

    def take(self, start_s: float, end_s: float) -> tuple[PowerTimeline, ...]:
        self.is_looking = False
        return ()

    def stop(self) -> None:
        self.is_looking = False


def test_nobody_looks_into_other_windows_after_the_watched_one_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = FlagSampler()

    def fail(*_: object) -> None:
        assert sampler.is_looking
        raise MeterError("the counter went backwards")

    monkeypatch.setattr(cell, "_measure_window", fail)
    planned = tiny_plan().cells[0]
    work = Work(prompts=((1, 2),), output_tokens=(4,), arrival_s=(0.0,))
    nobody: Any = None
    with pytest.raises(MeterError):
        cell._watch(nobody, nobody, planned, work, MeasureOptions(), nobody, sampler, is_watched=False)
    assert not sampler.is_looking
