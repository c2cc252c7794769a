r"""How counter and power fields follow a load that is switched on and off. Standard library only.

    load    ____/¯¯¯¯\____/¯¯¯¯\__ …   steps, each at another moment of the counter's period
            /¯\_/¯\_/¯\_/¯\_/¯\_ …     waves of several periods
            _______ ------- ¯¯¯¯¯¯¯    idle, half and full

Steps give delay and averaging (`infergy.measure.step_response`); the steady loads give ticks, and with the waves the
ratio of the counter to the integral of instant power. No limit or clock of a GPU is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from statistics import fmean, median

from infergy import VERSION
from infergy.errors import MeterError
from infergy.measure import step_response as response
from infergy.measure.loads import FULL, HALF, OFF, SimulatedLoad, TorchLoad
from infergy.measure.step_response import Point, Step
from infergy.meters import Meter, powers_of
from infergy.meters.ticks import TIMEOUT_S
from infergy.records import Tick
from infergy.records.behaviour import Agreement, CounterBehaviour, FieldBehaviour, MeterBehaviour

LOADS = {"idle": OFF, "half": HALF, "full": FULL}

POWER_EVERY_S = 1e-3
"""Reading the power fields takes far longer than reading the counter, and none is known to change faster."""


RISE_SHARE = 0.8
"""Of a straight ramp, from 10 % to 90 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """How long each part takes, in seconds.

    Attributes:
        settle_s: After a change of a steady load, before anything is compared: an averaged field covers 1 s.
        steady_s: Of each steady load and each wave.
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
        return (len(LOADS) + len(self.half_periods_s)) * (self.settle_s + self.steady_s) + self.steps * 2 * self.hold_s


@dataclass(slots=True)
class _Watched:
    """What was read while it was watched: ticks of the counter, and samples of the power fields."""

    ticks: list[Tick] = field(default_factory=list)
    instant: list[Point] = field(default_factory=list)
    average: list[Point] = field(default_factory=list)
    gap_s: float = 0.0


class _Watcher:
    """Reads the meter of one GPU, and switches its load."""

    def __init__(self, meter: Meter, load: SimulatedLoad | TorchLoad | None) -> None:
        self._meter, self._load = meter, load
        self._uuid, self._clock = meter.gpus[0].uuid, meter.clock
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
            for power_w, kept in ((power.instant_w, self.watched.instant), (power.average_w, self.watched.average)):
                if power_w is not None:
                    kept.append((self._asked_s, power_w))


def measure_behaviour(meter: Meter, load: SimulatedLoad | TorchLoad | None, wave: Wave | None = None) -> MeterBehaviour:
    """Switch the load on the meter's first GPU on and off, and find how its counter and power fields follow.

    Without a load, only what an idle GPU shows is known.

    Raises:
        MeterError: The counter stands still.
    """
    wave = wave or Wave()
    watcher = _Watcher(meter, load)
    try:
        agreements = []
        for name, level in (LOADS if load else {"idle": OFF}).items():
            watcher.watch(watcher.begin(level) + wave.settle_s)
            watcher.watch(watcher.begin() + wave.steady_s)
            agreements.append(_agreement(name, None, watcher.watched))
        steady, stepped = watcher.watched, _Watched()
        steps: list[Step] = []
        if load is not None:
            steps, stepped = _steps(watcher, wave)
            agreements += [_wave(watcher, wave, half_s) for half_s in wave.half_periods_s]
    finally:
        if load is not None:
            load.set(OFF)
    facts = meter.facts()
    instant = _field(steady.instant, stepped.instant, steps, is_instant=True)
    average = _field(steady.average, stepped.average, steps, is_instant=False)
    counter = _counter(steady, stepped, steps, instant.period_s, wave)
    fields = (("instant", instant, steady.instant), ("average", average, steady.average))
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
        reasons=tuple(_reasons(load, counter, fields)),
    )


def _steps(watcher: _Watcher, wave: Wave) -> tuple[list[Step], _Watched]:
    """Steps at evenly spaced phases of the counter's period."""
    intervals_s = _intervals_s(watcher.watched)
    period_s = median(intervals_s) if intervals_s else wave.hold_s / 16
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
        # Each switch at a planned time, so that late reads do not add up.
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
    # The samples must cover both ends.
    inside = [t for t in ticks if instant and instant[0][0] <= t.time_s <= instant[-1][0]] or ticks
    if len(inside) < 2:
        message = (
            f"the energy counter moved {len(inside)} times under the load {load!r}; expected a tick every 0.02 to 1 s. "
            "Look: infergy doctor"
        )
        raise MeterError(message, code="counter-stuck", load=load, ticks=len(inside))
    first, last = inside[0], inside[-1]
    seconds, counter_j = last.time_s - first.time_s, last.energy_j - first.energy_j
    shown_j = response.integral_j(instant, first.time_s, last.time_s)
    return Agreement(
        load=load,
        half_period_s=half_period_s,
        duration_s=seconds,
        counter_w=counter_j / seconds,
        instant_w=None if shown_j is None else shown_j / seconds,
        ratio=counter_j / shown_j if shown_j else None,
    )


def _intervals_s(*watched: _Watched) -> list[float]:
    return [later.time_s - earlier.time_s for one in watched for earlier, later in pairwise(one.ticks)]


def _counter(
    steady: _Watched, stepped: _Watched, steps: Sequence[Step], power_period_s: float | None, wave: Wave
) -> CounterBehaviour:
    intervals_s = _intervals_s(steady, stepped)
    gap_s = max(steady.gap_s, stepped.gap_s)
    known = len(intervals_s) >= response.FEWEST
    period_s = median(intervals_s) if known else None
    low_s, high_s = response.middle_90(intervals_s) if known else (None, None)
    shifts_s = response.counter_shifts_s(stepped.ticks, steps, wave.hold_s / 4)
    looks_s = power_period_s or period_s
    return CounterBehaviour(
        period_s=period_s,
        period_low_s=low_s,
        period_high_s=high_s,
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
    # Where single changes are not seen, every sample counts: the field as a reader sees it.
    points = response.response(stepped, steps, only_changes=period_s is not None)
    ramp = response.fit_ramp(points)
    share = min(1.0, ramp[1] / period_s) if is_instant and ramp is not None and period_s else None
    return FieldBehaviour(
        period_s=period_s,
        delay_s=None if ramp is None else ramp[0],
        rise_s=None if ramp is None else ramp[1] * RISE_SHARE,
        averaged_s=None if ramp is None else ramp[1],
        sampled_share=share,
    )


def _reasons(
    load: SimulatedLoad | TorchLoad | None,
    counter: CounterBehaviour,
    fields: Sequence[tuple[str, FieldBehaviour, Sequence[Point]]],
) -> Iterator[str]:
    """Why figures are unknown."""
    if load is None:
        yield (
            "no load was run, so that delays, averaging and the ratios under load are unknown: "
            "pip install torch (with CUDA), then infergy doctor --meter"
        )
    if counter.period_s is None:
        yield f"the counter moved too seldom to find its period ({counter.intervals} times)"
    for name, behaviour, samples in fields:
        if not samples:
            yield f"{name} power does not answer on this GPU and driver"
            continue
        if behaviour.period_s is None:
            yield f"{name} power changes at each read or not at all under a steady load: its period is unknown"
        if load is not None and behaviour.delay_s is None:
            yield f"{name} power did not follow the load: its delay is unknown"
