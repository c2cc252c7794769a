"""The draft model of speculative decoding, and what a round of it costs. Standard library only.

A round is `look_ahead` decode steps of the draft, then one step of the model over `look_ahead` + 1 tokens a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infergy.hardware.shape import ModelShape
from infergy.records import EngineSetup
from infergy.records.cell import tokens_per_round

LIKELY_ACCEPTANCE = 0.7
"""What is forecast with where real weights will tell: the middle of the 0.5 to 0.9 that draft models reach
(Leviathan et al. 2023, arXiv 2211.17192, section 4.2). No measured row rests on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a forecast must know of a draft model.

    Attributes:
        shape: Its shape.
        look_ahead: Tokens that it drafts a round.
        acceptance: Probability that each is accepted, given those before it.
    """

    shape: ModelShape
    look_ahead: int
    acceptance: float

    @property
    def tokens_per_round(self) -> float:
        """Tokens that a round is expected to yield."""
        return tokens_per_round(self.acceptance, self.look_ahead)


def find_draft(setup: EngineSetup, models: Mapping[str, Mapping[str, Any]]) -> Draft | None:
    """The draft model of a set-up, its configuration among `models`; None if it has none.

    Raises:
        UsageError: Its architecture is not known.
        KeyError: `models` lacks it.
    """
    one = setup.speculation
    if one is None:
        return None
    return Draft(
        shape=ModelShape.from_config(models[one.draft], name=one.draft),
        look_ahead=one.look_ahead,
        acceptance=LIKELY_ACCEPTANCE if one.acceptance is None else one.acceptance,
    )
