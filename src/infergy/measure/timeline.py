"""Instant power over time, from a process of its own: a thread would disturb an engine that waits for its host.

    worker       ── start ──┐  engine loads, windows …            take ── row ── take … close
    this process            └─ look ─ look ─ look ─ look ─ look ─ look ─ look ─ look ─┘
                               └── 20 bytes each into a file without a name ──┘

Both stamp by `time.monotonic`, on Linux one clock for all processes of a host (clock_gettime(2), CLOCK_MONOTONIC). The
worker reads the file between windows only. Standard library and the meter only.
"""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from infergy.errors import InfergyError
from infergy.meters import Meter, SystemClock, open_meter, powers_of
from infergy.meters.simulated import SimulatedMeter
from infergy.records.codec import from_json
from infergy.records.timeline import PowerTimeline, make_timeline

RECORD = struct.Struct("<did")
"""Seconds, place of the GPU, watts; NaN where the sensor tells nothing."""

BEFORE_S = 0.2
"""How much of the time before the first window is kept."""

PATIENCE_S = 1.0
"""How long to wait for the look after a window's end."""


class Witness(Protocol):
    """Whatever saw the power of the GPUs.

    Attributes:
        reason: Why it sees nothing; None if it does.
    """

    reason: str | None

    def take(self, start_s: float, end_s: float) -> tuple[PowerTimeline, ...]:
        """What it saw from some time before `start_s` until `end_s`, a timeline a GPU; what was before is forgotten."""
        ...

    def close(self) -> None:
        """End it; called again, do nothing."""
        ...


def open_witness(meter: Meter, name: str, every_s: float) -> Witness:
    """The witness of the GPUs that `meter` counts, looking every `every_s` seconds; one that says why there is none.

    `name` is what the meter is opened by.
    """
    if every_s <= 0:
        return Blind("not asked for: --timeline 0")
    if isinstance(meter, SimulatedMeter):
        return SimulatedWitness(meter, every_s)
    if not isinstance(meter.clock, SystemClock):
        return Blind(f"meter {meter.name} has a clock of its own, which another process does not see")
    if not sys.platform.startswith("linux"):
        return Blind("only Linux has one monotonic clock for all processes")
    if all(power.instant_w is None for power in powers_of(meter).values()):
        return Blind(f"meter {meter.name} tells no power")
    return Sampler(meter, name, every_s)


class Blind:
    """No witness, and why."""

    def __init__(self, reason: str) -> None:
        self.reason: str | None = reason

    def take(self, start_s: float, end_s: float) -> tuple[PowerTimeline, ...]:
        """Nothing."""
        return ()

    def close(self) -> None:
        """Nothing is held."""


class SimulatedWitness:
    """What the sensors of simulated GPUs showed on their virtual clock, which no other process can follow."""

    def __init__(self, meter: SimulatedMeter, every_s: float) -> None:
        self.reason: str | None = None
        self._meter = meter
        self._every_s = every_s
        meter.watch(every_s)

    def take(self, start_s: float, end_s: float) -> tuple[PowerTimeline, ...]:
        """What they showed."""
        made = (
            make_timeline(uuid, looks, start_s - BEFORE_S, end_s, self._every_s)
            for uuid, looks in self._meter.seen().items()
        )
        return tuple(timeline for timeline in made if timeline is not None)

    def close(self) -> None:
        """Nothing is held."""


class Sampler:
    """The process, seen from the worker that started it."""

    def __init__(self, meter: Meter, name: str, every_s: float) -> None:
        self.reason: str | None = None
        self._uuids = [gpu.uuid for gpu in meter.gpus]
        self._every_s = every_s
        # It has no name, so nothing is left when both processes are gone, however they end.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._read = 0
        self._looks: dict[str, list[tuple[float, float]]] = {uuid: [] for uuid in self._uuids}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infergy.measure.timeline"],
            stdin=subprocess.PIPE,
            pass_fds=(self._file.fileno(),),
        )
        job = {
            "meter": name,
            "uuids": self._uuids,
            "every_s": every_s,
            "fd": self._file.fileno(),
            "parent": os.getpid(),
        }
        assert self._process.stdin is not None
        # One that dies at once closes this pipe; its end is told by its exit.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode())
            self._process.stdin.close()

    def take(self, start_s: float, end_s: float) -> tuple[PowerTimeline, ...]:
        """What it saw; `reason` says why there is nothing."""
        waited_until_s = time.monotonic() + PATIENCE_S
        self._gather()
        while not self._reaches(end_s) and self._process.poll() is None and time.monotonic() < waited_until_s:
            time.sleep(self._every_s)
            self._gather()
        found = tuple(
            timeline
            for uuid, looks in self._looks.items()
            if (timeline := make_timeline(uuid, looks, start_s - BEFORE_S, end_s, self._every_s)) is not None
        )
        self._looks = {uuid: [look for look in looks if look[0] > end_s] for uuid, looks in self._looks.items()}
        code = self._process.poll()
        if code is not None:
            self.reason = f"its process ended with {f'signal {-code}' if code < 0 else f'status {code}'}; see the log"
            return ()
        self.reason = None if found else "its process saw no power"
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._file.close()

    def _reaches(self, end_s: float) -> bool:
        return all(looks and looks[-1][0] >= end_s for looks in self._looks.values())

    def _gather(self) -> None:
        """Take over all whole records that were written since the last time."""
        size = os.fstat(self._file.fileno()).st_size // RECORD.size * RECORD.size
        content = os.pread(self._file.fileno(), size - self._read, self._read)
        self._read += len(content)
        for time_s, place, watts in RECORD.iter_unpack(content):
            if not math.isnan(watts):
                self._looks[self._uuids[place]].append((time_s, watts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the process is to do: look at these GPUs until its parent is gone."""

    meter: str
    uuids: tuple[str, ...]
    every_s: float
    fd: int
    parent: int


def look(meter: Meter, uuids: tuple[str, ...]) -> bytes:
    """One look at the sensors, as records; each is stamped at the middle of the reading."""
    begun_s = time.monotonic()
    powers = powers_of(meter)
    middle_s = (begun_s + time.monotonic()) / 2
    watts = [None if uuid not in powers else powers[uuid].instant_w for uuid in uuids]
    return b"".join(RECORD.pack(middle_s, place, math.nan if one is None else one) for place, one in enumerate(watts))


def pace(every_s: float, parent: int) -> Iterator[None]:
    """Come back every `every_s` seconds, without drifting and without haste, until the parent is gone."""
    next_s = time.monotonic()
    while os.getppid() == parent:
        yield
        next_s = max(next_s + every_s, time.monotonic())
        time.sleep(max(0.0, next_s - time.monotonic()))


def main() -> int:
    """Look until the parent is gone; returns the exit code."""
    # An interrupt goes to the whole group; who ends this process is the worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = from_json(Job, json.loads(sys.stdin.read()))
    try:
        meter = open_meter(job.meter, len(job.uuids))
        for _ in pace(job.every_s, job.parent):
            os.write(job.fd, look(meter, job.uuids))
    except InfergyError as error:
        print(f"power timeline: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
