"""Sums over ranges of an order, in logarithmic time. Standard library only."""

from __future__ import annotations

import operator
from collections.abc import Sequence

Vector = tuple[float, ...]


class RangeSums:
    """Sums of vectors between two places.

    By a tree of sums (as https://en.wikipedia.org/wiki/Segment_tree), not by differences of running sums: small values
    beside large ones keep their digits.
    """

    def __init__(self, values: Sequence[Vector], zero: Vector) -> None:
        self._zero, self._size = zero, len(values)
        self._tree = [zero] * self._size + list(values)
        for place in range(self._size - 1, 0, -1):
            self._tree[place] = _add(self._tree[2 * place], self._tree[2 * place + 1])

    def between(self, first: int, end: int) -> Vector:
        """The sum from the place `first` up to, and without, `end`."""
        total, low, high = self._zero, first + self._size, max(first, end) + self._size
        while low < high:
            if low % 2:
                total = _add(total, self._tree[low])
                low += 1
            if high % 2:
                high -= 1
                total = _add(total, self._tree[high])
            low //= 2
            high //= 2
        return total


def _add(a: Vector, b: Vector) -> Vector:
    return tuple(map(operator.add, a, b))
