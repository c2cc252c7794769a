"""A calibration: windows over plain kernels on one GPU, each on disk before the next begins.

What follows from the windows is `infergy.cost.calibration`, which needs no GPU; `infergy calibrate` does both.
Measuring needs the standard library, pynvml and torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infergy.catalog.gpus import get_gpu
from infergy.engines import EngineOutOfMemoryError
from infergy.errors import EngineError, GpuLostError, MeterError, MissingError, UsageError
from infergy.measure.block import window
from infergy.measure.calibration_work import IDLE_WORK, SimulatedBench, draw_truth, look_nowhere, make_works
from infergy.measure.environment import gather
from infergy.measure.torch_bench import TorchBench
from infergy.meters import Meter
from infergy.meters.nvml import NvmlMeter
from infergy.meters.simulated import SimulatedMeter, pretend_node
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

LEAST_BUDGET_S = 15.0
MOST_FAILURES = 3
"""In a row: then the machine is at fault, not the workload."""

PACKAGES = ("torch", "triton", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-ml-py")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationEvent:
    """What happened; `window` is what was measured or failed, `dropped` workloads for which no time was left."""

    text: str
    window: CalibrationWindow | None = None
    dropped: tuple[str, ...] = ()


def calibrate(
    meter: Meter, open_bench: Callable[[], Any], path: Path, *, budget_s: float, window_s: float = WINDOW_S
) -> Iterator[CalibrationEvent]:
    """Measure what the file lacks, the most informative first, until the time is up; the same call resumes.

    Args:
        meter: Of one GPU.
        open_bench: Starts torch on it, or a simulation; called after idle power is measured.
        path: The file; what it holds of this GPU is not measured again.
        budget_s: No window is begun that would end later.
        window_s: Of each window, at least 3 where energy matters.

    Raises:
        UsageError: The budget is too small, or the file cannot be written or is of another GPU.
        MissingError: torch or a GPU is missing.
        MeterError: The counter stood still twice in a row, or a GPU was lost.
        EngineError: Several workloads in a row failed; the message has the last reason.
    """
    if budget_s < LEAST_BUDGET_S:
        wanted = f"at least {LEAST_BUDGET_S:g} s for three windows; all take about 3 minutes: --budget 3m"
        raise UsageError.bad_value("--budget", budget_s, wanted)
    with CalibrationFile(path) as file:
        _reject_others(file, meter)
        done = file.finished()
        if done:
            yield CalibrationEvent(text=f"{len(done)} windows are in {path} already")
        if IDLE_WORK.name not in done:
            # Before torch wakes the GPU.
            idle = _measure(IDLE_WORK, _Rest(meter), meter, _environment(meter, "none: idle"), window_s)
            yield _append(file, replace(idle, calls=0))
        bench = open_bench()
        try:
            works = [work for work in make_works(bench.traits) if work.name not in done]
            yield from _measure_all(works, bench, meter, file, budget_s, window_s)
        finally:
            bench.close()


def _measure_all(
    works: Sequence[Workload], bench: Any, meter: Meter, file: CalibrationFile, budget_s: float, window_s: float
) -> Iterator[CalibrationEvent]:
    environment = _environment(meter, bench.name)
    end_s = meter.clock.now_s() + budget_s
    failures, dropped = 0, []
    for work in works:
        if meter.clock.now_s() + window_s + WARM_S + OVERHEAD_S > end_s:
            dropped.append(work)
            continue
        try:
            measured = _load_and_measure(work, bench, meter, environment, window_s)
        except GpuLostError:
            raise
        except (MeterError, EngineError) as error:
            event = _append(file, _failed(work, meter, environment, str(error)))
            failures += not isinstance(error, EngineOutOfMemoryError)
            is_meter = isinstance(error, MeterError)
            if failures >= MOST_FAILURES or (is_meter and failures > 1):
                kind = MeterError if is_meter else EngineError
                message = f"{failures} workloads in a row failed, the last one: {error}"
                raise kind(message, code="calibration-failed", failures=failures, reason=str(error)) from error
            yield event
        else:
            failures = 0 if measured.is_whole else failures
            yield _append(file, measured)
    if dropped:
        yield _dropped_event(dropped)


def _dropped_event(works: Sequence[Workload]) -> CalibrationEvent:
    kinds = Counter(f"{work.kind} in fp8" if work.dtype == "fp8" else work.kind for work in works)
    named = ", ".join(f"{count} of kind {kind}" for kind, count in kinds.items())
    text = f"the budget leaves no time for {len(works)} windows ({named}); the same command measures them"
    return CalibrationEvent(text=text, dropped=tuple(work.name for work in works))


def _reject_others(file: CalibrationFile, meter: Meter) -> None:
    here = meter.gpus[0]
    for there in (one.environment.gpus[0] for one in file.windows):
        if there.uuid != here.uuid:
            message = (
                f"{file.path} holds windows of {there.name} {there.uuid}, and this is {here.name} {here.uuid}. "
                "Name another file with -o"
            )
            raise UsageError(message, code="other-gpu", path=str(file.path), found=there.uuid, expected=here.uuid)


def _load_and_measure(
    work: Workload, bench: Any, meter: Meter, environment: Environment, window_s: float
) -> CalibrationWindow:
    loaded = bench.load(work)
    try:
        return _measure(work, loaded, meter, environment, window_s)
    finally:
        loaded.close()


def _measure(work: Workload, loaded: Any, meter: Meter, environment: Environment, window_s: float) -> CalibrationWindow:
    during: list[GpuState] = []
    try:
        loaded.run(WARM_S, look_nowhere)
        with window(work.name, meter=meter) as measured:
            calls = loaded.run(window_s, lambda: during.extend(meter.states()))
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


def _failed(work: Workload, meter: Meter, environment: Environment, reason: str) -> CalibrationWindow:
    return CalibrationWindow(
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


def _append(file: CalibrationFile, measured: CalibrationWindow) -> CalibrationEvent:
    file.append(measured)
    return CalibrationEvent(text=describe(measured), window=measured)


class _Rest:
    """No work."""

    how, in_graph = "idle", None

    def __init__(self, meter: Meter) -> None:
        self._clock = meter.clock

    def run(self, seconds: float, look: Callable[[], None]) -> int:
        self._clock.sleep(seconds / 2)
        look()
        self._clock.sleep(seconds / 2)
        return 1


def _environment(meter: Meter, bench: str) -> Environment:
    period_s = counter_period_s(meter)
    return gather(meter, weights="none: no model", packages=PACKAGES, engine={"work": bench}, counter_period_s=period_s)


def describe(measured: CalibrationWindow) -> str:
    """A window in one line."""
    work = measured.workload
    if not measured.is_whole or measured.power_w is None:
        return f"{work.name}: no window: {measured.reason}"
    parts = [] if work.kind == IDLE else [format_si(measured.call_s, "s")]
    parts.append(f"{format_number(measured.power_w)} W")
    for amount, unit in ((work.memory_bytes, "B/s"), (work.flops, "FLOP/s")):
        if amount:
            parts.append(format_si(amount / measured.call_s, unit))
    return f"{work.name}: {', '.join((*parts, *measured.doubts))}{' (simulated)' if measured.simulated else ''}"


def parse_budget(text: str) -> float:
    """Seconds of ``90s``, ``3m``, ``1h`` or a plain number.

    Raises:
        UsageError: It is none of these.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError.bad_value("--budget", text, "a time, as 90s, 3m or 1h") from error


def run_here(path: Path, *, budget_s: float, simulate: str | None, report: Callable[[str], None]) -> None:
    """Measure on this machine, or on a simulated GPU of a kind, and report each window in a line.

    Raises:
        InfergyError: As `calibrate`.
    """
    if simulate is not None:
        gpu = get_gpu(simulate)
        node = pretend_node(gpu, 1)
        meter: Meter = SimulatedMeter(node)
        open_bench: Callable[[], Any] = lambda: SimulatedBench(node, gpu, draw_truth(0))  # noqa: E731
    else:
        meter = NvmlMeter.open(1)
        open_bench = lambda: TorchBench(meter.gpus[0].uuid)  # noqa: E731
    try:
        # Not imported yet: torch may wake the GPU, whose idle power is measured first.
        if simulate is None and find_spec("torch") is None:
            raise MissingError.package("a calibration", "torch", "pip install torch", "No model, no engine is needed")
        identity = meter.gpus[0]
        report(f"{identity.name}, {identity.uuid}: at most {format_duration(budget_s)}, into {path}")
        for event in calibrate(meter, open_bench, path, budget_s=budget_s):
            report(event.text)
    finally:
        meter.close()
