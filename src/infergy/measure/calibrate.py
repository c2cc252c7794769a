"""A calibration: windows over plain work on a GPU, each on disk before the next begins. Standard library only.

    idle   load warm-up |window| row   load warm-up |window| row   …   two GPUs: |window| row

What follows from the windows is `infergy.cost.calibration`, which needs no GPU. `infergy calibrate` does both; where
nothing can be installed, ``python -m infergy.measure.calibrate -o FILE`` measures with the standard library and torch.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from infergy.engines import EngineOutOfMemoryError
from infergy.errors import EngineError, GpuLostError, InfergyError, MeterError, UsageError
from infergy.measure.bench import Bench, Work, look_nowhere
from infergy.measure.block import window
from infergy.measure.calibration_plan import idle_work, make_works, shrink, sum_works
from infergy.measure.environment import gather
from infergy.meters import Meter
from infergy.meters.ticks import counter_period_s
from infergy.records import Environment, GpuState
from infergy.records.calibration import IDLE, CalibrationFile, CalibrationWindow, Workload
from infergy.units import format_duration, format_number, format_si, parse_duration

WINDOW_S = 3.0
"""30 ticks of an H200's counter."""

WARM_S = 0.7
"""Before each window: clocks and power have settled by then, and all kernels are loaded."""

OVERHEAD_S = 1.2
"""Of a window beside itself and its warm-up: operands, capture, ticks and the counter's tail."""

BUDGET = "4m"
"""All windows of an H200, with half a minute to spare; our own estimate."""

LEAST_BUDGET_S = 15.0
BEFORE_SUMS = 9
"""So many workloads on one GPU come before those on two: by then each constant of one GPU has a window."""

MOST_FAILURES = 3
"""In a row: then the machine is at fault, not the work."""

PACKAGES = ("torch", "triton", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13", "nvidia-ml-py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """GPUs and who works on them.

    Attributes:
        meter: Of exactly these GPUs.
        open_bench: Starts torch on them, or a simulation; called when the first work is due.
    """

    meter: Meter
    open_bench: Callable[[], Bench]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationEvent:
    """What happened; `text` tells it in words.

    Attributes:
        window: What was measured, or failed; None where nothing was tried.
        number: Of the workload, from 1 on, of `total`.
        dropped: Names of workloads that the budget leaves no time for.
    """

    text: str
    window: CalibrationWindow | None = None
    number: int = 0
    total: int = 0
    dropped: tuple[str, ...] = ()


def calibrate(
    single: Station, pair: Station | str, path: Path, *, budget_s: float, window_s: float = WINDOW_S
) -> Iterator[CalibrationEvent]:
    """Measure what the file lacks, the most telling first, until the time is up.

    Args:
        single: One GPU.
        pair: It and a second one, or why there is none.
        path: The file; what it holds of this GPU is not measured again.
        budget_s: No window is begun that would end later; what was dropped is told, and the same call resumes.
        window_s: Of each window, at least 3 where joules matter.

    Raises:
        UsageError: The budget is too small, or the file cannot be written or is of another GPU.
        MissingError: torch or a GPU is missing.
        MeterError: The counter stood still twice in a row, or a GPU was lost.
        EngineError: Several workloads in a row failed; the message has the last reason.
    """
    if budget_s < LEAST_BUDGET_S:
        raise UsageError.bad_value(
            "--budget",
            budget_s,
            f"at least {LEAST_BUDGET_S:g} s for three windows; all take about 3 minutes: --budget 3m",
        )
    with CalibrationFile(path) as file:
        _refuse_others(file, single.meter)
        yield from _Run(file, budget_s, window_s).all(single, pair)


def _refuse_others(file: CalibrationFile, meter: Meter) -> None:
    here = {gpu.uuid for gpu in meter.gpus}
    for one in file.windows:
        there = one.environment.gpus[0]
        if there.uuid not in here:
            message = (
                f"{file.path} holds windows of {there.name} {there.uuid}, and this is {meter.gpus[0].name} "
                f"{meter.gpus[0].uuid}. Name another file with -o"
            )
            raise UsageError(
                message, code="other-gpu", path=str(file.path), found=there.uuid, expected=meter.gpus[0].uuid
            )


class _Run:
    """One call's windows."""

    def __init__(self, file: CalibrationFile, budget_s: float, window_s: float) -> None:
        self._file = file
        self._left_s = budget_s
        self._window_s = window_s
        self._failures = 0
        self._number = self._total = 0
        self._dropped: list[Workload] = []

    def all(self, single: Station, pair: Station | str) -> Iterator[CalibrationEvent]:
        """Idle before torch wakes the GPU; then one GPU, two, and one again."""
        done = self._file.finished()
        environment = _environment(single.meter, "none: idle")
        if idle_work().name not in done:
            yield self._record(self._idle(single.meter, environment))
        bench = single.open_bench()
        try:
            works = [work for work in make_works(bench.traits) if work.name not in done]
            sums = [work for work in sum_works() if work.name not in done]
            if isinstance(pair, str):
                yield CalibrationEvent(text=f"sums over two GPUs are left out: {pair}")
                sums = []
            if done:
                yield CalibrationEvent(text=f"{len(done)} windows are in {self._file.path} already")
            self._total = len(works) + len(sums)
            environment = _environment(single.meter, bench.name)
            yield from self._each(works[:BEFORE_SUMS], single.meter, bench, environment)
            if sums and not isinstance(pair, str):
                yield from self._sums(sums, pair)
            yield from self._each(works[BEFORE_SUMS:], single.meter, bench, environment)
        finally:
            bench.close()
        if self._dropped:
            yield CalibrationEvent(text=_tell_dropped(self._dropped), dropped=tuple(one.name for one in self._dropped))

    def _sums(self, works: Sequence[Workload], pair: Station) -> Iterator[CalibrationEvent]:
        clock = pair.meter.clock
        begun_s = clock.now_s()
        try:
            bench = pair.open_bench()
        except EngineError as error:
            self._left_s -= clock.now_s() - begun_s
            yield CalibrationEvent(text=f"sums over two GPUs are left out: {error}")
            return
        self._left_s -= clock.now_s() - begun_s
        try:
            yield from self._each(works, pair.meter, bench, _environment(pair.meter, bench.name))
        finally:
            bench.close()

    def _each(
        self, works: Sequence[Workload], meter: Meter, bench: Bench, environment: Environment
    ) -> Iterator[CalibrationEvent]:
        for planned in works:
            if self._left_s < self._window_s + WARM_S + OVERHEAD_S:
                self._dropped.append(planned)
                continue
            self._number += 1
            begun_s = meter.clock.now_s()
            found = self._try(planned, meter, bench, environment)
            self._left_s -= meter.clock.now_s() - begun_s
            yield self._record(found)

    def _try(self, work: Workload, meter: Meter, bench: Bench, environment: Environment) -> CalibrationWindow:
        """The window of a workload, of a smaller one where memory is short, or why there is none."""
        smaller: Workload | None = work
        reason = ""
        while smaller is not None:
            try:
                loaded = bench.load(smaller)
            except EngineOutOfMemoryError as error:
                reason = str(error)
                smaller = shrink(smaller, bench.traits)
                if smaller is not None and smaller.name in self._file.finished():
                    reason, smaller = f"{reason}; {smaller.name} is measured already", None
                continue
            except EngineError as error:
                return self._failed(work, meter, environment, str(error))
            try:
                return self._measure(smaller, loaded, meter, environment)
            except GpuLostError:
                raise
            except (MeterError, EngineError) as error:
                return self._failed(work, meter, environment, str(error), is_meter=isinstance(error, MeterError))
            finally:
                loaded.close()
        return self._failed(work, meter, environment, reason, counts=False)

    def _measure(self, work: Workload, loaded: Work, meter: Meter, environment: Environment) -> CalibrationWindow:
        during: list[GpuState] = []
        try:
            loaded.run(WARM_S, look_nowhere)
            with window(work.name, meter=meter) as measured:
                calls = loaded.run(self._window_s, lambda: during.extend(meter.states()))
        except RuntimeError as error:
            # What CUDA reports late, of whatever call.
            message = f"{work.name}: {(str(error).splitlines() or ['failed'])[0]}"
            raise EngineError(message, code="engine-failed", workload=work.name, reason=type(error).__name__) from error
        found = measured.result
        return CalibrationWindow(
            workload=work,
            measured_utc=found.measured_utc,
            simulated=found.simulated,
            calls=calls,
            duration_s=found.duration_s,
            energy_j=found.energy_j,
            low_j=found.low_j,
            high_j=found.high_j,
            energy_by_gpu_j=found.energy_by_gpu_j,
            environment=environment,
            before=found.before,
            during=tuple(during),
            after=found.after,
            how=loaded.how,
            in_graph=loaded.in_graph,
            reason=found.reason,
        )

    def _idle(self, meter: Meter, environment: Environment) -> CalibrationWindow:
        begun_s = meter.clock.now_s()
        found = self._measure(idle_work(), _Rest(meter), meter, environment)
        self._left_s -= meter.clock.now_s() - begun_s
        return replace(found, calls=0)

    def _failed(
        self,
        work: Workload,
        meter: Meter,
        environment: Environment,
        reason: str,
        *,
        is_meter: bool = False,
        counts: bool = True,
    ) -> CalibrationWindow:
        """A row that says why; after several in a row the whole run ends."""
        self._failures += counts
        failed = CalibrationWindow(
            workload=work,
            measured_utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
            simulated=meter.is_simulated,
            calls=0,
            duration_s=0.0,
            energy_j=None,
            low_j=None,
            high_j=None,
            environment=environment,
            reason=reason,
        )
        if self._failures >= MOST_FAILURES or (is_meter and self._failures > 1):
            self._file.append(failed)
            kind = MeterError if is_meter else EngineError
            words = f"{self._failures} workloads in a row failed, the last one by this: {reason}"
            raise kind(words, code="calibration-failed", failures=self._failures, reason=reason)
        return failed

    def _record(self, found: CalibrationWindow) -> CalibrationEvent:
        self._file.append(found)
        if found.is_whole:
            self._failures = 0
        return CalibrationEvent(text=describe(found), window=found, number=self._number, total=self._total)


class _Rest:
    """Nothing to do."""

    how = "idle"
    in_graph: bool | None = None

    def __init__(self, meter: Meter) -> None:
        self._clock = meter.clock

    def run(self, seconds: float, look: Callable[[], None] = look_nowhere) -> int:
        self._clock.sleep(seconds / 2)
        look()
        self._clock.sleep(seconds / 2)
        return 1

    def close(self) -> None:
        """Nothing is held."""


def _environment(meter: Meter, bench: str) -> Environment:
    return gather(
        meter,
        weights="none: no model",
        packages=PACKAGES,
        engine={"work": bench},
        counter_period_s=counter_period_s(meter),
    )


def _tell_dropped(works: Sequence[Workload]) -> str:
    kinds = Counter(f"{work.kind} in fp8" if work.dtype == "fp8" else work.kind for work in works)
    named = ", ".join(f"{count} of kind {kind}" for kind, count in kinds.items())
    return f"the budget leaves no time for {len(works)} windows ({named}); the same command measures them"


def describe(found: CalibrationWindow) -> str:
    """A window in one line."""
    work = found.workload
    if not found.is_whole or found.power_w is None:
        return f"{work.name}: no window: {found.reason}"
    parts = [] if work.kind == IDLE else [format_si(found.call_s, "s")]
    parts.append(f"{format_number(found.power_w)} W")
    if work.memory_bytes:
        parts.append(format_si(work.memory_bytes / found.call_s, "B/s"))
    if work.flops:
        parts.append(format_si(work.flops / found.call_s, "FLOP/s"))
    if work.link_bytes:
        parts.append(f"{format_si(work.link_bytes / found.call_s, 'B/s')} over the link")
    return f"{work.name}: {', '.join((*parts, *found.doubts))}{' (simulated)' if found.simulated else ''}"


def parse_budget(text: str) -> float:
    """Seconds of ``90s``, ``3m``, ``1h`` or a plain number.

    Raises:
        UsageError: It is none of these.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError.bad_value("--budget", text, "a time, as 90s, 3m or 1h") from error


def run_here(path: Path, *, budget_s: float, simulate: str | None, tell: Callable[[str], None]) -> None:
    """Measure on this machine, or on a simulated GPU of a kind, and tell each window in a line.

    Raises:
        InfergyError: As `calibrate`.
    """
    from infergy.measure.stations import simulated_stations, stations_here

    single, pair = stations_here() if simulate is None else simulated_stations(simulate)
    try:
        identity = single.meter.gpus[0]
        tell(f"{identity.name}, {identity.uuid}: at most {format_duration(budget_s)}, into {path}")
        for event in calibrate(single, pair, path, budget_s=budget_s):
            place = f"{event.number:3}/{event.total} " if event.number else ""
            tell(f"{place}{event.text}")
    finally:
        for station in (single, pair):
            if not isinstance(station, str):
                station.meter.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code: 0 good, 130 interrupted, an error's own otherwise."""
    parser = argparse.ArgumentParser(prog="python -m infergy.measure.calibrate", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output-file", type=Path, required=True, help="the file; resumed if it exists")
    parser.add_argument("--budget", default=BUDGET, help=f"time for it [default: {BUDGET}]")
    parser.add_argument("--simulate", metavar="GPU", help="calibrate a simulated GPU, which says nothing")
    options = parser.parse_args(arguments)
    try:
        run_here(
            options.output_file,
            budget_s=parse_budget(options.budget),
            simulate=options.simulate,
            tell=lambda text: print(text, file=sys.stderr, flush=True),
        )
    except InfergyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return 130
    print(f"for the constants: infergy calibrate --show {options.output_file}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    # By its name, so that there is one copy of each class.
    from infergy.measure.calibrate import main as run

    sys.exit(run())
