"""The rules of meters: infergy's own keep them, and each can be broken."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from infergy.errors import MissingError
from infergy.meters.nvml import NvmlMeter
from infergy.meters.simulated import SimulatedGpu, SimulatedMeter
from infergy.records import GpuIdentity, GpuState
from infergy.testing import METER_RULES, BrokenRuleError, FakeClock, check_meter
from meters.test_nvml import FakeNvml, FakeNvmlError
from raising import raises

IDLE_W = 120.0


def open_simulated(kind: type[SimulatedMeter] = SimulatedMeter) -> SimulatedMeter:
    return kind(SimulatedGpu(GpuIdentity(uuid="GPU-a", name="simulated"), idle_w=IDLE_W))


def test_the_simulated_meter_keeps_every_rule() -> None:
    assert check_meter(open_simulated) == tuple(METER_RULES)


class RunningNvml(FakeNvml):
    """NVML of a GPU that draws 512 W, and that counts how often it was started."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.started = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.started += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        if self.started == 0:
            raise FakeNvmlError("Uninitialized")
        self.started -= 1

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        return int(self.clock.now_s() * 10) * 51_200


def test_the_nvml_meter_keeps_every_rule_and_starts_and_ends_nvml_equally_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock(100.0)
    nvml = RunningNvml(clock)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def open_nvml() -> NvmlMeter:
        meter = NvmlMeter.open(1)
        meter.clock = clock
        return meter

    assert check_meter(open_nvml) == tuple(METER_RULES)
    assert nvml.started == 0


class Unnamed(SimulatedMeter):
    scope = "GPU and CPU"


class ZeroLimit(SimulatedMeter):
    def __init__(self, gpu: SimulatedGpu) -> None:
        super().__init__(gpu)
        self.gpus = (replace(gpu.identity, power_limit_w=0.0),)


class OtherIds(SimulatedMeter):
    def states(self) -> tuple[GpuState, ...]:
        return (GpuState(uuid="0"),)


class NewIds(SimulatedMeter):
    opened = 0

    def __init__(self, gpu: SimulatedGpu) -> None:
        NewIds.opened += 1
        gpu.identity = replace(gpu.identity, uuid=f"GPU-{NewIds.opened}")
        super().__init__(gpu)


class Unmetered(SimulatedMeter):
    def read(self) -> Mapping[str, float]:
        return dict.fromkeys(super().read(), math.nan)


class Falling(SimulatedMeter):
    def read(self) -> Mapping[str, float]:
        # Like a counter of 32 bits of microjoules, nearly full when it is opened.
        return {uuid: (4290.0 + joules) % 4294.967296 for uuid, joules in super().read().items()}


class Stuck(SimulatedMeter):
    def read(self) -> Mapping[str, float]:
        return dict.fromkeys(super().read(), 5.0)


class Millijoules(SimulatedMeter):
    def read(self) -> Mapping[str, float]:
        return {uuid: joules * 1000 for uuid, joules in super().read().items()}


class Kilojoules(SimulatedMeter):
    def read(self) -> Mapping[str, float]:
        return {uuid: joules / 1000 for uuid, joules in super().read().items()}


class LazyClock(SimulatedGpu):
    def sleep(self, seconds: float) -> None:
        super().sleep(seconds * 0.9)


class Lazy(SimulatedMeter):
    def __init__(self, gpu: SimulatedGpu) -> None:
        super().__init__(LazyClock(gpu.identity, idle_w=gpu.idle_w))


class ZeroTemperature(SimulatedMeter):
    def states(self) -> tuple[GpuState, ...]:
        return tuple(replace(state, temperature_c=0.0) for state in super().states())


class Megahertz(SimulatedMeter):
    def states(self) -> tuple[GpuState, ...]:
        return tuple(replace(state, sm_clock_hz=1980.0) for state in super().states())


class NoneFact(SimulatedMeter):
    def facts(self) -> Mapping[str, str]:
        return {"driver": None}  # type: ignore[dict-item]


class ClosesOnce(SimulatedMeter):
    is_open = True

    def close(self) -> None:
        if not self.is_open:
            raise RuntimeError("already closed")
        self.is_open = False


BROKEN: list[tuple[type[SimulatedMeter], str, str]] = [
    (Unnamed, "scope is named", "scope is 'GPU and CPU'"),
    (ZeroLimit, "devices are identified", "power_limit_w of GPU-a is 0.0; what is unknown is None, never 0"),
    (OtherIds, "ids agree", "states() holds ['0']"),
    (NewIds, "ids are stable", "a UUID names the same GPU"),
    (Unmetered, "joules are finite", "read() gives nan for GPU-a"),
    (Falling, "reads are monotone", "the counter of GPU-a fell from 429"),
    (Stuck, "counters tick", "GPU-a did not move in 3 s"),
    (Millijoules, "joules are plausible", "W; expected 0.01 to 5000 W. Is it in joules?"),
    (Kilojoules, "joules are plausible", "their units differ"),
    (Lazy, "the clock is monotone", "sleep(0.01) moved the clock by 0.009 s"),
    (ZeroTemperature, "unknown is None", "temperature_c of GPU-a is 0; what is unknown is None, never 0"),
    (Megahertz, "unknown is None", "sm_clock_hz of GPU-a is 1980.0; expected 1e+06 to 1e+11"),
    (NoneFact, "facts are strings", "facts() holds 'driver': None"),
    (ClosesOnce, "closing twice is harmless", "close(), called again, raised RuntimeError: already closed"),
]


@pytest.mark.parametrize(("kind", "rule", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_meter_is_reported_by_its_rule_and_a_sentence(
    kind: type[SimulatedMeter], rule: str, words: str
) -> None:
    with pytest.raises(BrokenRuleError) as broken:
        check_meter(lambda: open_simulated(kind))
    (line,) = [line for line in str(broken.value).splitlines() if line.startswith(f"- {rule}: ")]
    assert words in line
    # A meter that reads no number or stands still breaks what builds on readings, too; the others one rule alone.
    if kind not in (Unmetered, Stuck, Falling):
        assert broken.value.rules == (rule,)


def test_every_rule_has_a_meter_that_breaks_it() -> None:
    assert {rule for _, rule, _ in BROKEN} == set(METER_RULES)


def test_all_broken_rules_are_reported_at_once() -> None:
    class Hopeless(Unnamed, NoneFact, ClosesOnce):
        pass

    with pytest.raises(BrokenRuleError, match=r"meter 'simulated' breaks 3 of 12 rules") as broken:
        check_meter(lambda: open_simulated(Hopeless))
    assert broken.value.rules == ("scope is named", "facts are strings", "closing twice is harmless")


def test_what_is_known_of_the_power_narrows_the_check() -> None:
    assert check_meter(open_simulated, plausible_w=(119.0, 121.0))
    with pytest.raises(BrokenRuleError, match=r"grew by 1\d\d\S* W; expected 130 to 700 W"):
        check_meter(open_simulated, plausible_w=(130.0, 700.0))


def test_a_meter_that_raises_anything_breaks_rules_and_one_that_cannot_open_says_so() -> None:
    class Empty:
        name = "empty"

    opener: Callable[[], Any] = Empty
    with pytest.raises(BrokenRuleError, match=r"(?s)meter 'empty' breaks 12 of 12 rules.*AttributeError") as broken:
        check_meter(opener)
    assert broken.value.rules == tuple(METER_RULES)

    def refuse() -> SimulatedMeter:
        raise MissingError("no such GPU")

    with raises("missing"):
        check_meter(refuse)
