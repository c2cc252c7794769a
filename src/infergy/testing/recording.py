"""Readings recorded from any meter and replayed: tests of energy without the machine that used it.

A recording is JSON lines: first what was read (name, scope, devices, facts), then a line per change of a counter,
``{"time_s": 12.345, "energy_j": {"GPU-…": 678.9}}``, seconds on the meter's own clock.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from infergy.errors import DataError, MeterError
from infergy.files import parse_json, read_text, write_file
from infergy.meters import Clock, Meter
from infergy.records import GpuIdentity, GpuState
from infergy.records.codec import from_json, to_json

RECORDING = "infergy.recording/1"
PAUSE_S = 0.0005
"""Between two reads in a wait for a tick: some hundred reads per tick, not a hundred thousand."""


class FakeClock:
    """A `Clock` for tests: `sleep` returns at once and advances it.

    Args:
        start_s: Its first value, in seconds.
        pause_s: How far a `pause` advances it, in seconds; more than 0, so that a wait for a tick ends.
    """

    def __init__(self, start_s: float = 0.0, *, pause_s: float = PAUSE_S) -> None:
        if not pause_s > 0:
            raise ValueError(f"pause_s must be more than 0 s, not {pause_s}: a wait for a tick would never end")
        self._now_s = start_s
        self._pause_s = pause_s

    def now_s(self) -> float:
        """The clock's value, in seconds."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Advance by `seconds`.

        Raises:
            ValueError: `seconds` is negative: a monotonic clock never goes back.
        """
        if seconds < 0:
            raise ValueError(f"sleep takes 0 s or more, not {seconds}: a monotonic clock never goes back")
        self._now_s += seconds

    def pause(self) -> None:
        """Advance as between two reads of a counter."""
        self.sleep(self._pause_s)


class ReplayMeter:
    """A meter whose counters have the values of a recording.

    Args:
        readings: (seconds, joules by UUID), the oldest first; at least two.
        scope: What the energy covers.
        gpus: The devices; by default each UUID gets the name ``replayed``.
        facts: Those of the meter that was recorded.
        clock: Time of the replay [default: a `FakeClock` that starts at the first reading].

    Raises:
        DataError: The readings are too few, not in order, not of the same devices, or no numbers.
    """

    name = "replay"
    is_simulated = True

    def __init__(
        self,
        readings: Iterable[tuple[float, Mapping[str, float]]],
        *,
        scope: str = "gpu-board",
        gpus: tuple[GpuIdentity, ...] | None = None,
        facts: Mapping[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._readings = [(time_s, dict(energy_j)) for time_s, energy_j in readings]
        _check(self._readings)
        self._times_s = [time_s for time_s, _ in self._readings]
        self._facts = dict(facts or {})
        self.scope = scope
        self.gpus = gpus or tuple(GpuIdentity(uuid=uuid, name="replayed") for uuid in self._readings[0][1])
        self.clock: Clock = clock or FakeClock(self._times_s[0])

    @classmethod
    def load(cls, path: Path, clock: Clock | None = None) -> ReplayMeter:
        """Read a recording.

        Raises:
            DataError: It is none, or damaged.
        """
        hint = "Make one with infergy.testing.record"
        texts = enumerate(read_text(path, hint).splitlines(), 1)
        values = [parse_json(text, path, hint, number) for number, text in texts if text.strip()]
        try:
            head, *lines = values
            if head["schema"] != RECORDING:
                message = f"{path}: schema {head['schema']!r}; expected {RECORDING!r}"
                raise DataError(message, code="wrong-schema", path=str(path), found=head["schema"], expected=RECORDING)
            gpus = tuple(from_json(GpuIdentity, gpu) for gpu in head["gpus"])
            readings = [(line["time_s"], line["energy_j"]) for line in lines]
            return cls(readings, scope=head["scope"], gpus=gpus, facts=head["facts"], clock=clock)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            message = f"{path} is no recording of a meter ({reason}); make one with infergy.testing.record"
            raise DataError(message, code="bad-recording", path=str(path), reason=reason) from error

    def read(self) -> Mapping[str, float]:
        """Joules by UUID, as the counters were at the clock's time.

        Raises:
            MeterError: The clock is outside of the recording.
        """
        now_s, first_s, last_s = self.clock.now_s(), self._times_s[0], self._times_s[-1]
        if not first_s <= now_s <= last_s:
            message = (
                f"the recording covers {first_s:g} to {last_s:g} s, the clock is at {now_s:g} s; "
                "record for longer, or sleep less"
            )
            raise MeterError(message, code="recording-ended", now_s=now_s, expected=[first_s, last_s])
        return dict(self._readings[bisect.bisect_right(self._times_s, now_s) - 1][1])

    def states(self) -> tuple[GpuState, ...]:
        """A recording has no states: all is unknown."""
        return tuple(GpuState(uuid=gpu.uuid) for gpu in self.gpus)

    def facts(self) -> Mapping[str, str]:
        """Those of the meter that was recorded."""
        return dict(self._facts)

    def close(self) -> None:
        """Nothing is held."""


class RecordingMeter:
    """Any meter, whose readings are written to `path` when it is closed: wrap it where a program opens one.

    Only changes are kept, and the last reading, in memory until then: writing while metering would disturb.
    """

    def __init__(self, meter: Meter, path: Path) -> None:
        self._meter = meter
        self._path = path
        self._readings: list[tuple[float, Mapping[str, float]]] = []
        self._last: tuple[float, Mapping[str, float]] | None = None
        self._is_closed = False
        self.name, self.scope, self.is_simulated = meter.name, meter.scope, meter.is_simulated
        self.clock: Clock = meter.clock
        self.gpus = meter.gpus
        self.states, self.facts = meter.states, meter.facts

    def read(self) -> Mapping[str, float]:
        """Joules by UUID, which are recorded."""
        energy_j = self._meter.read()
        self._last = (self.clock.now_s(), dict(energy_j))
        if not self._readings or self._readings[-1][1] != energy_j:
            self._readings.append(self._last)
        return energy_j

    def close(self) -> None:
        """Write the recording, and close the meter."""
        if self._is_closed:
            return
        self._is_closed = True
        head = {
            "schema": RECORDING,
            "meter": self.name,
            "scope": self.scope,
            "gpus": [to_json(gpu) for gpu in self.gpus],
            "facts": dict(self.facts()),
        }
        kept = list(self._readings)
        if self._last is not None and self._last[0] > kept[-1][0]:
            kept.append(self._last)
        lines: list[Mapping[str, Any]] = [head, *({"time_s": time, "energy_j": joules} for time, joules in kept)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_file(self._path, text, "recording", f'"{RECORDING.partition("/")[0]}/')
        self._meter.close()


def record(meter: Meter, path: Path, seconds: float) -> None:
    """Read `meter` for `seconds` on its own clock, write the recording to `path`, and close the meter."""
    recording = RecordingMeter(meter, path)
    end_s = recording.clock.now_s() + seconds
    recording.read()
    while recording.clock.now_s() < end_s:
        recording.clock.pause()
        recording.read()
    recording.close()


def _check(readings: list[tuple[float, dict[str, float]]]) -> None:
    if len(readings) < 2:
        message = f"a replay needs at least 2 readings, not {len(readings)}: energy is a difference of two"
        raise DataError(message, code="bad-recording", readings=len(readings))
    uuids = set(readings[0][1])
    last_s = -math.inf
    for number, (time_s, energy_j) in enumerate(readings, 1):
        problem: tuple[str, dict[str, Any]] | None = None
        if not math.isfinite(time_s) or time_s <= last_s:
            problem = f"is at {time_s} s, the one before at {last_s} s; expected later ones", {"time_s": time_s}
        elif set(energy_j) != uuids or not uuids:
            fields = {"uuids": sorted(energy_j), "expected": sorted(uuids)}
            problem = f"is of {sorted(energy_j)}, the first of {sorted(uuids)}; expected the same", fields
        elif not all(isinstance(joules, int | float) and 0 <= joules < math.inf for joules in energy_j.values()):
            problem = f"holds {energy_j}; expected joules, 0 or more", {"energy_j": energy_j}
        if problem is not None:
            message = f"reading {number} {problem[0]}"
            raise DataError(message, code="bad-recording", reading=number, **problem[1])
        last_s = time_s
