"""A line of a recording: what counters and histograms grew by since the line before."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from infergy.watch.metrics import COUNTERS
from infergy.watch.span import Reading, Span
from infergy.workload.recording import AXES, RECORDING_SCHEMA


def recorded_line(readings: Sequence[Reading], time_unix_s: float, before: Sequence[Reading] = ()) -> str:
    """What lies between the first and the last of some readings, as `infergy.workload.recording` reads it.

    Over a gap of the server's counters there are no tokens and no lengths; `gap` says that there was one. Where the
    first has no metrics, tokens and lengths are those since the last of `before` that has.
    """
    first, last = readings[0], readings[-1]
    counted = next((own for own in (first, *reversed(before)) if own.page is not None), first)
    is_gap = counted.segment != last.segment or counted.page is None or last.page is None
    span = Span(readings=(first if is_gap else counted, last))
    record: dict[str, Any] = {
        "schema": RECORDING_SCHEMA,
        "time_unix_s": round(time_unix_s, 3),
        "seconds": round(span.seconds, 6),
        "counter_j": {uuid: tick.counter_j for uuid, tick in last.ticks.items()},
        "energy_by_gpu_j": {
            uuid: tick.energy_j - (first.ticks[uuid].energy_j if uuid in first.ticks else 0.0)
            for uuid, tick in last.ticks.items()
        },
        "tokens": {name: count for name in COUNTERS if not is_gap and (count := span.count(name)) is not None},
        "lengths": {axis: grown for axis in AXES if not is_gap and (grown := _grown(span, axis))},
        "gap": (last.reason or "the server's counters began again") if is_gap else None,
    }
    return json.dumps(record, allow_nan=False)


def _grown(span: Span, axis: str) -> dict[str, Any]:
    """How many requests ended with lengths between which ends, and their tokens."""
    grown, tokens = span.grown(f"{axis}_lengths")
    ends, counts, low, below = [], [], 0.0, 0.0
    for edge, count in grown.items():
        if count > below:
            ends.append([low, edge if math.isfinite(edge) else 2 * low])
            counts.append(round(count - below))
        low, below = edge, count
    return {"ends": ends, "counts": counts, "tokens": tokens} if grown else {}
