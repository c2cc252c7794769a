"""Latencies of a run with their intervals, and where windows of a trace do not show any."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from infergy.serving.run import Latency, Percentiles, Runs, latency_of
from infergy.workload.requests import Sample

Z90 = 1.645
LATENCY_SD = {"ttft_s": 0.16, "tpot_s": 0.06, "itl_s": 0.06, "e2e_s": 0.06}
"""Beside that of the time of steps: what medians and p99 of 34 replays differed by from predictions made before them
(docs/replay.md). TTFT has the largest, because the intake of requests differs from host to host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LikelyPercentiles(Percentiles):
    """Nearest rank, in seconds.

    Attributes:
        low: Lower ends of the 90 % intervals of the three; `high` the upper.
    """

    low: Percentiles
    high: Percentiles

    @classmethod
    def within(cls, likeliest: Percentiles, log_sd: float) -> LikelyPercentiles:
        """Percentiles whose logarithms have that standard deviation."""
        own, factor = asdict(likeliest), math.exp(Z90 * log_sd)
        low, high = (Percentiles(**{p: value * by for p, value in own.items()}) for by in (1 / factor, factor))
        return cls(**own, low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyParts:
    """Latencies over requests, as `infergy.serving.run.Latency`; None where no request has one, or for `reason`.

    Attributes:
        reason: Why none is known of a trace that was sampled.
    """

    ttft_s: LikelyPercentiles | None = None
    tpot_s: LikelyPercentiles | None = None
    itl_s: LikelyPercentiles | None = None
    e2e_s: LikelyPercentiles | None = None
    reason: str | None = None


def latency_parts(runs: Runs, sample: Sample, seconds_sd: float, overload: str | None) -> LatencyParts:
    """Latencies of the requests of all windows, each by its window's weight.

    Args:
        runs: Of the windows of `sample`.
        sample: What is served.
        seconds_sd: Standard deviation of the logarithm of the time of steps.
        overload: Whether a queue outlasts the load; None if it does not.
    """
    if not sample.is_whole and not sample.is_timed:
        return LatencyParts(reason="windows of the trace were simulated, all at once")
    if not sample.is_whole and overload is not None:
        return LatencyParts(reason="windows of the trace were simulated, and a queue outlasts them")
    found = latency_of(runs)
    own: dict[str, Any] = {field.name: getattr(found, field.name) for field in fields(Latency)}
    for name, times in own.items():
        if times is not None:
            own[name] = LikelyPercentiles.within(times, math.hypot(seconds_sd, LATENCY_SD[name]))
    return LatencyParts(**own)
