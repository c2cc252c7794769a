"""How long binning takes where a trace lies: polars, DuckDB and Spark beside each other, on the same Parquet files.

    python benchmarks/bins_at_scale.py [MILLION_ROWS] [FOLDER]

Rows are drawn from the shipped Azure conversation trace, in files of 10 million, made once. Each library counts them into
the same histogram, through `infergy.open_trace`; the first counts of each are left out. DuckDB and Spark are skipped where
they are not installed. Peak memory is of this process, as Linux tells it; Spark's own is its Java's, held to 2 GB.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import infergy

FILE_ROWS = 10_000_000
THREADS = 2
RUNS = 3


def make(folder: Path, rows: int) -> Path:
    """Parquet files of so many rows; those that are there stay."""
    import polars as pl

    lake = folder / f"requests-{rows}"
    lake.mkdir(parents=True, exist_ok=True)
    real = infergy.open_trace("azure-conv-2023").frame.select("input_tokens", "output_tokens").collect()
    for number in range(-(-rows // FILE_ROWS)):
        path = lake / f"{number:04}.parquet"
        if not path.exists():
            count = min(FILE_ROWS, rows - number * FILE_ROWS)
            drawn = real.sample(count, with_replacement=True, seed=number)
            drawn.with_columns(pl.all().cast(pl.Int64)).write_parquet(path)
    return lake


def by_polars(lake: Path) -> Any:
    """A lazy frame, read in a stream."""
    import polars as pl

    return pl.scan_parquet(lake / "*.parquet")


def by_duckdb(lake: Path) -> Any:
    """A relation."""
    import duckdb

    duckdb.execute(f"SET threads = {THREADS}")
    return duckdb.read_parquet(str(lake / "*.parquet"))


def by_spark(lake: Path) -> Any:
    """A frame of a classic session."""
    from pyspark.sql import SparkSession

    options = {"spark.driver.memory": "2g", "spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1"}
    session = SparkSession.builder.master(f"local[{THREADS}]").config(map=options).getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session.read.parquet(str(lake))


def forget_peak() -> None:
    """Begin the peak of resident memory anew: what made the files is not what counts them."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Peak of resident memory since."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print a line each."""
    rows = int(float(sys.argv[1]) * 1e6) if len(sys.argv) > 1 else 100_000_000
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.gettempdir()) / "infergy-lake"
    lake = make(folder, rows)
    size = sum(path.stat().st_size for path in lake.glob("*.parquet"))
    print(
        f"{rows:,} rows in {len(list(lake.glob('*.parquet')))} Parquet files, {size / 1e6:,.0f} MB; {THREADS} threads"
    )
    wanted = None
    ways: dict[str, Callable[[Path], Any]] = {"polars": by_polars, "DuckDB": by_duckdb, "Spark": by_spark}
    for name, way in ways.items():
        try:
            frame = way(lake)
        except ImportError as error:
            print(f"{name:8} not installed ({error})")
            continue
        seconds = []
        forget_peak()
        for _ in range(RUNS + 1):
            begun_s = time.perf_counter()
            histogram = infergy.open_trace(frame).histogram()
            seconds.append(time.perf_counter() - begun_s)
        wanted = wanted or histogram.counts
        assert histogram.counts == wanted, f"{name} counts otherwise"
        best_s, peak = min(seconds[1:]), peak_bytes()
        each = best_s * 1e8 / rows
        print(f"{name:8} {best_s:7.2f} s, best of {RUNS}; {each:6.1f} s a 100 million rows; peak {peak / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
