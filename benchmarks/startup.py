"""How long a user waits: `infergy --help`, a cold estimate, and an import, beside Python's own start and pandas.

Run: python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import time

RUNS = 7
CASES = {
    "python -c pass": ["-c", "pass"],
    "import infergy": ["-c", "import infergy"],
    "infergy --help": ["-m", "infergy", "--help"],
    "infergy estimate azure-conv-2023": ["-m", "infergy", "estimate", "azure-conv-2023"],
    "import polars (for comparison)": ["-c", "import polars"],
    "import pandas (for comparison)": ["-c", "import pandas"],
}


def best_s(arguments: list[str]) -> float:
    """The fastest of `RUNS` runs in fresh processes."""
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - begun)
    return min(times)


if __name__ == "__main__":
    for name, arguments in CASES.items():
        print(f"{name:36} {best_s(arguments):6.3f} s")
