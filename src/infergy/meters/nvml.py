"""NVIDIA's own energy counter, through NVML.

`nvmlDeviceGetTotalEnergyConsumption` counts the millijoules of the whole board since the driver was loaded (Volta
and later; NVML API reference, "Device Queries"). Nothing here writes to a GPU: no clock, limit or mode is changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from infergy.errors import GpuLostError, InfergyError, MeterError, MissingError, UsageError
from infergy.meters.meter import Clock, Power, SystemClock
from infergy.records import GpuIdentity, GpuState
from infergy.units import HERTZ_PER_MEGAHERTZ, JOULES_PER_MILLIJOULE, WATTS_PER_MILLIWATT

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
UNOPENED = "UNOPENED-"
"""Prefix of the substitute for the UUID of a GPU that is lost or may not be opened, which does not report its own."""
MODULES = ("GH200", "GB200", "GB300")
"""Parts of the names of superchips, whose counter covers the module: GPU, CPU and memory (Zeus, pull request 172)."""


class NvmlMeter:
    """The energy counters of the GPUs that the engine will use."""

    name, is_simulated = "nvml", False

    def __init__(self, nvml: Any, handles: Mapping[str, Any], gpus: tuple[GpuIdentity, ...]) -> None:
        self.scope = "gpu-module" if any(is_module(gpu.name) for gpu in gpus) else "gpu-board"
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
            UsageError: CUDA_VISIBLE_DEVICES is invalid, or a GPU is cut into MIG slices.
            GpuLostError: One of them does not answer any more.
        """
        nvml = load_nvml()
        try:
            handles = visible_handles(nvml, count)
            meter = cls(nvml, handles, tuple(_identity(nvml, uuid, handle) for uuid, handle in handles.items()))
            meter.read()
        except nvml.NVMLError as error:
            nvml.nvmlShutdown()
            message = f"NVML starts, but does not report its GPUs: {error}. Look at: nvidia-smi"
            raise MissingError(message, code="nvml-unavailable", reason=str(error)) from error
        except BaseException:
            nvml.nvmlShutdown()
            raise
        return meter

    def read(self) -> Mapping[str, float]:
        """Energy of each board since its driver was loaded, by UUID; about 1 µs per GPU."""
        energy = self._nvml.nvmlDeviceGetTotalEnergyConsumption
        energy_j: dict[str, float] = {}
        try:
            for uuid, handle in self._handles.items():
                energy_j[uuid] = energy(handle) * JOULES_PER_MILLIJOULE
        except self._nvml.NVMLError as error:
            # Dictionaries keep their order: the one after those that answered is the one that did not.
            raise self._explain(error, len(energy_j)) from error
        self._has_counted = True
        return energy_j

    def _explain(self, error: Exception, index: int) -> MissingError | MeterError:
        """Why a counter could not be read, with the GPU that did not answer."""
        gpu = self.gpus[index]
        # One that has counted before has vanished: no property of the GPU, but a fault during the measurement.
        if isinstance(error, self._nvml.NVMLError_NotSupported) and not self._has_counted:
            message = f"{gpu.name} has no energy counter; NVIDIA GPUs have one since Volta"
            return MissingError(message, code="counter-missing", gpu=gpu.name, uuid=gpu.uuid)
        if _is_lost(self._nvml, error):
            return _lost(index, gpu.uuid, error)
        message = f"NVML could not read the energy counter of GPU {index} ({gpu.uuid}): {error}. Look at: nvidia-smi -q"
        return MeterError(message, code="counter-unreadable", index=index, uuid=gpu.uuid, reason=str(error))

    def states(self) -> tuple[GpuState, ...]:
        """Power, temperature, clocks and slow-downs of each GPU now."""
        return tuple(self._state(uuid, handle) for uuid, handle in self._handles.items())

    def _state(self, uuid: str, handle: Any) -> GpuState:
        nvml = self._nvml
        reasons = _ask(nvml, nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
        processes = _ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        temperature = _ask(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        return GpuState(
            uuid=uuid,
            power_w=self._fields_w(handle, [nvml.NVML_FI_DEV_POWER_INSTANT])[0],
            temperature_c=None if temperature is None else float(temperature),
            sm_clock_hz=_scaled(
                _ask(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM), HERTZ_PER_MEGAHERTZ
            ),
            memory_clock_hz=_scaled(
                _ask(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM), HERTZ_PER_MEGAHERTZ
            ),
            memory_used_bytes=None if memory is None else int(memory.used),
            slowdowns=None if reasons is None else tuple(name for bit, name in SLOWDOWNS.items() if reasons & bit),
            processes=None if processes is None else len(processes),
        )

    def powers(self) -> Mapping[str, Power]:
        """Instant and averaged power of each GPU now."""
        fields = [self._nvml.NVML_FI_DEV_POWER_INSTANT, self._nvml.NVML_FI_DEV_POWER_AVERAGE]
        powers: dict[str, Power] = {}
        for uuid, handle in self._handles.items():
            instant_w, average_w = self._fields_w(handle, fields)
            powers[uuid] = Power(instant_w=instant_w, average_w=average_w)
        return powers

    def _fields_w(self, handle: Any, fields: list[int]) -> list[float | None]:
        """Power fields, in watts; None for each that this GPU or driver does not report."""
        values = _ask(self._nvml, self._nvml.nvmlDeviceGetFieldValues, handle, fields)
        if values is None or len(values) != len(fields):
            return [None] * len(fields)
        success = self._nvml.NVML_SUCCESS
        return [_scaled(v.value.uiVal, WATTS_PER_MILLIWATT) if v.nvmlReturn == success else None for v in values]

    def facts(self) -> Mapping[str, str]:
        """Versions of the driver and of the newest CUDA it supports."""
        cuda = self._nvml.nvmlSystemGetCudaDriverVersion()
        return {"driver": _text(self._nvml.nvmlSystemGetDriverVersion()), "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}"}

    def close(self) -> None:
        """Release NVML."""
        if self._is_open:
            self._is_open = False
            self._nvml.nvmlShutdown()


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One board of this machine, usable or not; None where the driver does not report it.

    Attributes:
        index: NVML's, in PCI order.
        gpu: Its identity.
        meter: Reads this board only; its counter may not answer.
        power_limit_low_w: The lowest power limit that can be set, and `power_limit_high_w` the highest.
        has_mig: Whether it is cut into slices now.
    """

    index: int
    gpu: GpuIdentity
    meter: NvmlMeter
    power_limit_low_w: float | None
    power_limit_high_w: float | None
    has_mig: bool | None


@contextmanager
def open_boards() -> Iterator[dict[str, Board | Exception]]:
    """All boards by UUID, whatever CUDA_VISIBLE_DEVICES says; of one that cannot be opened, why.

    Raises:
        MissingError: NVML or a driver is missing.
    """
    nvml = load_nvml()
    try:
        found = enumerate(_find_boards(nvml).items())
        yield {
            uuid: handle if isinstance(handle, Exception) else _board(nvml, index, uuid, handle)
            for index, (uuid, handle) in found
        }
    finally:
        nvml.nvmlShutdown()


def _board(nvml: Any, index: int, uuid: str, handle: Any) -> Board:
    gpu = _identity(nvml, uuid, handle)
    low_mw, high_mw = _ask(nvml, nvml.nvmlDeviceGetPowerManagementLimitConstraints, handle) or (None, None)
    mig = _ask(nvml, nvml.nvmlDeviceGetMigMode, handle)
    return Board(
        index=index,
        gpu=gpu,
        meter=NvmlMeter(nvml, {uuid: handle}, (gpu,)),
        power_limit_low_w=_scaled(low_mw, WATTS_PER_MILLIWATT),
        power_limit_high_w=_scaled(high_mw, WATTS_PER_MILLIWATT),
        has_mig=None if mig is None else bool(mig[0]),
    )


def visible_uuids(uuids: list[str], environment: Mapping[str, str]) -> list[str]:
    """The UUIDs that CUDA_VISIBLE_DEVICES leaves visible, in its order.

    NVML ignores that variable and counts GPUs in PCI order. CUDA counts them fastest first unless
    CUDA_DEVICE_ORDER says otherwise; `infergy measure` sets it to PCI_BUS_ID for the engine, so that an index means
    the same GPU to both (CUDA C++ programming guide, "CUDA environment variables").

    Raises:
        UsageError: An entry names no GPU of this machine, one that an earlier entry names, or a MIG slice, whose energy
            cannot be separated; or some entries are indexes and some UUIDs. CUDA would show fewer GPUs than named.
    """
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return uuids
    chosen: dict[str, bool] = {}
    for entry in (part.strip() for part in wanted.split(",")):
        if not entry or entry == "-1":
            break
        uuid, is_index = _find_uuid(entry, uuids), entry.isdigit()
        if uuid in chosen:
            expected = f"{uuid} once: CUDA shows no GPU at all if it stands twice"
            raise UsageError.bad_value("CUDA_VISIBLE_DEVICES", wanted, expected)
        if is_index in (not kind for kind in chosen.values()):
            expected = f"one kind, for CUDA stops at the first of the other: {','.join([*chosen, uuid])}"
            raise UsageError.bad_value("CUDA_VISIBLE_DEVICES", wanted, expected)
        chosen[uuid] = is_index
    return list(chosen)


def _find_uuid(entry: str, uuids: list[str]) -> str:
    """The GPU that an entry of CUDA_VISIBLE_DEVICES names, by index or by the begin of its UUID."""
    if entry.startswith("MIG-"):
        message = f"CUDA_VISIBLE_DEVICES names the MIG slice {entry}: {MIG_PROBLEM}. Measure on a GPU without MIG"
        raise UsageError(message, code="mig", gpu=entry)
    matches = [uuid for uuid in uuids if uuid.startswith(entry)]
    if entry.isdigit() and int(entry) < len(uuids):
        matches = [uuids[int(entry)]]
    if len(matches) != 1:
        expected = "a GPU of this machine: " + ", ".join(f"{i} ({uuid})" for i, uuid in enumerate(uuids))
        raise UsageError.bad_value("CUDA_VISIBLE_DEVICES", entry, expected)
    return matches[0]


MIG_PROBLEM = "its counter covers the whole board and cannot be split"


def visible_handles(nvml: Any, count: int | None) -> dict[str, Any]:
    """Handles of the first `count` visible boards by UUID; one that is not open, or has MIG slices, is rejected."""
    by_uuid = _find_boards(nvml)
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        # CUDA does not see what may not be opened either: another job's, in a container or under Slurm.
        allowed = {
            uuid: handle for uuid, handle in by_uuid.items() if not _is_a(nvml, handle, "NVMLError_NoPermission")
        }
        by_uuid = allowed or by_uuid
    chosen = visible_uuids(list(by_uuid), os.environ)[:count]
    if len(chosen) < (count or 1):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
        message = f"GPUs wanted: {count or 1}, visible: {len(chosen)} (CUDA_VISIBLE_DEVICES={visible}). {SIMULATE_HINT}"
        raise MissingError(message, code="gpu-missing", wanted=count or 1, found=len(chosen))
    for uuid in chosen:
        _check_board(nvml, uuid, by_uuid[uuid])
    return {uuid: by_uuid[uuid] for uuid in chosen}


def _check_board(nvml: Any, uuid: str, handle: Any) -> None:
    if uuid.startswith(UNOPENED):
        raise _unopened(nvml, int(uuid.removeprefix(UNOPENED)), handle)
    if (_ask(nvml, nvml.nvmlDeviceGetMigMode, handle) or [0])[0]:
        fix = "Measure on a GPU without MIG, chosen by CUDA_VISIBLE_DEVICES"
        raise UsageError(f"{uuid} is cut into MIG slices: {MIG_PROBLEM}. {fix}", code="mig", gpu=uuid)


def _find_boards(nvml: Any) -> dict[str, Any]:
    """Handles by UUID; one that cannot be opened keeps its place, with its error, so that indexes mean the same."""
    boards: dict[str, Any] = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            boards[_text(nvml.nvmlDeviceGetUUID(handle))] = handle
        except nvml.NVMLError as error:
            boards[f"{UNOPENED}{index}"] = error
    return boards


def _unopened(nvml: Any, index: int, error: Exception) -> InfergyError:
    """Why a board that is wanted cannot be opened."""
    if _is_lost(nvml, error):
        return _lost(index, None, error)
    message = (
        f"GPU {index} cannot be opened: {error}. Measure on others with CUDA_VISIBLE_DEVICES, or ask for this one: "
        "nvidia-smi; ls -l /dev/nvidia*"
    )
    return MissingError(message, code="nvml-unavailable", index=index, reason=str(error))


def is_module(name: str) -> bool:
    """Whether the driver's name is that of a superchip, whose counter covers more than the GPU."""
    return any(part in name for part in MODULES)


def _text(value: str | bytes) -> str:
    """What NVML calls something: old bindings return bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _is_lost(nvml: Any, error: Exception) -> bool:
    """Whether an NVML error says that the GPU is gone until a reset or a restart (nvml.h, nvmlReturn_t)."""
    return _is_a(nvml, error, "NVMLError_GpuIsLost", "NVMLError_ResetRequired")


def _is_a(nvml: Any, error: Any, *names: str) -> bool:
    """Whether it is one of these errors of the bindings, which may lack some."""
    kinds = (getattr(nvml, name, None) for name in names)
    return isinstance(error, tuple(kind for kind in kinds if kind is not None))


def _lost(index: int, uuid: str | None, error: object) -> GpuLostError:
    message = (
        f"GPU {index} ({uuid or 'UUID unknown'}) is lost: {error}. Look for its Xid: sudo dmesg | grep -i xid; it "
        "comes back with nvidia-smi --gpu-reset or a restart, or measure on others with CUDA_VISIBLE_DEVICES"
    )
    return GpuLostError(message, code="gpu-lost", index=index, uuid=uuid, reason=str(error))


def load_nvml() -> Any:
    """pynvml, started; end it with `nvmlShutdown`."""
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


def _identity(nvml: Any, uuid: str, handle: Any) -> GpuIdentity:
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    return GpuIdentity(
        uuid=uuid,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=None if memory is None else int(memory.total),
        power_limit_w=_scaled(_ask(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, handle), WATTS_PER_MILLIWATT),
        max_sm_clock_hz=_scaled(
            _ask(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM), HERTZ_PER_MEGAHERTZ
        ),
    )


def _ask(nvml: Any, query: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where this GPU or driver has none."""
    try:
        return query(*arguments)
    except nvml.NVMLError:
        return None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
