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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infergy.serving.blocks import Path as BlockPath
from infergy.serving.config import SchedulerLimits
from infergy.serving.scheduler import Scheduler

Played = tuple[list[list[int]], list[list[int]], int]


def play(workload: Mapping[str, Any], *, skip: bool = True) -> Played:
    """Steps [[request, tokens, ...]], hits [[request, tokens]] of first admissions, preemptions of a workload.

    `workload` has the fields of the recorded files; with `skip` equal steps are taken at once, as everywhere.
    """
    scheduler = make_scheduler(workload)
    resumed_too = not workload["version"].startswith("0.25")  # 0.33 reports resumed requests as new ones
    admitted: set[int] = set()
    arrivals = [row[0] for row in workload["requests"]]
    iteration, arrived, steps, hits = 0, 0, [], []
    while arrived < len(arrivals) or scheduler.running or scheduler.waiting:
        iteration += 1
        if not scheduler.running and not scheduler.waiting:
            iteration = max(iteration, arrivals[arrived])
        while arrived < len(arrivals) and arrivals[arrived] <= iteration:
            scheduler.add(arrived)
            arrived += 1
        count = scheduler.steady() if skip else 0
        if count:
            if arrived < len(arrivals):
                count = min(count, arrivals[arrived] - iteration)
            scheduler.repeat(count)
            steps += [[x for row in scheduler.scheduled() for x in row]] * count
            iteration += count - 1
        else:
            before = set(scheduler.running)
            scheduler.schedule()
            found = [(request, computed) for request, _, computed in scheduler.chunks if request not in before]
            hits += [[request, tokens] for request, tokens in found if tokens and request not in admitted]
            if resumed_too:
                hits += [[request, tokens] for request, tokens in found if tokens and request in admitted]
            admitted.update(request for request, _ in found)
            steps.append([x for row in scheduler.scheduled() for x in row])
        scheduler.settle()
    return steps, hits, sum(scheduler.preempted.values())


def make_scheduler(workload: Mapping[str, Any]) -> Scheduler:
    """The scheduler of a recorded workload, with all its requests and none added."""
    requests, size = workload["requests"], workload["block_size"]
    recent = not workload["version"].startswith("0.25")
    return Scheduler(
        [row[1] for row in requests],
        [row[2] for row in requests],
        SchedulerLimits(
            max_num_batched_tokens=workload["max_num_batched_tokens"],
            max_num_seqs=workload["max_num_seqs"],
            num_gpu_blocks=workload["num_gpu_blocks"],
            block_size=size,
            enable_prefix_caching=workload["prefix_caching"],
            long_prefill_token_threshold=workload["long_prefill_token_threshold"],
            async_scheduling=workload["asynchronous"],
            lone_threshold=not recent,
        ),
        {k: path for k, row in enumerate(requests) if (path := _text_path(requests, row, size))},
    )


def _text_path(requests: list[list[int]], row: list[int], size: int) -> BlockPath:
    """A request's beginning in its shared text, cut where any request leaves the text."""
    text, own = row[3], row[4] // size
    if text < 0:
        return ()
    cuts = sorted({other[4] // size for other in requests if other[3] == text and other[4] // size <= own} - {0})
    return tuple((text * 100_000 + cut, cut) for cut in cuts)


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
