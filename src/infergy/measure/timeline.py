"""Instant power over time, from a process of its own: a thread would disturb an engine that waits for its host.

    worker       ── start ─┐ engine loads   begin ── watched window ── take   windows that count   begin … close
    this process           └─ waits ────────── look ─ look ─ look ─ look ─┘ ── waits ──────────── look …─┘
                                               └── 20 bytes each into a file without a name

It looks only when told: a look asks the driver, which took 3 ms on an H200 behind a hypervisor, and an engine that
waits for its host was 10 % slower meanwhile. Both stamp by `time.monotonic`, on Linux one clock for all processes of a
host (clock_gettime(2), CLOCK_MONOTONIC). Standard library and the meter only.
"""

from __future__ import annotations

import json
import math
import os
import select
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

START_S = 30.0
"""How long to wait for the first look: an interpreter starts, and opens the meter."""

LOOK, WAIT = b"l", b"w"
"""What the process is told, a byte each."""

WAIT_S = 1.0
"""How often a process that waits sees whether its parent is still there, should the pipe be held open by another."""


class Witness(Protocol):
    """Whatever saw the power of the GPUs.

    Attributes:
        reason: Why it sees nothing; None if it does.
    """

    reason: str | None

    def begin(self) -> None:
        """Look from now on."""
        ...

    def take(self, start_s: float, end_s: float) -> tuple[PowerTimeline, ...]:
        """Look no more; what was seen from some time before `start_s` until `end_s`, a timeline a GPU."""
        ...

    def stop(self) -> None:
        """Look no more; what was seen is lost."""
        ...

    def close(self) -> None:
        """End it; called again, do nothing."""
        ...


def open_witness(meter: Meter, name: str, every_s: float) -> Witness:
    """The witness of the GPUs that `meter` counts, looking every `every_s` seconds; one that says why there is none.

    `name` is what the meter is opened by.
    """
    if every_s <= 0:
        return Blind("not asked for: timeline_s is 0")
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

    def begin(self) -> None:
        """Nothing."""

    def take(self, start_s: float, end_s: float) -> tuple[PowerTimeline, ...]:
        """Nothing."""
        return ()

    def stop(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing is held."""


NOBODY = Blind("nobody was asked to look")


class SimulatedWitness:
    """What the sensors of simulated GPUs showed on their virtual clock, which no other process can follow."""

    def __init__(self, meter: SimulatedMeter, every_s: float) -> None:
        self.reason: str | None = None
        self._meter = meter
        self._every_s = every_s

    def begin(self) -> None:
        """Look from now on."""
        self._meter.watch(self._every_s)

    def take(self, start_s: float, end_s: float) -> tuple[PowerTimeline, ...]:
        """What they showed."""
        made = (
            make_timeline(uuid, looks, start_s - BEFORE_S, end_s, self._every_s)
            for uuid, looks in self._meter.seen().items()
        )
        return tuple(timeline for timeline in made if timeline is not None)

    def stop(self) -> None:
        """Look no more."""
        self._meter.seen()

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
            bufsize=0,
            pass_fds=(self._file.fileno(),),
        )
        job = {
            "meter": name,
            "uuids": self._uuids,
            "every_s": every_s,
            "fd": self._file.fileno(),
            "parent": os.getpid(),
        }
        self._tell(json.dumps(job).encode() + b"\n")

    def begin(self) -> None:
        """Have it look, and wait for the first look; `reason` says why there will be none."""
        self._looks = {uuid: [] for uuid in self._uuids}
        self._tell(LOOK)
        self._wait_until(time.monotonic(), PATIENCE_S if self._read else START_S)
        self.reason = self._ended()

    def take(self, start_s: float, end_s: float) -> tuple[PowerTimeline, ...]:
        """What it saw; `reason` says why there is nothing."""
        self._wait_until(end_s, PATIENCE_S)
        self._tell(WAIT)
        found = tuple(
            timeline
            for uuid, looks in self._looks.items()
            if (timeline := make_timeline(uuid, looks, start_s - BEFORE_S, end_s, self._every_s)) is not None
        )
        self.reason = self._ended() or (None if found else "its process saw no power")
        return () if self.reason else found

    def stop(self) -> None:
        """Have it wait."""
        self._tell(WAIT)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._file.close()

    def _ended(self) -> str | None:
        """Why it will look no more; None if it lives."""
        code = self._process.poll()
        if code is None:
            return None
        return f"its process ended with {f'signal {-code}' if code < 0 else f'status {code}'}; see the log"

    def _tell(self, what: bytes) -> None:
        # One that died has closed this pipe; its end is told by its exit.
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.write(what)

    def _wait_until(self, time_s: float, patience_s: float) -> None:
        """Wait for a look at `time_s` or later, so long as the process lives, and `patience_s` at most."""
        until_s = time.monotonic() + patience_s
        self._gather()
        while not self._reaches(time_s) and self._process.poll() is None and time.monotonic() < until_s:
            time.sleep(self._every_s)
            self._gather()

    def _reaches(self, time_s: float) -> bool:
        return all(looks and looks[-1][0] >= time_s for looks in self._looks.values())

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
    """What the process is to do: look at these GPUs, when told, until its parent is gone."""

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


def moments(commands: int, every_s: float, parent: int) -> Iterator[None]:
    """Come back every `every_s` seconds while told to look, without drifting and without haste; end with the parent.

    `commands` is the file descriptor by which it is told.
    """
    is_looking, next_s = False, 0.0
    while os.getppid() == parent:
        wait_s = max(0.0, next_s - time.monotonic()) if is_looking else WAIT_S
        if select.select([commands], [], [], wait_s)[0]:
            told = os.read(commands, 64)
            if not told:
                return
            is_looking, next_s = told.endswith(LOOK), time.monotonic()
        elif is_looking:
            yield
            next_s = max(next_s + every_s, time.monotonic())


def main() -> int:
    """Look whenever told until the parent is gone; returns the exit code."""
    # An interrupt goes to the whole group; who ends this process is the worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Without a buffer: what comes after the first line is for `select`.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as commands:
        job = from_json(Job, json.loads(commands.readline()))
        try:
            meter = open_meter(job.meter, len(job.uuids))
            for _ in moments(commands.fileno(), job.every_s, job.parent):
                os.write(job.fd, look(meter, job.uuids))
        except InfergyError as error:
            print(f"power timeline: {error}", file=sys.stderr, flush=True)
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
