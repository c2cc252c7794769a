"""Which cells to measure next: those that cut the uncertainty of a trace's joules most for each second of GPU time.

The physical model (`infergy.energy.posterior`) tells how far the sum over a trace's bins may be off, and how much less
a further cell would leave: measuring narrows variances whatever it finds, as far as the model is linear. Cells are
taken one after the other, first the one that takes off most variance a second, given those before it (greedy; A.
Krause, A. Singh, C. Guestrin, JMLR 9, 2008, study how near that comes to the best set for such a process).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infergy.energy.answer import TraceFacts
from infergy.energy.posterior import Posterior

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[np.float64]]

NEXT_SCHEMA = "infergy.next/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A bin of the trace, as a cell that could be measured.

    Attributes:
        requests: Requests of the bin.
        cost_s: Forecast seconds of measuring it.
    """

    input_tokens: int
    output_tokens: int
    batch: int
    requests: int
    cost_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One engine set-up whose joules are asked for.

    Attributes:
        engine: Its label.
        load_s: Forecast seconds until its engine is loaded.
    """

    engine: str
    posterior: Posterior
    candidates: tuple[Candidate, ...]
    load_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NextCell:
    """A cell to measure.

    Attributes:
        cost_s: Forecast seconds, those of loading its engine in it if it is the engine's first.
        half_width: Half the width of the 90 % interval once it and all before it are measured, as a fraction of the
            trace's joules under its engine.
    """

    engine: str
    input_tokens: int
    output_tokens: int
    batch: int
    requests: int
    cost_s: float
    half_width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOutlook:
    """What is known of one engine's joules for the trace.

    Attributes:
        measured: Cells that are measured already.
        energy_j: Joules of the trace, as the model has them now.
        half_width: Half the width of the 90 % interval now, as a fraction; `half_width_after` with the chosen cells.
    """

    engine: str
    measured: int
    energy_j: float
    half_width: float
    half_width_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NextCells:
    """What to measure next.

    Attributes:
        cells: The most useful first.
        cost_s: Forecast seconds of all of them.
        stopped: Why there are no more, in words.
        unserved_requests: Requests whose bin no engine could measure: too long, or too large for the memory.
    """

    trace: TraceFacts
    model: str
    gpu: str
    budget_s: float
    target: float
    engines: tuple[EngineOutlook, ...]
    cells: tuple[NextCell, ...]
    cost_s: float
    stopped: str
    unserved_requests: int
    schema: str = NEXT_SCHEMA


class _State:
    """What is uncertain about one subject, as cells are added to it."""

    def __init__(self, subject: Subject) -> None:
        import numpy as np

        self.subject = subject
        cells = [[one.input_tokens, one.output_tokens, one.batch] for one in subject.candidates]
        places = np.array(cells, dtype=float)
        energy_j = subject.posterior.at(places).energy_j * np.array([one.requests for one in subject.candidates])
        self.energy_j = float(energy_j.sum())
        self._covariance = subject.posterior.covariance(places)
        self._noise = subject.posterior.noise(len(cells))
        # Joules are asked for, seconds only help to tell them.
        self._weights = np.concatenate([energy_j / self.energy_j, np.zeros(len(cells))])
        self.left = list(range(len(cells)))
        self.is_loaded = False

    @property
    def half_width(self) -> float:
        """Half the width of the 90 % interval, as a fraction."""
        variance = float(self._weights @ self._covariance @ self._weights)
        return math.expm1(self.subject.posterior.half_width * math.sqrt(max(0.0, variance)))

    def cost_s(self, place: int) -> float:
        """Seconds of measuring a cell next."""
        return self.subject.candidates[place].cost_s + (0.0 if self.is_loaded else self.subject.load_s)

    def gain(self, place: int) -> float:
        """By how much measuring a cell would lower the variance of the sum."""
        import numpy as np

        pair, inverse = self._pair(place)
        reach = self._weights @ self._covariance[:, pair]
        return float(np.asarray(reach @ inverse @ reach))

    def measure(self, place: int) -> None:
        """Take a cell for measured."""
        pair, inverse = self._pair(place)
        reach = self._covariance[:, pair]
        self._covariance = self._covariance - reach @ inverse @ reach.T
        self.left.remove(place)
        self.is_loaded = True

    def _pair(self, place: int) -> tuple[list[int], Column]:
        """A cell's joules and seconds, and the inverse of what measuring them would show to vary."""
        import numpy as np

        pair = [place, place + len(self.subject.candidates)]
        return pair, np.asarray(np.linalg.inv(self._covariance[np.ix_(pair, pair)] + np.diag(self._noise[pair])))


def choose_next(
    trace: TraceFacts,
    subjects: Sequence[Subject],
    *,
    model: str,
    gpu: str,
    budget_s: float,
    target: float,
    unserved_requests: int = 0,
) -> NextCells:
    """The cells to measure next.

    Args:
        trace: What is asked.
        subjects: Engine set-ups, at least one; of several, the sum of their variances is cut, which is the variance of
            the logarithm of their ratio.
        model: For the answer.
        gpu: For the answer.
        budget_s: Seconds of GPU time, loading included.
        target: No further cell of an engine once half the width of its interval is within this fraction.
        unserved_requests: For the answer.
    """
    states = [_State(one) for one in subjects]
    before = [one.half_width for one in states]
    chosen: list[NextCell] = []
    spent_s = 0.0
    while True:
        open_states = [one for one in states if one.half_width > target and one.left]
        if not open_states:
            reached = all(one.half_width <= target for one in states)
            stopped = f"every interval is within ± {target:.2%}" if reached else "no bin is left to measure"
            break
        options = [(one, place) for one in open_states for place in one.left]
        affordable = [(one, place) for one, place in options if spent_s + one.cost_s(place) <= budget_s]
        if not affordable:
            stopped = "the budget takes no further cell"
            break
        state, place = max(affordable, key=lambda option: option[0].gain(option[1]) / option[0].cost_s(option[1]))
        cost_s, candidate = state.cost_s(place), state.subject.candidates[place]
        state.measure(place)
        spent_s += cost_s
        chosen.append(
            NextCell(
                engine=state.subject.engine,
                input_tokens=candidate.input_tokens,
                output_tokens=candidate.output_tokens,
                batch=candidate.batch,
                requests=candidate.requests,
                cost_s=cost_s,
                half_width=state.half_width,
            )
        )
    return NextCells(
        trace=trace,
        model=model,
        gpu=gpu,
        budget_s=budget_s,
        target=target,
        engines=tuple(
            EngineOutlook(
                engine=one.subject.engine,
                measured=len(one.subject.posterior.cells),
                energy_j=one.energy_j,
                half_width=now,
                half_width_after=one.half_width,
            )
            for one, now in zip(states, before, strict=True)
        ),
        cells=tuple(chosen),
        cost_s=spent_s,
        stopped=stopped,
        unserved_requests=unserved_requests,
    )
