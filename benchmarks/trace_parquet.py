"""A Parquet trace of 100 million rows to a histogram: seconds and peak memory, beside plain polars and DuckDB.

Run: python benchmarks/trace_parquet.py     (writes about 0.4 GB to a temporary folder, and removes it)
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 100_000_000
GROUP = 1_000_000
INPUT, OUTPUT = "prompt_tokens", "completion_tokens"

CODE = {
    "infergy": """
from infergy.workload import open_trace
n = open_trace(PATH).histogram().requests
""",
    "polars, as one writes it": """
import polars as pl
edges = [2**k for k in range(18)]
cut = lambda name: pl.col(name).cut(edges, labels=[str(i) for i in range(19)])
n = (pl.scan_parquet(PATH).group_by(cut("prompt_tokens"), cut("completion_tokens").alias("o"))
     .agg(pl.len(), pl.col("prompt_tokens").cast(pl.Int64).sum().alias("s"), pl.col("completion_tokens").cast(pl.Int64).sum().alias("t"))
     .collect(engine="streaming")["len"].sum())
""",
    "DuckDB": """
import duckdb
n = duckdb.sql(f'''select ceil(log2(prompt_tokens)) i, ceil(log2(completion_tokens)) o, count(*) c, sum(prompt_tokens), sum(completion_tokens)
                  from '{PATH}' group by all''').aggregate("sum(c)").fetchall()[0][0]
""",
    "decoding alone (polars)": """
import polars as pl
n = pl.scan_parquet(PATH).select(pl.col("prompt_tokens").max(), pl.col("completion_tokens").max(), pl.len()).collect(engine="streaming")["len"][0]
""",
}  # fmt: skip


def make(path: Path) -> None:
    """Log-normal lengths, 32-bit, a row group at a time."""
    draw = np.random.default_rng(0)
    schema = pa.schema([(INPUT, pa.int32()), (OUTPUT, pa.int32())])
    with pq.ParquetWriter(path, schema) as writer:
        for _ in range(ROWS // GROUP):
            columns = [
                np.clip(draw.lognormal(mean, sigma, GROUP), 1, top).astype(np.int32)
                for mean, sigma, top in ((6.5, 1.2, 100_000), (4.0, 1.3, 8_000))
            ]
            writer.write_table(pa.table(columns, schema=schema))


def run(code: str, path: Path) -> None:
    """Run one case in this process and tell what it took."""
    begun = time.perf_counter()
    scope: dict[str, object] = {"PATH": str(path)}
    exec(code, scope)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{seconds:6.2f} s  {peak / 2**30:5.2f} GiB  {scope['n']:,} requests")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run(CODE[sys.argv[1]], Path(sys.argv[2]))
        sys.exit()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "trace.parquet"
        make(target)
        print(f"{ROWS:,} rows, {target.stat().st_size / 1e6:.0f} MB", file=sys.stderr)
        for name in CODE:
            print(f"{name:28}", end="", flush=True)
            subprocess.run([sys.executable, __file__, name, str(target)], check=True)
