"""Start-up times, each the best and the median of fresh processes, beside what a process costs in any case.

Run: python benchmarks/startup.py [REPETITIONS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

REPETITIONS = 5

COMMANDS: tuple[tuple[str, float | None, list[str]], ...] = (
    ("python -c pass", None, ["-c", "pass"]),
    ("import infergy", None, ["-c", "import infergy"]),
    ("infergy --help", 0.2, ["-m", "infergy", "--help"]),
    ("infergy estimate azure-conv-2023", 1.2, ["-m", "infergy", "estimate", "azure-conv-2023"]),
    ("import polars", None, ["-c", "import polars"]),
    ("import pandas", None, ["-c", "import pandas"]),
)


def main() -> None:
    """Print a line for each command; the first run of each, with files not yet cached, is left out."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else REPETITIONS
    print(f"{'command':34} {'best':>8} {'median':>8} {'target':>8}")
    for name, target_s, arguments in COMMANDS:
        times = [seconds(arguments) for _ in range(repetitions + 1)][1:]
        target = "" if target_s is None else f"< {target_s:g} s"
        print(f"{name:34} {min(times):6.3f} s {statistics.median(times):6.3f} s {target:>8}")


def seconds(arguments: list[str]) -> float:
    """Wall time of one fresh process of this Python."""
    begun_s = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - begun_s


if __name__ == "__main__":
    main()
