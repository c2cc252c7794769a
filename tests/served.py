"""Small workloads that tests of estimates serve."""

from __future__ import annotations

import numpy as np

from infergy.workload.requests import Requests


def some_requests(count: int = 60, *, rate_per_s: float | None = 4.0, seed: int = 0) -> Requests:
    """Requests of mixed lengths: arrivals by a Poisson process, or all at once."""
    draw = np.random.default_rng(seed)
    arrival_s = None if rate_per_s is None else np.cumsum(draw.exponential(1 / rate_per_s, count))
    return Requests(
        source="test",
        input_tokens=draw.integers(1, 3000, count),
        output_tokens=draw.integers(1, 400, count),
        arrival_s=None if arrival_s is None else arrival_s - arrival_s[0],
        order_reason="a test" if arrival_s is None else None,
    )
