"""Seconds from a BurstGPT-shaped CSV of 1.43 million requests to a histogram: infergy against pandas, in one run.

Run: python benchmarks/trace_csv.py [--rows 1430000] [--repeat 7]
Targets on 2 cores: infergy under 0.4 s, and at least 2 times faster than the plain pandas script.
All three count the same bins and must agree, or the run fails.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

INPUT, OUTPUT = "Request tokens", "Response tokens"
Counts = dict[tuple[int, int], tuple[int, int, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_430_000)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "burstgpt.csv"
        write_trace(path, options.rows)
        print(f"{options.rows:,} rows, {path.stat().st_size / 2**20:.0f} MiB; best of {options.repeat}")
        print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
        ways: dict[str, Callable[[Path], Counts]] = {
            "infergy": count_with_infergy,
            "pandas, plain script": count_with_plain_pandas,
            "pandas, best form": count_with_best_pandas,
        }
        times: dict[str, float] = {}
        answers: dict[str, Counts] = {}
        for name, count in ways.items():
            times[name], answers[name] = best_of(count, path, options.repeat)
        for name, seconds in times.items():
            print(f"  {name:<22} {seconds:6.3f} s   {seconds / times['infergy']:5.1f} × infergy")
        if any(answer != answers["infergy"] for answer in answers.values()):
            sys.exit("the three do not agree")


def best_of(count: Callable[[Path], Counts], path: Path, repeat: int) -> tuple[float, Counts]:
    seconds = []
    answer: Counts = {}
    for _ in range(repeat):
        start = time.perf_counter()
        answer = count(path)
        seconds.append(time.perf_counter() - start)
    return min(seconds), answer


def write_trace(path: Path, rows: int) -> None:
    """A seeded log with BurstGPT's columns: skewed lengths, 2 % failures, two models, two kinds of log."""
    import numpy as np
    import polars as pl

    draw = np.random.default_rng(2024)
    given = np.clip(draw.lognormal(5.2, 0.9, rows), 1, 32_000).astype(np.int64)
    output = np.clip(draw.lognormal(2.5, 1.6, rows), 1, 4_096).astype(np.int64)
    output[draw.random(rows) < 0.02] = 0
    pl.DataFrame(
        {
            "Timestamp": np.sort(draw.integers(0, 5_270_000, rows)),
            "Model": np.where(draw.random(rows) < 0.9, "ChatGPT", "GPT-4"),
            INPUT: given,
            OUTPUT: output,
            "Total tokens": given + output,
            "Log Type": np.where(draw.random(rows) < 0.3, "Conversation log", "API log"),
        }
    ).write_csv(path)


def count_with_infergy(path: Path) -> Counts:
    from infergy.workload import open_trace

    return {
        (count.bin.input_tokens, count.bin.output_tokens): (count.requests, count.input_tokens, count.output_tokens)
        for count in open_trace(path).histogram().counts
    }


def count_with_plain_pandas(path: Path) -> Counts:
    import pandas as pd

    log = pd.read_csv(path)
    return bin_with_cut(log[log[OUTPUT] > 0])


def count_with_best_pandas(path: Path) -> Counts:
    import numpy as np
    import pandas as pd

    log = pd.read_csv(path, usecols=[INPUT, OUTPUT], engine="pyarrow")
    log = log[log[OUTPUT] > 0]
    edges = {column: np.array(edges_to(log[column].max(), first)) for column, first in ((INPUT, 32), (OUTPUT, 8))}
    places = [np.searchsorted(edges[column], log[column].to_numpy()).astype(np.int8) for column in (INPUT, OUTPUT)]
    grouped = log.groupby(places).agg(n=(INPUT, "size"), i=(INPUT, "sum"), o=(OUTPUT, "sum"))
    return {
        (int(edges[INPUT][i]), int(edges[OUTPUT][o])): (int(row.n), int(row.i), int(row.o))
        for (i, o), row in zip(grouped.index, grouped.itertuples(), strict=True)
    }


def bin_with_cut(log) -> Counts:  # type: ignore[no-untyped-def]
    import pandas as pd

    edges = {column: edges_to(log[column].max(), first) for column, first in ((INPUT, 32), (OUTPUT, 8))}
    places = [pd.cut(log[column], [0, *edges[column]], labels=edges[column]) for column in (INPUT, OUTPUT)]
    grouped = log.groupby(places, observed=True).agg(n=(INPUT, "size"), i=(INPUT, "sum"), o=(OUTPUT, "sum"))
    return {
        (int(i), int(o)): (int(row.n), int(row.i), int(row.o))
        for (i, o), row in zip(grouped.index, grouped.itertuples(), strict=True)
    }


def edges_to(longest: int, first: int) -> list[int]:
    edges = [first]
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    return edges


if __name__ == "__main__":
    main()
