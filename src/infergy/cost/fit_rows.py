"""Rows as a fit sees them: their steps, run all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from infergy.catalog.gpus import Gpu
from infergy.cost.constants import Column
from infergy.cost.rates import Rates
from infergy.cost.step import StepSums, added_j, free_s, slowed_j, stretched_s
from infergy.cost.work import ServerWork


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitRow:
    """A measured batch or run.

    Attributes:
        work: The server; `gpu` its kind of GPU.
        server: Whether an API server served it.
        steps: One row an entry of steps: count, seconds of one, then the sums of `infergy.cost.step.StepSums`.
        calls: Times that requests were handed over; `idle_s` seconds with nothing to serve.
        idle_w: Watts of all GPUs, idle, with the model loaded.
        energy_j: Measured; `energy_sd` the standard deviation of its logarithm.
        seconds: Measured; None where arrivals set the time: then steps take the seconds that they were simulated to,
            since slower ones would be fewer.
        unit: Which GPUs measured it.
    """

    work: ServerWork
    gpu: Gpu
    server: bool
    steps: Column
    calls: int
    idle_s: float
    idle_w: float
    energy_j: float
    energy_sd: float
    seconds: float | None
    unit: str


class Entry(NamedTuple):
    """The steps at one place of several rows; where GPUs alike ran the same steps, their sums stand once.

    Attributes:
        steps: Of each row; 0 of rows that have fewer entries.
        given_s: Seconds of one of them, as they were simulated.
        sums: Of the entries that differ.
        of_row: Which of these each row has.
    """

    steps: Column
    given_s: Column
    sums: StepSums
    of_row: Any


def entries_of(rows: Sequence[FitRow]) -> list[Entry]:
    """The steps of rows, in order."""
    table = np.zeros((max(len(row.steps) for row in rows), len(rows), 9))
    for column, row in enumerate(rows):
        table[: len(row.steps), column] = row.steps
    found = []
    for entry in table:
        sums, of_row = np.unique(entry[:, 2:], axis=0, return_inverse=True)
        found.append(Entry(entry[:, 0], entry[:, 1], StepSums(*sums.T), of_row.reshape(-1)))
    return found


def run_rows(
    rows: Sequence[FitRow], rates: Rates, call_s: Any, entries: Sequence[Entry] | None = None
) -> tuple[Column, Column]:
    """Seconds and energy of rows of one server, of shape (k, rows) where the rates are k variants.

    Steps are taken in order, all rows at once, so that the power limiter's average is that of each row. `entries` are
    `entries_of` the rows, where they are known.
    """
    entries = entries_of(rows) if entries is None else entries
    power = rates.power
    is_given = np.array([row.seconds is None for row in rows])
    measured_w = [row.energy_j / row.seconds if row.seconds else row.idle_w for row in rows]
    mean_w: Any = np.minimum(np.array(measured_w), power.limit_w)
    seconds: Any = 0.0
    energy: Any = 0.0
    for count, given_s, sums, of_row in entries:
        live = count > 0
        one_s = np.where(live, free_s(rates, sums)[..., of_row], 1.0)
        added = np.where(live, added_j(rates, sums)[..., of_row], 0.0)
        free = one_s * np.maximum(count, 1.0)
        took = stretched_s(power, added * count, free, mean_w, np.exp, np.maximum)
        took = np.where(is_given & live, given_s * count, took)
        worked = slowed_j(power, added * count, np.minimum(free, took), np.where(live, took, 1.0))
        took = np.where(live, took, 0.0)
        joules = worked + power.base_w * took
        watts = np.where(live, joules / np.where(live, took, 1.0), mean_w)
        mean_w = watts + (mean_w - watts) * np.exp(-took / power.limiter_s)
        seconds, energy = seconds + took, energy + joules
    calls = np.array([row.calls for row in rows]) * call_s
    idle = np.array([row.idle_s * row.idle_w for row in rows])
    gaps = np.array([row.idle_s for row in rows])
    return np.atleast_1d(seconds + calls + gaps), np.atleast_1d(energy + calls * power.base_w + idle)
