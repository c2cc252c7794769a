"""A GPU whose joules are known: a virtual clock, a power that the simulated engine sets, and a coarse counter.

It lets the whole instrument run where there is no GPU, and lets tests compare what infergy measures with the truth.
Nothing it yields says anything about real hardware.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from infergy.records import GpuIdentity

COUNTER_PERIOD_S = 0.1
"""As seen on an H200: the counter moves every 100 ms."""

CALL_S = 1e-6
"""Reading the counter takes about this long on an H200."""

HOT_S = 3.0
"""How long clocks stay high after work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensors:
    """How a pretended GPU shows its power and its joules; the defaults show the truth, the joules at ticks.

    Attributes:
        counter_step_j: The counter shows whole multiples of this.
        counter_delay_s: A tick shows the joules of so long before.
        counter_drift_per_s: The counter's gain, 1 at first, grows by so much a second.
        counter_reset_s: The counter starts again from nothing at its first tick after so long.
        counter_start_j: What the counter shows before anything was used.
        counter_share: The counter looks at the last part of each of its periods only and takes it for the whole
            (part-time sampling, arXiv 2312.02741); above 0, at most 1.
        read_gap_s: A look at the counter to wait for its tick takes so long: the stamp of the tick is late by up to it.
        tick_jitter_s: Each tick is late by up to this, uniformly; below the counter's period.
        power_period_s: The power fields change so often; 0 for always.
        power_window_s: Instant power is the mean over so long before the change; 0 for the power of that moment. Below
            `power_period_s` the sensor samples part-time.
        power_delay_s: A change of the power fields shows the power of so long before.
        average_s: Average power is the mean over so long.
        power_gain: Instant power shows this times the truth, and `power_offset_w` above it.
        noise_w: Standard deviation of the power fields from one change to the next.
        seed: Of jitter and noise.
    """

    counter_step_j: float = 0.001
    counter_delay_s: float = 0.0
    counter_drift_per_s: float = 0.0
    counter_reset_s: float | None = None
    counter_start_j: float = 0.0
    counter_share: float = 1.0
    read_gap_s: float = 0.0005
    tick_jitter_s: float = 0.0
    power_period_s: float = 0.0
    power_window_s: float = 0.0
    power_delay_s: float = 0.0
    average_s: float = 1.0
    power_gain: float = 1.0
    power_offset_w: float = 0.0
    noise_w: float = 0.0
    seed: int = 0

    @property
    def memory_s(self) -> float:
        """How far back they look, all together, in seconds."""
        return (
            self.counter_delay_s + self.power_delay_s + self.power_window_s + self.power_period_s + self.average_s + 1.0
        )


TRUE_SENSORS = Sensors()


class SimulatedGpu:
    """Time, power and the energy counter of one pretended GPU.

    Args:
        identity: What it pretends to be.
        idle_w: Power while no batch runs.
        hot_idle_w: Power in the first `HOT_S` after work, while clocks are still high; None for `idle_w`.
        period_s: Time between two ticks of the counter.
        phase_s: When the first tick comes.
        sensors: What else the counter and the power fields do to the truth.
    """

    def __init__(
        self,
        identity: GpuIdentity,
        *,
        idle_w: float,
        hot_idle_w: float | None = None,
        period_s: float = COUNTER_PERIOD_S,
        phase_s: float = 0.037,
        sensors: Sensors = TRUE_SENSORS,
    ) -> None:
        self.identity = identity
        self.idle_w = idle_w
        self.hot_idle_w = idle_w if hot_idle_w is None else hot_idle_w
        self.load_w: float | None = None
        """Power of work that goes on by itself while time passes; None for none: `idle_w`."""
        self.period_s = period_s
        self.sensors = sensors
        self.power_w = idle_w
        self.true_j = 0.0
        """Joules used so far, exactly."""
        self.counter_j = sensors.counter_start_j
        """Joules as the counter shows them: by default the truth at its last tick, in whole millijoules."""
        self._now_s = 0.0
        self._cold_s = 0.0
        self._ticks = 0
        self._phase_s = phase_s
        self._sampled_j = 0.0
        self._reset_j: float | None = None
        self._watch: _Watch | None = None
        self._past = _Past(idle_w, sensors.memory_s + 2 * period_s)
        self._random = random.Random(sensors.seed)
        self._lateness = random.Random(sensors.seed + 1)
        self._late_s: list[float] = []
        self._noise: tuple[int | None, float, float] = (None, 0.0, 0.0)

    def now_s(self) -> float:
        """The virtual clock, in seconds."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass, idle or under `load_w`."""
        if self.load_w is not None:
            self._pass(seconds, self.load_w)
            return
        hot_s = min(seconds, max(0.0, self._cold_s - self._now_s))
        if hot_s:
            self._pass(hot_s, self.hot_idle_w)
        if seconds > hot_s:
            self._pass(seconds - hot_s, self.idle_w)

    def pause(self) -> None:
        """Let the time between two looks at the counter pass."""
        self.sleep(self.sensors.read_gap_s)

    def next_tick_s(self) -> float:
        """When the counter will move next, on the virtual clock; what no real instrument knows."""
        return self._tick_s(self._ticks)

    def advance(self, seconds: float, power_w: float) -> None:
        """Work for some time at a constant power."""
        self._pass(seconds, power_w)
        self._cold_s = self._now_s + HOT_S

    def _pass(self, seconds: float, power_w: float) -> None:
        """Let time pass at a constant power, ticking the counter on the way."""
        self._past.add(self._now_s, self.true_j, power_w)
        self.power_w = power_w
        self._now_s += seconds
        self.true_j += seconds * power_w
        ticks = int((self._now_s - self._phase_s) / self.period_s) + 1 if self._now_s >= self._phase_s else 0
        if ticks and self._tick_s(ticks - 1) > self._now_s:
            ticks -= 1
        if ticks > self._ticks:
            self._count(ticks)
        if self._watch is not None:
            self._watch.look(self)
        self._past.forget_before(self._now_s)

    def read(self) -> float:
        """The counter, at the cost of a call's time."""
        self.sleep(CALL_S)
        return self.counter_j

    def watch(self, every_s: float) -> None:
        """From now on, look at instant power every so often."""
        self._watch = _Watch(every_s, self._now_s)

    def seen(self) -> list[tuple[float, float]]:
        """Seconds and watts of each look since `watch`; from now on there are no more."""
        watched, self._watch = self._watch, None
        return [] if watched is None else watched.looks

    def instant_w(self, at_s: float | None = None) -> float:
        """Power as the instant field shows it, now or at an instant that is not long past."""
        shown_s, update = self._last_update(self._now_s if at_s is None else at_s)
        window_s = self.sensors.power_window_s
        power_w = self._past.mean_w(shown_s, window_s) if window_s else self._past.power_w(shown_s)
        return self.sensors.power_gain * power_w + self.sensors.power_offset_w + self._noise_w(update)[0]

    def average_w(self) -> float:
        """Power as the averaged field shows it."""
        shown_s, update = self._last_update(self._now_s)
        return self._past.mean_w(shown_s, self.sensors.average_s) + self._noise_w(update)[1]

    def _tick_s(self, tick: int) -> float:
        nominal_s = self._phase_s + tick * self.period_s
        if not self.sensors.tick_jitter_s:
            return nominal_s
        while len(self._late_s) <= tick:
            self._late_s.append(self._lateness.uniform(0, self.sensors.tick_jitter_s))
        return nominal_s + self._late_s[tick]

    def _count(self, ticks: int) -> None:
        """Show what the counter shows after its `ticks`-th tick."""
        share, delay_s = self.sensors.counter_share, self.sensors.counter_delay_s
        if share < 1:
            for tick in range(self._ticks, ticks):
                seen_s = self._tick_s(tick) - delay_s
                self._sampled_j += self._past.mean_w(seen_s, share * self.period_s) * self.period_s
            shown_j = self._sampled_j
        else:
            shown_j = self._past.energy_j(self._tick_s(ticks - 1) - delay_s)
        self._ticks = ticks
        shown_j = shown_j * (1 + self.sensors.counter_drift_per_s * self._now_s) + self.sensors.counter_start_j
        if self.sensors.counter_reset_s is not None and self._now_s >= self.sensors.counter_reset_s:
            if self._reset_j is None:
                self._reset_j = shown_j
            shown_j -= self._reset_j
        step_j = self.sensors.counter_step_j
        self.counter_j = round(round(shown_j / step_j) * step_j, 6)

    def _last_update(self, at_s: float) -> tuple[float, int | None]:
        """Of which instant the power fields tell, and the number of their last change; None if they always do."""
        period_s = self.sensors.power_period_s
        if not period_s:
            return at_s - self.sensors.power_delay_s, None
        update = int((at_s - self._phase_s) // period_s)
        return self._phase_s + update * period_s - self.sensors.power_delay_s, update

    def _noise_w(self, update: int | None) -> tuple[float, float]:
        """Noise of instant and average power, the same until the fields change."""
        if not self.sensors.noise_w:
            return 0.0, 0.0
        if update is None or update != self._noise[0]:
            instant_w, average_w = (self._random.gauss(0.0, self.sensors.noise_w) for _ in range(2))
            self._noise = (update, instant_w, average_w)
        return self._noise[1:]


class _Watch:
    """Looks at a GPU's power sensor at even times."""

    def __init__(self, every_s: float, now_s: float) -> None:
        self._every_s = every_s
        self._next_s = now_s
        self.looks: list[tuple[float, float]] = []

    def look(self, gpu: SimulatedGpu) -> None:
        while self._next_s <= gpu.now_s():
            self.looks.append((self._next_s, gpu.instant_w(self._next_s)))
            self._next_s += self._every_s


class _Past:
    """The power of the last seconds, piece by piece; before the first piece the GPU was idle."""

    def __init__(self, idle_w: float, memory_s: float) -> None:
        self._pieces: deque[tuple[float, float, float]] = deque([(0.0, 0.0, idle_w)])
        self._memory_s = memory_s

    def add(self, start_s: float, start_j: float, power_w: float) -> None:
        if power_w != self._pieces[-1][2]:
            self._pieces.append((start_s, start_j, power_w))

    def forget_before(self, now_s: float) -> None:
        while len(self._pieces) > 1 and self._pieces[1][0] < now_s - self._memory_s:
            self._pieces.popleft()

    def energy_j(self, time_s: float) -> float:
        """Joules used until `time_s`; none before the clock began."""
        start_s, start_j, power_w = self._piece(time_s)
        return max(0.0, start_j + (time_s - start_s) * power_w)

    def power_w(self, time_s: float) -> float:
        return self._piece(time_s)[2]

    def mean_w(self, end_s: float, seconds: float) -> float:
        """Mean power over the `seconds` before `end_s`, as if the GPU had been idle before the clock began."""
        # Two sums of many parts: without rounding a steady power would flicker.
        return round((self._line_j(end_s) - self._line_j(end_s - seconds)) / seconds, 6)

    def _line_j(self, time_s: float) -> float:
        start_s, start_j, power_w = self._piece(time_s)
        return start_j + (time_s - start_s) * power_w

    def _piece(self, time_s: float) -> tuple[float, float, float]:
        for piece in reversed(self._pieces):
            if piece[0] <= time_s:
                return piece
        return self._pieces[0]
