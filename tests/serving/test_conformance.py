"""Steps equal to those of vLLM's own scheduler; the files are made by its real classes on a CPU."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from schedule_fidelity import play

SAMPLE = Path(__file__).parent / "data" / "vllm_schedules_sample.jsonl.gz"

with gzip.open(SAMPLE, "rt") as file:
    WORKLOADS: list[dict[str, Any]] = [json.loads(line) for line in file]


@pytest.mark.parametrize("skip", [True, False], ids=["skipping", "one by one"])
@pytest.mark.parametrize("number", range(len(WORKLOADS)))
def test_steps_hits_and_preemptions_are_those_of_vllm(number: int, skip: bool) -> None:
    workload = WORKLOADS[number]
    steps, hits, preempted = play(workload, skip=skip)
    assert steps == workload["steps"]
    assert hits == workload["hits"]
    assert preempted == workload["preempted"]
