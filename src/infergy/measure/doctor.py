"""What this machine can measure, and what it lacks: probed, not assumed. Standard library only."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, fields
from statistics import median

from infergy.errors import InfergyError, MeterError
from infergy.hardware import find_gpu_by_driver_name
from infergy.measure.environment import version_of
from infergy.meters import Meter
from infergy.meters.plugins import find_plugins
from infergy.meters.protocol import METERS
from infergy.meters.window import counter_period_s
from infergy.records import GpuIdentity, GpuState
from infergy.version import VERSION

DOCTOR_SCHEMA = "infergy.doctor/1"
READS = 300
"""Enough reads to see the slow ones: a read that meets a tick takes longest."""

PACKAGES = ("nvidia-ml-py", "torch", "transformers", "accelerate", "vllm", "zeus")
REMEDIES: Mapping[str, str] = {
    "torch": "engine transformers: pip install 'infergy[transformers]'",
    "transformers": "engine transformers: pip install 'infergy[transformers]'",
    "vllm": "engine vllm: pip install 'infergy[vllm]'",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedGpu:
    """One GPU as its driver shows it.

    Attributes:
        catalogue: Its name in `infergy gpus`; None if it is not there, and so has no datasheet or largest batch.
        answers: Fields of its state that the driver tells.
        silent: Fields that it does not tell; rows have None there.
    """

    identity: GpuIdentity
    catalogue: str | None
    answers: tuple[str, ...]
    silent: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was found.

    Attributes:
        can_measure: Whether an energy counter moves.
        counter_period_s: Seconds between two ticks of the first GPU's counter; None if it does not move.
        read_median_s: Seconds of one read of all counters.
        read_worst_s: The slowest of `READS` reads.
        meters: Names that `--meter` takes.
        packages: Versions of what is installed.
        missing: What is not there, and what to type to get it.
        notes: What to know of this machine, in words.
        visible_devices: CUDA_VISIBLE_DEVICES; None if it is not set.
    """

    can_measure: bool
    meter: str | None
    scope: str | None
    simulated: bool
    gpus: tuple[ProbedGpu, ...]
    counter_period_s: float | None
    read_median_s: float | None
    read_worst_s: float | None
    driver: str | None
    cuda: str | None
    meters: tuple[str, ...]
    infergy: str
    python: str
    platform: str
    packages: Mapping[str, str]
    visible_devices: str | None
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    schema: str = DOCTOR_SCHEMA


def examine(meter: Meter | None, reason: str | None = None) -> Machine:
    """Probe a meter and gather what is installed.

    Args:
        meter: The open meter; None if it could not be opened.
        reason: Why it could not.
    """
    found = {name: version for name in PACKAGES if (version := version_of(name)) is not None}
    missing = [] if reason is None else [reason]
    missing += dict.fromkeys(remedy for name, remedy in REMEDIES.items() if name not in found)
    probe = None if meter is None else _probe(meter)
    facts = {} if meter is None else meter.facts()
    return Machine(
        can_measure=probe is not None and probe.period_s is not None,
        meter=None if meter is None else meter.name,
        scope=None if meter is None else meter.scope,
        simulated=meter is not None and meter.is_simulated,
        gpus=() if meter is None else _gpus(meter),
        counter_period_s=None if probe is None else probe.period_s,
        read_median_s=None if probe is None else probe.median_s,
        read_worst_s=None if probe is None else probe.worst_s,
        driver=facts.get("driver"),
        cuda=facts.get("cuda"),
        meters=(*METERS, *(plugin.name for plugin in find_plugins() if plugin.problem is None)),
        infergy=VERSION,
        python=platform.python_version(),
        platform=platform.platform(),
        packages=found,
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        missing=tuple(missing),
        notes=_notes(meter, None if probe is None else probe.reason),
    )


@dataclass(frozen=True, slots=True)
class _Probe:
    period_s: float | None
    median_s: float
    worst_s: float
    reason: str | None


def _probe(meter: Meter) -> _Probe | None:
    clock, seconds = meter.clock, []
    try:
        for _ in range(READS):
            begun_s = clock.now_s()
            meter.read()
            seconds.append(clock.now_s() - begun_s)
    except InfergyError:
        return None
    try:
        return _Probe(counter_period_s(meter), median(seconds), max(seconds), None)
    except MeterError as error:
        return _Probe(None, median(seconds), max(seconds), str(error))


def _gpus(meter: Meter) -> tuple[ProbedGpu, ...]:
    states = {state.uuid: state for state in meter.states()}
    return tuple(_gpu(gpu, states.get(gpu.uuid)) for gpu in meter.gpus)


def _gpu(identity: GpuIdentity, state: GpuState | None) -> ProbedGpu:
    names = [field.name for field in fields(GpuState) if field.name != "uuid"]
    told = [name for name in names if state is not None and getattr(state, name) is not None]
    known = find_gpu_by_driver_name(identity.name)
    return ProbedGpu(
        identity=identity,
        catalogue=None if known is None else known.name,
        answers=tuple(told),
        silent=tuple(name for name in names if name not in told),
    )


def _notes(meter: Meter | None, reason: str | None) -> tuple[str, ...]:
    if meter is None:
        return ()
    notes = [] if reason is None else [reason]
    for gpu in meter.gpus:
        if "MIG" in gpu.name:
            notes.append(f"{gpu.name} is a slice: its counter, if it has one, is that of the whole board")
        elif find_gpu_by_driver_name(gpu.name) is None and not meter.is_simulated:
            notes.append(f"{gpu.name} is not in the catalogue (infergy gpus): give batches yourself, --batch 1,8,32")
    if any(gpu.power_limit_w is None for gpu in meter.gpus) and not meter.is_simulated:
        notes.append("the driver does not tell the power limit: rows cannot be told apart by it")
    return tuple(notes)
