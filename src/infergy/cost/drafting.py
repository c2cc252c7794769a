"""The cost of speculative decoding, as a factor on plain steps: a round over the tokens that it yields.

    decode step = (step of the model + look_ahead × step of the draft) / tokens of a round

A round yields (1 − a^(k+1)) / (1 − a) tokens (Leviathan et al. 2023, arXiv 2211.17192, equation 1). The model's step
over `look_ahead` + 1 tokens per request counts as one over a single token, which is right while it is bound by memory.
Steps with prompts take a step of each model. Forecasts use this; it was not compared with measured rows.
"""

from __future__ import annotations

import math

import numpy as np

from infergy.cost.constants import Column
from infergy.cost.model import StepCost
from infergy.cost.step import Pace, Steps, added_j, free_s, slowed_j, sums_of


class DraftedCost:
    """What steps of a server with a draft model cost: a `StepCost` of each model.

    Args:
        target: Of the model.
        draft: Of its draft, on the same GPUs.
        look_ahead: Tokens drafted in a round.
        tokens_per_round: Tokens that a round is expected to yield.
    """

    def __init__(self, target: StepCost, draft: StepCost, look_ahead: int, tokens_per_round: float) -> None:
        self.target, self.draft = target, draft
        self.look_ahead, self.tokens_per_round = look_ahead, tokens_per_round
        self.intake_s, self.intake_gap_s = target.intake_s, target.intake_gap_s
        self.call_s, self.idle_w, self.rates = target.call_s, target.idle_w, target.rates
        self.masked_attention = target.masked_attention

    def start(self) -> DraftedPace:
        """A clock for one replica that has been idle."""
        return DraftedPace(self)

    def step_energy_j(self, steps: Steps) -> Column:
        """Energy of one step of each entry, at its logged seconds."""
        sums, is_prefill = sums_of(steps), steps.prefills > 0
        added, free = (
            np.where(is_prefill, target + draft, (target + self.look_ahead * draft) / self.tokens_per_round)
            for target, draft in (
                (cost(self.target.rates, sums), cost(self.draft.rates, sums)) for cost in (added_j, free_s)
            )
        )
        power, seconds = self.rates.power, steps.step_s
        joules: Column = slowed_j(power, added, np.minimum(free, seconds), seconds) + power.base_w * seconds
        return joules


class DraftedPace:
    """The clock of one such server."""

    def __init__(self, cost: DraftedCost) -> None:
        self._target, self._draft = Pace(cost.target.rates), Pace(cost.draft.rates)
        self._look_ahead, self._tokens = cost.look_ahead, cost.tokens_per_round

    def step(
        self, decodes: int, context: float, prefill_tokens: int, prefill_pairs: float, prefills: int, sampled: int,
        padded: int,
    ) -> float:  # fmt: skip
        """Seconds of one step."""
        sums = (decodes, context, prefill_tokens, prefill_pairs, prefills, sampled, padded)
        target_s, draft_s = self._target.step(*sums), self._draft.step(*sums)
        return target_s + draft_s if prefills else (target_s + self._look_ahead * draft_s) / self._tokens

    def decode(
        self, decodes: int, context: float, padded: int, most: int, until_s: float = math.inf, ahead: int = 0
    ) -> tuple[int, float]:
        """How many decode steps are alike, and seconds of each, in the mean; see `infergy.cost.step.Pace.decode`."""
        count, target_s = self._target.decode(decodes, context, padded, most)
        count, draft_s = self._draft.decode(decodes, context, padded, count)
        seconds = (target_s + self._look_ahead * draft_s) / self._tokens
        if until_s < math.inf:
            count = max(1, min(count, math.ceil(until_s / seconds) + ahead))
        return count, seconds

    def idle(self, seconds: float) -> None:
        """Nothing to do for so long."""
        self._target.idle(seconds)
        self._draft.idle(seconds)
