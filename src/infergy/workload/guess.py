"""Which columns of an unknown log may hold tokens: a guess by name and values, for the user to confirm."""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

_AXES = {
    "input": re.compile(r"prompt|input|context|prefill|request|query|question|isl|(^|_)in(_|$)"),
    "output": re.compile(r"completion|output|generat|response|decode|answer|predict|osl|(^|_)out(_|$)"),
}
_COUNT = re.compile(r"tok|len|count|size|num|[io]sl|(^|_)(in|out)(_|$)")
_OTHER = re.compile(
    r"cach|cost|price|limit|total|time|latency|detail|text|hit|audio|image|(^|_)(max|ms|per|rate|id)(_|$)"
)


def guess_columns(fields: Collection[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """By axis, the column that may hold its tokens, and why; an axis of which no column or several may is left out."""
    found = {}
    for axis, pattern in _AXES.items():
        other = _AXES["output" if axis == "input" else "input"]
        named = [path for path in fields if _is_length(path, pattern, other)]
        numbers = {path: list(_values(rows, path)) for path in named}
        fitting = [path for path in named if numbers[path] or not rows]
        tokens = [path for path in fitting if "tok" in path.lower()] or fitting
        if len(tokens) == 1:
            values = numbers[tokens[0]]
            why = f", median {statistics.median(values):g} in the first rows" if values else ""
            found[axis] = tokens[0], f"its name{why}"
    return found


def _is_length(path: str, pattern: re.Pattern[str], other: re.Pattern[str]) -> bool:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z0-9]+", "_", path.rpartition(".")[2]).lower()
    is_axis = pattern.search(words) and not other.search(words)
    return bool(is_axis and _COUNT.search(words) and not _OTHER.search(words))


def _values(rows: Sequence[Mapping[str, Any]], path: str) -> Iterator[float]:
    """The whole numbers in a column; none if it has a value that is none."""
    values = []
    for row in rows:
        value = row.get(path)
        if value is None or value == "":
            continue
        if not re.fullmatch(r"\s*\d{1,10}(\.0*)?\s*", str(value)):
            return
        values.append(float(value))
    yield from values
