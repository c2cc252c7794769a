"""Simulate many configurations: floors first, then windows of the trace, then few of them whole; on all cores.

    spec ─▶ floors in closed form: no simulation where a limit cannot be kept, or the load cannot be served
         ─▶ `COARSE` requests in windows over the trace: energy, latencies, largest batch (Screened)
         ─▶ the whole trace, as `infergy estimate` (Whole)

Windows are the same for all configurations, so that what they leave out of one they leave out of the other.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from infergy.cost.model import CostedRun, StepCost
from infergy.cost.step import Steps, StepSums
from infergy.cost.table import Table
from infergy.errors import UsageError
from infergy.estimates.candidates import TENSOR_PARALLEL
from infergy.estimates.estimate import ServerEstimate, estimate_server, serve_sample
from infergy.estimates.footprint import Site
from infergy.estimates.latency import Limits
from infergy.estimates.load import BEGUN, FEWEST, overload_of
from infergy.estimates.load import SHORTEST_S as SHORTEST_LATE_S
from infergy.estimates.servers import OpenServer, ServerSpec, open_server
from infergy.processes import safe_path
from infergy.serving.config import EngineConfig
from infergy.serving.run import latency_of, open_share, steps_of, total
from infergy.workload.requests import Requests, Sample, Window

COARSE = 2_500
"""Requests that a configuration is first simulated with."""
WINDOWS, SHORTEST_S = 10, 20.0
"""Of a trace, and the length of one."""
FEW = 20_000
"""Fewer simulated requests are served faster in one process than others are started."""

ALIKE = 0.02
"""Latencies that differ by less are one point of the Pareto set."""

Result = TypeVar("Result")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """A configuration by windows of the trace.

    Attributes:
        energy_j: Of the windows, each by its weight.
        excess: Latencies over their limits, by the limits' names.
        is_overloaded: Whether it cannot keep up in the windows.
        e2e_p99_s: None where no request was answered.
        peak_running: Largest batch; `peak_tokens` the most tokens of a step.
    """

    spec: ServerSpec
    energy_j: float
    excess: Mapping[str, float]
    is_overloaded: bool
    e2e_p99_s: float | None
    peak_running: int
    peak_tokens: int

    @property
    def over(self) -> float:
        """The largest excess; 0 within all limits."""
        return max(self.excess.values(), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A configuration that was not simulated, since a floor shows that it does not serve."""

    spec: ServerSpec
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A configuration by the whole trace: its estimate, and what an interval of a ratio needs."""

    spec: ServerSpec
    estimate: ServerEstimate
    steps: Steps
    slopes: Any

    def costed(self, server: OpenServer) -> CostedRun:
        """The run on a server that was opened here."""
        return CostedRun(server.cost, self.steps, self.estimate.run.energy.idle_j, self.slopes)


class Asked(NamedTuple):
    """The question of a `Pool`."""

    sample: Sample
    coarse: Sample
    table: Table
    limits: Limits
    site: Site | None


_ASKED: list[Asked] = []
"""What this process simulates, if it is one of a `Pool`."""


class Pool:
    """Simulations of one trace, in several processes.

    Args:
        sample: What is served.
        table: What was measured.
        limits: On latencies.
        site: Where the GPUs stand, for money and carbon.
        processes: Where above 1 and there is much to do, so many are started; the caller's main module must then be
            importable, as `multiprocessing` demands.
        progress: Called with the number of simulations done and known so far.
    """

    def __init__(
        self,
        sample: Sample,
        table: Table,
        limits: Limits,
        *,
        site: Site | None = None,
        processes: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.asked = Asked(sample, thin(sample), table, limits, site)
        self._processes, self._progress = processes, progress
        self._executor: ProcessPoolExecutor | None = None
        self.done = self.known = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            if kind is not None and not issubclass(kind, Exception):
                # Interrupted or ended: nothing waits for what they simulate.
                for process in active_children():
                    process.terminate()
            self._executor.shutdown(cancel_futures=True)

    def screen(self, specs: Iterable[ServerSpec]) -> list[Screened | Pruned | UsageError]:
        """Each configuration by windows of the trace; the error of one that cannot be opened."""
        return self.map(screen, list(specs), self.asked.coarse)

    def serve(self, specs: Iterable[ServerSpec]) -> list[Whole | UsageError]:
        """Each configuration by the whole trace."""
        return self.map(serve_whole, list(specs))

    def map(
        self, task: Callable[[ServerSpec, Asked], Result], specs: Sequence[ServerSpec], sample: Sample | None = None
    ) -> list[Result]:
        """A task of each configuration; `sample` is what it serves, by default the whole trace."""
        size = sum(len(window.requests) for window in (sample or self.asked.sample).windows)
        self.known += len(specs)
        if self._executor is None and self._processes > 1 and size * len(specs) > FEW:
            self._executor = ProcessPoolExecutor(
                self._processes, mp_context=get_context("spawn"), initializer=_begin, initargs=(self.asked,)
            )
        done = self.done
        if self._executor is not None:
            try:
                with safe_path(), _interrupts_held():
                    results = self._executor.map(_in_process, [task] * len(specs), specs)
                return [self._counted(result) for result in results]
            except BrokenProcessPool:
                # One was killed, for memory as a rule: here is one process less to need it.
                self._executor, self._processes, self.done = None, 1, done
        return [self._counted(task(spec, self.asked)) for spec in specs]

    def _counted(self, result: Result) -> Result:
        self.done += 1
        if self._progress is not None:
            self._progress(self.done, self.known)
        return result


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits, here and in processes that are started meanwhile, where it would print their stacks."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(asked: Asked) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _ASKED.append(asked)


def _in_process(task: Callable[[ServerSpec, Asked], Result], spec: ServerSpec) -> Result:
    return task(spec, _ASKED[0])


def screen(spec: ServerSpec, asked: Asked) -> Screened | Pruned | UsageError:
    """A configuration by the floors, and then by windows of the trace."""
    sample, limits = asked.coarse, asked.limits
    try:
        server = open_server(spec, asked.table)
        reason = floor_reason(asked.sample, server, limits)
        if reason is not None:
            return Pruned(spec=spec, reason=reason)
        runs = serve_sample(sample, server)
    except UsageError as error:
        return error
    if not sum(len(run.steps) for run, _ in runs):
        return UsageError(f"{sample.source}: not one request can be served", code="does-not-fit")
    is_open = sample.is_timed and sample.windows[0].requests.arrival_s is not None
    latency, steps = latency_of(runs), steps_of(runs)
    return Screened(
        spec=spec,
        energy_j=total(runs, "energy.total_j"),
        excess=limits.excess(latency),
        is_overloaded=is_open and overload_of(runs, server, advise=False) is not None,
        e2e_p99_s=None if latency.e2e_s is None else latency.e2e_s.p99,
        peak_running=max(run.counts.peak_running for run, _ in runs),
        peak_tokens=int((steps.decodes + steps.prefill_tokens).max()),
    )


def serve_whole(spec: ServerSpec, asked: Asked) -> Whole | UsageError:
    """A configuration by the whole trace: what `infergy.estimate` reports."""
    try:
        server = open_server(spec, asked.table)
        runs = serve_sample(asked.sample, server)
        estimate = estimate_server(asked.sample, server, offline=False, runs=runs, advise=False, site=asked.site)
    except UsageError as error:
        return error
    run = CostedRun.of(server.cost, steps_of(runs), estimate.run.energy.idle_j, open_share(runs))
    return Whole(spec=spec, estimate=estimate, steps=run.steps, slopes=run.slopes)


def thin(sample: Sample, at_most: int = COARSE) -> Sample:
    """Windows of a sample, evenly spaced over it, with about so many requests in all: to compare configurations by."""
    size = sum(len(window.requests) for window in sample.windows)
    if size <= 2 * at_most:
        return sample
    if len(sample.windows) > 1:
        every = max(1, round(size / at_most))
        kept = sample.windows[every // 2 :: every] or sample.windows[:1]
        return _of_windows(sample, kept, len(sample.windows) / len(kept))
    requests = sample.windows[0].requests
    if requests.arrival_s is None and requests.gap_s is not None:
        return sample
    if requests.arrival_s is None:
        few = requests.take(np.arange(0, size, size // at_most))
        windows = [Window(requests=few, start_s=None, duration_s=None, weight=1.0)]
    else:
        windows = _spread_windows(requests, requests.arrival_s, at_most)
    return _of_windows(sample, windows, size / sum(len(window.requests) for window in windows))


def _spread_windows(requests: Requests, arrival_s: NDArray[np.float64], at_most: int) -> list[Window]:
    """Windows of equal length, evenly spaced over the time of requests, with about so many of them."""
    size, first_s, span_s = len(requests), float(arrival_s[0]), requests.duration_s or 0.0
    count = max(1, min(WINDOWS, int(span_s * at_most / size / SHORTEST_S)))
    length_s = span_s * at_most / size / count
    starts_s = first_s + (np.arange(count) + 0.5) * span_s / count - length_s / 2
    begins, ends = (arrival_s.searchsorted(times_s) for times_s in (starts_s, starts_s + length_s))
    if 2 * (ends - begins).sum() < at_most:
        # Bursts, of which windows by the clock miss most: parts of as many requests each.
        begins = np.arange(count) * size // count
        ends, starts_s = begins + at_most // count, arrival_s[begins]
    windows = []
    for start_s, begin, end in zip(starts_s.tolist(), begins.tolist(), ends.tolist(), strict=True):
        part = requests.take(np.arange(begin, end))
        if part.arrival_s is not None and len(part):
            part = replace(part, arrival_s=part.arrival_s - start_s)
            own_s = max(length_s, part.duration_s or 0.0)
            windows.append(Window(requests=part, start_s=start_s, duration_s=own_s, weight=1.0))
    return windows


def _of_windows(sample: Sample, windows: Sequence[Window], factor: float) -> Sample:
    return replace(sample, windows=tuple(replace(window, weight=window.weight * factor) for window in windows))


def floor_reason(sample: Sample, server: OpenServer, limits: Limits) -> str | None:
    """Why a configuration cannot serve a trace within limits, by what its GPUs could do at best; None if it might.

    A decode step reads all weights; a prompt's FLOPs take their time at the dense peak; prompts that a cache holds are
    left out. Each is a lower bound of what is simulated.
    """
    if not isinstance(server.config, EngineConfig):
        return None
    cost = server.cost
    requests = max((window.requests for window in sample.windows), key=len)
    requests = requests.take(requests.input_tokens + requests.output_tokens <= server.config.max_model_len)
    if not len(requests):
        return None
    inputs, outputs = (column.astype(float) for column in (requests.input_tokens, requests.output_tokens))
    step_s = float(np.max(_floor(cost, decodes=1.0, context=inputs.min())))
    prompts_s = np.zeros(len(inputs))
    if requests.prefix_blocks is None and requests.cached_tokens is None:
        flops, _ = cost.work_of(_sums(prefill_tokens=inputs, prefill_pairs=inputs * (inputs + 1) / 2, prefills=1.0))
        prompts_s = flops / cost.peak_flops
    floors = {"tpot_p99_s": step_s, "tpot_p50_s": step_s}
    floors |= {"ttft_p99_s": _p99(prompts_s), "e2e_p99_s": _p99(prompts_s + (outputs - 1) * step_s)}
    for name, limit_s in limits.given():
        if floors[name] > limit_s:
            return f"{name.removesuffix('_s').replace('_', ' ')} is at least {floors[name]:.3g} s on these GPUs"
    span_s = sample.duration_s
    if span_s and sample.is_timed:
        batch = float(server.config.limits.max_num_seqs)
        mean = float(outputs @ (inputs + outputs / 2) / outputs.sum())
        flops_s, bytes_s = _floor(cost, decodes=batch, context=batch * mean)
        steps = float(outputs.sum()) / batch
        least_s = max(float(prompts_s.sum()) + steps * float(flops_s.max()), steps * float(bytes_s.max()))
        least_s *= sample.requests / len(inputs) / server.spec.replicas
        # After the last first token as many steps follow as the longest answer has, at most, each of a full batch.
        tail_s = float(outputs.max() * np.maximum(flops_s, bytes_s).max())
        if sample.requests >= FEWEST and least_s > span_s + max(SHORTEST_LATE_S, BEGUN * span_s) + tail_s:
            return f"overloaded: its work takes at least {least_s / span_s:.2g} times the time of the arrivals"
    return None


def _sums(**known: Any) -> StepSums:
    return StepSums(**{name: known.get(name, 0.0) for name in StepSums._fields})


def _floor(cost: StepCost, *, decodes: float, context: float) -> tuple[Any, Any]:
    """Seconds of a decode step by its FLOPs at the peak, and by its bytes at full bandwidth."""
    flops, moved = cost.work_of(_sums(decodes=np.array([decodes]), context=context, sampled=decodes))
    server = cost.server
    return flops / cost.peak_flops, moved / (server.gpu.memory_bandwidth * server.work.gpus)


def _p99(values: Any) -> float:
    return float(np.sort(values)[max(0, math.ceil(0.99 * len(values) - 1e-9) - 1)])


def fewest_gpus(spec: ServerSpec, sample: Sample, table: Table) -> ServerSpec:
    """A server on as many GPUs as its model needs, and as few replicas as keep up with a trace (at most 64).

    Raises:
        UsageError: The model does not fit on 8 GPUs.
    """
    for size in TENSOR_PARALLEL:
        try:
            spec = replace(spec, options=replace(spec.options, tensor_parallel_size=size))
            open_server(spec, table)
            break
        except UsageError as error:
            if error.code != "does-not-fit" or size == TENSOR_PARALLEL[-1]:
                raise

    def keeps_up(count: int) -> bool:
        with Pool(sample, table, Limits()) as pool:
            (found,) = pool.serve([replace(spec, replicas=count)])
        return isinstance(found, UsageError) or found.estimate.run.overload is None

    most = next((count for count in (1, 2, 4, 8, 16, 32) if keeps_up(count)), 64)
    least = most // 2 + 1
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if keeps_up(middle) else (middle + 1, most)
    return replace(spec, replicas=most)


def pareto_front(points: Iterable[tuple[float, float | None, int, Item]]) -> list[Item]:
    """Those of (energy, latency, GPUs, item) that no other betters in all three, by energy.

    Of two that differ by less than `ALIKE` in latency, the one of less energy alone is kept.
    """
    front: list[tuple[float, int, Item]] = []
    for _, latency_s, gpus, item in sorted(points, key=lambda point: point[:1]):
        least_s = min((own_s for own_s, own_gpus, _ in front if own_gpus <= gpus), default=math.inf)
        if latency_s is not None and latency_s < least_s * (1 - ALIKE):
            front.append((latency_s, gpus, item))
    return [item for *_, item in front]
