"""The lengths of `burstgpt-synthetic`, drawn from what arXiv 2504.17674 publishes of BurstGPT's: makes the file that ships.

Usage: python benchmarks/burstgpt_synthetic.py [OUT.parquet]

    ln n(z) = ln median + slope × z              z < 0          below the median
    ln n(z) = ln median + ln(p99 / median) × z / z99    0 ≤ z ≤ z99     through both published quantiles
    ln n(z) = ln p99 + slope' × (z − z99)        z > z99        above the 99th percentile

with z standard normal: a log-normal with a slope of its own below the median and above the 99th percentile. The two free
slopes give the published mean and standard deviation. A length is drawn from the middle of each of 10,000 shares of equal
probability and rounded to whole tokens. Inputs and outputs are put together at random (seed 0), since nothing is published
of how they go together, nor of arrivals.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from infergy.workload.locate import shipped_traces

PUBLISHED = {"input_tokens": (256.80, 242.27, 215, 1038), "output_tokens": (35.10, 108.59, 7, 478)}
"""Mean, standard deviation, median and 99th percentile, in tokens."""
REQUESTS = 10_000


def lengths(mean: float, sd: float, median: float, p99: float) -> Any:
    """Whole tokens, ascending."""
    from scipy.optimize import least_squares
    from scipy.special import ndtri

    z, z99 = ndtri((np.arange(REQUESTS) + 0.5) / REQUESTS), float(ndtri(0.99))
    middle = math.log(p99 / median) / z99

    def draw(slopes: Any) -> Any:
        below, above = np.exp(slopes)
        logs = np.where(z < 0, below * z, np.where(z < z99, middle * z, middle * z99 + above * (z - z99)))
        return median * np.exp(logs)

    def errors(slopes: Any) -> Any:
        drawn = draw(slopes)
        return drawn.mean() / mean - 1, drawn.std() / sd - 1

    found = least_squares(errors, np.zeros(2))
    return np.maximum(1, np.rint(draw(found.x))).astype(np.int32)


def columns() -> dict[str, Any]:
    """Tokens of all requests, by column."""
    drawn = {name: lengths(*moments) for name, moments in PUBLISHED.items()}
    order = np.random.default_rng(0)
    return {name: order.permutation(values) for name, values in drawn.items()}


def main() -> None:
    import polars as pl

    about = shipped_traces()["burstgpt-synthetic"]
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("src/infergy/data/traces") / about["file"]
    pl.DataFrame(columns()).write_parquet(out, compression="zstd", compression_level=19)
    for name, values in columns().items():
        shown = (values.mean(), values.std(), np.median(values), np.quantile(values, 0.99, method="higher"))
        print(name, " ".join(f"{value:.2f}" for value in shown), "published", *PUBLISHED[name], "longest", values.max())


if __name__ == "__main__":
    main()
