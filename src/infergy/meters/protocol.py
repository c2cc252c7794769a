"""What every meter offers, and how one is opened by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from infergy.errors import UsageError
from infergy.records import GpuIdentity, GpuState

PAUSE_S = 0.0002
"""Between two looks at a counter: a wait for a tick of 0.1 s then reads it some hundred times, a millisecond in all."""


class Clock(Protocol):
    """Time as the instrument sees it, so that a simulated GPU can run faster than the world."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    def pause(self) -> None:
        """Wait as little as can be, between two looks at a counter."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def pause(self) -> None:
        """Spin: a sleep, however short, overshoots by milliseconds on a virtual machine."""
        end_s = time.monotonic() + PAUSE_S
        while time.monotonic() < end_s:
            pass


class Meter(Protocol):
    """Energy counters that only ever grow, one for each GPU in use; `infergy.testing.check_meter` holds its rules.

    Attributes:
        name: ``nvml``, ``simulated`` or a plug-in's.
        scope: What the joules cover: ``gpu-board``, ``cpu-package``, ``dram``; what is added, with a + between.
        is_simulated: Whether the joules come from a model instead of a GPU.
        clock: The clock on which its readings are stamped.
        gpus: The GPUs in use, in the engine's order; for another scope than theirs, the devices it counts.
    """

    name: str
    scope: str
    is_simulated: bool
    clock: Clock
    gpus: tuple[GpuIdentity, ...]

    def read(self) -> Mapping[str, float]:
        """Joules by GPU UUID, as the counters stand now."""
        ...

    def states(self) -> tuple[GpuState, ...]:
        """What each GPU is doing now."""
        ...

    def facts(self) -> Mapping[str, str]:
        """Versions of what lies under the meter: ``driver``, ``cuda``."""
        ...

    def close(self) -> None:
        """Release the instrument; called again, do nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """The power fields of one GPU at one instant, in watts; None where the driver does not tell.

    Attributes:
        instant_w: What the sensor showed last.
        average_w: A trailing mean, over about a second on NVIDIA's GPUs.
    """

    instant_w: float | None
    average_w: float | None


class PowerMeter(Meter, Protocol):
    """A meter that tells power beside its counters."""

    def powers(self) -> Mapping[str, Power]:
        """The power fields of each GPU now, by UUID."""
        ...


def powers_of(meter: Meter) -> Mapping[str, Power]:
    """The power fields by UUID; of a meter that is no `PowerMeter`, what its states tell."""
    # Asked a thousand times a second: isinstance of a protocol would cost more than the reading.
    powers: Callable[[], Mapping[str, Power]] | None = getattr(meter, "powers", None)
    if powers is not None:
        return powers()
    return {state.uuid: Power(instant_w=state.power_w, average_w=None) for state in meter.states()}


def open_meter(name: str, gpus: int | None, *, simulated: Callable[[], Meter] | None = None) -> Meter:
    """Open the meter `name` on the first `gpus` visible GPUs: a built-in one, else a plug-in.

    Args:
        name: ``nvml``, ``simulated`` or the name of a plug-in.
        gpus: How many GPUs will be used; None opens all that are visible, of a plug-in the first.
        simulated: Gives the meter of the simulated GPU, whose engine must share it.

    Raises:
        UsageError: No such meter, or two plug-ins of that name.
        MissingError: NVML, a GPU or what a plug-in needs is missing.
        MeterError: A plug-in is no meter.
    """
    from infergy.meters.plugins import open_plugin

    if name == "nvml":
        from infergy.meters.nvml import NvmlMeter

        return NvmlMeter.open(gpus)
    if name == "simulated" and simulated is not None:
        return simulated()
    if name == "simulated":
        message = "the simulated meter needs the simulated GPU that it shares with an engine: --simulate"
        raise UsageError(message, code="option-missing", option="--simulate", meter=name)
    return open_plugin(name, 1 if gpus is None else gpus)


METERS: Sequence[str] = ("nvml", "simulated")
"""The built-in ones; they come before plug-ins of the same name."""
