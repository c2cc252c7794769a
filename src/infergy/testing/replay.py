"""Readings recorded from any meter, played again: tests of joules without the machine that used them.

A recording is JSON lines: first what was read (name, scope, devices, facts), then a line for each change of a counter,
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
from infergy.meters import Clock, Meter
from infergy.records import GpuIdentity, GpuState
from infergy.records.codec import from_json, to_json
from infergy.testing.clock import FakeClock

RECORDING = "infergy.recording/1"


class ReplayMeter:
    """A meter whose counters stand where a recording says they stood.

    Args:
        readings: (seconds, joules by UUID), the oldest first; at least two.
        scope: What the joules cover.
        gpus: The devices; without them, each UUID gets the name ``replayed``.
        facts: What lay under the meter that was recorded.
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
        uuids = self._readings[0][1]
        self.gpus = gpus or tuple(GpuIdentity(uuid=uuid, name="replayed") for uuid in uuids)
        self.clock: Clock = clock or FakeClock(self._times_s[0])

    @classmethod
    def load(cls, path: Path, clock: Clock | None = None) -> ReplayMeter:
        """Read a recording.

        Raises:
            DataError: It is none, or damaged.
        """
        try:
            head, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            if head["schema"] != RECORDING:
                message = f"{path}: schema {head['schema']!r}; expected {RECORDING!r}"
                raise DataError(message, code="wrong-schema", path=str(path), found=head["schema"], expected=RECORDING)
            gpus = tuple(from_json(GpuIdentity, gpu) for gpu in head["gpus"])
            readings = [(line["time_s"], line["energy_j"]) for line in lines]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is no recording of a meter ({type(error).__name__}: {error}); "
                "make one with infergy.testing.record",
                code="bad-recording",
                path=str(path),
                reason=f"{type(error).__name__}: {error}",
            ) from error
        return cls(readings, scope=head["scope"], gpus=gpus, facts=head["facts"], clock=clock)

    def read(self) -> Mapping[str, float]:
        """Joules by UUID, as the counters stood at the clock's time.

        Raises:
            MeterError: The clock stands outside the recording.
        """
        now_s = self.clock.now_s()
        if not self._times_s[0] <= now_s <= self._times_s[-1]:
            raise MeterError(
                f"the recording holds {self._times_s[0]:g} to {self._times_s[-1]:g} s, the clock is at {now_s:g} s; "
                "record for longer, or sleep less",
                code="recording-ended",
                now_s=now_s,
                expected=[self._times_s[0], self._times_s[-1]],
            )
        return dict(self._readings[bisect.bisect_right(self._times_s, now_s) - 1][1])

    def states(self) -> tuple[GpuState, ...]:
        """A recording holds no states: all is unknown."""
        return tuple(GpuState(uuid=gpu.uuid) for gpu in self.gpus)

    def facts(self) -> Mapping[str, str]:
        """What lay under the meter that was recorded."""
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
        self.name = meter.name
        self.scope = meter.scope
        self.is_simulated = meter.is_simulated
        self.clock: Clock = meter.clock
        self.gpus = meter.gpus

    def read(self) -> Mapping[str, float]:
        """Joules by UUID, and remember them."""
        energy_j = self._meter.read()
        self._last = (self.clock.now_s(), dict(energy_j))
        if not self._readings or self._readings[-1][1] != energy_j:
            self._readings.append(self._last)
        return energy_j

    def states(self) -> tuple[GpuState, ...]:
        """As the meter tells them."""
        return self._meter.states()

    def facts(self) -> Mapping[str, str]:
        """As the meter tells them."""
        return self._meter.facts()

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
        self._path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
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
        message = f"a replay needs at least 2 readings, not {len(readings)}: joules are a difference of two"
        raise DataError(message, code="bad-recording", readings=len(readings))
    uuids = set(readings[0][1])
    last_s = -math.inf
    for number, (time_s, energy_j) in enumerate(readings, 1):
        if not math.isfinite(time_s) or time_s <= last_s:
            message = f"reading {number} is at {time_s} s, the one before at {last_s} s; expected later ones"
            raise DataError(message, code="bad-recording", reading=number, time_s=time_s)
        if set(energy_j) != uuids or not uuids:
            message = f"reading {number} is of {sorted(energy_j)}, the first of {sorted(uuids)}; expected the same"
            raise DataError(
                message, code="bad-recording", reading=number, uuids=sorted(energy_j), expected=sorted(uuids)
            )
        if not all(isinstance(joules, int | float) and math.isfinite(joules) for joules in energy_j.values()):
            message = f"reading {number} holds {energy_j}; expected finite joules"
            raise DataError(message, code="bad-recording", reading=number, energy_j=energy_j)
        last_s = time_s
