"""What a run's energy and seconds become where the server's rates change a little: for derivatives by the constants.

A run that is handed over all at once makes the same steps, only longer ones. Under arrivals its length is given: longer
steps leave less idle time, and once there is none, more requests are decoded together, in fewer steps. So slower steps
cost base power when all requests are there at once, and save the reading of weights when they come one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infergy.cost.fit import Column
from infergy.cost.rates import Rates
from infergy.cost.step import Steps, StepSums, added_j, compress, free_s, slowed_j

STRETCHED = 1.05
"""Logged over free seconds from which a step counts as held by the power limit."""
SHRUNK = 0.99
"""Decode steps over those of the run, for the derivative of their seconds by their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSums:
    """A run as its derivatives need it: its entries joined to few.

    Attributes:
        count: Steps of each entry, which cost by `sums`.
        stretched: Whether the power limit holds them.
        busy_s: Seconds of all steps, at the rates that the run was served at.
        idle_j: Joules while nothing was served; `idle_share` of the time was.
        open_share: Share of the time in which requests still arrive and none waits.
    """

    count: Column
    sums: StepSums
    stretched: NDArray[np.bool_]
    busy_s: float
    idle_j: float
    idle_share: float
    open_share: float

    @classmethod
    def of(cls, steps: Steps, rates: Rates, idle_j: float, open_share: float) -> RunSums:
        """The sums of a run that was served at `rates`."""
        count, step_s, *columns = compress(steps).T
        sums = StepSums(*columns)
        stretched = step_s > free_s(rates, sums) * STRETCHED
        busy_s = float(count @ _steps(rates, sums, stretched)[0])
        idle_s = idle_j / rates.power.idle_w if rates.power.idle_w else 0.0
        return cls(
            count=count,
            sums=sums,
            stretched=stretched,
            busy_s=busy_s,
            idle_j=idle_j,
            idle_share=idle_s / (idle_s + busy_s),
            open_share=open_share,
        )

    def log_totals(self, rates: Rates) -> Column:
        """Logarithms of the energy at other rates, and of the seconds of the same steps."""
        seconds, joules = _steps(rates, self.sums, self.stretched)
        busy_s = float(self.count @ seconds)
        energy_j = float(self.count @ joules) + self.idle_j
        # Busy periods that begin at random leave exp(-a) of the time idle: longer ones by da take a exp(-a) da of it.
        share = self.idle_share
        from_idle = -share * math.log(share) / (1.0 - share) if 0.0 < share < 1.0 else 0.0
        longer_s = self.open_share * (busy_s - self.busy_s)
        energy_j -= rates.power.idle_w * from_idle * longer_s
        decoding = self.sums.prefills == 0
        if longer_s and decoding.any():
            energy_j += self._fewer(rates, decoding, (1.0 - from_idle) * longer_s)
        logs: Column = np.log(np.array([energy_j, busy_s]))
        return logs

    def _fewer(self, rates: Rates, decoding: NDArray[np.bool_], less_s: float) -> float:
        """Joules more where so many fewer decode steps serve the same tokens that they take `less_s` less."""
        sums = StepSums(*(column[decoding] for column in self.sums))
        count, stretched = self.count[decoding], self.stretched[decoding]

        def totals(share: float) -> tuple[float, float]:
            # What is decoded in fewer steps is decoded by larger batches.
            larger = sums._replace(
                decodes=sums.decodes / share, context=sums.context / share, sampled=sums.sampled / share
            )
            seconds, joules = _steps(rates, larger, stretched)
            return float(share * count @ seconds), float(share * count @ joules)

        seconds, joules = totals(1.0)
        fewer_s, fewer_j = totals(SHRUNK)
        return (joules - fewer_j) / (fewer_s - seconds) * less_s if fewer_s < seconds else 0.0


def _steps(rates: Rates, sums: StepSums, stretched: NDArray[np.bool_]) -> tuple[Column, Column]:
    """Seconds and joules of a step: at the power limit where the run was held by it."""
    free, added, power = free_s(rates, sums), added_j(rates, sums), rates.power
    over = added / ((power.limit_w - power.base_w) * free)
    limited = free * np.maximum(over, 1.0) ** (1.0 / (1.0 + power.slowing))
    seconds: Column = np.where(stretched, limited, free)
    joules: Column = slowed_j(power, added, free, seconds) + power.base_w * seconds
    return seconds, joules
