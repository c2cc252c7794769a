"""Simulated GPUs of known energy, and their meter, for machines without a GPU and for tests against the truth.

A GPU has a virtual clock, a power that the simulated engine sets, and a coarse counter. Nothing it yields says anything
about real hardware.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infergy.catalog.gpus import IDLE_SHARE, SIMULATED_PREFIX, Gpu
from infergy.meters.meter import Clock, Power, SystemClock
from infergy.records import GpuIdentity, GpuState

COUNTER_PERIOD_S = 0.1
"""Between two moves of an H200's counter."""
CALL_S = 1e-6
"""Reading the counter takes about this long on an H200."""
HOT_S = 3.0
"""How long clocks stay high after work."""

FIRST_PHASE_S, PHASE_STEP_S = 0.037, 0.0618
"""The first GPU's first tick, and from there to the next GPU's: no two tick together."""
UNEVEN = 0.04
"""The first of several GPUs draws so much less than their mean, the last so much more: no two are alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterSensor:
    """How the energy counter differs from the truth; by default only by its steps.

    Attributes:
        step_j: It shows whole multiples of this.
        delay_s: A tick shows the energy of so long before.
        drift_per_s: Its gain, 1 at first, grows by so much per second.
        reset_s: It restarts from zero at its first tick after so long.
        start_j: Its value before any energy was used.
        share: It samples only the last part of each of its periods and scales it up (part-time sampling, arXiv
            2312.02741); above 0, at most 1.
        jitter_s: Each tick is late by up to this, uniformly; below the counter's period.
    """

    step_j: float = 0.001
    delay_s: float = 0.0
    drift_per_s: float = 0.0
    reset_s: float | None = None
    start_j: float = 0.0
    share: float = 1.0
    jitter_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSensor:
    """How the power fields differ from the truth.

    Attributes:
        period_s: Time between changes; 0 for continuous.
        window_s: Instant power is the mean over so long before the change; 0 for the power of that moment. Below
            `period_s` the sensor samples part-time.
        delay_s: A change shows the power of so long before.
        average_s: Average power is the mean over so long.
        gain: Instant power shows this times the truth, plus `offset_w`.
        noise_w: Standard deviation from one change to the next.
    """

    period_s: float = 0.0
    window_s: float = 0.0
    delay_s: float = 0.0
    average_s: float = 1.0
    gain: float = 1.0
    offset_w: float = 0.0
    noise_w: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensors:
    """Both sensors of a GPU; reads are `read_gap_s` apart while waiting for a tick, `seed` is of jitter and noise."""

    counter: CounterSensor = CounterSensor()
    power: PowerSensor = PowerSensor()
    read_gap_s: float = 0.0005
    seed: int = 0


class SimulatedGpu:
    """Time, power and the energy counter of one simulated GPU.

    Args:
        identity: Its name and UUID.
        idle_w: Power while no batch runs.
        hot_idle_w: Power in the first `HOT_S` after work, while clocks are still high; None for `idle_w`.
        period_s: Time between two ticks of the counter.
        phase_s: When the first tick comes.
        sensors: How counter and power fields differ from the truth.
    """

    def __init__(
        self,
        identity: GpuIdentity,
        *,
        idle_w: float,
        hot_idle_w: float | None = None,
        period_s: float = COUNTER_PERIOD_S,
        phase_s: float = FIRST_PHASE_S,
        sensors: Sensors | None = None,
    ) -> None:
        self.identity = identity
        self.gpus = (self,)
        self.idle_w = idle_w
        self.hot_idle_w = idle_w if hot_idle_w is None else hot_idle_w
        self.load_w: float | None = None  # of work that goes on while time passes; None: idle
        self.period_s = period_s
        self.sensors = sensors or Sensors()
        self.power_w = idle_w
        self.true_j = 0.0
        self.counter_j = self.sensors.counter.start_j  # as the counter shows it; `true_j` is the truth
        self._now_s = self._cold_s = 0.0
        self._ticks = 0
        self._phase_s = phase_s
        self._sampled_j = 0.0
        self._reset_j: float | None = None
        self._watch_s: float | None = None
        self._next_look_s = 0.0
        self._looks: list[tuple[float, float]] = []
        power = self.sensors.power
        memory_s = power.delay_s + power.window_s + power.period_s + power.average_s + self.sensors.counter.delay_s
        self._past = _Past(idle_w, memory_s + 1.0 + 2 * period_s)
        self._random = random.Random(self.sensors.seed)
        self._lateness = random.Random(self.sensors.seed + 1)
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
        """Let the time between two reads of the counter pass."""
        self.sleep(self.sensors.read_gap_s)

    def next_tick_s(self) -> float:
        """When the counter will move next, on the virtual clock; no real instrument knows."""
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
        while self._watch_s is not None and self._next_look_s <= self._now_s:
            self._looks.append((self._next_look_s, self.instant_w(self._next_look_s)))
            self._next_look_s += self._watch_s
        self._past.forget_before(self._now_s)

    def read(self) -> float:
        """The counter, after the time that a call takes."""
        self.sleep(CALL_S)
        return self.counter_j

    def watch(self, every_s: float) -> None:
        """From now on, sample instant power every `every_s`."""
        self._watch_s, self._next_look_s, self._looks = every_s, self._now_s, []

    def seen(self) -> list[tuple[float, float]]:
        """Seconds and watts of each sample since `watch`, which ends."""
        looks, self._watch_s, self._looks = self._looks, None, []
        return looks

    def instant_w(self, at_s: float | None = None) -> float:
        """Power as the instant field shows it, now or at a recent instant."""
        sensor = self.sensors.power
        shown_s, update = self._last_update(self._now_s if at_s is None else at_s)
        power_w = self._past.mean_w(shown_s, sensor.window_s) if sensor.window_s else self._past.piece(shown_s)[2]
        return sensor.gain * power_w + sensor.offset_w + self._noise_w(update)[0]

    def average_w(self) -> float:
        """Power as the averaged field shows it."""
        shown_s, update = self._last_update(self._now_s)
        return self._past.mean_w(shown_s, self.sensors.power.average_s) + self._noise_w(update)[1]

    def _tick_s(self, tick: int) -> float:
        nominal_s = self._phase_s + tick * self.period_s
        if not self.sensors.counter.jitter_s:
            return nominal_s
        while len(self._late_s) <= tick:
            self._late_s.append(self._lateness.uniform(0, self.sensors.counter.jitter_s))
        return nominal_s + self._late_s[tick]

    def _count(self, ticks: int) -> None:
        """Move the counter to its value after its `ticks`-th tick."""
        sensor = self.sensors.counter
        if sensor.share < 1:
            for tick in range(self._ticks, ticks):
                seen_s = self._tick_s(tick) - sensor.delay_s
                self._sampled_j += self._past.mean_w(seen_s, sensor.share * self.period_s) * self.period_s
            shown_j = self._sampled_j
        else:
            shown_j = max(0.0, self._past.energy_j(self._tick_s(ticks - 1) - sensor.delay_s))
        self._ticks = ticks
        shown_j = shown_j * (1 + sensor.drift_per_s * self._now_s) + sensor.start_j
        if sensor.reset_s is not None and self._now_s >= sensor.reset_s:
            if self._reset_j is None:
                self._reset_j = shown_j
            shown_j -= self._reset_j
        self.counter_j = round(round(shown_j / sensor.step_j) * sensor.step_j, 6)

    def _last_update(self, at_s: float) -> tuple[float, int | None]:
        """The instant that the power fields show, and the number of their last change; None if they always change."""
        sensor = self.sensors.power
        if not sensor.period_s:
            return at_s - sensor.delay_s, None
        update = int((at_s - self._phase_s) // sensor.period_s)
        return self._phase_s + update * sensor.period_s - sensor.delay_s, update

    def _noise_w(self, update: int | None) -> tuple[float, float]:
        """Noise of instant and average power, the same until the fields change."""
        if not self.sensors.power.noise_w:
            return 0.0, 0.0
        if update is None or update != self._noise[0]:
            instant_w, average_w = (self._random.gauss(0.0, self.sensors.power.noise_w) for _ in range(2))
            self._noise = (update, instant_w, average_w)
        return self._noise[1:]


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

    def mean_w(self, end_s: float, seconds: float) -> float:
        """Mean power over the `seconds` before `end_s`, as if the GPU had been idle before the clock began."""
        # Two sums of many parts: without rounding a steady power would flicker.
        return round((self.energy_j(end_s) - self.energy_j(end_s - seconds)) / seconds, 6)

    def energy_j(self, time_s: float) -> float:
        """Joules used until `time_s`; negative before the clock began."""
        start_s, start_j, power_w = self.piece(time_s)
        return start_j + (time_s - start_s) * power_w

    def piece(self, time_s: float) -> tuple[float, float, float]:
        for piece in reversed(self._pieces):
            if piece[0] <= time_s:
                return piece
        return self._pieces[0]


class SimulatedNode:
    """GPUs whose clocks move together; one alone behaves as that `SimulatedGpu`.

    Args:
        gpus: The GPUs, in the engine's order.
        weights: What each draws of the power of work, over the mean of all; None for evenly.
    """

    def __init__(self, gpus: Sequence[SimulatedGpu], weights: Sequence[float] | None = None) -> None:
        self.gpus = tuple(gpus)
        self._shares = [weight / len(self.gpus) for weight in weights or [1.0] * len(self.gpus)]

    def now_s(self) -> float:
        """The virtual clock, in seconds."""
        return self.gpus[0].now_s()

    def sleep(self, seconds: float) -> None:
        """Let time pass for all of them, idle or under their own load."""
        for gpu in self.gpus:
            gpu.sleep(seconds)

    def pause(self) -> None:
        """Wait between two reads of the counters, as one GPU's clock does."""
        for gpu in self.gpus:
            gpu.pause()

    def advance(self, seconds: float, power_w: float) -> None:
        """Let time pass while all of them together draw `power_w`."""
        for gpu, share in zip(self.gpus, self._shares, strict=True):
            gpu.advance(seconds, power_w * share)

    def read(self) -> dict[str, float]:
        """Energy of each counter by UUID, read one after the other, each after the time of a call."""
        energy_j: dict[str, float] = {}
        for gpu in self.gpus:
            begun_s = gpu.now_s()
            energy_j[gpu.identity.uuid] = gpu.read()
            for other in self.gpus:
                if other is not gpu:
                    other.sleep(gpu.now_s() - begun_s)
        return energy_j


def pretend_node(gpu: Gpu, count: int) -> SimulatedNode:
    """`count` simulated boards of a kind; each ticks at another instant, and draws another power, idle and busy."""
    # Over the mean of all, rising by equal steps.
    weights = [1 + UNEVEN * (2 * index / (count - 1) - 1) for index in range(count)] if count > 1 else [1.0]
    name = f"{SIMULATED_PREFIX}{gpu.title}"
    gpus = [
        SimulatedGpu(
            GpuIdentity(uuid=f"GPU-simulated-{index}", name=name, memory_bytes=gpu.memory_bytes),
            idle_w=gpu.tdp_w * IDLE_SHARE * weight,
            phase_s=(FIRST_PHASE_S + index * PHASE_STEP_S) % COUNTER_PERIOD_S,
        )
        for index, weight in enumerate(weights)
    ]
    return SimulatedNode(gpus, weights)


class _Simulated:
    name, scope, is_simulated = "simulated", "gpu-board", True

    def facts(self) -> Mapping[str, str]:
        """None."""
        return {}

    def close(self) -> None:
        """Nothing is held."""


class SimulatedMeter(_Simulated):
    """Reads the coarse counters of simulated GPUs; its rows are marked and rejected in an estimate unless allowed."""

    def __init__(self, device: SimulatedGpu | SimulatedNode) -> None:
        self._node = device if isinstance(device, SimulatedNode) else SimulatedNode([device])
        self.clock: Clock = device
        self.gpus: tuple[GpuIdentity, ...] = tuple(gpu.identity for gpu in self._node.gpus)

    def read(self) -> Mapping[str, float]:
        """Energy of the counters, by UUID."""
        return self._node.read()

    def states(self) -> tuple[GpuState, ...]:
        """The present power; a simulated GPU has no temperature or clocks."""
        return tuple(GpuState(uuid=gpu.identity.uuid, power_w=gpu.instant_w(), slowdowns=()) for gpu in self._node.gpus)

    def powers(self) -> Mapping[str, Power]:
        """The power fields, as the GPUs' sensors show them."""
        return {g.identity.uuid: Power(instant_w=g.instant_w(), average_w=g.average_w()) for g in self._node.gpus}

    def watch(self, every_s: float) -> None:
        """From now on, sample instant power every `every_s` on the virtual clock."""
        for gpu in self._node.gpus:
            gpu.watch(every_s)

    def seen(self) -> Mapping[str, list[tuple[float, float]]]:
        """Seconds and watts of each sample since `watch`, by UUID; sampling ends."""
        return {gpu.identity.uuid: gpu.seen() for gpu in self._node.gpus}


class SteadyMeter(_Simulated):
    """Simulated GPUs in real time that always draw the same power, for programs where there is no GPU.

    The first of `count` draws `power_w`, each further one a tenth of it more than the one before.
    """

    def __init__(self, power_w: float = 100.0, count: int = 1) -> None:
        self._power_w = {f"GPU-simulated-{index}": power_w * (1 + index / 10) for index in range(count)}
        self.clock: Clock = SystemClock()
        self.gpus = tuple(GpuIdentity(uuid=uuid, name="simulated steady GPU") for uuid in self._power_w)

    def read(self) -> Mapping[str, float]:
        """Joules since the clock began, as of the last tick of the counter."""
        ticks = self.clock.now_s() // COUNTER_PERIOD_S
        return {uuid: ticks * COUNTER_PERIOD_S * power_w for uuid, power_w in self._power_w.items()}

    def states(self) -> tuple[GpuState, ...]:
        """The power that never changes."""
        return tuple(GpuState(uuid=uuid, power_w=power_w, slowdowns=()) for uuid, power_w in self._power_w.items())
