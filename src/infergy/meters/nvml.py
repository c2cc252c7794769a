"""NVIDIA's own energy counter, through NVML.

`nvmlDeviceGetTotalEnergyConsumption` counts the millijoules of the whole board since the driver was loaded (Volta
and later; NVML API reference, "Device Queries"). Nothing here writes to a GPU: no clock, limit or mode is changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from infergy.errors import GpuLostError, MeterError, MissingError, UsageError
from infergy.meters.protocol import Clock, Power, SystemClock
from infergy.records import GpuIdentity, GpuState
from infergy.units import HERTZ_PER_MEGAHERTZ, JOULES_PER_MILLIJOULE, WATTS_PER_MILLIWATT, count_of

SLOWDOWNS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
"""Bits of `nvmlDeviceGetCurrentClocksEventReasons` (nvml.h, nvmlClocksEventReasons)."""

SIMULATE_HINT = "Without a GPU, try the simulated one: infergy measure GRID.toml --simulate -o FILE.jsonl"


class NvmlMeter:
    """The energy counters of the GPUs that the engine will use."""

    name = "nvml"
    scope = "gpu-board"
    is_simulated = False

    def __init__(self, nvml: Any, handles: Mapping[str, Any], gpus: tuple[GpuIdentity, ...]) -> None:
        self._nvml = nvml
        self._handles = handles
        self.gpus = gpus
        self.clock: Clock = SystemClock()
        self._is_open = True
        self._has_counted = False

    @classmethod
    def open(cls, count: int | None) -> NvmlMeter:
        """Open the counters of the first `count` GPUs that CUDA_VISIBLE_DEVICES leaves visible; None opens all.

        Raises:
            MissingError: NVML, the driver or enough GPUs are missing, or a GPU does not count energy.
            UsageError: CUDA_VISIBLE_DEVICES cannot be meant, or a GPU is cut into MIG slices.
            GpuLostError: One of them does not answer any more.
        """
        nvml = load_nvml()
        try:
            meter = cls._of_visible(nvml, count)
            meter.read()
        except nvml.NVMLError as error:
            nvml.nvmlShutdown()
            message = f"NVML starts, but does not tell its GPUs: {error}. Look at: nvidia-smi"
            raise MissingError(message, code="nvml-unavailable", reason=str(error)) from error
        except BaseException:
            nvml.nvmlShutdown()
            raise
        return meter

    @classmethod
    def _of_visible(cls, nvml: Any, count: int | None) -> NvmlMeter:
        by_uuid = dict(_find_board(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        chosen = visible_uuids(list(by_uuid), os.environ)[:count]
        if len(chosen) < (count or 1):
            message = (
                f"{count_of(count or 1, 'GPU')} {'are' if (count or 1) > 1 else 'is'} wanted, {len(chosen)} are "
                f"visible (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}). {SIMULATE_HINT}"
            )
            raise MissingError(message, code="gpu-missing", wanted=count or 1, found=len(chosen))
        handles = {uuid: by_uuid[uuid] for uuid in chosen}
        for uuid, handle in handles.items():
            _refuse_unmeterable(nvml, uuid, handle)
        return cls(nvml, handles, tuple(identity(nvml, uuid, handle) for uuid, handle in handles.items()))

    def read(self) -> Mapping[str, float]:
        """Joules of each board since its driver was loaded, by UUID; about 1 µs a GPU."""
        energy = self._nvml.nvmlDeviceGetTotalEnergyConsumption
        found: dict[str, float] = {}
        try:
            for uuid, handle in self._handles.items():
                found[uuid] = energy(handle) * JOULES_PER_MILLIJOULE
        except self._nvml.NVMLError as error:
            # Dictionaries keep their order: the one after those that answered is the one that did not.
            raise self._explain(error, self.gpus[len(found)]) from error
        self._has_counted = True
        return found

    def _explain(self, error: Exception, gpu: GpuIdentity) -> MissingError | MeterError:
        """Why a counter could not be read, with the GPU that did not answer."""
        # One that has counted before has vanished: no property of the GPU, but a fault in mid-measurement.
        if isinstance(error, self._nvml.NVMLError_NotSupported) and not self._has_counted:
            return MissingError(
                f"{gpu.name} has no energy counter; NVIDIA GPUs have one since Volta",
                code="counter-missing",
                gpu=gpu.name,
                uuid=gpu.uuid,
            )
        if is_lost(self._nvml, error):
            return GpuLostError(
                _lost_words(self.gpus.index(gpu), gpu.uuid, error),
                code="gpu-lost",
                index=self.gpus.index(gpu),
                uuid=gpu.uuid,
                reason=str(error),
            )
        return MeterError(
            f"NVML could not read the energy counter of GPU {self.gpus.index(gpu)} ({gpu.uuid}): {error}. "
            "Look at: nvidia-smi -q",
            code="counter-unreadable",
            index=self.gpus.index(gpu),
            uuid=gpu.uuid,
            reason=str(error),
        )

    def states(self) -> tuple[GpuState, ...]:
        """Power, temperature, clocks and slow-downs of each GPU now."""
        return tuple(self._state(uuid, handle) for uuid, handle in self._handles.items())

    def powers(self) -> Mapping[str, Power]:
        """Instant and averaged power of each GPU now."""
        nvml = self._nvml
        wanted = [nvml.NVML_FI_DEV_POWER_INSTANT, nvml.NVML_FI_DEV_POWER_AVERAGE]
        found: dict[str, Power] = {}
        for uuid, handle in self._handles.items():
            instant_w, average_w = self._fields_w(handle, wanted)
            found[uuid] = Power(instant_w=instant_w, average_w=average_w)
        return found

    def facts(self) -> Mapping[str, str]:
        """Versions of the driver and of the newest CUDA it supports."""
        cuda = self._nvml.nvmlSystemGetCudaDriverVersion()
        return {"driver": self._nvml.nvmlSystemGetDriverVersion(), "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}"}

    def close(self) -> None:
        """Release NVML."""
        if self._is_open:
            self._is_open = False
            self._nvml.nvmlShutdown()

    def _state(self, uuid: str, handle: Any) -> GpuState:
        nvml = self._nvml
        sm_mhz = self._ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
        memory_mhz = self._ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))
        reasons = self._ask(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used)
        processes = self._ask(lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)))
        temperature = self._ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        return GpuState(
            uuid=uuid,
            power_w=self._fields_w(handle, [nvml.NVML_FI_DEV_POWER_INSTANT])[0],
            temperature_c=None if temperature is None else float(temperature),
            sm_clock_hz=None if sm_mhz is None else sm_mhz * HERTZ_PER_MEGAHERTZ,
            memory_clock_hz=None if memory_mhz is None else memory_mhz * HERTZ_PER_MEGAHERTZ,
            memory_used_bytes=None if memory is None else int(memory),
            slowdowns=None if reasons is None else tuple(name for bit, name in SLOWDOWNS.items() if reasons & bit),
            processes=processes,
        )

    def _fields_w(self, handle: Any, fields: list[int]) -> list[float | None]:
        """Power fields, in watts; None for each that this GPU or driver does not tell."""
        nvml = self._nvml
        values = self._ask(lambda: nvml.nvmlDeviceGetFieldValues(handle, fields))
        if values is None or len(values) != len(fields):
            return [None] * len(fields)
        return [
            float(one.value.uiVal * WATTS_PER_MILLIWATT) if one.nvmlReturn == nvml.NVML_SUCCESS else None
            for one in values
        ]

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The answer, or None where this GPU or driver does not tell."""
        return ask(self._nvml, question)


def visible_uuids(uuids: list[str], environment: Mapping[str, str]) -> list[str]:
    """The UUIDs that CUDA_VISIBLE_DEVICES leaves visible, in its order.

    NVML ignores that variable and counts GPUs in PCI order. CUDA counts them fastest first unless
    CUDA_DEVICE_ORDER says otherwise; `infergy measure` sets it to PCI_BUS_ID for the engine, so that an index means
    the same GPU to both (CUDA C++ programming guide, "CUDA environment variables").

    Raises:
        UsageError: An entry names no GPU of this machine, one that an earlier entry names, or a MIG slice, whose energy
            nothing can tell apart; or some entries are indexes and some UUIDs. CUDA would show fewer GPUs than named.
    """
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return uuids
    chosen: list[str] = []
    kinds: set[bool] = set()
    for entry in (part.strip() for part in wanted.split(",")):
        if not entry or entry == "-1":
            break
        if entry.startswith("MIG-"):
            message = (
                f"CUDA_VISIBLE_DEVICES names the MIG slice {entry}: the counter covers the whole board and cannot be "
                "split. Measure on a GPU without MIG"
            )
            raise UsageError(message, code="mig", gpu=entry)
        found = [uuid for uuid in uuids if uuid.startswith(entry)]
        if entry.isdigit() and int(entry) < len(uuids):
            found = [uuids[int(entry)]]
        if len(found) != 1:
            raise UsageError.bad_value(
                "CUDA_VISIBLE_DEVICES",
                entry,
                "a GPU of this machine: " + ", ".join(f"{i} ({uuid})" for i, uuid in enumerate(uuids)),
            )
        if found[0] in chosen:
            raise UsageError.bad_value(
                "CUDA_VISIBLE_DEVICES", wanted, f"{found[0]} once: CUDA shows no GPU at all if it stands twice"
            )
        kinds.add(entry.isdigit())
        if len(kinds) > 1:
            kind = ",".join([*chosen, found[0]])
            raise UsageError.bad_value(
                "CUDA_VISIBLE_DEVICES", wanted, f"one kind, for CUDA stops at the first of the other: {kind}"
            )
        chosen.append(found[0])
    return chosen


LOST = "LOST-"
"""Begins what stands for the UUID of a GPU that does not tell its own any more."""


def _find_board(nvml: Any, index: int) -> tuple[str, Any]:
    """UUID and handle of a board; a lost one keeps its place, so that the indexes of the others mean the same."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        return nvml.nvmlDeviceGetUUID(handle), handle
    except nvml.NVMLError as error:
        if not is_lost(nvml, error):
            raise
        return f"{LOST}{index}", error


def _refuse_unmeterable(nvml: Any, uuid: str, handle: Any) -> None:
    """Refuse a GPU that is lost, or cut into slices that one counter covers together."""
    if uuid.startswith(LOST):
        raise GpuLostError(
            _lost_words(int(uuid.removeprefix(LOST)), "no UUID told", handle),
            code="gpu-lost",
            index=int(uuid.removeprefix(LOST)),
            uuid=None,
            reason=str(handle),
        )
    mode = ask(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
    if mode:
        message = (
            f"{uuid} is cut into MIG slices: its counter covers the whole board and cannot be split. "
            "Measure on a GPU without MIG, chosen by CUDA_VISIBLE_DEVICES"
        )
        raise UsageError(message, code="mig", gpu=uuid)


def is_lost(nvml: Any, error: Exception) -> bool:
    """Whether an NVML error says that the GPU is gone until a reset or a restart (nvml.h, nvmlReturn_t)."""
    lost = (getattr(nvml, name, None) for name in ("NVMLError_GpuIsLost", "NVMLError_ResetRequired"))
    return isinstance(error, tuple(kind for kind in lost if kind is not None))


def _lost_words(index: int, uuid: str, error: object) -> str:
    return (
        f"GPU {index} ({uuid}) is lost: {error}. Look for its Xid: sudo dmesg | grep -i xid; it comes back with "
        "nvidia-smi --gpu-reset or a restart, or measure on others with CUDA_VISIBLE_DEVICES"
    )


def load_nvml() -> Any:
    """pynvml, started; end it with `nvmlShutdown`.

    Raises:
        MissingError: pynvml, NVML or a driver is missing.
    """
    try:
        import pynvml
    except ImportError as error:
        raise MissingError.package("meter nvml", "nvidia-ml-py", "pip install nvidia-ml-py", SIMULATE_HINT) from error
    if not hasattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons"):
        message = "the installed pynvml is too old or unofficial: pip uninstall pynvml; pip install -U nvidia-ml-py"
        raise MissingError(message, code="package-unusable", package="pynvml", install="pip install -U nvidia-ml-py")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        message = f"NVML does not start: {error}. Is there an NVIDIA GPU and driver? {SIMULATE_HINT}"
        raise MissingError(message, code="nvml-unavailable", reason=str(error)) from error
    return pynvml


def identity(nvml: Any, uuid: str, handle: Any) -> GpuIdentity:
    """What the driver tells of a board."""
    limit_mw = ask(nvml, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    clock_mhz = ask(nvml, lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM))
    return GpuIdentity(
        uuid=uuid,
        name=nvml.nvmlDeviceGetName(handle),
        memory_bytes=ask(nvml, lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
        power_limit_w=None if limit_mw is None else limit_mw * WATTS_PER_MILLIWATT,
        max_sm_clock_hz=None if clock_mhz is None else clock_mhz * HERTZ_PER_MEGAHERTZ,
    )


def ask(nvml: Any, question: Callable[[], Any]) -> Any:
    """The answer, or None where this GPU or driver does not tell."""
    try:
        return question()
    except nvml.NVMLError:
        return None
