"""What can be measured on this machine, how well, and what is missing. Standard library and pynvml only.

Nothing is changed: no clock, limit or mode of a GPU.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from infergy import VERSION
from infergy.catalog import find_gpu_by_driver_name
from infergy.errors import InfergyError, MeterError, MissingError, UsageError
from infergy.measure.cell import window_since
from infergy.measure.environment import cpu_name, version_of
from infergy.meters import Meter, powers_of
from infergy.meters.meter import FIX, counter_over_power, disagrees
from infergy.meters.nvml import Board, NvmlMeter, is_module, open_boards, visible_uuids
from infergy.meters.registry import find_plugins, open_plugin
from infergy.meters.simulated import PowerSensor, Sensors, SimulatedGpu
from infergy.meters.ticks import counter_period_s, sharp_tick
from infergy.records import GpuIdentity
from infergy.records.behaviour import MeterBehaviour

DOCTOR_SCHEMA = "infergy.doctor/1"

READS = 300
"""How often the counter is read to find what a read costs."""

COMPARED_S = 0.5
"""Over which the counter is compared with the power field: five ticks of an H200's."""

PACKAGES = {
    "nvidia-ml-py": ("the meter nvml", "pip install nvidia-ml-py"),
    "torch": ("the engine transformers, and the load of infergy doctor --meter", "pip install 'infergy[transformers]'"),
    "transformers": ("the engine transformers", "pip install 'infergy[transformers]'"),
    "vllm": ("the engine vllm", "pip install 'infergy[vllm]'"),
    "zeus": ("meters of AMD GPUs, Intel CPUs, Apple silicon and Jetson", "pip install 'infergy[zeus]'"),
}
"""Distributions, what each is for, and what to type where it is not installed."""

SIMULATED_SENSORS = Sensors(power=PowerSensor(period_s=0.1, window_s=0.025, noise_w=0.2))
"""Of A100 and H100, says arXiv 2312.02741: 25 ms of each 100 ms; averaged power over 1 s."""

SIMULATED_IDLE_W, SIMULATED_FULL_W = 120.0, 700.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterFound:
    """One meter that is installed.

    Attributes:
        package: The distribution that provides it.
        is_usable: Whether it opens here.
        scope: What its energy covers; None if it does not open.
        reason: Why it does not, and what to type; None if it does.
    """

    name: str
    package: str
    is_usable: bool
    scope: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFound:
    """One GPU; None where it does not answer.

    Attributes:
        index: NVML's, in PCI order.
        catalog: Its name in `infergy list gpus`; None if it is not there.
        is_visible: Whether CUDA_VISIBLE_DEVICES leaves it visible; None where that is unknown.
        power_limit_low_w: The lowest limit that it could be set to, and `power_limit_high_w` the highest.
        has_mig: Whether it is divided into MIG slices.
        has_counter: Whether its energy counter answers and moves.
        counter_period_s: Time between two ticks of the counter, the shortest of five.
        read_median_s: Time of a read of the counter, and `read_worst_s` the longest, of `reads`.
        counter_over_power: Mean power by the counter over that by its power field, while that was steady; None where it
            was not, or either is unknown.
        answers: Whether each field answers: ``instant_power``, ``average_power``, ``temperature``, ``sm_clock``,
            ``memory_clock``, ``memory_used``, ``slowdowns``, ``processes``.
        processes: How many compute processes are on it now.
        reason: Why the counter cannot be used; None if it can.
    """

    index: int | None
    gpu: GpuIdentity
    catalog: str | None
    is_visible: bool | None
    power_limit_low_w: float | None
    power_limit_high_w: float | None
    has_mig: bool | None
    has_counter: bool
    counter_period_s: float | None
    read_median_s: float | None
    read_worst_s: float | None
    reads: int
    counter_over_power: float | None
    answers: Mapping[str, bool]
    processes: int | None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """A file that a meter reads.

    Attributes:
        fix: What to type where it may not be read; None where it may.
    """

    path: str
    is_granted: bool
    fix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Something that is not installed, what it would be for, and what to type."""

    what: str
    purpose: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What this machine can measure.

    Attributes:
        can_measure: Whether some meter opens here.
        driver: Version of the NVIDIA driver, and `cuda` the newest CUDA that it supports; None without.
        variables: CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER; None where unset.
        packages: Version by distribution; None where it is not installed.
        warnings: Pitfalls of this machine, a sentence each.
        behaviour: What `infergy doctor --meter` found; None where it was not asked for.
    """

    diagnosed_utc: str
    infergy: str
    python: str
    platform: str
    cpu: str | None
    simulated: bool
    can_measure: bool
    meters: tuple[MeterFound, ...]
    driver: str | None
    cuda: str | None
    gpus: tuple[GpuFound, ...]
    variables: Mapping[str, str | None]
    permissions: tuple[Permission, ...]
    packages: Mapping[str, str | None]
    missing: tuple[Missing, ...]
    warnings: tuple[str, ...]
    behaviour: MeterBehaviour | None = None
    schema: str = DOCTOR_SCHEMA


def diagnose(root: Path = Path("/")) -> Diagnosis:
    """Describe this machine; takes about a second a GPU.

    Args:
        root: Where device files and the kernel's energy counters stand.
    """
    found = _Nvidia()
    try:
        found = _examine_nvidia()
        nvml = _nvml_found(found)
    except InfergyError as error:
        nvml = MeterFound(name="nvml", package="infergy", is_usable=False, reason=str(error))
    return _diagnosis((nvml, *_plugins()), found, permissions=tuple(_permissions(root)), simulated=False)


def diagnose_simulated(meter: Meter) -> Diagnosis:
    """Describe a simulated GPU in the same words."""
    gpus = tuple(_probe(meter, gpu, None) for gpu in meter.gpus)
    found = _Nvidia(gpus=gpus, warnings=tuple(warning for gpu in gpus for warning in _gpu_pitfalls(gpu)))
    usable = MeterFound(name=meter.name, package="infergy", is_usable=True, scope=meter.scope)
    return _diagnosis((usable,), found, permissions=(), simulated=True)


def simulated_gpu() -> SimulatedGpu:
    """The GPU of `infergy doctor --simulate`."""
    identity = GpuIdentity(uuid="GPU-simulated-0", name="simulated GPU", power_limit_w=SIMULATED_FULL_W)
    return SimulatedGpu(identity, idle_w=SIMULATED_IDLE_W, sensors=SIMULATED_SENSORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nvidia:
    """What NVML reports of this machine."""

    gpus: tuple[GpuFound, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def _diagnosis(
    meters: tuple[MeterFound, ...], found: _Nvidia, *, permissions: tuple[Permission, ...], simulated: bool
) -> Diagnosis:
    packages = {name: version_of(name) for name in PACKAGES}
    return Diagnosis(
        diagnosed_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        infergy=VERSION,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu_name(),
        simulated=simulated,
        can_measure=any(meter.is_usable for meter in meters),
        meters=meters,
        driver=found.facts.get("driver"),
        cuda=found.facts.get("cuda"),
        gpus=found.gpus,
        variables={name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")},
        permissions=permissions,
        packages=packages,
        missing=tuple(
            Missing(what=name, purpose=PACKAGES[name][0], fix=PACKAGES[name][1])
            for name, version in packages.items()
            if version is None
        ),
        warnings=found.warnings,
    )


def _examine_nvidia() -> _Nvidia:
    with open_boards() as boards:
        visible: list[str] | None = None
        problems: tuple[str, ...] = ()
        try:
            visible = visible_uuids(list(boards), os.environ)
        except UsageError as error:
            problems = (str(error),)
        opened = [board for board in boards.values() if isinstance(board, Board)]
        gpus = tuple(_probe(board.meter, board.gpu, board, visible) for board in opened)
        facts = opened[0].meter.facts() if opened else {}
        problems += tuple(
            f"GPU {index} cannot be opened: {board} (nvidia-smi; ls -l /dev/nvidia*)"
            for index, board in enumerate(boards.values())
            if isinstance(board, Exception)
        )
    return _Nvidia(gpus=gpus, facts=facts, warnings=(*problems, *_pitfalls(gpus)))


def _nvml_found(found: _Nvidia) -> MeterFound:
    """Whether the meter that `infergy measure` would use opens.

    Raises:
        InfergyError: It does not; the message says why.
    """
    meter = NvmlMeter.open(None)
    meter.close()
    for gpu in found.gpus:
        if gpu.is_visible and not gpu.has_counter:
            uuid = gpu.gpu.uuid
            message = gpu.reason or f"the counter of {uuid} does not answer"
            raise MeterError(message, code="counter-unreadable", uuid=uuid, reason=gpu.reason)
    return MeterFound(name="nvml", package="infergy", is_usable=True, scope=meter.scope)


def _probe(meter: Meter, gpu: GpuIdentity, board: Board | None, visible: Sequence[str] | None = None) -> GpuFound:
    known = find_gpu_by_driver_name(gpu.name)
    reads_s: list[float] = []
    period_s = reason = ratio = None
    try:
        for _ in range(READS):
            begun_s = meter.clock.now_s()
            meter.read()
            reads_s.append(meter.clock.now_s() - begun_s)
        period_s = counter_period_s(meter)
        ratio = _ratio(meter, gpu.uuid)
    except (MissingError, MeterError) as error:
        reason = str(error)
    (state,) = meter.states()
    power = powers_of(meter)[gpu.uuid]
    answers = {
        "instant_power": power.instant_w,
        "average_power": power.average_w,
        "temperature": state.temperature_c,
        "sm_clock": state.sm_clock_hz,
        "memory_clock": state.memory_clock_hz,
        "memory_used": state.memory_used_bytes,
        "slowdowns": state.slowdowns,
        "processes": state.processes,
    }
    return GpuFound(
        index=None if board is None else board.index,
        gpu=gpu,
        catalog=None if known is None else known.name,
        is_visible=True if board is None else None if visible is None else gpu.uuid in visible,
        power_limit_low_w=None if board is None else board.power_limit_low_w,
        power_limit_high_w=None if board is None else board.power_limit_high_w,
        has_mig=None if board is None else board.has_mig,
        has_counter=reason is None,
        counter_period_s=period_s,
        read_median_s=median(reads_s) if reads_s else None,
        read_worst_s=max(reads_s, default=None),
        reads=len(reads_s),
        counter_over_power=ratio,
        answers={name: value is not None for name, value in answers.items()},
        processes=state.processes,
        reason=reason,
    )


def _ratio(meter: Meter, uuid: str) -> float | None:
    before, opened = meter.states(), sharp_tick(meter)
    meter.clock.sleep(COMPARED_S)
    watts = window_since(opened, meter).power_by_gpu_w
    compared = counter_over_power(watts, before, meter.states(), meter)
    return None if uuid not in compared else compared[uuid][0] / compared[uuid][1]


def _pitfalls(gpus: Sequence[GpuFound]) -> Iterator[str]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus and chosen is not None and all(gpu.is_visible is False for gpu in gpus):
        yield f"CUDA_VISIBLE_DEVICES={chosen!r} leaves no GPU visible: unset CUDA_VISIBLE_DEVICES"
    names = sorted({gpu.gpu.name for gpu in gpus})
    if len(names) > 1 and chosen and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        yield (
            f"the GPUs differ ({', '.join(names)}), and CUDA counts them fastest first, NVML in PCI order: "
            "export CUDA_DEVICE_ORDER=PCI_BUS_ID, or name UUIDs in CUDA_VISIBLE_DEVICES"
        )
    for gpu in gpus:
        yield from _gpu_pitfalls(gpu)
    if version_of("pynvml") is not None:
        yield "the package pynvml may hide NVIDIA's own: pip uninstall pynvml; pip install -U nvidia-ml-py"


def _gpu_pitfalls(gpu: GpuFound) -> Iterator[str]:
    if gpu.has_mig:
        yield (
            f"GPU {gpu.index} is cut into MIG slices: its counter covers the whole board, all slices together; "
            "measure on a GPU without MIG"
        )
    ratio = gpu.counter_over_power
    if ratio is not None and disagrees(ratio, 1.0):
        yield f"the counter of GPU {gpu.index} gives {ratio:.3g} times its power, while that was steady; {FIX}"
    if is_module(gpu.gpu.name):
        yield f"the counter of GPU {gpu.index} covers its module: the GPU, its memory and the CPU beside it"
    if gpu.processes:
        what = f"{gpu.processes} processes are on GPU {gpu.index}"
        yield f"{what}: their energy would be counted too (nvidia-smi lists them)"


def _plugins() -> Iterator[MeterFound]:
    for plugin in find_plugins():
        try:
            meter = open_plugin(plugin.name, 1)
        except InfergyError as error:
            yield MeterFound(name=plugin.name, package=plugin.package, is_usable=False, reason=str(error))
            continue
        meter.close()
        yield MeterFound(name=plugin.name, package=plugin.package, is_usable=True, scope=meter.scope)


def _permissions(root: Path) -> Iterator[Permission]:
    devices = [*sorted((root / "dev").glob("nvidia[0-9]*")), root / "dev" / "nvidiactl"]
    counters = sorted((root / "sys" / "class" / "powercap").glob("intel-rapl:*/energy_uj"))
    for path in filter(Path.exists, (*devices, *counters)):
        fix = f"sudo chmod a+r {path}" if path in counters else f"ls -l {path}; ask for membership of its group"
        granted = os.access(path, os.R_OK if path in counters else os.R_OK | os.W_OK)
        yield Permission(path=str(path), is_granted=granted, fix=None if granted else fix)
