"""Many steps at once are the same as one by one, and nothing is lost or made up."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schedule_fidelity import make_scheduler, play


@st.composite
def workloads(draw: st.DrawFn) -> dict[str, Any]:
    block = draw(st.sampled_from([1, 4, 16]))
    tokens = draw(st.sampled_from([24, 64, 500]))
    rows, step = [], 0
    for _ in range(draw(st.integers(1, 25))):
        step += draw(st.sampled_from([0, 0, 1, 3, 40]))
        prompt = draw(st.integers(1, 150))
        text = draw(st.integers(-1, 1))
        rows.append([step, prompt, draw(st.integers(1, 60)), text, draw(st.integers(0, prompt)) if text >= 0 else 0])
    longest = max(row[1] + row[2] for row in rows)
    return {
        "version": draw(st.sampled_from(["0.25.0", "0.33.0"])),
        "asynchronous": draw(st.booleans()),
        "max_num_batched_tokens": tokens,
        "max_num_seqs": draw(st.sampled_from([1, 3, 8, 24])),
        "num_gpu_blocks": -(-longest // block) + 1 + draw(st.sampled_from([0, 1, 10, 300])),
        "block_size": block,
        "prefix_caching": draw(st.booleans()),
        "long_prefill_token_threshold": draw(st.sampled_from([0, 0, 16])),
        "requests": rows,
    }


@settings(max_examples=150, deadline=None)
@given(workloads())
def test_skipping_changes_nothing(workload: dict[str, Any]) -> None:
    assert play(workload, skip=True) == play(workload, skip=False)


@settings(max_examples=60, deadline=None)
@given(workloads())
def test_every_token_is_computed_and_no_step_is_over_its_limits(workload: dict[str, Any]) -> None:
    steps, hits, preempted = play(workload)
    found: Counter[int] = Counter()
    for request, tokens in hits:
        found[request] += tokens
    done: Counter[int] = Counter()
    for step in steps:
        assert sum(step[1::2]) <= workload["max_num_batched_tokens"]
        assert len(step) // 2 <= workload["max_num_seqs"]
        for request, tokens in zip(step[::2], step[1::2], strict=True):
            done[request] += tokens
    for request, (_, prompt, output, _, _) in enumerate(workload["requests"]):
        if not preempted:
            assert done[request] + found[request] == prompt + output - 1
        else:
            assert done[request] >= prompt + output - 1 - prompt * (1 + preempted)


@settings(max_examples=60, deadline=None)
@given(workloads())
def test_all_blocks_come_back(workload: dict[str, Any]) -> None:
    scheduler = make_scheduler(workload)
    for request in range(len(workload["requests"])):
        scheduler.add(request)
    while scheduler.running or scheduler.waiting:
        count = scheduler.steady()
        if count:
            scheduler.repeat(count)
        else:
            scheduler.schedule()
        scheduler.settle()
    assert scheduler.pool.free == workload["num_gpu_blocks"] - 1
    assert (scheduler.decodes, scheduler.context) == (0, 0)


def test_a_prompt_that_is_cached_whole_recomputes_its_last_block() -> None:
    row = {"version": "0.25.0", "asynchronous": False, "max_num_batched_tokens": 64, "max_num_seqs": 4}
    row |= {"num_gpu_blocks": 100, "block_size": 16, "prefix_caching": True, "long_prefill_token_threshold": 0}
    steps, hits, _ = play(row | {"requests": [[1, 32, 1, 0, 32], [5, 32, 1, 0, 32]]})
    assert steps == [[0, 32], [1, 16]]
    assert hits == [[1, 16]]


def test_a_second_request_of_the_same_step_finds_the_first_ones_prefix() -> None:
    row = {"version": "0.25.0", "asynchronous": False, "max_num_batched_tokens": 500, "max_num_seqs": 4}
    row |= {"num_gpu_blocks": 100, "block_size": 16, "prefix_caching": True, "long_prefill_token_threshold": 0}
    steps, hits, _ = play(row | {"requests": [[1, 40, 1, 0, 40], [1, 50, 1, 0, 40]]})
    assert steps == [[0, 40, 1, 18]]
    assert hits == [[1, 32]]
