"""How a server was used in a run: power, batches, queue, cache, and what of it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infergy.cost.step import sums_of
from infergy.cost.table import box_of
from infergy.estimates.servers import OpenServer
from infergy.serving.config import EngineConfig
from infergy.serving.run import Run, Runs, steps_of, total
from infergy.workload.requests import Window

DAY_S = 86_400
SLACK = 1e-6
"""Of the measured range: sums are means over entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How the server was used.

    Attributes:
        power_w: Mean power of all GPUs, idle ones included.
        daily_j: Energy of a day at this load. None where the load has no length: all at once, at one instant, of a
            server that cannot keep up, or where the answers take longer than the arrivals.
        busy_share: Share of time in which a replica computes, mean over replicas.
        mean_batch: Sequences that decode in a step, mean over decode steps' time.
        peak_waiting: Most requests in the queue; `waiting_at_last_arrival` when the last one came. None where latencies
            are not known.
        peak_kv_share: Largest share of the KV cache in use.
        hit_tokens: Prompt tokens found in the prefix cache.
        mfu: FLOPs over the dense peak and time, idle included.
        roofline_share: Least time of the steps by bytes or FLOPs, over their time.
    """

    power_w: float
    daily_j: float | None
    busy_share: float
    mean_batch: float
    peak_waiting: int | None
    waiting_at_last_arrival: int | None
    peak_kv_share: float
    hit_tokens: int
    mfu: float
    roofline_share: float


def measured_share(runs: Sequence[tuple[Run, Window]], server: OpenServer, energy_j: float) -> float:
    """Share of the energy in steps inside the range that was measured of this server."""
    if server.measured is None:
        return 0.0
    inside = 0.0
    for run, window in runs:
        box = box_of(run.steps)
        low, high = np.array(server.measured.low), np.array(server.measured.high)
        within = ((box >= low * (1 - SLACK)) & (box <= high * (1 + SLACK))).all(axis=1)
        inside += window.weight * float((run.step_energy_j * run.steps.count)[within].sum())
    return inside / energy_j


def load_of(runs: Runs, server: OpenServer, energy_j: float, *, span_s: float | None, knows_queue: bool) -> Load:
    """How the server was used.

    Args:
        runs: Of all windows.
        server: Which serves.
        energy_j: Of the runs.
        span_s: Length of a load that lasts: from the first arrival to the last; None if it does not.
        knows_queue: Whether the queues of the runs are those of the trace.
    """
    cost, steps = server.cost, steps_of(runs)
    duration_s, busy_s = total(runs, "duration_s"), total(runs, "busy_s")
    all_s = duration_s * runs[0][0].replicas
    decode_s = steps.duration_s * (steps.decodes > 0)
    # All but the null block; static batches log none.
    blocks = server.config.limits.num_gpu_blocks - 1 if isinstance(server.config, EngineConfig) else 1
    counts = [run.counts for run, _ in runs]
    return Load(
        power_w=energy_j / duration_s,
        daily_j=energy_j / duration_s * DAY_S if span_s and duration_s <= 2 * span_s else None,
        busy_share=busy_s / all_s,
        mean_batch=float(decode_s @ steps.decodes) / (float(decode_s.sum()) or 1.0),
        peak_waiting=max(count.peak_waiting for count in counts) if knows_queue else None,
        waiting_at_last_arrival=max(count.waiting_at_last_arrival for count in counts) if knows_queue else None,
        peak_kv_share=max(count.peak_kv_blocks for count in counts) / blocks,
        hit_tokens=round(total(runs, "counts.hit_tokens")),
        mfu=float(steps.count @ cost.work_of(sums_of(steps))[0]) / (cost.peak_flops * all_s),
        roofline_share=float(steps.count @ cost.floor_s(steps)) / busy_s,
    )
