"""Steps, prefix-cache hits and preemptions of our scheduler compared with those recorded from vLLM's own.

Usage: python benchmarks/schedule_fidelity.py FILE...

A line of a FILE is a workload: version, asynchronous, max_num_batched_tokens, max_num_seqs, num_gpu_blocks, block_size,
prefix_caching, long_prefill_token_threshold, requests [[iteration of arrival, prompt tokens, output tokens, shared text
or -1, tokens of it]], and what the real scheduler did: steps [[request, tokens, ...]], hits [[request, tokens]] of first
admissions, preempted. Prints `identical N of M` for each FILE; exit status 1 where one is not.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

from infergy.serving.conformance import play


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    failed = 0
    for name in sys.argv[1:]:
        with (gzip.open if name.endswith(".gz") else open)(name, "rt") as file:
            workloads: list[dict[str, Any]] = [json.loads(line) for line in file]
        identical = 0
        for number, workload in enumerate(workloads):
            played = play(workload)
            if played == (workload["steps"], workload["hits"], workload["preempted"]):
                identical += 1
            else:
                print(f"{Path(name).name}: workload {number} differs", file=sys.stderr)
        print(f"{Path(name).name}: identical {identical} of {len(workloads)}")
        failed += identical < len(workloads)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
