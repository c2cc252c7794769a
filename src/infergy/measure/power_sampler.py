"""Instant power over time, sampled by a process of its own: a thread would disturb an engine that waits for its host.

    worker       ── start ─┐ engine loads   begin ── watched window ── take   windows that count   begin … close
    this process           └─ waits ──────── sample sample sample sample ─┘ ── waits ──────────── sample …─┘
                                             └── 20 bytes each into a file without a name

It samples only on command: a sample asks the driver, which took 3 ms on an H200 behind a hypervisor, and an engine that
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

from infergy.errors import InfergyError
from infergy.meters import Meter, SystemClock, open_meter, powers_of
from infergy.meters.simulated import SimulatedMeter
from infergy.processes import python_command
from infergy.records.timeline import PowerTimeline, make_timeline

RECORD = struct.Struct("<did")
"""Seconds, index of the GPU, watts; NaN where the sensor does not answer."""

BEFORE_S = 0.2
"""How much of the time before the watched window is kept."""

PATIENCE_S = 1.0
"""How long to wait for the sample after a window's end."""

START_S = 30.0
"""How long to wait for the first sample: an interpreter starts, and opens the meter."""

SAMPLE, WAIT = b"l", b"w"
"""The commands, a byte each."""

WAIT_S = 1.0
"""How often a waiting process checks whether its parent is still there, should another process hold the pipe open."""


class PowerSampler:
    """A sampler that samples nothing; `reason` says why, and is None where a sampler works."""

    def __init__(self, reason: str | None) -> None:
        self.reason = reason

    def begin(self) -> None:
        """Sample from now on."""

    def take(self, start_s: float, end_s: float) -> tuple[PowerTimeline, ...]:
        """Stop; a timeline of each GPU, from some time before `start_s` until `end_s`."""
        return ()

    def stop(self) -> None:
        """Stop, and drop the samples."""

    def close(self) -> None:
        """End it; called again, do nothing."""


NO_SAMPLER = PowerSampler("no sampler was started")


def open_sampler(meter: Meter, name: str, every_s: float) -> PowerSampler:
    """Samples each `every_s` seconds the GPUs of `meter`, which is opened by `name`; or says why it cannot."""
    if every_s <= 0:
        return PowerSampler("not asked for: timeline_s is 0")
    if isinstance(meter, SimulatedMeter):
        return SimulatedSampler(meter, every_s)
    if not isinstance(meter.clock, SystemClock):
        return PowerSampler(f"meter {meter.name} has a clock of its own, which another process does not see")
    if not sys.platform.startswith("linux"):
        return PowerSampler("only Linux has one monotonic clock for all processes")
    if all(power.instant_w is None for power in powers_of(meter).values()):
        return PowerSampler(f"meter {meter.name} reports no power")
    return ProcessSampler(meter, name, every_s)


def _timelines(
    samples: dict[str, list[tuple[float, float]]], start_s: float, end_s: float, every_s: float
) -> tuple[PowerTimeline, ...]:
    made = (make_timeline(uuid, some, start_s - BEFORE_S, end_s, every_s) for uuid, some in samples.items())
    return tuple(timeline for timeline in made if timeline is not None)


class SimulatedSampler(PowerSampler):
    """The sensors of simulated GPUs on their virtual clock, which no other process can follow."""

    def __init__(self, meter: SimulatedMeter, every_s: float) -> None:
        super().__init__(None)
        self._meter, self._every_s = meter, every_s

    def begin(self) -> None:
        """Sample from now on."""
        self._meter.watch(self._every_s)

    def take(self, start_s: float, end_s: float) -> tuple[PowerTimeline, ...]:
        """What they showed."""
        return _timelines(dict(self._meter.seen()), start_s, end_s, self._every_s)

    def stop(self) -> None:
        """Stop."""
        self._meter.seen()


class ProcessSampler(PowerSampler):
    """The process, as seen from the worker that started it."""

    def __init__(self, meter: Meter, name: str, every_s: float) -> None:
        super().__init__(None)
        self._uuids = [gpu.uuid for gpu in meter.gpus]
        self._every_s = every_s
        # It has no name, so nothing is left when both processes are gone, however they end.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._read = 0
        self._samples: dict[str, list[tuple[float, float]]] = {uuid: [] for uuid in self._uuids}
        fd = self._file.fileno()
        command = python_command("infergy.measure.power_sampler")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, pass_fds=(fd,))
        job = {"meter": name, "uuids": self._uuids, "every_s": every_s, "fd": fd, "parent": os.getpid()}
        self._send(json.dumps(job).encode() + b"\n")

    def begin(self) -> None:
        """Sample from now on, and wait for the first sample; `reason` says why there will be none."""
        self._samples = {uuid: [] for uuid in self._uuids}
        self._send(SAMPLE)
        self._wait_until(time.monotonic(), PATIENCE_S if self._read else START_S)
        self.reason = self._ended()

    def take(self, start_s: float, end_s: float) -> tuple[PowerTimeline, ...]:
        """What it sampled; `reason` says why there is nothing."""
        self._wait_until(end_s, PATIENCE_S)
        self._send(WAIT)
        timelines = _timelines(self._samples, start_s, end_s, self._every_s)
        self.reason = self._ended() or (None if timelines else "its process saw no power")
        return () if self.reason else timelines

    def stop(self) -> None:
        """Stop."""
        self._send(WAIT)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._file.close()

    def _ended(self) -> str | None:
        """Why there will be no more samples; None if the process lives."""
        code = self._process.poll()
        if code is None:
            return None
        return f"its process ended with {f'signal {-code}' if code < 0 else f'status {code}'}; see the log"

    def _send(self, command: bytes) -> None:
        # One that died has closed this pipe; its exit code says so.
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.write(command)

    def _wait_until(self, time_s: float, patience_s: float) -> None:
        """Wait for a sample at `time_s` or later, so long as the process lives, and `patience_s` at most."""
        until_s = time.monotonic() + patience_s
        self._gather()
        while (
            not all(some and some[-1][0] >= time_s for some in self._samples.values())
            and self._process.poll() is None
            and time.monotonic() < until_s
        ):
            time.sleep(self._every_s)
            self._gather()

    def _gather(self) -> None:
        """Take over all whole records that were written since the last time."""
        fd = self._file.fileno()
        size = os.fstat(fd).st_size // RECORD.size * RECORD.size
        content = os.pread(fd, size - self._read, self._read)
        self._read += len(content)
        for time_s, index, power_w in RECORD.iter_unpack(content):
            if not math.isnan(power_w):
                self._samples[self._uuids[index]].append((time_s, power_w))


def sample(meter: Meter, uuids: list[str]) -> bytes:
    """One sample of each sensor, as records, stamped at the middle of the reading."""
    begun_s = time.monotonic()
    powers = powers_of(meter)
    middle_s = (begun_s + time.monotonic()) / 2
    watts = [None if uuid not in powers else powers[uuid].instant_w for uuid in uuids]
    return b"".join(RECORD.pack(middle_s, index, math.nan if one is None else one) for index, one in enumerate(watts))


def moments(commands: int, every_s: float, parent: int) -> Iterator[None]:
    """Yield every `every_s` seconds while sampling, without drift and without catching up; end with the parent.

    `commands` is the file descriptor on which commands come.
    """
    is_sampling, next_s = False, 0.0
    while os.getppid() == parent:
        wait_s = max(0.0, next_s - time.monotonic()) if is_sampling else WAIT_S
        if select.select([commands], [], [], wait_s)[0]:
            command = os.read(commands, 64)
            if not command:
                return
            is_sampling, next_s = command.endswith(SAMPLE), time.monotonic()
        elif is_sampling:
            yield
            next_s = max(next_s + every_s, time.monotonic())


def main() -> int:
    """Sample on command until the parent is gone; returns the exit code."""
    # An interrupt goes to the whole group; the worker ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Without a buffer: what comes after the first line is for `select`.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as commands:
        job = json.loads(commands.readline())
        try:
            meter = open_meter(job["meter"], len(job["uuids"]))
            for _ in moments(commands.fileno(), job["every_s"], job["parent"]):
                os.write(job["fd"], sample(meter, job["uuids"]))
        except InfergyError as error:
            print(f"power timeline: {error}", file=sys.stderr, flush=True)
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
