"""A BurstGPT-shaped CSV of 1.43 million rows to a histogram: infergy beside the pandas scripts a researcher writes.

Run: python benchmarks/trace_csv.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl

from infergy.workload import Bins, open_trace

ROWS = 1_430_000
RUNS = 5
INPUT, OUTPUT = "Request tokens", "Response tokens"


def make(path: Path) -> None:
    """Lengths of about BurstGPT's moments, log-normal; the columns of its first release."""
    draw = np.random.default_rng(0)
    inputs = np.clip(draw.lognormal(5.2, 0.9, ROWS), 1, 30_000).astype(int)
    outputs = np.where(draw.random(ROWS) < 0.02, 0, np.clip(draw.lognormal(2.5, 1.3, ROWS), 1, 4_000).astype(int))
    pl.DataFrame(
        {
            "Timestamp": np.sort(draw.integers(5, 5_270_000, ROWS)),
            "Model": np.where(draw.random(ROWS) < 0.8, "ChatGPT", "GPT-4"),
            INPUT: inputs,
            OUTPUT: outputs,
            "Total tokens": inputs + outputs,
            "Log Type": np.where(draw.random(ROWS) < 0.7, "Conversation log", "API log"),
        }
    ).write_csv(path)


def with_infergy(path: Path) -> int:
    """The public call."""
    return open_trace(path).histogram().requests


def with_pandas(path: Path, **options: object) -> int:
    """Read, drop failures, cut both columns, group."""
    frame = pd.read_csv(path, **options)
    frame = frame[frame[OUTPUT] > 0]
    bins = Bins.powers_of_two(int(frame[INPUT].max()), int(frame[OUTPUT].max()))
    frame["i"] = pd.cut(frame[INPUT], [0, *bins.input_edges])
    frame["o"] = pd.cut(frame[OUTPUT], [0, *bins.output_edges])
    grouped = frame.groupby(["i", "o"], observed=True)
    sums = grouped.agg(requests=(INPUT, "size"), input=(INPUT, "sum"), output=(OUTPUT, "sum"))
    return int(sums["requests"].sum())


def best_s(work: Callable[[], int]) -> tuple[float, int]:
    """The fastest of `RUNS` runs, and what it counted."""
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        counted = work()
        times.append(time.perf_counter() - begun)
    return min(times), counted


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "burstgpt.csv"
        make(path)
        print(f"{ROWS:,} rows, {path.stat().st_size / 1e6:.0f} MB", file=sys.stderr)
        cases: dict[str, Callable[[], int]] = {
            "infergy": lambda: with_infergy(path),
            "pandas, as one writes it": lambda: with_pandas(path),
            "pandas at its best (usecols, pyarrow)": lambda: with_pandas(
                path, usecols=[INPUT, OUTPUT], engine="pyarrow"
            ),
        }
        first = None
        for name, work in cases.items():
            seconds, counted = best_s(work)
            first = first or seconds
            print(f"{name:40} {seconds:6.3f} s  {seconds / first:5.1f} ×  {counted:,} requests")
