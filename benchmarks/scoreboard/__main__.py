"""`python benchmarks/scoreboard`: docs/scoreboard.md."""

import os
import sys
from pathlib import Path

# Read when numpy loads: matrices of some hundred rows gain nothing from threads, which stall each other on a busy machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if __name__ == "__main__":
    # Python puts this folder on the path; its modules are those of the package `scoreboard`.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from scoreboard.command import main

    sys.exit(main(sys.argv[1:]))
