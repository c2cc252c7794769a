"""Energy counters, read once in a while at one of their ticks: energy between two ticks is exact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from infergy.errors import InfergyError, MeterError
from infergy.meters import Meter
from infergy.meters.ticks import TIMEOUT_S
from infergy.records.row_checks import check_power

LOOK_S = 0.01
"""Between two reads while a tick is awaited: so much an edge may be late, 0.2 % of ten seconds; NVML takes some
milliseconds of a core for each."""
AWAITED_S = 0.25
"""How long a tick is awaited; of a slower counter it is dated between two looks."""
STALLED = "its energy counter stood still"


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterTick:
    """The last tick of a GPU's counter.

    Attributes:
        time_s: When it was seen, by the meter's clock.
        late_s: How long before it may have come.
        energy_j: Joules since the first look, without what gaps hid.
        counter_j: As the counter shows it.
        gaps: How often the counter was reset, jumped or could not be read: energies apart by one cannot be compared.
    """

    time_s: float
    late_s: float
    energy_j: float
    counter_j: float
    gaps: int


class Counters:
    """The counters of some GPUs of a meter.

    Args:
        meter: Its clock stamps all.
        uuids: The GPUs.
    """

    def __init__(self, meter: Meter, uuids: Iterable[str]) -> None:
        self.meter, self.uuids = meter, tuple(uuids)
        self.ticks: dict[str, CounterTick] = {}
        self.blanks: dict[str, str] = {}
        self._seen_j: Mapping[str, float] = {}
        self._seen_s = 0.0

    def look(self) -> None:
        """Wait for the next tick of each counter, kept in `ticks`; `blanks` says of which GPU they are stale."""
        clock, awaited = self.meter.clock, set(self.uuids)
        begun_s = before_s = clock.now_s()
        try:
            first = now_j = self.meter.read()
            for uuid in awaited & first.keys() & self._seen_j.keys():
                if first[uuid] != self._seen_j[uuid]:
                    # Since the last look; a tick that is awaited below is dated better.
                    self._add(uuid, first[uuid], begun_s, self._seen_s)
            while awaited & first.keys() and clock.now_s() - begun_s < AWAITED_S:
                clock.sleep(LOOK_S)
                asked_s, now_j = clock.now_s(), self.meter.read()
                ticked = {uuid for uuid in awaited & now_j.keys() & first.keys() if now_j[uuid] != first[uuid]}
                for uuid in ticked:
                    self._add(uuid, now_j[uuid], clock.now_s(), before_s)
                awaited -= ticked
                before_s = asked_s
        except InfergyError as error:
            self.blanks = dict.fromkeys(self.uuids, str(error))
            return
        self._seen_j, self._seen_s = now_j, before_s
        now_s = clock.now_s()
        unmoved = {uuid: "its energy counter has not moved yet" for uuid in self.uuids if uuid not in self.ticks}
        gone = {uuid: f"meter {self.meter.name} no longer reads it" for uuid in self.uuids if uuid not in now_j}
        self.blanks = unmoved | gone
        for uuid, tick in self.ticks.items():
            if now_s - tick.time_s > TIMEOUT_S:
                self.blanks.setdefault(uuid, f"{STALLED} for {now_s - tick.time_s:.0f} s")

    def _add(self, uuid: str, counter_j: float, time_s: float, after_s: float) -> None:
        """Take a tick that came after `after_s`; over a gap nothing is known to have been drawn."""
        was, late_s = self.ticks.get(uuid), time_s - after_s
        energy_j, gaps = 0.0, 0
        if was is not None:
            more_j = counter_j - was.counter_j
            is_known = not self.blanks.get(uuid, "").startswith(STALLED)
            # At the least: the tick before may have come as much earlier as it was dated late.
            is_known = is_known and self._is_possible(uuid, more_j / (time_s - was.time_s + was.late_s))
            energy_j, gaps = was.energy_j + more_j * is_known, was.gaps + (not is_known)
        self.ticks[uuid] = CounterTick(time_s=time_s, late_s=late_s, energy_j=energy_j, counter_j=counter_j, gaps=gaps)

    def _is_possible(self, uuid: str, power_w: float) -> bool:
        """Whether a board can have drawn so much: not where its counter was reset, or jumped."""
        try:
            check_power({uuid: power_w}, self.meter.gpus, {}, scope=self.meter.scope)
        except MeterError:
            return False
        return power_w >= 0
