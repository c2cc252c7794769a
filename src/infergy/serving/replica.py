"""One replica of a server on a clock: requests go through its scheduler, and each step takes what its cost says."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from heapq import heappop, heappush
from math import ceil, inf
from typing import TYPE_CHECKING, Protocol

from infergy.serving.scheduler import Scheduler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from infergy.serving.run import Steps

FIELDS = 11
"""Numbers of an entry of the log: start_s, count, decodes, context, prefill_tokens, prefill_pairs, prefills, sampled,
kv_blocks, waiting, step_s."""

SHORTEST_LIMIT = 32
GROWTH = 8
"""An entry may lengthen the contexts by an eighth, or by 32 tokens each: its mean step then errs by under 0.05 %."""


class StepCost(Protocol):
    """What a step costs; the arguments are explained at `Steps`."""

    @property
    def idle_w(self) -> float:
        """Watts of all GPUs of a replica that waits with the model loaded."""

    @property
    def intake_s(self) -> float:
        """Seconds between a request's arrival and the moment when the scheduler can see it."""

    def step_s(
        self,
        decodes: int,
        context: float,
        prefill_tokens: int,
        prefill_pairs: int,
        prefills: int,
        sampled: int,
        padded: int,
    ) -> float:
        """Seconds of one step."""

    def evaluate(self, steps: Steps) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Seconds and joules of one step of each entry."""


class Replica:
    """A server's scheduler on a clock.

    `run` advances it; `first_s` and `finished_s`, by request, are shared by the replicas of a server and filled in. A
    request of a session in `following` arrives its gap after the answer to the one before it.

    Asynchronously the scheduler plans a step when the result of the last but one is known, while the last runs: a
    request that arrives in between joins a step later.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        cost: StepCost,
        padded: Sequence[int],
        first_s: list[float],
        finished_s: list[float],
        *,
        asynchronous: bool = True,
        following: dict[int, list[tuple[int, float]]] | None = None,
        rejected: Sequence[bool] | None = None,
        skip: bool = True,
    ) -> None:
        self.scheduler = scheduler
        self.cost = cost
        self.log = array("d")
        self.first_s, self.finished_s = first_s, finished_s
        self.arrival_s: dict[int, float] = {}
        self._padded = padded
        self._asynchronous = asynchronous
        self._following = following or {}
        self._rejected = rejected
        self._skip = skip
        self._now = self._busy = 0.0
        self._visible: list[float] = []
        self._requests: list[int] = []
        self._next = 0
        self._later: list[tuple[float, int]] = []
        self._blocks = scheduler.pool.free

    @property
    def load(self) -> int:
        """Requests that wait or run."""
        return len(self.scheduler.waiting) + len(self.scheduler.running) + len(self._requests) - self._next

    def add(self, request: int, arrival_s: float) -> None:
        """Let a request arrive, no earlier than those before it."""
        self._visible.append(arrival_s + self.cost.intake_s)
        self._requests.append(request)

    def add_all(self, requests: list[int], arrival_s: NDArray[np.float64]) -> None:
        """Let requests arrive, in order of their times."""
        self._requests += requests
        self._visible += (arrival_s + self.cost.intake_s).tolist()

    def run(self, until: float = inf) -> None:
        """Advance to the first plan of a step at `until` or later, or until nothing is left to do."""
        scheduler = self.scheduler
        while True:
            upcoming = self._take_arrivals()
            if not (scheduler.running or scheduler.waiting):
                if upcoming >= until:
                    return
                self._now = max(self._now, upcoming)
                continue
            if self._now >= until:
                return
            limit = scheduler.steady() if self._skip else 0
            if limit:
                self._decode(limit, min(upcoming, until))
            else:
                self._step()
            scheduler.settle()

    def _take_arrivals(self) -> float:
        """Queue what is visible now; returns when the next becomes visible."""
        now, visible, k = self._now, self._visible, self._next
        upcoming = visible[k] if k < len(visible) else inf
        if upcoming <= now:
            add = self.scheduler.add
            end = len(visible)
            while k < end and visible[k] <= now:
                add(self._requests[k])
                k += 1
            self._next = k
            upcoming = visible[k] if k < end else inf
        later = self._later
        while later and later[0][0] <= now:
            self.scheduler.add(heappop(later)[1])
        return min(upcoming, later[0][0]) if later else upcoming

    def _decode(self, limit: int, upcoming: float) -> None:
        """Steps that only decode, up to the next event or until what arrives at `upcoming` joins."""
        scheduler, step_s = self.scheduler, self.cost.step_s
        decodes = scheduler.decodes
        context: float = scheduler.context + decodes
        start = self._now if self._now > self._busy else self._busy
        padded = self._padded[decodes] if decodes < len(self._padded) else decodes
        limit = min(limit, max(SHORTEST_LIMIT, context // (GROWTH * decodes)))
        first = seconds = step_s(decodes, context, 0, 0, 0, decodes, padded)
        steps = limit
        if upcoming < inf:
            fitting = ceil((upcoming - start) / first) + self._asynchronous
            if fitting < limit:
                steps = fitting if fitting > 1 else 1
        if steps > 1:
            mean = context + decodes * (steps - 1) / 2
            seconds = step_s(decodes, mean, 0, 0, 0, decodes, padded)
            fitting = ceil((upcoming - start) / seconds) + self._asynchronous if upcoming < inf else steps
            if fitting < steps:  # the first step is the shortest, so too many were taken to fit
                fitting = max(fitting, 1)
                seconds = first + (seconds - first) * (fitting - 1) / (steps - 1)
                steps = fitting
                mean = context + decodes * (steps - 1) / 2
            context = mean
        used, waiting = self._blocks - scheduler.pool.free, len(scheduler.waiting)
        scheduler.repeat(steps)
        self.log.extend((start, steps, decodes, context, 0, 0, 0, decodes, used, waiting, seconds))
        self._busy = end = start + steps * seconds
        self._now = end - seconds if self._asynchronous else end
        if scheduler.ended:
            self._finish(end)

    def _step(self) -> None:
        """One step, whatever is in it; one without tokens takes no time."""
        scheduler = self.scheduler
        decodes = scheduler.schedule()
        start = self._now if self._now > self._busy else self._busy
        tokens = pairs = 0
        for _, count, computed in scheduler.chunks:
            tokens += count
            pairs += count * computed + count * (count + 1) // 2
        seconds = 0.0
        if decodes or tokens:
            context, prefills = scheduler.attended, len(scheduler.chunks)
            sampled, total = decodes + len(scheduler.completed), decodes + tokens
            padded = self._padded[total] if total < len(self._padded) else total
            seconds = self.cost.step_s(decodes, context, tokens, pairs, prefills, sampled, padded)
            used, waiting = self._blocks - scheduler.pool.free, len(scheduler.waiting)
            self.log.extend((start, 1, decodes, context, tokens, pairs, prefills, sampled, used, waiting, seconds))
        end = start + seconds
        self._busy = end
        self._now = start if self._asynchronous else end
        for request in scheduler.completed:
            if self.first_s[request] != self.first_s[request]:
                self.first_s[request] = end
        if scheduler.ended:
            self._finish(end)

    def _finish(self, end: float) -> None:
        for request in self.scheduler.ended:
            self.finished_s[request] = end
            if self._following:
                self._follow(request, end)

    def _follow(self, request: int, end: float) -> None:
        answered = [(request, end)]
        while answered:
            request, end = answered.pop()
            for follower, gap_s in self._following.get(request, ()):
                arrival_s = self.arrival_s[follower] = end + gap_s
                if self._rejected is not None and self._rejected[follower]:
                    answered.append((follower, arrival_s))
                else:
                    heappush(self._later, (arrival_s + self.cost.intake_s, follower))
