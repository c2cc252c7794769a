"""One replica of a server on a clock: requests go through its scheduler, and each step takes what its cost says."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from struct import Struct
from typing import TYPE_CHECKING, Protocol

from infergy.serving.arrivals import Arrivals
from infergy.serving.scheduler import Scheduler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from infergy.serving.run import Steps

ENTRY = Struct("=diididiiiid")
"""An entry of the log: start_s, count, decodes, context, prefill_tokens, prefill_pairs, prefills, sampled, kv_blocks,
waiting, step_s. Packed bytes: of several ways to note eleven numbers a hundred thousand times the fastest."""
pack = ENTRY.pack


class Pace(Protocol):
    """The clock of one replica; arguments are columns of `Steps`."""

    def step(
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

    def decode(
        self, decodes: int, context: float, padded: int, most: int, until_s: float, ahead: int
    ) -> tuple[int, float]:
        """How many decode steps are alike, at most `most`, and their mean seconds; `context` is that of the first.

        They stop `ahead` steps after the first that ends at or after `until_s` from now.
        """

    def idle(self, seconds: float) -> None:
        """Nothing to do for so long."""


class StepCost(Protocol):
    """What a server's steps cost."""

    @property
    def idle_w(self) -> float:
        """Watts of all GPUs of a replica that waits with the model loaded."""

    @property
    def intake_s(self) -> float:
        """Seconds between a request's arrival and the moment when the scheduler can see it."""

    @property
    def intake_gap_s(self) -> float:
        """Least seconds between two requests becoming visible."""

    def start(self) -> Pace:
        """A clock for one replica that was idle."""

    def step_energy_j(self, steps: Steps) -> NDArray[np.float64]:
        """Joules of one step of each entry, at its logged seconds."""


class Server(Protocol):
    """What the router needs of a replica, and what it leaves behind."""

    arrivals: Arrivals
    log: bytearray

    @property
    def load(self) -> int:
        """Requests that wait or run."""

    @property
    def hit_tokens(self) -> dict[int, int]:
        """Prompt tokens found in the prefix cache, of requests with any."""

    @property
    def preempted(self) -> dict[int, int]:
        """How often requests lost their blocks, of those that did."""

    @property
    def recomputed_tokens(self) -> int:
        """Tokens computed again after a preemption."""

    def run(self, until: float = inf) -> None:
        """Serve until a time."""


class Replica:
    """vLLM on a clock; `first_s` and `finished_s`, by request, are filled in.

    Asynchronously the scheduler plans a step when the result of the last but one is known, while the last runs: a
    request that arrives in between joins a step later. Without `skip` steps are taken one by one.
    """

    __slots__ = (
        "_asynchronous", "_blocks", "_busy", "_finished_s", "_first_s", "_now", "_pace", "_padded", "_skip",
        "arrivals", "log", "scheduler",
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
    def hit_tokens(self) -> dict[int, int]:  # noqa: D102
        return self.scheduler.hit_tokens

    @property
    def preempted(self) -> dict[int, int]:  # noqa: D102
        return self.scheduler.preempted

    @property
    def recomputed_tokens(self) -> int:  # noqa: D102
        return self.scheduler.recomputed_tokens

    def run(self, until: float = inf) -> None:
        """Advance to the first plan of a step at `until` or later, or until nothing is left to do."""
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
