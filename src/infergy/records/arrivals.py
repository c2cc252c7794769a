"""When the requests of a load arrive: serving mode as an axis. Standard library only.

offline     all at once (no `Arrivals`)
poisson     gaps drawn from an exponential law
gamma       gaps drawn from a gamma law, shape = burstiness, scale = 1 / (rate × burstiness): mean 1 / rate, coefficient
            of variation 1 / √burstiness; as `vllm bench serve --request-rate --burstiness` draws them
trace       the times of a log, as they were or scaled to a rate
replay      consecutive requests of a log, each with its own lengths, all at once
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from infergy.errors import UsageError

OFFLINE = "offline"
POISSON, GAMMA, TRACE, REPLAY = "poisson", "gamma", "trace", "replay"

NUMBER = r"(\d*\.?\d+)"
ARRIVALS_LABEL = re.compile(
    rf"poisson{NUMBER}|gamma{NUMBER}-b{NUMBER}|trace:(.+?)(?:@{NUMBER})?|replay:(.+?)(?:\+(\d+))?"
)
EXPECTED = (
    "expected offline, poisson4, gamma4-b0.5, trace:azure-conv-2023, trace:azure-conv-2023@4 or replay:azure-conv-2023"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """How requests arrive one after the other.

    Attributes:
        law: ``poisson``, ``gamma``, ``trace`` or ``replay``.
        rate_per_s: Requests a second, above 0; None for a trace at its own times, and for a replay.
        burstiness: Shape of the gamma law, above 0: below 1 more bursty than Poisson's, which is 1, above 1 more even.
        trace: Name of the trace; None for the other laws.
        digest: Hash of the trace's times, of a replay of its lengths, so that two logs of one name are two loads; None
            for the other laws, and until the log is read.
        first: Of a replay, how many requests of the log come before it.
    """

    law: str
    rate_per_s: float | None = None
    burstiness: float = 1.0
    trace: str | None = None
    digest: str | None = None
    first: int = 0

    def __post_init__(self) -> None:
        if self.law not in (POISSON, GAMMA, TRACE, REPLAY):
            raise UsageError.unknown("law of arrivals", self.law, (POISSON, GAMMA, TRACE, REPLAY))
        if (self.trace is None) == (self.law in (TRACE, REPLAY)):
            raise UsageError(
                f"arrivals by {self.law} and trace {self.trace}: a trace goes with the laws trace and replay only"
            )
        if self.first < 0 or (self.law != REPLAY and self.first):
            raise UsageError(f"{self.law} from request {self.first} on: only a replay begins there, at 0 or later")
        if self.law == REPLAY and self.rate_per_s is not None:
            raise UsageError("a replay has all its requests at once, and no rate; for one: trace:NAME@4")
        if self.rate_per_s is None and self.law not in (TRACE, REPLAY):
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
        if self.law == REPLAY:
            return f"{REPLAY}:{self.trace}{f'+{self.first}' if self.first else ''}"
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
        poisson, gamma, burstiness, trace, rate, replay, first = found.groups()
        if replay is not None:
            return cls(law=REPLAY, trace=replay, first=int(first or 0))
        if poisson is not None:
            return cls(law=POISSON, rate_per_s=float(poisson))
        if gamma is not None:
            return cls(law=GAMMA, rate_per_s=float(gamma), burstiness=float(burstiness))
        return cls(law=TRACE, trace=trace, rate_per_s=None if rate is None else float(rate))
