"""Speculative decoding: what is loaded beside the model, and what it drafted. Standard library only.

A draft model proposes `look_ahead` tokens one after the other, the model looks at all of them in one step, keeps them
up to the first it rejects, and adds one of its own. If each is accepted with probability a, whatever came before, a
round yields (1 − a^(k+1)) / (1 − a) tokens in the mean (Leviathan et al. 2023, arXiv 2211.17192, equation 1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from infergy.errors import UsageError

MEASURED_ACCEPTANCE = "measured"
"""In a label, where the acceptance is not set: real weights tell it."""

LABEL = re.compile(r"spec(\d+):([^:]+)(?::([^:]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """A draft model and how far it looks ahead.

    Attributes:
        draft: Name of the draft's shape in the catalogue or in the plan's `models`.
        look_ahead: Tokens drafted a round, at least 1.
        acceptance: Probability that a drafted token is accepted if all before it in its round were, 0 to 1; it is set
            with random weights, and None with real ones, which tell it.
        weights: Folder or hub name of the draft's real weights; None where they are random, by the model's law.
    """

    draft: str
    look_ahead: int
    acceptance: float | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if not self.draft or ":" in self.draft:
            raise UsageError.bad_value("draft", self.draft, "the name of a model, without a colon: infergy list models")
        if self.look_ahead < 1:
            raise UsageError.bad_value("look_ahead", self.look_ahead, "at least 1")
        if self.acceptance is not None and not 0 <= self.acceptance <= 1:
            raise UsageError.bad_value("acceptance", self.acceptance, "0 to 1")

    @property
    def label(self) -> str:
        """As it stands in a set-up's label: ``spec4:llama-3.2-1b:0.8``, with real weights ``…:measured``."""
        acceptance = MEASURED_ACCEPTANCE if self.acceptance is None else f"{self.acceptance:g}"
        return f"spec{self.look_ahead}:{self.draft}:{acceptance}"

    @classmethod
    def parse_label(cls, label: str) -> Speculation:
        """What a `label` stands for.

        Raises:
            UsageError: It means nothing.
        """
        found = LABEL.fullmatch(label)
        try:
            if found is None:
                raise ValueError
            look_ahead, draft, acceptance = found.groups()
            is_set = acceptance not in (None, MEASURED_ACCEPTANCE)
            return cls(draft=draft, look_ahead=int(look_ahead), acceptance=float(acceptance) if is_set else None)
        except ValueError:
            raise UsageError.bad_value(
                "speculation", label, "spec4:llama-3.2-1b:0.8, or with real weights spec4:llama-3.2-1b:measured"
            ) from None

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafts:
    """What was drafted in a batch, by the engine's own count.

    Attributes:
        rounds: Times that a request's drafted tokens were looked at.
        drafted_tokens: Tokens drafted in them.
        accepted_tokens: Of these, accepted; some lie past the last token asked for, and were not returned.
    """

    rounds: int
    drafted_tokens: int
    accepted_tokens: int

    @property
    def accepted_share(self) -> float | None:
        """Accepted over drafted tokens; None where nothing was drafted."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None

    @property
    def tokens_per_round(self) -> float | None:
        """Tokens that a round yields, the model's own one included; None without rounds."""
        return 1 + self.accepted_tokens / self.rounds if self.rounds else None


def sum_drafts(counts: Iterable[Drafts | None]) -> Drafts | None:
    """All of them together; None where one batch did not tell, or there are none."""
    every = list(counts)
    known = [one for one in every if one is not None]
    if not known or len(known) < len(every):
        return None
    return Drafts(
        rounds=sum(one.rounds for one in known),
        drafted_tokens=sum(one.drafted_tokens for one in known),
        accepted_tokens=sum(one.accepted_tokens for one in known),
    )


def tokens_per_round(acceptance: float, look_ahead: int) -> float:
    """Expected tokens of a round (Leviathan et al. 2023, equation 1): 1 + a + a² + … + a^look_ahead."""
    return sum(acceptance**place for place in range(look_ahead + 1))
