"""Windows that cannot be: a counter jumped, began again or stood still for a part of them, or the clock went back.

A counter that fell by more than a window adds shows at once, and so does one that stopped (`infergy.records.window`).
What is left are falls and jumps within a window, which show in its mean power. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from infergy.errors import MeterError
from infergy.records import GpuIdentity, Window, derive

MOST_OF_LIMIT = 2.0
"""Mean power over the enforced limit. An H200 showed 825 W at a limit of 700 W for some milliseconds, never over
seconds."""

LEAST_OF_IDLE = 0.5
"""Mean power over that of the loaded, idle device."""


def demand_plausible_window(window: Window, loaded_idle: Window, gpus: Sequence[GpuIdentity]) -> None:
    """Refuse a window of work whose joules cannot be.

    Raises:
        MeterError: A counter or a clock stood still or ran backwards, or the mean power of a device lies outside of
            what it can draw.
    """
    _demand_order(window)
    demand_plausible_power(derive([window], loaded_idle).power_by_gpu_w, gpus, loaded_idle.power_by_gpu_w)


def demand_plausible_power(
    power_by_gpu_w: Mapping[str, float], gpus: Sequence[GpuIdentity], idle_w: Mapping[str, float]
) -> None:
    """Refuse a mean power below half of idle power, or above twice the limit; what is not known limits nothing.

    Args:
        power_by_gpu_w: Mean power in watts, by UUID.
        gpus: The devices, with their power limits.
        idle_w: Power of each when idle, by UUID; may be empty.

    Raises:
        MeterError: The mean power of a device lies outside of what it can draw.
    """
    limit_w = {gpu.uuid: gpu.power_limit_w for gpu in gpus}
    for uuid, power_w in power_by_gpu_w.items():
        most_w, least_w = limit_w.get(uuid), LEAST_OF_IDLE * idle_w.get(uuid, 0.0)
        if most_w is not None and power_w > MOST_OF_LIMIT * most_w:
            message = (
                f"the energy counter of {uuid} tells a mean power of {power_w:.4g} W, expected at most "
                f"{MOST_OF_LIMIT:g} times its limit of {most_w:g} W: it jumped. "
                "Measure again; if it stays, see how it follows a load: infergy doctor --meter"
            )
            raise MeterError(message, code="counter-wrong", uuid=uuid, power_w=power_w)
        if power_w < least_w:
            message = (
                f"the energy counter of {uuid} tells a mean power of {power_w:.4g} W while it worked, "
                f"{idle_w[uuid]:.4g} W when idle: it began again or stood still for a part of the window. "
                "Measure again; if it stays, see how it follows a load: infergy doctor --meter"
            )
            raise MeterError(message, code="counter-wrong", uuid=uuid, power_w=power_w)


def _demand_order(window: Window) -> None:
    """Refuse stamps out of order: opening ticks, each batch's begin and end, settled ticks, closing ticks."""
    stamps_s = [max(tick.time_s for tick in window.open.values())]
    for batch in window.batches:
        stamps_s += [batch.start_s, batch.end_s]
    stamps_s += [min(tick.time_s for tick in edge.values()) for edge in (window.settled, window.close) if edge]
    for earlier_s, later_s in pairwise(stamps_s):
        if later_s < earlier_s:
            message = (
                f"the clock went back by {earlier_s - later_s:.3f} s within a window; expected one that only grows. "
                "Measure again; if it stays, see whether this machine is paused or moved while it runs"
            )
            raise MeterError(message, code="clock-wrong", back_s=earlier_s - later_s)
