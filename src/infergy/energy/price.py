"""A histogram priced: joules and seconds of each bin, and between which bounds they lie.

    E_total = sum over bins of  N / B  ×  E_batch                    (arXiv 2504.17674, section 2)

with E_batch / B the joules of one request at the bin's lengths in the batch in which they are served.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from infergy.energy.options import AT_CORNERS, WHOLE
from infergy.energy.surface import SurfaceErrors, SurfaceValue
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
        how: How the value was obtained: ``measured``, ``modelled``, ``interpolated``, ``extrapolated``, or ``none``.
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


class ValueSource(Protocol):
    """Joules and seconds of one request at any lengths: `infergy.energy.values.Values`."""

    def prepare(self, lengths: Iterable[tuple[float, float]]) -> None:
        """Tell that these (input, output) will be asked."""

    def at(self, input_tokens: float, output_tokens: float) -> SurfaceValue | None:
        """The value there; None where there is none."""


def price_bins(
    counts: Sequence[BinCount], values: ValueSource, errors: SurfaceErrors, *, method: str, rare: str
) -> tuple[BinEnergy, ...]:
    """Price each bin by itself, so that disjoint traces add up under ``ceiling`` and ``fractional``."""
    corners = [(count.bin.input_tokens, count.bin.output_tokens) for count in counts]
    values.prepare([*corners, *(_floor(count.bin) for count in counts), *(lengths_of(c, method) for c in counts)])
    return tuple(_price(count, values, errors, method=method, rare=rare) for count in counts)


def lengths_of(count: BinCount, method: str) -> tuple[float, float]:
    """The input and output tokens at which the requests of a bin are priced."""
    return (count.bin.input_tokens, count.bin.output_tokens) if method in AT_CORNERS else mean_lengths(count)


def mean_lengths(count: BinCount) -> tuple[float, float]:
    """Mean input and output of the requests in a bin, at least 1 token each and never past its corner."""
    return (
        min(max(1.0, count.input_tokens / count.requests), count.bin.input_tokens),
        min(max(1.0, count.output_tokens / count.requests), count.bin.output_tokens),
    )


def _price(count: BinCount, values: ValueSource, errors: SurfaceErrors, *, method: str, rare: str) -> BinEnergy:
    corner = count.bin
    ceiling = values.at(corner.input_tokens, corner.output_tokens)
    value = values.at(*lengths_of(count, method))
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
    low_j, high_j = _low(count, values, errors), _high(count, ceiling, errors)
    return BinEnergy(
        input_tokens=corner.input_tokens,
        output_tokens=corner.output_tokens,
        requests=count.requests,
        batch=value.batch,
        energy_j=energy_j,
        # A bound on the wrong side of the estimate would only say that the values are not monotone here.
        low_j=None if low_j is None else min(low_j, energy_j),
        high_j=None if high_j is None else max(high_j, energy_j),
        duration_s=charged * value.duration_s,
        how=value.how,
    )


def charged_requests(requests: int, batch: int, rare: str) -> int:
    """Requests that are paid for: those of the bin, or under ``whole`` those of the batches they fill or begin."""
    return math.ceil(requests / batch) * batch if rare == WHOLE else requests


def _low(count: BinCount, values: ValueSource, errors: SurfaceErrors) -> float | None:
    """All requests at the bin's floor, in full batches; the floor of a first bin is 1 token."""
    floor = values.at(*_floor(count.bin))
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
