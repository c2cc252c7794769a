"""Lengths of which only moments are published, as a law to draw from: a log-normal, truncated.

    P(n) ∝ Φ((ln(n + ½) − µ) / σ) − Φ((ln(n − ½) − µ) / σ)        n = 1 … longest

That is a log-normal rounded to whole tokens and cut at both ends. Cutting moves mean and standard deviation, so µ and σ
are those with which the moments after it are the published ones. That lengths of texts are log-normal is an assumption;
the moments and the longest are all that is published to hold it against.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise

from infergy.errors import UsageError

_CLOSE = 1e-9
_TOLERANCE = 1e-15


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthLaw:
    """A log-normal rounded to whole tokens and truncated to 1 … `longest`.

    Attributes:
        mu: Mean of the logarithm before it is cut.
        sigma: Standard deviation of the logarithm before it is cut.
        longest: Tokens; no length is above.
    """

    mu: float
    sigma: float
    longest: int

    def shares(self) -> list[float]:
        """The probability of each length, 1 to `longest`."""
        below = [_phi((log - self.mu) / self.sigma) for log in _logs_of_bounds(self.longest)]
        weights = [high - low for low, high in pairwise(below)]
        total = sum(weights)
        return [weight / total for weight in weights] if total > 0 else weights

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation, in tokens, after rounding and cutting; exact but for rounding errors."""
        shares = self.shares()
        mean = sum(n * share for n, share in enumerate(shares, start=1))
        return mean, math.sqrt(sum((n - mean) ** 2 * share for n, share in enumerate(shares, start=1)))

    def draw(self, count: int, seed: int | str) -> list[int]:
        """`count` lengths in random order, one from each of `count` equal shares of the probability.

        So drawn (a stratified sample), they have nearly the moments of the law, however few they are.
        """
        rng = random.Random(seed)
        upto = list(accumulate(self.shares()))
        heights = ((place + rng.random()) / count * upto[-1] for place in range(count))
        lengths = [min(self.longest, 1 + bisect_left(upto, height)) for height in heights]
        rng.shuffle(lengths)
        return lengths


@cache
def fit_lengths(mean: float, std: float, longest: int) -> LengthLaw:
    """The law whose mean and standard deviation, in tokens, are those given; none above `longest`.

    Raises:
        UsageError: No such law has these moments.
    """
    from scipy.optimize import least_squares

    if not (1 < mean < longest and std > 0):
        raise UsageError.bad_value("moments", [mean, std], f"those of lengths of 1 to {longest} tokens")
    # From the moments of the log-normal that is not cut.
    variance = math.log1p((std / mean) ** 2)
    start = (math.log(mean) - variance / 2, math.log(variance) / 2)
    solution = least_squares(_off, start, args=(mean, std, longest), ftol=_TOLERANCE, xtol=_TOLERANCE, gtol=_TOLERANCE)
    if math.hypot(*solution.fun) > _CLOSE:
        raise UsageError.bad_value("moments", [mean, std], f"those of a log-normal cut to 1 to {longest} tokens")
    return _law(solution.x, longest)


def _law(place: Sequence[float], longest: int) -> LengthLaw:
    # Further out a law is a point or flat to the last digit, and the exponential overflows.
    return LengthLaw(mu=float(place[0]), sigma=math.exp(min(20.0, max(-20.0, place[1]))), longest=longest)


def _off(place: Sequence[float], mean: float, std: float, longest: int) -> tuple[float, float]:
    """How far the moments at (µ, ln σ) are off, as fractions of those wanted."""
    found = _law(place, longest).moments()
    return found[0] / mean - 1, found[1] / std - 1


@cache
def _logs_of_bounds(longest: int) -> tuple[float, ...]:
    """Logarithms of ½, 1½, … `longest` + ½."""
    return tuple(math.log(n + 0.5) for n in range(longest + 1))


def _phi(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
