"""A process that a busy machine stops, for seconds and anywhere: what its clock shows is late, and the counter went on."""

from __future__ import annotations

from collections.abc import Mapping

from infergy.meters import Clock
from infergy.meters.simulated import SteadyMeter
from infergy.testing import FakeClock

STEADY_W = 200.0
POINTS = 3000
"""More than the places at which a wait for a tick of 0.1 s can be stopped."""


class StoppedClock(FakeClock):
    """A clock that moves on by `stops[n]` seconds at the n-th place at which the process can be stopped."""

    def __init__(self, stops: Mapping[int, float]) -> None:
        super().__init__(100.0)
        self._stops = stops
        self._place = 0

    def stop(self) -> None:
        """A place at which the process can be stopped."""
        super().sleep(1e-6 + self._stops.get(self._place, 0.0))
        self._place += 1

    def now_s(self) -> float:
        self.stop()
        shown_s = super().now_s()
        self.stop()
        return shown_s

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.stop()


class StoppedMeter(SteadyMeter):
    """A GPU of `STEADY_W`, read by a process that is stopped before and after any line."""

    def __init__(self, stops: Mapping[int, float]) -> None:
        super().__init__(STEADY_W)
        self._stopped = StoppedClock(stops)
        self.clock: Clock = self._stopped

    def read(self) -> Mapping[str, float]:
        self._stopped.stop()
        found = super().read()
        self._stopped.stop()
        return found
