"""Meters of hardware that NVML does not reach, through zeus 0.16 (https://ml.energy/zeus): the extra ``zeus``.

    zeus-gpu      gpu-board     AMD (and NVIDIA) boards     zeus.device.get_gpus
    zeus-cpu      cpu-package   Intel RAPL packages         zeus.device.get_cpus
    zeus-dram     dram          DRAM of these packages      zeus.device.get_cpus
    zeus-soc-gpu  soc-gpu       Apple silicon, Jetson       zeus.device.get_soc

Each domain is a meter of its own, so that no two are ever added. zeus counts in millijoules and reports neither a GPU's
UUID nor its clocks: an index stands for the one, None for the others.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from infergy.errors import MeterError, MissingError
from infergy.meters.meter import Clock, SystemClock
from infergy.records import GpuIdentity, GpuState
from infergy.units import JOULES_PER_MILLIJOULE, WATTS_PER_MILLIWATT

SOC_GPU_FIELDS = ("gpu_mj", "gpu_energy_mj")
"""Of zeus's `AppleSiliconMeasurement` and `JetsonMeasurement`."""


class _ZeusMeter:
    """Counters of one domain, in zeus's millijoules.

    Args:
        counters: Reads each counter, by UUID.
        gpus: The devices, in the order of `counters`.
    """

    name: str
    scope: str
    is_simulated = False

    def __init__(self, counters: Mapping[str, Callable[[], float]], gpus: tuple[GpuIdentity, ...]) -> None:
        self._counters = counters
        self._last_j: dict[str, float] = {}
        self.gpus = gpus
        self.clock: Clock = SystemClock()

    def read(self) -> Mapping[str, float]:
        """Joules by device.

        Raises:
            MeterError: zeus failed, or a counter fell: zeus sees a RAPL counter's overflow up to a second late.
        """
        now_j: dict[str, float] = {}
        for uuid, read_mj in self._counters.items():
            try:
                now_j[uuid] = read_mj() * JOULES_PER_MILLIJOULE
            except (_zeus_error(), OSError, queue.Empty) as error:
                reason = f"{type(error).__name__}: {error}"
                message = f"zeus could not read {uuid}: {reason}"
                raise MeterError(message, code="counter-unreadable", uuid=uuid, reason=reason) from error
            was_j = self._last_j.get(uuid, 0.0)
            if now_j[uuid] < was_j:
                message = (
                    f"the counter of {uuid} fell from {was_j} J to {now_j[uuid]} J: it overflowed or was "
                    "reset. Measure this cell again: --retry-failed"
                )
                raise MeterError(message, code="counter-wrong", uuid=uuid, was_j=was_j, now_j=now_j[uuid])
        self._last_j = now_j
        return dict(now_j)

    def states(self) -> tuple[GpuState, ...]:
        """Only the devices: zeus reports no state of this domain."""
        return tuple(GpuState(uuid=gpu.uuid) for gpu in self.gpus)

    def facts(self) -> Mapping[str, str]:
        """The version of zeus."""
        import zeus

        return {"zeus": str(zeus.__version__)}

    def close(self) -> None:
        """Nothing is held: zeus keeps its devices for the life of the process."""


class ZeusGpuMeter(_ZeusMeter):
    """GPU boards, in the order of HIP_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES, as PyTorch numbers them."""

    name = "zeus-gpu"
    scope = "gpu-board"
    _device: Any
    _indices: Mapping[str, int]

    @classmethod
    def open(cls, count: int) -> ZeusGpuMeter:
        """Open the counters of the first `count` visible GPUs.

        Raises:
            MissingError: zeus or enough GPUs are missing, or a GPU has no counter that zeus trusts.
        """
        device = _find(cls.name, "get_gpus")
        if len(device) < count:
            message = f"{count} GPUs are wanted (tensor_parallel), zeus sees {len(device)}"
            raise MissingError(message, code="gpu-missing", wanted=count, found=len(device))
        indices = {f"zeus-gpu-{device.gpus[i].gpu_index}": i for i in range(count)}
        gpus = []
        for uuid, i in indices.items():
            name = device.get_name(i)
            if not device.supports_get_total_energy_consumption(i):
                message = (
                    f"{name} (GPU {i}) has no energy counter that agrees with its power, according to zeus; "
                    "of a dual-die board, the even-numbered GPU counts for both"
                )
                raise MissingError(message, code="counter-missing", gpu=name, index=i)
            limit_w = _ask(device.get_power_management_limit, i, WATTS_PER_MILLIWATT)
            gpus.append(GpuIdentity(uuid=uuid, name=name, power_limit_w=limit_w))
        counters = {uuid: partial(device.get_total_energy_consumption, i) for uuid, i in indices.items()}
        meter = cls(counters, tuple(gpus))
        meter._device, meter._indices = device, indices
        meter.read()
        return meter

    def states(self) -> tuple[GpuState, ...]:
        """Power and temperature of each GPU now; zeus reports no more."""
        return tuple(
            GpuState(
                uuid=uuid,
                power_w=_ask(self._device.get_instant_power_usage, i, WATTS_PER_MILLIWATT),
                temperature_c=_ask(self._device.get_gpu_temperature, i, 1.0),
            )
            for uuid, i in self._indices.items()
        )


class ZeusCpuMeter(_ZeusMeter):
    """All Intel CPU packages of the machine, whatever runs on them: cores, caches, memory controllers, not DRAM."""

    name = "zeus-cpu"
    scope = "cpu-package"
    _field, _device_name = "cpu_mj", "Intel CPU package"

    @classmethod
    def open(cls, count: int) -> Self:
        """Open the counters of all packages; `count`, of GPUs, is ignored.

        Raises:
            MissingError: zeus, RAPL or the permission to read it is missing, or a package does not count its DRAM.
        """
        packages = {f"{cls.scope}-{index}": cpu for index, cpu in _packages(cls.name).items()}
        cls._check(packages)
        counters = {uuid: partial(_field_mj, cpu, cls._field) for uuid, cpu in packages.items()}
        meter = cls(counters, tuple(GpuIdentity(uuid=uuid, name=cls._device_name) for uuid in packages))
        meter.read()
        return meter

    @classmethod
    def _check(cls, packages: Mapping[str, Any]) -> None:
        """Every package counts its own energy."""


class ZeusDramMeter(ZeusCpuMeter):
    """The DRAM of all Intel CPU packages; never added to theirs."""

    name = "zeus-dram"
    scope = "dram"
    _field, _device_name = "dram_mj", "DRAM of an Intel CPU package"

    @classmethod
    def _check(cls, packages: Mapping[str, Any]) -> None:
        for cpu in packages.values():
            if not cpu.supports_get_dram_energy_consumption():
                i = cpu.cpu_index
                message = f"CPU package {i} does not count the energy of its DRAM; --meter zeus-cpu counts its own"
                raise MissingError(message, code="counter-missing", package=i, part="DRAM")


class ZeusSocGpuMeter(_ZeusMeter):
    """The GPU on a system on a chip, Apple's or NVIDIA's Jetson: no board, and no memory."""

    name = "zeus-soc-gpu"
    scope = "soc-gpu"

    @classmethod
    def open(cls, count: int) -> ZeusSocGpuMeter:
        """Open the counter of the GPU.

        Raises:
            MissingError: zeus or such a GPU is missing, or more than one GPU is wanted.
        """
        if count != 1:
            message = f"{count} GPUs are wanted (tensor_parallel); a system on a chip has one"
            raise MissingError(message, code="gpu-missing", wanted=count, found=1)
        soc = _find(cls.name, "get_soc")
        kind, available = type(soc).__name__, soc.get_available_metrics()
        field = next((field for field in SOC_GPU_FIELDS if field in available), None)
        if field is None:
            message = f"zeus reports no energy of the GPU of this {kind}"
            raise MissingError(message, code="counter-missing", gpu=kind)
        identity = GpuIdentity(uuid="soc-gpu-0", name=f"{kind} GPU")
        return cls({identity.uuid: partial(_field_mj, soc, field)}, (identity,))


def _field_mj(device: Any, field: str) -> float:
    """One field of the energy that a CPU or a system on a chip reports."""
    return float(getattr(device.get_total_energy_consumption(), field))


def _packages(meter: str) -> dict[int, Any]:
    """CPU objects of zeus by index, without zones such as ``psys``, which cover the packages once more."""
    device = _find(meter, "get_cpus")
    packages = {}
    for cpu in device.cpus:
        # The kernel's name of a zone (Linux, Documentation/power/powercap).
        zone = Path(device.rapl_dir, f"intel-rapl:{cpu.cpu_index}", "name")
        if zone.is_file() and zone.read_text(encoding="utf-8").startswith("package"):
            packages[cpu.cpu_index] = cpu
    if not packages:
        message = f"{device.rapl_dir} names no CPU package; look at: cat {device.rapl_dir}/intel-rapl:0/name"
        raise MissingError(message, code="counter-missing", path=str(device.rapl_dir))
    return packages


def _find(meter: str, finder: str) -> Any:
    """What zeus's `finder` returns on this machine."""
    try:
        import zeus.device
    except ImportError as error:
        raise MissingError.package(f"meter {meter}", "zeus", "pip install 'infergy[zeus]'", str(error)) from error
    try:
        return getattr(zeus.device, finder)()
    except (_zeus_error(), OSError) as error:
        needs = "What it needs: https://ml.energy/zeus/getting_started"
        message = f"zeus finds nothing for meter {meter}: {error} ({needs})"
        raise MissingError(message, code="counter-missing", meter=meter, reason=str(error)) from error


def _zeus_error() -> type[Exception]:
    from zeus.exception import ZeusBaseError

    return ZeusBaseError  # type: ignore[no-any-return]


def _ask(query: Callable[[int], Any], index: int, factor: float) -> float | None:
    """The answer in SI units, or None where zeus or the device has none, for which some return 0."""
    try:
        value = float(query(index)) * factor
    except (_zeus_error(), TypeError, ValueError):
        return None
    return value or None
