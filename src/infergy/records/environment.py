"""Where a number came from: the host, the GPUs and the engine, as they stood when it was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuIdentity:
    """One GPU board.

    Attributes:
        uuid: The driver's UUID, ``GPU-…``: which board this was.
        name: The driver's product name, ``NVIDIA H200``.
        memory_bytes: Memory of the board.
        power_limit_w: Enforced power limit; None if not reported.
        max_sm_clock_hz: Highest clock of the streaming multiprocessors; None if not reported.
    """

    uuid: str
    name: str
    memory_bytes: int | None = None
    power_limit_w: float | None = None
    max_sm_clock_hz: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """What one GPU was doing at one instant; None if not reported.

    Attributes:
        slowdowns: Reasons for which the driver holds the clocks down, in NVML's words: ``sw_power_cap``, …
        processes: How many compute processes are on the GPU.
    """

    uuid: str
    power_w: float | None = None
    temperature_c: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    memory_used_bytes: int | None = None
    slowdowns: tuple[str, ...] | None = None
    processes: int | None = None


HARMFUL_SLOWDOWNS = frozenset(
    {"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sync_boost"}
)
"""Reasons for lowered clocks that are no property of the work; being at the power limit is one."""


def slowdowns_by_gpu(states: Iterable[GpuState]) -> dict[str, list[str]]:
    """Why clocks were lowered but for the work itself, by UUID; only of GPUs whose clocks were."""
    reasons: dict[str, set[str]] = {}
    for state in states:
        if harmful := HARMFUL_SLOWDOWNS.intersection(state.slowdowns or ()):
            reasons.setdefault(state.uuid, set()).update(harmful)
    return {uuid: sorted(own) for uuid, own in reasons.items()}


def processes_by_gpu(states: Iterable[GpuState]) -> dict[str, int]:
    """The most compute processes seen on each GPU, by UUID; 0 where that is unknown."""
    most: dict[str, int] = {}
    for state in states:
        most[state.uuid] = max(most.get(state.uuid, 0), state.processes or 0)
    return most


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The host, the GPUs and the engine of a row.

    Attributes:
        weights: The distribution of random weights, or where real ones came from.
        packages: Version by package name, of those that shape the result.
        engine: The engine's resolved options, as it reported them.
        meter: Name of the meter, and `scope` of its joules (``gpu-board``).
        counter_period_s: Time between two ticks of the energy counter, probed on this machine.
    """

    infergy: str
    python: str
    platform: str
    cpu: str | None
    gpus: tuple[GpuIdentity, ...]
    driver: str | None
    cuda: str | None
    meter: str
    scope: str
    counter_period_s: float | None
    weights: str
    packages: Mapping[str, str] = field(default_factory=dict)
    engine: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescaled:
    """A factor found by measuring a few cells of an engine config again; the row's raw facts stay as they were.

    Attributes:
        factor: Joules on the other GPU over those of the row's own, above 0.
        low: Lower end of the 95 % interval in which the factor of a cell lies that was not measured again.
        high: Upper end.
        gpu: The driver's name of the GPU for which the joules now stand.
        chips: Its UUID, or those of several GPUs.
        cells: Ids of the cells that were measured again.
        measured_utc: ISO 8601 instant at which the last of them was measured.
    """

    factor: float
    low: float
    high: float
    gpu: str
    chips: tuple[str, ...]
    cells: tuple[str, ...]
    measured_utc: str

    @property
    def half_width(self) -> float:
        """The farther end of the interval from the factor, as a fraction of it."""
        return max(self.high / self.factor - 1, 1 - self.low / self.factor)

    def __str__(self) -> str:
        return f"× {self.factor:.4f} ({self.low:.4f} .. {self.high:.4f}) for {', '.join(self.chips)}"
