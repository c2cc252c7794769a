"""A histogram priced on a surface: joules and seconds of each bin, and between which bounds they lie.

    E_total = sum over bins of  N / B  ×  E_batch                    (arXiv 2504.17674, section 2)

with E_batch / B the joules of one request at the bin's lengths in the batch that was measured there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from infergy.energy.options import CEILING, WHOLE
from infergy.energy.surface import Surface, SurfaceErrors, SurfaceValue
from infergy.workload.bins import Bin, BinCount


@dataclass(frozen=True, slots=True, kw_only=True)
class BinEnergy:
    """The requests of one bin, priced.

    Attributes:
        input_tokens: Upper corner of the bin; `output_tokens` likewise.
        requests: Requests in the bin.
        batch: Requests served at once; None if the bin has no value.
        energy_j: Joules of all requests of the bin; None if it has no value.
        low_j: Lower bound: the bin's floor; None where it cannot be drawn or its error is unknown.
        high_j: Upper bound: the bin's ceiling in whole batches; None where its error is unknown.
        duration_s: Seconds of all requests of the bin.
        how: How the value was obtained: ``measured``, ``interpolated``, ``extrapolated``, or ``none``.
    """

    input_tokens: int
    output_tokens: int
    requests: int
    batch: int | None
    energy_j: float | None
    low_j: float | None
    high_j: float | None
    duration_s: float | None
    how: str


NO_VALUE = "none"


def price_bins(
    counts: Iterable[BinCount], surface: Surface, errors: SurfaceErrors, *, method: str, rare: str
) -> tuple[BinEnergy, ...]:
    """Price each bin by itself, so that disjoint traces add up under ``ceiling`` and ``fractional``."""
    return tuple(_price(count, surface, errors, method=method, rare=rare) for count in counts)


def mean_lengths(count: BinCount) -> tuple[float, float]:
    """Mean input and output of the requests in a bin, at least 1 token each and never past its corner."""
    return (
        min(max(1.0, count.input_tokens / count.requests), count.bin.input_tokens),
        min(max(1.0, count.output_tokens / count.requests), count.bin.output_tokens),
    )


def _price(count: BinCount, surface: Surface, errors: SurfaceErrors, *, method: str, rare: str) -> BinEnergy:
    corner = count.bin
    ceiling = surface.at(corner.input_tokens, corner.output_tokens)
    value = ceiling if method == CEILING else surface.at(*mean_lengths(count))
    if ceiling is None or value is None:
        return BinEnergy(
            input_tokens=corner.input_tokens,
            output_tokens=corner.output_tokens,
            requests=count.requests,
            batch=None,
            energy_j=None,
            low_j=None,
            high_j=None,
            duration_s=None,
            how=NO_VALUE,
        )
    charged = charged_requests(count.requests, value.batch, rare)
    energy_j = charged * value.energy_j
    low_j, high_j = _low(count, surface, errors), _high(count, ceiling, errors)
    return BinEnergy(
        input_tokens=corner.input_tokens,
        output_tokens=corner.output_tokens,
        requests=count.requests,
        batch=value.batch,
        energy_j=energy_j,
        # A bound on the wrong side of the estimate would only say that the surface is not monotone here.
        low_j=None if low_j is None else min(low_j, energy_j),
        high_j=None if high_j is None else max(high_j, energy_j),
        duration_s=charged * value.duration_s,
        how=value.how,
    )


def charged_requests(requests: int, batch: int, rare: str) -> int:
    """Requests that are paid for: those of the bin, or under ``whole`` those of the batches they fill or begin."""
    return math.ceil(requests / batch) * batch if rare == WHOLE else requests


def _low(count: BinCount, surface: Surface, errors: SurfaceErrors) -> float | None:
    """All requests at the bin's floor, in full batches; the floor of a first bin is 1 token."""
    floor = surface.at(*_floor(count.bin))
    if floor is None:
        return None
    error = errors.of(floor)
    if error is None:
        return None
    return count.requests * floor.energy_j * max(0.0, 1 - floor.doubt) / (1 + error)


def _floor(corner: Bin) -> tuple[int, int]:
    return max(1, corner.input_floor), max(1, corner.output_floor)


def _high(count: BinCount, ceiling: SurfaceValue, errors: SurfaceErrors) -> float | None:
    error = errors.of(ceiling)
    if error is None:
        return None
    charged = charged_requests(count.requests, ceiling.batch, WHOLE)
    return charged * ceiling.energy_j * (1 + ceiling.doubt) * (1 + error)
