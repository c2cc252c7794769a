"""A run over time: mean power, batch and queue in equal parts of its duration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infergy.serving.run import Floats, Run

BINS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Means over equal parts of a run, in order; `power_w` times `bin_s`, summed, is the energy of the run.

    Attributes:
        bin_s: Seconds of a part.
        start_s: Where each begins, in seconds after the first arrival.
        power_w: Of all GPUs, idle ones included.
        running: Sequences in a step, summed over replicas; 0 while a replica is idle.
        waiting: Requests in the queues of all replicas.
    """

    bin_s: float
    start_s: tuple[float, ...]
    power_w: tuple[float, ...]
    running: tuple[float, ...]
    waiting: tuple[float, ...]


def timeline_of(run: Run, bins: int = BINS) -> Timeline:
    """Mean power, batch and queue of a run in `bins` parts; none of a run without a step."""
    steps, bins = run.steps, bins if len(run.steps) else 0
    edges = np.linspace(0.0, run.duration_s, bins + 1)
    begin_s = steps.start_s - run.start_s
    end_s = begin_s + steps.duration_s
    busy_w = _means(begin_s, end_s, run.step_energy_j / steps.step_s - run.idle_w, edges)
    queued = _means(begin_s, np.append(begin_s[1:], run.duration_s), steps.waiting, edges)
    running = _means(begin_s, end_s, steps.decodes + steps.prefills, edges)
    return Timeline(
        bin_s=run.duration_s / max(bins, 1),
        start_s=tuple(edges[:-1].tolist()),
        power_w=tuple((busy_w + run.replicas * run.idle_w).tolist()),
        running=tuple(running.tolist()),
        waiting=tuple(queued.tolist()),
    )


def _means(begin_s: Floats, end_s: Floats, rate: Floats, edges: Floats) -> Floats:
    """Mean between edges of a sum of rates, each from its begin to its end."""
    if edges.size < 2:
        return np.zeros(0)
    times = np.concatenate((begin_s, end_s))
    order = np.argsort(times, kind="stable")
    times, level = times[order], np.cumsum(np.concatenate((rate, -rate))[order])
    sums = np.append(0.0, np.cumsum(level[:-1] * np.diff(times)))
    means: Floats = np.diff(np.interp(edges, times, sums)) / np.diff(edges)
    return means
