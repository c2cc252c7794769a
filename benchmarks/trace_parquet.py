"""Seconds and peak memory from a 100-million-row Parquet trace to a histogram: infergy, polars and DuckDB in one run.

Run: python benchmarks/trace_parquet.py [--rows 100000000] [--repeat 3] [--folder DIR]
Targets on 2 cores: infergy under 4 s and under 0.3 GiB of peak resident memory.
Each way runs in a child process of its own, and is timed from after its imports. Peak memory is the child's
maximum resident set, imports and pages of the file included. All must agree, or the run fails.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROWS_A_GROUP = 1_000_000
EDGES = {"input_tokens": [2**k for k in range(5, 18)], "output_tokens": [2**k for k in range(3, 15)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", help="where the file is made, 0.3 GiB, and deleted after [default: temporary]")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        run_way(options.way, options.file)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "trace.parquet"
        subprocess.run(
            [sys.executable, "-c", f"import trace_parquet as t; t.write_trace({str(path)!r}, {options.rows})"],
            check=True,
            cwd=Path(__file__).parent,
        )
        print(f"{options.rows:,} rows, {path.stat().st_size / 2**20:.0f} MiB; best of {options.repeat}")
        print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
        compare(path, options.repeat)


def compare(path: Path, repeat: int) -> None:
    answers = set()
    for way in WAYS:
        runs = []
        for _ in range(repeat):
            line = subprocess.run(
                [sys.executable, __file__, "--way", way, "--file", str(path)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()
            runs.append((float(line[0]), int(line[1])))
            answers.add(tuple(line[2:]))
        print(f"  {way:<10} {min(run[0] for run in runs):6.2f} s   {max(run[1] for run in runs) / 2**20:6.3f} GiB")
    if len(answers) != 1:
        sys.exit(f"they do not agree: {answers}")


def run_way(way: str, path: Path) -> None:
    count = WAYS[way]()
    start = time.perf_counter()
    answer = count(path)
    seconds = time.perf_counter() - start
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(seconds, peak_kib, *answer)


def write_trace(path: str, rows: int) -> None:
    """Two 32-bit columns of skewed lengths, seeded, written a row group at a time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(2024)
    schema = pa.schema([("input_tokens", pa.int32()), ("output_tokens", pa.int32())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows, ROWS_A_GROUP):
            n = min(ROWS_A_GROUP, rows - start)
            given = np.clip(draw.lognormal(6.8, 1.1, n), 1, 131_072).astype(np.int32)
            output = np.clip(draw.lognormal(4.2, 1.3, n), 1, 8_192).astype(np.int32)
            writer.write_table(pa.table({"input_tokens": given, "output_tokens": output}, schema=schema))


def with_infergy() -> Callable[[Path], tuple[int, ...]]:
    import polars  # noqa: F401

    from infergy.workload import open_trace

    def count(path: Path) -> tuple[int, ...]:
        histogram = open_trace(path).histogram()
        return len(histogram.counts), histogram.requests, histogram.input_tokens, histogram.output_tokens

    return count


def with_polars() -> Callable[[Path], tuple[int, ...]]:
    import polars as pl

    def count(path: Path) -> tuple[int, ...]:
        keys = [pl.col(name).cast(pl.Int64).cut(edges).alias(f"{name}_bin") for name, edges in EDGES.items()]
        sums = [pl.col(name).cast(pl.Int64).sum() for name in EDGES]
        rows = pl.scan_parquet(path).group_by(keys).agg(pl.len(), *sums).collect(engine="streaming")
        return len(rows), *rows.select("len", *EDGES).sum().row(0)

    return count


def with_duckdb() -> Callable[[Path], tuple[int, ...]]:
    import duckdb

    def count(path: Path) -> tuple[int, ...]:
        keys = [f"greatest(ceil(log2({name})), {edges[0].bit_length() - 1})" for name, edges in EDGES.items()]
        sums = "count(*), sum(input_tokens), sum(output_tokens)"
        query = duckdb.execute(f"SELECT {sums} FROM '{path}' GROUP BY {keys[0]}, {keys[1]}")
        rows = query.fetchall()
        return len(rows), *(int(sum(column)) for column in zip(*rows, strict=True))

    return count


WAYS: dict[str, Callable[[], Callable[[Path], tuple[int, ...]]]] = {
    "infergy": with_infergy,
    "polars": with_polars,
    "duckdb": with_duckdb,
}

if __name__ == "__main__":
    main()
