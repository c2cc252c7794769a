"""A pynvml of two GPUs whose power limits and clocks can be set, kept in the file SETTABLE_NVML; it outlives a process.

The file holds ``gpus``: a power limit in milliwatts and the locked clocks of each, or null; ``calls``, all that was
set; and ``deny``, calls that fail. For processes that tests start, where it stands as ``pynvml`` on their path.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

STATE = "SETTABLE_NVML"
UUIDS = ("GPU-aaaa", "GPU-bbbb")
LIMIT_MW = 700_000
NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU, NVML_SUCCESS = 1, 2, 0, 0
NVML_FI_DEV_POWER_AVERAGE, NVML_FI_DEV_POWER_INSTANT = 185, 186


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818
    pass


def fresh(deny: tuple[str, ...] = ()) -> dict[str, Any]:
    gpus = [{"limit_mw": LIMIT_MW, "locked": None} for _ in UUIDS]
    return {"gpus": gpus, "calls": [], "deny": list(deny)}


@contextmanager
def state() -> Iterator[dict[str, Any]]:
    with Path(os.environ[STATE]).open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        content = json.load(file)
        yield content
        file.seek(0)
        file.truncate()
        json.dump(content, file)


def _write(call: str, gpu: int, name: str, value: Any) -> None:
    with state() as content:
        if f"{call} {gpu}" in content["deny"] or call in content["deny"]:
            raise NVMLError("Insufficient Permissions")
        content["gpus"][gpu][name] = value
        content["calls"].append([call, gpu, value])


def nvmlInit() -> None: ...  # noqa: N802
def nvmlShutdown() -> None: ...  # noqa: N802


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return len(UUIDS)


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    return index


def nvmlDeviceGetUUID(gpu: int) -> str:  # noqa: N802
    return UUIDS[gpu]


def nvmlDeviceGetName(gpu: int) -> str:  # noqa: N802
    return "NVIDIA H200"


def nvmlDeviceGetMigMode(gpu: int) -> list[int]:  # noqa: N802
    raise NVMLError_NotSupported


def nvmlDeviceGetMemoryInfo(gpu: int) -> Any:  # noqa: N802
    return SimpleNamespace(total=150_754_820_096, used=0)


def nvmlDeviceGetMaxClockInfo(gpu: int, kind: int) -> int:  # noqa: N802
    return 1980


def nvmlDeviceGetCurrentClocksEventReasons(gpu: int) -> int:  # noqa: N802
    return 0


def nvmlDeviceGetTotalEnergyConsumption(gpu: int) -> int:  # noqa: N802
    return 1


def nvmlSystemGetCudaDriverVersion() -> int:  # noqa: N802
    return 13000


def nvmlSystemGetDriverVersion() -> str:  # noqa: N802
    return "580.0"


def nvmlDeviceGetPowerManagementLimitConstraints(gpu: int) -> list[int]:  # noqa: N802
    return [200_000, LIMIT_MW]


def nvmlDeviceGetPowerManagementLimit(gpu: int) -> int:  # noqa: N802
    with state() as content:
        return int(content["gpus"][gpu]["limit_mw"])


nvmlDeviceGetEnforcedPowerLimit = nvmlDeviceGetPowerManagementLimit  # noqa: N816


def nvmlDeviceGetSupportedMemoryClocks(gpu: int) -> list[int]:  # noqa: N802
    return [3201, 1593]


def nvmlDeviceGetSupportedGraphicsClocks(gpu: int, memory: int) -> list[int]:  # noqa: N802
    return list(range(1980, 345 - 1, -15)) if memory == 3201 else [345]


def nvmlDeviceSetPowerManagementLimit(gpu: int, limit_mw: int) -> None:  # noqa: N802
    _write("limit", gpu, "limit_mw", limit_mw)


def nvmlDeviceSetGpuLockedClocks(gpu: int, low_mhz: int, high_mhz: int) -> None:  # noqa: N802
    _write("lock", gpu, "locked", [low_mhz, high_mhz])


def nvmlDeviceResetGpuLockedClocks(gpu: int) -> None:  # noqa: N802
    _write("reset", gpu, "locked", None)
