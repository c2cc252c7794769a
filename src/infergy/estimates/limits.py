"""Limits on latency that a server must keep."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from infergy.errors import UsageError
from infergy.estimates.latency import LatencyParts
from infergy.serving.run import Latency

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
