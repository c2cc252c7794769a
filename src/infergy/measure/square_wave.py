r"""How counter and power fields follow a load that is switched on and off. Standard library only.

    load    ____/¯¯¯¯\____/¯¯¯¯\__ …   steps, each at another moment of the counter's period
            /¯\_/¯\_/¯\_/¯\_/¯\_ …     waves of several periods
            _______ ------- ¯¯¯¯¯¯¯    idle, half and full

Steps give delay and averaging (`infergy.measure.step_response`); the steady loads give ticks, and with the waves the
ratio of the counter to the integral of instant power. No limit or clock of a GPU is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from statistics import fmean, median
from typing import Protocol

from infergy.errors import MeterError
from infergy.measure import step_response as response
from infergy.measure.step_response import Point, Step
from infergy.meters import Meter, powers_of
from infergy.meters.ticks import TIMEOUT_S
from infergy.records import Tick
from infergy.records.behaviour import Agreement, CounterBehaviour, FieldBehaviour, MeterBehaviour
from infergy.version import VERSION

OFF, HALF, FULL = 0.0, 0.5, 1.0
LOADS = {"idle": OFF, "half": HALF, "full": FULL}

POWER_EVERY_S = 1e-3
"""Reading the power fields takes far longer than reading the counter, and none is known to change faster."""


class PowerLoad(Protocol):
    """Work that a GPU does while its meter is read.

    Attributes:
        name: What it is, for the record.
    """

    name: str

    def set(self, level: float) -> None:
        """Draw no more than idle power (0), about half of what the load can draw above it (0.5), or all (1)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """How long each part takes, in seconds.

    Attributes:
        settle_s: After a change of a steady load, before anything is compared: an averaged field looks back 1 s.
        steady_s: Of each steady load and each wave.
        steps: How many steps.
        hold_s: How long the load is off before a step, and on after it.
        half_periods_s: Of the waves.
    """

    settle_s: float = 1.5
    steady_s: float = 4.0
    steps: int = 20
    hold_s: float = 1.6
    half_periods_s: tuple[float, ...] = (0.5, 0.1, 0.05, 0.02)

    @property
    def duration_s(self) -> float:
        """About how long all of it takes."""
        steady_s = self.settle_s + self.steady_s
        return len(LOADS) * steady_s + len(self.half_periods_s) * steady_s + self.steps * 2 * self.hold_s


@dataclass(slots=True)
class _Watched:
    """What was read while it was watched: ticks of the counter, and samples of the power fields."""

    ticks: list[Tick] = field(default_factory=list)
    instant: list[Point] = field(default_factory=list)
    average: list[Point] = field(default_factory=list)
    gap_s: float = 0.0


class _Watcher:
    """Reads the meter of one GPU, and switches its load."""

    def __init__(self, meter: Meter, load: PowerLoad | None) -> None:
        self._meter = meter
        self._load = load
        self._uuid = meter.gpus[0].uuid
        self._clock = meter.clock
        self._last_j = meter.read()[self._uuid]
        self._last_s = self._tick_s = self._clock.now_s()
        self._asked_s = self._last_s - POWER_EVERY_S
        self.watched = _Watched()

    def begin(self, level: float | None = None) -> float:
        """Forget what was watched, switch the load if one is given, and return the time."""
        self.watched = _Watched()
        return self.switch(level)

    def switch(self, level: float | None) -> float:
        if self._load is not None and level is not None:
            self._load.set(level)
        return self._clock.now_s()

    def watch(self, until_s: float) -> None:
        """Read until then.

        Raises:
            MeterError: The counter stood still for three seconds.
        """
        while self._clock.now_s() < until_s:
            self._look()

    def watch_tick(self) -> float:
        """Read until the counter moves, and return when it did."""
        seen = len(self.watched.ticks)
        while len(self.watched.ticks) == seen:
            self._look()
        return self.watched.ticks[-1].time_s

    def _look(self) -> None:
        self._clock.pause()
        # As in `infergy.meters.ticks`: a stamp on either side of the read, whatever stops us between.
        before_s = self._clock.now_s()
        energy_j = self._meter.read()[self._uuid]
        now_s = self._clock.now_s()
        if energy_j != self._last_j:
            self.watched.ticks.append(Tick(time_s=now_s, energy_j=energy_j))
            self.watched.gap_s = max(self.watched.gap_s, now_s - self._last_s)
            self._last_j, self._tick_s = energy_j, now_s
        elif before_s - self._tick_s > TIMEOUT_S:
            message = (
                f"the energy counter of {self._uuid} did not move in {TIMEOUT_S:g} s; expected a tick every 0.02 to "
                "1 s. Look: infergy doctor"
            )
            raise MeterError(message, code="counter-stuck", uuid=self._uuid, waited_s=TIMEOUT_S)
        self._last_s = before_s
        if now_s - self._asked_s >= POWER_EVERY_S:
            power = powers_of(self._meter)[self._uuid]
            self._asked_s = self._clock.now_s()
            for told_w, kept in ((power.instant_w, self.watched.instant), (power.average_w, self.watched.average)):
                if told_w is not None:
                    kept.append((self._asked_s, told_w))


def measure_behaviour(meter: Meter, load: PowerLoad | None, wave: Wave | None = None) -> MeterBehaviour:
    """Switch the load of the meter's first GPU on and off, and tell how counter and power fields follow.

    Args:
        meter: An open meter; only its first GPU is read.
        load: Runs on that GPU; None measures what an idle GPU tells.
        wave: How long each part takes.

    Raises:
        MeterError: The counter stands still.
    """
    wave = wave or Wave()
    watcher = _Watcher(meter, load)
    try:
        agreements, steady = _steady(watcher, wave, LOADS if load else {"idle": OFF})
        steps: list[Step] = []
        stepped = _Watched()
        if load is not None:
            period_s = _median_period_s(steady.ticks) or wave.hold_s / 16
            steps, stepped = _steps(watcher, wave, period_s)
            agreements += [_wave(watcher, wave, half_s) for half_s in wave.half_periods_s]
    finally:
        if load is not None:
            load.set(OFF)
    facts = meter.facts()
    instant = _field(steady.instant, stepped.instant, steps, is_instant=True)
    average = _field(steady.average, stepped.average, steps, is_instant=False)
    counter = _counter(steady, stepped, steps, instant.period_s, wave)
    return MeterBehaviour(
        measured_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        infergy=VERSION,
        gpu=meter.gpus[0],
        driver=facts.get("driver"),
        cuda=facts.get("cuda"),
        meter=meter.name,
        scope=meter.scope,
        simulated=meter.is_simulated,
        load=None if load is None else load.name,
        counter=counter,
        instant_power=instant,
        average_power=average,
        agreements=tuple(agreements),
        reasons=_reasons(load, counter, instant, average, bool(steady.instant), bool(steady.average)),
    )


def _steady(watcher: _Watcher, wave: Wave, loads: dict[str, float]) -> tuple[list[Agreement], _Watched]:
    """Compare under each steady load; with it what was watched under the last."""
    agreements = []
    for name, level in loads.items():
        watcher.watch(watcher.begin(level) + wave.settle_s)
        watcher.watch(watcher.begin() + wave.steady_s)
        agreements.append(_agreement(name, None, watcher.watched))
    return agreements, watcher.watched


def _steps(watcher: _Watcher, wave: Wave, period_s: float) -> tuple[list[Step], _Watched]:
    """Steps at evenly spread moments of the counter's period."""
    steps = []
    watcher.begin()
    for number in range(wave.steps):
        off_s = watcher.switch(OFF)
        watcher.watch(off_s + wave.hold_s)
        watcher.watch(watcher.watch_tick() + (number + 0.5) / wave.steps * period_s)
        on_s = watcher.switch(FULL)
        watcher.watch(on_s + wave.hold_s)
        steps.append(Step(off_s, on_s, on_s + wave.hold_s))
    return steps, watcher.watched


def _wave(watcher: _Watcher, wave: Wave, half_period_s: float) -> Agreement:
    def run(seconds: float) -> None:
        # On a grid of its own, so that late reads do not add up.
        time_s = begun_s = watcher.begin()
        while time_s < begun_s + seconds:
            for level in (FULL, OFF):
                watcher.switch(level)
                time_s += half_period_s
                watcher.watch(time_s)

    run(wave.settle_s)
    run(wave.steady_s)
    return _agreement("wave", half_period_s, watcher.watched)


def _agreement(load: str, half_period_s: float | None, watched: _Watched) -> Agreement:
    ticks, instant = watched.ticks, watched.instant
    # The samples must reach over both ends.
    inside = [t for t in ticks if instant and instant[0][0] <= t.time_s <= instant[-1][0]] or ticks
    if len(inside) < 2:
        message = (
            f"the energy counter moved {len(inside)} times under the load {load!r}; expected a tick every 0.02 to 1 s. "
            "Look: infergy doctor"
        )
        raise MeterError(message, code="counter-stuck", load=load, ticks=len(inside))
    first, last = inside[0], inside[-1]
    seconds = last.time_s - first.time_s
    counter_w = (last.energy_j - first.energy_j) / seconds
    shown_j = response.integral_j(instant, first.time_s, last.time_s)
    return Agreement(
        load=load,
        half_period_s=half_period_s,
        duration_s=seconds,
        counter_w=counter_w,
        instant_w=None if shown_j is None else shown_j / seconds,
        ratio=counter_w * seconds / shown_j if shown_j else None,
    )


def _median_period_s(ticks: Sequence[Tick]) -> float | None:
    return median(b.time_s - a.time_s for a, b in pairwise(ticks)) if len(ticks) > 1 else None


def _counter(
    steady: _Watched, stepped: _Watched, steps: Sequence[Step], power_period_s: float | None, wave: Wave
) -> CounterBehaviour:
    intervals_s = [
        later.time_s - earlier.time_s for watched in (steady, stepped) for earlier, later in pairwise(watched.ticks)
    ]
    gap_s = max(steady.gap_s, stepped.gap_s)
    known = len(intervals_s) >= response.FEWEST
    period_s = median(intervals_s) if known else None
    shifts_s = response.counter_shifts_s(stepped.ticks, steps, wave.hold_s / 4)
    looks_s = power_period_s or period_s
    return CounterBehaviour(
        period_s=period_s,
        period_low_s=response.percentile(intervals_s, 0.05) if known else None,
        period_high_s=response.percentile(intervals_s, 0.95) if known else None,
        intervals=len(intervals_s),
        is_regular=response.is_regular(intervals_s, gap_s) if known else None,
        read_gap_s=gap_s if steady.ticks else None,
        step_j=response.step_j(steady.ticks, stepped.ticks),
        delay_s=fmean(shifts_s) if shifts_s else None,
        sampled_share=None if looks_s is None else response.share_from_scatter(shifts_s, looks_s),
    )


def _field(
    steady: Sequence[Point], stepped: Sequence[Point], steps: Sequence[Step], *, is_instant: bool
) -> FieldBehaviour:
    period_s = response.field_period_s(steady)
    # Where its changes cannot be told apart, every sample counts: the field as a reader sees it.
    points = response.response(stepped, steps, only_changes=period_s is not None)
    ramp = response.fit_ramp(points)
    share = min(1.0, ramp[1] / period_s) if is_instant and ramp is not None and period_s else None
    return FieldBehaviour(
        period_s=period_s,
        delay_s=None if ramp is None else ramp[0],
        rise_s=None if ramp is None else ramp[1] * response.RISE_SHARE,
        averaged_s=None if ramp is None else ramp[1],
        sampled_share=share,
    )


def _reasons(
    load: PowerLoad | None,
    counter: CounterBehaviour,
    instant: FieldBehaviour,
    average: FieldBehaviour,
    has_instant: bool,
    has_average: bool,
) -> tuple[str, ...]:
    found = []
    if load is None:
        found.append(
            "no load was run, so that delays, averaging and the ratios under load are unknown: "
            "pip install torch (with CUDA), then infergy doctor --meter"
        )
    if counter.period_s is None:
        found.append(f"the counter moved too seldom to tell its period ({counter.intervals} times)")
    for name, one, has in (("instant", instant, has_instant), ("average", average, has_average)):
        if not has:
            found.append(f"{name} power does not answer on this GPU and driver")
            continue
        if one.period_s is None:
            found.append(f"{name} power changes at each read or not at all under a steady load: its period is unknown")
        if load is not None and one.delay_s is None:
            found.append(f"{name} power did not follow the load: its delay is unknown")
    return tuple(found)
