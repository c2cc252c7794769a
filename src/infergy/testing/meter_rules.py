"""The rules that every meter keeps, so that any meter works with any engine.

A rule reads the meter as `infergy.measure` does: through its own clock, on ticks of its counters. On a real
instrument the whole check takes a few seconds, on a simulated one none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from infergy.errors import MeterError
from infergy.meters import Meter, next_tick
from infergy.records import GpuIdentity, GpuState
from infergy.testing.rules import calling, demand, named, run_rules

PLAUSIBLE_W = (0.01, 5000.0)
"""From the on-chip GPU of an idle laptop to a superchip with its CPUs; millijoules or kilojoules fall outside."""

POWER_RATIO = 10.0
"""Counter and power reading of an idle GPU were seen 1.7 times apart (zeus, issue 181); units are 1,000 times apart."""

ROUNDING_S = 1e-6
READS = 200
SCOPE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(\+[a-z0-9]+(-[a-z0-9]+)*)*")
NEVER_ZERO = {
    "power_w": None,
    "temperature_c": (-60.0, 200.0),
    "sm_clock_hz": (1e6, 1e11),
    "memory_clock_hz": (1e6, 1e11),
}
"""Fields of a `GpuState` that a device in use never has at 0, and the range of each in SI units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterTrial:
    """A meter under test.

    Attributes:
        open: Opens it; each rule gets a fresh one.
        seconds: Length of a window, in seconds on the meter's clock.
        plausible_w: Lowest and highest mean power of one device, in watts.
    """

    open: Callable[[], Meter]
    seconds: float
    plausible_w: tuple[float, float]

    @contextmanager
    def opened(self) -> Iterator[Meter]:
        """A fresh meter, always closed afterwards."""
        meter = self.open()
        try:
            yield meter
        finally:
            # Only one rule judges closing.
            with suppress(Exception):
                meter.close()

    def check(self, rule: MeterRule) -> None:
        """Check one rule."""
        with self.opened() as meter:
            rule(self, meter)


MeterRule = Callable[[MeterTrial, Meter], None]
METER_RULES: dict[str, MeterRule] = {}
"""By name; each takes a `MeterTrial` and a fresh meter, and raises an AssertionError whose message is a sentence."""


def check_meter(
    open_meter: Callable[[], Meter], *, seconds: float = 0.5, plausible_w: tuple[float, float] = PLAUSIBLE_W
) -> tuple[str, ...]:
    """Run `METER_RULES` on the meter that `open_meter` opens.

    Args:
        open_meter: Opens the meter; called once per rule and once more for one of them.
        seconds: Length of the window over which its energy is judged, in seconds on the meter's own clock.
        plausible_w: Lowest and highest mean power of one of its devices, in watts. Narrow it to what you know.

    Returns:
        The names of the rules, all of them kept.

    Raises:
        BrokenRuleError: Rules are broken: a sentence for each.
        MissingError: The meter cannot open here.
    """
    trial = MeterTrial(open=open_meter, seconds=seconds, plausible_w=plausible_w)
    with trial.opened() as meter:
        subject = f"meter {getattr(meter, 'name', type(meter).__name__)!r}"
    return run_rules(subject, {name: partial(trial.check, rule) for name, rule in METER_RULES.items()})


@named(METER_RULES, "scope is named")
def _scope_is_named(_: MeterTrial, meter: Meter) -> None:
    demand(isinstance(meter.name, str) and bool(meter.name), f"name is {meter.name!r}; rows need a name")
    demand(
        isinstance(meter.scope, str) and SCOPE.fullmatch(meter.scope) is not None,
        f"scope is {meter.scope!r}; it says what the energy covers in lower case, as gpu-board, cpu-package or "
        "dram, with a + between what is added, as cpu-package+dram",
    )
    demand(
        isinstance(meter.is_simulated, bool),
        f"is_simulated is {meter.is_simulated!r}; expected True or False: estimates reject simulated rows by default",
    )


@named(METER_RULES, "devices are identified")
def _devices_are_identified(_: MeterTrial, meter: Meter) -> None:
    gpus = meter.gpus
    demand(
        isinstance(gpus, tuple) and bool(gpus) and all(isinstance(gpu, GpuIdentity) for gpu in gpus),
        f"gpus is {gpus!r}; expected a tuple of at least one GpuIdentity",
    )
    for gpu in gpus:
        demand(bool(gpu.uuid) and bool(gpu.name), f"{gpu} lacks a uuid or a name")
        for field in ("memory_bytes", "power_limit_w", "max_sm_clock_hz"):
            value = getattr(gpu, field)
            demand(
                value is None or (math.isfinite(value) and value > 0),
                f"{field} of {gpu.uuid} is {value}; what is unknown is None, never 0",
            )
    uuids = [gpu.uuid for gpu in gpus]
    demand(len(set(uuids)) == len(uuids), f"two devices share a UUID: {', '.join(uuids)}")


@named(METER_RULES, "ids agree")
def _ids_agree(_: MeterTrial, meter: Meter) -> None:
    uuids = [gpu.uuid for gpu in meter.gpus]
    read, states = list(meter.read()), [state.uuid for state in meter.states()]
    demand(set(read) == set(uuids), f"gpus holds {uuids}, read() holds {read}; expected the same UUIDs")
    demand(states == uuids, f"gpus holds {uuids}, states() holds {states}; expected the same UUIDs in that order")


@named(METER_RULES, "ids are stable")
def _ids_are_stable(trial: MeterTrial, meter: Meter) -> None:
    first = [gpu.uuid for gpu in meter.gpus]
    reads = set(meter.read()), set(meter.read())
    demand(reads[0] == reads[1], f"one read holds {sorted(reads[0])}, the next {sorted(reads[1])}")
    with suppress(Exception):
        meter.close()
    with trial.opened() as again:
        second = [gpu.uuid for gpu in again.gpus]
    demand(first == second, f"opened twice, it names its devices {first} and then {second}; a UUID names the same GPU")


@named(METER_RULES, "joules are finite")
def _joules_are_finite(_: MeterTrial, meter: Meter) -> None:
    for uuid, joules in meter.read().items():
        demand(
            isinstance(joules, int | float) and not isinstance(joules, bool) and math.isfinite(joules),
            f"read() gives {joules!r} for {uuid}; expected a finite number, or an error where there is none",
        )
        demand(joules >= 0, f"read() gives {joules} J for {uuid}; a counter starts at 0 or above")


@named(METER_RULES, "reads are monotone")
def _reads_are_monotone(trial: MeterTrial, meter: Meter) -> None:
    last = meter.read()
    for _ in range(READS):
        meter.clock.sleep(trial.seconds / READS)
        now = meter.read()
        for uuid, joules in now.items():
            was = last.get(uuid, joules)
            demand(joules >= was, f"the counter of {uuid} fell from {was} J to {joules} J; a counter only grows")
        last = now


@named(METER_RULES, "counters tick")
def _counters_tick(_: MeterTrial, meter: Meter) -> None:
    try:
        next_tick(meter)
    except MeterError as error:
        demand(False, str(error))


@named(METER_RULES, "joules are plausible")
def _joules_are_plausible(trial: MeterTrial, meter: Meter) -> None:
    low_w, high_w = trial.plausible_w
    opened = next_tick(meter)
    before = {state.uuid: state.power_w for state in meter.states()}
    meter.clock.sleep(trial.seconds)
    after = {state.uuid: state.power_w for state in meter.states()}
    closed = next_tick(meter)
    for uuid, end in closed.ticks.items():
        start = opened.ticks[uuid]
        power_w = (end.energy_j - start.energy_j) / (end.time_s - start.time_s)
        demand(
            low_w <= power_w <= high_w,
            f"the counter of {uuid} grew by {power_w:g} W; expected {low_w:g} to {high_w:g} W. Is it in joules?",
        )
        reported = [power for power in (before.get(uuid), after.get(uuid)) if power]
        demand(
            not reported or min(reported) / POWER_RATIO <= power_w <= max(reported) * POWER_RATIO,
            f"the counter of {uuid} grew by {power_w:g} W while states() reported {reported} W; their units differ",
        )


@named(METER_RULES, "the clock is monotone")
def _clock_is_monotone(_: MeterTrial, meter: Meter) -> None:
    clock = meter.clock
    last_s = clock.now_s()
    demand(isinstance(last_s, float) and math.isfinite(last_s), f"now_s() is {last_s!r}; expected seconds")
    for call in (clock.pause, meter.read, meter.states, partial(clock.sleep, 0.0), clock.pause):
        call()
        now_s = clock.now_s()
        demand(now_s >= last_s, f"the clock went from {last_s} s back to {now_s} s")
        last_s = now_s
    clock.sleep(0.01)
    slept_s = clock.now_s() - last_s
    demand(slept_s >= 0.01 - ROUNDING_S, f"sleep(0.01) moved the clock by {slept_s:g} s; expected 0.01 s or more")


@named(METER_RULES, "unknown is None")
def _unknown_is_none(trial: MeterTrial, meter: Meter) -> None:
    states = meter.states()
    demand(isinstance(states, tuple), f"states() is a {type(states).__name__}; expected a tuple")
    for state in states:
        demand(isinstance(state, GpuState), f"states() holds {state!r}; expected a GpuState")
        for field, bounds in NEVER_ZERO.items():
            value = getattr(state, field)
            low, high = bounds or trial.plausible_w
            demand(value != 0, f"{field} of {state.uuid} is 0; what is unknown is None, never 0")
            demand(
                value is None or low <= value <= high,
                f"{field} of {state.uuid} is {value}; expected {low:g} to {high:g}, or None where unknown",
            )
        for field in ("memory_used_bytes", "processes"):
            count = getattr(state, field)
            demand(
                count is None or (isinstance(count, int) and count >= 0),
                f"{field} of {state.uuid} is {count!r}; expected a whole number from 0, or None where unknown",
            )
        demand(
            state.slowdowns is None or (isinstance(state.slowdowns, tuple) and all(state.slowdowns)),
            f"slowdowns of {state.uuid} is {state.slowdowns!r}; expected a tuple of names, or None where unknown",
        )


@named(METER_RULES, "facts are strings")
def _facts_are_strings(_: MeterTrial, meter: Meter) -> None:
    for key, value in meter.facts().items():
        demand(
            isinstance(key, str) and isinstance(value, str) and bool(value),
            f"facts() holds {key!r}: {value!r}; expected strings, and what is unknown left out",
        )


@named(METER_RULES, "closing twice is harmless")
def _closing_twice_is_harmless(_: MeterTrial, meter: Meter) -> None:
    with calling("close()"):
        meter.close()
    with calling("close(), called again,"):
        meter.close()
