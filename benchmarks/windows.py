"""How far windows of a trace are off the whole: energy as requests arrive, and all at once.

Usage: python benchmarks/windows.py [DRAWS]

Both shipped traces are short enough to be simulated whole; here windows of a minute are drawn of them all the same, as
many as a longer trace would have at least, and served on the default server.
"""

from __future__ import annotations

import sys

import numpy as np

from infergy.estimates.estimate import RunEstimate, estimate_server
from infergy.estimates.servers import ServerSpec, open_server
from infergy.workload import open_trace

TRACES = ("azure-conv-2023", "azure-code-2023")
WHOLE_REQUESTS, ERROR = 1000, 0.2


def main() -> None:
    draws, server = int(sys.argv[1]) if len(sys.argv) > 1 else 20, open_server(ServerSpec())
    for name in TRACES:
        trace = open_trace(name)
        whole = estimate_server(trace.sample(), server)
        samples = [trace.sample(error=ERROR, whole_requests=WHOLE_REQUESTS, seed=seed) for seed in range(draws)]
        sampled = [estimate_server(sample, server) for sample in samples]
        for how in ("served", "offline"):
            true: RunEstimate = getattr(whole, how)
            runs: list[RunEstimate] = [getattr(one, how) for one in sampled]
            errors = np.array([run.energy_j / true.energy_j - 1 for run in runs])
            inside = sum(run.low_j <= true.energy_j <= run.high_j for run in runs)
            print(
                f"{name}, {how}, {len(samples[0].windows)} windows: energy {100 * errors.mean():+.1f} % (mean), "
                f"{100 * np.sqrt((errors**2).mean()):.1f} % (rms); {inside} of {draws} intervals contain the whole's"
            )


if __name__ == "__main__":
    main()
