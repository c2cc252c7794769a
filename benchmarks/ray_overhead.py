"""What Ray adds to a sweep: to its start on a running cluster, and to a cell; beside the plain sweep in the same run.

A cluster of one node is started on this machine, then both sweeps run in turn on the simulated GPU, whose cells take
hardly any time: what is left between two rows is what the sweep itself takes. It is told as a share of what a cell of
the plan takes on a real GPU by its forecast. Expected: under 2 s and under 1 %; else the exit is 1. Needs no GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from infergy.measure.cluster import sweep_on_ray
from infergy.measure.forecast import cell_s
from infergy.measure.grid import make_plan, parse_grid
from infergy.measure.sweep import SweepEvent, sweep

MOST_START_S, MOST_SHARE = 2.0, 0.01
GRID = {
    "name": "overhead",
    "gpu": "h200",
    "model": "llama-3.1-8b",
    "engines": [{"engine": "vllm"}],
    "cells": [{"input_tokens": [64, 128, 256, 512], "output_tokens": [8, 16], "batch": [1, 4]}],
}


def times(events: Iterator[SweepEvent], start_s: float) -> tuple[float, float]:
    """Seconds to the first cell, and from then on for each row."""
    first_s, rows, last_s = 0.0, 0, start_s
    for event in events:
        last_s = time.perf_counter()
        first_s = first_s or (last_s if event.kind == "begin" else 0.0)
        if event.row is not None:
            rows, end_s = rows + 1, last_s
    return first_s - start_s, (end_s - first_s) / rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    from ray.cluster_utils import Cluster

    plan = make_plan(parse_grid(GRID, "benchmark"))
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False},
    )
    seen: dict[str, list[tuple[float, float]]] = {"plain": [], "ray": []}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for run in range(runs):
                start_s = time.perf_counter()
                seen["plain"].append(times(sweep(plan, Path(folder) / f"plain-{run}.jsonl", simulate=True), start_s))
                start_s = time.perf_counter()
                on_ray = sweep_on_ray(plan, Path(folder) / f"ray-{run}.jsonl", cluster.address, simulate=True)
                seen["ray"].append(times(on_ray, start_s))
    finally:
        cluster.shutdown()
    start = {name: statistics.median(one[0] for one in found) for name, found in seen.items()}
    cell = {name: statistics.median(one[1] for one in found) for name, found in seen.items()}
    real_s = statistics.mean(cell_s(planned, plan.options) for planned in plan.cells)
    added_s, share = start["ray"] - start["plain"], (cell["ray"] - cell["plain"]) / real_s
    print(f"{'':22} {'plain':>9} {'on Ray':>9} {'added':>9}   (medians of {runs} runs)")
    print(f"{'start to first cell':22} {start['plain']:7.2f} s {start['ray']:7.2f} s {added_s:7.2f} s")
    print(
        f"{'a simulated cell':22} {cell['plain'] * 1e3:6.1f} ms {cell['ray'] * 1e3:6.1f} ms "
        f"{(cell['ray'] - cell['plain']) * 1e3:6.1f} ms   {share:.2%} of a real cell ({real_s:.1f} s by forecast)"
    )
    return int(added_s > MOST_START_S or share > MOST_SHARE)


if __name__ == "__main__":
    sys.exit(main())
