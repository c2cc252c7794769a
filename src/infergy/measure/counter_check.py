"""Whether an energy counter says what the power field of the same GPU says. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from infergy.meters import Meter
from infergy.records import GpuState

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
