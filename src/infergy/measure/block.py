"""Energy of any block of Python or any command, measured as a cell is. Standard library only.

    idle window      state   wait tick   sync   the block …   sync   state   settle   tick   tick
    ─────────────            |           ────────────────────                          |      |
                             open        begin             end                   settled     close

What the GPUs drew before and after the block is subtracted at the power between the last two ticks; by the first of
them the counters have reported all energy of the block, however late they report it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from infergy.errors import InfergyError, MeterError, UsageError
from infergy.measure.cell import measure_idle
from infergy.meters import LATE_S, Clock, Edge, Meter, open_meter, settle, sharp_tick
from infergy.meters.meter import FIX, counter_over_power, disagrees
from infergy.records import GpuIdentity, GpuState, Window
from infergy.records.environment import processes_by_gpu, slowdowns_by_gpu
from infergy.records.row_checks import check_power

BLOCK_SCHEMA = "infergy.window/1"

FEWEST_S = 3.0
"""Below, the edges weigh: 3 s are 30 ticks of an H200's counter."""

TEMPERATURE_CHANGE_C = 25.0
"""Largest change between the states before and after; leakage grows by about 1 % per 3 °C."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockEnergy:
    """Energy of a block; figures are None where `reason` says why.

    Attributes:
        energy_j: Energy of all GPUs while the block ran, gross: idle power included.
        low_j: The least that it took, and `high_j` the most, given how late ticks may be stamped, how late a counter
            may report energy, and how small a part of each of its periods it may sample (see `infergy doctor --meter`).
            One block says nothing of how the next will differ.
        energy_by_gpu_j: `energy_j` of each GPU, by UUID.
        net_j: `energy_j` less what the idle GPUs would have taken; None if idle power was not measured.
        power_w: `energy_j` over `duration_s`, and `power_by_gpu_w` by UUID.
        idle_power_w: Of all GPUs together before the block; None if it was not measured.
        gpus: The boards that were counted.
        scope: What the energy covers: ``gpu-board``, ``gpu-module`` (CPU and memory of a superchip too).
        simulated: Whether it comes from a model instead of a GPU.
        before: State of each GPU before the block; `after` the same.
    """

    name: str
    measured_utc: str
    duration_s: float
    energy_j: float | None
    low_j: float | None
    high_j: float | None
    energy_by_gpu_j: Mapping[str, float]
    net_j: float | None
    power_w: float | None
    idle_power_w: float | None
    gpus: tuple[GpuIdentity, ...]
    meter: str
    scope: str
    simulated: bool
    before: tuple[GpuState, ...]
    after: tuple[GpuState, ...]
    warnings: tuple[str, ...] = ()
    reason: str | None = None
    power_by_gpu_w: Mapping[str, float] = field(default_factory=dict)
    schema: str = BLOCK_SCHEMA


class window:  # noqa: N801 - used as `with infergy.window() as w:`
    """Measures the energy of a block of Python.

        with infergy.window() as w:
            serve()
        print(w.energy_j, w.duration_s, w.power_w)

    Entering waits for the next tick of the energy counters (100 ms at most on NVIDIA's). Leaving waits until they
    have reported all and for two ticks (0.25 to 0.35 s). Work that was queued on a GPU must be finished before the
    block ends, or its energy is not counted.

    Args:
        name: What to call the block.
        gpus: How many GPUs to count, the first that CUDA_VISIBLE_DEVICES leaves; None counts all of them.
        idle_s: Seconds over which idle power is measured before the block; 0 measures none.
        sync: Waits until the GPUs have finished; None calls `torch.cuda.synchronize` if the process has torch loaded
            and CUDA in use, and nothing else.
        meter: ``nvml`` or a plug-in's name, or an open meter, which is left open.
        own_processes: How many processes may be on a GPU just before and after the block without a warning: this one.

    Raises:
        MissingError: On entering: no NVML or GPU.
        UsageError: On entering: no such meter, or fewer GPUs.
        MeterError: On entering: a counter does not move. Once the block has begun nothing is raised but what the block
            itself raises: `result.reason` says what went wrong.
    """

    def __init__(
        self,
        name: str = "window",
        *,
        gpus: int | None = None,
        idle_s: float = 0.0,
        sync: Callable[[], None] | None = None,
        meter: str | Meter = "nvml",
        own_processes: int = 1,
    ) -> None:
        self._name, self._own_processes = name, own_processes
        self._gpus, self._idle_s = gpus, idle_s
        self._sync = sync or synchronize_torch
        self._wanted = meter
        self._result: BlockEnergy | None = None

    def __enter__(self) -> window:
        """Open the meter, measure idle power if asked to, and wait for a tick."""
        wanted = self._wanted
        self._meter = open_meter(wanted, self._gpus) if isinstance(wanted, str) else wanted
        try:
            self._begin()
        except BaseException:
            self._close()
            raise
        return self

    def _begin(self) -> None:
        self._clock: Clock = self._meter.clock
        self._sync()
        at_first = self._meter.states() if self._idle_s > 0 else ()
        self._idle = measure_idle(self._meter, self._idle_s) if self._idle_s > 0 else None
        self._before = self._meter.states()
        idle_w = {} if self._idle is None else self._idle.power_by_gpu_w
        self._compared = counter_over_power(idle_w, at_first, self._before, self._meter)
        self._measured_utc = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._opened = sharp_tick(self._meter)
        self._begin_s = self._clock.now_s()

    def _close(self) -> None:
        """Close the meter if it was opened here."""
        if isinstance(self._wanted, str):
            self._meter.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the GPUs and for a tick, and compute the block's energy."""
        with suppress(Exception):
            # A sync that fails is the user's to see; the energy up to here still counts.
            self._sync()
        end_s = self._clock.now_s()
        after: tuple[GpuState, ...] = ()
        edges: tuple[Edge, Edge] | None = None
        reason = None
        try:
            after = self._meter.states()
            edges = settle(self._meter, end_s)
            tail = Window(open=edges[0].ticks, close=edges[1].ticks, edge_uncertainty_s=0.0)
            self._compared = (
                counter_over_power(tail.power_by_gpu_w, after, self._meter.states(), self._meter) | self._compared
            )
        except InfergyError as broken:
            reason = str(broken)
        finally:
            self._close()
        self._result = self._compute(end_s - self._begin_s, after, edges, reason)

    @property
    def result(self) -> BlockEnergy:
        """All that is known of the block.

        Raises:
            UsageError: The block has not ended.
        """
        if self._result is None:
            message = "the window is still open: its energy is known when the with block has ended"
            raise UsageError(message, code="window-open")
        return self._result

    @property
    def energy_j(self) -> float | None:
        """Energy of all GPUs while the block ran."""
        return self.result.energy_j

    @property
    def energy_by_gpu_j(self) -> Mapping[str, float]:
        """Energy of each GPU, by UUID."""
        return self.result.energy_by_gpu_j

    @property
    def power_by_gpu_w(self) -> Mapping[str, float]:
        """Mean watts of each GPU while the block ran, by UUID."""
        return self.result.power_by_gpu_w

    @property
    def duration_s(self) -> float:
        """Seconds of the block."""
        return self.result.duration_s

    @property
    def power_w(self) -> float | None:
        """Mean watts of all GPUs while the block ran."""
        return self.result.power_w

    def _compute(
        self, duration_s: float, after: tuple[GpuState, ...], edges: tuple[Edge, Edge] | None, reason: str | None
    ) -> BlockEnergy:
        meter = self._meter
        idle_by_gpu_w = {} if self._idle is None else self._idle.power_by_gpu_w
        idle_w = sum(idle_by_gpu_w.values()) or None
        by_gpu_j, doubt_j = dict[str, float](), 0.0
        if edges is not None:
            try:
                by_gpu_j, doubt_j = self._energy(edges, duration_s, idle_by_gpu_w)
                reason = None if by_gpu_j else f"a block of {duration_s:.2g} s is too short for the counter; repeat it"
            except MeterError as broken:
                reason = str(broken)
        figures: dict[str, Any] = dict.fromkeys(("energy_j", "low_j", "high_j", "net_j", "power_w"))
        if by_gpu_j:
            energy_j = sum(by_gpu_j.values())
            figures["energy_j"] = energy_j
            figures["low_j"], figures["high_j"] = max(0.0, energy_j - doubt_j), energy_j + doubt_j
            figures["net_j"] = None if idle_w is None else energy_j - idle_w * duration_s
            figures["power_w"] = energy_j / duration_s
        return BlockEnergy(
            name=self._name,
            measured_utc=self._measured_utc,
            duration_s=duration_s,
            energy_by_gpu_j=by_gpu_j,
            idle_power_w=idle_w,
            gpus=meter.gpus,
            meter=meter.name,
            scope=meter.scope,
            simulated=meter.is_simulated,
            before=self._before,
            after=after,
            warnings=(
                *_warnings(duration_s, meter),
                *_state_warnings(self._before, after, meter, self._own_processes),
                *_counter_warnings(self._compared, meter),
            ),
            reason=reason,
            power_by_gpu_w={uuid: one_j / duration_s for uuid, one_j in by_gpu_j.items()},
            **figures,
        )

    def _energy(
        self, edges: tuple[Edge, Edge], duration_s: float, idle_w: Mapping[str, float]
    ) -> tuple[dict[str, float], float]:
        """Of each GPU, in the meter's order, and by how much the sum may be off; empty if the counters did not move."""
        by_gpu_j, doubt_j = _split(self._opened, *edges, duration_s)
        if sum(by_gpu_j.values()) <= 0 or not duration_s:
            return {}, 0.0
        if duration_s >= FEWEST_S:
            power_w = {uuid: one_j / duration_s for uuid, one_j in by_gpu_j.items()}
            check_power(power_w, self._meter.gpus, idle_w)
        return {gpu.uuid: by_gpu_j[gpu.uuid] for gpu in self._meter.gpus}, doubt_j


def _split(opened: Edge, settled: Edge, closed: Edge, duration_s: float) -> tuple[dict[str, float], float]:
    """The block's energy out of the window's, by UUID, and by how much their sum may be off.

    A stamp that is late assigns energy of the block wrongly at the opening tick, and of the tail at the other two. A
    counter that reports late contains what was drawn before the window, which is assumed to differ from the tail by as
    much as that at most. One that samples the end of each period is off by a period of the step at the block's end.
    Stamps that late may have made the tail look longer than it was: then it drew more than it seems.

    Raises:
        MeterError: A counter stood still or ran backwards, or the tail was too short for stamps so late.
    """
    late_s = max(edge.uncertainty_s for edge in (opened, settled, closed))
    whole = Window(open=opened.ticks, close=closed.ticks, settled=settled.ticks, edge_uncertainty_s=late_s)
    used_j, span_s = whole.energy_by_gpu_j, whole.duration_by_gpu_s
    mean_w, tail_w = whole.power_by_gpu_w, whole.tail_power_by_gpu_w
    waits_s = {uuid: max(0.0, span_s[uuid] - duration_s) for uuid in used_j}
    tail_s = {uuid: closed.ticks[uuid].time_s - tick.time_s for uuid, tick in settled.ticks.items()}
    # The tail's own stamps also say how long it was, and so what it drew.
    tail_late_s, shortest_s = max(settled.uncertainty_s, closed.uncertainty_s), min(tail_s.values())
    if tail_late_s >= shortest_s:
        message = (
            f"ticks of the counter were stamped up to {tail_late_s:.2g} s late, over a tail of {shortest_s:.2g} s: "
            "this machine was too busy to read it. Leave it a core, and repeat the block"
        )
        raise MeterError(message, code="machine-busy", late_s=tail_late_s, tail_s=shortest_s)
    by_gpu = {uuid: used_j[uuid] - waits_s[uuid] * tail_w[uuid] for uuid in used_j}
    most_w = {uuid: tail_w[uuid] / (1 - tail_late_s / tail_s[uuid]) for uuid in used_j}
    doubt_j = sum(
        late_s * max(mean_w[uuid], most_w[uuid])
        + tail_late_s * most_w[uuid] * (1 + waits_s[uuid] / tail_s[uuid])
        + LATE_S * tail_w[uuid]
        + tail_s[uuid] * abs(mean_w[uuid] - tail_w[uuid])
        for uuid in used_j
    )
    return by_gpu, doubt_j


def _warnings(duration_s: float, meter: Meter) -> Iterator[str]:
    if meter.is_simulated:
        yield "SIMULATED: this energy comes from a model and says nothing about real hardware"
    if duration_s < FEWEST_S:
        yield f"the block took {duration_s:.2g} s; repeat it until it takes {FEWEST_S:g} s: the edges weigh"


def _state_warnings(
    before: tuple[GpuState, ...], after: tuple[GpuState, ...], meter: Meter, own_processes: int
) -> Iterator[str]:
    states = (*before, *after)
    if crowded := {uuid for uuid, count in processes_by_gpu(states).items() if count > own_processes}:
        yield f"another process was on {_name(crowded, meter)}: its energy is counted too (nvidia-smi lists processes)"
    for uuid, reasons in slowdowns_by_gpu(states).items():
        yield f"clocks of {_name({uuid}, meter)} were lowered by {', '.join(reasons)} (nvidia-smi -q -d PERFORMANCE)"
    was_c = {state.uuid: state.temperature_c for state in before}
    for state in after:
        begin_c, end_c = was_c.get(state.uuid), state.temperature_c
        if begin_c is not None and end_c is not None and abs(end_c - begin_c) > TEMPERATURE_CHANGE_C:
            gpu = _name({state.uuid}, meter)
            yield f"{gpu} went from {begin_c:g} to {end_c:g} °C: repeat the block when warm"


def _counter_warnings(compared: Mapping[str, tuple[float, float]], meter: Meter) -> Iterator[str]:
    for uuid, (counter_w, field_w) in compared.items():
        if disagrees(counter_w, field_w):
            yield (
                f"the energy counter of {_name({uuid}, meter)} disagrees with its power: {counter_w:.4g} W against "
                f"{field_w:.4g} W while power was steady; {FIX}"
            )


def _name(uuids: Collection[str], meter: Meter) -> str:
    """``the GPU``; of several their indices and UUIDs."""
    if len(meter.gpus) <= 1:
        return "the GPU"
    return ", ".join(f"GPU {index} ({gpu.uuid})" for index, gpu in enumerate(meter.gpus) if gpu.uuid in uuids)


def synchronize_torch() -> None:
    """Wait for CUDA if this process has torch loaded and CUDA in use; torch is never imported here."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_available() and cuda.is_initialized():
        cuda.synchronize()
