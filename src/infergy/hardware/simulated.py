"""A GPU whose joules are known: a virtual clock, a power that the simulated engine sets, and a coarse counter.

It lets the whole instrument run where there is no GPU, and lets tests compare what infergy measures with the truth.
Nothing it yields says anything about real hardware.
"""

from __future__ import annotations

from infergy.records import GpuIdentity

COUNTER_PERIOD_S = 0.1
"""As seen on an H200: the counter moves every 100 ms."""

CALL_S = 1e-6
"""Reading the counter takes about this long on an H200."""

PAUSE_S = 0.0005


class SimulatedGpu:
    """Time, power and the energy counter of one pretended GPU.

    Args:
        identity: What it pretends to be.
        idle_w: Power while no batch runs.
        period_s: Time between two ticks of the counter.
        phase_s: When the first tick comes.
    """

    def __init__(
        self,
        identity: GpuIdentity,
        *,
        idle_w: float,
        period_s: float = COUNTER_PERIOD_S,
        phase_s: float = 0.037,
    ) -> None:
        self.identity = identity
        self.idle_w = idle_w
        self.period_s = period_s
        self.power_w = idle_w
        self.true_j = 0.0
        """Joules used so far, exactly."""
        self.counter_j = 0.0
        """Joules as the counter shows them: the truth at its last tick, in whole millijoules."""
        self._now_s = 0.0
        self._ticks = 0
        self._phase_s = phase_s

    def now_s(self) -> float:
        """The virtual clock, in seconds."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Let idle time pass."""
        self.advance(seconds, self.idle_w)

    def pause(self) -> None:
        """Let half a millisecond pass: a wait for a tick takes some hundred looks, not a hundred thousand."""
        self.sleep(PAUSE_S)

    def advance(self, seconds: float, power_w: float) -> None:
        """Let time pass at a constant power, ticking the counter on the way."""
        begun_s, begun_j = self._now_s, self.true_j
        self.power_w = power_w
        self._now_s += seconds
        self.true_j += seconds * power_w
        ticks = int((self._now_s - self._phase_s) / self.period_s) + 1 if self._now_s >= self._phase_s else 0
        if ticks > self._ticks:
            tick_s = self._phase_s + (ticks - 1) * self.period_s
            self._ticks = ticks
            self.counter_j = round(begun_j + (tick_s - begun_s) * power_w, 3)

    def read(self) -> float:
        """The counter, at the cost of a call's time."""
        self.advance(CALL_S, self.idle_w)
        return self.counter_j
