"""Which of several GPUs are counted: a wrong one shows as wrong joules, for no two of these draw the same power."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from infergy.errors import GpuLostError
from infergy.measure.cell import measure_idle
from infergy.meters import Power
from infergy.meters.nvml import NvmlMeter
from infergy.testing import FakeClock
from meters.test_nvml import FakeNvml, FakeNvmlError
from raising import raises

WATTS = {"GPU-aaaa-1": 100.0, "GPU-bbbb-2": 210.0, "GPU-cccc-3": 330.0, "GPU-cddd-4": 470.0}


class FakeGpuIsLostError(FakeNvmlError):
    pass


class FakeNoPermissionError(FakeNvmlError):
    pass


class NodeNvml(FakeNvml):
    """Four GPUs of 100, 210, 330 and 470 W; each may fail on its own."""

    NVMLError_GpuIsLost = FakeGpuIsLostError
    NVMLError_NoPermission = FakeNoPermissionError

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(100.0)
        self.started = 0
        self.failing: dict[str, FakeNvmlError] = {}
        self.mig: set[str] = set()
        self.mute: set[str] = set()

    def nvmlInit(self) -> None:  # noqa: N802
        self.started += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.started -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(WATTS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        handle = list(WATTS)[index]
        if isinstance(self.failing.get(handle), FakeNoPermissionError):
            raise self.failing[handle]
        return handle

    def nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802
        if isinstance(self.failing.get(handle), FakeGpuIsLostError):
            raise self.failing[handle]
        return handle

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if handle in self.failing:
            raise self.failing[handle]
        place = list(WATTS).index(handle)
        ticks = (self.clock.now_s() + 0.023 * place) // 0.1
        return int(ticks * 100 * WATTS[handle]) + place * 10_000_000

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        return [handle in self.mig] * 2

    def nvmlDeviceGetFieldValues(self, handle: str, fields: list[int]) -> list[Any]:  # noqa: N802
        code = 3 if handle in self.mute else 0
        milliwatts = int(WATTS[handle] * 1000)
        return [SimpleNamespace(nvmlReturn=code, value=SimpleNamespace(uiVal=0 if code else milliwatts))] * len(fields)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> NodeNvml:
    fake = NodeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def open_meter(nvml: NodeNvml, count: int | None) -> NvmlMeter:
    meter = NvmlMeter.open(count)
    meter.clock = nvml.clock
    return meter


@pytest.mark.parametrize(
    ("visible", "count", "counted"),
    [
        (None, 1, ["GPU-aaaa-1"]),
        (None, 3, ["GPU-aaaa-1", "GPU-bbbb-2", "GPU-cccc-3"]),
        (None, None, list(WATTS)),
        ("3,1", 2, ["GPU-cddd-4", "GPU-bbbb-2"]),
        ("3,1", 1, ["GPU-cddd-4"]),
        ("2", None, ["GPU-cccc-3"]),
        (" 1 , 2 ,-1,0", None, ["GPU-bbbb-2", "GPU-cccc-3"]),
        ("GPU-cddd-4,GPU-aaaa-1", 2, ["GPU-cddd-4", "GPU-aaaa-1"]),
        ("GPU-cd,GPU-cc,GPU-b", 2, ["GPU-cddd-4", "GPU-cccc-3"]),
    ],
)
def test_exactly_the_first_gpus_that_the_engine_sees_are_counted(
    nvml: NodeNvml, monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int | None, counted: list[str]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    meter = open_meter(nvml, count)
    assert [gpu.uuid for gpu in meter.gpus] == counted
    assert [state.uuid for state in meter.states()] == counted
    window = measure_idle(meter, 3.0)
    assert window.power_by_gpu_w == pytest.approx({uuid: WATTS[uuid] for uuid in counted}, rel=0.01)


@pytest.mark.parametrize(
    ("visible", "code", "fields"),
    [
        ("", "gpu-missing", {"wanted": 2, "found": 0}),
        ("-1", "gpu-missing", {"wanted": 2, "found": 0}),
        ("2", "gpu-missing", {"wanted": 2, "found": 1}),
        ("1,1", "bad-value", {"value": "1,1"}),
        ("GPU-b,GPU-bbbb", "bad-value", {"value": "GPU-b,GPU-bbbb"}),
        ("0,GPU-b", "bad-value", {"value": "0,GPU-b"}),
        ("GPU-c", "bad-value", {"value": "GPU-c"}),
        ("0,4", "bad-value", {"value": "4"}),
        ("0,MIG-1", "mig", {"gpu": "MIG-1"}),
    ],
)
def test_what_cuda_would_see_otherwise_is_rejected(
    nvml: NodeNvml, monkeypatch: pytest.MonkeyPatch, visible: str, code: str, fields: dict[str, object]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with raises(code, **fields):
        NvmlMeter.open(2)
    assert nvml.started == 0


def test_a_board_cut_into_slices_is_rejected_and_others_are_not(
    nvml: NodeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.mig = {"GPU-bbbb-2"}
    with raises("mig", gpu="GPU-bbbb-2"):
        NvmlMeter.open(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert [gpu.uuid for gpu in NvmlMeter.open(2).gpus] == ["GPU-aaaa-1", "GPU-cccc-3"]


def test_a_counter_that_fails_is_named(nvml: NodeNvml) -> None:
    meter = open_meter(nvml, 3)
    nvml.failing["GPU-bbbb-2"] = FakeNvmlError("Timeout")
    with raises("counter-unreadable", index=1, uuid="GPU-bbbb-2", reason="Timeout") as told:
        meter.read()
    assert not isinstance(told.value, GpuLostError)


def test_a_lost_gpu_is_named_and_those_that_do_not_need_it_are_metered(
    nvml: NodeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = open_meter(nvml, 3)
    nvml.failing["GPU-bbbb-2"] = FakeGpuIsLostError("GPU is lost")
    with raises("gpu-lost", index=1, uuid="GPU-bbbb-2", reason="GPU is lost"):
        meter.read()
    with raises("gpu-lost", index=1):
        NvmlMeter.open(2)
    assert [gpu.uuid for gpu in NvmlMeter.open(1).gpus] == ["GPU-aaaa-1"]
    # The index of a GPU is its place on the bus, whether those before it answer or not.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert [gpu.uuid for gpu in NvmlMeter.open(2).gpus] == ["GPU-cccc-3", "GPU-cddd-4"]


def test_power_that_one_gpu_does_not_report_is_none_and_that_of_the_others_stands(nvml: NodeNvml) -> None:
    nvml.mute = {"GPU-aaaa-1"}
    meter = open_meter(nvml, 2)
    assert [state.power_w for state in meter.states()] == [None, 210.0]
    assert meter.powers() == {
        "GPU-aaaa-1": Power(instant_w=None, average_w=None),
        "GPU-bbbb-2": Power(instant_w=210.0, average_w=210.0),
    }


def test_a_gpu_that_may_not_be_opened_is_no_matter_where_others_are_wanted(
    nvml: NodeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.failing["GPU-bbbb-2"] = FakeNoPermissionError("Insufficient Permissions")
    assert [gpu.uuid for gpu in open_meter(nvml, None).gpus] == ["GPU-aaaa-1", "GPU-cccc-3", "GPU-cddd-4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert [gpu.uuid for gpu in open_meter(nvml, None).gpus] == ["GPU-aaaa-1", "GPU-cccc-3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with raises("nvml-unavailable", index=1):
        NvmlMeter.open(None)


def test_names_in_bytes_are_read_and_a_superchip_counts_its_module(
    nvml: NodeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_meter(nvml, 1).scope == "gpu-board"
    monkeypatch.setattr(nvml, "nvmlDeviceGetName", lambda _: b"NVIDIA GH200 480GB")
    monkeypatch.setattr(nvml, "nvmlDeviceGetUUID", lambda handle: handle.encode())
    meter = open_meter(nvml, 2)
    assert [gpu.uuid for gpu in meter.gpus] == ["GPU-aaaa-1", "GPU-bbbb-2"]
    assert (meter.gpus[0].name, meter.scope) == ("NVIDIA GH200 480GB", "gpu-module")
