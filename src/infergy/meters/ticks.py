"""Where a window opens and closes: on ticks of the counter.

A counter such as NVML's moves in steps (every 100 ms on an H200). A window cut anywhere else is off by up to one
step's energy at either end. So each edge waits until the counter moves and stamps that instant:

    counter   ___|¯¯¯|¯¯¯|¯¯¯|¯¯¯|¯¯¯|¯¯¯|¯¯¯|¯¯¯|___
    work           .■■■■■■■■■■■■■■■■■...............
                   ^ open            ^ end    ^   ^ close
                                              settled

By the settled tick the counter has reported all energy of the work, however late it does. From there to the closing one
it shows the power of the GPU after the work, at which `infergy.records.result` subtracts the idle parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from infergy.errors import MeterError
from infergy.meters.meter import Meter
from infergy.records import Tick

TIMEOUT_S = 3.0
"""A counter that has not moved for so long is broken: the slowest known one ticks once a second."""

LATE_S = 0.15
"""How late a counter may report energy without losing any: half more than a period of NVML's."""

TAIL_S = 0.09
"""Shortest time over which the power of the tail is taken: a period of NVML's counter, or as many as it takes."""

SHARP_S = 0.01
"""A tick found later than this may be skipped for the next one: on an H200 most are found within 5 ms, but one read
in four takes 20 ms at the moment the counter moves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """The next tick of every GPU's counter.

    Attributes:
        ticks: The tick of each GPU, by UUID.
        uncertainty_s: How long before its stamp a tick may have come at most: since before the last read that did not
            show it yet.
    """

    ticks: dict[str, Tick]
    uncertainty_s: float


def sharp_tick(meter: Meter) -> Edge:
    """The next tick, or the one after it where the next was found late and that one is found sooner.

    Raises:
        MeterError: A counter did not move in three seconds.
    """
    edge = next_tick(meter)
    if edge.uncertainty_s <= SHARP_S:
        return edge
    return min(edge, next_tick(meter), key=lambda candidate: candidate.uncertainty_s)


def next_tick(meter: Meter) -> Edge:
    """Wait until the counter of each GPU has moved once.

    Raises:
        MeterError: A counter did not move in three seconds.
    """
    clock = meter.clock
    # A busy host may stop us anywhere, between a read and its stamp too: each read has a stamp on either side.
    last_s = clock.now_s()
    start_j = meter.read()
    begun_s = clock.now_s()
    _check_all_read(meter, start_j)
    ticks: dict[str, Tick] = {}
    gap_s = 0.0
    while True:
        clock.pause()
        asked_s = clock.now_s()
        energy_j = meter.read()
        now_s = clock.now_s()
        _check_all_read(meter, energy_j)
        for uuid, was_j in start_j.items():
            if uuid not in ticks and energy_j[uuid] != was_j:
                ticks[uuid] = Tick(time_s=now_s, energy_j=energy_j[uuid])
                gap_s = max(gap_s, now_s - last_s)
        if len(ticks) == len(start_j):
            return Edge(ticks=ticks, uncertainty_s=gap_s)
        last_s = asked_s
        # Between the two reads at the least: that we were stopped is not the counter's fault.
        if asked_s - begun_s > TIMEOUT_S:
            stuck = ", ".join(uuid for uuid in start_j if uuid not in ticks)
            message = (
                f"the energy counter of {stuck} did not move in {TIMEOUT_S:g} s; expected a tick every 0.02 to 1 s. "
                "Check that the GPU counts energy at all: nvidia-smi --query-gpu=name,power.draw --format=csv"
            )
            raise MeterError(message, code="counter-stuck", uuid=stuck, waited_s=TIMEOUT_S)


def _check_all_read(meter: Meter, energy_j: Mapping[str, float]) -> None:
    """Stop without a GPU: the energy of the others would pass for that of all."""
    gone = ", ".join(gpu.uuid for gpu in meter.gpus if gpu.uuid not in energy_j)
    if gone:
        message = (
            f"the energy counter of {gone} vanished: meter {meter.name} no longer reads it. "
            "Check that the GPU is still there (nvidia-smi -L), and measure again"
        )
        raise MeterError(message, code="counter-unreadable", uuid=gone, reason="vanished")


def settle(meter: Meter, end_s: float) -> tuple[Edge, Edge]:
    """The settled and the closing edge of a window whose work ended at `end_s`, by the meter's clock.

    Raises:
        MeterError: A counter did not move in three seconds.
    """
    meter.clock.sleep(max(0.0, end_s + LATE_S - meter.clock.now_s()))
    settled = closed = sharp_tick(meter)
    while min(closed.ticks[uuid].time_s - tick.time_s for uuid, tick in settled.ticks.items()) < TAIL_S:
        closed = sharp_tick(meter)
    return settled, closed


def counter_period_s(meter: Meter) -> float:
    """Seconds between two ticks of the first GPU's counter, the shortest of five in a row."""
    uuid = meter.gpus[0].uuid
    stamps = [next_tick(meter).ticks[uuid].time_s for _ in range(6)]
    return min(later - earlier for earlier, later in pairwise(stamps))
