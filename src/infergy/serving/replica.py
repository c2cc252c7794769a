"""Replicas on a clock: requests arrive, go through a scheduler, and each step takes what its cost says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from math import inf
from struct import Struct
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from infergy.cost.step import Steps
from infergy.serving.config import StaticConfig
from infergy.serving.scheduler import Scheduler

ENTRY = Struct("=diididiiiid")
"""An entry of the log: start_s, count, decodes, context, prefill_tokens, prefill_pairs, prefills, sampled, kv_blocks,
waiting, step_s. Packed bytes: of several ways to note eleven numbers a hundred thousand times the fastest."""
pack = ENTRY.pack

Following = Mapping[int, Sequence[tuple[int, float]]]
"""By request, those that follow its answer, each with its gap in seconds."""


class Pace(Protocol):
    """The clock of one replica (`infergy.cost.step.Pace`); arguments are columns of `Steps`."""

    def step(  # noqa: D102
        self, decodes: int, context: float, prefill_tokens: int, prefill_pairs: float, prefills: int, sampled: int,
        padded: int,
    ) -> float: ...  # fmt: skip

    def decode(  # noqa: D102
        self, decodes: int, context: float, padded: int, most: int, until_s: float, ahead: int
    ) -> tuple[int, float]: ...

    def idle(self, seconds: float) -> None: ...  # noqa: D102


class StepCost(Protocol):
    """What a server's steps cost (`infergy.cost.model.StepCost`)."""

    @property
    def idle_w(self) -> float: ...  # noqa: D102
    @property
    def intake_s(self) -> float: ...  # noqa: D102
    @property
    def intake_gap_s(self) -> float: ...  # noqa: D102
    @property
    def masked_attention(self) -> float: ...  # noqa: D102
    def start(self) -> Pace: ...  # noqa: D102
    def step_energy_j(self, steps: Steps) -> NDArray[np.float64]: ...  # noqa: D102


class Arrivals:
    """Requests on their way to a replica; the engine can see them `intake_s` after they come, `gap_s` apart at least.

    Attributes:
        followed_s: When requests came that followed an answer.
        waiting: Requests that are known and not yet visible, those that follow an answer aside.
    """

    __slots__ = (
        "_following",
        "_gap_s",
        "_intake_s",
        "_later",
        "_next",
        "_rejected",
        "_requests",
        "_visible_s",
        "followed_s",
    )

    def __init__(self, intake_s: float, gap_s: float, following: Following, rejected: Sequence[bool]) -> None:
        self._intake_s, self._gap_s = intake_s, gap_s
        self._following = following
        self._rejected = rejected
        self._visible_s: list[float] = []
        self._requests: list[int] = []
        self._next = 0
        self._later: list[tuple[float, int]] = []
        self.followed_s: dict[int, float] = {}

    @property
    def waiting(self) -> int:  # noqa: D102
        return len(self._requests) - self._next

    def add(self, request: int, arrival_s: float) -> None:
        """Let a request come, no earlier than those before it."""
        self._requests.append(request)
        visible_s = arrival_s + self._intake_s
        self._visible_s.append(max(visible_s, self._visible_s[-1] + self._gap_s) if self._visible_s else visible_s)

    def add_all(self, requests: list[int], arrival_s: NDArray[np.float64]) -> None:
        """Let requests come, in order of their times."""
        self._requests += requests
        # Each waits for its gap behind the one before it: a running maximum of what is left of the gaps.
        gaps = self._gap_s * np.arange(len(requests))
        self._visible_s += (np.maximum.accumulate(arrival_s + self._intake_s - gaps) + gaps).tolist()

    def take(self, now: float, accept: Callable[[int], None]) -> float:
        """Hand what is visible at `now` to `accept`; returns when the next becomes visible."""
        visible_s, k = self._visible_s, self._next
        end = len(visible_s)
        if k < end and visible_s[k] <= now:
            while k < end and visible_s[k] <= now:
                accept(self._requests[k])
                k += 1
            self._next = k
        upcoming = visible_s[k] if k < end else inf
        later = self._later
        if not later:
            return upcoming
        while later and later[0][0] <= now:
            accept(heappop(later)[1])
        return min(upcoming, later[0][0]) if later else upcoming

    def answer(self, requests: Sequence[int], now: float) -> bool:
        """Let those come that follow answers, if any; a rejected one is answered when it comes."""
        if not self._following:
            return False
        answered = [(request, now) for request in requests]
        while answered:
            request, now = answered.pop()
            for follower, gap_s in self._following.get(request, ()):
                arrival_s = self.followed_s[follower] = now + gap_s
                if self._rejected[follower]:
                    answered.append((follower, arrival_s))
                else:
                    heappush(self._later, (arrival_s + self._intake_s, follower))
        return True


class Replica:
    """vLLM on a clock; `first_s` and `finished_s`, by request, are filled in.

    Asynchronously the scheduler plans a step when the result of the last but one is known, while the last runs: a
    request that arrives in between joins a step later. Without `skip` steps are taken one by one.
    """

    __slots__ = (
        "_asynchronous", "_blocks", "_busy", "_finished_s", "_first_s", "_now", "_pace", "_padded", "_skip",
        "arrivals", "hit_tokens", "log", "preempted", "scheduler",
    )  # fmt: skip

    def __init__(
        self,
        scheduler: Scheduler,
        cost: StepCost,
        padded: Sequence[int],
        arrivals: Arrivals,
        first_s: list[float],
        finished_s: list[float],
        *,
        asynchronous: bool = True,
        skip: bool = True,
    ) -> None:
        self.scheduler = scheduler
        self.hit_tokens, self.preempted = scheduler.hit_tokens, scheduler.preempted
        self.arrivals = arrivals
        self.log = bytearray()
        self._pace = cost.start()
        self._padded = padded
        self._first_s, self._finished_s = first_s, finished_s
        self._asynchronous = asynchronous
        self._skip = skip
        self._now = self._busy = 0.0  # the next plan; the end of the last planned step
        self._blocks = scheduler.pool.free

    @property
    def load(self) -> int:  # noqa: D102
        return len(self.scheduler.waiting) + len(self.scheduler.running) + self.arrivals.waiting

    @property
    def recomputed_tokens(self) -> int:  # noqa: D102
        return self.scheduler.recomputed_tokens

    def run(self, until: float = inf) -> None:
        """Advance to the first plan of a step at `until` or later, or until nothing is left to do."""
        # One function: a simulation spends its time here.
        scheduler, take, add = self.scheduler, self.arrivals.take, self.scheduler.add
        running, waiting, finished_s = scheduler.running, scheduler.waiting, self._finished_s
        upcoming = -inf
        while True:
            now = self._now
            if now >= upcoming:
                upcoming = take(now, add)
                bound = upcoming if upcoming < until else until
            if not (running or waiting):
                if upcoming >= until:
                    return
                self._now = max(now, upcoming)
                continue
            if now >= until:
                return
            limit = scheduler.steady() if self._skip else 0
            if limit:
                self._decode(limit, bound)
            else:
                self._step()
            ended = scheduler.ended
            if ended:
                busy = self._busy
                for request in ended:
                    finished_s[request] = busy
                if self.arrivals.answer(ended, busy):
                    upcoming = -inf
                scheduler.settle()
            elif scheduler.unsettled:
                scheduler.settle()

    def _decode(self, limit: int, upcoming: float) -> None:
        """Steps that only decode, up to the next event or until what becomes visible at `upcoming` joins."""
        scheduler, ahead, busy = self.scheduler, self._asynchronous, self._busy
        decodes = scheduler.decodes
        context: float = scheduler.context + decodes
        start = busy if self._now <= busy else self._begin()
        padded = self._padded[decodes] if decodes < len(self._padded) else 0
        steps, seconds = self._pace.decode(decodes, context, padded, limit, upcoming - start, ahead)
        context += decodes * (steps - 1) / 2
        used, waiting = self._blocks - scheduler.pool.free, len(scheduler.waiting)
        scheduler.repeat(steps)
        self.log += pack(start, steps, decodes, context, 0, 0.0, 0, decodes, used, waiting, seconds)
        self._busy = end = start + steps * seconds
        self._now = end - seconds if ahead else end

    def _step(self) -> None:
        """One step, whatever is in it; one without tokens takes no time."""
        scheduler, busy = self.scheduler, self._busy
        decodes = scheduler.schedule()
        end = start = busy if self._now <= busy else self._begin()
        chunks, completed = scheduler.chunks, scheduler.completed
        if decodes or chunks:
            tokens = pairs = 0
            for _, count, computed in chunks:
                tokens += count
                pairs += count * computed + count * (count + 1) // 2
            context, prefills, total = scheduler.attended, len(chunks), decodes + tokens
            sampled = decodes + len(completed)
            padded = self._padded[total] if total < len(self._padded) else 0
            seconds = self._pace.step(decodes, context, tokens, pairs, prefills, sampled, padded)
            used, waiting = self._blocks - scheduler.pool.free, len(scheduler.waiting)
            self.log += pack(start, 1, decodes, context, tokens, pairs, prefills, sampled, used, waiting, seconds)
            end = start + seconds
        self._busy = end
        self._now = start if self._asynchronous else end
        first_s = self._first_s
        for request in completed:
            if first_s[request] != first_s[request]:  # NaN: not a request that was preempted
                first_s[request] = end

    def _begin(self) -> float:
        """When the next step begins after a pause: as soon as it is planned."""
        self._pace.idle(self._now - self._busy)
        return self._now


class StaticReplica:
    """One process of transformers' `generate`, batch after batch.

    Prompts are padded to the longest of the batch, and every sequence is computed until the longest answer is complete,
    so padding counts in all columns of the steps. It needs a mask, and attention with a mask reads each position
    `masked_attention` times (`infergy.cost.constants`). `generate` returns the answers together: a request is finished
    when its batch is.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        config: StaticConfig,
        cost: StepCost,
        arrivals: Arrivals,
        first_s: list[float],
        finished_s: list[float],
    ) -> None:
        self.arrivals = arrivals
        self.log = bytearray()
        self.hit_tokens: dict[int, int] = {}
        self.preempted: dict[int, int] = {}
        self.recomputed_tokens = 0
        self._inputs, self._outputs = inputs, outputs
        self._most, self._fits = config.max_num_seqs, config.fits
        self._pace = cost.start()
        self._has_graphs, self._masked = config.has_graphs, cost.masked_attention
        self._first_s, self._finished_s = first_s, finished_s
        self._waiting: deque[int] = deque()
        self._running: list[int] = []
        self._now = 0.0

    @property
    def load(self) -> int:  # noqa: D102
        return len(self._waiting) + len(self._running) + self.arrivals.waiting

    def run(self, until: float = inf) -> None:
        """Advance to the first end of a batch at `until` or later, or until nothing is left to do."""
        while True:
            upcoming = self.arrivals.take(self._now, self._waiting.append)
            if self._now >= until:
                return
            self._running = []
            if not self._waiting:
                if upcoming >= until:
                    return
                self._pace.idle(max(0.0, upcoming - self._now))
                self._now = max(self._now, upcoming)
                continue
            self._running = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            if self._fits is not None:
                inputs, outputs = (max(own[k] for k in self._running) for own in (self._inputs, self._outputs))
                size = max(1, self._fits(len(self._running), inputs, outputs))
                self._waiting.extendleft(reversed(self._running[size:]))
                del self._running[size:]
            self._generate(self._running)

    def _generate(self, batch: list[int]) -> None:
        size = len(batch)
        longest = max(self._inputs[request] for request in batch)
        is_padded = any(self._inputs[request] < longest for request in batch)
        rows = size * (self._masked if is_padded else 1.0)
        tokens, pairs = size * longest, int(rows * longest * (longest + 1) / 2)
        self._log(1, 0, 0.0, tokens, pairs, size, self._pace.step(0, 0.0, tokens, pairs, size, size, 0))
        for request in batch:
            self._first_s[request] = self._now
        left, seen = max(self._outputs[request] for request in batch) - 1, longest + 1
        while left > 0:
            count, seconds = self._pace.decode(size, rows * seen, size if self._has_graphs else 0, left, inf, 0)
            self._log(count, size, rows * seen + size * (count - 1) / 2, 0, 0, size, seconds)
            left, seen = left - count, seen + count
        for request in batch:
            self._finished_s[request] = self._now
        self.arrivals.answer(batch, self._now)

    def _log(
        self, count: int, decodes: int, context: float, tokens: int, pairs: int, size: int, seconds: float
    ) -> None:
        prefills, waiting = 0 if decodes else size, len(self._waiting)
        self.log += ENTRY.pack(self._now, count, decodes, context, tokens, pairs, prefills, size, 0, waiting, seconds)
        self._now += count * seconds
