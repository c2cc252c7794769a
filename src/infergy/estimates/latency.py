"""Latencies of a run with their intervals, where windows of a trace do not show any, and limits on them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from infergy.errors import UsageError
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


REJECTS, OVERLOADED = "rejected_requests", "overload"
"""What counts as a broken limit too: rejecting more than another, not keeping up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on latency in seconds, above 0; None: no limit."""

    ttft_p99_s: float | None = None
    tpot_p50_s: float | None = None
    tpot_p99_s: float | None = None
    e2e_p99_s: float | None = None

    def __post_init__(self) -> None:
        for name, limit_s in self.given():
            if not 0 < limit_s < math.inf:
                option = "--" + name.removesuffix("_s").replace("_", "-")
                raise UsageError.bad_value(option, limit_s, f"a time above 0, as {option} 50ms")

    def given(self) -> list[tuple[str, float]]:
        """Names and seconds of those that are set."""
        limits = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [(name, limit_s) for name, limit_s in limits if limit_s is not None]

    def excess(self, latency: Latency | LatencyParts) -> dict[str, float]:
        """Each latency over its limit, by the limit's name; those within limits are left out."""
        over = {}
        for name, limit_s in self.given():
            kind, percentile = name.removesuffix("_s").split("_")
            percentiles = getattr(latency, f"{kind}_s")
            # Where no request has such a latency, none is over the limit.
            if percentiles is not None and getattr(percentiles, percentile) > limit_s:
                over[name] = getattr(percentiles, percentile) / limit_s
        return over
