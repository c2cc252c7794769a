"""The raw facts of a window: ticks of the counters, and the batches that ran between them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from infergy.errors import MeterError
from infergy.records.endpoint import Served
from infergy.records.latency import EngineCounts, RequestTimes
from infergy.records.shared import once_each


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One GPU's energy counter at the instant it moved.

    Attributes:
        time_s: Monotonic clock of the process that read, in seconds; only differences mean anything.
        energy_j: Joules since the driver was loaded.
    """

    time_s: float
    energy_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafts:
    """What was drafted in a batch, by the engine's own count.

    Attributes:
        rounds: Times that a request's drafted tokens were looked at.
        drafted_tokens: Tokens drafted in them.
        accepted_tokens: Of these, accepted; some lie past the last token asked for, and were not returned.
    """

    rounds: int
    drafted_tokens: int
    accepted_tokens: int

    @property
    def accepted_share(self) -> float | None:
        """Accepted over drafted tokens; None where nothing was drafted."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None

    @property
    def tokens_per_round(self) -> float | None:
        """Tokens that a round yields, the model's own one included; None without rounds."""
        return 1 + self.accepted_tokens / self.rounds if self.rounds else None


def sum_drafts(counts: Iterable[Drafts | None]) -> Drafts | None:
    """All of them together; None where one batch has no count, or there are none."""
    known: list[Drafts] = []
    for drafts in counts:
        if drafts is None:
            return None
        known.append(drafts)
    if not known:
        return None
    return Drafts(
        rounds=sum(drafts.rounds for drafts in known),
        drafted_tokens=sum(drafts.drafted_tokens for drafts in known),
        accepted_tokens=sum(drafts.accepted_tokens for drafts in known),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch inside the window: seconds on the clock of the ticks, tokens as the engine returned them.

    Online it is one run: from the first arrival to the last token, the gaps in which nothing was served included.

    Attributes:
        first_token_s: Seconds from arrival to first token, mean over the requests; None if not reported.
        last_first_token_s: The same of the request that waited longest.
        finished_s: Seconds from arrival to last token, mean over the requests; None then too.
        times: Both of each request of an online run or a replay; None of equal requests that are there all at once, and
            if the engine does not report it.
        drafts: What a draft model proposed; None without one, and if the engine does not report it.
        counts: Steps, preemptions and the like; None if the engine does not report it.
        served: What the client of a server saw that runs already; None of an engine that infergy started.
    """

    start_s: float
    end_s: float
    requests: int
    input_tokens: int
    output_tokens: int
    first_token_s: float | None = None
    last_first_token_s: float | None = None
    finished_s: float | None = None
    times: RequestTimes | None = None
    drafts: Drafts | None = None
    counts: EngineCounts | None = None
    served: Served | None = None

    @property
    def duration_s(self) -> float:
        """Seconds from handing over the requests, online from the first arrival, to the last token."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What the energy counter of each GPU did between two of its ticks.

    The counters of several GPUs tick at different instants, so each GPU has edges of its own.

    Attributes:
        open: First edge of each GPU, by UUID.
        close: Last edge of each GPU, by UUID.
        edge_uncertainty_s: How long before a stamped instant the counter may have ticked: the longest time from before
            a read that did not show the tick yet to after the next one, which did, in seconds.
        batches: What ran inside, in order; empty for a window over an idle GPU.
        settled: A tick of each GPU some time after the last token, by UUID: from there to `close` the GPU draws what it
            draws between batches. Empty in windows that close on the first tick after the last token.
        visit: Which visit of its cell it belongs to, from 1 on, where rows were joined (`infergy.records.visits`).
    """

    open: Mapping[str, Tick]
    close: Mapping[str, Tick]
    edge_uncertainty_s: float
    batches: tuple[Batch, ...] = ()
    settled: Mapping[str, Tick] = field(default_factory=dict)
    visit: int = 1

    @property
    def busy_s(self) -> float:
        """Seconds in which batches ran."""
        return sum([batch.end_s - batch.start_s for batch in self.batches])

    @property
    def duration_by_gpu_s(self) -> dict[str, float]:
        """Seconds between the two edges of each GPU, by UUID."""
        return {uuid: self.close[uuid].time_s - tick.time_s for uuid, tick in self.open.items()}

    @property
    def energy_by_gpu_j(self) -> dict[str, float]:
        """Energy of each GPU between its two edges, by UUID.

        Raises:
            MeterError: A counter stood still or ran backwards: a window of zero joules is no measurement.
        """
        return {uuid: energy_between(uuid, tick, self.close[uuid]) for uuid, tick in self.open.items()}

    @property
    def tail_power_by_gpu_w(self) -> dict[str, float]:
        """Mean power of each GPU from `settled` to `close`, in watts, by UUID; empty without `settled`.

        Raises:
            MeterError: A counter stood still or ran backwards.
        """
        return {
            uuid: energy_between(uuid, tick, self.close[uuid]) / (self.close[uuid].time_s - tick.time_s)
            for uuid, tick in self.settled.items()
        }

    @property
    def power_by_gpu_w(self) -> dict[str, float]:
        """Mean power of each GPU, in watts, by UUID."""
        durations = self.duration_by_gpu_s
        return {uuid: energy_j / durations[uuid] for uuid, energy_j in self.energy_by_gpu_j.items()}


class GpuEnergy(NamedTuple):
    """What the counter of one GPU did in a window.

    Attributes:
        energy_j: Between the edges.
        duration_s: Between the edges.
        idle_s: Of these, seconds in which no batch ran.
        tail_w: Mean power from the settled tick on; None without one.
    """

    uuid: str
    energy_j: float
    duration_s: float
    idle_s: float
    tail_w: float | None

    def idle_power_w(self, idle_w: Mapping[str, float]) -> float:
        """Power while no batch ran: that of the settled tail, or of an idle window (by UUID) where there is none."""
        return idle_w[self.uuid] if self.tail_w is None else self.tail_w


class WindowEnergy(NamedTuple):
    """What the counters did in a window, and for how many seconds batches ran."""

    busy_s: float
    gpus: tuple[GpuEnergy, ...]


@once_each
def energy_of(window: Window) -> WindowEnergy:
    """Computed once: interval, flags and figures of a row each ask for it.

    Raises:
        MeterError: A counter stood still or ran backwards.
    """
    busy_s, found = window.busy_s, []
    for uuid, opened in window.open.items():
        closed, settled = window.close[uuid], window.settled.get(uuid)
        energy_j, duration_s = energy_between(uuid, opened, closed), closed.time_s - opened.time_s
        tail_w = None if settled is None else energy_between(uuid, settled, closed) / (closed.time_s - settled.time_s)
        found.append(GpuEnergy(uuid, energy_j, duration_s, max(0.0, duration_s - busy_s), tail_w))
    return WindowEnergy(busy_s, tuple(found))


def energy_between(uuid: str, earlier: Tick, later: Tick) -> float:
    """Joules from one tick to another.

    Raises:
        MeterError: The counter or the clock stood still or ran backwards: zero joules are no measurement.
    """
    energy_j, seconds = later.energy_j - earlier.energy_j, later.time_s - earlier.time_s
    # Not a number is more than nothing in no comparison.
    if not (energy_j > 0 and seconds > 0 and math.isfinite(energy_j)):
        message = (
            f"the energy counter of {uuid} moved by {energy_j} J in {seconds:.3f} s; expected more than 0 of both. "
            "Measure again; if it stays, this GPU's counter cannot be used"
        )
        raise MeterError(message, code="counter-stuck", uuid=uuid, energy_j=energy_j, duration_s=seconds)
    return energy_j
