"""When requests come to one replica: at their own times, or after the answer to the one before them in a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from math import inf

import numpy as np
from numpy.typing import NDArray

Following = Mapping[int, Sequence[tuple[int, float]]]
"""By request, those that follow its answer, each with its gap in seconds."""


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
