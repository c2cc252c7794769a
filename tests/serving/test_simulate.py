"""Requests on a clock: when steps begin, what a run adds up to, and what becomes of odd requests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.serving.replica import ENTRY
from infergy.serving.run import Percentiles, Run, latency_of
from infergy.serving.simulate import LAYOUT, simulate
from infergy.workload.requests import whole
from raising import raises
from serving.doubles import Affine, ask, engine, hashes, llama_on_h200

STEP = Affine(base_s=1.0)


def test_a_step_is_planned_when_the_last_but_one_has_ended() -> None:
    # Steps of 1 s. Request 0 runs in steps from 0 s. Request 1 comes during the second step, at 1.5 s: asynchronously
    # the third is planned already, so it runs in the fourth, from 3 s; synchronously in the third, from 2 s.
    requests = ask([(10, 8), (10, 2)], [0.0, 1.5])
    ahead = simulate(requests, engine(async_scheduling=True), STEP)
    after = simulate(requests, engine(async_scheduling=False), STEP)
    assert ahead.requests.first_token_s.tolist() == [1.0, 4.0]
    assert after.requests.first_token_s.tolist() == [1.0, 3.0]


def test_an_idle_engine_begins_at_once() -> None:
    run = simulate(ask([(10, 2), (10, 2)], [0.0, 100.0]), engine(), STEP)
    assert run.requests.first_token_s.tolist() == [1.0, 101.0]
    assert run.requests.finished_s.tolist() == [2.0, 102.0]
    assert run.busy_s == 4.0
    assert run.idle_s == 98.0
    assert run.energy.idle_j == 98.0 * 100.0


def test_intake_delays_what_the_scheduler_sees() -> None:
    requests = ask([(10, 1)], [5.0])
    run = simulate(requests, engine(), Affine(base_s=1.0, intake_s=0.25))
    assert run.requests.first_token_s.tolist() == [6.25]
    latency = latency_of([(run, whole(requests).windows[0])])
    assert latency.ttft_s == Percentiles(p50=1.25, p90=1.25, p99=1.25)
    assert latency.tpot_s is None
    assert run.duration_s == 1.25


def test_energy_adds_up_by_kind_of_step() -> None:
    run = simulate(ask([(10, 3), (5000, 2)], [0.0, 1.5]), engine(max_num_batched_tokens=4096), STEP)
    energy = run.energy
    assert energy.prefill_j + energy.decode_j + energy.mixed_j + energy.idle_j == pytest.approx(run.energy_j)
    assert run.energy_j == pytest.approx(500.0 * run.busy_s + 100.0 * run.idle_s)
    # Steps: prompt; decode; decode; chunk of 4096; chunk of 904; decode.
    assert run.steps.count.sum() == 6
    assert energy.prefill_j == 3 * 500.0
    assert energy.mixed_j == 0.0


def test_a_mixed_step_has_both() -> None:
    run = simulate(ask([(10, 6), (20, 2)], [0.0, 0.5]), engine(), STEP)
    mixed = (run.steps.prefills > 0) & (run.steps.decodes > 0)
    assert run.energy.mixed_j == 500.0
    assert run.steps.prefill_tokens[mixed].tolist() == [20]
    assert run.steps.prefill_pairs[mixed].tolist() == [20 * 21 / 2]
    assert run.steps.sampled[mixed].tolist() == [2]
    assert run.steps.padded[mixed].tolist() == [0]  # no graph of 21 tokens
    # The decode of request 0 attends to its prompt, what it has answered, and the new token.
    assert run.steps.context[mixed].tolist() == [10 + 2]


def test_requests_that_are_too_long_are_rejected_and_counted() -> None:
    lengths = [(10, 2), (90, 11), (500, 500), (3000, 1)]
    run = simulate(ask(lengths), engine(max_model_len=2000, num_gpu_blocks=7), STEP)
    assert run.requests.rejected.tolist() == [False, True, True, True]  # of 6 blocks, 96 tokens
    assert run.counts.rejected_requests == 3
    assert run.counts.finished_requests == 1
    assert np.isnan(run.requests.finished_s[1:]).all()
    exact = simulate(ask([(90, 7)]), engine(num_gpu_blocks=7), STEP)  # the last token is sampled, not kept
    assert exact.counts.finished_requests == 1


def test_a_run_without_requests_or_without_accepted_ones() -> None:
    for requests in (ask([]), ask([(500, 500)])):
        run = simulate(requests, engine(max_model_len=100), STEP)
        assert (len(run.steps), run.energy_j, run.duration_s) == (0, 0.0, 0.0)
        assert latency_of([(run, whole(requests).windows[0])]).ttft_s is None
        assert run.counts.finished_requests == 0


def test_the_next_request_of_a_session_follows_the_last_answer() -> None:
    requests = ask([(10, 2), (10, 2), (10, 2)], [0.0, 0.0, 0.0], after=[-1, 0, 1], gap_s=[0.0, 5.0, 1.0])
    run = simulate(requests, engine(), STEP)
    assert run.requests.arrival_s.tolist() == [0.0, 7.0, 10.0]
    assert run.requests.finished_s.tolist() == [2.0, 9.0, 12.0]


@pytest.mark.parametrize("rejected", [0, 1])
def test_who_follows_a_rejected_request_comes_after_its_gap(rejected: int) -> None:
    lengths = [(10, 2), (10, 2), (10, 2)]
    lengths[rejected] = (500, 2)
    requests = ask(lengths, [0.0, 0.0, 0.0], after=[-1, 0, 1], gap_s=[0.0, 5.0, 1.0])
    run = simulate(requests, engine(max_model_len=100), STEP)
    assert run.requests.arrival_s.tolist() == ([0.0, 5.0, 8.0] if rejected == 0 else [0.0, 7.0, 8.0])
    assert run.counts.finished_requests == 2


def test_replicas_and_routers_that_cannot_be_are_rejected() -> None:
    with raises("bad-value", option="--replicas", value=0):
        simulate(ask([(1, 1)]), engine(), STEP, replicas=0)
    with raises("unknown-name", option="--router", name="random"):
        simulate(ask([(1, 1)]), engine(), STEP, router="random")  # type: ignore[arg-type]


def test_each_replica_that_waits_pays_idle() -> None:
    run = simulate(ask([(10, 2), (10, 2)], [0.0, 0.0]), engine(), STEP, replicas=3)
    assert run.duration_s == 2.0
    assert run.busy_s == 4.0
    assert run.energy.idle_j == 2.0 * 100.0


def test_the_least_loaded_replica_is_chosen_at_arrival() -> None:
    # In turn the third request would wait behind the first, long one.
    requests = ask([(10, 50), (10, 2), (10, 2)], [0.0, 0.0, 10.0])
    busy = engine(max_num_seqs=1)
    in_turn = simulate(requests, busy, STEP, replicas=2)
    least = simulate(requests, busy, STEP, replicas=2, router="least_loaded")
    assert in_turn.requests.finished_s[2] > 50.0
    assert least.requests.finished_s[2] == 12.0
    assert least.steps.start_s.tolist() == sorted(least.steps.start_s)


def test_a_growing_queue_is_reported() -> None:
    lengths, times = [(10, 10)] * 40, [float(k) for k in range(40)]
    run = simulate(ask(lengths, times), engine(max_num_seqs=1), STEP)
    assert run.counts.waiting_at_last_arrival > 30
    assert run.counts.peak_waiting >= run.counts.waiting_at_last_arrival
    assert run.counts.peak_running == 1


def test_the_queue_is_that_of_all_replicas() -> None:
    # Each of two serves every other request, one at a time in ten steps of a second: both queues grow alike.
    requests = ask([(10, 10)] * 80, [0.5 * k for k in range(80)])
    one = simulate(ask([(10, 10)] * 40, [float(k) for k in range(40)]), engine(max_num_seqs=1), STEP).counts
    both = simulate(requests, engine(max_num_seqs=1), STEP, replicas=2).counts
    assert abs(both.waiting_at_last_arrival - 2 * one.waiting_at_last_arrival) <= 2
    assert abs(both.peak_waiting - 2 * one.peak_waiting) <= 2


def test_prefixes_are_found_and_counted() -> None:
    prefix_blocks = hashes([[1, 2], [1, 3]], 32)
    requests = ask([(64, 2), (64, 2)], [0.0, 10.0], prefix_blocks=prefix_blocks)
    run = simulate(requests, engine(), STEP)
    assert run.requests.hit_tokens.tolist() == [0, 32]
    assert run.counts.hit_tokens == 32
    without = simulate(requests, engine(enable_prefix_caching=False), STEP)
    assert without.counts.hit_tokens == 0


def test_tokens_that_a_log_reports_as_cached_are_not_computed_but_held_in_whole_blocks() -> None:
    lengths = [(64, 2), (64, 2), (64, 2)]
    plain = simulate(ask(lengths), engine(), STEP)
    run = simulate(ask(lengths, cached=[0, 40, 64]), engine(), STEP)
    assert run.requests.hit_tokens.tolist() == [0, 32, 48]
    assert run.steps.count @ run.steps.prefill_tokens == 3 * 64 - 80
    assert run.counts.peak_kv_blocks == plain.counts.peak_kv_blocks
    single = simulate(ask(lengths, cached=[0, 40, 64]), engine(), STEP, skip=False)
    assert single.energy_j == pytest.approx(run.energy_j)
    without = simulate(ask(lengths, cached=[0, 40, 64]), engine(enable_prefix_caching=False), STEP)
    assert without.energy_j == pytest.approx(plain.energy_j)


def test_preemptions_waste_energy() -> None:
    run = simulate(ask([(60, 60), (60, 60)]), engine(num_gpu_blocks=12, enable_prefix_caching=False), STEP)
    assert run.counts.preemptions == 1
    assert run.counts.recomputed_tokens > 0
    assert 0 < run.energy.recomputed_j < run.energy_j
    assert run.counts.finished_requests == 2
    assert run.counts.peak_kv_blocks <= 11


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert Percentiles.of(np.arange(1.0, 101.0), np.ones(100)) == Percentiles(p50=50.0, p90=90.0, p99=99.0)
    assert Percentiles.of(np.array([3.0]), np.ones(1)) == Percentiles(p50=3.0, p90=3.0, p99=3.0)
    assert Percentiles.of(np.array([]), np.ones(0)) is None
    assert Percentiles.of(np.array([2.0]), np.zeros(1)) is None


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(0, 5)), min_size=1))
def test_a_weight_is_a_value_as_often(pairs: list[tuple[float, int]]) -> None:
    values, weights = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    each = np.repeat(values, weights.astype(int))
    assert Percentiles.of(values, weights) == Percentiles.of(each, np.ones(each.size))


def test_latencies_of_windows_count_by_their_weights() -> None:
    quick, slow = ask([(10, 1), (10, 1)], [0.0, 5.0]), ask([(10, 1)], [0.0])
    runs = [
        (simulate(quick, engine(), Affine(base_s=1.0)), replace(whole(quick).windows[0], weight=3.0)),
        (simulate(slow, engine(), Affine(base_s=2.0)), replace(whole(slow).windows[0], weight=1.0)),
    ]
    latency = latency_of(runs)
    assert latency.ttft_s == latency.e2e_s == Percentiles(p50=1.0, p90=2.0, p99=2.0)
    assert latency_of([runs[0], (runs[1][0], replace(runs[1][1], weight=0.5))]).ttft_s == Percentiles(
        p50=1.0, p90=1.0, p99=2.0
    )


def test_a_part_of_a_run_is_its_steps_and_its_waiting_up_to_then() -> None:
    # Steps of 1 s and 500 W from 2 s to 5 s; 100 W idle.
    run = simulate(ask([(10, 3)], [2.0]), engine(), Affine(base_s=1.0))
    assert (run.start_s, run.duration_s, run.energy_j) == (2.0, 3.0, 1500.0)
    for duration_s, energy_j, busy_s in ((1.0, 100.0, 0.0), (2.5, 450.0, 0.5), (5.0, 1700.0, 3.0), (9.0, 2100.0, 3.0)):
        part = run.within(duration_s)
        assert (part.start_s, part.duration_s) == (0.0, duration_s)
        assert part.energy_j == pytest.approx(energy_j)
        assert part.busy_s == pytest.approx(busy_s)
        assert part.steps.count @ part.step_energy_j + part.energy.idle_j == pytest.approx(energy_j)
        assert part.requests is run.requests


def test_an_entrys_layout_is_that_of_its_bytes() -> None:
    assert LAYOUT.itemsize == ENTRY.size
    assert np.frombuffer(ENTRY.pack(1.5, 2, 3, 4.5, 5, 6.5, 7, 8, 9, 10, 11.5), dtype=LAYOUT)[0].tolist() == (
        1.5, 2, 3, 4.5, 5, 6.5, 7, 8, 9, 10, 11.5,
    )  # fmt: skip


LENGTHS = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 2000)), min_size=1, max_size=30)


def same(skipped: Run, single: Run, rel: float) -> None:
    assert skipped.steps.count.sum() == single.steps.count.sum()
    assert skipped.duration_s == pytest.approx(single.duration_s, rel=rel)
    assert skipped.busy_s == pytest.approx(single.busy_s, rel=rel)
    assert skipped.energy_j == pytest.approx(single.energy_j, rel=rel)
    for kind in ("prefill_j", "decode_j", "mixed_j", "idle_j"):
        assert getattr(skipped.energy, kind) == pytest.approx(
            getattr(single.energy, kind), rel=rel, abs=rel * single.energy_j
        )


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.booleans(), st.sampled_from([400, 3000, 50_000]), st.sampled_from([4, 256]))
def test_skipping_changes_time_and_energy_by_less_than_a_twentieth_of_a_percent(
    lengths: list[tuple[int, int]], asynchronous: bool, blocks: int, seqs: int
) -> None:
    config = engine(num_gpu_blocks=blocks, max_num_seqs=seqs, async_scheduling=asynchronous)
    skipped, single = (simulate(ask(lengths), config, llama_on_h200(), skip=skip) for skip in (True, False))
    same(skipped, single, rel=5e-4)


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.data(), st.booleans(), st.sampled_from([400, 50_000]))
def test_skipping_changes_no_time_where_a_step_is_linear(
    lengths: list[tuple[int, int]], data: st.DataObject, asynchronous: bool, blocks: int
) -> None:
    gaps = data.draw(st.lists(st.floats(0, 30), min_size=len(lengths), max_size=len(lengths)))
    cost = Affine(base_s=0.0103, each_s=1e-4, context_s=1.1e-7, token_s=1.7e-5, intake_s=0.0013)
    config = engine(num_gpu_blocks=blocks, max_num_seqs=8, async_scheduling=asynchronous)
    requests = ask(lengths, np.cumsum(gaps).tolist())
    skipped, single = (simulate(requests, config, cost, skip=skip) for skip in (True, False))
    same(skipped, single, rel=1e-9)
    np.testing.assert_allclose(skipped.requests.first_token_s, single.requests.first_token_s, rtol=1e-9)
    np.testing.assert_allclose(skipped.requests.finished_s, single.requests.finished_s, rtol=1e-9)
