"""Which columns of an unknown log may hold tokens: a guess by name and values, for the user to confirm."""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

_AXES = {
    "input": re.compile(r"prompt|input|context|prefill|request|query|question|isl|(^|_)in(_|$)"),
    "output": re.compile(r"completion|output|generat|response|decode|answer|predict|osl|(^|_)out(_|$)"),
}
_WHOLE = re.compile(r"\s*\d{1,10}(\.0*)?\s*")
_COUNT = re.compile(r"tok|len|count|size|num|[io]sl|(^|_)(in|out)(_|$)")
_OTHER = re.compile(
    r"cach|cost|price|limit|total|time|latency|detail|text|hit|audio|image|(^|_)(max|ms|per|rate|id)(_|$)"
)


def guess_columns(
    fields: Collection[str], rows: Sequence[Mapping[str, Any]], axes: Iterable[str]
) -> dict[str, tuple[str, str]]:
    """By axis, the column that may hold its tokens, and why; an axis of which no column or several may is left out."""
    found = {}
    for axis in axes:
        (other,) = _AXES.keys() - {axis}
        numbers = {path: list(_values(rows, path)) for path in fields if _is_length(path, _AXES[axis], _AXES[other])}
        fitting = [path for path, values in numbers.items() if values or not rows]
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
    texts = [str(value) for row in rows if (value := row.get(path)) not in (None, "")]
    yield from map(float, texts if all(map(_WHOLE.fullmatch, texts)) else ())
