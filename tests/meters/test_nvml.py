"""Which GPUs are metered, and what NVML's absence says."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from infergy.meters import Power
from infergy.meters.nvml import NvmlMeter, visible_uuids
from raising import raises

UUIDS = ["GPU-aaaa-1", "GPU-bbbb-2", "GPU-cccc-3"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, UUIDS),
        ("2,0", ["GPU-cccc-3", "GPU-aaaa-1"]),
        ("GPU-bbbb-2", ["GPU-bbbb-2"]),
        ("GPU-bb", ["GPU-bbbb-2"]),
        ("", []),
        ("1,-1,2", ["GPU-bbbb-2"]),
    ],
)
def test_cuda_visible_devices_is_honoured_in_its_order(visible: str | None, expected: list[str]) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert visible_uuids(UUIDS, environment) == expected


@pytest.mark.parametrize("visible", ["7", "GPU-", "GPU-zz", "one"])
def test_an_entry_that_names_no_gpu_is_rejected_with_those_there_are(visible: str) -> None:
    with raises("bad-value", option="CUDA_VISIBLE_DEVICES", value=visible):
        visible_uuids(UUIDS, {"CUDA_VISIBLE_DEVICES": visible})


def test_a_mig_slice_is_rejected_because_its_energy_cannot_be_separated() -> None:
    with raises("mig", gpu="MIG-1234"):
        visible_uuids(UUIDS, {"CUDA_VISIBLE_DEVICES": "MIG-1234"})


class FakeNvmlError(Exception):
    pass


class FakeNotSupportedError(FakeNvmlError):
    pass


class FakeNvml:
    """The part of pynvml that the meter calls, for one GPU."""

    NVMLError = FakeNvmlError
    NVMLError_NotSupported = FakeNotSupportedError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU, NVML_FI_DEV_POWER_INSTANT, NVML_SUCCESS = 1, 2, 0, 186, 0
    NVML_FI_DEV_POWER_AVERAGE = 185

    def __init__(self) -> None:
        self.energy_mj = 123_456
        self.has_counter = True

    def nvmlInit(self) -> None: ...  # noqa: N802
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"handle{index}"

    def nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802
        return "GPU-aaaa-1"

    def nvmlDeviceGetName(self, handle: str) -> str:  # noqa: N802
        return "NVIDIA Test"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if not self.has_counter:
            raise FakeNotSupportedError("Not Supported")
        return self.energy_mj

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(total=10, used=4)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:  # noqa: N802
        return 700_000

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        return 1980

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        return {1: 1900, 2: 3201}[kind]

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        return 41

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        return 0x4 | 0x20

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[int]:  # noqa: N802
        raise FakeNotSupportedError("Not Supported")

    def nvmlDeviceGetFieldValues(self, handle: str, fields: list[int]) -> list[Any]:  # noqa: N802
        told = {186: (0, 512_000), 185: (3, 0)}
        return [SimpleNamespace(nvmlReturn=told[one][0], value=SimpleNamespace(uiVal=told[one][1])) for one in fields]

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        raise FakeNotSupportedError("Not Supported")

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.1"

    def nvmlSystemGetCudaDriverVersion(self) -> int:  # noqa: N802
        return 13000


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_readings_are_joules_by_uuid(nvml: FakeNvml) -> None:
    assert NvmlMeter.open(1).read() == {"GPU-aaaa-1": 123.456}


def test_states_and_identity_are_in_si_units_and_unknown_is_none(nvml: FakeNvml) -> None:
    meter = NvmlMeter.open(1)
    (state,) = meter.states()
    assert state.power_w == 512.0
    assert state.sm_clock_hz == 1.9e9
    assert state.slowdowns == ("sw_power_cap", "sw_thermal_slowdown")
    assert state.processes is None
    assert meter.gpus[0].power_limit_w == 700.0
    assert meter.facts() == {"driver": "580.1", "cuda": "13.0"}


def test_a_power_field_that_does_not_answer_is_none(nvml: FakeNvml) -> None:
    assert NvmlMeter.open(1).powers() == {"GPU-aaaa-1": Power(instant_w=512.0, average_w=None)}


def test_a_gpu_without_a_counter_is_named(nvml: FakeNvml) -> None:
    nvml.has_counter = False
    with raises("counter-missing", gpu="NVIDIA Test"):
        NvmlMeter.open(1)


def test_a_counter_that_vanishes_after_it_has_counted_is_the_instruments_fault(nvml: FakeNvml) -> None:
    meter = NvmlMeter.open(1)
    nvml.has_counter = False
    with raises("counter-unreadable", index=0, uuid="GPU-aaaa-1"):
        meter.read()


def test_too_few_gpus_say_how_many_are_visible(nvml: FakeNvml) -> None:
    with raises("gpu-missing", wanted=2, found=1):
        NvmlMeter.open(2)


def test_without_nvml_the_message_says_what_to_install_and_how_to_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with raises("package-missing", package="nvidia-ml-py"):
        NvmlMeter.open(1)
