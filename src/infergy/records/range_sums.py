"""Sums over ranges of an order, each in constant time. Standard library only."""

from __future__ import annotations

from array import array
from collections.abc import Iterable


class RangeSums:
    """Sums of values, none below 0, between two places.

    A difference of running sums would lose the digits of small values beside large ones: the sums are kept in two
    parts, the second of what the first has rounded (TwoSum: Knuth, The Art of Computer Programming 2, 4.2.2).
    """

    def __init__(self, values: Iterable[float]) -> None:
        self._high, self._low = array("d", [0.0]), array("d", [0.0])
        high = low = 0.0
        for value in values:
            total = high + value
            added = total - high
            low += (high - (total - added)) + (value - added)
            high = total
            self._high.append(high)
            self._low.append(low)

    def over(self, ranges: Iterable[tuple[int, int]]) -> float:
        """The sum over ranges, each from a place up to, and without, another."""
        high, low = self._high, self._low
        return max(0.0, sum([(high[end] - high[first]) + (low[end] - low[first]) for first, end in ranges]))
