"""Functions of objects that thousands of rows share, computed once for each object. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

MOST = 10_000
T = TypeVar("T")


def once_each(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """A function of one immutable object that remembers what it returned, by the object's identity.

    Equal objects do not count as one: 1, 1.0 and true are equal, and their text differs.
    """
    # The object is kept, so that no other gets its identity.
    known: dict[int, tuple[object, T]] = {}

    @wraps(function)
    def remembered(value: Any) -> T:
        if id(value) not in known:
            if len(known) >= MOST:
                known.clear()
            known[id(value)] = (value, function(value))
        return known[id(value)][1]

    return remembered
