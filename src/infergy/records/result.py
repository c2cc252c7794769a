"""Joules, seconds and rates of a row, from the raw facts of its windows."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from infergy.errors import MeterError
from infergy.records.latency import Latency, find_latency, mean_first_token_s, mean_per_output_token_s
from infergy.records.shared import once_each
from infergy.records.window import Window, energy_of, sum_drafts

if TYPE_CHECKING:
    from infergy.records.measurement import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What follows from a row's raw facts, per batch and in total.

    Figures of requests are means over all of them; they are None if the engine does not report them, and in older rows.

    Attributes:
        energy_j: Energy per batch of all GPUs in the windows less the idle tails.
        duration_s: Seconds per batch, from handing over to the last token.
        power_w: Mean power while batches ran.
        energy_per_output_token_j: With a draft model, per token that was accepted and returned.
        batches: Batches in the windows.
        idle_s: Seconds in the windows when no batch ran (mostly last token to closing tick); the longest of all GPUs.
        idle_energy_j: What was subtracted for them, at the power of the settled tail, or at loaded-idle power.
        idle_bound_j: How far that may be off in windows without a settled tail: idle time × (mean power − loaded-idle
            power).
        time_to_first_token_s: From arrival to first token.
        time_per_output_token_s: From first token to last over the tokens after the first; None for one output token.
        requests_per_s: Requests finished per second, online the throughput that was reached.
        latency: Percentiles over the requests of online runs; None offline.
        accepted_share: Of a draft model's tokens, those that were accepted; None without one.
        tokens_per_round: Tokens per round of drafting, the model's own one included; None without a draft model.
    """

    energy_j: float
    energy_by_gpu_j: Mapping[str, float]
    duration_s: float
    power_w: float
    energy_per_request_j: float
    energy_per_output_token_j: float
    output_tokens_per_s: float
    batches: int
    idle_s: float
    idle_energy_j: float
    idle_bound_j: float
    power_by_gpu_w: Mapping[str, float] = field(default_factory=dict)
    time_to_first_token_s: float | None = None
    time_per_output_token_s: float | None = None
    requests_per_s: float | None = None
    latency: Latency | None = None
    accepted_share: float | None = None
    tokens_per_round: float | None = None


_LAST: list[tuple[Sequence[Window], Window, Sequence[tuple[int, int]], Result]] = []
"""What was derived last: of one row its interval, its flags and its figures each ask for it."""


def derive(windows: Sequence[Window], loaded_idle: Window, lengths: Sequence[tuple[int, int]] = ()) -> Result:
    """The figures of a row from its raw facts; a pure function, so that old rows can be checked again.

    `lengths` are the input and output tokens of each request of a replay; empty where all are alike.

        open tick            last token       settled      close tick
            |....■■■■■■■■■|■■■■■■■■■|...........|............|
            <idle><---- batches ----><------- idle ---------->

    Idle time counts at the power between the settled and the closing tick of the same window. The joules that a
    counter shows late are counted by then, whatever its delay: the first tick after the last token would miss some.

    Online a batch is a run from its first arrival to its last token: the energy of the gaps in which nothing was served
    are among its own, its seconds and its power are over both.

    A window without a settled tick closes on that first one. Its idle time counts at loaded-idle power. Clocks fall
    only some time after the last kernel, so its true power lies between loaded idle and the mean: the bound.

    Raises:
        MeterError: A counter or a clock stood still or ran backwards.
    """
    if isinstance(windows, tuple) and _LAST and all(map(operator.is_, _LAST[0], (windows, loaded_idle, lengths))):
        return _LAST[0][3]
    batches = [batch for window in windows for batch in window.batches]
    busy_s = sum([batch.end_s - batch.start_s for batch in batches])
    requests = sum([batch.requests for batch in batches])
    output_tokens = sum([batch.output_tokens for batch in batches])
    if busy_s <= 0:
        message = f"batches took {busy_s:.3f} s by the clock, expected more than 0. Measure again"
        raise MeterError(message, code="clock-wrong", busy_s=busy_s)
    busy_j, idle_s, idle_j, bound_j = _by_gpu(windows, loaded_idle)
    energy_j = sum(busy_j.values())
    drafts = sum_drafts(batch.drafts for batch in batches)
    result = Result(
        energy_j=energy_j / len(batches),
        energy_by_gpu_j={uuid: joules / len(batches) for uuid, joules in busy_j.items()},
        duration_s=busy_s / len(batches),
        power_w=energy_j / busy_s,
        energy_per_request_j=energy_j / requests,
        energy_per_output_token_j=energy_j / output_tokens,
        output_tokens_per_s=output_tokens / busy_s,
        batches=len(batches),
        idle_s=max(idle_s.values()),
        idle_energy_j=sum(idle_j.values()),
        idle_bound_j=sum([max(0.0, joules) for joules in bound_j.values()]),
        power_by_gpu_w={uuid: joules / busy_s for uuid, joules in busy_j.items()},
        time_to_first_token_s=mean_first_token_s(batches),
        time_per_output_token_s=mean_per_output_token_s(batches),
        requests_per_s=requests / busy_s,
        latency=find_latency(batches, [tokens for _, tokens in lengths]),
        accepted_share=None if drafts is None else drafts.accepted_share,
        tokens_per_round=None if drafts is None else drafts.tokens_per_round,
    )
    _LAST[:] = [(windows, loaded_idle, lengths, result)]
    return result


def _by_gpu(windows: Sequence[Window], loaded_idle: Window) -> tuple[dict[str, float], ...]:
    """Of each GPU in all windows: energy while batches ran, idle seconds, idle energy, and how far that may be off."""
    idle_w = idle_power_by_gpu_w(loaded_idle)
    busy_j = dict.fromkeys(windows[0].open, 0.0)
    idle_s, idle_j, bound_j = dict(busy_j), dict(busy_j), dict(busy_j)
    for window in windows:
        for gpu in energy_of(window).gpus:
            used_j = gpu.idle_s * gpu.idle_power_w(idle_w)
            busy_j[gpu.uuid] += gpu.energy_j - used_j
            idle_s[gpu.uuid] += gpu.idle_s
            idle_j[gpu.uuid] += used_j
            if gpu.tail_w is None:
                bound_j[gpu.uuid] += gpu.idle_s * (gpu.energy_j / gpu.duration_s - idle_w[gpu.uuid])
    return busy_j, idle_s, idle_j, bound_j


class WindowSum(NamedTuple):
    """Energy, seconds and number of the batches of a window; energy as of `derive`."""

    energy_j: float
    busy_s: float
    batches: int

    @property
    def batch_j(self) -> float:
        """Energy per batch."""
        return self.energy_j / self.batches


def sum_windows(windows: Sequence[Window], loaded_idle: Window) -> list[WindowSum]:
    """Of each window; without the other figures of `derive`.

    Raises:
        MeterError: A counter stood still or ran backwards.
    """
    idle_w, found = idle_power_by_gpu_w(loaded_idle), []
    for window in windows:
        busy_s, gpus = energy_of(window)
        energy_j = sum([gpu.energy_j - gpu.idle_s * gpu.idle_power_w(idle_w) for gpu in gpus])
        found.append(WindowSum(energy_j, busy_s, len(window.batches)))
    return found


def add_up(sums: Iterable[WindowSum]) -> WindowSum:
    """Of several windows, at least one."""
    return WindowSum(*map(sum, zip(*sums, strict=True)))


@once_each
def idle_power_by_gpu_w(idle: Window) -> Mapping[str, float]:
    """Of an idle window, which many rows share.

    Raises:
        MeterError: A counter stood still.
    """
    return idle.power_by_gpu_w


def result_of(row: Measurement) -> Result:
    """The figures of a measured row that count: `derive`, and if the row is rescaled, its joules times the factor.

    The only place where the factor is applied to joules. Seconds and tokens stay.

    Raises:
        MeterError: A counter or a clock stood still or ran backwards, or the row holds no windows.
    """
    if not row.windows or row.loaded_idle is None:
        message = f"cell {row.cell_id} ({row.cell}) has no windows, and so no energy. Measure it again"
        raise MeterError(message, code="no-window", cell=row.cell_id)
    result = derive(row.windows, row.loaded_idle, row.lengths)
    if row.rescaled is None:
        return result
    factor = row.rescaled.factor
    return replace(
        result,
        energy_j=result.energy_j * factor,
        energy_by_gpu_j={uuid: joules * factor for uuid, joules in result.energy_by_gpu_j.items()},
        power_by_gpu_w={uuid: watts * factor for uuid, watts in result.power_by_gpu_w.items()},
        power_w=result.power_w * factor,
        energy_per_request_j=result.energy_per_request_j * factor,
        energy_per_output_token_j=result.energy_per_output_token_j * factor,
        idle_energy_j=result.idle_energy_j * factor,
        idle_bound_j=result.idle_bound_j * factor,
    )
