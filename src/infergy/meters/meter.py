"""What every meter offers, and whether its counter says what the power field of the same GPU says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from infergy.records import GpuIdentity, GpuState

PAUSE_S = 0.0002
"""Between two reads of a counter: a wait for a tick of 0.1 s takes some hundred of them, a millisecond in all."""


class Clock(Protocol):
    """Time as the instrument sees it, so that a simulated GPU can run faster than the world."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    def pause(self) -> None:
        """Wait as little as possible, between two reads of a counter."""
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
    """Energy counters that only ever grow, one per GPU in use; `infergy.testing.check_meter` checks the rules.

    Attributes:
        name: ``nvml``, ``simulated`` or a plug-in's.
        scope: What the energy covers: ``gpu-board``, ``gpu-module``, ``cpu-package``, ``dram``; sums with a + between.
        is_simulated: Whether the energy comes from a model instead of a GPU.
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
        """The state of each GPU now."""
        ...

    def facts(self) -> Mapping[str, str]:
        """Versions of the software below the meter: ``driver``, ``cuda``."""
        ...

    def close(self) -> None:
        """Release the instrument; called again, do nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """The power fields of one GPU at one instant, in watts; None where the driver does not report it.

    Attributes:
        instant_w: The sensor's last value.
        average_w: A trailing mean, over about a second on NVIDIA's GPUs.
    """

    instant_w: float | None
    average_w: float | None


class PowerMeter(Meter, Protocol):
    """A meter that reports power besides its counters."""

    def powers(self) -> Mapping[str, Power]:
        """The power fields of each GPU now, by UUID."""
        ...


def powers_of(meter: Meter) -> Mapping[str, Power]:
    """The power fields by UUID; of a meter that is no `PowerMeter`, the power of its states."""
    # Called a thousand times a second: isinstance of a protocol would cost more than the reading.
    powers: Callable[[], Mapping[str, Power]] | None = getattr(meter, "powers", None)
    if powers is not None:
        return powers()
    return {state.uuid: Power(instant_w=state.power_w, average_w=None) for state in meter.states()}


DISAGREEMENT = 0.2
"""How far mean power by the counter may differ from the field's, where that was the same before and after."""
STEADY = 0.05
"""How far the field may differ before and after an interval over which power counts as steady."""
FIX = "see how it follows a load: infergy doctor --meter"


def counter_over_power(
    counter_w: Mapping[str, float], before: Iterable[GpuState], after: Iterable[GpuState], meter: Meter
) -> dict[str, tuple[float, float]]:
    """Watts by the counter and by the power field over an interval, by UUID, where that was steady.

    The counter of a module covers more than the field, and is left out.
    """
    if "module" in meter.scope:
        return {}
    ends = {state.uuid: state.power_w for state in after}
    found = {}
    for state in before:
        begin_w, end_w = state.power_w, ends.get(state.uuid)
        if not begin_w or not end_w or state.uuid not in counter_w:
            continue
        if abs(end_w / begin_w - 1) <= STEADY:
            found[state.uuid] = counter_w[state.uuid], (begin_w + end_w) / 2
    return found


def disagrees(counter_w: float, field_w: float) -> bool:
    """Whether the two differ by more than power could vary."""
    return abs(counter_w / field_w - 1) > DISAGREEMENT
