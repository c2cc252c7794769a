"""When the requests of a load arrive: serving mode as an axis. Standard library only.

offline     all at once (no `Arrivals`)
poisson     gaps drawn from an exponential law
gamma       gaps drawn from a gamma law, shape = burstiness, scale = 1 / (rate × burstiness): mean 1 / rate, coefficient
            of variation 1 / √burstiness; as `vllm bench serve --request-rate --burstiness` draws them
trace       the times of a log, as they were or scaled to a rate
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from infergy.errors import UsageError

OFFLINE = "offline"
POISSON, GAMMA, TRACE = "poisson", "gamma", "trace"

NUMBER = r"(\d*\.?\d+)"
ARRIVALS_LABEL = re.compile(rf"poisson{NUMBER}|gamma{NUMBER}-b{NUMBER}|trace:(.+?)(?:@{NUMBER})?")
EXPECTED = "expected offline, poisson4, gamma4-b0.5, trace:azure-conv-2023 or trace:azure-conv-2023@4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """How requests arrive one after the other.

    Attributes:
        law: ``poisson``, ``gamma`` or ``trace``.
        rate_per_s: Requests a second, above 0; None for a trace at its own times.
        burstiness: Shape of the gamma law, above 0: below 1 more bursty than Poisson's, which is 1, above 1 more even.
        trace: Name of the trace; None for the other laws.
        digest: Hash of the trace's times, so that two logs of one name are two loads; None for the other laws, and
            until the log is read.
    """

    law: str
    rate_per_s: float | None = None
    burstiness: float = 1.0
    trace: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if self.law not in (POISSON, GAMMA, TRACE):
            raise UsageError.unknown("law of arrivals", self.law, (POISSON, GAMMA, TRACE))
        if (self.trace is None) == (self.law == TRACE):
            raise UsageError(f"arrivals by {self.law} and trace {self.trace}: a trace goes with the law trace only")
        if self.rate_per_s is None and self.law != TRACE:
            raise UsageError(f"{self.law} arrivals need a rate in requests a second: {self.law}4 for four")
        if self.rate_per_s is not None and not 0 < self.rate_per_s < math.inf:
            raise UsageError(
                f"a rate of {self.rate_per_s:g} requests a second: give more than 0, or offline for all at once"
            )
        if not 0 < self.burstiness < math.inf or (self.burstiness != 1 and self.law != GAMMA):
            raise UsageError(
                f"burstiness {self.burstiness:g} of {self.law} arrivals: give more than 0, and gamma for any but 1"
            )
        if self.law == GAMMA and self.burstiness == 1:
            # One law has one id: gamma of shape 1 is Poisson's.
            object.__setattr__(self, "law", POISSON)

    @property
    def label(self) -> str:
        """As `parse_label` reads it."""
        rate = "" if self.rate_per_s is None else f"{self.rate_per_s:g}"
        if self.law == TRACE:
            return f"{TRACE}:{self.trace}{rate and f'@{rate}'}"
        return f"{self.law}{rate}" + ("" if self.law == POISSON else f"-b{self.burstiness:g}")

    @classmethod
    def parse_label(cls, label: str) -> Arrivals | None:
        """What a `label` stands for; None for ``offline``.

        Raises:
            UsageError: It means nothing, or a rate or burstiness is not above 0.
        """
        if label == OFFLINE:
            return None
        found = ARRIVALS_LABEL.fullmatch(label)
        if found is None:
            raise UsageError(f"arrivals {label!r} mean nothing; {EXPECTED}. Rates and burstiness are above 0")
        poisson, gamma, burstiness, trace, rate = found.groups()
        if poisson is not None:
            return cls(law=POISSON, rate_per_s=float(poisson))
        if gamma is not None:
            return cls(law=GAMMA, rate_per_s=float(gamma), burstiness=float(burstiness))
        return cls(law=TRACE, trace=trace, rate_per_s=None if rate is None else float(rate))
